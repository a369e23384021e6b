# A release of the endpoint's program beside the others; action_plugins/dtls_release.py sends it. POSIX sh.
# Standard input: an archive of wheels, where one is to be installed.

last() { tail -n 12 -- "$1" | tr '\n' '|'; }

# It is there, whole, and its interpreter has not gone with an upgrade of the host.
whole() { [ -f "$release/.complete" ] && "$release/bin/dtls-endpoint" --version </dev/null >/dev/null 2>&1; }

unpack() {
    mkdir -p "$release/wheels" || fail "$release cannot be made"
    tar -xf - -C "$release/wheels" || fail "what arrived is no whole archive, or $release is full; remedy: run it again"
    # The name of a release is the digest of this very list.
    listed=$(cd "$release/wheels" && sha256sum -- *.whl | sha256sum | cut -c1-"${#id}")
    [ "$listed" = "$id" ] || fail "what arrived is not what was sent; remedy: run it again"
}

install() {
    log="$release/install.log"
    pip=$(ls "$release"/wheels/pip-*.whl 2>/dev/null | tail -n 1)
    if [ -n "$pip" ]; then
        # Without Debian's python3-venv, and without a pip that nobody needs later.
        "$python" -m venv --without-pip "$release" >"$log" 2>&1 || fail "no virtual environment: $(last "$log")"
        set -- "$pip/pip"
    else
        "$python" -m venv "$release" >"$log" 2>&1 ||
            fail "no virtual environment: $(last "$log"); remedy: a wheel of pip in the wheelhouse, or apt-get install python3-venv"
        set -- -m pip
    fi
    # No settings of the host's: they could name an index, or another place.
    env -i PATH="$PATH" HOME=/nonexistent PIP_CONFIG_FILE=/dev/null "$release/bin/python" "$@" install \
        --no-index --find-links "$release/wheels" --only-binary :all: --no-cache-dir --disable-pip-version-check \
        --no-warn-script-location --root-user-action ignore --progress-bar off --quiet 'sansdtls[endpoint]' >>"$log" 2>&1 ||
        fail "pip: $(last "$log"); remedy: a wheelhouse with all dependencies, for $("$python" --version) on $(uname -m)"
    "$release/bin/dtls-endpoint" --version </dev/null >>"$log" 2>&1 || fail "what was installed does not start: $(last "$log")"
    rm -rf "$release/wheels"
    sync -f "$release" 2>/dev/null || sync
    : >"$release/.complete"
}

main() {
    base=$1 id=$2 what=$3 python=$4
    release="$base/releases/$id"
    umask 022
    # The order of names in a list is part of its digest.
    LC_ALL=C
    export LC_ALL
    if whole; then
        say there yes
        leave
    fi
    [ "$what" = install ] || leave
    mkdir -p "$base/releases" || fail "$base/releases cannot be made; remedy: become"
    lock "$base/lock"
    if whole; then
        say there yes
        leave
    fi
    # What is left of a run that ended half-way.
    rm -rf "$release"
    unpack
    install
    say installed yes
    leave
}

main "$@"
