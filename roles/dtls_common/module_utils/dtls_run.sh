# Runs one command; action_plugins/dtls_run.py sends it. POSIX sh; busybox will do.

# The command in its own time: what it leaves in the background may keep its output open for ever, and is not waited for.
run() {
    (
        sh -c "$2" </dev/null 2>&1 &
        command=$!
        watch "$command" "$1" 2>/dev/null &
        wait "$command"
        # What it said may end without a newline.
        printf '\n%s\n' "$end $?"
    ) | listen
}

watch() {
    passed=0
    while [ "$passed" -lt "$2" ]; do
        sleep 1
        kill -0 "$1" || return
        passed=$((passed + 1))
    done
    printf '\n%s\n' "$end late"
    kill "$1"
    sleep 1
    kill -9 "$1"
}

listen() {
    while IFS= read -r line; do
        case $line in
        "$end late") say late yes ;;
        "$end "*)
            say status "${line##* }"
            return
            ;;
        *) printf '> %s\n' "$line" ;;
        esac
    done
}

main() {
    end="dtls-end-$$"
    run "$@"
    leave
}

main "$@"
