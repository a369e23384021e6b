# From one release, configuration and unit of the endpoint to the next, and back if that does not serve;
# action_plugins/dtls_switch.py sends it. POSIX sh.
#
# What served last is kept under $base/confirmed: the name of its release, and copies of the files. What is to be done follows
# from comparing that with what is there now, so a run that ended half-way is taken up by the next one. It all happens
# here, on the host, so that the controller may vanish at any moment: either the new one serves, or the old one.

line() { tail -n "$1" | tr '\n' '|'; }
now() { date +%s; }

# --- what there is ----------------------------------------------------------------------------------------

named() { sed -n 1p "$base/$1/release" 2>/dev/null; }
kept() { printf '%s/%s' "$1" "$(printf '%s' "$2" | tr '/' '_')"; }
linked() { link=$(readlink "$base/current" 2>/dev/null) && printf '%s' "${link##*/}"; }

pid() {
    case $manager in
    systemd) systemctl show -p MainPID --value "$service" ;;
    *) cat "$pidfile" 2>/dev/null ;;
    esac
}

# The release that the process was started from: its interpreter's path says so, and "current" is not in it.
running() {
    number=$(pid)
    [ "${number:-0}" -gt 0 ] 2>/dev/null &&
        tr '\0' '\n' 2>/dev/null <"/proc/$number/cmdline" | sed -n "s|^$base/releases/\([^/]*\)/.*|\1|p" | sed -n 1p
}

sums() { for file in $credentials; do sha256sum -- "$file" 2>/dev/null || echo "absent $file"; done; }

same() {
    if [ -f "$2" ]; then cmp -s "$1" "$2"; else [ ! -e "$1" ]; fi
}

differing() {
    for file in $files; do
        same "$file" "$(kept "$base/confirmed" "$file")" || printf ' %s' "$file"
    done
}

up() {
    case $manager in
    systemd)
        for unit in $units; do
            systemctl is-active -q "$unit" && systemctl is-enabled -q "$unit" 2>/dev/null || return 1
        done
        ;;
    *) [ -n "$(running)" ] ;;
    esac
}

unloaded() { [ "$manager" = systemd ] && systemctl show -p NeedDaemonReload --value $units | grep -q yes; }

reasons() {
    why=''
    [ "$(linked)" = "$id" ] || why="$why release"
    [ "$(named confirmed)" = "$id" ] || why="$why unconfirmed"
    why="$why$(differing)"
    up || why="$why stopped"
    [ "$(running)" = "$id" ] || why="$why process"
    unloaded && why="$why unit"
    why=${why# }
}

# --- what is done -----------------------------------------------------------------------------------------

point() {
    ln -sfn "releases/$1" "$base/.current.$$" && mv -fT "$base/.current.$$" "$base/current" || return 1
    to_disk "$base"
}

bring_up() {
    if [ "$manager" != systemd ]; then
        in_time "$service" restart
        return
    fi
    ! unloaded || systemctl daemon-reload || return 1
    systemctl enable -q $units 2>&1 || return 1
    systemctl reset-failed $units 2>/dev/null
    sockets=''
    for unit in $units; do
        case $unit in
        *.socket)
            systemctl is-active -q "$unit" || sockets=$unit
            case " $moved " in *"/$unit "*) sockets=$unit ;; esac
            ;;
        esac
    done
    # A socket that a service holds cannot be restarted. Where none has changed they stay, and datagrams wait in them.
    if [ -n "$sockets" ]; then
        systemctl stop $units 2>&1
        systemctl start "$sockets" 2>&1 || return 1
    fi
    in_time systemctl restart "$service"
}

# Without the lock: what an init script starts would hold it for as long as it runs.
in_time() {
    # SIGKILL: of that all timeouts tell alike.
    timeout -s KILL "$patience" "$@" 2>&1 9>&-
    status=$?
    [ "$status" != 137 ] || echo "it was not ready within $patience s; remedy: if it only needs longer, dtls_endpoint_health_timeout"
    return "$status"
}

