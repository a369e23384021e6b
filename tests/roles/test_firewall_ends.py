"""The filter with the newest Ansible and Debian: what is shown of the oldest, ways in, its end, other backends, the playbook."""

import contextlib
import json
import shutil
import time

import pytest

from tests.lab import images
from tests.lab.fleet import REPOSITORY
from tests.lab.recorder import assert_unchanged
from tests.roles.filtered import QUOTAS, Lab, assert_a_flood_is_held_back, echoing
from tests.roles.packets import HELLO, lose_rules, opens, reaches, ruleset, udp

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
def lab(fleet, admin):
    """All is done by somebody who becomes root where that is possible."""
    return Lab(
        fleet,
        {
            "endpoint-1": admin | {"dtls_endpoint_config": {"quotas": QUOTAS}},
            "device-2": {"dtls_firewall_backend": "iptables-legacy"},
        },
    )


def same(hosts, **variables):
    """Variables that all of these hosts have."""
    return {host.name: dict(variables) for host in hosts}


def left(host):
    """Files of ours on a host."""
    found = [
        one.relative_to(host.written)
        for name in ("*dtls-firewall*", "*dtls_firewall*")
        for one in host.written.rglob(name)
    ]
    # What an overlay has of a removed file is a character device; /run is gone with a boot.
    return [str(one) for one in found if "run" not in one.parts and not (host.written / one).is_char_device()]


def test_nobody_is_locked_out_and_a_flood_is_held_back_as_with_the_oldest(lab):
    lab.apply()
    before, written = lab.rulesets(), lab.persisted()
    record = lab.apply(more=lab.closing(*lab.hosts), status=2)
    assert record.output.count("so what was before is back") >= len(lab.hosts)
    assert (lab.rulesets(), lab.persisted()) == (before, written)
    with echoing(lab):
        assert_a_flood_is_held_back(lab, six=True)


def limited(host):
    """Whether of many hellos from one source a burst of 80 arrives, and 16 for each second that sending them takes."""
    began = time.monotonic()
    arrived = arriving(host, 300, source="10.77.8.5")
    return 80 <= arrived <= 80 + 16 * (time.monotonic() - began) + 10


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


def test_what_is_taken_away_leaves_nothing(lab):
    assert_unchanged(lab.apply())
    absent = same(lab.hosts, dtls_firewall_state="absent")
    for host in lab.hosts:
        assert ruleset(host)
        assert len(left(host)) >= 3
    lab.apply(more=absent)
    for host in lab.hosts:
        assert ruleset(host) == ""
        assert left(host) == [], host.name
    assert lab.hosts[0].ssh("systemctl is-active dtls-firewall", check=False).strip() == "inactive"
    assert_unchanged(lab.apply(more=absent))


def test_rules_that_are_not_to_last_are_gone_after_a_boot(lab):
    device = lab.fleet["device-1"]
    lab.apply(device, more=same([device], dtls_firewall_persist=False))
    assert ruleset(device)
    assert left(device) == []
    device.shut_down()
    lose_rules(device)
    device.boot()
    device.wait_until_up()
    assert ruleset(device) == ""


def test_a_stand_in_for_firewall4_includes_the_rules(lab):
    device = lab.fleet["device-1"]
    program = device.root / "usr/sbin/fw4"
    program.write_text(FW4)
    program.chmod(0o755)
    (device.root / "usr/share/nftables.d").mkdir(parents=True)
    device.ssh("fw4 start")
    try:
        lab.apply(device)
        before = ruleset(device)
        assert (device.root / "usr/share/nftables.d/ruleset-post/dtls_firewall.nft").is_file()
        kept = (device.root / "lib/upgrade/keep.d/dtls-firewall").read_text().split()
        assert kept == [
            "/usr/share/nftables.d/ruleset-post/dtls_firewall.nft",
            "/lib/upgrade/keep.d/dtls-firewall",
        ]
        assert_unchanged(lab.apply(device))
        lose_rules(device)
        for verb in ("start", "reload", "restart"):
            device.ssh(f"fw4 {verb}")
            assert ruleset(device) == before, verb
        lab.apply(device, more=same([device], dtls_firewall_state="absent"))
        device.ssh("fw4 reload")
        assert (ruleset(device), left(device)) == ("", [])
    finally:
        program.unlink()
        shutil.rmtree(device.root / "usr/share/nftables.d")


# --- ways in ----------------------------------------------------------------------------------------


def test_management_is_where_the_connection_really_comes_from_and_goes_to(lab):
    """To one device over IPv6 and another port, to the other by way of a jump host."""
    endpoint, plain, old = lab.hosts
    controller = lab.fleet.network.controller
    plain.ssh("setsid dropbear -F -R -s -p 2222 </dev/null >/dev/null 2>&1 &")
    careless = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    jump = f"ssh -i {images.ssh_key()} {careless} -W %h:%p root@{endpoint.address}"
    ways = {
        plain.name: {"ansible_host": plain.address6, "ansible_port": 2222},
        old.name: {"ansible_ssh_common_args": f"{careless} -o ProxyCommand='{jump}'"},
    }
    # A connection that is kept from before may have come another way.
    fresh = {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(lab.fleet.folder / "control-of-other-ways")}
    lab.apply(plain, old, more=ways, **fresh)
    assert "tcp dport 2222 ip6 saddr fd77::/64" in ruleset(plain)
    assert f"-s {endpoint.address}/32 -p tcp -m tcp --dport 22 " in ruleset(old)
    assert not opens(controller, plain, port=22)
    assert not opens(controller, old, port=22)
    assert opens(endpoint, old, port=22)
    away = {name: told | {"dtls_firewall_state": "absent"} for name, told in ways.items()}
    lab.apply(plain, old, more=away, **fresh)
    assert opens(controller, plain, port=22)
    assert opens(controller, old, port=22)


