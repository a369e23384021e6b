"""Configuration: frozen, validated when made, with a unit, a default and a reason for every number.

A ``ConfigError`` names the class, the field, the value and the range. Nothing here reads files.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sansdtls.connection_ids import ConnectionIdPolicy
from sansdtls.credentials import ClientAuthentication, Credential
from sansdtls.crypto.suites import PSK_KEY_EXCHANGES, SUITES
from sansdtls.errors import ConfigError
from sansdtls.iana import CertificateType, CipherSuite, NamedGroup, SignatureScheme
from sansdtls.session import Session
from sansdtls.validators import bytes_of_length, in_range, instance_of, optional, whole
from sansdtls.wire.extensions import MAX_FRAGMENT_LENGTHS, MAX_HOST_NAME_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_CIPHER_SUITES = (
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_CCM,
    CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_CCM_SHA256,
    CipherSuite.TLS_ECDHE_PSK_WITH_AES_256_GCM_SHA384,
    CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite.TLS_PSK_WITH_AES_128_CCM,
    CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384,
    CipherSuite.TLS_PSK_WITH_AES_256_CCM,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_CCM_8,
    CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256,
    CipherSuite.TLS_PSK_WITH_AES_128_CCM_8,
    CipherSuite.TLS_PSK_WITH_AES_256_CCM_8,
)
"""Best first; those for which there is no credential are passed over. AEAD only, forward secrecy first (RFC
9325 §4.1); full 16-byte tags before 8-byte ones, because a forged DTLS record does not end the connection
and so may be tried again; the AES_128_CCM_8 suites are there because RFC 7925 §4 makes them mandatory for
devices, many of which speak nothing else."""

DEFAULT_GROUPS = (NamedGroup.X25519, NamedGroup.SECP256R1, NamedGroup.SECP384R1)
"""X25519 first because it is the fastest; secp256r1 is what RFC 7925 §4.4 makes mandatory."""

DEFAULT_SIGNATURE_SCHEMES = (
    SignatureScheme.ECDSA_SECP256R1_SHA256,
    SignatureScheme.ED25519,
    SignatureScheme.ECDSA_SECP384R1_SHA384,
    SignatureScheme.RSA_PSS_RSAE_SHA256,
    SignatureScheme.RSA_PSS_RSAE_SHA384,
    SignatureScheme.RSA_PKCS1_SHA256,
    SignatureScheme.RSA_PKCS1_SHA384,
)
"""No SHA-1, RFC 9325 §4.4."""


_E = TypeVar("_E", bound=enum.IntEnum)


@attrs.frozen(kw_only=True)
class RetransmitPolicy:
    """When a flight is sent again, RFC 6347 §4.2.4.1. All times in seconds.

    The n-th wait is ``min(initial_timeout * 2**n, maximum_timeout)``, exact on the caller's clock.
    """

    initial_timeout: float = attrs.field(default=1.0, validator=in_range(0.01, 600, "seconds"))
    """First wait. 1 s is RFC 6347's value; below the path's round trip it only adds load."""
    maximum_timeout: float = attrs.field(default=60.0, validator=in_range(0.01, 3600, "seconds"))
    """Cap of the doubling, RFC 6347 §4.2.4.1: no less than the RFC 6298 maximum of 60 s."""
    max_retransmissions: int = attrs.field(default=6, validator=whole(0, 100, "retransmissions"))
    """How often one flight is sent again before the handshake ends. 6 with 1 s first = 123 s of trying."""
    handshake_timeout: float = attrs.field(default=130.0, validator=in_range(0.01, 86_400, "seconds"))
    """Deadline of the whole handshake; bounds how long a half-open slot can be held."""
    shrink_after: int = attrs.field(default=2, validator=whole(1, 100, "retransmissions"))
    """After this many unanswered transmissions in a row the datagram size halves, RFC 6347 §4.1.1.1:
    a path that drops large datagrams looks like loss."""

    @maximum_timeout.validator
    def _not_below_initial(self, attribute: attrs.Attribute[float], value: float) -> None:
        if value < self.initial_timeout:
            raise ConfigError(
                f"RetransmitPolicy.maximum_timeout: {value} is below initial_timeout ({self.initial_timeout})"
            )

    @classmethod
    def constrained(cls) -> RetransmitPolicy:
        """For low-power radio networks: 9 s first, as RFC 7925 §11 recommends, and 5 minutes in all."""
        return cls(initial_timeout=9.0, maximum_timeout=60.0, handshake_timeout=300.0)


@attrs.frozen(kw_only=True)
class Limits:
    """Everything that bounds memory or work. Sizes in bytes, times in seconds."""

    replay_window: int = attrs.field(default=64, validator=whole(32, 1024, "records"))
    """Width of the replay window. RFC 6347 §4.1.2.6: at least 32, 64 preferred; more for paths that
    reorder widely."""
    max_handshake_message_size: int = attrs.field(default=16_384, validator=whole(256, 131_072, "bytes"))
    """Largest handshake message accepted. A PSK handshake stays below 1 KiB; 16 KiB leaves room for
    any identity in use and for certificate chains."""
    max_reassembly_size: int = attrs.field(default=32_768, validator=whole(256, 1_048_576, "bytes"))
    """Fragments held for one connection, all messages together."""
    max_total_reassembly_size: int = attrs.field(default=8_388_608, validator=whole(256, 2**40, "bytes"))
    """Fragments held by a server, all connections together. Beyond it the connection that holds most lets go of its
    own, for the sake of one that holds less than half as much."""
    max_messages_ahead: int = attrs.field(default=8, validator=whole(1, 64, "messages"))
    """How far beyond the next expected message_seq a fragment may be. No flight here is longer."""
    max_deferred_records: int = attrs.field(default=8, validator=whole(0, 256, "records"))
    """Records of the next epoch kept until its keys exist: Finished and first data may overtake."""
    max_deferred_size: int = attrs.field(default=8_192, validator=whole(0, 1_048_576, "bytes"))
    """The same, in bytes."""
    max_half_open: int = attrs.field(default=4_096, validator=whole(1, 10_000_000, "handshakes"))
    """Handshakes a server has under way at once, each past its cookie. About 8 KiB each."""
    max_hello_reassemblies: int = attrs.field(default=512, validator=whole(1, 10_000_000, "hellos"))
    """Of ``max_half_open``, hellos in fragments that are being put together; the oldest makes room. Their senders have an
    address, but nobody has been asked about them yet. An honest one is whole within milliseconds."""
    max_associations: int = attrs.field(default=100_000, validator=whole(1, 10_000_000, "associations"))
    """Completed associations a server holds. At most 4 KiB each."""
    stale_after: float = attrs.field(default=900.0, validator=in_range(0, 31_536_000, "seconds"))
    """With ``max_associations`` reached, the least recently used association gives way to a newcomer
    that has finished its handshake, if it has been idle at least this long; else the newcomer is refused."""
    max_frozen: int = attrs.field(default=1_000_000, validator=whole(0, 100_000_000, "associations"))
    """Frozen associations a server holds. At most 400 bytes each; beyond it the one ends that would end first. Who may
    have how many is the caller's business: one device with a valid key could otherwise push out all others."""
    idle_timeout: float | None = attrs.field(
        default=86_400.0, validator=optional(in_range(0.001, 315_360_000, "seconds"))
    )
    """An association without connection IDs that received nothing authentic for this long is closed; ``None`` =
    never."""
    idle_timeout_with_connection_id: float | None = attrs.field(
        default=7_776_000.0, validator=optional(in_range(0.001, 315_360_000, "seconds"))
    )
    """The same for one with a connection ID in either direction, which is found again from wherever a device wakes
    up: 90 days."""
    max_failed_opens: int | None = attrs.field(default=None, validator=optional(whole(1, 2**36, "records")))
    """Forged records after which keys are given up; ``None`` = the cipher suite's own limit (see
    ``sansdtls/crypto/suites.py``). Lower values stop forgery sooner and make it easier to end an
    association by junk."""
    max_sealed_records: int | None = attrs.field(
        default=None, validator=optional(whole(64, 2**48 - 1, "records"))
    )
    """Records sent after which keys are given up; ``None`` = the cipher suite's own limit."""


