"""What the two hellos agree on: the server's choice, and the client's check of it.

Suites are tried in the server's order; the first for which everything is at hand wins: a credential that the
client can verify, a group and a signature scheme in common. So one server serves PSK, certificates and raw
public keys at the same time, and each client gets the best that it can do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import attrs

from sansdtls.config import ExtendedMasterSecret
from sansdtls.connection_ids import ReturnRoutability
from sansdtls.credentials import ClientAuthentication, Credential
from sansdtls.crypto.suites import PSK_KEY_EXCHANGES, SUITES, KeyExchange, SuiteParameters
from sansdtls.handshake.extensions import (
    EMPTY_RENEGOTIATION_INFO,
    HelloExtensions,
    read_client_extensions_untrusted,
    read_server_extensions_untrusted,
)
from sansdtls.handshake.failure import incompatible, violation
from sansdtls.iana import (
    NULL_COMPRESSION,
    TLS_EMPTY_RENEGOTIATION_INFO_SCSV,
    AlertDescription,
    CertificateType,
    CipherSuite,
    ExtensionType,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
)
from sansdtls.wire.extensions import (
    encode_alpn,
    encode_certificate_type,
    encode_certificate_types,
    encode_connection_id,
    encode_ec_point_formats,
    encode_max_fragment_length,
    encode_record_size_limit,
    encode_server_name,
    encode_session_ticket,
    encode_signature_algorithms,
    encode_supported_groups,
)
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sansdtls.config import ClientConfig, ServerConfig
    from sansdtls.connection_ids import ConnectionIdPolicy
    from sansdtls.wire.messages import ClientHello, Extensions, ServerHello

_ROOM_BESIDE_ID = 128
"""Bytes of a datagram that a peer's connection ID must leave: header, nonce, tag and type take at most 38, Finished
takes 24. Only with an mtu below 383 bytes an ID can be too long."""

_X509_ONLY = (CertificateType.X509,)
"""What a peer that does not send the certificate type extensions speaks, RFC 7250 §4.1."""


@attrs.frozen(weakref_slot=False)
class Negotiated:
    """What the hellos settled."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    extended_master_secret: bool
    """RFC 7627."""
    secure_renegotiation: bool
    """Whether the peer sent renegotiation_info or its SCSV, RFC 5746. Renegotiation is refused anyhow."""
    group: NamedGroup | None = None
    """Of the ephemeral Diffie-Hellman; ``None`` without one, and in a resumed handshake."""
    server_name: str | None = None
    """The name that the client asked for, RFC 6066 §3; in lower case."""
    alpn_protocol: bytes | None = None
    """RFC 7301."""
    resumed: bool = False
    """Whether the keys come from an earlier handshake."""
    return_routability: bool = False
    """Whether a new path can be proven by RFC 9853."""


_SHARED = 256
"""Agreements of which one object serves all. A fleet has a handful; names that clients ask for make more."""


@lru_cache(_SHARED)
def shared(negotiated: Negotiated) -> Negotiated:
    """``negotiated``, or an equal object that other associations have already."""
    return negotiated


@attrs.frozen
class Agreement:
    """:class:`Negotiated`, and what only the handshake needs of it."""

    negotiated: Negotiated
    suite: SuiteParameters
    hello: HelloExtensions
    """The client's extensions on a server, the server's on a client."""
    credential: Credential | None = None
    """What the server shows; server only."""
    scheme: SignatureScheme | None = None
    """How it signs; server only."""
    server_certificate_type: CertificateType = CertificateType.X509
    client_certificate_type: CertificateType | None = None
    """What the client is asked to show; ``None`` = it is not asked (server only)."""

    @property
    def max_plaintext(self) -> int:
        """Bytes that the peer takes in one record."""
        # RFC 8449 §5: record_size_limit takes the place of max_fragment_length where both are there.
        return self.hello.record_size_limit or self.hello.max_fragment_length or MAX_PLAINTEXT_LENGTH

    def max_accepted(self, config: ClientConfig | ServerConfig) -> int:
        """Bytes that we take in one record."""
        if self.hello.record_size_limit is not None:
            return config.record_size_limit or MAX_PLAINTEXT_LENGTH
        return self.hello.max_fragment_length or MAX_PLAINTEXT_LENGTH


