# Puts one file, directory or link in place; action_plugins/dtls_file.py sends it. POSIX sh; busybox will do.
# Standard input: a key for digests (a line, may be empty), the digest wanted (a line), then the content.

digest() {
    # echo, not printf: a builtin everywhere, so that the key stands in no process list.
    { if [ -n "$key" ]; then echo "$key"; fi; cat -- "$1"; } | sha256sum | cut -d' ' -f1
}

look() {
    found=absent size=0 mode=- uid=- gid=- have=-
    if [ -h "$dest" ]; then
        found=link
    elif [ -d "$dest" ]; then
        found=directory
    elif [ -f "$dest" ]; then
        found=file
    elif [ -e "$dest" ]; then
        found=special
    fi
    if [ "$found" != absent ]; then
        listed=$(ls -ldn -- "$dest") || fail "cannot be looked at"
        mode=$(echo "$listed" | cut -c1-10)
        uid=$(echo "$listed" | awk '{ print $3; exit }')
        gid=$(echo "$listed" | awk '{ print $4; exit }')
    fi
    if [ "$found" = file ]; then
        [ -r "$dest" ] || fail "cannot be read; remedy: become"
        size=$(($(wc -c <"$dest")))
        have=$(digest "$dest")
    elif [ "$found" = link ]; then
        say target "$(readlink -- "$dest")"
    fi
    say found "$found"
    say size "$size"
    say mode "$mode"
    say uid "$uid"
    say gid "$gid"
    say digest "$have"
}

# The numbers of the user and the group that are asked for; none = as they come.
resolve() {
    want_uid='' want_gid=''
    case $owner in
    '') ;;
    *[!0-9]*) want_uid=$(id -u "$owner" 2>/dev/null) || want_uid=unknown ;;
    *) want_uid=$owner ;;
    esac
    case $group in
    '') ;;
    *[!0-9]*)
        want_gid=$( (getent group "$group" || grep "^$group:" /etc/group) 2>/dev/null | head -n 1 | cut -d: -f3)
        [ -n "$want_gid" ] || want_gid=unknown
        ;;
    *) want_gid=$group ;;
    esac
    say want_uid "$want_uid"
    say want_gid "$want_gid"
}

differ() {
    changes=''
    case $state in
    absent) [ "$found" = absent ] || changes=state ;;
    directory) [ "$found" = directory ] || changes=state ;;
    link) [ "$found" = link ] && [ "$(readlink -- "$dest")" = "$target" ] || changes=content ;;
    present) [ "$have" = "$want" ] || changes=content ;;
    esac
    if [ "$state" = present ] || [ "$state" = directory ]; then
        # The first character is the kind of file.
        [ "${mode#?}" = "${want_mode#?}" ] || changes="$changes mode"
        [ -z "$want_uid" ] || [ "$uid" = "$want_uid" ] || changes="$changes owner"
        [ -z "$want_gid" ] || [ "$gid" = "$want_gid" ] || changes="$changes group"
    fi
    say changes "$changes"
}

refuse() {
    case $state:$found in
    present:absent | present:file | directory:absent | directory:directory | link:absent | link:link) ;;
    absent:absent | absent:file | absent:link) ;;
    absent:directory) fail "is a directory, and none is removed with what is in it; remedy: look into it" ;;
    *) fail "is there as a $found, and is not replaced; remedy: remove it, or name another dest" ;;
    esac
}

