"""What is kept of a frozen association, and how it stands in a blob; ``snapshot.py`` seals and checks that.

Each value has one encoding: numbers of variable length in their shortest form, fields that are absent by a flag. Decoding
refuses what encoding would not have written, and encoding refuses what could not be thawed.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, TypeVar

import attrs

from sansdtls.crypto.prf import MASTER_SECRET_LENGTH
from sansdtls.crypto.suites import SUITES
from sansdtls.errors import ConfigError, DecodeError, SnapshotError
from sansdtls.iana import CipherSuite, HandshakeType, NamedGroup
from sansdtls.saved_paths import encode_path, read_path, utf_8
from sansdtls.session import Session
from sansdtls.wire.compact import MAX_NUMBER_BITS, CompactReader, encode_framed, encode_number
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH, MAX_SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Hashable

_M = TypeVar("_M", CipherSuite, NamedGroup)

MAX_ANNOTATION_LENGTH = 1024
"""Bytes that a caller may keep with an association: each frozen one costs them."""
_MAX_WINDOW = 1024
"""Records; the widest replay window that ``Limits`` allows."""
_MAX_OWN_CONNECTION_ID = 20
"""Bytes, as ``ConnectionIdPolicy`` says."""
_MAX_PEER_CONNECTION_ID = 255
"""Bytes. RFC 9146 §3: ``opaque cid<0..2^8-1>``, and the peer chooses."""

_FIXED = struct.Struct("!3sHd48s32s32s")
"""Flags, cipher suite, last_received, master secret, both randoms."""


# Not attrs.frozen: it takes twice as long to make, and a sleeping device waits. Nobody changes one.
@attrs.define(kw_only=True)
class SavedAssociation:
    """All that an association needs to go on. Times in seconds on the server's clock."""

    is_client: bool
    cipher_suite: CipherSuite
    extended_master_secret: bool
    secure_renegotiation: bool
    resumed: bool
    group: NamedGroup | None
    server_name: str | None
    alpn_protocol: bytes | None
    return_routability: bool
    """RFC 9853, negotiated."""
    master_secret: bytes = attrs.field(repr=False)
    client_random: bytes
    server_random: bytes
    connection_id: bytes
    """What the peer puts into records to us; empty: none."""
    peer_connection_id: bytes
    """What we put into records to the peer; empty: none."""
    write_sequence_number: int
    """The next one in epoch 1, before anything is added for safety."""
    read_highest: int
    """Highest record number of epoch 1 that was authentic; -1: none yet."""
    read_seen: int
    """Replay window: bit i is set if ``read_highest - i`` was seen."""
    failed_opens: int
    """Records that no key authenticated; counts against the suite's limit for ever."""
    max_plaintext: int
    """Bytes that the peer takes in one record."""
    max_accepted: int
    """Bytes that we take in one record."""
    next_receive_seq: int
    """message_seq of the peer's next handshake message."""
    last_flight: tuple[tuple[int, int | None, int, bytes], ...] = attrs.field(repr=False)
    """What is repeated when the peer repeats its own last flight: epoch, type (``None`` = ChangeCipherSpec),
    message_seq and body of each message."""
    epoch_0_sequence_number: int
    """The next record number of epoch 0, for that repetition."""
    psk_identity: bytes | None
    psk_key_index: int | None
    certificate_chain: tuple[bytes, ...] | None = attrs.field(repr=False)
    """What the peer showed, whole: DER, its own certificate first."""
    raw_public_key: bytes | None = attrs.field(repr=False)
    """What the peer showed: SubjectPublicKeyInfo."""
    path: Hashable
    """Where the peer was last heard."""
    last_received: float
    """When it was."""
    expires_at: float
    """When its idle timeout is over; ``inf``: never."""
    generation: int
    """How often the service had been started when this was saved."""
    serial: int
    """How often this association had been saved: of two blobs the higher is the newer."""
    annotation: bytes = attrs.field(repr=False)
    """The caller's own."""
    session: bytes = attrs.field(repr=False)
    """A client's ``Session.to_bytes()``, or nothing."""


# --- the body -----------------------------------------------------------------------------------------