# --- the client's offer -------------------------------------------------------------------------------


def client_extensions(
    config: ClientConfig, suites: Iterable[CipherSuite], ticket: bytes | None, connection_id: bytes
) -> Extensions:
    """What our ClientHello offers. RFC 9325 §3.5: the first two MUST be implemented for DTLS 1.2.

    ``connection_id`` is what the server is to put into its records, if the policy is to offer one.
    """
    kinds = {SUITES[suite].key_exchange for suite in suites}
    extensions: list[tuple[int, bytes]] = [
        (ExtensionType.EXTENDED_MASTER_SECRET, b""),
        (ExtensionType.RENEGOTIATION_INFO, EMPTY_RENEGOTIATION_INFO),
    ]
    if config.server_name is not None:
        extensions.append((ExtensionType.SERVER_NAME, encode_server_name(config.server_name)))
    if kinds - {KeyExchange.PSK}:
        extensions.append((ExtensionType.SUPPORTED_GROUPS, encode_supported_groups(config.groups)))
        extensions.append((ExtensionType.EC_POINT_FORMATS, encode_ec_point_formats()))
    if kinds - PSK_KEY_EXCHANGES:
        schemes = encode_signature_algorithms(config.signature_schemes)
        extensions.append((ExtensionType.SIGNATURE_ALGORITHMS, schemes))
        # RFC 7250 §4.1: a client that speaks X.509 alone leaves the extensions out.
        if config.server_certificate_types != _X509_ONLY:
            types = encode_certificate_types(config.server_certificate_types)
            extensions.append((ExtensionType.SERVER_CERTIFICATE_TYPE, types))
        shown = tuple(dict.fromkeys(credential.certificate_type for credential in config.credentials))
        if shown not in ((), _X509_ONLY):
            extensions.append((ExtensionType.CLIENT_CERTIFICATE_TYPE, encode_certificate_types(shown)))
    if config.alpn_protocols:
        protocols = encode_alpn(config.alpn_protocols)
        extensions.append((ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION, protocols))
    if config.record_size_limit is not None:
        limit = encode_record_size_limit(config.record_size_limit)
        extensions.append((ExtensionType.RECORD_SIZE_LIMIT, limit))
    if config.max_fragment_length is not None:
        length = encode_max_fragment_length(config.max_fragment_length)
        extensions.append((ExtensionType.MAX_FRAGMENT_LENGTH, length))
    if ticket is not None:
        extensions.append((ExtensionType.SESSION_TICKET, encode_session_ticket(ticket)))
    if config.connection_id is not None:
        extensions.append((ExtensionType.CONNECTION_ID, encode_connection_id(connection_id)))
        # RFC 9853 §3: "A client offering the connection_id extension SHOULD also offer the rrc extension,
        # unless the application using DTLS has its own address validation mechanism."
        if _checks_paths(config.connection_id):
            extensions.append((ExtensionType.RETURN_ROUTABILITY_CHECK, b""))
    return tuple(extensions)


# --- the server's choice ------------------------------------------------------------------------------


