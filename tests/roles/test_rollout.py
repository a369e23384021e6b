"""All roles together: the playbooks as they stand, in the order of ``make lab``, with the newest ansible-core and Debian 13."""

import pytest

from tests.lab.demonstration import FEW, STEPS, Operator
from tests.lab.fleet import PLAYBOOKS
from tests.lab.leaks import Search, Secret
from tests.lab.recorder import assert_unchanged
from tests.lab.traffic import Streams
from tests.roles.plays import load

KEYS = load("module_utils/dtls_keys")
FLEET = {"endpoints": 2, "devices": 3, "suite": "trixie", "controller": "newest"}


@pytest.fixture(scope="module")
def operator(fleet):
    return Operator(fleet)


@pytest.fixture(scope="module")
def search(fleet, operator):
    """For the master key, and those that are made of it, in all that the steps say and leave."""
    master = bytes.fromhex(operator.secrets["vault_dtls_psk_master"])
    search = Search(fleet, secrets=[Secret("the master key", master)])
    on_endpoints = {host.name: ["/etc/dtls-endpoint/psk.d/*"] for host in fleet.endpoints}
    for device in fleet.devices:
        places = {device.name: ["/etc/dtls/*"], **on_endpoints}
        for generation in (1, 2):
            key = KEYS.derive(master, device.name, generation, 32)
            search.add(Secret(f"key {generation} of {device.name}", key, places))
    return search


@pytest.fixture(scope="module")
def rehearsed(fleet, operator):
    """What a rehearsal of the first step on bare hosts said."""
    first = STEPS[0]
    return operator.play(PLAYBOOKS / first.playbook, "--check", "--diff", changes=first.changes(fleet))


@pytest.fixture(scope="module")
def rolled(fleet, operator, search, rehearsed):
    """Every step was made while the devices streamed; what they have seen."""
    with Streams(fleet, connected=False) as streams:
        for step in STEPS:
            streams.step(step.name)
            given = {"changes": step.changes(fleet), **search.environment()}
            with search.watching():
                record = operator.play(PLAYBOOKS / step.playbook, "-vvvvv", "--diff", **given)
            search.output(record.output)
            assert record.changed, step.name
            if step.name != "deploy":
                streams.wait_until_echoed(FEW)
    return streams


def test_a_rehearsal_on_bare_hosts_shows_what_would_come(fleet, rehearsed):
    assert {result.host for result in rehearsed.changed} == {host.name for host in fleet.endpoints}
    assert "+ListenDatagram=[::]:5684" in rehearsed.output


def test_from_bare_hosts_to_an_upgraded_fleet_nothing_is_lost(fleet, rolled):
    rolled.check(ended=0, failed=0, lost=0)
    for sensor in rolled.sensors.values():
        # It began to use its first key when that was there, and each one when it was told to: nothing else has cost a handshake.
        assert (sensor.figures.handshakes, sensor.figures.reloads) == (3, 2)
    for host in fleet.endpoints:
        listed = host.ssh(
            "stat -c '%a %U %n' /etc/dtls-endpoint/psk.d/*; /opt/dtls-endpoint/current/bin/dtls-endpoint --version"
        )
        assert listed.splitlines() == [
            "600 dtls-endpoint /etc/dtls-endpoint/psk.d/devices.txt",
            "600 dtls-endpoint /etc/dtls-endpoint/psk.d/fleet.psk",
            "dtls-endpoint 0.1.1",
        ]


def test_no_key_is_shown_or_left_anywhere(rolled, search):
    search.check()


@pytest.mark.parametrize("playbook", ["deploy.yml", "rotate.yml", "firewall.yml"])
def test_once_more_changes_nothing(operator, rolled, playbook):
    assert_unchanged(operator.play(PLAYBOOKS / playbook))


def test_the_status_of_every_endpoint_is_shown(operator, rolled):
    record = operator.play(PLAYBOOKS / "status.yml")
    assert record.output.count('"version": "0.1.1"') == 2, record.output
    assert not record.changed
