"""What handshake messages say, in words. All of it may be printed: what strangers chose is shown as Python literals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.crypto.suites import KeyExchange
from sansdtls.handshake.extensions import read_client_extensions_untrusted, read_server_extensions_untrusted
from sansdtls.iana import (
    TLS_EMPTY_RENEGOTIATION_INFO_SCSV,
    CertificateType,
    CipherSuite,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
)
from sansdtls.wire.certificates import (
    CertificateMessage,
    CertificateRequest,
    CertificateVerify,
    EcdhClientKeyExchange,
    EcdhePskClientKeyExchange,
    EcdhePskServerKeyExchange,
    NewSessionTicket,
    SignedServerKeyExchange,
)
from sansdtls.wire.messages import (
    ClientHello,
    HelloVerifyRequest,
    PskClientKeyExchange,
    PskServerKeyExchange,
    ServerHello,
)

if TYPE_CHECKING:
    import enum
    from collections.abc import Iterable

    from sansdtls.handshake.extensions import HelloExtensions
    from sansdtls.wire.messages import Extensions


def name_of(names: type[enum.IntEnum], number: int) -> str:
    """The name of a code point, or the number where it has none that we know."""
    try:
        return names(number).name
    except ValueError:
        return f"{number:#06x}" if number > 0xFF else str(number)


def words_for(
    message_type: int, body: bytes, *, key_exchange: KeyExchange | None, raw_public_key: bool
) -> str:
    """What a message says, in one line; raises DecodeError where it is malformed.

    The meaning of some messages depends on what the hellos agreed on: ``key_exchange`` (``None`` = not known) and whether
    its sender shows a raw public key.
    """
    match message_type:
        case HandshakeType.CLIENT_HELLO:
            return _client_hello(ClientHello.decode_untrusted(body))
        case HandshakeType.HELLO_VERIFY_REQUEST:
            return f"cookie of {len(HelloVerifyRequest.decode_untrusted(body).cookie)} bytes"
        case HandshakeType.SERVER_HELLO:
            return _server_hello(ServerHello.decode_untrusted(body))
        case HandshakeType.CERTIFICATE:
            return _certificate(body, raw_public_key=raw_public_key)
        case HandshakeType.SERVER_KEY_EXCHANGE:
            return _server_key_exchange(body, key_exchange)
        case HandshakeType.CERTIFICATE_REQUEST:
            request = CertificateRequest.decode_untrusted(body)
            return f"signatures {_names(SignatureScheme, request.signature_schemes)}; {len(request.authorities)} CAs named"
        case HandshakeType.CLIENT_KEY_EXCHANGE:
            return _client_key_exchange(body, key_exchange)
        case HandshakeType.CERTIFICATE_VERIFY:
            verify = CertificateVerify.decode_untrusted(body)
            return f"signed with {name_of(SignatureScheme, verify.scheme)}"
        case HandshakeType.NEW_SESSION_TICKET:
            ticket = NewSessionTicket.decode_untrusted(body)
            return f"ticket of {len(ticket.ticket)} bytes, lifetime {ticket.lifetime_hint} s"
        case _:
            return ""


def identity_in(body: bytes, key_exchange: KeyExchange | None) -> bytes | None:
    """The PSK identity in a ClientKeyExchange; ``None`` = there is none. Raises DecodeError."""
    if key_exchange is KeyExchange.PSK:
        return PskClientKeyExchange.decode_untrusted(body).identity
    if key_exchange is KeyExchange.ECDHE_PSK:
        return EcdhePskClientKeyExchange.decode_untrusted(body).identity
    return None


def _client_hello(hello: ClientHello) -> str:
    suites = [
        name_of(CipherSuite, suite)
        for suite in hello.cipher_suites
        if suite != TLS_EMPTY_RENEGOTIATION_INFO_SCSV
    ]
    return ", ".join(
        (
            f"version {name_of(ProtocolVersion, hello.version)}",
            f"cookie of {len(hello.cookie)} bytes" if hello.cookie else "no cookie",
            *((f"session ID of {len(hello.session_id)} bytes",) if hello.session_id else ()),
            f"cipher suites {' '.join(suites)}",
            *_extensions(hello.extensions, read_client_extensions_untrusted(hello.extensions)),
        )
    )


def _server_hello(hello: ServerHello) -> str:
    return ", ".join(
        (
            f"version {name_of(ProtocolVersion, hello.version)}",
            *((f"session ID of {len(hello.session_id)} bytes",) if hello.session_id else ()),
            f"cipher suite {name_of(CipherSuite, hello.cipher_suite)}",
            *_extensions(hello.extensions, read_server_extensions_untrusted(hello.extensions)),
        )
    )


def _extensions(extensions: Extensions, read: HelloExtensions) -> list[str]:
    if not extensions:
        return ["no extensions"]
    said: dict[int, str] = {
        ExtensionType.SERVER_NAME: repr(read.server_name) if isinstance(read.server_name, str) else "",
        ExtensionType.SUPPORTED_GROUPS: _names(NamedGroup, read.supported_groups or ()),
        ExtensionType.SIGNATURE_ALGORITHMS: _names(SignatureScheme, read.signature_algorithms or ()),
        ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION: " ".join(map(repr, read.alpn_protocols or ())),
        ExtensionType.CLIENT_CERTIFICATE_TYPE: _names(CertificateType, read.client_certificate_types or ()),
        ExtensionType.SERVER_CERTIFICATE_TYPE: _names(CertificateType, read.server_certificate_types or ()),
        ExtensionType.RECORD_SIZE_LIMIT: str(read.record_size_limit),
        ExtensionType.MAX_FRAGMENT_LENGTH: str(read.max_fragment_length),
        ExtensionType.SESSION_TICKET: f"{len(read.session_ticket or b'')} bytes",
        ExtensionType.CONNECTION_ID: (read.connection_id or b"").hex() or "of no bytes",
    }
    shown = []
    for kind, _ in extensions:
        name = name_of(ExtensionType, kind).lower()
        shown.append(f"{name} ({said[kind]})" if said.get(kind) else name)
    return ["extensions " + " ".join(shown)]


def _certificate(body: bytes, *, raw_public_key: bool) -> str:
    if raw_public_key:
        return f"raw public key, {max(0, len(body) - 3)} bytes"
    chain = CertificateMessage.decode_untrusted(body).chain
    sizes = " and ".join(f"{len(certificate)} bytes" for certificate in chain)
    return f"chain of {len(chain)}: {sizes}" if chain else "no certificate"


def _server_key_exchange(body: bytes, key_exchange: KeyExchange | None) -> str:
    if key_exchange is KeyExchange.PSK:
        return f"identity hint {PskServerKeyExchange.decode_untrusted(body).identity_hint!r}"
    if key_exchange is KeyExchange.ECDHE_PSK:
        with_psk = EcdhePskServerKeyExchange.decode_untrusted(body)
        group = name_of(NamedGroup, with_psk.parameters.group)
        return f"group {group}, identity hint {with_psk.identity_hint!r}"
    if key_exchange is None:
        return ""
    signed = SignedServerKeyExchange.decode_untrusted(body)
    group = name_of(NamedGroup, signed.parameters.group)
    return f"group {group}, signed with {name_of(SignatureScheme, signed.scheme)}"


def _client_key_exchange(body: bytes, key_exchange: KeyExchange | None) -> str:
    identity = identity_in(body, key_exchange)
    if identity is not None:
        return f"identity {identity!r}"
    if key_exchange is None:
        return ""
    return f"ephemeral public key of {len(EcdhClientKeyExchange.decode_untrusted(body).public)} bytes"


def _names(names: type[enum.IntEnum], numbers: Iterable[int]) -> str:
    return " ".join(name_of(names, number) for number in numbers)
