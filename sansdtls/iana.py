"""Code points from the IANA TLS registries, for the part of DTLS that this package speaks.

Every enum is ``@enum.unique``: two names for one number is how a copied table goes wrong unseen.
Unknown numbers from a peer stay plain integers; they never become enum members.
"""

import enum


@enum.unique
class ContentType(enum.IntEnum):
    """Record content types, RFC 5246 §6.2.1, RFC 9146 §4 and RFC 9853 §4."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23
    TLS12_CID = 25
    """A protected record with a connection ID; its true type is inside."""
    RETURN_ROUTABILITY_CHECK = 27


@enum.unique
class PathMessageType(enum.IntEnum):
    """Types of return_routability_check messages, RFC 9853 §4 (``rrc_msg_type``)."""

    PATH_CHALLENGE = 0
    PATH_RESPONSE = 1
    PATH_DROP = 2


@enum.unique
class HandshakeType(enum.IntEnum):
    """Handshake message types, RFC 5246 §7.4, RFC 6347 §4.3.2 and, for tickets, RFC 5077 §3.3."""

    HELLO_REQUEST = 0
    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    HELLO_VERIFY_REQUEST = 3
    NEW_SESSION_TICKET = 4
    CERTIFICATE = 11
    SERVER_KEY_EXCHANGE = 12
    CERTIFICATE_REQUEST = 13
    SERVER_HELLO_DONE = 14
    CERTIFICATE_VERIFY = 15
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
    NO_APPLICATION_PROTOCOL = 120


@enum.unique
class ExtensionType(enum.IntEnum):
    """Hello extensions. Which RFC defines each is said where its body is read, in ``wire.extensions``."""

    SERVER_NAME = 0
    MAX_FRAGMENT_LENGTH = 1
    SUPPORTED_GROUPS = 10
    EC_POINT_FORMATS = 11
    SIGNATURE_ALGORITHMS = 13
    APPLICATION_LAYER_PROTOCOL_NEGOTIATION = 16
    CLIENT_CERTIFICATE_TYPE = 19
    SERVER_CERTIFICATE_TYPE = 20
    EXTENDED_MASTER_SECRET = 23
    RECORD_SIZE_LIMIT = 28
    SESSION_TICKET = 35
    CONNECTION_ID = 54
    RETURN_ROUTABILITY_CHECK = 61
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
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 = 0xC02B
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 = 0xC02C
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 = 0xC02F
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 = 0xC030
    TLS_PSK_WITH_AES_128_CCM = 0xC0A4
    TLS_PSK_WITH_AES_256_CCM = 0xC0A5
    TLS_PSK_WITH_AES_128_CCM_8 = 0xC0A8
    TLS_PSK_WITH_AES_256_CCM_8 = 0xC0A9
    TLS_ECDHE_ECDSA_WITH_AES_128_CCM = 0xC0AC
    TLS_ECDHE_ECDSA_WITH_AES_256_CCM = 0xC0AD
    TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8 = 0xC0AE
    TLS_ECDHE_ECDSA_WITH_AES_256_CCM_8 = 0xC0AF
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 = 0xCCA8
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 = 0xCCA9
    TLS_PSK_WITH_CHACHA20_POLY1305_SHA256 = 0xCCAB
    TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256 = 0xCCAC
    TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256 = 0xD001
    TLS_ECDHE_PSK_WITH_AES_256_GCM_SHA384 = 0xD002
    TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256 = 0xD003
    TLS_ECDHE_PSK_WITH_AES_128_CCM_SHA256 = 0xD005


@enum.unique
class NamedGroup(enum.IntEnum):
    """The groups of this package for ephemeral Diffie-Hellman, RFC 8422 §5.1.1."""

    SECP256R1 = 23
    SECP384R1 = 24
    X25519 = 29


@enum.unique
class SignatureScheme(enum.IntEnum):
    """Signature algorithms under their names of RFC 8446 §4.2.3.

    DTLS 1.2 reads the same two bytes as a hash and a signature algorithm (RFC 5246 §7.4.1.4.1). So there
    ``ECDSA_SECP256R1_SHA256`` is any ECDSA key with SHA-256, whatever its curve.
    """

    RSA_PKCS1_SHA256 = 0x0401
    ECDSA_SECP256R1_SHA256 = 0x0403
    RSA_PKCS1_SHA384 = 0x0501
    ECDSA_SECP384R1_SHA384 = 0x0503
    RSA_PSS_RSAE_SHA256 = 0x0804
    RSA_PSS_RSAE_SHA384 = 0x0805
    ED25519 = 0x0807


@enum.unique
class CertificateType(enum.IntEnum):
    """What a Certificate message carries, RFC 7250 §3."""

    X509 = 0
    RAW_PUBLIC_KEY = 2


@enum.unique
class ClientCertificateType(enum.IntEnum):
    """What kind of key a CertificateRequest asks for, RFC 5246 §7.4.4 and RFC 8422 §5.5."""

    RSA_SIGN = 1
    ECDSA_SIGN = 64


TLS_EMPTY_RENEGOTIATION_INFO_SCSV = 0x00FF
"""Signalling suite that stands for an empty renegotiation_info, RFC 5746 §3.3."""

NULL_COMPRESSION = 0
"""The only compression method, RFC 7925 §9 and RFC 9325 §3.3."""
