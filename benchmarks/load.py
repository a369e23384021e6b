"""The load: many DTLS clients on loopback, each with its own UDP socket, that send in bursts.

The same code loads every server; only the client's protocol engine differs. A burst of ``window``
datagrams, one from each of ``window`` clients, is sent as fast as the socket takes it; the next
follows when all answers are in. Whatever can be computed beforehand (records, hellos) is, so that
the rhythm does not depend on how fast the client's engine is.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST = "127.0.0.1"
PSK_IDENTITY = b"benchmark"
PSK_KEY = bytes(range(16))
MAX_DATAGRAM_SIZE = 65_535
POLL_INTERVAL = 0.0003
"""Seconds between two looks for answers. The clients sleep and look instead of waiting for answers, because on
loopback whoever sends to a waiting process pays for waking it: up to 10 us for each datagram of a server that
sends them one by one, and nothing for one that sends them together. Over a network nobody pays that."""
PATIENCE = 1.0
"""Seconds without any answer until clients repeat what they sent, and until an echo counts as lost."""
ATTEMPTS = 5
"""How often handshakes are pushed on after such a silence before the run is given up."""


class Client(Protocol):
    """The client's side of one association, without a socket."""

    @property
    def established(self) -> bool: ...
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


def _connected_socket(port: int, avoid: set[int] | None = None) -> socket.socket:
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


def _received(sock: socket.socket) -> list[bytes]:
    """What has arrived at a socket."""
    datagrams = []
    try:
        while True:
            datagrams.append(sock.recv(MAX_DATAGRAM_SIZE))
    except BlockingIOError:
        return datagrams


def connect(
    port: int, make_client: Callable[[], Client], window: int, avoid: set[int] | None = None
) -> list[Peer]:
    """Complete ``window`` handshakes that start together."""
    peers = [Peer(make_client(), _connected_socket(port, avoid)) for _ in range(window)]
    hellos = [peer.client.start() for peer in peers]
    for peer, hello in zip(peers, hellos, strict=True):
        peer.send(hello)
    silences = 0
    waiting = peers
    last_progress = time.monotonic()
    while waiting:
        time.sleep(POLL_INTERVAL)
        progress = False
        for peer in waiting:
            for datagram in _received(peer.sock):
                progress = True
                peer.send(peer.client.receive(datagram))
        waiting = [peer for peer in waiting if not peer.client.established]
        if progress:
            last_progress = time.monotonic()
        elif time.monotonic() - last_progress > PATIENCE:
            silences += 1
            if silences > ATTEMPTS:
                raise LoadFailed(f"{len(waiting)} of {window} handshakes did not complete")
            for peer in waiting:
                peer.send(peer.client.repeat())
            last_progress = time.monotonic()
    return peers


def leave(peers: Sequence[Peer]) -> None:
    for peer in peers:
        peer.leave()


def exchange(
    sockets: Sequence[socket.socket], datagrams: Sequence[bytes], *, each: int = 1
) -> list[list[bytes]]:
    """Send one datagram from each socket, ``each`` times, and take in as many answers.

    The answers are in the order of the sockets; there are fewer where a datagram was lost.
    """
    answers: list[list[bytes]] = [[] for _ in sockets]
    for sock, datagram in zip(sockets, datagrams, strict=True):
        for _ in range(each):
            sock.send(datagram)
    waiting = list(zip(sockets, answers, strict=True))
    give_up = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < give_up:
        time.sleep(POLL_INTERVAL)
        for sock, came in waiting:
            came.extend(_received(sock))
        waiting = [(sock, came) for sock, came in waiting if len(came) < each]
    return answers


def prepare_echo(peers: Sequence[Peer], payload: bytes, bursts: int) -> Callable[[], Callable[[], int]]:
    """Seal the records of ``bursts`` bursts. The result sends them; its result counts the true echoes."""
    sealed = [[peer.client.seal(payload) for peer in peers] for _ in range(bursts)]

    def run() -> Callable[[], int]:
        sockets = [peer.sock for peer in peers]
        echoes = [exchange(sockets, datagrams) for datagrams in sealed]

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
    sock = _connected_socket(port)
    with sock:
        return sum(len(exchange([sock], [hello], each=window)[0]) for _ in range(bursts))
