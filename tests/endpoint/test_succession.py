"""One run of the service after the other, with an engine that only knows blobs."""

import os
import socket
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from endpoint import supervised
from endpoint.clock import ClockSources
from endpoint.handoff import HandoffError
from endpoint.handoff_places import STORED_ASSOCIATIONS
from endpoint.listening import STORED_SOCKET, Listeners
from endpoint.sockets import UdpSocket
from endpoint.state.exclusive import StateFileError
from endpoint.state.sqlite import AssociationFile
from endpoint.succession import Succession
from endpoint.systemd import PROBE, Descriptor, Notifier, Supervision
from endpoint.tables.state import State
from sansdtls import SnapshotError
from tests.program import supervisor
from tests.program.supervisor import Supervisor

KEY = bytes(range(32))
WHERE = "the service manager"


class FakeEngine:
    """Takes blobs and gives them back; what begins with "bad" it refuses."""

    def __init__(self, *blobs, sockets=()):
        self.blobs = list(blobs)
        self.sockets = sockets
        self.unsealed = []
        self.on_checkpoint_due = None

    def restore(self, blob, *, saved=False, unsealed=False):
        assert not saved
        self.unsealed.append(unsealed)
        if blob.startswith(b"bad"):
            raise SnapshotError(blob.decode())
        self.blobs.append(blob)

    def freeze_all(self):
        while self.blobs:
            yield self.blobs.pop(0)


class FakeLog:
    def __init__(self):
        self.facts = []

    def info(self, event, **facts):
        self.facts.append((event, facts))

    warning = info


@attrs.define
class Runs:
    """The runs of one service, one after the other."""

    state: State
    keys: tuple[bytes, ...] = (KEY,)
    manager: Supervisor | None = None
    time: float = 1000.0
    """Seconds since the boot."""
    log: Any = attrs.field(factory=FakeLog)

    def succession(self, descriptors=None):
        """The start of a run."""
        self.log.facts.clear()
        supervision = Supervision()
        if self.manager is not None:
            stored = [Descriptor(os.dup(number), name) for name, number in self.manager.stored]
            supervision = Supervision(
                descriptors=tuple(stored if descriptors is None else descriptors),
                notifier=Notifier(self.manager._notified.getsockname()),
            )
        sources = ClockSources(
            progress=lambda: 5.0, boottime=lambda: self.time, wall=lambda: 0.0, boot_id=lambda: "b"
        )
        return Succession(self.state, keys=self.keys, supervision=supervision, log=self.log, sources=sources)

    def started(self, engine, listeners=None):
        """A run that serves."""
        one = self.succession()
        one.restore(engine)
        one.prepare(listeners or Listeners(sockets=(), bound_here=()))
        self.settle()
        return one

    def settle(self):
        """Wait until the manager has done what it was told."""
        if self.manager is not None:
            assert Notifier(self.manager._notified.getsockname()).barrier()

    def whole(self, *blobs, listeners=None):
        """A run from start to end, which makes these associations besides those that it takes over."""
        engine = FakeEngine(sockets=() if listeners is None else listeners.sockets)
        one = self.started(engine, listeners)
        restored = list(engine.blobs)
        engine.blobs += blobs
        one.begin(len(engine.blobs))
        assert handed_over(one, engine) == len(restored) + len(blobs)
        assert engine.blobs == []
        one.close()
        return restored


@pytest.fixture
def state(tmp_path):
    return State(handoff_file=tmp_path / "handoff", key_file=tmp_path / "key")


@pytest.fixture
def manager(tmp_path):
    with Supervisor(cwd=tmp_path) as one:
        yield one


def bound():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return UdpSocket(sock)


def handed_over(succession, engine):
    return trio.run(partial(succession.hand_over, engine, associations=len(engine.blobs), seconds=1.0))


# --- in a file -------------------------------------------------------------------------------------


def test_every_run_takes_over_from_the_one_before(state):
    runs = Runs(state)
    assert runs.whole(b"one", b"two") == []
    assert runs.whole(b"three") == [b"one", b"two"]
    assert runs.log.facts == [
        ("restored", {"associations": 2, "refused": 0, "from": str(state.handoff_file)})
    ]
    assert runs.whole() == [b"one", b"two", b"three"]


