"""The role dtls_endpoint on a booted host, with devices that stream while it works."""

import base64
import os
import re
import signal
import subprocess

import pytest

from tests.lab.fleet import PLAYBOOKS, Fleet
from tests.lab.leaks import Search, Secret
from tests.lab.traffic import WINDOW, Streams
from tests.lab.wheelhouse import EXITS, MUTE
from tests.roles.endpoints import (
    CONFIG,
    SHORT,
    counts,
    deployed,
    give_keys,
    play,
    release,
    started,
    variables,
)
from tests.roles.plays import Plays

SECOND = "0.2.0"
CHANGED = {"forward": {"kind": "echo"}, "log": {"failures_burst": 10}}
"""A configuration that is another one, and works."""


@pytest.fixture(scope="module")
def fleet(lab):
    with Fleet(endpoints=1, devices=2) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def runs(fleet):
    """A rehearsal on the bare host, the deployment, and the same again; what each printed."""
    rehearsal = play(fleet, "deploy", "--check", "--diff")
    bare = fleet["endpoint-1"].ssh("ls -d /opt/* /etc/dtls* /etc/systemd/system/dtls* 2>/dev/null; true")
    return {"rehearsal": rehearsal, "bare": bare, "first": play(fleet), "second": play(fleet)}


@pytest.fixture(scope="module")
def keys(fleet, runs):
    return give_keys(fleet)


@pytest.fixture
def host(fleet, keys):
    """The endpoint's host, as a deployment of the first release leaves it."""
    return deployed(fleet)


def test_a_rehearsal_on_a_bare_host_shows_everything_and_does_nothing(runs):
    assert counts(runs["rehearsal"])["failed"] == 0
    assert counts(runs["rehearsal"])["changed"] == 8
    assert "+ListenDatagram=[::]:5684" in runs["rehearsal"]
    assert '+psk_file = "/etc/dtls-endpoint/psk.d"' in runs["rehearsal"]
    assert runs["bare"] == ""


def test_a_second_run_changes_nothing(runs, fleet):
    assert counts(runs["first"])["changed"] == 8
    assert counts(runs["second"])["changed"] == 0
    assert counts(play(fleet, "deploy", "--check"))["changed"] == 0


def test_only_the_service_can_read_what_is_its_own(fleet, runs):
    listed = fleet["endpoint-1"].ssh(
        "stat -c '%a %U %n' /etc/dtls-endpoint /etc/dtls-endpoint/* /etc/dtls-endpoint/psk.d/* /var/lib/dtls-endpoint /opt/dtls-endpoint/confirmed"
    )
    assert listed.splitlines() == [
        "750 root /etc/dtls-endpoint",
        "640 root /etc/dtls-endpoint/endpoint.toml",
        "700 dtls-endpoint /etc/dtls-endpoint/psk.d",
        "600 dtls-endpoint /etc/dtls-endpoint/state.key",
        "600 dtls-endpoint /etc/dtls-endpoint/psk.d/fleet.psk",
        "700 dtls-endpoint /var/lib/dtls-endpoint",
        "700 root /opt/dtls-endpoint/confirmed",
    ]


def test_the_service_is_as_little_exposed_as_promised_and_has_no_network(fleet, runs):
    host = fleet["endpoint-1"]
    found = re.search(
        r"level for dtls-endpoint.service: ([0-9.]+)", host.ssh("systemd-analyze security dtls-endpoint")
    )
    assert found
    assert float(found[1]) <= 1.0
    process = host.ssh("systemctl show -p MainPID --value dtls-endpoint.service").strip()
    assert re.findall(r"^ *(\w+):", host.ssh(f"cat /proc/{process}/net/dev"), re.MULTILINE) == ["lo"]


def test_restart_reload_upgrade_and_the_way_back_lose_nothing(fleet, host):
    before = release(host)
    with Streams(fleet) as streams:
        first = started(host)
        host.ssh("systemctl restart dtls-endpoint.service")
        second = started(host)
        host.ssh("systemctl reload dtls-endpoint.service")
        assert started(host) == second != first
        output = play(fleet, "upgrade", version=SECOND)
        after = release(host)
        play(fleet, "deploy", "--tags", "rollback", version=SECOND)
        assert release(host) == before
    streams.check()
    assert counts(output)["changed"] == 2  # a release was installed, and switched to
    assert after[0] == after[1] != before[0] == before[1]


def test_a_host_without_python_is_told_what_it_lacks(fleet):
    told = Plays(fleet).run(hosts="device-1", roles=["dtls_endpoint"], status=2)
    assert "device-1: the endpoint needs root to be installed, and Python 3.11 to run" in told.output
    assert "with Python none. Remedy: " in told.output