def negotiate(config: ServerConfig, hello: ClientHello) -> Agreement:
    """The server's choice. Raises HandshakeFailure, or DecodeError for a malformed extension."""
    # DTLS version numbers count downwards: a larger number is an older version.
    if hello.version >> 8 != ProtocolVersion.DTLS_1_2 >> 8 or hello.version > ProtocolVersion.DTLS_1_2:
        raise incompatible(AlertDescription.PROTOCOL_VERSION, f"client version {hello.version:#06x}")
    # RFC 5246 §7.4.1.2: "This vector MUST contain [...] CompressionMethod.null."
    if NULL_COMPRESSION not in hello.compression_methods:
        raise violation(AlertDescription.ILLEGAL_PARAMETER, "ClientHello without null compression")
    extensions = read_client_extensions_untrusted(hello.extensions)
    if config.connection_id is None or not _leaves_room(config, extensions):
        extensions = attrs.evolve(extensions, connection_id=None)
    secure_renegotiation = _check_renegotiation_info(extensions)
    secure_renegotiation |= TLS_EMPTY_RENEGOTIATION_INFO_SCSV in hello.cipher_suites
    _check_policy(config.extended_master_secret, extensions)
    alpn_protocol = _choose_alpn(config, extensions)
    server_name = extensions.server_name.lower() if isinstance(extensions.server_name, str) else None
    group = next((group for group in config.groups if group in _groups(extensions)), None)
    offered = frozenset(hello.cipher_suites)
    for suite in config.cipher_suites:
        parameters = SUITES[suite]
        kind = parameters.key_exchange
        if suite not in offered or (kind is not KeyExchange.PSK and group is None):
            continue
        shown = None
        if kind in PSK_KEY_EXCHANGES:
            if not config.psk:
                continue
        else:
            shown = _choose_credential(config, kind, extensions, server_name)
            if shown is None:
                continue
        negotiated = Negotiated(
            version=ProtocolVersion.DTLS_1_2,
            cipher_suite=suite,
            extended_master_secret=extensions.extended_master_secret,
            secure_renegotiation=secure_renegotiation,
            group=None if kind is KeyExchange.PSK else group,
            server_name=server_name,
            alpn_protocol=alpn_protocol,
            # RFC 9853 §3: "A client offering the rrc extension MUST also offer the connection_id extension"
            return_routability=(
                extensions.return_routability_check
                and extensions.connection_id is not None
                and _checks_paths(config.connection_id)
            ),
        )
        if shown is None:
            return Agreement(negotiated, parameters, extensions)
        credential, scheme = shown
        return Agreement(
            negotiated,
            parameters,
            extensions,
            credential,
            scheme,
            credential.certificate_type,
            _choose_client_certificate_type(config, extensions),
        )
    raise incompatible(AlertDescription.HANDSHAKE_FAILURE, "no cipher suite in common")


def _groups(extensions: HelloExtensions) -> tuple[int, ...]:
    # RFC 8422 §4: without the extension the server may choose any; secp256r1 is what all of them have.
    return (NamedGroup.SECP256R1,) if extensions.supported_groups is None else extensions.supported_groups


def _choose_credential(
    config: ServerConfig, kind: KeyExchange, extensions: HelloExtensions, server_name: str | None
) -> tuple[Credential, SignatureScheme] | None:
    """The best credential for this key exchange that the client can verify, and how to sign with it."""
    types = extensions.server_certificate_types or _X509_ONLY
    named = [credential for credential in config.credentials if server_name in credential.server_names]
    general = [credential for credential in config.credentials if not credential.server_names]
    for certificate_type in types:
        for credential in (*named, *general):
            if credential.certificate_type != certificate_type:
                continue
            if credential.key.is_rsa != (kind is KeyExchange.ECDHE_RSA):
                continue
            # RFC 8422 §5.3: the key of an ECDSA certificate has to be on a curve that the client has.
            if credential.key.group is not None and credential.key.group not in _groups(extensions):
                continue
            # In the key's own order: what fits it best, such as SHA-384 with P-384, comes first.
            for scheme in credential.key.schemes:
                if scheme in config.signature_schemes and scheme in (extensions.signature_algorithms or ()):
                    return credential, scheme
    return None


def _choose_client_certificate_type(
    config: ServerConfig, extensions: HelloExtensions
) -> CertificateType | None:
    if config.client_authentication is ClientAuthentication.NONE:
        return None
    types = extensions.client_certificate_types or _X509_ONLY
    chosen = next((kind for kind in config.client_certificate_types if kind in types), None)
    if chosen is None and config.client_authentication is ClientAuthentication.REQUIRED:
        # RFC 7250 §4.2: the server "terminates the session with a fatal alert of type
        # unsupported_certificate."
        raise incompatible(AlertDescription.UNSUPPORTED_CERTIFICATE, "no certificate type in common")
    return chosen


