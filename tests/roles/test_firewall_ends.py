"""The filter taken away, not kept, kept by OpenWrt's firewall, and with its limits turned."""

import contextlib
import json
import shutil

import pytest

from tests.lab.recorder import assert_unchanged
from tests.roles.packets import HELLO, lose_rules, ruleset, udp

FLEET = {"endpoints": 1, "devices": 2, "suite": "trixie", "controller": "newest"}
"""The other modules have the oldest of both."""
FW4 = """\
#!/bin/sh
# Stands in for OpenWrt's firewall4: its table, and then what it includes after the ruleset.
render() {
    printf 'table inet fw4\\nflush table inet fw4\\n'
    printf 'table inet fw4 {\\n chain input {\\n type filter hook input priority filter; policy accept;\\n }\\n}\\n'
    for file in /usr/share/nftables.d/ruleset-post/*.nft; do [ ! -f "$file" ] || echo "include \\"$file\\""; done
}
case $1 in
check) render | nft -c -f - ;;
start | reload | restart) render | nft -f - ;;
esac
"""


@pytest.fixture(scope="module")
def apply(fleet):
    """Run the role on some hosts at once, with variables for all of them."""
    play = fleet.folder / "firewall.yml"
    play.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": ["dtls_firewall"]}]))

    def do(*hosts, status=0, environment=None, **variables):
        inventory = fleet.inventory(dtls_firewall_rollback_after=30, **variables)
        told = json.loads(inventory.read_text())
        told["all"]["children"]["dtls_devices"]["hosts"]["device-2"]["dtls_firewall_backend"] = (
            "iptables-legacy"
        )
        inventory.write_text(json.dumps(told))
        limit = ",".join(host.name for host in hosts)
        return fleet.playbook(
            play, "--limit", limit, inventory=inventory, record=True, status=status, **(environment or {})
        )

    return do


def left(host):
    """Files of ours on a host."""
    found = [
        one.relative_to(host.written)
        for name in ("*dtls-firewall*", "*dtls_firewall*")
        for one in host.written.rglob(name)
    ]
    # What an overlay has of a removed file is a character device; /run is gone with a boot.
    return [str(one) for one in found if "run" not in one.parts and not (host.written / one).is_char_device()]


def test_what_is_taken_away_leaves_nothing(fleet, apply):
    hosts = list(fleet.hosts.values())
    apply(*hosts)
    for host in hosts:
        assert ruleset(host)
        assert len(left(host)) >= 3
    apply(*hosts, dtls_firewall_state="absent")
    for host in hosts:
        assert ruleset(host) == ""
        assert left(host) == [], host.name
    assert fleet["endpoint-1"].ssh("systemctl is-active dtls-firewall", check=False).strip() == "inactive"
    assert_unchanged(apply(*hosts, dtls_firewall_state="absent"))


def test_rules_that_are_not_to_last_are_gone_after_a_boot(fleet, apply):
    device = fleet["device-1"]
    apply(device, dtls_firewall_persist=False)
    assert ruleset(device)
    assert left(device) == []
    device.shut_down()
    lose_rules(device)
    device.boot()
    device.wait_until_up()
    assert ruleset(device) == ""


def test_a_stand_in_for_firewall4_includes_the_rules(fleet, apply):
    device = fleet["device-1"]
    program = device.root / "usr/sbin/fw4"
    program.write_text(FW4)
    program.chmod(0o755)
    (device.root / "usr/share/nftables.d").mkdir(parents=True)
    device.ssh("fw4 start")
    try:
        apply(device)
        before = ruleset(device)
        assert (device.root / "usr/share/nftables.d/ruleset-post/dtls_firewall.nft").is_file()
        kept = (device.root / "lib/upgrade/keep.d/dtls-firewall").read_text().split()
        assert kept == [
            "/usr/share/nftables.d/ruleset-post/dtls_firewall.nft",
            "/lib/upgrade/keep.d/dtls-firewall",
        ]
        assert_unchanged(apply(device))
        lose_rules(device)
        for verb in ("start", "reload", "restart"):
            device.ssh(f"fw4 {verb}")
            assert ruleset(device) == before, verb
        apply(device, dtls_firewall_state="absent")
        device.ssh("fw4 reload")
        assert (ruleset(device), left(device)) == ("", [])
    finally:
        program.unlink()
        shutil.rmtree(device.root / "usr/share/nftables.d")


# --- limits that can be turned ----------------------------------------------------------------------


def arriving(host, count, *, source="10.77.9.5", ports=1):
    """Of so many hellos from so many ports, those that arrive."""
    with udp(host.namespace, host.address, 5684) as receiver, contextlib.ExitStack() as undo:
        senders = [undo.enter_context(udp(host.network.controller, source)) for _ in range(ports)]
        for number in range(count):
            senders[number % ports].sendto(HELLO, (host.address, 5684))
        receiver.settimeout(0.3)
        arrived = 0
        with contextlib.suppress(TimeoutError):
            while receiver.recv(2_000):
                arrived += 1
    return arrived


def test_without_a_limit_a_flood_arrives_whole_and_sessions_can_be_limited(fleet, apply):
    hosts = fleet["endpoint-1"], fleet["device-2"]
    apply(
        *hosts,
        dtls_firewall_profile="endpoint",
        dtls_firewall_rate_exempt=["10.77.9.0/24"],
        dtls_firewall_session_limit=7,
        dtls_endpoint_config={"quotas": {"handshakes_per_second": 1, "handshake_burst": 5}},
    )
    assert all(15 <= arriving(host, 300, source="10.77.8.5") <= 60 for host in hosts)
    assert [arriving(host, 300) for host in hosts] == [300, 300]
    assert [arriving(host, 15, source="10.77.8.6", ports=15) for host in hosts] == [7, 7]
    assert [arriving(host, 15, source="10.77.9.6", ports=15) for host in hosts] == [15, 15]