@attrs.frozen(kw_only=True)
class CookiePolicy:
    """The stateless cookie of HelloVerifyRequest, RFC 6347 §4.2.1."""

    cookie_length: int = attrs.field(default=32, validator=whole(8, 32, "bytes"))
    """Length of the cookie (a truncated HMAC-SHA-256). With 32 the answer has 60 bytes and the
    smallest legal ClientHello 67, so an answer never exceeds its question."""
    key_length: int = attrs.field(default=32, validator=whole(16, 64, "bytes"))
    """Length of the HMAC key."""
    rotation: float = attrs.field(default=60.0, validator=in_range(1, 86_400, "seconds"))
    """A new key each so many seconds; the one before still verifies, so a cookie lives one to two
    rotations."""


@attrs.frozen(kw_only=True)
class ResumptionPolicy:
    """How a server lets clients go on from an earlier handshake. See ``handshake/resumption.py``."""

    tickets: bool = attrs.field(default=True, validator=instance_of(bool))
    """Whether clients that ask for a ticket (RFC 5077) get one; the server keeps nothing for it."""
    cache_size: int = attrs.field(default=1000, validator=whole(0, 10_000_000, "sessions"))
    """Sessions kept for clients that do not know tickets, under session IDs; the one used least recently
    makes room. About 0.5 KiB each, and what the client showed: a certificate chain may have a few more."""
    lifetime: float = attrs.field(default=86_400.0, validator=in_range(1, 604_800, "seconds"))
    """After this a session is not resumed. The keys that seal tickets are replaced as often; RFC 9325 §3.4
    asks for at most a week."""