as_user() {
    case $manager in
    systemd) setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@" ;;
    *) su -s /bin/sh -c 'exec "$0" "$@"' -- "$user" "$@" ;;
    esac
}

# A handshake with each listener, by the release that served last: to it the new one must be a server as good as the old one.
probe() {
    [ -n "$probes" ] || { up && [ "$(running)" = "$1" ]; return; }
    client="$base/releases/$(named confirmed)/bin/dtls-endpoint"
    [ -x "$client" ] || client="$base/releases/$1/bin/dtls-endpoint"
    end=$(($(now) + patience))
    for place in $probes; do
        until said=$(cd / && as_user "$client" connect "$place" --identity "$identity" --psk-file "$psk" --timeout 5 </dev/null 2>&1); do
            said=$(printf '%s' "$said" | line 2)
            [ "$(now)" -lt "$end" ] || return 1
            sleep 1
        done
    done
    said='the process ended after it had answered'
    up && [ "$(running)" = "$1" ]
}

# Copies of what serves now, whole or not at all: with the name of the release it is whole.
confirm() {
    rm -rf "$base/.confirmed.$$"
    mkdir -m 700 "$base/.confirmed.$$" || return 1
    sums >"$base/.confirmed.$$/sums"
    for file in $files; do
        [ ! -f "$file" ] || cp -p -- "$file" "$(kept "$base/.confirmed.$$" "$file")" || return 1
    done
    printf '%s\n' "$1" >"$base/.confirmed.$$/release" || return 1
    before=$(named confirmed)
    if [ -n "$before" ] && [ "$before" != "$1" ]; then
        rm -rf "$base/previous"
        mv -T "$base/confirmed" "$base/previous" || return 1
    else
        rm -rf "$base/confirmed"
    fi
    mv -T "$base/.confirmed.$$" "$base/confirmed" || return 1
    to_disk "$base"
}

# What a power cut has left: a new set takes the place of the old one only when it is whole.
recover() {
    for set in "$base"/.confirmed.*; do
        [ ! -s "$set/release" ] || [ -d "$base/confirmed" ] || mv -T "$set" "$base/confirmed"
    done
    rm -rf "$base"/.confirmed.* "$base"/.current.*
}

# The files as they are kept in a set; which of them that changed is in $moved.
restore() {
    moved=''
    for file in $files; do
        copy=$(kept "$base/$1" "$file")
        ! same "$file" "$copy" || continue
        moved="$moved $file"
        if [ -f "$copy" ]; then
            # touch: systemd reads a unit again only if it is newer than the one it has.
            cp -p -- "$copy" "$file.dtls.$$" && touch -- "$file.dtls.$$" && mv -f -- "$file.dtls.$$" "$file" || return 1
        else
            rm -f -- "$file"
        fi
    done
}

lines_of_log() {
    case $manager in
    systemd) journalctl -q --no-pager -o cat -u "$service" -n 12 --since "@$since" 2>/dev/null ;;
    *) { logread 2>/dev/null || cat /var/log/messages 2>/dev/null; } | grep dtls-endpoint ;;
    esac | cut -c1-400 | line 12
}

# After this either what was confirmed serves again, or that it does not is said.
undo() {
    say log "$(lines_of_log)"
    old=$(named confirmed)
    if [ -z "$old" ]; then
        case $manager in
        systemd)
            systemctl stop $units 2>/dev/null
            systemctl disable -q $units 2>/dev/null
            ;;
        *) "$service" stop >/dev/null 2>&1 ;;
        esac
        say stopped yes
        return
    fi
    # It has served before, so it gets the time that it needs.
    [ "$patience" -ge 60 ] || patience=60
    restore confirmed && point "$old" && bring_up >/dev/null
    say back "$old"
    why_new=$said
    if probe "$old"; then say serves yes; else say still "$said"; fi
    said=$why_new
}

