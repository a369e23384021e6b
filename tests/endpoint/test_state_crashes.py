"""Crashes at any point: no number is used twice, and what was confirmed is there."""

import random
import re
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from endpoint.state.exclusive import StateFileError
from endpoint.state.sqlite import AssociationFile
from tests.endpoint.numbering import RESERVE, Ledger, NumberingServer, Row
from tests.endpoint.state_writer import changes
from tests.program.running import Running

MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
HANDLES = st.sampled_from([b"c1", b"c2", b"p3"])


class Lives(RuleBasedStateMachine):
    """One process after the other on one file, with the ledger of all of them.

    A checkpoint is written whole, or not, and the process may die before it hears of it. Where within a
    transaction it dies is for the tests of the file; here it is before or after.
    """

    @initialize()
    def begin(self):
        # In memory where there is such a place: what is tried here is order, not the disk.
        self.directory = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)
        self.path = Path(self.directory, "state.db")
        self.ledger = Ledger()
        self.confirmed: dict[bytes, Row] = {}
        """What the disk must give back at least: the number may only be higher."""
        self.generations = 0
        self.start()

    def start(self):
        self.file = AssociationFile(self.path)
        self.generations += 1
        assert self.file.generation == self.generations
        rows = dict(self.file.rows())
        for handle, row in self.confirmed.items():
            found = Row.of(rows[handle])
            # Unless another association has taken its place, which was then on its way to the disk.
            assert found.key > row.key or (found.key == row.key and found.next_number >= row.next_number)
        self.server = NumberingServer(self.ledger, self.file.generation, rows.items())
        self.taken: Any = None
        self.written = False

    @rule(handle=HANDLES)
    def connect(self, handle):
        self.server.connect(handle)

    @rule(handle=HANDLES, count=st.integers(1, 2 * RESERVE))
    def write(self, handle, count):
        if handle in self.server.live:
            for _ in range(count):
                self.server.write(handle)

    @rule(handle=HANDLES)
    def end(self, handle):
        if handle in self.server.live:
            self.server.end(handle)

    @precondition(lambda self: self.taken is None)
    @rule()
    def take(self):
        self.taken = self.server.checkpoint()
        # From now on each of these may be there, or no more.
        for handle in self.taken.removed:
            self.confirmed.pop(handle, None)

    @precondition(lambda self: self.taken is not None and not self.written)
    @rule()
    def write_to_disk(self):
        """Also what an error that comes too late leaves behind: written, and nobody knows."""
        rows = [(saved.handle, saved.blob) for saved in self.taken.saved]
        self.file.apply(rows, self.taken.removed, anchor=b"")
        self.written = True

    @precondition(lambda self: self.written)
    @rule(again=st.booleans())
    def confirm(self, again):
        if again:
            self.write_to_disk()
        self.server.confirm(self.taken)
        self.confirmed |= self.taken.rows
        self.taken = None
        self.written = False

    @rule(refused=st.booleans())
    def crash(self, refused):
        if refused:
            with pytest.raises(StateFileError, match="in use"):
                AssociationFile(self.path)
        self.file.close()
        self.start()

    @rule()
    def stop(self):
        """As ``WriteBehind.flush`` does it; then the next one starts."""
        for _ in range(2):
            if self.taken is None:
                self.take()
            if not self.written:
                self.write_to_disk()
            self.confirm(again=False)
        written = {handle: association.next_number for handle, association in self.server.live.items()}
        self.file.close()
        self.start()
        assert self.server.live.keys() == written.keys()
        for handle, number in written.items():
            assert number < self.server.live[handle].next_number <= number + 2 * RESERVE * self.generations

    def teardown(self):
        self.file.close()
        shutil.rmtree(self.directory, ignore_errors=True)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=40)


# --- killed ---


HOT = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
"""A journal that begins so will be rolled back."""


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_leaves_whole_checkpoints_and_all_that_it_confirmed(tmp_path):
    path = tmp_path / "state.db"
    draw = random.Random(3)
    expected: dict[bytes, bytes] = {}
    done = 0
    generation = torn = 0
    while generation < 6 or (torn < 2 and generation < 100):
        generation += 1
        with Running(path, done + 1, cwd=tmp_path, module="tests.endpoint.state_writer") as process:
            assert process.output() == f"generation {generation}"
            with pytest.raises(StateFileError, match="in use by another process"):
                AssociationFile(path)
            last_words = f"writing {done + 1 + draw.randrange(3)}"
            while process.output() != last_words:
                pass
            # A while of work, so that the blow falls in different places.
            sum(range(draw.randrange(1_000_000)))
            process.process.kill()
            process.process.wait()
            said = "".join(process.seen) + process.process.stdout.read()
        torn += Path(f"{path}-journal").read_bytes()[:8] == HOT
        probe = tmp_path / "probe.db"
        shutil.copy(path, probe)
        shutil.copy(f"{path}-journal", f"{probe}-journal")
        with AssociationFile(probe) as file:
            assert file.generation == generation + 1
            rows, anchor = dict(file.rows()), file.anchor
        confirmed = [int(number) for number in re.findall(r"^written (\d+)$", said, re.MULTILINE)]
        # It may have written one more than it lived to tell.
        found = int(anchor or b"0")
        assert found in {max(confirmed, default=done), max(confirmed, default=done) + 1}
        for number in range(done + 1, found + 1):
            saved, removed = changes(number)
            for handle in removed:
                expected.pop(handle, None)
            expected.update(saved)
        assert rows == expected
        done = found
    assert torn, "never killed in the middle of a transaction"


# --- a disk without room ---


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_leaves_the_one_before(tmp_path):
    path = tmp_path / "state.db"
    rows = {b"c%06d" % n: b"old" * 60 for n in range(1000)}
    more = {b"c%06d" % n: b"new" * 60 for n in range(0, 30_000, 2)}
    with AssociationFile(path) as file:
        file.apply(rows.items(), anchor=b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 65_536, hard))
        try:
            for _ in range(2):
                with pytest.raises(StateFileError, match=r"SQLITE_(FULL|IOERR)"):
                    file.apply(more.items(), anchor=b"new")
            assert dict(file.rows()) == rows
            # What needs no more room still goes.
            file.apply([(b"c000001", b"yet" * 60)], anchor=b"yet")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        file.apply(more.items(), anchor=b"new")
        assert dict(file.rows()) == rows | {b"c000001": b"yet" * 60} | more
