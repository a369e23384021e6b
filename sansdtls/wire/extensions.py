"""The bodies of the hello extensions, one pair of functions each.

``encode_x`` and ``decode_x_untrusted`` are exact opposites on what they accept. A body that breaks the syntax
is a decode_error; one that is well formed but says what may not be said carries the alert that its RFC
names, or illegal_parameter (RFC 5246 §7.2.2: "A field in the handshake was out of range or inconsistent with
other fields"). Code points stay integers: a list may name what we do not know, and that is no mistake.

Which extensions are sent, answered and required is for ``handshake.negotiation``. The server answers
server_name and session_ticket with nothing: :func:`~sansdtls.wire.messages.expect_empty_untrusted` reads that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription
from sansdtls.wire.codec import Reader, uint16s, vector
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOST_NAME = 0
"""NameType, RFC 6066 §3; no other was ever defined."""
MAX_HOST_NAME_LENGTH = 255
"""Bytes; no longer name exists in the DNS, RFC 1035 §2.3.4."""
UNCOMPRESSED = 0
"""ECPointFormat, RFC 8422 §5.1.2."""
MIN_RECORD_SIZE_LIMIT = 64
"""Bytes, RFC 8449 §4."""
MAX_FRAGMENT_LENGTHS = {1: 2**9, 2: 2**10, 3: 2**11, 4: 2**12}
"""MaxFragmentLength, RFC 6066 §4, and the bytes that it stands for."""
_FRAGMENT_LENGTH_CODES = {length: code for code, length in MAX_FRAGMENT_LENGTHS.items()}


def _illegal(rule: str) -> DecodeError:
    return DecodeError(rule, AlertDescription.ILLEGAL_PARAMETER)


def encode_server_name(name: str) -> bytes:
    """RFC 6066 §3: a list of one host name. ``name`` is ASCII; IDNA is the caller's."""
    return vector(2, _HOST_NAME.to_bytes(1) + vector(2, name.encode("ascii")))


def decode_server_name_untrusted(body: bytes) -> str | None:
    """The host name as it was sent, or ``None`` if the list holds names of other types only."""
    reader = Reader(body, "server_name")
    names = Reader(reader.vector(2, minimum=1), "server_name")
    reader.end()
    found: dict[int, bytes] = {}
    while names.remaining:
        # RFC 6066 §3: the structure of every name type to come begins with a 16-bit length.
        kind, name = names.integer(1), names.vector(2, minimum=1)
        # RFC 6066 §3: "The ServerNameList MUST NOT contain more than one name of the same name_type."
        if kind in found:
            raise _illegal("server_name: two names of one type")
        found[kind] = name
    host_name = found.get(_HOST_NAME)
    if host_name is None:
        return None
    # Printable and short, so that it can stand in a log and in a lookup as it is. Whether it is a name
    # at all does not matter here: what no credential is kept for finds none.
    if len(host_name) > MAX_HOST_NAME_LENGTH or not all(0x21 <= byte <= 0x7E for byte in host_name):
        raise _illegal("server_name: no host name")
    return host_name.decode("ascii")


def encode_supported_groups(groups: Iterable[int]) -> bytes:
    """RFC 8422 §5.1.1: the sender's groups, best first."""
    return uint16s(groups)


def decode_supported_groups_untrusted(body: bytes) -> tuple[int, ...]:
    """The peer's groups, best first."""
    return _uint16s(body, "supported_groups")


def encode_ec_point_formats() -> bytes:
    """RFC 8422 §5.1.2: uncompressed points, and nothing else."""
    return vector(1, bytes((UNCOMPRESSED,)))


def decode_ec_point_formats_untrusted(body: bytes) -> bytes:
    """The formats that the peer reads; uncompressed is one of them."""
    reader = Reader(body, "ec_point_formats")
    formats = reader.vector(1, minimum=1)
    reader.end()
    # RFC 8422 §5.1: "If the Supported Point Formats Extension is indeed sent, it MUST contain the
    # value 0 (uncompressed) as one of the items in the list of point formats."
    if UNCOMPRESSED not in formats:
        raise _illegal("ec_point_formats: without uncompressed")
    return formats


def encode_signature_algorithms(schemes: Iterable[int]) -> bytes:
    """RFC 5246 §7.4.1.4.1: the signatures that the sender verifies, best first."""
    return uint16s(schemes)


def decode_signature_algorithms_untrusted(body: bytes) -> tuple[int, ...]:
    """The signatures that the peer verifies, best first."""
    return _uint16s(body, "signature_algorithms")


