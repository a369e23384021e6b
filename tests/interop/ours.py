"""Our side of a test: the sans-IO core on a plain UDP socket, without threads.

The loop here is all that the core asks of its caller: hand in datagrams, send what it gives, call it back
when a timer is due. It runs only while a test waits for something.
"""

from __future__ import annotations

import abc
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

from sansdtls import (
    Connection,
    ConnectionOffered,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    HandshakeCompleted,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
    SecretDerived,
    Server,
    key_log_line,
)
from tests.interop.process import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from sansdtls import AlertDescription, Cause, ClientConfig, Event, Outgoing, ServerConfig

    Judge = Callable[[PeerCertificateReceived | PeerRawKeyReceived], AlertDescription | None]
    """Says with which alert what the peer shows is rejected; ``None`` = it is accepted."""

LARGEST_DATAGRAM = 65_535
PACE = 0.01
"""Seconds for which the loop waits at most before it looks at the test's condition again."""


def trusting(shown: PeerCertificateReceived | PeerRawKeyReceived) -> None:
    """Accept whatever the peer shows: whom to trust is tested elsewhere."""


class _Ours(abc.ABC):
    """A UDP socket of its own, and all events so far.

    ``key_log``, if given, is a file that Wireshark can read: with ``log_secrets`` in the configuration a
    capture of the test can be decrypted.
    """

    def __init__(self, mtu: int, *, judge: Judge = trusting, key_log: Path | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.events: list[Event] = []
        self.largest_sent = 0
        self.largest_received = 0
        self.first_received = b""
        self.datagrams_sent: list[bytes] = []
        self.datagrams_received: list[bytes] = []
        self._mtu = mtu
        self._skipped = 0.0
        self._judge = judge
        self._key_log = key_log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @abc.abstractmethod
    def _next_timeout(self) -> float | None: ...

    @abc.abstractmethod
    def _handle_timeout(self, now: float) -> list[Event]: ...

    @abc.abstractmethod
    def _receive(self, data: bytes, address: tuple[str, int], now: float) -> list[Event]: ...

    @abc.abstractmethod
    def _datagrams_to_send(self) -> list[Outgoing]: ...

    @abc.abstractmethod
    def _act_on(self, event: Event, now: float) -> list[Event]: ...

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, SecretDerived) and self._key_log is not None:
                with self._key_log.open("a", encoding="ascii") as log:
                    log.write(key_log_line(event) + "\n")
            if isinstance(event, PeerCertificateReceived | PeerRawKeyReceived):
                self._handle(self._answer_what_is_shown(event, now), now)
            else:
                self._handle(self._act_on(event, now), now)

    def _answer_what_is_shown(
        self, event: PeerCertificateReceived | PeerRawKeyReceived, now: float
    ) -> list[Event]:
        alert = self._judge(event)
        if alert is None:
            return event.connection.accept_peer(event, now=now)
        return event.connection.reject_peer(event, alert, now=now)

    def now(self) -> float:
        """The time, as the core is told it."""
        return time.monotonic() + self._skipped

    def skip(self, seconds: float) -> None:
        """Let so much time pass for our side, in no time: what is due by then happens with the next turn."""
        self._skipped += seconds

    def skip_to_timer(self) -> None:
        """The same until our next timer is due."""
        due = self._next_timeout()
        assert due is not None, "there is none"
        self.skip(max(due - self.now(), 0.0))

    def flush(self) -> None:
        """Send what the core has to send."""
        for data, path in self._datagrams_to_send():
            assert len(data) <= self._mtu, f"a datagram of {len(data)} bytes, with an MTU of {self._mtu}"
            self.largest_sent = max(self.largest_sent, len(data))
            self.datagrams_sent.append(data)
            # A peer that has gone is noticed by what is missing.
            with contextlib.suppress(ConnectionRefusedError):
                self.socket.sendto(data, path)  # type: ignore[call-overload] # the path is the address we gave

    def turn(self) -> None:
        """Take in what has come, at most one datagram, and do what is due."""
        self.flush()
        due = self._next_timeout()
        wait = PACE if due is None else min(PACE, max(due - self.now(), 0))
        self.socket.settimeout(wait or 0.0001)  # 0 would mean a non-blocking socket
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            data, address = self.socket.recvfrom(LARGEST_DATAGRAM)
            self.largest_received = max(self.largest_received, len(data))
            self.first_received = self.first_received or data
            self.datagrams_received.append(data)
            now = self.now()
            self._handle(self._receive(data, address, now), now)
        now = self.now()
        due = self._next_timeout()
        if due is not None and due <= now:
            self._handle(self._handle_timeout(now), now)
        self.flush()

    def run_until(
        self, condition: Callable[[], bool], what: Callable[[], str], *, within: float = PATIENCE
    ) -> None:
        """Run the loop until ``condition`` holds; fail with ``what()`` and the events at the deadline."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                events = "\n".join(map(repr, self.events))
                raise AssertionError(f"within {within} s not: {what()}\nour events:\n{events}")
            self.turn()

    def rebind(self) -> None:
        """Go on from another port, as behind a NAT that has forgotten the old one."""
        moved = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        moved.bind(("127.0.0.1", 0))  # before the old one is closed, so that it is another
        self.socket.close()
        self.socket = moved

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    @property
    def completed(self) -> list[HandshakeCompleted]:
        return [event for event in self.events if isinstance(event, HandshakeCompleted)]

    @property
    def received(self) -> list[bytes]:
        return [event.data for event in self.events if isinstance(event, DataReceived)]

    @property
    def causes(self) -> list[Cause]:
        """Why connections have ended."""
        return [event.cause for event in self.events if isinstance(event, ConnectionTerminated)]


class OurServer(_Ours):
    """A server that accepts everybody and gives ``answer(data)`` to whatever it receives."""

    def __init__(
        self,
        config: ServerConfig,
        keys: Mapping[bytes, Sequence[bytes]],
        *,
        answer: Callable[[bytes], bytes],
        judge: Judge = trusting,
        key_log: Path | None = None,
    ) -> None:
        super().__init__(config.mtu, judge=judge, key_log=key_log)
        self.socket.bind(("127.0.0.1", 0))
        self._config = config
        self.server = Server(config, entropy=os.urandom, now=time.monotonic())
        self._keys = keys
        self._answer = answer

    def restart(self) -> None:
        """Hand all associations, frozen, to a new server, as at the restart of a process."""
        now = time.monotonic()
        blobs = list(self.server.freeze_all(now=now))
        self.server = Server(self._config, entropy=os.urandom, now=now, generation=1)
        for blob in blobs:
            self.server.restore(blob, now=now)

    def _next_timeout(self) -> float | None:
        return self.server.next_timeout()

    def _handle_timeout(self, now: float) -> list[Event]:
        return self.server.handle_timeout(now=now)

    def _receive(self, data: bytes, address: tuple[str, int], now: float) -> list[Event]:
        return self.server.receive_datagram(data, path=address, now=now)

    def _datagrams_to_send(self) -> list[Outgoing]:
        return self.server.datagrams_to_send()

    def _act_on(self, event: Event, now: float) -> list[Event]:
        match event:
            case ConnectionOffered():
                self.server.accept(event, now=now)
            case PskRequested(connection=connection, identity=identity):
                return connection.provide_psk(event, self._keys.get(identity, []), now=now)
            case DataReceived(connection=connection, data=data):
                connection.send(self._answer(data), now=now)
            case _:
                pass
        return []


class OurClient(_Ours):
    """A client of 127.0.0.1 and a port."""

    def __init__(
        self,
        config: ClientConfig,
        port: int,
        *,
        key: bytes = b"",
        judge: Judge = trusting,
        key_log: Path | None = None,
    ) -> None:
        """``key`` is for the event that asks for it, where the configuration has none."""
        super().__init__(config.mtu, judge=judge, key_log=key_log)
        self._config = config
        self._key = key
        self._peer = ("127.0.0.1", port)
        self.socket.bind(("127.0.0.1", 0))
        now = time.monotonic()
        self.connection = Connection.client(config, entropy=os.urandom, now=now, path=self._peer)

    def _next_timeout(self) -> float | None:
        return self.connection.next_timeout()

    def _handle_timeout(self, now: float) -> list[Event]:
        return self.connection.handle_timeout(now=now)

    def _receive(self, data: bytes, address: tuple[str, int], now: float) -> list[Event]:
        return self.connection.receive_datagram(data, now=now, path=address)

    def _datagrams_to_send(self) -> list[Outgoing]:
        return self.connection.datagrams_to_send()

    def _act_on(self, event: Event, now: float) -> list[Event]:
        if isinstance(event, PskRequested):
            return self.connection.provide_psk(event, [self._key], now=now)
        return []

    def restart(self) -> None:
        """Freeze the connection and thaw it, as at the restart of a process."""
        now = time.monotonic()
        blob = self.connection.freeze(now=now)
        self.connection = Connection.thaw(blob, self._config, entropy=os.urandom, now=now)

    def connect(self, what: Callable[[], str]) -> None:
        """Run the handshake to its end; fail with ``what()`` if it does not complete."""
        self.run_until(lambda: self.connection.state is not ConnectionState.HANDSHAKING, what)
        assert self.connection.state is ConnectionState.CONNECTED, f"{self.causes} with {what()}"

    def send(self, data: bytes) -> None:
        self.connection.send(data, now=time.monotonic())
        self.flush()

    def close(self) -> None:
        self.connection.close(now=time.monotonic())
        self.flush()


# --- what is said over the connection ---------------------------------------------------------------


def answer_to_hello(data: bytes) -> bytes:
    """What our server tells a peer that says hello."""
    return b"heard " + data


COAP_GET = bytes.fromhex("40 01 0815")
"""A confirmable GET / with message ID 0x0815 and no token, RFC 7252 §3."""
COAP_CONTENT = 0x45
"""2.05 Content, RFC 7252 §12.1.2."""


def answer_to_coap(request: bytes) -> bytes:
    """2.05 Content with the payload ``heard hello``, piggybacked or alone as the request was."""
    version_type_token_length, _, message_id = request[0], request[1], request[2:4]
    token = request[4 : 4 + (version_type_token_length & 0x0F)]
    confirmable = not version_type_token_length & 0x30
    answer_type = 0x20 if confirmable else 0x10
    header = bytes((0x40 | answer_type | len(token), COAP_CONTENT))
    return header + message_id + token + b"\xff" + b"heard hello"
