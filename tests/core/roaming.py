"""A device that moves, and a server of which the tests see each record that it sends, and to where."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from sansdtls import (
    ClientConfig,
    ConnectionIdPolicy,
    DataReceived,
    PathChanged,
    PathPolicy,
    ReturnRoutability,
    ServerConfig,
)
from sansdtls.testing import Network, Pair
from sansdtls.wire.record import read_record_untrusted

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sansdtls import Event, Outgoing, PathProof
    from sansdtls.record.epochs import ReadEpoch

DATA, ALERT, CHECK = 23, 21, 27
CHALLENGE, RESPONSE, DROP = 0, 1, 2
Policy = dict[str, Any]
"""Arguments of a ``ConnectionIdPolicy``."""
BASIC: Policy = {"return_routability": ReturnRoutability.BASIC}
ENHANCED: Policy = {"return_routability": ReturnRoutability.ENHANCED}
NO_CHECK: Policy = {"return_routability": ReturnRoutability.OFF}
MOVE: Policy = {**NO_CHECK, "path_policy": PathPolicy.MOVE}
APPLICATION: Policy = {**NO_CHECK, "path_policy": PathPolicy.APPLICATION}
NEVER: Policy = {**NO_CHECK, "path_policy": PathPolicy.NEVER}

HOME, AWAY, THIRD = "client", "away", "third"


def device_config(policy: Policy | None = None, **more) -> ClientConfig:
    """Without a connection ID of its own unless ``policy`` says so."""
    own = ConnectionIdPolicy(**(policy or {"length": 0}))
    return ClientConfig(psk_identity=Pair.IDENTITY, psk_key=Pair.KEY, connection_id=own, **more)


def connecting(
    server: Policy | None = None,
    client: Policy | None = None,
    *,
    both: dict[str, Any] | None = None,
    **network,
) -> Pair:
    """One device and a server; nothing has been sent yet. ``both`` is in the configuration of both sides."""
    return Pair(
        device_config(client, **(both or {})),
        ServerConfig(connection_id=ConnectionIdPolicy(**(server or {})), **(both or {})),
        network=Network(**network),
    )


def pair_of(server: Policy | None = None, client: Policy | None = None, **more) -> Pair:
    """The same, connected."""
    pair = connecting(server, client, **more)
    pair.handshake()
    return pair


class Sent(NamedTuple):
    """One record, and where it went."""

    path: Hashable
    kind: int | str
    content: bytes
    datagram: bytes

    @property
    def cookie(self) -> bytes:
        return self.content[1:]


def records_of(read: ReadEpoch, outgoing: Outgoing) -> list[Sent]:
    """What a datagram says to who reads with ``read``, and takes no notice."""
    found, offset, length = [], 0, len(read.connection_id)
    while offset < len(outgoing.data):
        record = read_record_untrusted(outgoing.data, offset, length)
        assert record is not None
        opened = read.open(record)
        assert opened is not None, "a record of other keys"
        content_type, content = opened
        kind: int | str = content_type
        if content_type == CHECK and content[0] <= DROP:
            kind = ("challenge", "response", "drop")[content[0]]
        elif content_type in (DATA, ALERT):
            kind = {DATA: "data", ALERT: "alert"}[content_type]
        found.append(Sent(outgoing.path, kind, content, outgoing.data))
        offset += record.length
    return found


def data_in(events: list[Event]) -> list[bytes]:
    return [event.data for event in events if isinstance(event, DataReceived)]


def moves_in(events: list[Event]) -> list[tuple[Hashable, Hashable, PathProof]]:
    return [(event.old, event.new, event.proof) for event in events if isinstance(event, PathChanged)]


class Roaming:
    """Both ends connected, time standing still; each datagram is handed over by the test."""

    def __init__(self, server: Policy | None = None, client: Policy | None = None, **more):
        self.pair = pair_of(server, client, **more)
        self.now = self.pair.now
        self.device = self.pair.client
        self.server = self.pair.server
        self.connection = self.pair.server_connection
        self._read = copy(self.device._layer.read)
        self._read.protection = copy(self._read.protection)  # the device forgets its keys when it closes
        self.events: list[Event] = []
        """Of the server's connection, since the handshake."""
        self.device_events: list[Event] = []

    # --- what the device makes ---

    def data(self, content: bytes = b"x") -> bytes:
        """A datagram of the device with application data."""
        self.device.send(content, now=self.now)
        (outgoing,) = self.device.datagrams_to_send()
        return outgoing.data

    def made(self, content_type: int, content: bytes) -> bytes:
        """A datagram of the device with whatever."""
        return self.device._layer.write.record(content_type, content)

    def check(self, kind: int, cookie: bytes) -> bytes:
        """A datagram of the device with a return_routability_check message."""
        return self.made(CHECK, bytes([kind]) + cookie)

    def answer(self, sent: Sent) -> bytes:
        """What the device answers to a challenge."""
        self.device_events += self.device.receive_datagram(sent.datagram, now=self.now, path="server")
        (outgoing,) = self.device.datagrams_to_send()
        assert outgoing.path == "server"
        return outgoing.data

    # --- what the server sees ---

    def give(self, datagram: bytes, path: Hashable) -> list[Event]:
        """Hand a datagram to the server, coming from ``path``."""
        events = self.server.receive_datagram(datagram, path=path, now=self.now)
        self.events += events
        return events

    def say(self, content: bytes, path: Hashable) -> list[Event]:
        """The device sends data from ``path``."""
        return self.give(self.data(content), path)

    def sent(self) -> list[Sent]:
        """Each record that the server has sent since."""
        return [
            each for outgoing in self.server.datagrams_to_send() for each in records_of(self._read, outgoing)
        ]

    def challenge(self) -> Sent:
        """The one record sent since, which is a challenge."""
        (sent,) = self.sent()
        assert sent.kind == "challenge"
        assert len(sent.cookie) == 8
        return sent

    def wait(self, seconds: float) -> list[Event]:
        """Let time pass; the server's timeouts are handled when they are due."""
        end, events = self.now + seconds, []
        while (due := self.server.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            events += self.server.handle_timeout(now=self.now)
        self.now = end
        self.events += events
        return events

    @property
    def moves(self) -> list[tuple[Hashable, Hashable, PathProof]]:
        return moves_in(self.events)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Changes, failed checks and ignored responses, which server and connection count alike."""
        both = [
            (of.path_changes, of.path_checks_failed, of.path_responses_ignored)
            for of in (self.connection.statistics, self.server.statistics)
        ]
        assert both[0] == both[1]
        return both[0]
