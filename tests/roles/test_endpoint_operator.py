"""As an operator has it: the collection installed, no repository, several endpoints, and a plain user with sudo on them."""

import json

import pytest

from tests.lab.fleet import Fleet
from tests.lab.traffic import Streams
from tests.lab.wheelhouse import EXITS
from tests.roles.endpoints import SHORT, counts, release, started, variables
from tests.roles.plays import install_collection

SUDO = {"ansible_user": "deploy", "ansible_become": True}
UNITS = "dtls-endpoint.socket dtls-endpoint.service"
MAKE_USER = (
    "useradd --create-home --shell /bin/bash deploy && echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy && "
    # sudo looks its own host's name up.
    "echo 127.0.1.1 $(hostname) >> /etc/hosts && install -d -o deploy -m 700 /home/deploy/.ssh && "
    "install -o deploy -m 600 /root/.ssh/authorized_keys /home/deploy/.ssh/"
)


@pytest.fixture(scope="module")
def fleet(lab):
    with Fleet(endpoints=2, devices=1) as fleet:
        for host in fleet.endpoints:
            host.ssh(MAKE_USER)
        yield fleet


@pytest.fixture(scope="module")
def run(fleet):
    """Runs a playbook of the collection; what it printed."""
    installed = install_collection(fleet.folder)

    def run(name, *arguments, status=0, **more):
        place = fleet.inventory(**variables(**more))
        inventory = json.loads(place.read_text())
        inventory["all"]["children"]["dtls_endpoints"]["vars"] |= SUDO
        place.write_text(json.dumps(inventory))
        return fleet.playbook(
            f"sansdtls.dtls.{name}", *arguments, inventory=place, status=status,
            ANSIBLE_COLLECTIONS_PATH=str(installed), ANSIBLE_ROLES_PATH=str(fleet.folder / "none"),
        )  # fmt: skip

    return run


def test_the_collection_deploys_with_sudo_and_tells_the_state(fleet, run):
    rehearsal = run("deploy", "--check", "--diff")
    assert [counts(rehearsal, host.name)["changed"] for host in fleet.endpoints] == [8, 8]
    first = run("deploy")
    assert [counts(first, host.name)["changed"] for host in fleet.endpoints] == [8, 8]
    told = run("status")
    for host in fleet.endpoints:
        assert release(host)[0] in told
        assert counts(told, host.name)["changed"] == 0


def test_a_release_that_does_not_serve_never_gets_to_the_second_endpoint(fleet, run):
    first, second = fleet.endpoints
    before = release(first), release(second), started(second)
    output = run("upgrade", status=2, version="0.3.0", patch=EXITS, dtls_endpoint_health_timeout=SHORT)
    assert "endpoint-1: the release " in output
    assert "which serves again" in output
    assert (release(first), release(second), started(second)) == before
    assert second.ssh("ls /opt/dtls-endpoint/releases").split() == [before[1][0]]


def test_an_upgrade_touches_none_unless_all_serve(fleet, run):
    first, second = fleet.endpoints
    second.ssh(f"systemctl stop {UNITS}")
    before = release(first), started(first)
    output = run("upgrade", status=2, version="0.2.0", dtls_endpoint_health_timeout=SHORT)
    assert "endpoint-2: the release " in output
    assert (release(first), started(first)) == before
    second.ssh(f"systemctl start {UNITS}")


def test_keys_and_rules_are_brought_with_sudo(fleet, run):
    run("firewall", "--limit", "dtls_endpoints")
    secret = fleet.vault(dtls_psk_master="8f1c2a77d3e94b0596aa31f0cc5de21b7d40e6f38a95bc2210fe6bd9471385ac")
    run("rotate", *secret, dtls_psk_generation=1, dtls_psk_allow_pending=True, dtls_psk_confirm_timeout=1)
    device = fleet["device-1"]
    identity, _, key = device.ssh("cat /etc/dtls/psk").strip().partition(":")
    assert (identity, len(key)) == ("device-1", 64)
    for host in fleet.endpoints:
        assert f"device-1:{key}" in host.ssh("cat /etc/dtls-endpoint/psk.d/*")
        assert "dport 5684" in host.ssh("nft list table inet dtls_firewall")
    with Streams(fleet) as streams:
        streams.wait_until_echoed(1)
    streams.check()
