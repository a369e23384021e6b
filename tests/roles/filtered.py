"""Fleets with the filter on them: the role applied, what is in force and kept, and traffic through it."""

import contextlib
import json
import time

from tests.lab.by_hand import HandMadeEndpoint
from tests.lab.traffic import Sensor
from tests.roles.packets import Flood, counters, ruleset

QUOTAS = {
    "handshakes_per_second": 2,
    "handshake_burst": 5,
    "total_handshakes_per_second": 20,
    "total_handshake_burst": 20,
}
BURST, RATE, BURST_TOGETHER, RATE_TOGETHER = 80, 32, 320, 320
"""ClientHellos of one source, and of all, that follow from that."""
CLOSES_SSH = {
    # For new connections; by the mark, because a plain rule is refused before anything happens.
    "nft": "ct state new tcp dport 22 meta mark 0 drop",
    "iptables": "-p tcp --dport 22 -m conntrack --ctstate NEW -m mark --mark 0 -j DROP",
}
SOON = 5
"""Seconds until a dead-man acts, the fewest that there can be."""


class Lab:
    """A fleet, and the role on it; ``variables`` are those of each host."""

    def __init__(self, fleet, variables):
        self.fleet = fleet
        self.hosts = list(fleet.hosts.values())
        self.variables = variables
        self._play = fleet.folder / "firewall-at-once.yml"
        self._play.write_text(
            json.dumps([{"hosts": "all", "gather_facts": False, "roles": [{"role": "dtls_firewall"}]}])
        )

    def inventory(self, more=None):
        """The inventory, with ``more`` variables for each host."""
        endpoint = self.fleet["endpoint-1"]
        place = self.fleet.inventory(
            dtls_firewall_rollback_after=30,
            dtls_firewall_endpoints=[endpoint.address, endpoint.address6],
        )
        told = json.loads(place.read_text())
        for group in told["all"]["children"].values():
            for name, variables in group["hosts"].items():
                variables.update(self.variables.get(name, {}) | (more or {}).get(name, {}))
        place.write_text(json.dumps(told))
        return place

    def apply(self, *hosts, arguments=(), more=None, **how):
        """Run the role on these hosts at once, or on all."""
        if hosts:
            arguments = [*arguments, "--limit", ",".join(host.name for host in hosts)]
        return self.fleet.playbook(self._play, *arguments, inventory=self.inventory(more), record=True, **how)

    def start(self, *, more=None, **environment):
        """Begin :meth:`apply` on all hosts."""
        return self.fleet.start_playbook(self._play, inventory=self.inventory(more), **environment)

    def closing(self, *hosts):
        """Variables that close ssh of ``hosts``, and have it opened soon."""
        return {
            host.name: {
                "dtls_firewall_rollback_after": SOON,
                "dtls_firewall_raw_rules": [
                    CLOSES_SSH[
                        self.variables.get(host.name, {})
                        .get("dtls_firewall_backend", "nft")
                        .partition("-")[0]
                    ]
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


@contextlib.contextmanager
def echoing(lab):
    """An endpoint on ``endpoint-1`` that echoes, on IPv4 and IPv6, for all devices."""
    made = HandMadeEndpoint(lab.fleet["endpoint-1"], lab.fleet.devices, stored=False)
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


def assert_a_flood_is_held_back(lab, *, six=False, **how):
    """One source sends hellos, and the honest beside it, one connected before and one that comes now, notice nothing."""
    endpoint, one, other = lab.hosts[:3]
    target = endpoint.address6 if six else endpoint.address
    # In IPv6 all networks of a /56 are one source.
    flooders = [f"fd99:0:0:a{number:x}::1" for number in range(16)] if six else ["10.77.9.9"]
    before = counters(endpoint)
    began = time.monotonic()
    controller = lab.fleet.network.controller
    with sensors((one, target), **how) as found, Flood(controller, flooders, target) as flood:
        flood.wait_until_sent(3_000)
        wait_for_echoes(found)
        with sensors((other, target), **how) as fresh:
            wait_for_echoes(fresh)
        none_lost(fresh)
        assert fresh[0].figures.failed == 0
    none_lost(found)
    seconds = time.monotonic() - began
    after = counters(endpoint)
    passed = after["ClientHellos that pass"] - before["ClientHellos that pass"]
    assert passed <= BURST + RATE * seconds + 10, f"{passed}: more than in {seconds:g} s"
    assert after[f"ClientHellos of one source, ipv{6 if six else 4}"] >= flood.sent - passed
