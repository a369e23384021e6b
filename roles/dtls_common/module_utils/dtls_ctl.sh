# Runs the endpoint's program; action_plugins/dtls_ctl.py sends it. POSIX sh; busybox will do.
# Standard input goes to the program.

main() {
    if ! has "$1"; then
        say missing yes
        leave
    fi
    say begin
    { out=$("$@" 2>&4); status=$?; } 4>&1
    drain
    say status "$status"
    say shown "$(($(printf '%s' "$out" | wc -c)))"
    printf '%s\n' "$out"
    say done
}

main "$@"
