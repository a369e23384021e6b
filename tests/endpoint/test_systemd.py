"""The service manager's protocols: what is taken from the environment, what is said, what is kept."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

from endpoint.systemd import (
    FIRST_DESCRIPTOR,
    MAX_DESCRIPTORS,
    PROBE,
    UNNAMED,
    Descriptor,
    Notifier,
    SupervisionError,
    take_descriptors,
)
from tests.program import supervisor
from tests.program.supervisor import Supervisor

PID = 4711


@pytest.fixture
def handed_down(monkeypatch):
    """Two open descriptors with numbers that follow each other, as if they were handed down."""
    start = fcntl.fcntl(0, fcntl.F_DUPFD, 600)
    second = fcntl.fcntl(0, fcntl.F_DUPFD, start + 1)
    assert second == start + 1
    monkeypatch.setattr("endpoint.systemd.FIRST_DESCRIPTOR", start)
    yield start
    for number in (start, second):
        os.close(number)


@pytest.fixture
def manager(tmp_path):
    """A service manager without a service."""
    with Supervisor(cwd=tmp_path) as one:
        yield one


def notifier_of(manager):
    return Notifier(manager._notified.getsockname())


def said(manager, notifier):
    assert notifier.barrier()
    return [message for message in manager.messages if "BARRIER" not in message]


# --- what is handed down ---------------------------------------------------------------------------


def test_descriptors_are_taken_with_their_names_and_the_variables_removed(handed_down):
    environment = {"LISTEN_FDS": "2", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "dtls:", "OTHER": "x"}
    taken = take_descriptors(environment, pid=PID)
    assert taken == (Descriptor(handed_down, "dtls"), Descriptor(handed_down + 1, ""))
    assert environment == {"OTHER": "x"}
    assert all(fcntl.fcntl(one.number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for one in taken)
    assert str(taken[0]) == f"descriptor {handed_down} (dtls)"


def test_names_are_optional(handed_down):
    environment = {"LISTEN_FDS": "2", "LISTEN_PID": str(PID)}
    assert [one.name for one in take_descriptors(environment, pid=PID)] == [UNNAMED, UNNAMED]


def test_descriptors_start_after_the_standard_ones():
    assert FIRST_DESCRIPTOR == 3


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "4711"}, {"LISTEN_FDS": "0", "LISTEN_PID": "4711"}],
)
def test_nothing_is_taken_where_nothing_was_handed_down(environment):
    assert take_descriptors(environment, pid=PID) == ()
    assert environment == {}


def test_what_is_for_another_process_is_left_to_it(handed_down):
    environment = {"LISTEN_FDS": "2", "LISTEN_PID": str(PID + 1), "LISTEN_FDNAMES": "a:b"}
    assert take_descriptors(environment, pid=PID) == ()
    assert environment == {}
    assert not fcntl.fcntl(handed_down, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_by_default_it_is_this_process():
    assert take_descriptors({"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())}) == ()
    with pytest.raises(SupervisionError):
        take_descriptors({"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LISTEN_PID": "me"}, 'LISTEN_PID: "me" is not a process id'),
        ({"LISTEN_PID": "4711\n"}, 'LISTEN_PID: "4711\\x0a" is not a process id'),
        ({"LISTEN_FDS": "-1"}, 'LISTEN_FDS: "-1" is not a number of descriptors, 0 to 1024'),
        (
            {"LISTEN_FDS": str(MAX_DESCRIPTORS + 1)},
            'LISTEN_FDS: "1025" is not a number of descriptors, 0 to 1024',
        ),
        ({"LISTEN_FDS": "²"}, 'LISTEN_FDS: "²" is not a number of descriptors, 0 to 1024'),
        ({"LISTEN_FDNAMES": "a:b:c"}, "LISTEN_FDNAMES: 3 names for 2 descriptors"),
        ({"LISTEN_FDNAMES": ""}, "LISTEN_FDNAMES: 0 names for 2 descriptors"),
        (
            {"LISTEN_FDS": "1000", "LISTEN_FDNAMES": ":".join(["x"] * 1000)},
            "is not open; remedy: LISTEN_FDS is set by the service manager only",
        ),
    ],
)
def test_junk_is_refused_and_the_variable_named(handed_down, changes, message):
    environment = {"LISTEN_FDS": "2", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "a:b", **changes}
    with pytest.raises(SupervisionError) as caught:
        take_descriptors(environment, pid=PID)
    assert str(caught.value).endswith(message)
    assert environment == {}


# --- what is said ----------------------------------------------------------------------------------


def test_without_a_manager_nothing_happens():
    environment: dict[str, str] = {}
    notifier = Notifier.taken_from(environment)
    assert not notifier
    assert not notifier.ready("serving")
    assert not notifier.store("state", 0)
    assert not notifier.barrier()
    assert not notifier.keeps_descriptors()
    assert notifier.failures == 0


def test_readiness_and_the_end_are_told(manager):
    environment = {"NOTIFY_SOCKET": manager._notified.getsockname()}
    notifier = Notifier.taken_from(environment)
    assert environment == {}
    assert notifier
    assert notifier.ready("serving 3 associations")
    assert notifier.stopping("two\nlines")
    assert said(manager, notifier) == [
        {"READY": "1", "STATUS": "serving 3 associations"},
        {"STOPPING": "1", "STATUS": "two lines"},
    ]


def test_an_abstract_name_is_reached_too():
    name = f"sansdtls-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        assert Notifier("@" + name).tell("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["relative", "", "@", "/" + "x" * 107, "vsock:2:1", "/\0"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(SupervisionError, match=r"^NOTIFY_SOCKET: .* is neither a path nor @ and a name$"):
        Notifier.taken_from({"NOTIFY_SOCKET": address})


def test_a_manager_that_is_gone_is_counted_and_raises_nothing(tmp_path):
    notifier = Notifier(str(tmp_path / "gone"))
    assert not notifier.ready("serving")
    assert not notifier.barrier()
    assert not notifier.keeps_descriptors()
    assert notifier.failures >= 3


def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("endpoint.systemd.SEND_TIMEOUT", 0.01)
    path = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = Notifier(path)
        while notifier.tell("STATUS=again"):
            pass
        assert notifier.failures == 1
        assert not notifier.barrier(0.01)


# --- what is kept ----------------------------------------------------------------------------------


def test_descriptors_are_stored_under_a_name_and_forgotten(manager):
    notifier = notifier_of(manager)
    memory = os.memfd_create("state")
    try:
        assert notifier.store("state", memory)
        assert notifier.barrier()
        ((name, kept),) = manager.stored
        assert name == "state"
        assert os.path.sameopenfile(kept, memory)
        assert manager.messages[0] == {"FDSTORE": "1", "FDNAME": "state", "FDPOLL": "0"}
        assert notifier.forget("state")
        assert notifier.barrier()
        assert manager.stored == []
    finally:
        os.close(memory)


def test_a_manager_that_keeps_descriptors_is_known_and_nothing_is_left_there(manager):
    notifier = notifier_of(manager)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    assert notifier.keeps_descriptors()
    assert notifier.barrier()
    assert manager.stored == []
    assert {"FDSTOREREMOVE": "1", "FDNAME": PROBE} in manager.messages
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_manager_that_drops_them_silently_is_known_too(manager, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_STORED", 0)
    assert not notifier_of(manager).keeps_descriptors()


def test_a_barrier_that_is_never_lifted_is_given_up(tmp_path):
    path = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        assert not Notifier(path).barrier(0.01)