def _choose_alpn(config: ServerConfig, extensions: HelloExtensions) -> bytes | None:
    if not config.alpn_protocols or extensions.alpn_protocols is None:
        return None
    for protocol in config.alpn_protocols:
        if protocol in extensions.alpn_protocols:
            return protocol
    # RFC 7301 §3.2: "the server SHALL respond with a fatal "no_application_protocol" alert."
    raise incompatible(AlertDescription.NO_APPLICATION_PROTOCOL, "no application protocol in common")


def server_extensions(
    config: ServerConfig,
    agreement: Agreement,
    hello: ClientHello,
    *,
    new_ticket: bool,
    connection_id: bytes | None,
) -> Extensions:
    """What our ServerHello answers: nothing that was not offered, in the client's order.

    ``connection_id`` is what the client is to put into its records; ``None`` = no IDs in either direction.
    """
    negotiated, offered = agreement.negotiated, agreement.hello
    answers: dict[int, bytes] = {}
    if negotiated.extended_master_secret:
        answers[ExtensionType.EXTENDED_MASTER_SECRET] = b""
    if negotiated.secure_renegotiation:
        answers[ExtensionType.RENEGOTIATION_INFO] = EMPTY_RENEGOTIATION_INFO
    if agreement.credential is not None and negotiated.server_name in agreement.credential.server_names:
        answers[ExtensionType.SERVER_NAME] = b""
    if negotiated.group is not None:
        answers[ExtensionType.EC_POINT_FORMATS] = encode_ec_point_formats()
    if agreement.credential is not None:
        kind = encode_certificate_type(agreement.server_certificate_type)
        answers[ExtensionType.SERVER_CERTIFICATE_TYPE] = kind
        if agreement.client_certificate_type is not None:
            kind = encode_certificate_type(agreement.client_certificate_type)
            answers[ExtensionType.CLIENT_CERTIFICATE_TYPE] = kind
    if negotiated.alpn_protocol is not None:
        protocol = encode_alpn((negotiated.alpn_protocol,))
        answers[ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION] = protocol
    if offered.record_size_limit is not None:
        limit = encode_record_size_limit(config.record_size_limit or MAX_PLAINTEXT_LENGTH)
        answers[ExtensionType.RECORD_SIZE_LIMIT] = limit
    elif offered.max_fragment_length is not None:
        length = encode_max_fragment_length(offered.max_fragment_length)
        answers[ExtensionType.MAX_FRAGMENT_LENGTH] = length
    if new_ticket:
        answers[ExtensionType.SESSION_TICKET] = b""
    if connection_id is not None:
        answers[ExtensionType.CONNECTION_ID] = encode_connection_id(connection_id)
    if negotiated.return_routability:
        answers[ExtensionType.RETURN_ROUTABILITY_CHECK] = b""
    kinds: list[int] = [kind for kind, _ in hello.extensions if kind in answers]
    if negotiated.secure_renegotiation and ExtensionType.RENEGOTIATION_INFO not in kinds:
        kinds.append(ExtensionType.RENEGOTIATION_INFO)  # the SCSV stood for it
    return tuple((kind, answers[kind]) for kind in kinds)


# --- the client's check -------------------------------------------------------------------------------


