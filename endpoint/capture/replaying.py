"""``capture replay``: what a recorded device sent, given once more to this program's own server side.

What can be replayed, and what cannot, stands at the head of ``sansdtls.recorded.replay``. Each datagram of the client is one
line, with the events that it brings about and the messages that are answered; then whether all went as it was recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from endpoint.causes import cause_text
from endpoint.text import show_bytes
from sansdtls import (
    AlertReceived,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    HandshakeCompleted,
    PskRequested,
    UsageError,
)
from sansdtls.recorded import (
    ContentType,
    HandshakeType,
    RecordedAssociation,
    Recording,
    Replay,
    name_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endpoint.capture.decoding import Source
    from sansdtls import Event
    from sansdtls.recorded import ReplayStep

MAX_DATAGRAMS = 10_000
"""Of one association that are replayed; what matters is at its beginning."""


@attrs.define(eq=False)
class _Recorded:
    number: int
    sent: list[tuple[int, bytes]] = attrs.field(factory=list)
    """The client's datagrams."""


def replay(source: Source) -> Iterator[str]:
    """The lines; ``source.not_replayed`` counts what went otherwise. Raises :class:`~endpoint.capture.reading.ReadingError`."""
    found: dict[RecordedAssociation, _Recorded] = {}
    for nanoseconds, packet, seen in source.datagrams():
        recorded = found.setdefault(seen.association, _Recorded(seen.number))
        if seen.from_client and len(recorded.sent) < MAX_DATAGRAMS:
            recorded.sent.append((nanoseconds, packet.payload))
    if not found:
        yield "no UDP datagrams"
    for association, recorded in found.items():
        yield from _replayed(association, recorded, source)


def _replayed(association: RecordedAssociation, recorded: _Recorded, source: Source) -> Iterator[str]:
    name = f"association {recorded.number}"
    start = _with_cookie(recorded.sent, association)
    try:
        if start is None:
            raise UsageError("its hellos were not recorded")
        began = recorded.sent[start][0]
        rerun = Replay(association, keys=source.keys_of, now=0.0)
    except UsageError as error:
        yield f"{name}: cannot be replayed: {error}; remedy: capture decode"
        source.not_replayed += 1
        return
    yield f"{name}: identity {show_bytes(association.identity or b'')}"
    yield f"    0.000000  the hello: {_step(rerun.begun)}"
    for nanoseconds, datagram in recorded.sent[start + 1 :]:
        now = max(0.0, (nanoseconds - began) / 1e9)
        for step in rerun.receive(datagram, now=now):
            what = "a timeout" if step.datagram is None else f"{len(datagram)} bytes"
            yield f"    {step.now:.6f}  {what}: {_step(step)}"
    differences = rerun.differences()
    completed = rerun.connection.negotiated is not None
    state = rerun.connection.state
    end = "the handshake completes" if completed else "the handshake does not complete"
    if not completed and state is not ConnectionState.CLOSED:
        end += ", it was still under way"
    yield f"{name}: {end}; " + (
        "all is answered as it was recorded"
        if not differences
        else "answered otherwise: " + ", ".join(differences)
    )
    if any(difference.startswith("SERVER_HELLO ") for difference in differences):
        yield f"{name}: with another ServerHello the recorded client's Finished cannot be verified; remedy: capture decode"
    source.not_replayed += not completed or bool(differences)


def _with_cookie(sent: list[tuple[int, bytes]], association: RecordedAssociation) -> int | None:
    """Which datagram brought the hello that was answered, first."""
    hello = association.hello_message
    if hello is None:
        return None
    for index, (_, datagram) in enumerate(sent):
        if (
            hello.body[-16:] in datagram
            and hello.body[:34] in datagram
            and _number(datagram) == hello.message_seq
        ):
            return index
    return None


def _number(datagram: bytes) -> int:
    """message_seq of the first message."""
    return int.from_bytes(datagram[17:19])


def _step(step: ReplayStep) -> str:
    said = [_event(event) for event in step.events] or ["no event"]
    messages = []
    reader = Recording(is_server=lambda _source, _destination: True)
    for answer in step.answers:
        seen = reader.read(answer, source="server", destination="client")
        for record in seen.records:
            if record.messages:
                messages += [name_of(HandshakeType, message.message_type) for message in record.messages]
            else:
                messages.append(
                    name_of(ContentType, record.content_type) + (" (protected)" if record.epoch else "")
                )
    answers = f"; answered with {' '.join(messages).lower()}" if messages else ""
    return ", ".join(said) + answers


def _event(event: Event) -> str:
    match event:
        case PskRequested(identity=identity):
            return f"key of {show_bytes(identity)} asked for"
        case HandshakeCompleted(psk_key_index=index):
            return f"completed with the {('current', 'next')[index or 0]} key"
        case DataReceived(data=data):
            return f"{len(data)} bytes of data: {show_bytes(data[:64])}{' …' if len(data) > 64 else ''}"
        case AlertReceived(description=description):
            return f"alert {getattr(description, 'name', description)}".lower()
        case ConnectionTerminated(cause=cause):
            return f"ended: {cause_text(cause)}"
        case _:
            return type(event).__name__