def test_the_clock_goes_on_and_the_order_of_sockets_is_known(state):
    runs = Runs(state)
    with bound() as first, bound() as second:
        runs.whole(b"one", listeners=Listeners(sockets=(first, second), bound_here=()))
        runs.time += 60
        with_facts = runs.succession()
        assert with_facts.listeners == (first.local_text, second.local_text)
        assert with_facts.clock() == 65.0
        with_facts.close()


def test_a_start_that_fails_before_it_serves_uses_nothing_up(state):
    runs = Runs(state)
    runs.whole(b"one")
    runs.succession().close()  # the port was taken
    assert runs.whole() == [b"one"]


def test_a_crash_in_the_middle_of_restoring_loses_and_never_doubles(state):
    runs = Runs(state)
    runs.whole(b"one", b"two")
    engine = FakeEngine()
    one = runs.succession()

    def crash(blob, **_):
        raise KeyboardInterrupt

    engine.restore = crash  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        one.restore(engine)
    assert runs.whole() == []


def test_what_cannot_be_used_is_told_and_the_service_goes_on_without(state):
    runs = Runs(state)
    runs.whole(b"one")
    runs.keys = (bytes(32),)
    assert state.handoff_file is not None
    content = state.handoff_file.read_bytes()
    one = runs.started(FakeEngine())
    ((event, facts),) = runs.log.facts
    assert event == "associations_not_restored"
    assert facts["reason"].startswith(f"{state.handoff_file}: was written under another key")
    assert state.handoff_file.read_bytes() == content
    assert one.clock() == 5.0
    one.close()


def test_associations_that_are_refused_are_counted_with_the_first_reason(state):
    runs = Runs(state)
    runs.whole(b"bad key", b"one", b"bad luck")
    assert runs.whole() == [b"one"]
    assert runs.log.facts == [
        (
            "restored",
            {"associations": 1, "refused": 2, "first_reason": "bad key", "from": str(state.handoff_file)},
        )
    ]


def test_what_is_too_old_is_not_taken_back(state):
    runs = Runs(attrs.evolve(state, handoff_max_age=100.0))
    runs.whole(b"one")
    runs.time += 101
    one = runs.started(FakeEngine())
    ((event, facts),) = runs.log.facts
    assert (event, facts["reason"]) == (
        "associations_not_restored",
        (
            f"{state.handoff_file}: is 101 s old, more than state.handoff_max_age; remedy: remove it, the devices "
            "handshake again"
        ),
    )
    one.close()
    runs.time -= 1
    assert runs.whole() == [b"one"]
    runs.state = attrs.evolve(state, handoff_max_age=None)
    runs.time += 1e9
    assert runs.whole() == [b"one"]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_frozen(state, tmp_path):
    runs = Runs(attrs.evolve(state, handoff_file=tmp_path / "none" / "handoff"))
    one = runs.started(FakeEngine())
    with pytest.raises(HandoffError, match="cannot be written: no such file or directory"):
        one.begin(1)
    one.close()


def test_a_disk_that_fails_in_the_middle_is_told(state, monkeypatch):
    runs = Runs(state)
    one = runs.started(FakeEngine())
    one.begin(1)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(HandoffError, match="cannot be written: input/output error"):
        handed_over(one, FakeEngine(b"one"))
    one.close()
    assert state.handoff_file is not None
    assert list(state.handoff_file.parent.iterdir()) == []


# --- in the manager's memory -----------------------------------------------------------------------


