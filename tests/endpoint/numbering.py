"""A stand-in for the core's numbering of records, and the ledger that no number may be in twice.

The rules are those at the head of ``endpoint.state``; the numbers are small, so that limits are reached.
"""

import struct

import attrs
import trio

RESERVE = 16
JUMP = 2

_ROW = struct.Struct(">QQQ")


@attrs.frozen
class Row:
    """What a blob says: whose key, next number, generation."""

    key: int
    next_number: int
    generation: int

    def blob(self) -> bytes:
        return _ROW.pack(self.key, self.next_number, self.generation)

    @classmethod
    def of(cls, blob: bytes) -> "Row":
        return cls(*_ROW.unpack(blob))


@attrs.frozen
class Saved:
    handle: bytes
    blob: bytes


@attrs.define(eq=False)
class Checkpoint:
    saved: list[Saved] = attrs.field(factory=list)
    removed: list[bytes] = attrs.field(factory=list)
    rows: dict[bytes, Row] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Association:
    key: int
    next_number: int
    limit: int
    """The first number that may not be used before another checkpoint is confirmed."""


class Ledger:
    """Every number that was ever used under a key."""

    def __init__(self):
        self.used = set()
        self.keys = 0

    def new_key(self) -> int:
        self.keys += 1
        return self.keys

    def use(self, key, number):
        assert (key, number) not in self.used, f"number {number} of key {key} is used twice"
        self.used.add((key, number))


class NumberingServer:
    """One process's server: associations that write numbers, checkpoints, nothing else."""

    def __init__(self, ledger, generation, rows=()):
        self.ledger = ledger
        self.generation = generation
        self.live = {}
        self.changed = set()
        self.gone = set()
        for handle, blob in rows:
            row = Row.of(blob)
            self.live[handle] = Association(
                row.key,
                row.next_number + RESERVE * (generation - row.generation) + JUMP,
                self.limit_of(row),
            )

    def limit_of(self, row):
        return row.next_number + RESERVE * (self.generation - row.generation + 1)

    def connect(self, handle):
        self.live[handle] = Association(self.ledger.new_key(), 0, RESERVE)
        self.changed.add(handle)
        self.gone.discard(handle)

    def end(self, handle):
        del self.live[handle]
        self.changed.discard(handle)
        self.gone.add(handle)

    def write(self, handle) -> bool:
        """Use the next number, if it is reserved."""
        association = self.live[handle]
        if association.next_number >= association.limit:
            return False
        self.ledger.use(association.key, association.next_number)
        association.next_number += 1
        self.changed.add(handle)
        return True

    @property
    def checkpoint_due(self):
        return any(a.limit - a.next_number <= RESERVE // 2 for a in self.live.values())

    def checkpoint(self, *, limit=1_000):
        rows = {
            handle: Row(self.live[handle].key, self.live[handle].next_number, self.generation)
            for handle in self.changed
        }
        checkpoint = Checkpoint(
            [Saved(handle, row.blob()) for handle, row in rows.items()], list(self.gone), rows
        )
        self.changed.clear()
        self.gone.clear()
        return checkpoint

    def confirm(self, checkpoint):
        for handle, row in checkpoint.rows.items():
            association = self.live.get(handle)
            if association is not None and association.key == row.key:
                association.limit = self.limit_of(row)


async def run_here(function, *arguments, abandon_on_cancel):
    """In place of ``trio.to_thread.run_sync``, so that a write takes no time: a jumping clock waits for no thread."""
    assert abandon_on_cancel
    await trio.lowlevel.checkpoint()
    return function(*arguments)
