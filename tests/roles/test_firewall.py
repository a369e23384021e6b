"""The filter on booted hosts, with traffic: in front of an endpoint with nft, and with iptables; on devices with either."""

import contextlib
import os
import signal
import time

import pytest

from tests.lab.fleet import REPOSITORY
from tests.lab.recorder import assert_unchanged
from tests.namespaces import run, within
from tests.roles.filtered import (
    BURST,
    BURST_TOGETHER,
    QUOTAS,
    RATE,
    RATE_TOGETHER,
    Lab,
    assert_a_flood_is_held_back,
    echoing,
    none_lost,
    sensors,
    wait_for_echoes,
)
from tests.roles.guarded import BLIND, LINGERS, SAME, patched, until
from tests.roles.packets import (
    HELLO,
    Flood,
    counters,
    counters_of_iptables,
    lose_rules,
    on,
    opens,
    reaches,
    ruleset,
    udp,
)
from tests.roles.plays import ROLES

FLEET = {"endpoints": 1, "devices": 3}
HOSTS = {
    "endpoint-1": {
        "dtls_endpoint_config": {"quotas": QUOTAS},
        "dtls_endpoint_listen": ["[::]:5684", "0.0.0.0:5685"],
    },
    "device-2": {"dtls_firewall_backend": "iptables-legacy"},
    # A small endpoint, with what an old kernel has.
    "device-3": {
        "dtls_firewall_backend": "iptables-legacy",
        "dtls_firewall_profile": "endpoint",
        "dtls_endpoint_config": {"quotas": QUOTAS},
    },
}


class FourHosts(Lab):
    """With names for what each is."""

    def __init__(self, fleet):
        super().__init__(fleet, HOSTS)
        self.endpoint, self.plain, self.old, self.small = self.hosts


@pytest.fixture(scope="module")
def bare(fleet):
    return FourHosts(fleet)


@pytest.fixture(scope="module")
def lab(bare):
    """All hosts are protected."""
    bare.apply()
    return bare


@pytest.fixture(scope="module")
def service(lab):
    with echoing(lab):
        yield


def with_roles(environment):
    """That of :func:`patched`, where dtls_common alone is, with the other roles."""
    return environment | {"ANSIBLE_ROLES_PATH": f"{environment['ANSIBLE_ROLES_PATH']}:{ROLES}"}


# --- applied ----------------------------------------------------------------------------------------


def test_check_mode_on_bare_hosts_tells_everything_and_changes_nothing(bare):
    record = bare.apply(arguments=["--check", "--diff"])
    assert set(bare.rulesets().values()) == {""}
    assert set(map(str, bare.persisted().values())) == {"{}"}
    for host in bare.hosts:
        assert len(record.of("changed", host=host.name)) >= 3, record.output
    assert (
        "+\t\t@th,64,8 22 @th,168,8 1 update @ipv4_hello { ip saddr limit rate over 32/second burst 80 packets }"
        in record.output
    )
    assert "--hashlimit-above 32/second --hashlimit-burst 80" in record.output
    # What an endpoint listens on is what devices may reach.
    assert "+\t\tudp dport { 5684, 5685 } fib daddr type local goto dtls" in record.output
    assert "+\t\tudp dport { 5684, 5685 } ip daddr { 10.77.0.11 } counter accept" in record.output


def test_the_second_run_changes_nothing(lab):
    before = lab.rulesets()
    assert all(before.values())
    playbook = REPOSITORY / "playbooks/firewall.yml"
    assert_unchanged(lab.fleet.playbook(playbook, inventory=lab.inventory(), record=True))
    assert lab.rulesets() == before


def test_devices_stream_through_both_filters_over_both_ips(lab, service):
    with sensors(
        (lab.plain, lab.endpoint.address), (lab.old, lab.endpoint.address), (lab.plain, lab.endpoint.address6)
    ) as found:
        wait_for_echoes(found)
    none_lost(found)
    assert counters(lab.endpoint)["DTLS that passes"] > 0


@pytest.mark.parametrize("name", ["plain", "old"])
def test_a_device_is_reached_by_nobody_but_its_management_and_reaches_only_what_it_is_for(lab, name):
    device = getattr(lab, name)
    controller = lab.fleet.network.controller
    assert opens(controller, device, port=22)
    assert not opens(lab.endpoint, device, port=22), "ssh from elsewhere"
    assert not reaches(lab.endpoint, device, port=9999)
    assert not reaches(lab.endpoint, device, port=9999, six=True)
    assert reaches(device, lab.endpoint, port=53)
    assert reaches(device, lab.endpoint, port=123, six=True)
    assert not reaches(device, lab.endpoint, port=9999)
    assert not reaches(device, lab.small, port=5683, six=True)
    assert not opens(device, lab.endpoint, port=22)