_IS_CLIENT = 1 << 0
_EXTENDED_MASTER_SECRET = 1 << 1
_SECURE_RENEGOTIATION = 1 << 2
_RESUMED = 1 << 3
_RETURN_ROUTABILITY = 1 << 4
# A field of each of these is there if its flag is set; they stand in the order of the flags.
_GROUP = 1 << 5
_SERVER_NAME = 1 << 6
_ALPN_PROTOCOL = 1 << 7
_CONNECTION_ID = 1 << 8
_PEER_CONNECTION_ID = 1 << 9
_FAILED_OPENS = 1 << 10
_MAX_PLAINTEXT = 1 << 11
_MAX_ACCEPTED = 1 << 12
_LAST_FLIGHT = 1 << 13
_EPOCH_0 = 1 << 14
_PSK_IDENTITY = 1 << 15
_PSK_KEY_INDEX = 1 << 16
_CERTIFICATE_CHAIN = 1 << 17
_RAW_PUBLIC_KEY = 1 << 18
_ANNOTATION = 1 << 19
_SESSION = 1 << 20


def _flags(saved: SavedAssociation) -> int:
    return (
        (_IS_CLIENT if saved.is_client else 0)
        | (_EXTENDED_MASTER_SECRET if saved.extended_master_secret else 0)
        | (_SECURE_RENEGOTIATION if saved.secure_renegotiation else 0)
        | (_RESUMED if saved.resumed else 0)
        | (_RETURN_ROUTABILITY if saved.return_routability else 0)
        | (_GROUP if saved.group is not None else 0)
        | (_SERVER_NAME if saved.server_name is not None else 0)
        | (_ALPN_PROTOCOL if saved.alpn_protocol is not None else 0)
        | (_CONNECTION_ID if saved.connection_id else 0)
        | (_PEER_CONNECTION_ID if saved.peer_connection_id else 0)
        | (_FAILED_OPENS if saved.failed_opens else 0)
        | (_MAX_PLAINTEXT if saved.max_plaintext != MAX_PLAINTEXT_LENGTH else 0)
        | (_MAX_ACCEPTED if saved.max_accepted != MAX_PLAINTEXT_LENGTH else 0)
        | (_LAST_FLIGHT if saved.last_flight else 0)
        | (_EPOCH_0 if saved.epoch_0_sequence_number else 0)
        | (_PSK_IDENTITY if saved.psk_identity is not None else 0)
        | (_PSK_KEY_INDEX if saved.psk_key_index is not None else 0)
        | (_CERTIFICATE_CHAIN if saved.certificate_chain is not None else 0)
        | (_RAW_PUBLIC_KEY if saved.raw_public_key is not None else 0)
        | (_ANNOTATION if saved.annotation else 0)
        | (_SESSION if saved.session else 0)
    )


def encode_body(saved: SavedAssociation) -> bytes:
    """All but ``expires_at``. Raises SnapshotError for what could not be thawed."""
    _check(saved)
    flags = _flags(saved)
    parts = [
        _FIXED.pack(
            flags.to_bytes(3),
            saved.cipher_suite,
            saved.last_received,
            saved.master_secret,
            saved.client_random,
            saved.server_random,
        ),
        encode_number(saved.write_sequence_number),
        encode_number(saved.read_highest + 1),
        _encode_window(saved.read_seen),
        encode_number(saved.next_receive_seq),
        encode_number(saved.generation),
        encode_number(saved.serial),
        encode_path(saved.path),
    ]
    if saved.group is not None:
        parts.append(encode_number(saved.group))
    if saved.server_name is not None:
        parts.append(encode_framed(utf_8(saved.server_name)))
    if saved.alpn_protocol is not None:
        parts.append(encode_framed(saved.alpn_protocol))
    if flags & _CONNECTION_ID:
        parts.append(encode_framed(saved.connection_id))
    if flags & _PEER_CONNECTION_ID:
        parts.append(encode_framed(saved.peer_connection_id))
    if flags & _FAILED_OPENS:
        parts.append(encode_number(saved.failed_opens))
    if flags & _MAX_PLAINTEXT:
        parts.append(encode_number(saved.max_plaintext))
    if flags & _MAX_ACCEPTED:
        parts.append(encode_number(saved.max_accepted))
    if flags & _LAST_FLIGHT:
        parts.append(encode_number(len(saved.last_flight)))
        parts += [_encode_flight_part(*part) for part in saved.last_flight]
    if flags & _EPOCH_0:
        parts.append(encode_number(saved.epoch_0_sequence_number))
    if saved.psk_identity is not None:
        parts.append(encode_framed(saved.psk_identity))
    if saved.psk_key_index is not None:
        parts.append(encode_number(saved.psk_key_index))
    if saved.certificate_chain is not None:
        parts.append(encode_number(len(saved.certificate_chain)))
        parts += [encode_framed(certificate) for certificate in saved.certificate_chain]
    if saved.raw_public_key is not None:
        parts.append(encode_framed(saved.raw_public_key))
    if flags & _ANNOTATION:
        parts.append(encode_framed(saved.annotation))
    if flags & _SESSION:
        parts.append(encode_framed(saved.session))
    return b"".join(parts)


