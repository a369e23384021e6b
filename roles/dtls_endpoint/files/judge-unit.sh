# Whether systemd understands a unit, and how exposed the service would be: $1 the file, $2 the name it is to have,
# $3 the most exposure, times ten, $4 the program that "current" will lead to.
version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${version:-0}" -lt 252 ]; then
    echo "systemd ${version:-is not there, and} is older than 252; remedy: a newer Debian"
    exit 1
fi
command -v systemd-analyze >/dev/null || exit 0
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
sed "s|/opt/dtls-endpoint/current/bin/dtls-endpoint|$4|" "$1" >"$folder/$2" || exit 1
# A socket cannot be judged without its service, which is written after it.
[ "$2" = dtls-endpoint.service ] || exit 0
if ! systemd-analyze --no-pager security --offline=true --threshold="$3" "$folder/$2" >"$folder/said" 2>&1; then
    tail -n 1 "$folder/said"
    echo "that is more than dtls_endpoint_exposure_max; remedy: addresses in place of names in dtls_endpoint_config, dtls_endpoint_network_allow, or another maximum"
    exit 1
fi
cp /etc/systemd/system/dtls-endpoint.socket "$folder/" || exit 1
systemd-analyze --no-pager verify "$folder/dtls-endpoint.socket" "$folder/$2" 2>&1 | grep dtls-endpoint && exit 1
exit 0
