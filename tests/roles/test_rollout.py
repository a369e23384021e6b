"""All roles together: the playbooks as they stand, in the order of ``make lab``, with the newest ansible-core and Debian 13."""

import pytest

from tests.lab.demonstration import FEW, PLAYBOOKS, STEPS, Operator
from tests.lab.recorder import assert_unchanged
from tests.lab.traffic import Streams
from tests.lab.wheelhouse import MUTE, wheelhouse
from tests.roles.endpoints import SHORT, release, started

FLEET = {"endpoints": 2, "devices": 3, "suite": "trixie", "controller": "newest"}


@pytest.fixture(scope="module")
def operator(fleet):
    return Operator(fleet)


@pytest.fixture(scope="module")
def rolled(fleet, operator):
    """Every step was made while the devices streamed; what they have seen."""
    with Streams(fleet, connected=False) as streams:
        for step in STEPS:
            record = operator.play(PLAYBOOKS / step.playbook, changes=step.changes(fleet))
            assert record.changed, step.name
            if step.name != "deploy":
                streams.wait_until_echoed(FEW)
    return streams


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


@pytest.mark.parametrize("playbook", ["deploy.yml", "rotate.yml", "firewall.yml"])
def test_once_more_changes_nothing(operator, rolled, playbook):
    assert_unchanged(operator.play(PLAYBOOKS / playbook))


def test_the_status_of_every_endpoint_is_shown(operator, rolled):
    record = operator.play(PLAYBOOKS / "status.yml")
    assert record.output.count('"version": "0.1.1"') == 2, record.output
    assert not record.changed


def test_a_release_that_does_not_serve_never_reaches_the_second_endpoint(fleet, operator, rolled):
    first, second = fleet.endpoints
    before = release(first), release(second), started(second)
    bad = {
        "dtls_endpoint_wheelhouse": str(wheelhouse(fleet.suite, version="0.3.0", patch=MUTE)),
        "dtls_endpoint_health_timeout": SHORT,
    }
    with Streams(fleet) as streams:
        record = operator.play(PLAYBOOKS / "upgrade.yml", changes=bad, status=2)
    streams.check(ended=0, failed=0, lost=0)
    assert "which serves again" in record.output
    assert (release(first), release(second), started(second)) == before
    assert not [result for result in record.changed if result.host == "endpoint-2"]


def test_none_is_touched_unless_all_serve(fleet, operator, rolled):
    first, second = fleet.endpoints
    before = started(first)
    second.ssh("systemctl stop dtls-endpoint.socket dtls-endpoint.service")
    try:
        record = operator.play(
            PLAYBOOKS / "upgrade.yml",
            changes={"dtls_endpoint_wheelhouse": str(wheelhouse(fleet.suite, version="0.2.0"))},
            status=2,
        )
    finally:
        second.ssh("systemctl start dtls-endpoint.socket dtls-endpoint.service")
    assert not record.changed
    assert started(first) == before