def decode_body(body: bytes, expires: float) -> SavedAssociation:
    """The opposite. Raises SnapshotError, DecodeError or UnicodeDecodeError for what encoding would not have written."""
    reader = CompactReader(body, "body")
    flag_bytes, suite, last_received, master_secret, client_random, server_random = _FIXED.unpack(
        reader.take(_FIXED.size)
    )
    flags = int.from_bytes(flag_bytes)
    number, framed = reader.number, reader.framed
    saved = SavedAssociation(
        is_client=bool(flags & _IS_CLIENT),
        extended_master_secret=bool(flags & _EXTENDED_MASTER_SECRET),
        secure_renegotiation=bool(flags & _SECURE_RENEGOTIATION),
        resumed=bool(flags & _RESUMED),
        return_routability=bool(flags & _RETURN_ROUTABILITY),
        cipher_suite=_member(_CIPHER_SUITES, suite, "cipher suite"),
        master_secret=master_secret,
        client_random=client_random,
        server_random=server_random,
        last_received=last_received,
        expires_at=expires,
        # Arguments are read in this order, which is that of the encoding.
        write_sequence_number=number(),
        read_highest=number() - 1,
        read_seen=_decode_window(reader),
        next_receive_seq=number(),
        generation=number(),
        serial=number(),
        path=read_path(reader),
        group=_member(_GROUPS, number(), "group") if flags & _GROUP else None,
        server_name=framed().decode() if flags & _SERVER_NAME else None,
        alpn_protocol=framed() if flags & _ALPN_PROTOCOL else None,
        connection_id=framed() if flags & _CONNECTION_ID else b"",
        peer_connection_id=framed() if flags & _PEER_CONNECTION_ID else b"",
        failed_opens=number() if flags & _FAILED_OPENS else 0,
        max_plaintext=number() if flags & _MAX_PLAINTEXT else MAX_PLAINTEXT_LENGTH,
        max_accepted=number() if flags & _MAX_ACCEPTED else MAX_PLAINTEXT_LENGTH,
        last_flight=_decode_flight(reader) if flags & _LAST_FLIGHT else (),
        epoch_0_sequence_number=number() if flags & _EPOCH_0 else 0,
        psk_identity=framed() if flags & _PSK_IDENTITY else None,
        psk_key_index=number() if flags & _PSK_KEY_INDEX else None,
        certificate_chain=tuple([framed() for _ in range(number())]) if flags & _CERTIFICATE_CHAIN else None,
        raw_public_key=framed() if flags & _RAW_PUBLIC_KEY else None,
        annotation=framed() if flags & _ANNOTATION else b"",
        session=framed() if flags & _SESSION else b"",
    )
    reader.end()
    if _flags(saved) != flags:
        raise DecodeError("a flag is set for what is not there")
    _check(saved)
    return saved


# Looking up a member of an enum by its number costs as much as three of these.
_CIPHER_SUITES = {int(suite): suite for suite in SUITES}
_GROUPS = {int(group): group for group in NamedGroup}
_MESSAGE_TYPES = frozenset(map(int, HandshakeType))


def _member(members: dict[int, _M], value: int, what: str) -> _M:
    member = members.get(value)
    if member is None:
        raise DecodeError(f"{what} {value} is not known")
    return member


def _encode_window(seen: int) -> bytes:
    """Its width, and the holes in it: without loss there are none, and two bytes stand for any width."""
    width = seen.bit_length()
    return encode_number(width) + encode_number(seen ^ (1 << width) - 1) if width else b"\0"


def _decode_window(reader: CompactReader) -> int:
    width = reader.number()
    if not width:
        return 0
    if width > _MAX_WINDOW:
        raise DecodeError(f"a replay window of {width} records")
    holes = reader.number(width)
    if holes >> width - 1:
        raise DecodeError("the replay window is not in its shortest form")
    return holes ^ (1 << width) - 1


def _encode_flight_part(epoch: int, message_type: int | None, message_seq: int, body: bytes) -> bytes:
    kind = b"\0" if message_type is None else bytes((1, message_type))
    return bytes((epoch,)) + kind + encode_number(message_seq) + encode_framed(body)


