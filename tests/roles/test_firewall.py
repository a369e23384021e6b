"""The filter on booted hosts, with traffic: in front of an endpoint with nft, and with iptables; on devices with either."""

import contextlib
import json
import os
import signal
import time

import pytest

from tests.lab.by_hand import HandMadeEndpoint
from tests.lab.fleet import REPOSITORY
from tests.lab.recorder import assert_unchanged
from tests.lab.traffic import Sensor
from tests.namespaces import run, within
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

FLEET = {"endpoints": 1, "devices": 3}
QUOTAS = {
    "handshakes_per_second": 2,
    "handshake_burst": 5,
    "total_handshakes_per_second": 20,
    "total_handshake_burst": 20,
}
BURST, RATE, BURST_TOGETHER, RATE_TOGETHER = 15, 6, 320, 320
"""ClientHellos of one source, and of all, that follow from that."""
CLOSES_SSH = {
    # By the mark, because a plain rule is refused before anything happens.
    "nft": ["meta mark 0 tcp dport 22 drop"],
    "iptables": ["-p tcp --dport 22 -m mark --mark 0 -j DROP"],
}
HOSTS = {
    "endpoint-1": {
        "dtls_endpoint_config": {"quotas": QUOTAS},
        "dtls_endpoint_listen": ["[::]:5684", "0.0.0.0:5685"],
    },
    "device-1": {},
    "device-2": {"dtls_firewall_backend": "iptables-legacy"},
    # A small endpoint, with what an old kernel has.
    "device-3": {
        "dtls_firewall_backend": "iptables-legacy",
        "dtls_firewall_profile": "endpoint",
        "dtls_endpoint_config": {"quotas": QUOTAS},
    },
}


