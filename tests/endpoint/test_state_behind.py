"""Writing behind: what is confirmed is on the disk, what fails is tried again, nothing is overtaken."""

import threading
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from endpoint.state.behind import FIRST_PAUSE, LONGEST_PAUSE, PORTION, WriteBehind
from endpoint.state.exclusive import StateFileError
from endpoint.state.sqlite import AssociationFile
from tests.endpoint.numbering import Checkpoint, Ledger, NumberingServer, Saved, run_here

STATE = Path("state.db")


@pytest.fixture
def virtual(autojump_clock, monkeypatch):
    """Virtual time, in which a write takes none: a jumping clock does not wait for threads."""
    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
    return autojump_clock


@attrs.define
class Source:
    """A server that changes when the test says so."""

    changes: dict = attrs.field(factory=dict)
    checkpoint_due: bool = False
    taken: int = 0
    confirmed: list = attrs.field(factory=list)
    at: list = attrs.field(factory=list)
    """When checkpoints were confirmed."""

    def change(self, **rows):
        self.changes |= {name.encode(): value for name, value in rows.items()}

    def checkpoint(self, *, limit):
        self.taken += 1
        changes = [(handle, self.changes.pop(handle)) for handle in list(self.changes)[:limit]]
        checkpoint = Checkpoint(
            saved=[Saved(handle, blob) for handle, blob in changes if blob is not None],
            removed=[handle for handle, blob in changes if blob is None],
        )
        self.checkpoint_due = False
        return checkpoint

    def confirm(self, checkpoint):
        self.confirmed.append(checkpoint)
        self.at.append(trio.current_time())


class File:
    """What a disk holds. ``script`` says what becomes of each write: an error's code, or ``None``.

    ``+`` before a code: the error came after all was written.
    """

    def __init__(self, *script):
        self.rows = {}
        self.anchors = []
        self.script = list(script)
        self.attempts = 0

    def apply(self, saved, removed, *, anchor):
        self.attempts += 1
        outcome = self.script.pop(0) if self.script else None
        if outcome and outcome[0] != "+":
            raise StateFileError(STATE, "is full", code=outcome)
        for handle in removed:
            self.rows.pop(handle, None)
        self.rows.update(saved)
        self.anchors.append(anchor)
        if outcome:
            raise StateFileError(STATE, "is full", code=outcome)


@attrs.define
class Told:
    facts: list = attrs.field(factory=list)

    def __call__(self, what, **facts):
        self.facts.append((what, facts))


def writer(source, file, *, interval=1.0, told=None, anchor=lambda: b"anchor"):
    return WriteBehind(source, file, interval=interval, anchor=anchor, trouble=told or Told())


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_the_interval_is_more_than_nothing(interval):
    with pytest.raises(ValueError, match="interval"):
        writer(Source(), File(), interval=interval)


async def test_changes_are_on_the_disk_and_confirmed_once_an_interval(nursery, virtual):
    source, file = Source(), File()
    nursery.start_soon(writer(source, file, interval=5.0).run)
    start = trio.current_time()
    source.change(c1=b"one", c2=b"two")
    await trio.sleep(7)
    assert file.rows == {b"c1": b"one", b"c2": b"two"}
    assert [len(checkpoint.saved) for checkpoint in source.confirmed] == [2]
    source.change(c1=b"newer", c2=None)
    await trio.sleep(5)
    assert file.rows == {b"c1": b"newer"}
    assert source.at == [start + 5, start + 10]


async def test_a_checkpoint_that_is_due_comes_at_once(nursery, virtual):
    source, file = Source(), File()
    behind = writer(source, file, interval=1000.0)
    nursery.start_soon(behind.run)
    await trio.testing.wait_all_tasks_blocked()
    start = trio.current_time()
    source.change(c1=b"one")
    behind.hurry()
    while not source.confirmed:
        await trio.lowlevel.checkpoint()
    assert trio.current_time() == start
    # What becomes due while nobody says so is noticed after the interval.
    source.change(c2=b"two")
    source.checkpoint_due = True
    await trio.sleep(1001)
    assert source.at == [start, start + 1000]


