"""The load: many DTLS clients on loopback, each with its own UDP socket, that send in bursts.

The same code loads every server; only the client's protocol engine differs. A burst of ``window``
datagrams, one from each of ``window`` clients, is sent as fast as the socket takes it; the next
follows when all answers are in. Whatever can be computed beforehand (records, hellos) is, so that
the rhythm does not depend on how fast the client's engine is.

While answers are due the clients wait in one selector, and so sleep. A server that sends its answers one
by one wakes them with each, and on loopback the sender pays for that (some 8 us; over a network
nobody does); one that sends a burst together wakes them once. Clients that poll instead of sleeping
were tried: where two CPUs are threads of one core they slow every server down by more than that.
"""

from __future__ import annotations

import selectors
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST = "127.0.0.1"
PSK_IDENTITY = b"benchmark"
PSK_KEY = bytes(range(16))
MAX_DATAGRAM_SIZE = 65_535
PATIENCE = 1.0
"""Seconds without any answer until clients repeat what they sent, and until an echo counts as lost."""
ATTEMPTS = 5
"""How often handshakes are pushed on after such a silence before the run is given up."""


class Client(Protocol):
    """The client's side of one association, without a socket."""

    @property
    def established(self) -> bool: ...
    @property
    def resumed(self) -> bool:
        """Whether the server went on from an earlier handshake. Once established."""

    @property
    def group(self) -> str | None:
        """The group of the key exchange; ``None`` without one. Once established."""

    def resume(self) -> Client:
        """A new client that offers to go on from this one's handshake."""

    def start(self) -> list[bytes]:
        """The first datagrams to send."""

    def receive(self, datagram: bytes) -> list[bytes]:
        """Process a datagram of the handshake; returns what to send then."""

    def repeat(self) -> list[bytes]:
        """What to send after a silence."""

    def seal(self, payload: bytes) -> bytes: ...
    def unseal(self, datagram: bytes) -> bytes | None: ...
    def close(self) -> list[bytes]:
        """The farewell, so that the server forgets the association."""


class LoadFailed(Exception):
    """The load could not be applied, so there is nothing to report."""


class Peer:
    """A client and its socket."""

    __slots__ = ("client", "sock")

    def __init__(self, client: Client, sock: socket.socket) -> None:
        self.client = client
        self.sock = sock

    def send(self, datagrams: Sequence[bytes]) -> None:
        for datagram in datagrams:
            self.sock.send(datagram)

    def leave(self) -> None:
        self.send(self.client.close())
        self.sock.close()


def _connected_socket(port: int, avoid: set[int] | None) -> socket.socket:
    """A socket whose own port is not in ``avoid``, to which it is then added."""
    rejected = []
    try:
        while True:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect((HOST, port))
            own = sock.getsockname()[1]
            if avoid is None or own not in avoid:
                break
            rejected.append(sock)
    finally:
        for other in rejected:
            other.close()
    if avoid is not None:
        avoid.add(own)
    return sock


def connect(port: int, clients: Sequence[Client], avoid: set[int] | None = None) -> list[Peer]:
    """Complete the handshakes of ``clients``, which start together."""
    peers = [Peer(client, _connected_socket(port, avoid)) for client in clients]
    with selectors.DefaultSelector() as selector:
        for peer in peers:
            selector.register(peer.sock, selectors.EVENT_READ, peer)
        hellos = [peer.client.start() for peer in peers]
        for peer, hello in zip(peers, hellos, strict=True):
            peer.send(hello)
        silences = 0
        waiting = set(peers)
        while waiting:
            ready = selector.select(PATIENCE)
            if not ready:
                silences += 1
                if silences > ATTEMPTS:
                    raise LoadFailed(f"{len(waiting)} of {len(clients)} handshakes did not complete")
                for peer in waiting:
                    peer.send(peer.client.repeat())
            for key, _ in ready:
                peer = key.data
                peer.send(peer.client.receive(peer.sock.recv(MAX_DATAGRAM_SIZE)))
                if peer.client.established:
                    waiting.discard(peer)
                    selector.unregister(peer.sock)
    return peers


def leave(peers: Sequence[Peer]) -> None:
    for peer in peers:
        peer.leave()


class Burst:
    """Sends one datagram from each of some sockets and takes in one answer on each."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()
        for index, sock in enumerate(sockets):
            self._selector.register(sock, selectors.EVENT_READ, index)

    def exchange(self, datagrams: Sequence[bytes], answers_each: int = 1) -> list[list[bytes]]:
        """The answers in the order of the sockets; fewer where a datagram was lost."""
        answers: list[list[bytes]] = [[] for _ in self._sockets]
        for sock, datagram in zip(self._sockets, datagrams, strict=True):
            for _ in range(answers_each):
                sock.send(datagram)
        missing = len(datagrams) * answers_each
        while missing:
            ready = self._selector.select(PATIENCE)
            if not ready:
                break
            for key, _ in ready:
                answers[key.data].append(self._sockets[key.data].recv(MAX_DATAGRAM_SIZE))
                missing -= 1
        return answers

    def close(self) -> None:
        self._selector.close()


def prepare_echo(peers: Sequence[Peer], payload: bytes, bursts: int) -> Callable[[], Callable[[], int]]:
    """Seal the records of ``bursts`` bursts. The result sends them; its result counts the true echoes."""
    sealed = [[peer.client.seal(payload) for peer in peers] for _ in range(bursts)]

    def run() -> Callable[[], int]:
        burst = Burst([peer.sock for peer in peers])
        try:
            echoes = [burst.exchange(datagrams) for datagrams in sealed]
        finally:
            burst.close()

        def count() -> int:
            return sum(
                peer.client.unseal(datagram) == payload
                for answers in echoes
                for peer, datagrams in zip(peers, answers, strict=True)
                for datagram in datagrams
            )

        return count

    return run


def hellos_without_cookie(port: int, hello: bytes, window: int, bursts: int) -> int:
    """Send the same first hello again and again from one socket; returns how many were answered."""
    sock = _connected_socket(port, None)
    burst = Burst([sock])
    try:
        return sum(len(burst.exchange([hello], window)[0]) for _ in range(bursts))
    finally:
        burst.close()
        sock.close()
