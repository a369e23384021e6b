# Changes rules so that nobody is locked out; action_plugins/dtls_ruleset.py sends it. POSIX sh; busybox will do.
#
# An apply has a nonce, and a directory of that name: what is to come, what was before, how to undo it. A dead-man, armed
# before anything is changed, undoes it after a time. Who renames the directory decides, and a rename happens once:
#
#     NONCE ── confirm, over a new connection ──> NONCE.confirmed     the rules stay, and only now are written for the next boot
#       ├───── the dead-man ───────────────────> NONCE.rolling, .rolled   what was before is back
#       └───── the next apply ─────────────────> NONCE.taken          it undoes to what was before this one
#
# So an old dead-man can undo nothing of a later apply, and no apply is confirmed that was undone.

# --- where things are -------------------------------------------------------------------------------

places() {
    for parent in /run /var/run; do
        if [ -d "$parent" ] && [ -w "$parent" ]; then
            base=$parent/dtls-guard/$name
            dir=$base/$nonce
            return
        fi
    done
    fail "neither /run nor /var/run can be written; remedy: become"
}

# Each apply that waits for its confirmation: its directory. There are two where one was killed before it had taken over.
pending() {
    for one in "$base"/*; do
        case ${one##*/} in
        *[!0-9a-f]* | confirmed) ;;
        *) [ ! -d "$one" ] || [ "$one" = "$dir" ] || echo "$one" ;;
        esac
    done
}

# --- nft --------------------------------------------------------------------------------------------

nft_live() {
    nft list table inet "$name" 2>/dev/null | sed -n 's/^[[:space:]]*comment "sansdtls \([0-9a-f]*\)".*/\1/p' | head -n 1
}

nft_before() {
    printf 'table inet %s\ndelete table inet %s\n' "$name" "$name" >"$dir/before.nft"
    nft list table inet "$name" >/dev/null 2>&1 || return 0
    if [ -f "$base/confirmed" ] && grep -q "comment \"sansdtls $(nft_live)\"" "$base/confirmed"; then
        # As it was sent: a listing has what sets have learned since then as well.
        cat "$base/confirmed" >"$dir/before.nft"
    else
        nft -s list table inet "$name" >>"$dir/before.nft"
    fi
    nft -c -f "$dir/before.nft"
}

# --- iptables ---------------------------------------------------------------------------------------

# Both kinds may be called "iptables".
find_iptables() {
    for program in "iptables-$1" iptables; do
        mode=$($program --version 2>/dev/null </dev/null)
        case $1:$mode in
        legacy:*nf_tables* | legacy: | nft:) ;;
        legacy:* | nft:*nf_tables*)
            ipt4=$program
            ipt6=ip6${program#ip}
            return 0
            ;;
        esac
    done
    return 1
}

families() {
    echo 4
    # Without it no packet of IPv6 arrives.
    [ ! -e /proc/net/if_inet6 ] || echo 6
}

ipt() { if [ "$1" = 4 ]; then echo "$ipt4"; else echo "$ipt6"; fi; }

ipt_restore() {
    restore=$(ipt "$1")-restore
    shift
    # -w, wait for another program to be done, is not known everywhere.
    if $restore -w 5 --test --noflush </dev/null >/dev/null 2>&1; then
        $restore -w 5 --noflush "$@"
    else
        $restore --noflush "$@"
    fi
}

ipt_live() {
    live=none
    for family in $(families); do
        one=$($(ipt "$family") -S "$name-ID" 2>/dev/null | sed -n 's/.*sansdtls-\([0-9a-f]*\).*/\1/p' | head -n 1)
        case $live in
        none | "$one") live=$one ;;
        *) live=mixed ;;
        esac
    done
    echo "$live"
}

# Our chains as they are, in the form of a candidate: a file for iptables-restore on a host that has none of them.
ipt_state() {
    echo '*filter'
    "$(ipt "$1")-save" -t filter 2>/dev/null | sed -n \
        -e "s/^:\($name-[^ ]*\) .*/:\1 - [0:0]/p" \
        -e "/^-A $name-/p" \
        -e "s/^-A INPUT -j \($name-[^ ]*\)\$/-I INPUT -j \1/p" \
        -e "s/^-A OUTPUT -j \($name-[^ ]*\)\$/-I OUTPUT -j \1/p" \
        -e "s/^-A FORWARD -j \($name-[^ ]*\)\$/-I FORWARD -j \1/p"
    echo COMMIT
}

