# Runs one command; action_plugins/dtls_run.py sends it. POSIX sh; busybox will do.

main() {
    said=$(sh -c "$1" </dev/null 2>&1)
    say status "$?"
    say shown "$(($(printf '%s' "$said" | wc -c)))"
    printf '%s\n' "$said"
    leave
}

main "$@"
