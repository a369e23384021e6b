"""The beginnings of handshakes, kept until it is known whose they are. Bounded in every direction; see ``limits``.

A capture can be read only with the ClientHello and ServerHello of its handshake, and the identity comes after them. So
each handshake that has brought back its cookie is kept from that hello on. When there are too many, the one that has been
silent longest goes: those of a flood wait for answers that never come, an honest one is never silent for long.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from endpoint.capture.limits import HELD_BYTES, HELD_DATAGRAMS, HELD_PATHS

if TYPE_CHECKING:
    from endpoint.addresses import Path
    from sansdtls import Connection


class Datagram(NamedTuple):
    """One datagram, as it went over a socket."""

    data: bytes
    path: Path
    outgoing: bool
    nanoseconds: int
    """Since the epoch."""
    comment: str = ""


class Held:
    """One handshake: its datagrams from the hello with the cookie on, both ways."""

    __slots__ = ("connection", "datagrams", "first_is_known_to", "identity", "size")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.identity: bytes | None = None
        """As claimed."""
        self.datagrams: list[Datagram] = []
        self.first_is_known_to: frozenset[object] = frozenset()
        """Captures that have the first datagram already."""
        self.size = 0

    def add(self, datagram: Datagram) -> bool:
        """Keep one more; ``False`` = there is no room for it."""
        size = self.size + len(datagram.data)
        if len(self.datagrams) >= HELD_DATAGRAMS or size > HELD_BYTES:
            return False
        self.datagrams.append(datagram)
        self.size = size
        return True


class Handshakes:
    """Those that are under way, by path."""

    def __init__(self) -> None:
        self._held: OrderedDict[Path, Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, path: Path, connection: Connection) -> tuple[Held, Held | None]:
        """One begins on a path where there is none; it, and the one that has to go for it, or ``None``."""
        held = self._held[path] = Held(connection)
        return held, self._held.popitem(last=False)[1] if len(self._held) > HELD_PATHS else None

    def items(self) -> list[tuple[Path, Held]]:
        """All of them, the one that has been silent longest first."""
        return list(self._held.items())

    def at(self, path: Path) -> Held | None:
        """The one on ``path``, which is heard of now."""
        held = self._held.get(path)
        if held is not None:
            self._held.move_to_end(path)
        return held

    def of(self, path: Path, connection: Connection) -> Held | None:
        """The same, if it is that of ``connection``."""
        held = self._held.get(path)
        return held if held is not None and held.connection is connection else None

    def take(self, path: Path) -> Held | None:
        """It is decided what becomes of the one on ``path``: it is kept no longer."""
        return self._held.pop(path, None)

    def clear(self) -> None:
        """Forget them all."""
        self._held.clear()
