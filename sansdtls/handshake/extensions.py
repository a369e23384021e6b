"""The hello extensions as one table: how each body is read from either hello. Unknown ones are passed over.

What is offered, chosen and refused is decided in ``negotiation``; the bodies' syntax is in ``wire.extensions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from sansdtls.errors import DecodeError
from sansdtls.iana import ExtensionType
from sansdtls.wire.extensions import (
    decode_alpn_answer_untrusted,
    decode_alpn_untrusted,
    decode_certificate_type_untrusted,
    decode_certificate_types_untrusted,
    decode_connection_id_untrusted,
    decode_ec_point_formats_untrusted,
    decode_max_fragment_length_untrusted,
    decode_record_size_limit_untrusted,
    decode_server_name_untrusted,
    decode_session_ticket_untrusted,
    decode_signature_algorithms_untrusted,
    decode_supported_groups_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sansdtls.wire.messages import Extensions

EMPTY_RENEGOTIATION_INFO = b"\x00"
"""A vector of no bytes: there is no earlier handshake to bind to, RFC 5746 §3.2."""


def _decode_empty_untrusted(body: bytes) -> bool:
    if body:
        raise DecodeError("an extension that has no content is not empty")
    return True


def _decode_renegotiation_info_untrusted(body: bytes) -> bytes:
    """The renegotiated_connection field, RFC 5746 §3.2."""
    if not body or len(body) != body[0] + 1:
        raise DecodeError("renegotiation_info: length does not fit")
    return body[1:]


@attrs.frozen
class HelloExtensions:
    """The extensions of one hello that we know; ``None`` (or False) where absent."""

    extended_master_secret: bool = False
    renegotiation_info: bytes | None = None
    server_name: str | bool | None = None
    """The name in a ClientHello; True in a ServerHello that acknowledges it."""
    supported_groups: tuple[int, ...] | None = None
    ec_point_formats: bytes | None = None
    signature_algorithms: tuple[int, ...] | None = None
    alpn_protocols: tuple[bytes, ...] | None = None
    """A ServerHello has one."""
    client_certificate_types: tuple[int, ...] | None = None
    server_certificate_types: tuple[int, ...] | None = None
    record_size_limit: int | None = None
    max_fragment_length: int | None = None
    session_ticket: bytes | None = None
    connection_id: bytes | None = None
    return_routability_check: bool = False


def _one(decode: Callable[[bytes], Any]) -> Callable[[bytes], tuple[Any, ...]]:
    return lambda body: (decode(body),)


_Row = tuple[str, "Callable[[bytes], Any]", "Callable[[bytes], Any]"]

_TABLE: dict[int, _Row] = {
    # type: (field of HelloExtensions, reads a ClientHello's body, reads a ServerHello's body)
    ExtensionType.EXTENDED_MASTER_SECRET: (
        "extended_master_secret",
        _decode_empty_untrusted,
        _decode_empty_untrusted,
    ),
    ExtensionType.RENEGOTIATION_INFO: (
        "renegotiation_info",
        _decode_renegotiation_info_untrusted,
        _decode_renegotiation_info_untrusted,
    ),
    ExtensionType.SERVER_NAME: ("server_name", decode_server_name_untrusted, _decode_empty_untrusted),
    ExtensionType.SUPPORTED_GROUPS: (
        "supported_groups",
        decode_supported_groups_untrusted,
        decode_supported_groups_untrusted,
    ),
    ExtensionType.EC_POINT_FORMATS: (
        "ec_point_formats",
        decode_ec_point_formats_untrusted,
        decode_ec_point_formats_untrusted,
    ),
    ExtensionType.SIGNATURE_ALGORITHMS: (
        "signature_algorithms",
        decode_signature_algorithms_untrusted,
        decode_signature_algorithms_untrusted,
    ),
    ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION: (
        "alpn_protocols",
        decode_alpn_untrusted,
        _one(decode_alpn_answer_untrusted),
    ),
    ExtensionType.CLIENT_CERTIFICATE_TYPE: (
        "client_certificate_types",
        decode_certificate_types_untrusted,
        _one(decode_certificate_type_untrusted),
    ),
    ExtensionType.SERVER_CERTIFICATE_TYPE: (
        "server_certificate_types",
        decode_certificate_types_untrusted,
        _one(decode_certificate_type_untrusted),
    ),
    ExtensionType.RECORD_SIZE_LIMIT: (
        "record_size_limit",
        decode_record_size_limit_untrusted,
        decode_record_size_limit_untrusted,
    ),
    ExtensionType.MAX_FRAGMENT_LENGTH: (
        "max_fragment_length",
        decode_max_fragment_length_untrusted,
        decode_max_fragment_length_untrusted,
    ),
    ExtensionType.SESSION_TICKET: (
        "session_ticket",
        decode_session_ticket_untrusted,
        decode_session_ticket_untrusted,
    ),
    ExtensionType.CONNECTION_ID: (
        "connection_id",
        decode_connection_id_untrusted,
        decode_connection_id_untrusted,
    ),
    ExtensionType.RETURN_ROUTABILITY_CHECK: (
        "return_routability_check",
        _decode_empty_untrusted,
        _decode_empty_untrusted,
    ),
}


def read_client_extensions_untrusted(extensions: Extensions) -> HelloExtensions:
    """What a ClientHello's extensions say; raises DecodeError."""
    return HelloExtensions(
        **{_TABLE[kind][0]: _TABLE[kind][1](body) for kind, body in extensions if kind in _TABLE}
    )


def read_server_extensions_untrusted(extensions: Extensions) -> HelloExtensions:
    """What a ServerHello's extensions say; raises DecodeError."""
    return HelloExtensions(
        **{_TABLE[kind][0]: _TABLE[kind][2](body) for kind, body in extensions if kind in _TABLE}
    )