def test_releases_that_do_not_serve_are_switched_back(fleet, host):
    before = release(host)
    with Streams(fleet) as streams:
        for patch, why in (EXITS, "status=2"), (MUTE, "health-probe"):
            output = play(fleet, version="0.3.0", patch=patch, status=2, dtls_endpoint_health_timeout=SHORT)
            assert release(host) == before
            said = re.search(r"endpoint-1: the release \w+ does not serve: .*", output)
            assert said, output
            # On a machine that is very busy it may not even have started.
            assert why in said[0] or "not ready within" in said[0]
            assert f"switched back to {before[0]}, which serves again; remedy: " in said[0]
        # With the wheelhouse from before there is nothing to do.
        assert counts(play(fleet))["changed"] == 0
    streams.check()


def test_a_configuration_with_a_mistake_touches_nothing(fleet, host):
    before, text = started(host), host.ssh(f"cat {CONFIG}")
    output = play(fleet, config={"forward": {"kind": "ecko"}}, status=2)
    assert "forward.kind" in output
    assert "ecko" in output
    assert (started(host), host.ssh(f"cat {CONFIG}")) == (before, text)


def test_a_unit_that_is_too_exposed_is_not_installed(fleet, keys):
    host = fleet["endpoint-1"]
    before = started(host)
    output = play(fleet, config={"forward": {"kind": "udp", "upstream": "gateway.example:5683"}}, status=2)
    assert "dtls_endpoint_exposure_max; remedy: addresses in place of names" in output
    assert started(host) == before