async def test_what_is_due_before_the_start_is_written_at_the_start(nursery, virtual):
    source = Source(checkpoint_due=True)
    source.change(c1=b"one")
    nursery.start_soon(writer(source, File(), interval=1000.0).run)
    start = trio.current_time()
    while not source.confirmed:
        await trio.lowlevel.checkpoint()
    assert trio.current_time() == start


async def test_nothing_to_write_is_not_written_and_does_not_keep_it_busy(nursery, virtual):
    class AlwaysDue(Source):
        def checkpoint(self, *, limit):
            return Checkpoint()

    file = File()
    behind = writer(AlwaysDue(checkpoint_due=True), file)
    nursery.start_soon(behind.run)
    await trio.sleep(100)
    assert file.attempts == 0
    assert behind.statistics()["state_checkpoints"] == 0


@pytest.mark.parametrize("changes", [PORTION - 1, PORTION, 3 * PORTION, 3 * PORTION + 1])
async def test_many_changes_are_taken_in_portions_without_a_pause(nursery, virtual, changes):
    source, file = Source(), File()
    nursery.start_soon(writer(source, file).run)
    source.changes = {b"c%d" % n: (b"new" if n % 2 else None) for n in range(changes)}
    start = trio.current_time()
    await trio.sleep(1.5)
    assert file.rows.keys() == {b"c%d" % n for n in range(1, changes, 2)}
    assert source.at == [start + 1] * -(-changes // PORTION)
    sizes = [len(checkpoint.saved) + len(checkpoint.removed) for checkpoint in source.confirmed]
    assert sum(sizes) == changes
    assert set(sizes[:-1]) <= {PORTION}


async def test_flush_takes_all_portions(virtual):
    source, file = Source(), File("SQLITE_FULL", None, "SQLITE_FULL")
    source.changes = {b"c%d" % n: b"new" for n in range(3 * PORTION)}
    assert await writer(source, file).flush(1.0)
    assert len(file.rows) == 3 * PORTION
    assert source.changes == {}


async def test_the_anchor_is_as_of_the_write(nursery, virtual):
    file = File("SQLITE_FULL")
    source = Source()
    source.change(c1=b"one")
    behind = writer(source, file, anchor=lambda: b"%d" % trio.current_time())
    start = trio.current_time()
    nursery.start_soon(behind.run)
    await trio.sleep(10)
    assert file.anchors == [b"%d" % (start + 2)]


async def test_a_failed_checkpoint_is_confirmed_by_nobody_and_tried_again_until_it_is_written(
    nursery, virtual
):
    source, file, told = Source(), File(*["SQLITE_FULL"] * 8), Told()
    nursery.start_soon(writer(source, file, told=told).run)
    start = trio.current_time()
    source.change(c1=b"one", c2=b"two")
    await trio.sleep(2)
    source.change(c1=b"newer", c3=b"three")
    await trio.sleep(60)
    assert (source.confirmed, file.rows, source.taken) == ([], {}, 1)
    await trio.sleep(90)
    # The first, and at once the one that waited for it.
    assert file.rows == {b"c1": b"newer", b"c2": b"two", b"c3": b"three"}
    assert [len(checkpoint.saved) for checkpoint in source.confirmed] == [2, 2]
    pauses = [FIRST_PAUSE, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert source.at == [start + 1 + sum(pauses), start + 1 + sum(pauses) + 1]
    assert [what for what, _ in told.facts] == ["state not saved", "state saved again"]
    assert told.facts[0][1]["error"] == "SQLITE_FULL"
    assert told.facts[0][1]["reason"] == "state.db: is full"
    assert told.facts[1][1] == {"failures": 8}


async def test_every_kind_of_error_is_told_once_and_again_after_a_recovery(nursery, virtual):
    source, told = Source(), Told()
    file = File("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_IOERR", None, "SQLITE_FULL")
    start = trio.current_time()
    behind = writer(source, file, told=told)
    nursery.start_soon(behind.run)
    source.change(c1=b"one")
    await trio.sleep(3)
    assert behind.statistics()["state_failing"]
    await trio.sleep(60.5)
    source.change(c1=b"two")
    await trio.sleep(60)
    # After a recovery the pauses begin anew.
    assert source.at == [start + 1 + FIRST_PAUSE + 2 + 4 + 8, start + 64 + FIRST_PAUSE]
    assert [facts.get("error") for _, facts in told.facts] == [
        "SQLITE_FULL",
        "SQLITE_IOERR",
        None,
        "SQLITE_FULL",
        None,
    ]
    assert behind.statistics() == {
        "state_checkpoints": 2,
        "state_rows_saved": 2,
        "state_rows_removed": 0,
        "state_failures": 5,
        "state_failing": False,
    }


async def test_a_checkpoint_that_is_due_does_not_shorten_the_pause_after_an_error(nursery, virtual):
    source, file = Source(), File(*["SQLITE_FULL"] * 100)
    behind = writer(source, file)
    nursery.start_soon(behind.run)
    source.change(c1=b"one")
    for _ in range(100):
        source.checkpoint_due = True
        behind.hurry()
        await trio.sleep(1)
    assert file.attempts < 10


async def test_another_error_than_one_of_the_file_ends_it(virtual):
    class Broken(File):
        def apply(self, saved, removed, *, anchor):
            raise ZeroDivisionError

    source = Source()
    source.change(c1=b"one")
    with pytest.raises(ZeroDivisionError):
        await writer(source, Broken()).run()
    assert source.confirmed == []


# --- stopping ---


async def test_flush_writes_what_failed_before_and_what_came_since(nursery, virtual):
    source, file = Source(), File("SQLITE_FULL")
    behind = writer(source, file, interval=1.0)
    nursery.start_soon(behind.run)
    source.change(c1=b"one", c2=b"two")
    await trio.sleep(1.5)
    source.change(c1=b"newer")
    assert file.rows == {}
    assert await behind.flush(1.0)
    assert file.rows == {b"c1": b"newer", b"c2": b"two"}
    assert len(source.confirmed) == 2


async def test_flush_insists_until_its_deadline_and_says_when_it_failed(virtual):
    source, file = Source(), File(*["SQLITE_FULL"] * 5)
    behind = writer(source, file)
    source.change(c1=b"one")
    start = trio.current_time()
    assert not await behind.flush(0.35)
    assert trio.current_time() == start + 0.35
    assert (file.attempts, source.confirmed) == (4, [])
    assert await behind.flush(10)
    assert file.rows == {b"c1": b"one"}


async def test_flush_without_changes_still_keeps_the_time(virtual):
    file = File()
    assert await writer(Source(), file, anchor=lambda: b"now").flush(1.0)
    assert file.anchors == [b"now"]


class Slow(File):
    """A disk that takes until it is let go."""

    def __init__(self):
        super().__init__()
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def apply(self, saved, removed, *, anchor):
        self.begun.set()
        self.let_go.wait()
        super().apply(saved, removed, anchor=anchor)


async def until(event):
    """Wait for what a thread does; virtual time stands still."""
    while not event.is_set():
        await trio.lowlevel.checkpoint()


async def test_a_disk_that_hangs_holds_up_neither_flush_nor_cancelling(autojump_clock):
    source, file = Source(), Slow()
    behind = writer(source, file, interval=1.0)
    source.change(c1=b"one")
    start = trio.current_time()
    try:
        with trio.move_on_at(start + 2):
            await behind.run()
        await until(file.begun)
        assert not await behind.flush(3.0)
        assert trio.current_time() == start + 5
        assert source.confirmed == []
    finally:
        file.let_go.set()


async def test_a_write_left_behind_never_lands_on_a_newer_one(monkeypatch):
    """Its row would bring back a number that was used since."""
    source, file = Source(checkpoint_due=True), File()
    behind = writer(source, file)
    held, waiting, release = threading.Event(), threading.Event(), threading.Event()
    real = behind._apply

    def late(attempt, checkpoint, anchor):
        if attempt == 1:
            # Begun, but not before the lock: the worst moment to lose the processor.
            held.set()
            release.wait()
        real(attempt, checkpoint, anchor)
        if attempt == 1:
            waiting.set()

    monkeypatch.setattr(behind, "_apply", late)
    source.change(c1=b"old")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(behind.run)
        await until(held)
        nursery.cancel_scope.cancel()
    source.change(c1=b"new")
    assert await behind.flush(10)
    assert file.rows == {b"c1": b"new"}
    release.set()
    await until(waiting)
    assert file.rows == {b"c1": b"new"}
    assert file.attempts == 2


async def test_a_write_waits_for_the_one_that_was_left_behind(nursery):
    """Else the older one, which has looked at its number already, could land later."""
    source, file = Source(), Slow()
    behind = writer(source, file, interval=0.001)
    source.change(c1=b"old")
    with trio.CancelScope() as scope:
        nursery.start_soon(cancel_when, file.begun, scope)
        await behind.run()
    file.begun.clear()
    source.change(c1=b"new")
    async with trio.open_nursery() as flushing:
        flushing.start_soon(behind.flush, 1000.0)
        await trio.testing.wait_all_tasks_blocked()
        assert behind._thread_lock.locked()
        assert not file.begun.is_set()
        file.let_go.set()
    assert file.rows == {b"c1": b"new"}
    # The one left behind, again the same, and the new one.
    assert file.attempts == 3


async def cancel_when(event, scope):
    await until(event)
    scope.cancel()


async def test_closing_the_file_while_a_thread_hangs_in_it_closes_it_when_the_thread_is_done(tmp_path):
    begun, release = threading.Event(), threading.Event()
    path = tmp_path / "state.db"
    file = AssociationFile(path)

    class Stuck(list):
        def __iter__(self):
            begun.set()
            release.wait()
            return super().__iter__()

    class StuckSource(Source):
        def checkpoint(self, *, limit):
            return Checkpoint([Saved(b"c1", b"one")], Stuck([b"c2"]))

    behind = writer(StuckSource(), file, interval=0.001)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(behind.run)
        await until(begun)
        nursery.cancel_scope.cancel()
    file.close()
    with pytest.raises(StateFileError, match="in use by another process"):
        AssociationFile(path)
    release.set()
    while True:
        try:
            with AssociationFile(path) as again:
                assert dict(again.rows()) == {b"c1": b"one"}
                break
        except StateFileError as error:
            assert error.code == "IN_USE"
            await trio.lowlevel.checkpoint()


# --- with the numbers ---


@given(
    st.lists(
        st.sampled_from(["write", "write many", "connect", "end", "wait", "hurry", "crash", "stop"]),
        max_size=60,
    ),
    st.lists(st.sampled_from([None, None, "SQLITE_FULL", "+SQLITE_IOERR"]), max_size=20),
)
def test_no_number_is_used_twice_whatever_the_disk_does(steps, script):
    ledger, disk = Ledger(), File(*script)
    generation = 0

    async def life():
        nonlocal generation
        generation += 1
        server = NumberingServer(ledger, generation, disk.rows.items())
        behind = writer(server, disk, interval=1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behind.run)
            while steps:
                step = steps.pop()
                handle = b"c%d" % (len(steps) % 3)
                if step == "connect":
                    server.connect(handle)
                elif step in {"write", "write many"} and handle in server.live:
                    for _ in range(1 if step == "write" else 12):
                        server.write(handle)
                elif step == "end" and handle in server.live:
                    server.end(handle)
                elif step == "hurry":
                    behind.hurry()
                    await trio.testing.wait_all_tasks_blocked()
                elif step == "wait":
                    await trio.sleep(1.1)
                elif step == "crash":
                    break
                elif step == "stop":
                    await behind.flush(1.0)
                    break
            nursery.cancel_scope.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", run_here)
        while steps:
            trio.run(life, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_endpoint_that_may_write_all_the_time_never_has_to_wait_long(tmp_path):
    """As long as the disk works: due at half of the reserve, the rest lasts until it is confirmed."""
    ledger = Ledger()

    async def life(generation, file):
        server = NumberingServer(ledger, generation, file.rows())
        behind = writer(server, file, interval=1000.0)
        server.connect(b"c1") if generation == 1 else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behind.run)
            written = 0
            while written < 200:
                written += server.write(b"c1")
                if server.checkpoint_due:
                    behind.hurry()
                await trio.lowlevel.checkpoint()
            assert await behind.flush(1.0)
            nursery.cancel_scope.cancel()

    for _ in range(3):
        with AssociationFile(tmp_path / "state.db") as file:
            trio.run(life, file.generation, file, clock=trio.testing.MockClock())
    assert len(ledger.used) == 600
