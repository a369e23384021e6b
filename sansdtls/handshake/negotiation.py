"""The hello extensions and what the two hellos agree on. Extensions are rows, not branches in the roles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sansdtls.config import ExtendedMasterSecret
from sansdtls.errors import DecodeError
from sansdtls.handshake.failure import incompatible, violation
from sansdtls.iana import (
    NULL_COMPRESSION,
    TLS_EMPTY_RENEGOTIATION_INFO_SCSV,
    AlertDescription,
    CipherSuite,
    ExtensionType,
    ProtocolVersion,
)

if TYPE_CHECKING:
    from sansdtls.config import ClientConfig, ServerConfig
    from sansdtls.wire.messages import ClientHello, Extensions, ServerHello

_EMPTY_RENEGOTIATION_INFO = b"\x00"
"""A vector of no bytes: there is no earlier handshake to bind to, RFC 5746 §3.2."""


@attrs.frozen
class Negotiated:
    """What the hellos settled."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    extended_master_secret: bool
    """RFC 7627."""
    secure_renegotiation: bool
    """Whether the peer sent renegotiation_info or its SCSV, RFC 5746. Renegotiation is refused anyhow."""


def client_extensions() -> Extensions:
    """What our ClientHello offers, RFC 9325 §3.5: both MUST be implemented for DTLS 1.2."""
    return (
        (ExtensionType.EXTENDED_MASTER_SECRET, b""),
        (ExtensionType.RENEGOTIATION_INFO, _EMPTY_RENEGOTIATION_INFO),
    )


def server_extensions(negotiated: Negotiated, hello: ClientHello) -> Extensions:
    """What our ServerHello answers: nothing that was not offered, in the client's order."""
    answers = {
        ExtensionType.EXTENDED_MASTER_SECRET: (negotiated.extended_master_secret, b""),
        ExtensionType.RENEGOTIATION_INFO: (negotiated.secure_renegotiation, _EMPTY_RENEGOTIATION_INFO),
    }
    offered = [kind for kind, _ in hello.extensions if kind in answers]
    if negotiated.secure_renegotiation and ExtensionType.RENEGOTIATION_INFO not in offered:
        offered.append(ExtensionType.RENEGOTIATION_INFO)  # the SCSV stood for it
    return tuple(
        (kind, body) for kind in offered for wanted, body in [answers[ExtensionType(kind)]] if wanted
    )


def _read_extensions(extensions: Extensions) -> tuple[bool, bool]:
    """(extended_master_secret, renegotiation_info) as a hello of either side carries them."""
    bodies = dict(extensions)
    extended = bodies.get(ExtensionType.EXTENDED_MASTER_SECRET)
    if extended:
        raise DecodeError("extended_master_secret: not empty")
    renegotiation = bodies.get(ExtensionType.RENEGOTIATION_INFO)
    if renegotiation is not None and (not renegotiation or len(renegotiation) != renegotiation[0] + 1):
        raise DecodeError("renegotiation_info: length does not fit")
    if renegotiation is not None and renegotiation != _EMPTY_RENEGOTIATION_INFO:
        # RFC 5746 §3.4 and §3.6: "... MUST abort the handshake" where the value is not empty.
        raise violation(
            AlertDescription.HANDSHAKE_FAILURE, "renegotiation_info of a first handshake is not empty"
        )
    return extended is not None, renegotiation is not None


def _check_policy(policy: ExtendedMasterSecret, *, extended_master_secret: bool) -> None:
    if policy is ExtendedMasterSecret.REQUIRED and not extended_master_secret:
        raise incompatible(AlertDescription.HANDSHAKE_FAILURE, "the peer lacks extended_master_secret")


def negotiate(config: ServerConfig, hello: ClientHello) -> Negotiated:
    """The server's choice. Raises HandshakeFailure, or DecodeError for a malformed extension."""
    # DTLS version numbers count downwards: a larger number is an older version.
    if hello.version >> 8 != ProtocolVersion.DTLS_1_2 >> 8 or hello.version > ProtocolVersion.DTLS_1_2:
        raise incompatible(AlertDescription.PROTOCOL_VERSION, f"client version {hello.version:#06x}")
    # RFC 5246 §7.4.1.2: "This vector MUST contain [...] CompressionMethod.null."
    if NULL_COMPRESSION not in hello.compression_methods:
        raise violation(AlertDescription.ILLEGAL_PARAMETER, "ClientHello without null compression")
    extended_master_secret, renegotiation_info = _read_extensions(hello.extensions)
    _check_policy(config.extended_master_secret, extended_master_secret=extended_master_secret)
    offered = frozenset(hello.cipher_suites)
    suite = next((suite for suite in config.cipher_suites if suite in offered), None)
    if suite is None:
        raise incompatible(AlertDescription.HANDSHAKE_FAILURE, "no cipher suite in common")
    return Negotiated(
        version=ProtocolVersion.DTLS_1_2,
        cipher_suite=suite,
        extended_master_secret=extended_master_secret,
        secure_renegotiation=renegotiation_info or TLS_EMPTY_RENEGOTIATION_INFO_SCSV in offered,
    )


def check_answer(config: ClientConfig, hello: ClientHello, answer: ServerHello) -> Negotiated:
    """The client's check of a ServerHello. Raises HandshakeFailure, or DecodeError."""
    if answer.version != ProtocolVersion.DTLS_1_2:
        raise incompatible(AlertDescription.PROTOCOL_VERSION, f"server version {answer.version:#06x}")
    if answer.cipher_suite not in hello.cipher_suites:
        raise violation(
            AlertDescription.ILLEGAL_PARAMETER, "the server chose a cipher suite that was not offered"
        )
    if answer.compression_method != NULL_COMPRESSION:
        raise violation(AlertDescription.ILLEGAL_PARAMETER, "the server chose a compression method")
    offered = {kind for kind, _ in hello.extensions}
    for kind, _ in answer.extensions:
        # RFC 5246 §7.4.1.4: a client that gets an extension type it did not request
        # "MUST abort the handshake with an unsupported_extension fatal alert."
        if kind not in offered:
            raise violation(AlertDescription.UNSUPPORTED_EXTENSION, f"unrequested extension {kind}")
    extended_master_secret, secure_renegotiation = _read_extensions(answer.extensions)
    _check_policy(config.extended_master_secret, extended_master_secret=extended_master_secret)
    if config.require_renegotiation_info and not secure_renegotiation:
        raise incompatible(AlertDescription.HANDSHAKE_FAILURE, "the peer lacks renegotiation_info")
    return Negotiated(
        version=ProtocolVersion.DTLS_1_2,
        cipher_suite=CipherSuite(answer.cipher_suite),
        extended_master_secret=extended_master_secret,
        secure_renegotiation=secure_renegotiation,
    )