def _decode_flight(reader: CompactReader) -> tuple[tuple[int, int | None, int, bytes], ...]:
    parts: list[tuple[int, int | None, int, bytes]] = []
    for _ in range(reader.number()):
        epoch, has_type = reader.byte(), reader.byte()
        if has_type > 1:
            raise DecodeError("the last flight has a message of no kind")
        message_type = reader.byte() if has_type else None
        parts.append((epoch, message_type, reader.number(), reader.framed()))
    return tuple(parts)


# --- possible values ----------------------------------------------------------------------------------

_MAX_KEY_INDEX = 0xFF
_MAX_COUNT = 2**MAX_NUMBER_BITS - 1


def _impossible(saved: SavedAssociation, name: str) -> SnapshotError:
    value = getattr(saved, name)
    said = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)  # of bytes, which may be secret
    return SnapshotError(f"{name}: {said}: no association has that")


def _check(saved: SavedAssociation) -> None:
    """Refuse what no association can be. One that cannot be thawed is not frozen either."""
    _check_numbers(saved)
    _check_lengths(saved)
    _check_content(saved)


# Spelled out: with a table of names and ranges it takes three times as long.
def _check_numbers(saved: SavedAssociation) -> None:
    if not 0 <= saved.write_sequence_number <= MAX_SEQUENCE_NUMBER:
        raise _impossible(saved, "write_sequence_number")
    if not -1 <= saved.read_highest <= MAX_SEQUENCE_NUMBER:
        raise _impossible(saved, "read_highest")
    if not 0 <= saved.failed_opens <= _MAX_COUNT:
        raise _impossible(saved, "failed_opens")
    if not 1 <= saved.max_plaintext <= 0xFFFF:  # RFC 8449 §4: a peer may say more than anybody may send
        raise _impossible(saved, "max_plaintext")
    if not 1 <= saved.max_accepted <= MAX_PLAINTEXT_LENGTH:
        raise _impossible(saved, "max_accepted")
    if not 0 <= saved.next_receive_seq <= 0x10000:  # one beyond the last possible
        raise _impossible(saved, "next_receive_seq")
    if not 0 <= saved.epoch_0_sequence_number <= MAX_SEQUENCE_NUMBER:
        raise _impossible(saved, "epoch_0_sequence_number")
    if not 0 <= saved.generation <= _MAX_COUNT:
        raise _impossible(saved, "generation")
    if not 0 <= saved.serial <= _MAX_COUNT:
        raise _impossible(saved, "serial")
    if saved.psk_key_index is not None and not 0 <= saved.psk_key_index <= _MAX_KEY_INDEX:
        raise _impossible(saved, "psk_key_index")
    if not math.isfinite(saved.last_received):
        raise _impossible(saved, "last_received")
    if not saved.expires_at > -math.inf:  # nor is it NaN then
        raise _impossible(saved, "expires_at")
    seen, highest = saved.read_seen, saved.read_highest
    if seen < 0 or seen.bit_length() > min(highest + 1, _MAX_WINDOW) or seen & 1 != (highest >= 0):
        raise SnapshotError(f"read_seen: {seen:#x} is no replay window below {highest}")


def _check_lengths(saved: SavedAssociation) -> None:
    if len(saved.master_secret) != MASTER_SECRET_LENGTH:
        raise _impossible(saved, "master_secret")
    if len(saved.client_random) != 32:
        raise _impossible(saved, "client_random")
    if len(saved.server_random) != 32:
        raise _impossible(saved, "server_random")
    if len(saved.connection_id) > _MAX_OWN_CONNECTION_ID:
        raise _impossible(saved, "connection_id")
    if len(saved.peer_connection_id) > _MAX_PEER_CONNECTION_ID:
        raise _impossible(saved, "peer_connection_id")
    if len(saved.annotation) > MAX_ANNOTATION_LENGTH:
        raise _impossible(saved, "annotation")


def _check_content(saved: SavedAssociation) -> None:
    if saved.cipher_suite not in SUITES:
        raise _impossible(saved, "cipher_suite")
    if saved.group is not None and saved.group not in _GROUPS:
        raise _impossible(saved, "group")
    for epoch, message_type, message_seq, _ in saved.last_flight:
        if (
            epoch not in (0, 1)
            or not (message_type is None or message_type in _MESSAGE_TYPES)
            or not 0 <= message_seq <= 0xFFFF
        ):
            raise SnapshotError(f"last_flight: epoch {epoch}, type {message_type}, message_seq {message_seq}")
    if saved.session:
        try:
            Session.from_bytes(saved.session)
        except ConfigError as error:
            raise SnapshotError(f"session: {error}") from None