# The newest so many, and those that may be needed, whatever their age.
prune() {
    count=0 removed=''
    for folder in $(ls -1td "$base"/releases/*/ 2>/dev/null); do
        name=$(basename "$folder")
        case " $id $(named previous) $(named confirmed) " in
        *" $name "*)
            count=$((count + 1))
            continue
            ;;
        esac
        [ "$count" -ge "$keep" ] || { count=$((count + 1)); continue; }
        rm -rf "$folder" && removed="$removed $name"
    done
    say removed "$removed"
}

# All that is there of what the role brings; "purge" is what only somebody who says so loses: keys, and associations.
remove() {
    there='' known=''
    for thing in $files $base $purge; do [ ! -e "$thing" ] || there="$there $thing"; done
    say changes "$there"
    [ "$check" = no ] && [ -n "$there" ] || return 0
    case $manager in
    systemd)
        for unit in $units; do
            systemctl cat "$unit" >/dev/null 2>&1 || continue
            systemctl disable -q "$unit" 2>/dev/null
            known="$known $unit"
        done
        # Together, or the socket would start the service again.
        [ -z "$known" ] || systemctl stop $known || fail "$known cannot be stopped"
        ;;
    *) [ ! -x "$service" ] || "$service" stop >/dev/null 2>&1 ;;
    esac
    rm -rf -- $there || fail "not all of $there can be removed"
    [ "$manager" != systemd ] || { systemctl daemon-reload; systemctl reset-failed $known 2>/dev/null; }
}

reload() {
    said=$("$base/current/bin/dtls-endpoint" reload --config "$config" --wait --timeout 120 2>&1) ||
        fail "its credentials were not taken, and it goes on with those it had: $(printf '%s' "$said" | line 8)"
    say reloaded yes
    sums >"$base/confirmed/sums"
}

switch() {
    since=$(now)
    say changes "$why"
    moved=$(differing)
    [ "$what" != previous ] || restore previous || fail "the files of $id cannot be put back"
    point "$id" || fail "$base/current cannot be replaced"
    if said=$(bring_up) && probe "$id"; then
        confirm "$id" || fail "$id serves, but $base/confirmed cannot be written; remedy: make room, and run it again"
        say switched yes
        return
    fi
    said=$(printf '%s' "$said" | line 4)
    undo
    say refused "$said"
    leave
}

main() {
    what=$1 check=$2 base=$3 id=$4 manager=$5 service=$6 units=$7 pidfile=$8 files=$9
    shift 9
    credentials=$1 probes=$2 identity=$3 psk=$4 user=$5 config=$6 patience=$7 keep=$8 purge=$9
    # Nobody may be listening any more; the work is finished all the same.
    trap '' HUP INT PIPE
    # Not ignored: an init script's service would inherit that, and could not be stopped until it has a handler of its own.
    trap : TERM
    umask 022
    cat >/dev/null
    if [ "$what" = absent ]; then
        remove
        leave
    fi
    if [ "$what" = verified ]; then
        id=$(named confirmed)
        say release "$id"
        [ -n "$id" ] || { say absent yes; leave; }
        if probe "$id"; then say serves yes; else say still "$said"; fi
        leave
    fi
    if [ "$what" = previous ]; then
        id=$(named previous)
        [ -n "$id" ] && [ -d "$base/releases/$id" ] || fail "there is no release before this one; remedy: deploy the one you want"
    fi
    if [ "$check" = no ]; then
        [ -x "$base/releases/$id/bin/dtls-endpoint" ] || fail "the release $id is not there; remedy: run the tag install, too"
        lock "$base/lock"
        recover
    fi
    say release "$id"
    say before "$(named confirmed)"
    reasons
    if [ "$check" = yes ]; then
        say changes "$why"
        leave
    fi
    if [ -n "$why" ]; then
        switch
    elif [ "$(sums)" != "$(cat "$base/confirmed/sums")" ]; then
        reload
    fi
    prune
    leave
}

main "$@"