def check_answer(config: ClientConfig, hello: ClientHello, answer: ServerHello) -> Agreement:
    """The client's check of a ServerHello. Raises HandshakeFailure, or DecodeError."""
    if answer.version != ProtocolVersion.DTLS_1_2:
        raise incompatible(AlertDescription.PROTOCOL_VERSION, f"server version {answer.version:#06x}")
    if answer.cipher_suite not in hello.cipher_suites:
        raise _illegal("the server chose a cipher suite that was not offered")
    if answer.compression_method != NULL_COMPRESSION:
        raise _illegal("the server chose a compression method")
    offered = {kind for kind, _ in hello.extensions}
    for kind, _ in answer.extensions:
        # RFC 5246 §7.4.1.4: a client that gets an extension type it did not request
        # "MUST abort the handshake with an unsupported_extension fatal alert."
        if kind not in offered:
            raise violation(AlertDescription.UNSUPPORTED_EXTENSION, f"unrequested extension {kind}")
    extensions = read_server_extensions_untrusted(answer.extensions)
    if not _leaves_room(config, extensions):
        raise incompatible(
            AlertDescription.HANDSHAKE_FAILURE, "the server's connection ID fills our datagrams"
        )
    secure_renegotiation = _check_renegotiation_info(extensions)
    _check_policy(config.extended_master_secret, extensions)
    if config.require_renegotiation_info and not secure_renegotiation:
        raise incompatible(AlertDescription.HANDSHAKE_FAILURE, "the peer lacks renegotiation_info")
    if extensions.max_fragment_length not in (None, config.max_fragment_length):
        # RFC 6066 §4: if the value differs from what was requested, the client "MUST abort the
        # handshake with an "illegal_parameter" alert."
        raise _illegal("the server changed max_fragment_length")
    if extensions.max_fragment_length is not None and extensions.record_size_limit is not None:
        # RFC 8449 §5: "A client MUST treat receipt of both [...] as a fatal error"
        raise _illegal("the server answered max_fragment_length and record_size_limit")
    (protocol,) = extensions.alpn_protocols or (None,)
    if protocol is not None and protocol not in config.alpn_protocols:
        raise _illegal("the server chose an application protocol that was not offered")
    if extensions.return_routability_check and extensions.connection_id is None:
        # RFC 9853 §3 has the check for associations with connection IDs only.
        raise _illegal("the server answered rrc without connection_id")
    shown = tuple(credential.certificate_type for credential in config.credentials) or _X509_ONLY
    negotiated = Negotiated(
        version=ProtocolVersion.DTLS_1_2,
        cipher_suite=CipherSuite(answer.cipher_suite),
        extended_master_secret=extensions.extended_master_secret,
        secure_renegotiation=secure_renegotiation,
        server_name=config.server_name.lower() if config.server_name is not None else None,
        alpn_protocol=protocol,
        return_routability=extensions.return_routability_check,
    )
    return Agreement(
        negotiated,
        SUITES[negotiated.cipher_suite],
        extensions,
        server_certificate_type=_chosen_type(
            extensions.server_certificate_types, config.server_certificate_types
        ),
        client_certificate_type=_chosen_type(extensions.client_certificate_types, shown),
    )


def _chosen_type(chosen: tuple[int, ...] | None, offered: tuple[CertificateType, ...]) -> CertificateType:
    if chosen is None:
        return CertificateType.X509
    if chosen[0] not in offered:
        raise _illegal("the server chose a certificate type that was not offered")
    return CertificateType(chosen[0])


# --- both ---------------------------------------------------------------------------------------------


def _illegal(rule: str) -> Exception:
    return violation(AlertDescription.ILLEGAL_PARAMETER, rule)


def _leaves_room(config: ClientConfig | ServerConfig, extensions: HelloExtensions) -> bool:
    """Whether datagrams of ours can carry something besides the ID that the peer wants to find in them."""
    return config.mtu - len(extensions.connection_id or b"") >= _ROOM_BESIDE_ID


def _checks_paths(policy: ConnectionIdPolicy | None) -> bool:
    return policy is not None and policy.return_routability is not ReturnRoutability.OFF


def _check_renegotiation_info(extensions: HelloExtensions) -> bool:
    if extensions.renegotiation_info:
        # RFC 5746 §3.4 and §3.6: "... MUST abort the handshake" where the value is not empty.
        raise violation(
            AlertDescription.HANDSHAKE_FAILURE, "renegotiation_info of a first handshake is not empty"
        )
    return extensions.renegotiation_info is not None


def _check_policy(policy: ExtendedMasterSecret, extensions: HelloExtensions) -> None:
    if policy is ExtendedMasterSecret.REQUIRED and not extensions.extended_master_secret:
        raise incompatible(AlertDescription.HANDSHAKE_FAILURE, "the peer lacks extended_master_secret")