# --- nobody is locked out ---------------------------------------------------------------------------


def test_rules_that_close_ssh_are_rolled_back_on_both_kinds_of_host_and_the_next_run_is_well(lab):
    before, written = lab.rulesets(), lab.persisted()
    closing = lab.closing(*lab.hosts)
    record = lab.apply(more=closing, status=2)
    for host in lab.hosts:
        assert len(record.of("failed", host=host.name)) == 1, record.output
        assert host.ssh("echo here").strip() == "here"
    assert record.output.count("nobody got in by a new connection, so what was before is back") >= len(
        lab.hosts
    )
    assert lab.rulesets() == before
    assert lab.persisted() == written
    assert_unchanged(lab.apply())


def test_rules_that_do_not_admit_the_session_are_refused_before_anything_happens(lab):
    before = lab.rulesets()
    record = lab.apply(
        lab.plain, lab.old,
        more={
            "device-1": {"dtls_firewall_management_sources": ["192.0.2.1"]},
            "device-2": {"dtls_firewall_ssh_ports": [2222]},
        },
        status=2,
    )  # fmt: skip
    assert (
        "device-1: this connection comes from 10.77.0.1, which dtls_firewall_management_sources does not admit. Remedy"
        in record.output
    )
    assert (
        "device-2: this connection goes to port 22, and dtls_firewall_ssh_ports has only 2222. Remedy"
        in record.output
    )
    assert lab.rulesets() == before


# --- they last --------------------------------------------------------------------------------------


def test_confirmed_rules_are_in_force_after_a_boot_and_others_are_not(lab, tmp_path):
    before = lab.rulesets()
    late = {
        name: told | {"dtls_firewall_rollback_after": 600} for name, told in lab.closing(*lab.hosts).items()
    }
    process = lab.start(more=late, **with_roles(patched(tmp_path, LINGERS)))
    for host in lab.hosts:
        until(lambda host=host: ruleset(host) != before[host.name], "the other rules do not come")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for host in lab.hosts:
        host.shut_down()
        lose_rules(host)
        assert ruleset(host) == ""
        host.boot()
    for host in lab.hosts:
        host.wait_until_up()
    assert lab.rulesets() == before


def test_nftables_service_takes_our_rules_away_for_no_longer_than_it_works(lab):
    before = ruleset(lab.endpoint)
    for verb in ("start", "restart", "reload", "stop"):
        run(*within(lab.endpoint.namespace), "nft", "add", "table", "inet", "somebody")
        lab.endpoint.ssh(f"systemctl {verb} nftables")
        assert "somebody" not in run(*within(lab.endpoint.namespace), "nft", "list", "tables"), (
            "it flushes everything"
        )
        assert ruleset(lab.endpoint) == before, verb


def test_what_is_stopped_on_purpose_stays_so_until_it_is_started(lab):
    before = lab.rulesets()
    lab.endpoint.ssh("systemctl stop dtls-firewall; systemctl restart nftables")
    for device in lab.fleet.devices:
        device.ssh("/etc/init.d/S15dtls-firewall stop")
    assert set(lab.rulesets().values()) == {""}
    lab.endpoint.ssh("systemctl start dtls-firewall")
    for device in lab.fleet.devices:
        device.ssh("/etc/init.d/S15dtls-firewall start")
    assert lab.rulesets() == before


# --- floods -----------------------------------------------------------------------------------------


def many(prefix):
    return [f"{prefix}{number}" for number in range(1, 201)]


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_one_source_that_floods_with_hellos_is_held_back_and_the_honest_beside_it_notice_nothing(
    lab, service, six
):
    assert_a_flood_is_held_back(lab, six=six)


CLEAR = "@th,88,16 0 goto clear"