# --- the playbook -----------------------------------------------------------------------------------


def groups(lab, endpoints, devices, more=None):
    """An inventory with these hosts in these groups; "away" is nowhere."""
    place = lab.inventory(more)
    told = json.loads(place.read_text())
    children = told["all"]["children"]
    hosts = {"away": {"ansible_host": "10.77.0.99"}}
    for group in children.values():
        hosts |= group["hosts"]
    children["dtls_endpoints"]["hosts"] = {name: hosts[name] for name in endpoints}
    children["dtls_devices"]["hosts"] = {name: hosts[name] for name in devices}
    place.write_text(json.dumps(told))
    return place


def test_an_endpoint_that_fails_keeps_the_rules_from_other_endpoints_and_from_no_device(lab):
    endpoint, plain, old = lab.hosts
    playbook = REPOSITORY / "playbooks/firewall.yml"

    def play(*names, more=None, arguments=()):
        inventory = groups(lab, names, [plain.name], more)
        return lab.fleet.playbook(
            playbook, *arguments, inventory=inventory, status=2, record=True, ANSIBLE_TIMEOUT="10"
        )

    record = play(endpoint.name, old.name, more=same([endpoint], dtls_firewall_raw_rules=["bogus words"]))
    assert record.output.count("endpoint-1: dtls_firewall: nft refuses the rules") >= 2, (
        "there, and at the end"
    )
    assert "left as it was, because it went wrong at an endpoint before it" in record.output
    assert (ruleset(endpoint), ruleset(old)) == ("", "")
    assert ruleset(plain)
    record = play("away", endpoint.name, arguments=["--check"])
    assert "away: away cannot be reached" in record.output
    assert "left as it was, because it went wrong at an endpoint before it" in record.output
    assert record.of("ok", role="dtls_firewall", host=plain.name)


# --- other backends, and limits that can be turned --------------------------------------------------


def test_without_a_limit_a_flood_arrives_whole_and_sessions_can_be_limited(lab):
    """With nft and with both kinds of iptables."""
    limits = same(
        lab.hosts,
        dtls_firewall_profile="endpoint",
        dtls_firewall_rate_exempt=["10.77.9.0/24"],
        dtls_firewall_session_limit=7,
        dtls_endpoint_config={"quotas": {"handshakes_per_second": 1, "handshake_burst": 5}},
    )
    limits["endpoint-1"] |= {"dtls_firewall_backend": "iptables-nft"}
    lab.apply(more=limits)
    assert all(limited(host) for host in lab.hosts)
    assert [arriving(host, 300) for host in lab.hosts] == [300] * 3
    assert [arriving(host, 15, source="10.77.8.6", ports=15) for host in lab.hosts] == [7] * 3
    assert [arriving(host, 15, source="10.77.9.6", ports=15) for host in lab.hosts] == [15] * 3


def test_a_device_with_the_newer_kind_of_iptables_is_filtered_and_stays_so(lab):
    host, other = lab.hosts[:2]
    more = same([host], dtls_firewall_profile="device", dtls_firewall_backend="iptables-nft")
    lab.apply(host, more=more)
    assert_unchanged(lab.apply(host, more=more))
    assert opens(lab.fleet.network.controller, host, port=22)
    assert not opens(other, host, port=22)
    for six in (False, True):
        assert not reaches(other, host, port=9999, six=six)
        assert not reaches(host, other, port=9999, six=six)
    before = ruleset(host)
    host.ssh("systemctl restart nftables")
    assert ruleset(host) == before
    host.shut_down()
    lose_rules(host)
    assert ruleset(host) == ""
    host.boot()
    host.wait_until_up()
    assert ruleset(host) == before


def test_another_backend_takes_the_place_of_the_one_before_also_at_a_boot(lab):
    host = lab.hosts[1]
    chains, nft = (same([host], dtls_firewall_backend=backend) for backend in ("iptables-legacy", "nft"))

    def boot():
        host.shut_down()
        lose_rules(host)
        host.boot()
        host.wait_until_up()
        return ruleset(host)

    lab.apply(host, more=chains)
    before = ruleset(host)
    assert "-A dtls_firewall-IN" in before
    # A run that was killed before the script that runs at a boot knew of it.
    lab.apply(host, more=nft, arguments=["--tags", "rules"])
    assert "-A dtls_firewall-IN" not in ruleset(host)
    assert boot() == before
    lab.apply(host, more=nft)
    assert_unchanged(lab.apply(host, more=nft))
    after = ruleset(host)
    assert "-A dtls_firewall-IN" not in after
    assert "table inet dtls_firewall" in after
    assert boot() == after
    assert not [name for name in left(host) if name.endswith(".iptables")]
