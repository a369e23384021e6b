"""Configuration: frozen, validated when made, with a unit, a default and a reason for every number.

A ``ConfigError`` names the class, the field, the value and the range. Nothing here reads files.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import attrs

from sansdtls.errors import ConfigError
from sansdtls.iana import CipherSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEFAULT_CIPHER_SUITES = (
    CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite.TLS_PSK_WITH_AES_128_CCM,
    CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384,
    CipherSuite.TLS_PSK_WITH_AES_256_CCM,
    CipherSuite.TLS_PSK_WITH_AES_128_CCM_8,
    CipherSuite.TLS_PSK_WITH_AES_256_CCM_8,
)
"""Best first. AEAD only (RFC 9325 §4.1); full 16-byte tags before 8-byte ones, because a forged DTLS
record does not end the connection and so may be tried again; AES_128_CCM_8 is there because RFC 7925
§4 makes it mandatory for PSK devices, many of which speak nothing else."""


def _in_range(low: float, high: float, unit: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(
                f"{type(instance).__name__}.{attribute.name}: {value!r} is not within {low} to {high} {unit}"
            )

    return check


def _whole(low: int, high: int, unit: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    in_range = _in_range(low, high, unit)

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        in_range(instance, attribute, value)
        if not isinstance(value, int):
            raise ConfigError(f"{type(instance).__name__}.{attribute.name}: {value!r} is not a whole number")

    return check


def _optional(
    check: Callable[[Any, attrs.Attribute[Any], Any], None],
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check_unless_none(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None:
            check(instance, attribute, value)

    return check_unless_none


@attrs.frozen(kw_only=True)
class RetransmitPolicy:
    """When a flight is sent again, RFC 6347 §4.2.4.1. All times in seconds.

    The n-th wait is ``min(initial_timeout * 2**n, maximum_timeout)``, exact on the caller's clock.
    """

    initial_timeout: float = attrs.field(default=1.0, validator=_in_range(0.01, 600, "seconds"))
    """First wait. 1 s is RFC 6347's value; below the path's round trip it only adds load."""
    maximum_timeout: float = attrs.field(default=60.0, validator=_in_range(0.01, 3600, "seconds"))
    """Cap of the doubling, RFC 6347 §4.2.4.1: no less than the RFC 6298 maximum of 60 s."""
    max_retransmissions: int = attrs.field(default=6, validator=_whole(0, 100, "retransmissions"))
    """How often one flight is sent again before the handshake ends. 6 with 1 s first = 123 s of trying."""
    handshake_timeout: float = attrs.field(default=130.0, validator=_in_range(0.01, 86_400, "seconds"))
    """Deadline of the whole handshake; bounds how long a half-open slot can be held."""
    shrink_after: int = attrs.field(default=2, validator=_whole(1, 100, "retransmissions"))
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

    replay_window: int = attrs.field(default=64, validator=_whole(32, 1024, "records"))
    """Width of the replay window. RFC 6347 §4.1.2.6: at least 32, 64 preferred; more for paths that
    reorder widely."""
    max_handshake_message_size: int = attrs.field(default=16_384, validator=_whole(256, 131_072, "bytes"))
    """Largest handshake message accepted. A PSK handshake stays below 1 KiB; 16 KiB leaves room for
    any identity in use and for certificate chains."""
    max_reassembly_size: int = attrs.field(default=32_768, validator=_whole(256, 1_048_576, "bytes"))
    """Fragments held for one connection, all messages together."""
    max_total_reassembly_size: int = attrs.field(default=8_388_608, validator=_whole(256, 2**40, "bytes"))
    """Fragments held by a server, all connections together."""
    max_messages_ahead: int = attrs.field(default=8, validator=_whole(1, 64, "messages"))
    """How far beyond the next expected message_seq a fragment may be. No flight here is longer."""
    max_deferred_records: int = attrs.field(default=8, validator=_whole(0, 256, "records"))
    """Records of the next epoch kept until its keys exist: Finished and first data may overtake."""
    max_deferred_size: int = attrs.field(default=8_192, validator=_whole(0, 1_048_576, "bytes"))
    """The same, in bytes."""
    max_half_open: int = attrs.field(default=4_096, validator=_whole(1, 10_000_000, "handshakes"))
    """Handshakes a server has under way at once, each past its cookie. About 8 KiB each."""
    max_associations: int = attrs.field(default=100_000, validator=_whole(1, 10_000_000, "associations"))
    """Completed associations a server holds. At most 4 KiB each."""
    stale_after: float = attrs.field(default=900.0, validator=_in_range(0, 31_536_000, "seconds"))
    """With ``max_associations`` reached, the least recently used association gives way to a newcomer
    that has finished its handshake, if it has been idle at least this long; else the newcomer is refused."""
    idle_timeout: float | None = attrs.field(
        default=86_400.0, validator=_optional(_in_range(0.001, 315_360_000, "seconds"))
    )
    """An association that received nothing authentic for this long is closed; ``None`` = never."""
    max_failed_opens: int | None = attrs.field(default=None, validator=_optional(_whole(1, 2**36, "records")))
    """Forged records after which keys are given up; ``None`` = the cipher suite's own limit (see
    ``sansdtls/crypto/suites.py``). Lower values stop forgery sooner and make it easier to end an
    association by junk."""
    max_sealed_records: int | None = attrs.field(
        default=None, validator=_optional(_whole(64, 2**48 - 1, "records"))
    )
    """Records sent after which keys are given up; ``None`` = the cipher suite's own limit."""


