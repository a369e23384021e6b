"""The role dtls_endpoint on a host that busybox's init boots: with Python, and without systemd."""

import contextlib

import pytest

from tests.lab.fleet import Fleet
from tests.lab.traffic import Streams
from tests.lab.wheelhouse import HANGS
from tests.roles.endpoints import CONFIG, PROCESS, SHORT, counts, give_keys, play, release

SECOND = "0.2.0"
SCRIPT = "/etc/init.d/S60dtls-endpoint"
NUMBER = PROCESS["busybox"]


@pytest.fixture(scope="module")
def fleet(lab):
    with Fleet(endpoints=1, devices=1, init="busybox") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def host(fleet):
    """The host, deployed to and with a device that has its key."""
    rehearsal = play(fleet, "deploy", "--check", "--diff")
    assert counts(rehearsal)["changed"] == 8
    assert "+program=/opt/dtls-endpoint/current/bin/dtls-endpoint" in rehearsal
    host = fleet["endpoint-1"]
    assert host.ssh("ls -d /opt/* /etc/dtls* /etc/init.d/S* 2>/dev/null; true") == ""
    assert counts(play(fleet))["changed"] == 8
    give_keys(fleet)
    return host


@contextlib.contextmanager
def no_association_lost(fleet):
    """Datagrams may be, while nobody holds the socket; what is sent after that comes back."""
    with Streams(fleet) as streams:
        yield
        streams.wait_until_echoed()
    streams.check(lost=streams.totals()["lost"])


def test_a_second_run_changes_nothing(fleet, host):
    assert counts(play(fleet))["changed"] == 0


def test_restarts_and_releases_lose_no_association_nor_does_one_that_does_not_serve(fleet, host):
    before = release(host)
    with no_association_lost(fleet):
        host.ssh(f"{SCRIPT} restart")
        play(fleet, version=SECOND)
        after = release(host)
        assert after[0] == after[1] != before[0] == before[1]
        output = play(fleet, version="0.3.0", patch=HANGS, status=2, dtls_endpoint_health_timeout=SHORT)
        assert release(host) == after
        assert f"not ready within {SHORT} s" in output
        assert f"switched back to {after[0]}, which serves again" in output
        play(fleet, "deploy", "--tags", "rollback", version=SECOND)
        assert release(host) == before


def test_it_is_there_again_after_a_crash_and_after_a_boot_and_the_rules_with_it(fleet, host):
    crashed = host.ssh(NUMBER)
    host.ssh(f"kill -9 {crashed}")
    host.ssh(f"until [ \"$({NUMBER})\" != '{crashed.strip()}' ] && {SCRIPT} status; do sleep 0.1; done")
    play(fleet, "firewall", "--limit", "endpoint-1")
    with no_association_lost(fleet):
        host.shut_down()
        host.boot()
        host.wait_until_up()
        assert "associations" in play(fleet, "status")
    assert "dport 5684" in host.ssh("nft list table inet dtls_firewall")


def test_a_stop_stops_and_a_start_starts_once(host):
    number = host.ssh(f"{SCRIPT} start; {NUMBER}")
    assert host.ssh(f"{SCRIPT} stop; {SCRIPT} start; {SCRIPT} start; {NUMBER}") != number
    assert host.ssh("pgrep -fc 'dtls-endpoint serv[e]'").strip() == "1"
    broken = f"{SCRIPT} stop; mv {CONFIG} {CONFIG}.away; {SCRIPT} start && echo started"
    assert "has ended" in host.ssh(f"({broken}) 2>&1; mv {CONFIG}.away {CONFIG}; {SCRIPT} start")
    host.ssh(f"{SCRIPT} stop && ! {SCRIPT} status && ! pgrep -f 'dtls-endpoint serv[e]' && {SCRIPT} start")


def test_it_is_removed(fleet, host):
    assert counts(play(fleet, dtls_endpoint_state="absent"))["changed"] == 1
    assert host.ssh("ls -d /opt/dtls-endpoint /run/dtls-endpoint* /etc/init.d/S60* 2>/dev/null; true") == ""
    assert host.ssh("ss -uln | grep -c :5684; true").strip() == "0"
    assert counts(play(fleet, dtls_endpoint_state="absent"))["changed"] == 0
