# What a host is and has, in one go; action_plugins/dtls_facts.py sends it. POSIX sh; busybox will do.

init() {
    if [ -d /run/systemd/system ]; then
        echo systemd
    elif [ -x /sbin/procd ]; then
        echo procd
    elif [ -x /sbin/openrc-run ] || [ -d /run/openrc ]; then
        echo openrc
    else
        case $(readlink -f /sbin/init 2>/dev/null) in
        */busybox) echo busybox ;;
        *) echo unknown ;;
        esac
    fi
}

# The first line of a program's version, down to its number; nothing if it is not there.
version() {
    has "$1" || return 0
    "$@" 2>/dev/null </dev/null | sed -n '1s/^[^0-9]*\([0-9][0-9A-Za-z.]*\).*/\1/p'
}

main() {
    say init "$(init)"
    say nft "$(version nft --version)"
    # "iptables" may be either of the two.
    for kind in legacy nft; do
        for program in iptables-$kind iptables; do
            mode=$($program --version 2>/dev/null </dev/null)
            case $kind:$mode in
            legacy:*nf_tables* | legacy: | nft:) ;;
            legacy:* | nft:*nf_tables*)
                say "iptables_$kind" "$(version $program --version)"
                break
                ;;
            esac
        done
    done
    if has fw4 && [ -d /usr/share/nftables.d ]; then say fw4 yes; fi
    if has uci; then say uci yes; fi
    for program in python3 /usr/bin/python3 /usr/local/bin/python3; do
        if has $program; then
            say python "$(command -v $program)"
            say python_version "$(version $program --version)"
            break
        fi
    done
    say ssh "$(connection)"
    say clock "$(date +%s)"
    say kernel "$(uname -r)"
    say machine "$(uname -m)"
    say hostname "$(uname -n)"
    say uid "$(id -u)"
    # Beside the shell's own; without them the plugins cannot do their work.
    missing=''
    for program in awk cat chmod chown cut dirname grep head id ln ls mkdir mv rm sed sha256sum sort sync tail tr wc; do
        has $program || missing="$missing $program"
    done
    say missing "$missing"
    (
        ID='' VERSION_ID=''
        . /etc/os-release
        say distribution "$ID"
        say distribution_version "$VERSION_ID"
    ) 2>/dev/null
    say done
}

main
