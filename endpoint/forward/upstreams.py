"""The sockets of a ``udp`` sink: one for each association, bounded, and read by one task.

A server knows a device by the address that its datagrams come from, so each association has a connected socket of its
own. A task for each would cost some kilobytes and a wake-up; instead all are in one epoll set, whose own descriptor is
readable when any of them is, and one task waits for that.

They are kept in the order of use. Beyond the bound, and when the process has no descriptor left, the one that has been
silent longest goes.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import select
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from endpoint.association import Association

FILES_LEFT = 256
"""Descriptors that are left to the rest of the process: key files, databases, connections of the metrics."""

BATCH = 64
"""Sockets read in one turn, and then other tasks are."""
PER_SOCKET = 8
"""Datagrams read of one socket in a turn, so that a server that floods one device does not hold up the others."""
MAX_DATAGRAM_SIZE = 65_535

_NO_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Upstream:
    """One association's socket."""

    __slots__ = ("association", "handle", "header", "number", "socket", "used")

    def __init__(self, sock: socket.socket, association: Association, now: float) -> None:
        self.socket = sock
        self.number = sock.fileno()
        self.association: Association | None = association
        """``None`` while it sleeps."""
        self.handle: bytes | None = None
        """What names it then."""
        self.header: bytes | None = None
        """What stands in front of its datagrams; ``None`` = to be made."""
        self.used = now
        """When a datagram passed last, in either direction."""


class Upstreams:
    """All sockets of one sink."""

    def __init__(self, *, limit: int, on_closed: Callable[[Upstream], None]) -> None:
        """``limit`` sockets; ``on_closed`` is told of each that is closed here."""
        self.limit = limit
        self._on_closed = on_closed
        self._by_number: OrderedDict[int, Upstream] = OrderedDict()
        self._epoll = select.epoll()

    def __len__(self) -> int:
        """Open sockets."""
        return len(self._by_number)

    def __iter__(self) -> Iterator[Upstream]:
        return iter(list(self._by_number.values()))

    @property
    def oldest(self) -> Upstream | None:
        """The one that has been silent longest."""
        return next(iter(self._by_number.values()), None)

    def fileno(self) -> int:
        """Readable when one of them is."""
        return self._epoll.fileno()

    def open(
        self,
        association: Association,
        address: tuple[socket.AddressFamily, object],
        bind: str | None,
        now: float,
    ) -> Upstream:
        """A socket connected to ``address``; OSError if there can be none."""
        while len(self._by_number) >= self.limit:
            self._close_oldest()
        family, where = address
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno not in _NO_FILE or not self._by_number:
                raise
            self._close_oldest()
            sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if bind is not None:
                sock.bind((bind, 0))
            sock.connect(where)  # type: ignore[arg-type]
            self._epoll.register(sock, select.EPOLLIN)
        except BaseException:
            sock.close()
            raise
        upstream = self._by_number[sock.fileno()] = Upstream(sock, association, now)
        return upstream

    def touch(self, upstream: Upstream, now: float) -> None:
        """A datagram passed."""
        upstream.used = now
        self._by_number.move_to_end(upstream.number)

    def _close_oldest(self) -> None:
        oldest = self.oldest
        assert oldest is not None  # noqa: S101 - asked for only where there are some
        self.close(oldest)

    def close(self, upstream: Upstream) -> None:
        """Close one. What is there to be read is lost."""
        del self._by_number[upstream.number]
        upstream.socket.close()  # which takes it out of the epoll set as well
        self._on_closed(upstream)

    def close_all(self) -> None:
        """Close all, and the set."""
        for upstream in self:
            self.close(upstream)
        self._epoll.close()

    def ready(self) -> list[Upstream]:
        """Some of those that can be read now."""
        found = (self._by_number.get(number) for number, _ in self._epoll.poll(0, BATCH))
        return [upstream for upstream in found if upstream is not None]


def receive(upstream: Upstream) -> Iterator[bytes | OSError]:
    """What has come, a bounded number; an error, which is an ICMP message, stands where it came."""
    for _ in range(PER_SOCKET):
        try:
            yield upstream.socket.recv(MAX_DATAGRAM_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.EBADF:
                return  # closed while this was read
            yield error


def files_for(sockets: int) -> int:
    """How many of so many sockets the process may have, once it has raised its own limit as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sockets + FILES_LEFT
    if soft < wanted and soft != resource.RLIM_INFINITY:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return sockets if soft == resource.RLIM_INFINITY else max(1, min(sockets, soft - FILES_LEFT))


def files_allowed() -> int | None:
    """How many sockets a process with this one's limits may have; ``None`` = any number. Changes nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else max(1, hard - FILES_LEFT)