class Lab:
    """The fleet, and the role on it."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.endpoint = fleet["endpoint-1"]
        self.plain, self.old, self.small = (fleet[f"device-{number}"] for number in (1, 2, 3))
        self.hosts = [self.endpoint, self.plain, self.old, self.small]
        self._play = fleet.folder / "firewall-at-once.yml"
        self._play.write_text(
            json.dumps([{"hosts": "all", "gather_facts": False, "roles": [{"role": "dtls_firewall"}]}])
        )

    def inventory(self, more=None):
        """The inventory, with ``more`` variables for each host."""
        place = self.fleet.inventory(
            dtls_firewall_rollback_after=30,
            dtls_firewall_endpoints=[self.endpoint.address, self.endpoint.address6],
        )
        told = json.loads(place.read_text())
        for group in told["all"]["children"].values():
            for name, variables in group["hosts"].items():
                variables.update(HOSTS[name] | (more or {}).get(name, {}))
        place.write_text(json.dumps(told))
        return place

    def start(self, *arguments, more=None):
        """Begin :meth:`apply`."""
        return self.fleet.start_playbook(self._play, *arguments, inventory=self.inventory(more))

    def apply(self, *arguments, more=None, **how):
        """Run the role on all hosts at once, or on those that ``limit`` names."""
        return self.fleet.playbook(self._play, *arguments, inventory=self.inventory(more), record=True, **how)

    def closing(self, *hosts):
        """Variables that close ssh of ``hosts``, and have it opened soon."""
        return {
            host.name: {
                "dtls_firewall_rollback_after": 6,
                "dtls_firewall_raw_rules": CLOSES_SSH[
                    "nft" if host in (self.endpoint, self.plain) else "iptables"
                ],
            }
            for host in hosts
        }

    def rulesets(self):
        """What is in force on each host."""
        return {host.name: ruleset(host) for host in self.hosts}

    def persisted(self):
        """What each host loads at its next boot."""
        found = {}
        for host in self.hosts:
            files = sorted((host.root / "etc/dtls-guard").glob("dtls_firewall.*"))
            found[host.name] = {file.name: file.read_text() for file in files}
        return found


@pytest.fixture(scope="module")
def bare(fleet):
    return Lab(fleet)


@pytest.fixture(scope="module")
def lab(bare):
    """All hosts are protected."""
    bare.apply()
    return bare


@pytest.fixture
def service(lab):
    """An endpoint that echoes, on IPv4 and IPv6."""
    made = HandMadeEndpoint(lab.endpoint, lab.fleet.devices, stored=False)
    configuration = lab.fleet.folder / "by-hand-endpoint-1/endpoint.toml"
    configuration.write_text(configuration.read_text().replace("0.0.0.0", "::"))  # noqa: S104
    with made as endpoint:
        for device in lab.fleet.devices:
            endpoint.provision(device)
        yield endpoint


@contextlib.contextmanager
def sensors(*told, **how):
    """Devices that stream to a target each; none may lose anything unless the test says so."""
    found = [Sensor(device, target, **how) for device, target in told]
    for sensor in found:
        sensor.start()
    try:
        for sensor in found:
            sensor.wait_until_connected()
        yield found
    finally:
        for sensor in found:
            sensor.stop()
            sensor.assert_sound()


def wait_for_echoes(found, more=25):
    marks = [(sensor, sensor.figures.echoed + more) for sensor in found]
    for sensor, mark in marks:
        sensor.wait_until(lambda figures, mark=mark: figures.echoed >= mark)


def none_lost(found):
    for sensor in found:
        assert (sensor.figures.ended, sensor.lost) == (0, 0), sensor.figures


# --- applied ----------------------------------------------------------------------------------------


def test_check_mode_on_bare_hosts_tells_everything_and_changes_nothing(bare):
    record = bare.apply("--check", "--diff")
    assert set(bare.rulesets().values()) == {""}
    assert set(map(str, bare.persisted().values())) == {"{}"}
    for host in bare.hosts:
        assert len(record.of("changed", host=host.name)) >= 3, record.output
    assert (
        "+\t\t@th,64,8 22 @th,168,8 1 update @ipv4_hello { ip saddr limit rate over 6/second burst 15 packets }"
        in record.output
    )
    assert "--hashlimit-above 6/second --hashlimit-burst 15" in record.output
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
        "--limit", "device-1,device-2",
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


def test_a_controller_that_is_killed_before_it_confirmed_leaves_the_old_rules(lab):
    before, written = lab.rulesets(), lab.persisted()
    closing = lab.closing(lab.endpoint, lab.plain, lab.old)
    process = lab.start("--limit", ",".join(closing), more=closing)
    wait_until(
        lambda: all(ruleset(lab.fleet[name]) != before[name] for name in closing), "new rules are in force"
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: lab.rulesets() == before, "the old rules are back")
    assert lab.persisted() == written


def wait_until(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


# --- they last --------------------------------------------------------------------------------------


def test_rules_are_in_force_after_a_boot(lab):
    before = lab.rulesets()
    for host in lab.hosts:
        host.shut_down()
        lose_rules(host)
        assert ruleset(host) == ""
        host.boot()
    for host in lab.hosts:
        host.wait_until_up()
    assert lab.rulesets() == before
    assert_unchanged(lab.apply())


def test_nftables_service_takes_our_rules_away_for_no_longer_than_it_works(lab):
    before = ruleset(lab.endpoint)
    for verb in ("start", "restart", "reload", "stop"):
        run(*within(lab.endpoint.namespace), "nft", "add", "table", "inet", "somebody")
        lab.endpoint.ssh(f"systemctl {verb} nftables")
        assert "somebody" not in run(*within(lab.endpoint.namespace), "nft", "list", "tables"), (
            "it flushes everything"
        )
        assert ruleset(lab.endpoint) == before, verb


def test_nftables_service_brings_back_nothing_that_was_stopped_on_purpose(lab):
    before = ruleset(lab.endpoint)
    lab.endpoint.ssh("systemctl stop dtls-firewall; systemctl restart nftables")
    assert ruleset(lab.endpoint) == ""
    lab.endpoint.ssh("systemctl start dtls-firewall")
    assert ruleset(lab.endpoint) == before


# --- floods -----------------------------------------------------------------------------------------


def many(prefix):
    return [f"{prefix}{number}" for number in range(1, 201)]


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_one_source_that_floods_with_hellos_is_held_back_and_the_honest_beside_it_notice_nothing(
    lab, service, six
):
    target = lab.endpoint.address6 if six else lab.endpoint.address
    # In IPv6 all networks of a /56 are one source.
    flooders = [f"fd99:0:0:a{number:x}::1" for number in range(16)] if six else ["10.77.9.9"]
    before = counters(lab.endpoint)
    began = time.monotonic()
    controller = lab.fleet.network.controller
    with sensors((lab.plain, target)) as found, Flood(controller, flooders, target) as flood:
        flood.wait_until_sent(3_000)
        wait_for_echoes(found)
        with sensors((lab.old, target)) as fresh:
            wait_for_echoes(fresh)
        none_lost(fresh)
        assert fresh[0].figures.failed == 0
    none_lost(found)
    seconds = time.monotonic() - began
    after = counters(lab.endpoint)
    passed = after["ClientHellos that pass"] - before["ClientHellos that pass"]
    dropped = after[f"ClientHellos of one source, ipv{6 if six else 4}"]
    assert passed <= BURST + RATE * seconds + 10, (passed, seconds)
    assert dropped >= flood.sent - passed


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
    lab.apply("--limit", "device-3", more=more)
    with udp(lab.small.namespace, lab.small.address, 5684) as receiver:
        with udp(lab.plain.network.controller, "10.77.9.77") as sender:
            for _ in range(200):
                sender.sendto(HELLO, (lab.small.address, 5684))
        receiver.settimeout(0.3)
        arrived = 0
        with contextlib.suppress(TimeoutError):
            while receiver.recv(2_000):
                arrived += 1
    assert 60 <= arrived < 90
