"""The real server on the real file: no nonce is used twice, and nothing that was confirmed is lost.

The ledger is kept where the ciphers are called. What is done to server, devices and process in any order is that of
``tests/core/durable_lives.py``; here the disk is an ``AssociationFile``.
"""

import shutil
import tempfile
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from hypothesis import settings

from endpoint.state.behind import WriteBehind
from endpoint.state.exclusive import StateFileError
from endpoint.state.sqlite import AssociationFile
from sansdtls import Server
from tests.core.durable_lives import RESERVE, AnyOrder, Lives
from tests.endpoint.numbering import run_here

MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
METER = b"meter0"


class LivesOnFile(Lives):
    """The dict beside it says what has to be in the file."""

    def __init__(self, *, connection_ids, reserve=RESERVE):
        self.directory = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)
        self.path = Path(self.directory, "state.db")
        self.file: AssociationFile | None = None
        super().__init__(connection_ids=connection_ids, reserve=reserve)

    def begin_generation(self):
        if self.file is not None:
            with pytest.raises(StateFileError, match="in use"):
                AssociationFile(self.path)
            self.file.close()
        self.file = AssociationFile(self.path)
        self.generation += 1
        assert self.file.generation == self.generation
        rows = list(self.file.rows())
        assert dict(rows) == self.disk
        return rows

    def write_rows(self, saved, removed):
        assert self.file is not None
        rows = list(saved)
        self.file.apply(rows, removed, anchor=b"")
        super().write_rows(rows, removed)

    def finish(self):
        super().finish()
        if self.file is not None:
            self.file.close()
        shutil.rmtree(self.directory)


class AnyOrderOnFile(AnyOrder):
    """See there."""

    def new_lives(self, **options):
        return LivesOnFile(**options)


TestAnyOrderOnFile = AnyOrderOnFile.TestCase
TestAnyOrderOnFile.settings = settings(max_examples=100, stateful_step_count=40)


@attrs.define
class Driven:
    """What the engine is to :class:`WriteBehind`."""

    server: Server

    @property
    def checkpoint_due(self):
        return self.server.checkpoint_due

    def checkpoint(self, *, limit):
        return self.server.checkpoint(now=0.0, limit=limit)

    def confirm(self, checkpoint):
        self.server.confirm(checkpoint)


def test_an_association_that_sends_all_the_time_outlives_crashes_and_a_disk_that_fails(monkeypatch):
    """It has to wait for the disk, never repeats a number, and every message arrives."""
    lives = LivesOnFile(connection_ids=True)
    failures = iter("x..xxx...." * 100)
    sound = AssociationFile.apply

    def fails_now_and_then(file, *arguments, **options):
        if next(failures) == "x":
            raise StateFileError(file.path, "is full", code="SQLITE_FULL")
        sound(file, *arguments, **options)

    monkeypatch.setattr(AssociationFile, "apply", fails_now_and_then)
    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
    waited = 0

    async def one_life():
        nonlocal waited
        assert lives.file is not None
        told: list[str] = []
        behind = WriteBehind(
            Driven(lives.server),
            lives.file,
            interval=1.0,
            anchor=lambda: b"",
            trouble=lambda what, **_: told.append(what),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behind.run)
            sent = 0
            while sent < 4 * RESERVE:
                took = lives.server_sends(METER, 1)
                sent += took
                if not took:
                    waited += 1
                    assert lives.heard(METER)  # else it would be frozen, for its silence
                if lives.server.checkpoint_due:
                    behind.hurry()
                await trio.sleep(0.01)
            assert await behind.flush(10.0)
            nursery.cancel_scope.cancel()
        assert "state saved again" in told

    try:
        lives.connect(METER)
        for _ in range(3):
            trio.run(one_life, clock=trio.testing.MockClock(autojump_threshold=0))
            assert lives.file is not None
            lives.disk = dict(lives.file.rows())
            lives.crash()
            assert lives.heard(METER)
        assert len(lives.clients[METER].received) == 3 * 4 * RESERVE
    finally:
        lives.finish()
    assert waited
