"""``forward.kind = "udp"``: DTLS in front of a server that has none, such as one for CoAP, LwM2M or MQTT-SN.

::

    device ── DTLS ── association ── socket of its own ── server
                        │  sleeps        stays open          goes on seeing the same address
                        │  moves         stays open
                        └  ends          is closed

What the server sends to such a socket goes to the device. If its association is frozen, it is woken for that, or with
``wake = false`` the answer is dropped and counted. A socket that has been silent for ``idle`` seconds is closed, as the bounded number of them may need it.

Datagrams for a server that is down are dropped, not kept: what devices speak repeats what was lost, and a
server that comes up should not begin with the past. An ICMP message (nobody listens on the port, no route) is counted, and
``forward_down`` is told at the first, at most once a minute; ``forward_up`` at the server's next answer, or, as some never
answer, when nothing has come back for :data:`TRUSTED_AFTER` of sending. ``refused`` counts those that came back, which
had been sent, so these stand under ``forwarded`` too.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from typing import TYPE_CHECKING, Any

import trio

from endpoint.forward import Sink
from endpoint.forward.proxy import header_for
from endpoint.forward.reach import Reach
from endpoint.forward.upstreams import Upstreams, receive
from endpoint.sockets import errno_name
from endpoint.tables.sinks import host_and_port
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.association import Association
    from endpoint.forward import Devices
    from endpoint.forward.upstreams import Upstream
    from endpoint.tables.sinks import UdpTable

LOOK_AGAIN = 60.0
"""Seconds after which a name is looked up again: a server that was moved should be found within a minute or so."""
FIRST_PAUSE = 1.0
"""Seconds before a name is looked up again that could not be; each time twice as long, up to ``LOOK_AGAIN``."""

TRUSTED_AFTER = 5.0
"""Seconds without an ICMP message, since the first datagram after the last one, that stand for an answer. Longer than a
message is on its way."""

DOUBTED_AFTER = 30.0
"""Seconds since the last ICMP message after which a server that is down may be back: only another datagram would show. None comes
where a balancer sends devices elsewhere because this endpoint is not ready."""

Target = tuple[socket.AddressFamily, tuple[Any, ...]]

REASONS = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.EAGAIN: "full",
    errno.ENOBUFS: "full",
    errno.EMSGSIZE: "too_large",
}
"""Why a datagram was dropped; other errors are counted by their name."""

_ABOUT_ONE = ("full", "too_large")
"""These say nothing of the server."""


class UdpUpstreams(Sink):
    """Sends to one server; see the module's text."""

    def __init__(
        self, table: UdpTable, *, devices: Devices, tell: Callable[..., None], limit: int | None = None
    ) -> None:
        """``devices`` is the way back, ``tell`` gets facts for the operator, ``limit`` is a lower bound of sockets than the table's."""
        super().__init__()
        self._host, self._port = host_and_port(table.upstream)
        self._shown = show_text(table.upstream)
        self._bind = table.bind
        self._idle = table.idle
        self._header = table.proxy_protocol
        self._devices = devices
        self._tell = tell
        self._target = self._numeric()
        self._is_name = self._target is None
        self._upstreams = Upstreams(
            limit=table.max_upstreams if limit is None else limit, on_closed=self._forget
        )
        self._of: dict[Association, Upstream] = {}
        self._asleep: dict[bytes, Upstream] = {}
        self._tried_at: float | None = None
        """When the first datagram was sent after the last error."""
        self._refused_at = -math.inf
        self._sent = 0
        self._closed_idle = 0
        self._reach = Reach(tell, upstream=self._shown)
        self._socket_errors_told: set[int] = set()

    # --- towards the server ------------------------------------------------------------------------------

    def deliver(self, association: Association, data: bytes) -> None:
        """Send it from the association's socket."""
        now = trio.current_time()
        upstream = self._of.get(association) or self._open(association, now)
        if upstream is None:
            return
        self._upstreams.touch(upstream, now)
        framed = self._framed(upstream, association, data)
        if framed is None:
            return
        try:
            upstream.socket.send(framed)
        except OSError as error:
            # An ICMP message about an earlier datagram is told at this opportunity, and this one was not sent.
            self._failed(error, upstream)
            if REASONS.get(error.errno or 0) not in ("refused", "unreachable"):
                return
            try:
                upstream.socket.send(self._framed(upstream, association, data) or data)
            except OSError as again:
                upstream.header = None
                if again.errno != error.errno:  # else it was about this one from the beginning
                    self._failed(again, upstream)
                return
        self._sent += 1
        if self._reach.down:
            self._look_whether_it_is_back(now)

    def _look_whether_it_is_back(self, now: float) -> None:
        if self._tried_at is None:
            self._tried_at = now
        elif now - self._tried_at >= TRUSTED_AFTER:
            self._reach.found()

    def _open(self, association: Association, now: float) -> Upstream | None:
        if self._target is None:
            self.drops["unresolved"] += 1
            return None
        try:
            upstream = self._upstreams.open(association, self._target, self._bind, now)
        except OSError as error:
            self.drops["no_socket"] += 1
            if error.errno not in self._socket_errors_told:
                self._socket_errors_told.add(error.errno or 0)
                self._tell("forward_no_socket", upstream=self._shown, reason=_words(error))
            return None
        self._of[association] = upstream
        return upstream

    def _framed(self, upstream: Upstream, association: Association, data: bytes) -> bytes | None:
        """``data`` with the header that is due, if any; ``None`` if there can be none."""
        if self._header == "off":
            return data
        if upstream.header is None:
            try:
                upstream.header = header_for(association)
            except ValueError:
                self.drops["too_large"] += 1
                return None
            return upstream.header + data
        return data if self._header == "first" else upstream.header + data

    def _failed(self, error: OSError, upstream: Upstream) -> None:
        upstream.header = (
            None  # the one that it was sent with did not come there, or not to whoever listens next
        )
        code = error.errno or 0
        reason = REASONS.get(code, errno_name(code))
        self.drops[reason] += 1
        if reason not in _ABOUT_ONE:
            self._tried_at = None
            self._refused_at = trio.current_time()
            self._reach.lost(_words(error))

    # --- towards the devices -----------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._upstreams.fileno())
            while ready := self._upstreams.ready():
                now = trio.current_time()
                for upstream in ready:
                    self._take(upstream, now)
                await trio.lowlevel.checkpoint()

    def _take(self, upstream: Upstream, now: float) -> None:
        for data in receive(upstream):
            if isinstance(data, OSError):
                self._failed(data, upstream)
                continue
            if self._reach.down:
                self._reach.found()
            if upstream.association is None and upstream.handle is not None:
                self._devices.wake(upstream.handle)  # which tells thawed()
            if upstream.association is None:
                self._devices.drop("not_awake")
            elif self._devices.reply(upstream.association, data):
                self._upstreams.touch(upstream, now)

    # --- what becomes of the association -----------------------------------------------------------------

    def moved(self, association: Association) -> None:
        """The socket stays; a header names the new address."""
        upstream = self._of.get(association)
        if upstream is not None:
            upstream.header = None

    def frozen(self, association: Association) -> None:
        """The socket waits for it."""
        upstream = self._of.pop(association, None)
        if upstream is not None and association.handle is not None:
            upstream.association, upstream.handle = None, association.handle
            self._asleep[association.handle] = upstream

    def thawed(self, association: Association) -> None:
        """It has the socket that it had."""
        upstream = None if association.handle is None else self._asleep.pop(association.handle, None)
        if upstream is not None:
            upstream.association, upstream.handle = association, None
            self._of[association] = upstream

    def disconnected(self, association: Association) -> None:
        """Its socket is closed."""
        upstream = self._of.get(association)
        if upstream is not None:
            self._upstreams.close(upstream)

    def _forget(self, upstream: Upstream) -> None:
        if upstream.association is not None:
            del self._of[upstream.association]
        if upstream.handle is not None:
            del self._asleep[upstream.handle]

    # --- tasks -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read what the server sends, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            if self._idle is not None:
                nursery.start_soon(self._close_idle, self._idle)
            if self._is_name:
                nursery.start_soon(self._keep_looking_up)

    async def _close_idle(self, idle: float) -> None:
        while True:
            oldest = self._upstreams.oldest
            due = trio.current_time() + idle if oldest is None else oldest.used + idle
            if oldest is not None and due <= trio.current_time():
                self._upstreams.close(oldest)
                self._closed_idle += 1
            else:
                # One that is opened meanwhile is due later than that.
                await trio.sleep_until(due)

    def _numeric(self) -> Target | None:
        """The server's address, if it is none that has to be looked up."""
        try:
            found = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
            )
        except socket.gaierror:
            return None
        return found[0][0], found[0][4]

    async def _keep_looking_up(self) -> None:
        told = False
        pause = FIRST_PAUSE
        while True:
            try:
                found = await self._look_up()
            except (OSError, UnicodeError) as error:
                if not told:
                    told = True
                    self._tell("forward_unresolved", upstream=self._shown, reason=_words(error))
                await trio.sleep(pause)
                pause = min(pause * 2, LOOK_AGAIN)
                continue
            told, pause = False, FIRST_PAUSE
            if self._target not in found:
                self._go_to(found[0])
            await trio.sleep(LOOK_AGAIN)

    async def _look_up(self) -> list[Target]:
        family = 0
        if self._bind is not None:
            family = socket.AF_INET6 if ":" in self._bind else socket.AF_INET
        found = await trio.socket.getaddrinfo(self._host, self._port, family=family, type=socket.SOCK_DGRAM)
        return [(entry[0], entry[4]) for entry in found]

    def _go_to(self, target: Target) -> None:
        """New sockets go there, and those of the same family that there are."""
        before, self._target = self._target, target
        if before is None:
            return
        self._tell("forward_moved", upstream=self._shown, address=str(target[1][0]))
        for upstream in self._upstreams:
            upstream.header = None
            if upstream.socket.family != target[0]:
                self._upstreams.close(upstream)  # its association gets a new one
                continue
            try:
                upstream.socket.connect(target[1])
            except OSError as error:
                self._failed(error, upstream)
                self._upstreams.close(upstream)

    @property
    def usable(self) -> bool:
        """Whether the server may be there."""
        return not self._reach.down or trio.current_time() - self._refused_at > DOUBTED_AFTER

    def close(self) -> None:
        """Close all sockets."""
        self._upstreams.close_all()

    def statistics(self) -> dict[str, Any]:
        """``forwarded`` and ``forward_dropped`` datagrams; ``upstreams`` open, of them ``asleep``; ``closed_idle``; ``down``."""
        return {
            "forwarded": self._sent,
            "forward_dropped": self.drops.total(),
            "upstreams": len(self._upstreams),
            "asleep": len(self._asleep),
            "closed_idle": self._closed_idle,
            "down": self._reach.down,
        }


def _words(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "not a host name"
    return (error.strerror or os.strerror(error.errno or 0)).lower()