chains() { sed -n 's/^:\([^ ]*\) .*/\1/p' "$1"; }

# One transaction from state $1 to state $2: nothing but our chains, and the jumps to them, is touched.
ipt_switch() {
    echo '*filter'
    { chains "$1"; chains "$2"; } | sort -u | while read -r chain; do echo ":$chain - [0:0]"; done
    grep -e "^-A $name-" -e "^-[46] -A $name-" "$2"
    grep '^-I ' "$1" | while read -r jump; do grep -qxF -e "$jump" "$2" || echo "-D ${jump#-I }"; done
    grep '^-I ' "$2" | while read -r jump; do grep -qxF -e "$jump" "$1" || echo "$jump"; done
    chains "$1" | while read -r chain; do chains "$2" | grep -qxF -e "$chain" || echo "-X $chain"; done
    echo COMMIT
}

# From what is there now, whatever it is.
ipt_forward() {
    ipt_state "$1" >"$dir/now"
    ipt_switch "$dir/now" "$2" >"$dir/forward"
}

# --- either -----------------------------------------------------------------------------------------

pick() {
    nft_works=no
    if has nft && nft list tables >/dev/null 2>&1; then nft_works=yes; fi
    if [ "$backend" = auto ]; then
        if [ $nft_works = yes ] && has fw4 && [ -d /usr/share/nftables.d ]; then
            backend=fw4
        elif [ $nft_works = yes ]; then
            backend=nft
        elif find_iptables nft && $ipt4 -S >/dev/null 2>&1; then
            backend=iptables-nft
        elif find_iptables legacy; then
            backend=iptables-legacy
        else
            backend=none
        fi
    fi
    problem=''
    case $backend in
    fw4 | nft) [ $nft_works = yes ] || problem="nft does not work here; remedy: install nftables, become, or another backend" ;;
    none) problem="there is neither nft nor iptables; remedy: install nftables" ;;
    *)
        if ! find_iptables "${backend#iptables-}"; then
            problem="there is no $backend; remedy: install iptables, or another backend"
        elif [ -e /proc/net/if_inet6 ] && ! has "$ipt6-restore"; then
            problem="there is IPv6 here and no $ipt6-restore, so that it would stay open; remedy: install ip6tables"
        fi
        ;;
    esac
}

use() {
    backend=$1
    [ "$backend" = nft ] || find_iptables "${backend#iptables-}"
}

# A line for each other backend that holds rules of this name.
others() {
    for kind in nft iptables-nft iptables-legacy; do
        case $backend:$kind in
        "$kind:$kind" | fw4:nft) ;;
        *) ! (use "$kind" && holds) >/dev/null 2>&1 || echo "$kind" ;;
        esac
    done
}

holds() {
    case $backend in
    nft) [ -n "$(nft_live)" ] ;;
    *)
        # To ask iptables-legacy would make the table that is asked for.
        [ "$backend" = iptables-nft ] || grep -qsx filter /proc/net/ip_tables_names /proc/net/ip6_tables_names || return
        for family in $(families); do
            ! $(ipt "$family") -S | grep -q -e "^-N $name-ID\$" -e "^-N $name-learn\$" || return 0
        done
        return 1
        ;;
    esac
}

live() { case $backend in fw4 | nft) nft_live ;; *) ipt_live ;; esac; }

# Everything of this name that is in force, whatever has loaded it. Of an apply before that waits it is what was before that.
before() {
    for one in $old; do
        for file in "$one"/before.*; do
            [ ! -f "$file" ] || cat "$file" >"$dir/${file##*/}" || return
        done
    done
    save || return
    for kind in $(others); do (use "$kind" && save) || return; done
}

save() {
    case $backend in
    fw4 | nft) [ -f "$dir/before.nft" ] || nft_before ;;
    *)
        for family in $(families); do
            [ -f "$dir/before.$backend$family" ] || ipt_state "$family" >"$dir/before.$backend$family" || return
        done
        ;;
    esac
}

# Whether the rules can be loaded at all.
rehearse() {
    case $backend in
    fw4 | nft) nft -c -f "$dir/candidate" 2>&1 ;;
    *)
        for family in $(families); do
            ipt_forward "$family" "$dir/candidate"
            ipt_restore "$family" --test <"$dir/forward" 2>&1 || return
        done
        ;;
    esac
}

