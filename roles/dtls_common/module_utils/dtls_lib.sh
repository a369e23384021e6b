# What the scripts have in common; it is sent before each. POSIX sh; busybox will do.

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

# A line for the controller: a word, and its value.
say() { printf 'dtls: %s\n' "$*"; }
has() { command -v "$1" >/dev/null 2>&1; }
# ssh takes a reader that has gone for a lost host, so every way out reads standard input to its end.
drain() { cat >/dev/null 2>&1; }
fail() { drain; say failed "$*"; exit 0; }
leave() { drain; say done; exit 0; }
# One run at a time, until this process ends; of one whose controller was killed the host may still be at work. Not every flock has -w.
lock() {
    has flock || fail "there is no flock; remedy: install util-linux, or busybox with it"
    exec 9>"$1"
    tries=300
    until flock -n 9; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "another run holds $1; remedy: wait for it to end"
        sleep 1
    done
}
to_disk() { sync -- "$1" 2>/dev/null || sync; }

# sudo keeps no SSH_CONNECTION; the shell of the login above it has one.
connection() {
    if [ -n "$SSH_CONNECTION" ]; then
        echo "$SSH_CONNECTION"
        return
    fi
    process=$$
    while [ "${process:-0}" -gt 1 ] && [ -r "/proc/$process/environ" ]; do
        told=$(tr '\0' '\n' <"/proc/$process/environ" 2>/dev/null | sed -n 's/^SSH_CONNECTION=//p')
        if [ -n "$told" ]; then
            echo "$told"
            return
        fi
        process=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$process/status" 2>/dev/null)
    done
}
