"""``capture decode``: a recording in words, datagram by datagram.

::

    1  0.000000  192.0.2.7:40000 > 198.51.100.1:5684  157 bytes  association 1, flight 3
          0/1 handshake: ClientHello 1: version DTLS_1_2, cookie of 32 bytes, …
    …
    6  0.031250  192.0.2.7:40000 > 198.51.100.1:5684  46 bytes  association 1
          1/1 application_data: authentic, 4 bytes: 21.5

``1/1`` is epoch and sequence number. What devices said is escaped like everything from the network.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from endpoint.capture.reading import read_recording
from endpoint.text import show_bytes
from sansdtls import AlertDescription, AlertLevel
from sansdtls.recorded import (
    ContentType,
    HandshakeType,
    KeyExchange,
    Recording,
    Verdict,
    name_of,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence
    from pathlib import Path

    from endpoint.capture.packets import UdpPacket
    from sansdtls.recorded import RecordedAssociation, SeenDatagram, SeenMessage, SeenRecord

SHOWN = 64
"""Bytes of application data that are shown, without ``--full``."""


class Source:
    """A recording and what there is to open it.

    ``not_authentic`` counts what did not open though there was a key, ``not_replayed`` associations that could not be
    replayed as they were recorded.
    """

    def __init__(
        self,
        file: Path,
        *,
        secrets: Mapping[bytes, bytes],
        keys: Mapping[bytes, Sequence[bytes]],
        port: int | None,
    ) -> None:
        self.file = file
        self.port = port
        self.not_authentic = 0
        self.not_replayed = 0
        self._secrets = dict(secrets)
        self._keys = keys

    def datagrams(self) -> Iterator[tuple[int, UdpPacket, SeenDatagram]]:
        """Time, datagram and what is in it. Raises :class:`~endpoint.capture.reading.ReadingError`.

        The file is read twice: secrets may stand behind what they open.
        """
        for item in read_recording(self.file):
            if isinstance(item, dict):
                self._secrets |= item
        recording = Recording(secrets=self._secrets, keys=self.keys_of, is_server=self._is_server)
        for item in read_recording(self.file):
            if not isinstance(item, dict):
                nanoseconds, packet = item
                seen = recording.read(packet.payload, source=packet.source, destination=packet.destination)
                self._count(seen)
                yield nanoseconds, packet, seen

    def keys_of(self, identity: bytes) -> Sequence[bytes]:
        """The pre-shared keys of an identity."""
        return self._keys.get(identity, ())

    def _is_server(self, source: Hashable, destination: Hashable) -> bool:
        one, other = getattr(source, "port", 0), getattr(destination, "port", 0)
        return bool(one == self.port if self.port in (one, other) else one < other)

    def _count(self, seen: SeenDatagram) -> None:
        for record in seen.records:
            verdicts = [record.verdict, *(message.verdict for message in record.messages)]
            self.not_authentic += Verdict.NOT_AUTHENTIC in verdicts or Verdict.DISPROVED in verdicts


def decode(source: Source, *, full: bool) -> Iterator[str]:
    """The lines. Raises :class:`~endpoint.capture.reading.ReadingError`, after what could be read."""
    began: int | None = None
    found: dict[RecordedAssociation, int] = {}
    number = 0
    try:
        for nanoseconds, packet, seen in source.datagrams():
            if began is None:
                began = nanoseconds
                yield f"begins at {_time(nanoseconds)}"
            number += 1
            found.setdefault(seen.association, seen.number)
            flight = f", flight {seen.flight}" if seen.flight else ""
            yield (
                f"{number:<4} {(nanoseconds - began) / 1e9:.6f}  {packet.source} > {packet.destination}  "
                f"{len(packet.payload)} bytes  association {seen.number}{flight}"
            )
            for record in seen.records:
                yield f"       {_record(record, full=full)}"
    finally:
        if began is None:
            yield "no UDP datagrams"
        for association, own_number in found.items():
            yield f"association {own_number}: {summary(association, source)}"


def summary(association: RecordedAssociation, source: Source) -> str:
    """What became of an association, as far as it was recorded."""
    if association.client_hello is None or association.server_hello is None:
        return "its handshake was not recorded, so nothing protected can be opened"
    suite = association.suite
    facts = [
        name_of(type(suite.suite), suite.suite)
        if suite is not None
        else f"cipher suite {association.server_hello.cipher_suite:#06x}, which is not known here"
    ]
    if association.identity is not None:
        facts.insert(0, f"identity {show_bytes(association.identity)}")
    if association.resumed:
        facts.append("a session resumed")
    opener = association.opener
    if opener is not None:
        which = (
            ("current", "next")[opener.key_index : opener.key_index + 1]
            if opener.key_index is not None
            else ()
        )
        facts.append(f"opened with the {which[0]} key" if which else "opened with the key log")
    elif suite is not None:
        facts.append(_why_closed(association, source))
    facts += [
        f"the {'client' if of_client else 'server'}'s Finished {verdict.value}"
        for of_client, verdict in association.finished.items()
    ]
    return "; ".join(facts)


def _why_closed(association: RecordedAssociation, source: Source) -> str:
    suite = association.suite
    if suite is not None and suite.key_exchange is KeyExchange.PSK and association.identity is not None:
        count = len(source.keys_of(association.identity))
        if count:
            return (
                f"the device has none of the {count} keys given for this identity"
                if count > 1
                else "the device has another key"
            )
        return "no key for this identity was given (--psk-file), nor its secret (--keylog)"
    return "its secret is in no key log (--keylog)"


def _record(record: SeenRecord, *, full: bool) -> str:
    if record.verdict is Verdict.NO_RECORD:
        return f"{record.length} bytes: {record.verdict.value}"
    where = f"{record.epoch}/{record.sequence_number} {name_of(ContentType, record.content_type).lower()}"
    if record.connection_id:
        where += f", connection ID {record.connection_id.hex()}"
    facts = [] if record.verdict is Verdict.PLAIN else [record.verdict.value]
    facts += [_message(message) for message in record.messages]
    if record.alert is not None:
        level, what = (
            name_of(AlertLevel, record.alert.level),
            name_of(AlertDescription, record.alert.description),
        )
        facts.append(f"{level.lower()} {what.lower()}")
    if record.content_type == ContentType.APPLICATION_DATA and record.content is not None:
        facts.append(_data(record.content, full=full))
    if record.malformed:
        facts.append(f"malformed: {show_bytes(record.malformed.encode())}")
    return f"{where}: {'; '.join(facts)}" if facts else where


def _message(message: SeenMessage) -> str:
    name = name_of(HandshakeType, message.message_type)
    name = "".join(word.capitalize() for word in name.split("_"))
    facts = []
    if message.size != message.length:
        facts.append(f"bytes {message.offset} to {message.offset + message.size} of {message.length}")
    if message.again:
        facts.append("again")
    if message.words:
        facts.append(message.words)
    if message.verdict is not None:
        facts.append(message.verdict.value)
    said = f" {message.message_seq}"
    return f"{name}{said}: {', '.join(facts)}" if facts else f"{name}{said}"


def _data(content: bytes, *, full: bool) -> str:
    shown = content if full else content[:SHOWN]
    rest = "" if len(shown) == len(content) else f" … ({len(content) - len(shown)} more)"
    return f"{len(content)} bytes: {show_bytes(shown)}{rest}"


def _time(nanoseconds: int) -> str:
    when = dt.datetime.fromtimestamp(nanoseconds // 10**9, dt.UTC)
    return f"{when:%Y-%m-%d %H:%M:%S}.{nanoseconds % 10**9:09d} UTC"