# With what else there is of this name taken away: a new connection is to prove that these rules alone let it in.
load() {
    case $backend in
    fw4 | nft) nft -f "$dir/candidate" 2>&1 || return ;;
    *)
        for family in $(families); do
            ipt_forward "$family" "$dir/candidate"
            ipt_restore "$family" <"$dir/forward" 2>&1 || return
        done
        ;;
    esac
    for kind in $(others); do
        (use "$kind" && take_away) || { echo "those by $kind cannot be taken away" && return 1; }
    done
}

take_away() {
    case $backend in
    fw4 | nft) nft delete table inet "$name" 2>&1 ;;
    *)
        # No apply has a name like that.
        dir=$base/away.$nonce
        mkdir -p "$dir"
        printf '*filter\nCOMMIT\n' >"$dir/nothing"
        gone=0
        for family in $(families); do
            ipt_forward "$family" "$dir/nothing"
            ipt_restore "$family" <"$dir/forward" 2>&1 || gone=1
        done
        rm -rf "$dir"
        return $gone
        ;;
    esac
}

# What was before; where that cannot be loaded any more, no rules of ours.
undo() {
    mv "$dir" "$dir.rolling" 2>/dev/null || return 0
    dir=$dir.rolling
    (
        [ ! -f "$dir/before.nft" ] || nft -f "$dir/before.nft" || nft delete table inet "$name"
        for backend in iptables-nft iptables-legacy; do
            for family in $(families); do
                [ -f "$dir/before.$backend$family" ] && use "$backend" || continue
                ipt_forward "$family" "$dir/before.$backend$family"
                ipt_restore "$family" <"$dir/forward" && continue
                chains "$dir/now" | while read -r chain; do $(ipt "$family") -F "$chain"; done
            done
        done
    ) >"$dir/log" 2>&1
    dir=${dir%.rolling}
    mv "$dir.rolling" "$dir.rolled"
}

# --- what conntrack has to know ---------------------------------------------------------------------

# Before rules come that let in only what conntrack knows, it gets to know what is under way. Else the answer to what was sent a
# moment before is dropped, and so is everything on a connection of which only the other end speaks.
has_to_learn() {
    [ "$learn" != 0 ] && by_conntrack <"$dir/candidate" && ! cat "$dir"/before.* | by_conntrack
}

# Whether rules say anything of conntrack; what they say of themselves does not count.
by_conntrack() {
    sed -e 's/"[^"]*"//g' -e 's/#.*//' | grep -q -w -e ct -e ctstate -e '-m state'
}

# A rule will do that no packet meets. The rules that follow take the chain away in the same transaction, and so does the dead-man.
get_to_know() {
    [ "$learn" != 0 ] || return 0
    case $backend in
    fw4 | nft)
        known=''
        [ -n "$(nft_live)" ] || known='comment "sansdtls 0";'
        printf 'table inet %s { %s chain sansdtls_learn { ct state established; }; }\n' "$name" "$known" | nft -f - 2>&1 || return
        ;;
    *)
        for family in $(families); do
            printf '*filter\n:%s - [0:0]\n-A %s -m conntrack --ctstate ESTABLISHED\nCOMMIT\n' "$name-learn" "$name-learn" |
                ipt_restore "$family" 2>&1 || return
        done
        ;;
    esac
    sleep "$learn"
}

# Where this apply is over before it has loaded anything. Another one that waits takes the chain away itself.
forget() {
    [ -z "$(pending)" ] || return 0
    case $backend in
    fw4 | nft)
        if [ "$(nft_live)" = 0 ]; then nft delete table inet "$name"; else nft delete chain inet "$name" sansdtls_learn; fi
        ;;
    *)
        for family in $(families); do
            $(ipt "$family") -F "$name-learn"
            $(ipt "$family") -X "$name-learn"
        done
        ;;
    esac >/dev/null 2>&1
}

# --- the dead-man -----------------------------------------------------------------------------------

