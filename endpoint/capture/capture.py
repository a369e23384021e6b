"""One capture: what it wants, what waits for its disk, and when it ends.

The engine's turns put datagrams into a bounded buffer; a thread makes blocks of them and writes. Whoever is slow or full is
the disk, and whoever notices is the capture: datagrams are dropped from it and counted, or it ends.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from endpoint.capture.limits import BUFFER
from endpoint.capture.packets import UdpPacket, encode_packet
from endpoint.capture.pcapng import PACKET_OVERHEAD, PcapngWriter
from endpoint.text import show_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.addresses import Path
    from endpoint.capture.files import Outputs
    from endpoint.capture.handshakes import Datagram
    from endpoint.capture.packets import Endpoint

_HEADERS = 48
"""Bytes of IPv6 and UDP, which are more than those of IPv4."""
_COMMENT_OVERHEAD = 12
"""Bytes of an option and of the end of options, padded."""
_BATCH = 262_144
"""Bytes handed to the thread at once."""
_REMEMBERED = 64
"""Paths whose ends are remembered; one device has few."""

_Item: TypeAlias = "tuple[Datagram, Endpoint, Endpoint] | str"
"""A datagram, the device and our side; or a line of a key log."""


@attrs.frozen(kw_only=True)
class Wish:
    """What the operator asked for."""

    identities: frozenset[bytes]
    hosts: frozenset[tuple[str, int | None]]
    seconds: float
    size: int
    kinds: tuple[str, ...]
    """``"pcapng"``, ``"keylog"`` or both."""
    rehandshake: bool
    asked_by: int | None
    """The user ID of who asked; ``None`` where the system does not tell."""

    @property
    def shown(self) -> list[str]:
        """The identities, printable."""
        return sorted(map(show_bytes, self.identities))

    @property
    def shown_hosts(self) -> list[str]:
        """The addresses, as they were asked for."""
        return sorted(
            host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for host, port in self.hosts
            if not host.startswith("::ffff:")  # the other form of an IPv4 address
        )


class Capture:
    """See :class:`endpoint.capture.recorder.Target` for how it is fed. ``run`` it; then it is over."""

    def __init__(
        self,
        number: int,
        wish: Wish,
        outputs: Outputs,
        *,
        ends_of: Callable[[Path], tuple[Endpoint, Endpoint]],
        limiter: trio.CapacityLimiter,
    ) -> None:
        """``ends_of`` gives the device and our side of a path. Make it inside ``trio.run``."""
        self.number = number
        self.wish = wish
        self.outputs = outputs
        self.identities = wish.identities
        self.hosts = wish.hosts
        self.rehandshake = wish.rehandshake
        self.began = trio.current_time()
        self.datagrams = 0
        """Written, or waiting for it."""
        self.lost = 0
        """Datagrams that were wanted, and for which the buffer had no room."""
        self.size = 0
        """Bytes that the pcapng file may have by now: what it has, and at most some 3 % more."""
        self.unreadable = 0
        """Live associations when it began, whose secrets are in no capture."""
        self._ends_of = ends_of
        self._limiter = limiter
        self._randoms: set[bytes] = set()
        self._waiting: deque[tuple[int, _Item]] = deque()
        self._held = 0
        self._filled = trio.Event()
        self._stopping = trio.Event()
        self._refusing = False
        self._why = ""
        self._over = trio.Event()
        self._ends: dict[Path, tuple[Endpoint, Endpoint]] = {}
        self._packets = "pcapng" in wish.kinds
        self._writer = PcapngWriter(comment=_comment(wish))

    @property
    def secrets(self) -> int:
        """Handshakes that can be read."""
        return len(self._randoms)

    # --- for the recorder ---------------------------------------------------------------------------

    def packet(self, datagram: Datagram) -> None:
        """Record a datagram."""
        if not self._packets or self._refusing:
            return
        size = len(datagram.data) + _HEADERS + PACKET_OVERHEAD
        if datagram.comment:
            size += len(datagram.comment) + _COMMENT_OVERHEAD
        if self._held + size > BUFFER:
            self.lost += 1
        elif self._fits(size):
            self.datagrams += 1
            self._put(size, (datagram, *self._between(datagram.path)))

    def secret(self, client_random: bytes, line: str) -> None:
        """Record a secret. There are few, and what belongs to them can be read by them only: they are not dropped."""
        size = len(line) + PACKET_OVERHEAD
        if client_random not in self._randoms and not self._refusing and self._fits(size):
            self._randoms.add(client_random)
            self._put(size, line)

    def can_read(self, client_random: bytes) -> bool:
        """Whether the secret of this association is there."""
        return client_random in self._randoms

    def _fits(self, size: int) -> bool:
        if self.size + size > self.wish.size:
            self._refuse("it has reached its size")
            return False
        return True

    def _between(self, path: Path) -> tuple[Endpoint, Endpoint]:
        """The device and our side. Asked here and not in the thread, as a socket may be closed by then."""
        ends = self._ends.get(path)
        if ends is None:
            if len(self._ends) >= _REMEMBERED:
                self._ends.clear()
            ends = self._ends[path] = self._ends_of(path)
        return ends

    def _put(self, size: int, item: _Item) -> None:
        self.size += size
        self._held += size
        self._waiting.append((size, item))
        self._filled.set()

    # --- its life -----------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Have it end: :meth:`run` returns when all is written."""
        self._why = self._why or reason
        self._stopping.set()

    def _refuse(self, reason: str) -> None:
        """Take nothing more, from this moment."""
        self._refusing = True
        self.stop(reason)
        self._filled.set()

    async def wait_over(self) -> None:
        """Return when it is over, and its files are whole."""
        await self._over.wait()

    def seconds_left(self) -> float:
        """Until it ends by itself."""
        return max(0.0, self.began + self.wish.seconds - trio.current_time())

    async def run(self, *, on_end: Callable[[], None]) -> str:
        """Write until it ends; why it did. ``on_end`` is called once, and may still bring what was kept for it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, on_end)
                nursery.start_soon(self._write_all)
        finally:
            self.outputs.close()
            self._over.set()
        return self._why

    async def _watch(self, on_end: Callable[[], None]) -> None:
        # Apart from the writing, because a disk that hangs must not make a capture longer.
        with trio.move_on_at(self.began + self.wish.seconds):
            await self._stopping.wait()
        on_end()
        self._refuse("its time is over")

    async def _write_all(self) -> None:
        try:
            await self._write(self._beginning)
            while self._waiting or not self._refusing:
                await self._filled.wait()
                self._filled = trio.Event()
                await self._write_waiting()
        except OSError as error:
            self._waiting.clear()
            self._refuse(f"it cannot be written: {(error.strerror or str(error)).lower()}")

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch: list[_Item] = []
            size = 0
            while self._waiting and size < _BATCH:
                taken, item = self._waiting.popleft()
                size += taken
                batch.append(item)
            await self._write(partial(self._blocks, batch))
            self._held -= size

    async def _write(self, make: Callable[[], dict[str, bytes]]) -> None:
        # Abandoned when cancelled: the end of the service must not wait for a disk that hangs.
        await trio.to_thread.run_sync(self._write_now, make, limiter=self._limiter, abandon_on_cancel=True)

    # --- in the thread ------------------------------------------------------------------------------

    def _write_now(self, make: Callable[[], dict[str, bytes]]) -> None:
        for kind, data in make().items():
            if kind in self.outputs.paths:
                self.outputs.write(kind, data)

    def _beginning(self) -> dict[str, bytes]:
        return {"pcapng": self._writer.beginning()}

    def _blocks(self, items: list[_Item]) -> dict[str, bytes]:
        blocks, lines = [], []
        for item in items:
            if isinstance(item, str):
                line = item.encode("ascii") + b"\n"
                lines.append(line)
                blocks.append(self._writer.secrets(line))
            else:
                blocks.append(self._packet(*item))
        return {"keylog": b"".join(lines), "pcapng": b"".join(blocks)}

    def _packet(self, datagram: Datagram, device: Endpoint, ours: Endpoint) -> bytes:
        source, destination = (ours, device) if datagram.outgoing else (device, ours)
        return self._writer.packet(
            encode_packet(UdpPacket(source, destination, datagram.data)),
            nanoseconds=datagram.nanoseconds,
            comment=datagram.comment,
        )


def _comment(wish: Wish) -> str:
    whose = ", ".join(wish.shown + wish.shown_hosts)
    return f"dtls-endpoint capture of {whose}; holds secrets that decrypt it" if wish.identities else whose
