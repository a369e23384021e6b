"""The service under a manager, and without one: what a restart keeps, what it tells, and what it refuses."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from endpoint.admin import ask
from endpoint.handoff_places import STORED_ASSOCIATIONS
from endpoint.listening import STORED_SOCKET
from tests.ports import free_port
from tests.program import supervisor
from tests.program.supervisor import Supervisor
from tests.restarts.meters import Meters, psk_lines

COUNT = 3
WHERE = "the service manager"
HANDED = '[state]\nhandoff_file = "handoff"\nkey_file = "state.key"\nadmin_socket = "admin"\n'


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def home(tmp_path):
    for name, text in (("psk.txt", psk_lines(COUNT)), ("state.key", "5a" * 32)):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(text)
    return tmp_path


def configure(home, port, state="", address="127.0.0.1"):
    (home / "endpoint.toml").write_text(
        f'[credentials]\npsk_file = "psk.txt"\n[listen]\naddress = "{address}"\nport = {port}\n'
        f'[forward]\nkind = "echo"\n{state}'
    )


def managed(home, **options):
    return Supervisor("serve", "--config", "endpoint.toml", cwd=home, **options)


@contextlib.contextmanager
def serving(home, port, **options):
    """A service that has started, and its meters, connected and heard."""
    with managed(home, **options) as service, Meters(COUNT, ("127.0.0.1", port)) as meters:
        service.start()
        service.wait_until_said("READY")
        meters.connect()
        meters.hear_all()
        yield service, meters


def goes_on(service, meters, *, where):
    """The service starts, takes everything over, and answers what was sent while no process ran."""
    meters.say_once()
    service.start()
    meters.stream(lambda: not meters.behind, up=lambda: False)
    meters.hear_all()
    restored = service.fact("restored")
    assert (restored["associations"], restored["refused"], restored["from"]) == (COUNT, 0, where)
    assert service.facts("connected") == []
    assert meters.causes == {}


def run(home, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "endpoint", *arguments, "--config", "endpoint.toml"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- under a manager -------------------------------------------------------------------------------


def test_with_a_socket_that_is_handed_down_restarts_lose_nothing(home):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        configure(home, port)
        with serving(home, port, sockets={"dtls": sock}) as (service, meters):
            for _ in range(3):
                assert service.stop() == 0
                assert service.has_said("STOPPING")
                handed = service.fact("handed_over")
                assert (handed["associations"], handed["to"]) == (COUNT, WHERE)
                assert service.facts("disconnected") == []
                assert [name for name, _ in service.stored] == [STORED_ASSOCIATIONS]
                goes_on(service, meters, where=WHERE)


def test_a_socket_that_the_service_bound_is_kept_with_what_comes_meanwhile(home, port):
    configure(home, port)
    with serving(home, port) as (service, meters):
        assert [name for name, _ in service.stored] == [STORED_ASSOCIATIONS, STORED_SOCKET]
        assert service.stop() == 0
        goes_on(service, meters, where=WHERE)


def test_an_address_that_the_configuration_names_no_longer_is_given_up(home, port):
    configure(home, port)
    with managed(home) as service:
        service.start()
        service.wait_until_said("READY")
        assert service.stop() == 0
        configure(home, port, address="127.0.0.2")
        service.start()
        service.wait_until_said("READY")
        assert service.fact("sockets_given_up")["addresses"] == [f"127.0.0.1:{port}"]
        with socket.socket(fileno=os.dup(dict(service.stored)[STORED_SOCKET])) as kept:
            assert kept.getsockname() == ("127.0.0.2", port)
        assert service.stop() == 0


def test_any_free_port_stays_the_same_through_restarts(home):
    configure(home, 0)
    with managed(home) as service:
        service.start()
        port = service.fact("listening")["port"]
        service.wait_until_said("READY")
        service.restart()
        assert service.fact("listening")["port"] == port


def test_a_process_that_is_killed_hands_nothing_over_and_the_next_one_serves(home, port):
    configure(home, port)
    with serving(home, port) as (service, _):
        assert service.stop("SIGKILL") == -9
        service.start()
        service.wait_until_said("READY")
        assert service.facts("restored") == []
        with Meters(1, ("127.0.0.1", port)) as others:
            others.connect()
            others.hear_all()
        assert service.stop() == 0


def test_a_manager_that_keeps_nothing_has_the_devices_told(home, port, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_STORED", 0)
    configure(home, port)
    with serving(home, port) as (service, meters):
        assert service.stop() == 0
        assert service.facts("handed_over") == []
        assert len(service.facts("disconnected")) == COUNT
        meters._take_in()
        assert sum(meters.causes.values()) == COUNT


def test_an_interrupt_tells_the_devices_although_there_is_a_place(home, port):
    configure(home, port)
    with serving(home, port) as (service, meters):
        assert service.stop("SIGINT") == 0
        assert len(service.facts("disconnected")) == COUNT
        meters._take_in()
        assert sum(meters.causes.values()) == COUNT


def test_a_socket_for_another_address_is_refused_with_the_remedy(home, port):
    configure(home, port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with managed(home, sockets={"dtls": sock}) as service:
            service.start()
            assert service.wait() == 1
            (fact,) = service.facts()
    assert fact["event"] == "listen_failed"
    assert fact["error"].startswith(
        f"LISTEN_FDS: descriptor 3 (dtls) is bound to 127.0.0.1:{sock_port(fact)}, but listen.address and listen.port "
        f"say 127.0.0.1:{port}; remedy: "
    )


def sock_port(fact):
    return fact["error"].split("is bound to 127.0.0.1:")[1].split(",")[0]


def test_a_manager_that_cannot_be_told_is_named_in_the_log_and_devices_are_served(home, port):
    configure(home, port)
    with managed(home, environment={"NOTIFY_SOCKET": str(home / "gone")}) as service:
        service.start()
        assert service.fact("notify_failed")["failures"] >= 1
        with Meters(1, ("127.0.0.1", port)) as meters:
            meters.connect()
            meters.hear_all()
        assert service.stop() == 0
        assert len(service.facts("disconnected")) == 1


def test_variables_that_make_no_sense_are_wrong_use(home, port):
    configure(home, port)
    with managed(home, environment={"NOTIFY_SOCKET": "nonsense"}) as service:
        service.start()
        assert service.wait() == 2
        assert service.errors.read_text() == (
            'NOTIFY_SOCKET: "nonsense" is neither a path nor @ and a name\n'
        )


# --- in a file -------------------------------------------------------------------------------------


def test_a_file_hands_over_without_a_manager_that_keeps_anything(home, port, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_STORED", 0)
    configure(home, port, HANDED)
    with serving(home, port) as (service, meters):
        assert service.stop() == 0
        handed = service.fact("handed_over")
        assert (handed["associations"], handed["to"]) == (COUNT, "handoff")
        checked = run(home, "check").stdout
        assert f"handoff: holds {COUNT} associations, which the next start takes back" in checked
        assert service.stored == []
        service.start()
        service.wait_until_said("READY")
        meters.hear_all()
        assert service.fact("restored")["associations"] == COUNT
        assert not (home / "handoff").exists()
        assert meters.causes == {}
        assert service.stop() == 0


def test_what_was_handed_over_under_another_key_is_told_and_the_service_goes_on_without(home, port):
    configure(home, port, HANDED)
    with serving(home, port) as (service, _):
        assert service.stop() == 0
        (home / "state.key").write_text("a5" * 32)
        service.start()
        service.wait_until_said("READY")
        reason = service.fact("associations_not_restored")["reason"]
        assert reason.startswith("handoff: was written under another key, or is damaged; remedy: ")
        assert (home / "handoff").exists()
        with Meters(1, ("127.0.0.1", port)) as others:
            others.connect()
            others.hear_all()
        assert service.stop() == 0
        assert "5a5a" not in service.errors.read_text()
        assert "a5a5" not in service.errors.read_text()


def test_an_interrupt_tells_those_too_that_sleep(home, port):
    configure(home, port, HANDED)
    with serving(home, port) as (service, meters):
        assert service.stop() == 0
        service.start()
        service.wait_until_said("READY")
        assert service.fact("restored")["associations"] == COUNT
        assert service.stop("SIGINT") == 0
        meters._take_in()
        assert sum(meters.causes.values()) == COUNT


def test_a_file_that_cannot_be_written_has_the_devices_told(home, port):
    configure(home, port, HANDED.replace('"handoff"', '"none/handoff"'))
    with serving(home, port) as (service, meters):
        assert service.stop() == 0
        error = service.fact("handoff_failed")["error"]
        assert error.startswith("none/handoff: cannot be written: no such file or directory; remedy: ")
        assert len(service.facts("disconnected")) == COUNT
        meters._take_in()
        assert sum(meters.causes.values()) == COUNT


# --- in a database ---------------------------------------------------------------------------------

DATABASE = '[state]\nstore = "sqlite"\nfile = "state/a.db"\nkey_file = "state.key"\nadmin_socket = "admin"\n'


@pytest.fixture
def database(home):
    (home / "state").mkdir(mode=0o700)


def test_a_database_keeps_everything_through_kills_and_a_stop(home, port, database, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_STORED", 0)
    configure(home, port, DATABASE)
    with serving(home, port) as (service, meters):
        service.wait_until(
            lambda: ask(home / "admin", "status", seconds=30)["state_rows_saved"] >= COUNT,
            "all associations are in the database",
        )
        for signal, status in (("SIGKILL", -9), ("SIGKILL", -9), ("SIGTERM", 0)):
            assert service.stop(signal) == status
            handed = [(fact["associations"], fact["to"]) for fact in service.facts("handed_over")]
            assert handed == ([] if status else [(COUNT, "state/a.db")])
            service.start()
            service.wait_until_said("READY")
            restored = service.fact("restored")
            assert (restored["associations"], restored["refused"]) == (COUNT, 0)
            meters.hear_all()
            assert service.facts("connected") == []
        assert meters.causes == {}
        assert service.stop() == 0


def test_a_database_that_is_configured_later_gets_what_was_handed_over_without_a_key(home, port, database):
    configure(home, port)
    with serving(home, port) as (service, meters):
        configure(home, port, DATABASE)
        for signal, status, where in (
            ("SIGTERM", 0, WHERE),
            ("SIGTERM", 0, "state/a.db"),
            ("SIGKILL", -9, "state/a.db"),
        ):
            meters.settle()  # what a process has read when it is killed is lost
            assert service.stop(signal) == status
            goes_on(service, meters, where=where)
        assert STORED_ASSOCIATIONS not in [name for name, _ in service.stored]
        assert service.stop() == 0


def test_an_interrupt_leaves_nothing_in_the_database(home, port, database):
    configure(home, port, DATABASE)
    with serving(home, port) as (service, meters):
        assert service.stop("SIGINT") == 0
        meters._take_in()
        assert sum(meters.causes.values()) == COUNT
        service.start()
        service.wait_until_said("READY")
        assert service.facts("restored") == []
        assert service.stop() == 0


def test_a_database_that_is_none_keeps_the_service_from_starting(home, port, database):
    (home / "state" / "a.db").touch(mode=0o600)
    (home / "state" / "a.db").write_text("something else" * 1000)
    configure(home, port, DATABASE)
    with managed(home) as service:
        service.start()
        assert service.wait() == 1
        (fact,) = service.facts()
    assert fact["event"] == "state_failed"
    assert fact["error"].startswith("state/a.db: ")


# --- on request ------------------------------------------------------------------------------------


def test_the_command_has_the_service_hand_over_and_end(home, port):
    configure(home, port, HANDED)
    with serving(home, port) as (service, meters):
        status = ask(home / "admin", "status", seconds=30)
        assert (status["associations"], status["frozen"], status["handshakes"]) == (COUNT, 0, 0)
        done = run(home, "handoff")
        assert (done.returncode, done.stdout, done.stderr) == (
            0,
            f"handed over {COUNT} associations to handoff\n",
            "",
        )
        assert service.wait() == 0
        assert service.fact("stopping")["command"] == "handoff"
        assert not (home / "admin").exists()
        goes_on(service, meters, where="handoff")
        status = ask(home / "admin", "status", seconds=30)
        assert status["associations"] + status["frozen"] == COUNT
        assert service.stop() == 0


def test_where_there_is_nothing_to_hand_over_to_the_service_says_so_and_goes_on(home, port, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_STORED", 0)
    configure(home, port, '[state]\nadmin_socket = "admin"\n')
    with serving(home, port) as (service, meters):
        done = run(home, "handoff")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "dtls-endpoint handoff: there is nothing to hand over to; remedy: state.handoff_file, or "
            "FileDescriptorStoreMax= in the unit\n"
        )
        meters.hear_all()
        assert meters.causes == {}
        assert service.stop() == 0


def test_without_a_running_service_the_command_fails_and_without_a_socket_it_is_wrong_use(home, port):
    configure(home, port, HANDED)
    done = run(home, "handoff")
    assert (done.returncode, done.stderr) == (
        1,
        "dtls-endpoint handoff: admin: no service answers there; is it running?\n",
    )
    configure(home, port)
    done = run(home, "handoff")
    assert (done.returncode, done.stderr) == (
        2,
        'endpoint.toml: state.admin_socket: missing; remedy: add  admin_socket = "admin.sock"\n',
    )


def test_an_admin_socket_that_is_taken_keeps_the_service_from_starting(home, port):
    (home / "admin").write_text("something")
    configure(home, port, HANDED)
    with managed(home) as service:
        service.start()
        assert service.wait() == 1
        (fact,) = service.facts()
    assert (fact["event"], fact["error"]) == (
        "admin_failed",
        "admin: is there already, and no socket; remedy: name another",
    )


# --- the first lines -------------------------------------------------------------------------------------


def test_mistakes_in_the_key_file_are_told_with_all_others_and_without_the_key(home):
    (home / "state.key").write_text("5a" * 31)
    (home / "psk.txt").write_text("nonsense\n")
    configure(home, 5684, HANDED)
    for command in ("check", "serve"):
        done = run(home, command)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            "psk.txt:1: not identity:hexkey (there is no colon)",
            "state.key:1: 62 hex digits, not 64; remedy: openssl rand -hex 32",
        ]


def test_the_log_of_a_start_begins_with_listening_and_names_what_was_restored(home, port):
    configure(home, port, HANDED)
    with serving(home, port) as (service, _):
        service.stop()
        service.start()
        service.wait_until_said("READY")
        assert [fact["event"] for fact in service.facts()] == ["listening", "keys_loaded", "restored"]
        assert service.stop() == 0
        lines = service.errors.read_text().splitlines()
        assert all(json.loads(line) for line in lines)