arm() {
    # This very script, as it was sent.
    printf '%s\n' "$dtls_script" >"$dir/script"
    if [ -d /run/systemd/system ] && has systemd-run &&
        systemd-run --quiet --collect --on-active="$after" --timer-property=AccuracySec=100ms \
            --unit="dtls-guard-$nonce" --setenv=DTLS_WHAT=undo --setenv="DTLS_BACKEND=$backend" \
            /bin/sh "$dir/script" </dev/null >/dev/null 2>&1; then
        # logind may end what a login leaves behind; a timer is systemd's own.
        return
    fi
    setsid=''
    ! has setsid || setsid=setsid
    (
        trap '' HUP
        export DTLS_WHAT=undo DTLS_BACKEND="$backend"
        exec $setsid sh -c 'sleep "$1"; exec sh "$2"' "$nonce" "$after" "$dir/script"
    ) </dev/null >/dev/null 2>&1 &
    echo $! >"$dir/pid"
    kill -0 "$(cat "$dir/pid")" 2>/dev/null
}

# The dead-man of the apply in directory $1, which has lost already: its directory has another name.
disarm() {
    stopped=${1##*/}
    stopped=${stopped%%.*}
    if [ -f "$1/pid" ]; then
        number=$(cat "$1/pid")
        if grep -q "$stopped" "/proc/$number/cmdline" 2>/dev/null; then
            kill -- "-$number" 2>/dev/null || kill "$number" 2>/dev/null
        fi
    elif has systemctl; then
        systemctl stop "dtls-guard-$stopped.timer" >/dev/null 2>&1
    fi
}

# Ours is armed; that of an apply before may act no more, or has acted.
take_over() {
    for one in $old; do
        if mv "$one" "$one.taken" 2>/dev/null; then
            disarm "$one.taken"
            rm -rf "$one.taken"
        else
            until_rolled "$one" || return
        fi
    done
}

# The dead-man of the apply in directory $1 has done its work, if it was at it.
until_rolled() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -d "$1.rolling" ] || return 0
        sleep 1
    done
    return 1
}

# --- what can be asked for --------------------------------------------------------------------------

look() {
    say backend "$backend"
    say problem "$problem"
    say ssh "$(connection)"
    [ -z "$problem" ] || leave
    say live "$(live)"
    case $backend in
    fw4 | nft)
        if [ -z "$(nft_live)" ] && nft list table inet "$name" >/dev/null 2>&1; then say foreign yes; fi
        ;;
    esac
    say pending "$(pending | sed 's/.*\///' | tr '\n' ' ')"
    say others "$(others | tr '\n' ' ')"
    if [ -f "$path" ]; then say written "$(sha256sum <"$path" | cut -d' ' -f1)"; fi
    if [ -f "$base/confirmed" ]; then
        say shown "$(($(wc -c <"$base/confirmed")))"
        cat "$base/confirmed"
        echo
    fi
    leave
}

try() {
    case $backend in
    fw4 | nft) said=$(nft -c -f - 2>&1) || fail "nft refuses the rules: $(oneline "$said")" ;;
    esac
    leave
}

oneline() { echo "$1" | sed -e '/^[[:space:]^~]*$/d' -e 's/^\/[^:]*candidate:/line /' | head -n 6 | tr '\n\t' '| '; }

apply() {
    umask 077
    # Under another name until what was before is in it: another run would take what is half there for all.
    dir=$dir.new
    mkdir -p "$base" && mkdir "$dir" || fail "$dir cannot be made; remedy: become"
    trap 'rm -rf "$dir"' EXIT
    trap 'exit 1' HUP INT TERM PIPE
    cat >"$dir/candidate"
    [ "$(sha256sum <"$dir/candidate" | cut -d' ' -f1)" = "$digest" ] || fail "what arrived is not what was sent"
    old=$(pending) was="$(live) $(others)"
    said=$(before 2>&1) || fail "the rules that are there could not be restored, so they are not touched: $(oneline "$said")"
    said=$(rehearse) || fail "$backend refuses the rules: $(oneline "$said")"
    mv "$dir" "${dir%.new}" && dir=${dir%.new} || fail "$dir cannot be renamed"
    [ "$(pending) $(live) $(others)" = "$old $was" ] || fail "another run changes rules here at this very moment; remedy: one at a time"
    has_to_learn || learn=0
    after=$((after + learn))
    arm || fail "no dead-man can be started"
    # From here on the dead-man tidies up.
    trap - EXIT
    late="this host was too slow, so what was before is in force; remedy: a longer rollback_after"
    if ! take_over; then
        retreat
        fail "an apply before this one does not end: $old; remedy: look at log in $one.rolling"
    fi
    why=''
    said=$(get_to_know) || why="$backend refuses the rules: $(oneline "$said")"
    if [ ! -d "$dir" ]; then
        forget
        ! acted || fail "$late"
        fail "another run has changed rules here meanwhile; remedy: one at a time"
    fi
    [ -n "$why" ] || said=$(load) || why="$backend refuses the rules: $(oneline "$said")"
    [ -n "$why" ] || (: >"$dir/loaded") 2>/dev/null || why=$late
    if [ -n "$why" ]; then
        ! acted || why=$late
        retreat
        fail "$why"
    fi
    say applied yes
    say port "$(connection | cut -d' ' -f2)"
    leave
}