@enum.unique
class ExtendedMasterSecret(enum.Enum):
    """Whether RFC 7627 is insisted on."""

    PREFERRED = "preferred"
    REQUIRED = "required"


def _extended_master_secret(value: ExtendedMasterSecret | str) -> ExtendedMasterSecret:
    try:
        return ExtendedMasterSecret(value)
    except ValueError as error:
        choices = ", ".join(choice.value for choice in ExtendedMasterSecret)
        raise ConfigError(f"extended_master_secret: {value!r} is none of {choices}") from error


def _members(name: str, kind: type[_E], value: Iterable[_E]) -> tuple[_E, ...]:
    try:
        members = tuple(kind(member) for member in value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error
    if not members:
        raise ConfigError(f"{name}: at least one is needed")
    if len(set(members)) != len(members):
        raise ConfigError(f"{name}: a {kind.__name__} is named twice")
    return members


def _cipher_suites(value: Iterable[CipherSuite]) -> tuple[CipherSuite, ...]:
    return _members("cipher_suites", CipherSuite, value)


def _groups(value: Iterable[NamedGroup]) -> tuple[NamedGroup, ...]:
    return _members("groups", NamedGroup, value)


def _signature_schemes(value: Iterable[SignatureScheme]) -> tuple[SignatureScheme, ...]:
    return _members("signature_schemes", SignatureScheme, value)


def _certificate_types(value: Iterable[CertificateType]) -> tuple[CertificateType, ...]:
    value = tuple(value)
    return _members("certificate types", CertificateType, value) if value else ()


# Spelled out, because type checkers do not see through ``converter=tuple``.
def _credentials(value: Iterable[Credential]) -> tuple[Credential, ...]:
    return tuple(value)


def _authorities(value: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(value)


def _alpn_protocols(value: Iterable[bytes]) -> tuple[bytes, ...]:
    names = tuple(value)
    if not all(1 <= len(name) <= 255 for name in names):
        raise ConfigError("alpn_protocols: each is 1 to 255 bytes")
    return names


def _snapshot_keys(value: Iterable[Any]) -> tuple[bytes, ...]:
    keys = tuple(value)
    if not all(isinstance(key, bytes) and len(key) == SNAPSHOT_KEY_LENGTH for key in keys):
        raise ConfigError(f"snapshot_keys: each is {SNAPSHOT_KEY_LENGTH} bytes")
    return keys


def _server_name(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not value.isascii() or not 1 <= len(value) <= MAX_HOST_NAME_LENGTH:
        raise ConfigError(f"{type(instance).__name__}.{attribute.name}: {value!r} is no ASCII host name")


def _fragment_length(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in MAX_FRAGMENT_LENGTHS.values():
        choices = ", ".join(str(length) for length in MAX_FRAGMENT_LENGTHS.values())
        raise ConfigError(f"{type(instance).__name__}.{attribute.name}: {value!r} is none of {choices}")


SNAPSHOT_KEY_LENGTH = 32
"""Bytes; the key of an HMAC-SHA-256 that makes one-time keys for AES-256."""
MAX_PSK_LENGTH = 64
"""Bytes. RFC 7925 §4 asks for up to 64; a longer key adds nothing to SHA-256's strength."""
MAX_IDENTITY_LENGTH = 0xFFFF
"""Bytes; the two-byte length field of ClientKeyExchange (RFC 4279 §2) is the only bound."""


@attrs.frozen(kw_only=True)
class _CommonConfig:
    """What clients and servers share."""

    cipher_suites: tuple[CipherSuite, ...] = attrs.field(
        default=DEFAULT_CIPHER_SUITES, converter=_cipher_suites
    )
    """In order of preference. The server's order decides."""
    extended_master_secret: ExtendedMasterSecret = attrs.field(
        default=ExtendedMasterSecret.PREFERRED, converter=_extended_master_secret
    )
    """RFC 7627; ``REQUIRED`` refuses peers without it."""
    groups: tuple[NamedGroup, ...] = attrs.field(default=DEFAULT_GROUPS, converter=_groups)
    """Groups for ephemeral Diffie-Hellman, best first. The server's order decides. A client has to name the
    curve of an ECDSA certificate here as well, or it is not shown (RFC 8422 §5.3)."""
    signature_schemes: tuple[SignatureScheme, ...] = attrs.field(
        default=DEFAULT_SIGNATURE_SCHEMES, converter=_signature_schemes
    )
    """Signatures that are made and accepted, best first: the order in which the peer is told. Of those that it
    accepts our own key makes the one that fits it best."""
    alpn_protocols: tuple[bytes, ...] = attrs.field(default=(), converter=_alpn_protocols)
    """Application protocols, RFC 7301, best first; the server's order decides. A server that has some refuses
    clients that offer others only; none = the extension is neither sent nor answered."""
    record_size_limit: int | None = attrs.field(default=None, validator=optional(whole(64, 16_384, "bytes")))
    """Largest plaintext of a protected record that is accepted, announced by RFC 8449; ``None`` = 2**14, and
    not announced unless the peer announces its own. A peer's limit is obeyed in any case."""
    mtu: int = attrs.field(default=1232, validator=whole(256, 65_507, "bytes"))
    """Largest UDP payload sent. 1232 passes every IPv6 link: 1280 less 40 for IPv6 and 8 for UDP."""
    retransmit: RetransmitPolicy = attrs.field(
        default=RetransmitPolicy(), validator=instance_of(RetransmitPolicy)
    )
    limits: Limits = attrs.field(default=Limits(), validator=instance_of(Limits))
    notify_idle_timeout: bool = attrs.field(default=True, validator=instance_of(bool))
    """Whether a peer is sent close_notify when its association ends for idleness. Off saves a datagram to
    devices that are long gone."""
    snapshot_keys: tuple[bytes, ...] = attrs.field(default=(), converter=_snapshot_keys, repr=False)
    """Keys of 32 bytes that seal frozen associations: the first seals, all open, so that a key can be replaced.
    None = what is frozen is not encrypted, and must not leave this process's memory."""
    log_secrets: bool = attrs.field(default=False, validator=instance_of(bool))
    """Emit ``SecretDerived`` events. They give away all traffic of the association."""


@attrs.frozen(kw_only=True)
class ClientConfig(_CommonConfig):
    """Configuration of one client connection."""

    psk_identity: bytes | None = attrs.field(
        default=None, validator=optional(bytes_of_length(0, MAX_IDENTITY_LENGTH, secret=False))
    )
    """The PSK identity, RFC 4279 §5.1. UTF-8 by convention, but any bytes are allowed. ``None`` = no PSK."""
    psk_key: bytes | None = attrs.field(
        default=None,
        repr=False,
        validator=optional(bytes_of_length(1, MAX_PSK_LENGTH, secret=True)),
    )
    """The key; ``None`` = asked for by a ``PskRequested`` event during the handshake."""
    server_certificate_types: tuple[CertificateType, ...] = attrs.field(
        default=(), converter=_certificate_types
    )
    """What the server may prove itself with besides a PSK, best first. Each is judged by the caller, who gets
    ``PeerCertificateReceived`` or ``PeerRawKeyReceived``."""
    credentials: tuple[Credential, ...] = attrs.field(default=(), converter=_credentials)
    """What to show a server that asks for a certificate or raw public key, best first."""
    server_name: str | None = attrs.field(default=None, validator=optional(_server_name))
    """Name of the server, sent as SNI (RFC 6066 §3) and repeated in ``PeerCertificateReceived``."""
    max_fragment_length: int | None = attrs.field(default=None, validator=optional(_fragment_length))
    """512, 1024, 2048 or 4096 bytes of plaintext per record asked of the server, RFC 6066 §4: for servers
    that do not know ``record_size_limit``."""
    session: Session | None = attrs.field(default=None, validator=optional(instance_of(Session)))
    """A session to resume, from ``connection.session`` of an earlier connection. A server that does not
    accept it makes a full handshake."""
    request_ticket: bool = attrs.field(default=True, validator=instance_of(bool))
    """Whether to ask for a session ticket (4 bytes in the hello)."""
    connection_id: ConnectionIdPolicy | None = attrs.field(
        default=None, validator=optional(instance_of(ConnectionIdPolicy))
    )
    """Offer connection IDs, RFC 9146, and by which rules; ``ConnectionIdPolicy(length=0)`` is what a device
    needs to be found again after its address has changed. ``None`` = not offered: an ID makes a device
    recognisable to whoever watches."""
    require_renegotiation_info: bool = attrs.field(default=False, validator=instance_of(bool))
    """Refuse servers that do not send renegotiation_info (RFC 5746 §4.1). Off because small servers
    often lack it and this client never renegotiates."""

    def __attrs_post_init__(self) -> None:
        if self.psk_identity is None and self.psk_key is not None:
            raise ConfigError("ClientConfig.psk_identity: needed with psk_key")
        if not self.usable_cipher_suites:
            raise ConfigError(
                "ClientConfig.cipher_suites: none can be used; PSK suites need psk_identity, the others "
                "server_certificate_types"
            )

    @property
    def usable_cipher_suites(self) -> tuple[CipherSuite, ...]:
        """Those of ``cipher_suites`` for which the configuration has what they need."""

        def usable(suite: CipherSuite) -> bool:
            if SUITES[suite].key_exchange in PSK_KEY_EXCHANGES:
                return self.psk_identity is not None
            return bool(self.server_certificate_types)

        return tuple(filter(usable, self.cipher_suites))


@attrs.frozen(kw_only=True)
class ServerConfig(_CommonConfig):
    """Configuration of a server, or of one server-side connection."""

    psk: bool = attrs.field(default=True, validator=instance_of(bool))
    """Whether clients may use pre-shared keys."""
    credentials: tuple[Credential, ...] = attrs.field(default=(), converter=_credentials)
    """Certificates and raw public keys to show to clients, best first, chosen among by server name, by
    what the client can verify and by its preference of certificate types."""
    client_authentication: ClientAuthentication = attrs.field(
        default=ClientAuthentication.NONE, validator=instance_of(ClientAuthentication)
    )
    """Whether clients that do not use a PSK are asked for a certificate or raw public key."""
    client_certificate_types: tuple[CertificateType, ...] = attrs.field(
        default=(CertificateType.X509,), converter=_certificate_types
    )
    """What clients may show, best first."""
    client_certificate_authorities: tuple[bytes, ...] = attrs.field(default=(), converter=_authorities)
    """Distinguished names in DER, a hint for clients with several certificates; none = any."""
    psk_identity_hint: bytes | None = attrs.field(
        default=None, validator=optional(bytes_of_length(1, 128, secret=False))
    )
    """Sent to clients in ServerKeyExchange, RFC 4279 §2; ``None`` = no hint and no such message."""
    unknown_identity_key_length: int = attrs.field(default=16, validator=whole(1, MAX_PSK_LENGTH, "bytes"))
    """Length of the random key that stands in for an unknown identity. Set it to the length your
    fleet uses: then even the arithmetic takes equally long."""
    resumption: ResumptionPolicy | None = attrs.field(
        default=ResumptionPolicy(), validator=optional(instance_of(ResumptionPolicy))
    )
    """``None`` = every handshake is a full one."""
    cookie: CookiePolicy = attrs.field(default=CookiePolicy(), validator=instance_of(CookiePolicy))
    freeze_after: float | None = attrs.field(
        default=None, validator=optional(in_range(0.001, 31_536_000, "seconds"))
    )
    """Silence, in both directions, after which the server turns an association into a few hundred bytes, until
    its next record, and the longest silent one sooner to make room; ``None`` = it does neither."""
    connection_id: ConnectionIdPolicy | None = attrs.field(
        default=ConnectionIdPolicy(), validator=optional(instance_of(ConnectionIdPolicy))
    )
    """Connection IDs for clients that offer them, RFC 9146; ``None`` = the extension is not answered."""

    def __attrs_post_init__(self) -> None:
        if not self.psk and not self.credentials:
            raise ConfigError("ServerConfig.credentials: needed without psk")