def test_without_a_manager_or_a_file_there_is_nothing_to_hand_over_to():
    runs = Runs(State(), keys=())
    one = runs.started(FakeEngine())
    assert one.to is None
    with pytest.raises(HandoffError) as caught:
        one.begin(1)
    assert str(caught.value) == (
        "there is nothing to hand over to; remedy: state.handoff_file, or FileDescriptorStoreMax= in the unit"
    )
    one.close()


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_a_manager_that_keeps_descriptors_is_handed_everything(manager, keys):
    runs = Runs(State(), keys=keys, manager=manager)
    assert runs.whole(b"one") == []
    assert [name for name, _ in manager.stored] == [STORED_ASSOCIATIONS]
    assert runs.whole(b"two") == [b"one"]
    assert runs.log.facts == [("restored", {"associations": 1, "refused": 0, "from": WHERE})]
    assert runs.whole() == [b"one", b"two"]
    assert [name for name, _ in manager.stored] == [STORED_ASSOCIATIONS]
    one = runs.started(FakeEngine())
    assert one.to == WHERE
    one.close()


def test_a_manager_that_keeps_nothing_is_not_relied_on(manager, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_STORED", 0)
    one = Runs(State(), manager=manager).started(FakeEngine())
    assert one.to is None
    one.close()


def test_a_process_that_is_killed_leaves_nothing_and_nothing_twice(manager):
    runs = Runs(State(), manager=manager)
    runs.whole(b"one")
    killed = runs.started(FakeEngine())
    assert runs.whole(b"two") == []
    assert runs.log.facts == []
    assert runs.whole() == [b"two"]
    killed.close()


def test_memory_that_cannot_be_used_is_told_and_used_again(manager):
    runs = Runs(State(), keys=(), manager=manager)
    runs.whole(b"one")
    ((_, number),) = manager.stored
    os.pwrite(number, b"X", 40)
    assert runs.whole(b"two") == []
    ((event, facts),) = runs.log.facts
    assert event == "associations_not_restored"
    assert facts["reason"].startswith(f"{WHERE}: is damaged")
    assert runs.whole() == [b"two"]


def test_when_a_file_is_configured_what_the_manager_has_is_taken_and_its_copy_given_up(manager, state):
    runs = Runs(State(), manager=manager)
    runs.whole(b"one")
    runs.state = state
    assert runs.whole(b"two") == [b"one"]
    assert manager.stored == []
    assert runs.whole() == [b"one", b"two"]


def test_sockets_that_were_bound_here_are_kept_and_those_given_up_are_forgotten(manager):
    runs = Runs(State(), manager=manager)
    with bound() as ours, bound() as managers, bound() as another:
        runs.whole(listeners=Listeners(sockets=(ours, managers), bound_here=(ours,)))
        assert [name for name, _ in manager.stored] == [STORED_ASSOCIATIONS, STORED_SOCKET]
        found = runs.succession()
        ((handed),) = found.sockets
        assert handed.ours
        assert handed.udp.local_text == ours.local_text
        found.prepare(Listeners(sockets=(another,), bound_here=(another,), given_up=(handed.udp.local_text,)))
        runs.settle()
        handed.udp.close()
        names = dict(manager.stored)
        assert len(manager.stored) == len(names) == 2
        assert os.path.sameopenfile(names[STORED_SOCKET], another.fileno())
        found.close()


def test_what_a_probe_or_another_version_left_is_closed_and_a_second_memory_too(manager):
    memory, second, strange = (os.memfd_create("x") for _ in range(3))
    Notifier(manager._notified.getsockname()).store("sansdtls-future", strange)
    reading, writing = os.pipe()
    os.close(reading)
    runs = Runs(State(), manager=manager)
    one = runs.succession(
        [
            Descriptor(writing, PROBE),
            Descriptor(memory, STORED_ASSOCIATIONS),
            Descriptor(second, STORED_ASSOCIATIONS),
            Descriptor(strange, "sansdtls-future"),
        ]
    )
    runs.settle()
    assert manager.stored == []
    for number in (writing, second, strange):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    assert one.to == WHERE
    assert one.sockets == ()
    one.close()


# --- in a database ---------------------------------------------------------------------------------


@attrs.frozen
class FakeSaved:
    handle: bytes
    blob: bytes


@attrs.frozen
class FakeCheckpoint:
    saved: tuple[FakeSaved, ...]
    removed: tuple[bytes, ...] = ()


class CheckpointingEngine(FakeEngine):
    """Its first checkpoint has everything."""

    checkpoint_due = False

    def __init__(self, *blobs):
        super().__init__(*blobs)
        self.came_back = []
        self.confirmed = []

    def restore(self, blob, *, saved=False, unsealed=False):
        assert not unsealed
        self.came_back.append((blob, saved))
        if blob.startswith(b"bad"):
            raise SnapshotError(blob.decode())

    def checkpoint(self, *, limit):
        saved = tuple(FakeSaved(blob[:4], blob) for blob in self.blobs)
        self.blobs.clear()
        return FakeCheckpoint(saved)

    def confirm(self, checkpoint):
        self.confirmed.append(checkpoint)


@pytest.fixture
def database(tmp_path):
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return State(store="sqlite", file=directory / "a.db", key_file=tmp_path / "key")


def kept(succession, engine):
    """The end of a run with a database."""
    troubles: list[object] = []
    count = len(engine.blobs)

    async def end():
        succession.keep(engine, lambda *what, **facts: troubles.append((what, facts)))
        succession.begin(count)
        return await succession.hand_over(engine, associations=count, seconds=60.0)

    assert trio.run(end) == count
    assert troubles == []
    assert succession.statistics()["state_rows_saved"] == count


def test_a_database_has_everything_all_along_and_says_how_often_it_was_opened(database):
    runs = Runs(database)
    one = runs.succession()
    assert (one.generation, one.durable, one.to) == (1, True, str(database.file))
    assert one.statistics() == {}
    kept(one, CheckpointingEngine(b"one", b"two", b"bad one"))
    one.close()
    runs.time += 60
    engine = CheckpointingEngine()
    one = runs.started(engine)
    assert one.generation == 2
    assert one.clock() == 65.0
    assert sorted(engine.came_back) == [(b"bad one", True), (b"one", True), (b"two", True)]
    assert runs.log.facts == [
        (
            "restored",
            {"associations": 2, "refused": 1, "first_reason": "bad one", "from": str(database.file)},
        )
    ]
    one.close()


def test_a_database_takes_over_what_was_handed_over_before_there_was_one(database, manager):
    runs = Runs(State(), manager=manager)
    runs.whole(b"one")
    runs.state = database
    engine = CheckpointingEngine()
    one = runs.started(engine)
    assert engine.came_back == [(b"one", False)]
    assert manager.stored == []
    one.close()


def test_a_database_that_is_none_keeps_the_service_from_starting(database):
    database.file.write_text("something else")
    database.file.chmod(0o600)
    with pytest.raises(StateFileError):
        Runs(database).succession()


def test_a_database_that_takes_nothing_in_time_is_told(database, monkeypatch):
    one = Runs(database).succession()

    def full(*_, **__):
        raise StateFileError(database.file, "disk full", code="FULL")

    monkeypatch.setattr(AssociationFile, "apply", full)
    engine = CheckpointingEngine(b"one")

    async def end():
        one.keep(engine, lambda *_, **__: None)
        with pytest.raises(HandoffError) as caught:
            await one.hand_over(engine, associations=1, seconds=1.0)
        assert str(caught.value) == (
            f"{database.file}: the last changes were not written within 1 s; those written before are used"
        )

    trio.run(end, clock=trio.testing.MockClock(autojump_threshold=0.05))
    one.close()


def test_a_manager_is_asked_for_more_time_while_associations_are_read_and_written(manager, monkeypatch):
    monkeypatch.setattr(supervised, "ASK_EVERY", 0.0)
    monkeypatch.setattr(supervised, "LOOK_EVERY", 1)
    runs = Runs(State(), manager=manager)
    runs.whole(b"one", b"two")
    runs.settle()
    asked = [message for message in manager.messages if "EXTEND_TIMEOUT_USEC" in message]
    assert len(asked) == 2
    assert runs.whole() == [b"one", b"two"]
    runs.settle()
    asked = [message for message in manager.messages if "EXTEND_TIMEOUT_USEC" in message]
    assert len(asked) == 2 + 2 + 2
