# Runs the endpoint's program; action_plugins/dtls_ctl.py sends it. POSIX sh; busybox will do.
# Standard input goes to the program.

say() { printf 'dtls: %s\n' "$*"; }

main() {
    if ! command -v "$1" >/dev/null 2>&1; then
        cat >/dev/null
        say missing yes
        say done
        exit 0
    fi
    say begin
    { out=$("$@" 2>&4); status=$?; } 4>&1
    cat >/dev/null
    say status "$status"
    say shown "$(($(printf '%s' "$out" | wc -c)))"
    printf '%s\n' "$out"
    say done
}

main "$@"
