"""Code points from the IANA TLS registries, for the part of DTLS that this package speaks.

Every enum is ``@enum.unique``: two names for one number is how a copied table goes wrong unseen.
Unknown numbers from a peer stay plain integers; they never become enum members.
"""

import enum


@enum.unique
class ContentType(enum.IntEnum):
    """Record content types, RFC 5246 §6.2.1."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23


@enum.unique
class HandshakeType(enum.IntEnum):
    """Handshake message types, RFC 5246 §7.4 and RFC 6347 §4.3.2."""

    HELLO_REQUEST = 0
    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    HELLO_VERIFY_REQUEST = 3
    SERVER_KEY_EXCHANGE = 12
    SERVER_HELLO_DONE = 14
    CLIENT_KEY_EXCHANGE = 16
    FINISHED = 20


@enum.unique
class AlertLevel(enum.IntEnum):
    """Alert levels, RFC 5246 §7.2."""

    WARNING = 1
    FATAL = 2


@enum.unique
class AlertDescription(enum.IntEnum):
    """Alert descriptions, RFC 5246 §7.2, with those later RFCs added for DTLS 1.2."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    PROTOCOL_VERSION = 70
    INSUFFICIENT_SECURITY = 71
    INTERNAL_ERROR = 80
    USER_CANCELED = 90
    NO_RENEGOTIATION = 100
    UNSUPPORTED_EXTENSION = 110
    UNRECOGNIZED_NAME = 112
    UNKNOWN_PSK_IDENTITY = 115


@enum.unique
class ExtensionType(enum.IntEnum):
    """Hello extensions, RFC 7627 §5.1 and RFC 5746 §3.2."""

    EXTENDED_MASTER_SECRET = 23
    RENEGOTIATION_INFO = 0xFF01


@enum.unique
class ProtocolVersion(enum.IntEnum):
    """DTLS versions as they stand on the wire: the ones' complement of the TLS-like number.

    So a *newer* version is a *smaller* number (RFC 6347 §4.1). Only DTLS 1.2 is negotiated;
    1.0 appears in record headers before negotiation and in HelloVerifyRequest.
    """

    DTLS_1_0 = 0xFEFF
    DTLS_1_2 = 0xFEFD


@enum.unique
class CipherSuite(enum.IntEnum):
    """The cipher suites of this package, by their IANA names."""

    TLS_PSK_WITH_AES_128_GCM_SHA256 = 0x00A8
    TLS_PSK_WITH_AES_256_GCM_SHA384 = 0x00A9
    TLS_PSK_WITH_AES_128_CCM = 0xC0A4
    TLS_PSK_WITH_AES_256_CCM = 0xC0A5
    TLS_PSK_WITH_AES_128_CCM_8 = 0xC0A8
    TLS_PSK_WITH_AES_256_CCM_8 = 0xC0A9
    TLS_PSK_WITH_CHACHA20_POLY1305_SHA256 = 0xCCAB


TLS_EMPTY_RENEGOTIATION_INFO_SCSV = 0x00FF
"""Signalling suite that stands for an empty renegotiation_info, RFC 5746 §3.3."""

NULL_COMPRESSION = 0
"""The only compression method, RFC 7925 §9 and RFC 9325 §3.3."""