@pytest.mark.parametrize(
    ("line", "instead", "seen"),
    [
        ("update @ipv4_hello", "", "more than"),
        (CLEAR, f"{CLEAR}\n@th,64,8 {{ 23, 25 }} numgen inc mod 9 0 drop", "Figures"),
    ],
    ids=["no limit", "honest data dropped"],
)
def test_a_filter_that_does_not_do_so_is_seen(lab, service, line, instead, seen):
    """What shows the protection, without it: the check before this one goes red."""
    before = ruleset(lab.endpoint)
    rules = (lab.endpoint.root / "etc/dtls-guard/dtls_firewall.nft").read_text().splitlines()
    assert any(line in one for one in rules)
    broken = [instead if line in one else one for one in rules]
    try:
        run(*on(lab.endpoint), "nft", "-f", "-", text="\n".join(broken) + "\n")
        with pytest.raises(AssertionError, match=seen):
            assert_a_flood_is_held_back(lab, patience=2)
    finally:
        lab.endpoint.ssh("systemctl reload dtls-firewall")
    assert ruleset(lab.endpoint) == before


def test_a_flood_from_many_sources_leaves_what_is_established_alone(lab, service):
    before = counters(lab.endpoint)
    with sensors((lab.plain, lab.endpoint.address), (lab.plain, lab.endpoint.address6)) as found:
        began = time.monotonic()
        with Flood(lab.fleet.network.controller, many("10.78.1."), lab.endpoint.address, ports=2) as flood:
            flood.wait_until_sent(5_000)
            wait_for_echoes(found)
        seconds = time.monotonic() - began
    none_lost(found)
    after = counters(lab.endpoint)
    passed = after["ClientHellos that pass"] - before["ClientHellos that pass"]
    assert passed <= BURST_TOGETHER + RATE_TOGETHER * seconds + 10
    assert after["ClientHellos of everybody"] > before["ClientHellos of everybody"]


def test_a_flood_costs_no_entry_of_conntrack(lab):
    # Somebody else's firewall, which makes the kernel track connections.
    chain = "type filter hook input priority 10 ; policy accept ; ct state established accept ;"
    run(*on(lab.endpoint), "nft", f"table inet somebody {{ chain in {{ {chain} }} ; }}")
    try:
        with Flood(lab.fleet.network.controller, many("10.79.1."), lab.endpoint.address) as flood:
            flood.wait_until_sent(2_000)
        lab.endpoint.ssh("true")
        seen = run(*within(lab.endpoint.namespace), "conntrack", "-L")
    finally:
        run(*on(lab.endpoint), "nft", "delete", "table", "inet", "somebody")
    assert "dport=22 " in seen, "it tracks"
    assert "dport=5684" not in seen


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_iptables_holds_back_the_same_flood(lab, six):
    target = lab.small.address6 if six else lab.small.address
    began = time.monotonic()
    with udp(lab.small.namespace, target, 5684) as receiver:
        senders = [udp(lab.endpoint.namespace, "::" if six else "0.0.0.0") for _ in range(50)]  # noqa: S104
        for _ in range(10):
            for sender in senders:
                sender.sendto(HELLO, (target, 5684))
        for sender in senders:
            sender.close()
        with udp(lab.fleet.network.controller, "fd99:0:0:1::1" if six else "10.77.9.1") as honest:
            honest.sendto(HELLO, (target, 5684))
            arrived = 0
            while receiver.recvfrom(2_000)[1][0] not in ("10.77.9.1", "fd99:0:0:1::1"):
                arrived += 1
    seconds = time.monotonic() - began
    assert BURST <= arrived <= BURST + RATE * seconds + 2
    found = counters_of_iptables(lab.small)
    assert found[f"ClientHellos of one source, ipv{6 if six else 4}"] >= 500 - arrived


def test_other_quotas_are_other_limits_with_iptables_as_well(lab):
    """A hash table of iptables that is replaced under its old name keeps its old numbers."""
    more = {"device-3": {"dtls_endpoint_config": {"quotas": QUOTAS | {"handshake_burst": 20}}}}
    lab.apply(lab.small, more=more)
    with udp(lab.small.namespace, lab.small.address, 5684) as receiver:
        with udp(lab.plain.network.controller, "10.77.9.77") as sender:
            for _ in range(500):
                sender.sendto(HELLO, (lab.small.address, 5684))
        receiver.settimeout(0.3)
        arrived = 0
        with contextlib.suppress(TimeoutError):
            while receiver.recv(2_000):
                arrived += 1
    assert 20 * 16 <= arrived < 20 * 16 + 2 * RATE


def test_without_a_new_connection_the_lock_out_would_not_be_seen(lab, tmp_path):
    """Both protections of dtls_ruleset taken out: the role ends well, and nobody gets in any more."""
    hosts = lab.endpoint, lab.plain, lab.old
    lab.apply(*hosts, more=lab.closing(*hosts), **with_roles(patched(tmp_path, SAME, BLIND)))
    for host in hosts:
        assert not opens(lab.fleet.network.controller, host, port=22)