# Temporary files of those who were killed; one whose writer lives is left alone.
sweep() {
    for old in "$dir/.$base.dtls."*; do
        [ -f "$old" ] || [ -h "$old" ] || continue
        writer=${old##*.}
        if [ "$writer" != "$$" ] && kill -0 "$writer" 2>/dev/null &&
            { [ ! -d /proc/self ] || grep -q sansdtls "/proc/$writer/cmdline" 2>/dev/null; }; then
            continue
        fi
        rm -f -- "$old" && say swept "$old"
    done
}

own() {
    [ -z "$want_uid" ] || chown -h -- "$want_uid" "$1" 2>/dev/null || fail "cannot be given to $owner; remedy: become"
    [ -z "$want_gid" ] || chgrp -h -- "$want_gid" "$1" 2>/dev/null || fail "cannot be given to group $group; remedy: become"
    chmod -- "$octal" "$1" || fail "mode $octal cannot be set"
}

known() {
    [ "$want_uid" != unknown ] || fail "there is no user $owner; remedy: create it before"
    [ "$want_gid" != unknown ] || fail "there is no group $group; remedy: create it before"
}

begin() {
    temporary="$dir/.$base.dtls.$$"
    trap 'rm -f -- "$temporary"' EXIT
    trap 'exit 1' HUP INT TERM PIPE
    umask 077
}

put() {
    [ -d "$dir" ] || fail "the directory $dir is not there; remedy: a task with state=directory before"
    begin
    # noclobber: nobody else has put a file or link there.
    (set -C && cat >"$temporary") 2>/dev/null || fail "$dir cannot be written; remedy: become, or make room"
    [ "$(digest "$temporary")" = "$want" ] || fail "what arrived is not what was sent; remedy: run it again"
    own "$temporary"
    if [ -n "$validate" ]; then
        before=${validate%%"%s"*} after=${validate#*"%s"}
        # For eval: the name is quoted, whatever is in it.
        quoted=$(printf '%s' "$temporary" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/")
        if [ "$secret" = yes ]; then
            eval "$before$quoted$after" </dev/null >/dev/null 2>&1 ||
                fail "validate: the command ended with status $?, and what it said may be secret; remedy: run it there by hand"
        else
            said=$(eval "$before$quoted$after" </dev/null 2>&1) ||
                fail "validate: the command ended with status $?: $(echo "$said" | tail -n 20 | tr '\n' '|')"
        fi
    fi
    if [ -n "$previous" ] && [ "$found" = file ] && [ "$have" != "$want" ]; then
        keep
    fi
    to_disk "$temporary"
    mv -f -- "$temporary" "$dest" || fail "cannot be renamed"
    to_disk "$dir"
}

# The old content, whole or not at all, before the new one comes.
keep() {
    kept="$previous.dtls.$$"
    trap 'rm -f -- "$temporary" "$kept"' EXIT
    rm -f -- "$kept"
    (set -C && cat -- "$dest" >"$kept") 2>/dev/null || fail "previous: $previous cannot be written"
    own "$kept"
    to_disk "$kept"
    mv -f -- "$kept" "$previous" || fail "previous: $previous cannot be renamed"
    say kept "$previous"
}

place_link() {
    [ -d "$dir" ] || fail "the directory $dir is not there; remedy: a task with state=directory before"
    begin
    ln -s -- "$target" "$temporary" || fail "cannot be made"
    # -T: a link to a directory is replaced, not followed.
    mv -fT -- "$temporary" "$dest" || fail "cannot be renamed"
    to_disk "$dir"
}

main() {
    dest=$1 dir=$2 base=$3 state=$4 want_mode=$5 octal=$6 owner=$7 group=$8 previous=$9
    shift 9
    validate=$1 target=$2 secret=$3 check=$4 show=$5
    IFS= read -r key
    IFS= read -r want
    command -v sha256sum >/dev/null || fail "there is no sha256sum; remedy: install coreutils, or busybox with it"
    look
    resolve
    refuse
    differ
    if [ "$show" -gt 0 ] && [ "$found" = file ] && [ "$size" -le "$show" ]; then
        say shown "$size"
        head -c "$size" -- "$dest"
        echo
    fi
    [ "$check" = no ] || leave
    [ ! -d "$dir" ] || sweep
    [ -n "$changes" ] || leave
    known
    case $state in
    absent)
        rm -f -- "$dest" || fail "cannot be removed"
        to_disk "$dir"
        ;;
    directory)
        [ "$found" = directory ] || mkdir -p -m "$octal" -- "$dest" || fail "cannot be made"
        own "$dest"
        ;;
    link) place_link ;;
    present)
        case $changes in
        *content*) put ;;
        *) own "$dest" ;;
        esac
        ;;
    esac
    leave
}

main "$@"
