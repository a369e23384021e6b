r"""``forward.kind = "valkey"``: into a stream of a Valkey or Redis server, and from a stream for each device back.

**To the server** each datagram is one entry of one stream, ``XADD dtls:data MAXLEN ~ 1000000 * …``, with the fields::

    identity   byte by byte; there is none of a device that showed none      path   192.0.2.7:40000
    time       2025-01-31T23:59:59.123Z, when it came                        data   byte by byte

They wait in a bounded buffer while the server is slow or away (``forward_down`` and ``forward_up`` in the log), and go in batches,
in their order. What the server has confirmed leaves the buffer. If the connection is lost before it has, nobody knows, and the
batch is sent again: **at least once**, twice where the server had it (then with the same time, path and data).
What ``MAXLEN`` removes before somebody reads it is the operator's choice.

**To a device** whoever wants to say something adds an entry with the field ``data`` to ``downlink_prefix`` + identity::

    XADD dtls:to:meter-17 MAXLEN ~ 100 * data on

A device that is awake gets it at once. One that sleeps or is not there gets it when it is heard: until then the entry stays where it
is, bounded by the MAXLEN of whoever adds it, and outlives both programs. It is deleted when it was handed to the kernel: a datagram, which may be
lost like any other. **It is not sent twice**, also if the connection is lost before it is deleted; that is made good first. Only
if this process dies in between, the next one does not know, and sends it again. An entry without ``data``, or too large for the device, is deleted
and counted. Where several endpoints serve one prefix, the one that has the device awake takes the entry.

The streams of up to 1,000 devices are asked about in one ``XREAD BLOCK``, on a connection of their own, so 100,000 devices that are awake cost a
hundred connections and next to no work while nobody has anything to say. When a device wakes, the command that does not know it
yet is ended (``CLIENT UNBLOCK``) and sent anew.

A user for this needs ``-@all +ping +xadd +xread +xdel +client|unblock ~dtls:data ~dtls:to:*``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from endpoint.forward import ForwardError, Sink
from endpoint.forward.backlog import Backlog
from endpoint.forward.downlink import Downlink
from endpoint.forward.reach import QUIET, Reach
from endpoint.text import UtcStamps
from endpoint.valkey import ServerAway, ServerRefused, ValkeyLink
from endpoint.valkey_access import AccessError, load_access

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.association import Association
    from endpoint.forward import Devices
    from endpoint.tables.sinks import ValkeyTable
    from endpoint.valkey import Value

BATCH = 256
"""Datagrams that are sent together."""
BATCH_SIZE = 262_144
"""Bytes of them: what a connection takes within a moment."""
PATIENCE = 5.0
"""Seconds for the answer to a batch; then it is sent again over another connection."""
REFUSED_PAUSE = 1.0
"""Seconds before the next attempt after the server has refused, as for lack of memory or rights."""
ENTRY_OVERHEAD = 128
"""Bytes that an entry counts for beside its data and identity: its fields, and what Python needs for them."""


class ValkeyStream(Sink):
    """See the module's text."""

    def __init__(
        self,
        table: ValkeyTable,
        *,
        devices: Devices,
        tell: Callable[..., None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Make it inside ``trio.run``; :class:`ForwardError` for files that cannot be used."""
        super().__init__()
        try:
            access = load_access(table.server, table.login())
        except AccessError as error:
            raise ForwardError(str(error)) from None
        self._table = table
        self._wall = wall
        self._stamps = UtcStamps()
        self._shown = str(access.address)
        self._backlog: Backlog[list[Value]] = Backlog(
            table.buffer, tell=tell, overflow=table.overflow, drops=self.drops, output=self._shown
        )
        self._reach = Reach(tell, output=self._shown)
        self._link = ValkeyLink(access, changed=self._note)
        self._head: list[Value] = ["XADD", table.stream]
        if table.max_entries is not None:
            self._head += ["MAXLEN", "~", table.max_entries]
        self._downlink = (
            None
            if table.downlink_prefix is None
            else Downlink(table.downlink_prefix.encode(), access, self._link, devices=devices, tell=tell)
        )

    def deliver(self, association: Association, data: bytes) -> None:
        """Put it into the buffer, or drop it."""
        entry: list[Value] = [*self._head, "*"]
        if association.identified:
            entry += ["identity", association.identity]
        entry += ["path", association.remote, "time", self._stamps(self._wall()), "data", data]
        self._backlog.put(entry, len(data) + len(association.identity) + ENTRY_OVERHEAD)

    async def run(self) -> None:
        """Send, and bring what is for devices, until cancelled."""
        self._backlog.put_back()  # if this task was started anew
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._send)
            if self._downlink is not None:
                nursery.start_soon(self._downlink.run)

    async def _send(self) -> None:
        while True:
            await self._connected()
            entries = await self._backlog.take(BATCH_SIZE, BATCH)
            try:
                await self._send_some(entries)
            except ServerAway:
                self._backlog.put_back()
                await trio.lowlevel.checkpoint()
            except ServerRefused as refused:
                self._backlog.put_back()
                self._note(f"{self._shown} says: {refused}")
                await trio.sleep(REFUSED_PAUSE)
            else:
                self._note(None)

    async def _connected(self) -> None:
        while True:
            with trio.move_on_after(QUIET):
                await self._link.wait_connected()
                return
            self._note(self._link.reason)

    async def _send_some(self, entries: list[list[Value]]) -> None:
        with trio.move_on_after(PATIENCE) as patience:
            answers = await self._link.batch(entries)
        if patience.cancelled_caught:
            self._link.drop(f"no answer within {PATIENCE:g} seconds")
            raise ServerAway
        for answer in answers:
            if isinstance(answer, ServerRefused):
                # Those behind it were refused for the same reason, as they go to the same stream.
                raise answer
            self._backlog.done(1)

    def _note(self, reason: str | None) -> None:
        """The server is away or refuses; or with ``None`` it is there, and takes what it gets."""
        if reason is None:
            self._reach.found()
        else:
            self._reach.lost(reason)

    # --- devices ------------------------------------------------------------------------------------------

    def connected(self, association: Association) -> None:
        """A device is there: what waits for it can be sent."""
        if self._downlink is not None and association.identified:
            self._downlink.awake(association)

    thawed = connected

    def disconnected(self, association: Association) -> None:
        """It is gone: what comes for it waits."""
        if self._downlink is not None and association.identified:
            self._downlink.away(association)

    frozen = disconnected

    @property
    def usable(self) -> bool:
        """Whether the server is there and takes what it gets."""
        return not self._reach.down

    async def flush(self) -> None:
        """Return when the server has all that was delivered."""
        await self._backlog.flushed()

    def statistics(self) -> dict[str, Any]:
        """``forwarded`` and ``forward_dropped`` datagrams; ``forward_held`` bytes in the buffer; ``down``; ``downlink`` and ``connects``."""
        return {
            "forwarded": self._backlog.handed_on,
            "forward_dropped": self.drops.total(),
            "forward_held": self._backlog.held,
            "down": self._reach.down,
            "connects": self._link.statistics()["connects"],
            **({} if self._downlink is None else {"downlink": self._downlink.statistics()}),
        }