# Whether the dead-man has been quicker.
acted() { [ -d "$dir.rolling" ] || [ -d "$dir.rolled" ]; }

# Undo at once, as the dead-man would; and once more what has come after that had acted.
retreat() {
    until_rolled "$dir"
    [ ! -d "$dir.rolled" ] || mv "$dir.rolled" "$dir"
    undo
    disarm "$dir.rolled"
}

confirm() {
    if [ -d "$dir.new" ]; then
        say state early
        leave
    fi
    if [ ! -d "$dir" ]; then
        until_rolled "$dir"
        if [ -d "$dir.rolled" ] && [ ! -e "$dir.rolled/loaded" ]; then
            say state unloaded
        elif [ -d "$dir.rolled" ]; then
            say state rolled
            say log "$(oneline "$(cat "$dir.rolled/log" 2>/dev/null)")"
        elif [ "$(live)" = "$wanted" ] && [ "$(cat "$base/confirmed.by" 2>/dev/null)" = "$nonce" ]; then
            # The answer was lost on its way.
            finish
        else
            say state lost
        fi
        leave
    fi
    if [ ! -e "$dir/loaded" ]; then
        say state early
        leave
    fi
    told=$(connection | cut -d' ' -f2)
    if [ -n "$port" ] && [ "$told" = "$port" ]; then
        say state same
        leave
    fi
    if [ "$(live)" != "$wanted" ]; then
        retreat
        say state other
        leave
    fi
    if ! mv "$dir" "$dir.confirmed" 2>/dev/null; then
        say state late
        leave
    fi
    disarm "$dir.confirmed"
    mv -f "$dir.confirmed/candidate" "$base/confirmed"
    echo "$nonce" >"$base/confirmed.by"
    rm -rf "$dir.confirmed" "$base"/*.rolled
    finish
    leave
}

finish() {
    say state confirmed
    [ "$persist" = no ] || write <"$base/confirmed"
}

# Standard input to $path, whole or not at all.
write() {
    folder=$(dirname -- "$path")
    umask 077
    { [ -d "$folder" ] || mkdir -p -m 755 -- "$folder"; } && cat >"$path.new" && to_disk "$path.new" || {
        rm -f -- "$path.new"
        fail "the rules are in force, but cannot be written to $path, so not after the next boot"
    }
    kept=''
    if [ "$backend" = fw4 ] && [ -f "$path" ]; then kept=$(cat "$path"; echo .); fi
    mv -f -- "$path.new" "$path" && to_disk "$folder"
    if [ "$backend" = fw4 ] && ! said=$(fw4 check 2>&1 >/dev/null </dev/null); then
        if [ -n "$kept" ]; then printf '%s' "${kept%.}" >"$path"; else rm -f -- "$path"; fi
        fail "the rules are in force, but with $path fw4 check fails, so it is as it was: $(oneline "$said")"
    fi
    say written yes
}

rewrite() {
    write
    leave
}

# What is left when no rules are in force any more: that was an apply, too.
remove() {
    [ -z "$(pending)$(live)$(others)" ] || fail "another run changes rules here at this very moment; remedy: one at a time"
    rm -f -- "$path" "$base/confirmed" "$base/confirmed.by"
    rm -rf "$base"/*.rolled "$base"/*.taken
    rmdir "$base" 2>/dev/null
    leave
}

main() {
    # Set where a dead-man runs this.
    what=${DTLS_WHAT:-$1} name=$2 backend=${DTLS_BACKEND:-$3} nonce=$4 path=$5 wanted=$6 digest=$7 after=$8 persist=$9
    shift 9
    port=$1 learn=$2
    places
    pick
    # A dead-man does what can be done.
    case $what in
    look | undo) ;;
    *) [ -z "$problem" ] || fail "$problem" ;;
    esac
    "$what"
}

main "$@"