@attrs.frozen(kw_only=True)
class CookiePolicy:
    """The stateless cookie of HelloVerifyRequest, RFC 6347 §4.2.1."""

    cookie_length: int = attrs.field(default=32, validator=_whole(8, 32, "bytes"))
    """Length of the cookie (a truncated HMAC-SHA-256). With 32 the answer has 60 bytes and the
    smallest legal ClientHello 67, so an answer never exceeds its question."""
    key_length: int = attrs.field(default=32, validator=_whole(16, 64, "bytes"))
    """Length of the HMAC key."""
    rotation: float = attrs.field(default=60.0, validator=_in_range(1, 86_400, "seconds"))
    """A new key each so many seconds; the one before still verifies, so a cookie lives one to two
    rotations."""


@enum.unique
class ExtendedMasterSecret(enum.Enum):
    """Whether RFC 7627 is insisted on."""

    PREFERRED = "preferred"
    REQUIRED = "required"


def _instance_of(kind: type) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise ConfigError(
                f"{type(instance).__name__}.{attribute.name}: {kind.__name__} is needed, not {type(value).__name__}"
            )

    return check


def _extended_master_secret(value: ExtendedMasterSecret | str) -> ExtendedMasterSecret:
    try:
        return ExtendedMasterSecret(value)
    except ValueError as error:
        choices = ", ".join(choice.value for choice in ExtendedMasterSecret)
        raise ConfigError(f"extended_master_secret: {value!r} is none of {choices}") from error


def _cipher_suites(value: Iterable[CipherSuite]) -> tuple[CipherSuite, ...]:
    try:
        suites = tuple(CipherSuite(suite) for suite in value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cipher_suites: {error}") from error
    if not suites:
        raise ConfigError("cipher_suites: at least one is needed")
    if len(set(suites)) != len(suites):
        raise ConfigError("cipher_suites: a suite is named twice")
    return suites


def _bytes_of_length(
    low: int, high: int, *, secret: bool
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        where = f"{type(instance).__name__}.{attribute.name}"
        if not isinstance(value, bytes):
            raise ConfigError(f"{where}: bytes are needed, not {type(value).__name__}")
        if not low <= len(value) <= high:
            shown = "" if secret else f" {value!r}"
            raise ConfigError(f"{where}:{shown} has {len(value)} bytes, not {low} to {high}")

    return check


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
    mtu: int = attrs.field(default=1232, validator=_whole(256, 65_507, "bytes"))
    """Largest UDP payload sent. 1232 passes every IPv6 link: 1280 less 40 for IPv6 and 8 for UDP."""
    retransmit: RetransmitPolicy = attrs.field(
        default=RetransmitPolicy(), validator=_instance_of(RetransmitPolicy)
    )
    limits: Limits = attrs.field(default=Limits(), validator=_instance_of(Limits))
    log_secrets: bool = attrs.field(default=False, validator=_instance_of(bool))
    """Emit ``SecretDerived`` events. They give away all traffic of the association."""


@attrs.frozen(kw_only=True)
class ClientConfig(_CommonConfig):
    """Configuration of one client connection."""

    psk_identity: bytes = attrs.field(validator=_bytes_of_length(0, MAX_IDENTITY_LENGTH, secret=False))
    """The PSK identity, RFC 4279 §5.1. UTF-8 by convention, but any bytes are allowed."""
    psk_key: bytes | None = attrs.field(
        default=None,
        repr=False,
        validator=_optional(_bytes_of_length(1, MAX_PSK_LENGTH, secret=True)),
    )
    """The key; ``None`` = asked for by a ``PskRequested`` event during the handshake."""
    require_renegotiation_info: bool = attrs.field(default=False, validator=_instance_of(bool))
    """Refuse servers that do not send renegotiation_info (RFC 5746 §4.1). Off because small servers
    often lack it and this client never renegotiates."""


@attrs.frozen(kw_only=True)
class ServerConfig(_CommonConfig):
    """Configuration of a server, or of one server-side connection."""

    psk_identity_hint: bytes | None = attrs.field(
        default=None, validator=_optional(_bytes_of_length(1, 128, secret=False))
    )
    """Sent to clients in ServerKeyExchange, RFC 4279 §2; ``None`` = no hint and no such message."""
    unknown_identity_key_length: int = attrs.field(default=16, validator=_whole(1, MAX_PSK_LENGTH, "bytes"))
    """Length of the random key that stands in for an unknown identity. Set it to the length your
    fleet uses: then even the arithmetic takes equally long."""
    cookie: CookiePolicy = attrs.field(default=CookiePolicy(), validator=_instance_of(CookiePolicy))