def new_key():
    """What stands in a file that the configuration names."""
    made = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    return subprocess.run(made, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def more():
    """Another listener, figures over HTTP and a key of the service's own."""
    return {
        "config": {
            "forward": {"kind": "echo"},
            "metrics": {"port": 9684},
            "credentials": {"raw_public_key": "own.pem", "client_authentication": "none"},
        },
        "dtls_endpoint_listen": ["[::]:5684", "127.0.0.1:5999"],
        "dtls_endpoint_files": [{"name": "own.pem", "content": new_key()}],
    }


def test_figures_and_another_listener_come_without_a_loss_of_associations(fleet, host, more):
    with Streams(fleet) as streams:
        play(fleet, **more)
    assert [(one.figures.ended, one.figures.failed) for one in streams.sensors.values()] == [(0, 0)] * 2
    # The sockets were closed for a moment, so a few datagrams are lost; nobody sends more of them without an echo.
    assert all(one.lost < WINDOW for one in streams.sensors.values()), streams.sensors
    assert host.ssh("ss -uln | grep -c 127.0.0.1:5999").strip() == "1"
    assert "ready" in host.ssh(
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:9684/readyz\").read())'"
    )
    assert "PrivateNetwork=no" in host.ssh("systemctl cat dtls-endpoint.service")


def test_new_certificates_are_read_without_a_restart_and_shown_to_nobody(fleet, keys, more):
    host, second = deployed(fleet, **more), new_key()
    before = started(host)
    renewed = more | {"dtls_endpoint_files": [{"name": "own.pem", "content": second}]}
    search = Search(fleet)
    with search.watching():
        output = play(
            fleet,
            "deploy",
            "-vvvvv",
            "--diff",
            **renewed,
        )
    search.output(output)
    assert counts(output)["changed"] == 2
    assert started(host) == before
    assert counts(play(fleet, "deploy", "--tags", "configure", **renewed))["changed"] == 0
    # The inventory of the lab is in the controller's folder; an operator's is in a vault.
    (fleet.folder / "inventory.json").unlink()
    own = {"endpoint-1": ["/etc/dtls-endpoint/*"]}
    search.add(Secret("the new key", base64.b64decode("".join(second.splitlines()[1:-1])), own))
    for name, file in ("state key", "state.key"), ("the probe's key", "psk.d/fleet.psk"):
        search.add(Secret(name, first_key(host, file), own))
    search.check()


def first_key(host, file):
    """The key in the first line of a file."""
    return host.ssh(f"head -n 1 /etc/dtls-endpoint/{file}").strip().rpartition(":")[2]


def test_a_controller_or_a_host_that_dies_in_an_upgrade_leaves_one_release_that_serves(fleet, host):
    before = release(host)
    inventory = fleet.inventory(**variables(version=SECOND, config=CHANGED))
    with Streams(fleet) as streams:
        for task in (
            "Install the release beside the others",
            "Write the configuration, if",
            "Switch to the release",
        ):
            killed_at(fleet, task, inventory)
            host.ssh("flock -w 60 /opt/dtls-endpoint/lock true")
            assert len(set(release(host))) == 1
        # Whoever works on the host dies as well, when the link leads to the new release and nothing is confirmed.
        host.ssh(f"ln -sfn releases/{before[0]} /opt/dtls-endpoint/current")
        with fleet.start_playbook(PLAYBOOKS / "deploy.yml", inventory=inventory) as process:
            elsewhere = f"[ $(readlink /opt/dtls-endpoint/current) != releases/{before[0]} ]"
            host.ssh(
                f"until {elsewhere}; do sleep 0.01; done; pkill -9 -f 'sansdtls dtls_switc[h]'", timeout=240
            )
            process.communicate(timeout=240)
        assert process.returncode in {2, 4}
        output = play(fleet, version=SECOND, config=CHANGED)
        assert counts(output)["changed"] == 1
        assert len(set(release(host)) - set(before)) == 1
    streams.check()


def killed_at(fleet, task, inventory):
    """Run the deployment, and kill all of the controller's processes as soon as a task has begun."""
    with fleet.start_playbook(PLAYBOOKS / "deploy.yml", inventory=inventory) as process:
        for line in process.stdout:
            if task in line:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_without_its_database_and_the_descriptor_store_a_restart_is_seen(fleet, keys):
    """The control: devices whose associations are gone notice it, and are counted."""
    host = fleet["endpoint-1"]
    play(fleet, config={"forward": {"kind": "echo"}, "state": {"store": "memory"}})
    with Streams(fleet) as streams:
        host.ssh("systemctl restart dtls-endpoint.service")
    streams.check()
    host.ssh(
        "mkdir /run/systemd/system/dtls-endpoint.service.d && cd /run/systemd/system/dtls-endpoint.service.d && "
        "printf '[Service]\\nFileDescriptorStoreMax=0\\n' > no-store.conf && systemctl daemon-reload && "
        "systemctl restart dtls-endpoint.service"
    )
    with Streams(fleet) as streams:
        host.ssh("systemctl restart dtls-endpoint.service")
    host.ssh("rm -r /run/systemd/system/dtls-endpoint.service.d && systemctl daemon-reload")
    assert sum(sensor.figures.ended for sensor in streams.sensors.values()) == len(fleet.devices)


def test_without_the_probe_a_release_that_does_not_serve_stays(fleet, keys):
    """The control: what the test above relies on is the handshake."""
    host = fleet["endpoint-1"]
    before = release(host)
    play(fleet, version="0.3.0", patch=MUTE, dtls_endpoint_probe=False)
    assert release(host) != before
    wrong = variables(version="0.3.0", patch=MUTE, dtls_endpoint_health_timeout=SHORT)
    assert "does not serve" in fleet.playbook(
        PLAYBOOKS / "deploy.yml", "--tags", "verify", inventory=fleet.inventory(**wrong), status=2
    )


def test_nothing_secret_is_in_the_journal(fleet, keys):
    host = fleet["endpoint-1"]
    journal = host.ssh("journalctl -o export --no-pager", timeout=120)
    secrets = [*keys.values(), first_key(host, "state.key"), first_key(host, "psk.d/fleet.psk")]
    assert {len(secret) for secret in secrets} == {64}
    assert [secret for secret in secrets if secret in journal] == []
    assert "health-probe" in journal


def test_it_is_removed_and_keys_only_where_that_is_said(fleet, keys):
    host = fleet["endpoint-1"]
    assert counts(play(fleet, "deploy", "--check", dtls_endpoint_state="absent"))["changed"] == 1
    assert counts(play(fleet, dtls_endpoint_state="absent"))["changed"] == 1
    assert (
        host.ssh("ls -d /opt/dtls-endpoint /etc/systemd/system/dtls* /run/dtls-endpoint 2>/dev/null; true")
        == ""
    )
    assert host.ssh("ss -uln | grep -c :5684; true").strip() == "0"
    assert "fleet.psk" in host.ssh("ls /etc/dtls-endpoint/psk.d")
    play(fleet, dtls_endpoint_state="absent", dtls_endpoint_remove_data=True)
    assert (
        host.ssh(
            "ls -d /etc/dtls-endpoint /var/lib/dtls-endpoint 2>/dev/null; id dtls-endpoint 2>/dev/null; true"
        )
        == ""
    )
    assert counts(play(fleet, dtls_endpoint_state="absent", dtls_endpoint_remove_data=True))["changed"] == 0