def encode_alpn(names: Iterable[bytes]) -> bytes:
    """RFC 7301 §3.1: protocol names, best first. A server answers with exactly one."""
    return vector(2, b"".join(vector(1, name) for name in names))


def decode_alpn_untrusted(body: bytes) -> tuple[bytes, ...]:
    """The client's protocol names, best first."""
    reader = Reader(body, "ALPN")
    entries = Reader(reader.vector(2, minimum=2), "ALPN")
    reader.end()
    names = []
    while entries.remaining:
        # RFC 7301 §3.1: "Empty strings MUST NOT be included and byte strings MUST NOT be truncated."
        names.append(entries.vector(1, minimum=1))
    return tuple(names)


def decode_alpn_answer_untrusted(body: bytes) -> bytes:
    """The protocol that the server chose."""
    names = decode_alpn_untrusted(body)
    # RFC 7301 §3.1: '... except that the "ProtocolNameList" MUST contain exactly one "ProtocolName".'
    if len(names) != 1:
        raise _illegal(f"ALPN: the server chose {len(names)} protocols")
    return names[0]


def encode_certificate_types(types: Iterable[int]) -> bytes:
    """RFC 7250 §3, client: what it can show (client_certificate_type) or read (server_certificate_type)."""
    return vector(1, bytes(types))


def decode_certificate_types_untrusted(body: bytes) -> tuple[int, ...]:
    """The client's list of either extension, best first."""
    reader = Reader(body, "certificate types")
    types = reader.vector(1, minimum=1)
    reader.end()
    return tuple(types)


def encode_certificate_type(chosen: int) -> bytes:
    """RFC 7250 §3, server: the one type, without a length in front."""
    return chosen.to_bytes(1)


def decode_certificate_type_untrusted(body: bytes) -> int:
    """The type that the server chose."""
    reader = Reader(body, "certificate type")
    chosen = reader.integer(1)
    reader.end()
    return chosen


def encode_record_size_limit(limit: int) -> bytes:
    """RFC 8449 §4: the bytes of plaintext that the sender takes in one protected record."""
    return limit.to_bytes(2)


def decode_record_size_limit_untrusted(body: bytes) -> int:
    """The bytes of plaintext that the peer takes in one protected record, 64 to 2**14."""
    reader = Reader(body, "record_size_limit")
    limit = reader.integer(2)
    reader.end()
    # RFC 8449 §4: "An endpoint MUST treat receipt of a smaller value as a fatal error and generate an
    # "illegal_parameter" alert."
    if limit < MIN_RECORD_SIZE_LIMIT:
        raise _illegal(f"record_size_limit: {limit} is below {MIN_RECORD_SIZE_LIMIT}")
    # RFC 8449 §4: "A server MUST NOT enforce this restriction; a client might advertise a higher limit
    # that is enabled by an extension or version the server does not understand." Clients may be as lenient.
    return min(limit, MAX_PLAINTEXT_LENGTH)


def encode_max_fragment_length(length: int) -> bytes:
    """RFC 6066 §4: ``length`` is one of 512, 1024, 2048, 4096 bytes of plaintext."""
    return _FRAGMENT_LENGTH_CODES[length].to_bytes(1)


def decode_max_fragment_length_untrusted(body: bytes) -> int:
    """The length in bytes."""
    reader = Reader(body, "max_fragment_length")
    code = reader.integer(1)
    reader.end()
    # RFC 6066 §4: "If a server receives a maximum fragment length negotiation request for a value other
    # than the allowed values, it MUST abort the handshake with an "illegal_parameter" alert."
    if code not in MAX_FRAGMENT_LENGTHS:
        raise _illegal(f"max_fragment_length: {code} is not defined")
    return MAX_FRAGMENT_LENGTHS[code]


def encode_session_ticket(ticket: bytes) -> bytes:
    """RFC 5077 §3.2: the ticket as it is, without a length in front; empty asks for one."""
    return ticket


def decode_session_ticket_untrusted(body: bytes) -> bytes:
    """The client's ticket, or nothing if it asks for one."""
    return body


def encode_connection_id(connection_id: bytes) -> bytes:
    """RFC 9146 §3: the ID that the sender wants to find in records to it; none = it needs none."""
    return vector(1, connection_id)


def decode_connection_id_untrusted(body: bytes) -> bytes:
    """The ID that the peer wants to find in our records."""
    reader = Reader(body, "connection_id")
    connection_id = reader.vector(1)
    reader.end()
    return connection_id


def _uint16s(body: bytes, what: str) -> tuple[int, ...]:
    reader = Reader(body, what)
    values = reader.uint16s()
    reader.end()
    return values
