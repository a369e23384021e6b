"""DTLS 1.2 bytes made and read by hand, without a line of ``sansdtls``: the tests' second opinion.

Encoders build whatever they are told, right or wrong. Decoders assume well-formed input.
"""

import struct
from typing import NamedTuple

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
HEARTBEAT, TLS12_CID, RETURN_ROUTABILITY_CHECK = 24, 25, 27
CLIENT_HELLO, SERVER_HELLO, HELLO_VERIFY_REQUEST = 1, 2, 3
SERVER_KEY_EXCHANGE, SERVER_HELLO_DONE, CLIENT_KEY_EXCHANGE, FINISHED = 12, 14, 16, 20
HELLO_REQUEST, NEW_SESSION_TICKET, CERTIFICATE = 0, 4, 11
DTLS_1_0, DTLS_1_2 = 0xFEFF, 0xFEFD

AES_128_GCM, AES_256_GCM = 0x00A8, 0x00A9
AES_128_CCM, AES_256_CCM, AES_128_CCM_8, AES_256_CCM_8 = 0xC0A4, 0xC0A5, 0xC0A8, 0xC0A9
CHACHA20 = 0xCCAB
ALL_SUITES = (AES_128_GCM, CHACHA20, AES_128_CCM, AES_256_GCM, AES_256_CCM, AES_128_CCM_8, AES_256_CCM_8)
ECDHE_PSK_AES_128_GCM, ECDHE_PSK_AES_256_GCM, ECDHE_PSK_CHACHA20 = 0xD001, 0xD002, 0xCCAC
ECDHE_PSK_AES_128_CCM_8, ECDHE_PSK_AES_128_CCM = 0xD003, 0xD005
ECDHE_PSK_SUITES = (
    ECDHE_PSK_AES_128_GCM,
    ECDHE_PSK_CHACHA20,
    ECDHE_PSK_AES_128_CCM,
    ECDHE_PSK_AES_256_GCM,
    ECDHE_PSK_AES_128_CCM_8,
)
ECDSA_AES_128_GCM, ECDSA_AES_256_GCM, ECDSA_CHACHA20 = 0xC02B, 0xC02C, 0xCCA9
ECDSA_AES_128_CCM, ECDSA_AES_256_CCM = 0xC0AC, 0xC0AD
ECDSA_AES_128_CCM_8, ECDSA_AES_256_CCM_8 = 0xC0AE, 0xC0AF
ECDSA_SUITES = (
    ECDSA_AES_128_GCM,
    ECDSA_CHACHA20,
    ECDSA_AES_128_CCM,
    ECDSA_AES_256_GCM,
    ECDSA_AES_256_CCM,
    ECDSA_AES_128_CCM_8,
    ECDSA_AES_256_CCM_8,
)
RSA_AES_128_GCM, RSA_AES_256_GCM, RSA_CHACHA20 = 0xC02F, 0xC030, 0xCCA8
RSA_SUITES = (RSA_AES_128_GCM, RSA_CHACHA20, RSA_AES_256_GCM)
SCSV = 0x00FF

EMS = (23, b"")
RENEGOTIATION_INFO = (0xFF01, b"\x00")
DEFAULT_EXTENSIONS = (EMS, RENEGOTIATION_INFO)


class Record(NamedTuple):
    """One record as it stands on the wire."""

    type: int
    version: int
    epoch: int
    seq: int
    payload: bytes
    connection_id: bytes = b""

    @property
    def encoded(self) -> bytes:
        return record(
            self.type,
            self.payload,
            epoch=self.epoch,
            seq=self.seq,
            version=self.version,
            connection_id=self.connection_id,
        )


class Fragment(NamedTuple):
    """One handshake fragment."""

    type: int
    total: int
    message_seq: int
    offset: int
    data: bytes


def record(
    content_type: int,
    payload: bytes,
    *,
    epoch: int = 0,
    seq: int = 0,
    version: int = DTLS_1_2,
    connection_id: bytes = b"",
) -> bytes:
    return (
        struct.pack("!BHH", content_type, version, epoch)
        + seq.to_bytes(6, "big")
        + connection_id
        + struct.pack("!H", len(payload))
        + payload
    )


def records(datagram: bytes, id_length: int = 0) -> list[Record]:
    """``id_length`` is how long connection IDs are, RFC 9146 §4; nothing in a record says so."""
    found = []
    while datagram:
        content_type, version, epoch = struct.unpack_from("!BHH", datagram)
        seq = int.from_bytes(datagram[5:11], "big")
        start = 11 + (id_length if content_type == TLS12_CID else 0)
        (length,) = struct.unpack_from("!H", datagram, start)
        end = start + 2 + length
        assert len(datagram) >= end, "a record beyond its datagram"
        found.append(Record(content_type, version, epoch, seq, datagram[start + 2 : end], datagram[11:start]))
        datagram = datagram[end:]
    return found


def fragment(
    message_type: int,
    body: bytes,
    *,
    message_seq: int = 0,
    offset: int = 0,
    total: int | None = None,
    length: int | None = None,
) -> bytes:
    """A handshake fragment; ``length`` and ``total`` default to what ``body`` is."""
    total = len(body) if total is None else total
    length = len(body) if length is None else length
    return (
        bytes([message_type])
        + total.to_bytes(3, "big")
        + message_seq.to_bytes(2, "big")
        + offset.to_bytes(3, "big")
        + length.to_bytes(3, "big")
        + body
    )


def fragments(payload: bytes) -> list[Fragment]:
    found = []
    while payload:
        length = int.from_bytes(payload[9:12], "big")
        assert len(payload) >= 12 + length, "a fragment beyond its record"
        found.append(
            Fragment(
                payload[0],
                int.from_bytes(payload[1:4], "big"),
                int.from_bytes(payload[4:6], "big"),
                int.from_bytes(payload[6:9], "big"),
                payload[12 : 12 + length],
            )
        )
        payload = payload[12 + length :]
    return found


def handshake_fragments(datagrams: list[bytes], id_length: int = 0) -> list[Fragment]:
    """Every plaintext handshake fragment of these datagrams."""
    return [
        found
        for datagram in datagrams
        for each in records(datagram, id_length)
        if each.type == HANDSHAKE and each.epoch == 0
        for found in fragments(each.payload)
    ]


def plaintext_messages(datagrams: list[bytes], id_length: int = 0) -> dict[int, tuple[int, bytes]]:
    """message_seq -> (type, body) of the plaintext handshake messages, put together."""
    bodies: dict[int, bytearray] = {}
    types: dict[int, int] = {}
    have: dict[int, set[int]] = {}
    for found in handshake_fragments(datagrams, id_length):
        body = bodies.setdefault(found.message_seq, bytearray(found.total))
        types[found.message_seq] = found.type
        body[found.offset : found.offset + len(found.data)] = found.data
        have.setdefault(found.message_seq, set()).update(range(found.offset, found.offset + len(found.data)))
    for message_seq, body in bodies.items():
        assert have[message_seq] == set(range(len(body))), "a message with holes"
    return {message_seq: (types[message_seq], bytes(bodies[message_seq])) for message_seq in sorted(bodies)}


def vector(data: bytes, length_bytes: int) -> bytes:
    return len(data).to_bytes(length_bytes, "big") + data


def extensions_block(extensions: tuple[tuple[int, bytes], ...]) -> bytes:
    return vector(b"".join(struct.pack("!H", kind) + vector(data, 2) for kind, data in extensions), 2)


def client_hello(
    *,
    version: int = DTLS_1_2,
    random: bytes = bytes(range(32)),
    session_id: bytes = b"",
    cookie: bytes = b"",
    suites: tuple[int, ...] = (*ALL_SUITES, SCSV),
    compression: bytes = b"\x00",
    extensions: tuple[tuple[int, bytes], ...] | None = DEFAULT_EXTENSIONS,
) -> bytes:
    return (
        struct.pack("!H", version)
        + random
        + vector(session_id, 1)
        + vector(cookie, 1)
        + vector(b"".join(struct.pack("!H", suite) for suite in suites), 2)
        + vector(compression, 1)
        + (b"" if extensions is None else extensions_block(extensions))
    )


def hello_verify_request(cookie: bytes, version: int = DTLS_1_0) -> bytes:
    return struct.pack("!H", version) + vector(cookie, 1)


def server_hello(
    *,
    version: int = DTLS_1_2,
    random: bytes = bytes(range(100, 132)),
    session_id: bytes = b"",
    suite: int = AES_128_GCM,
    compression: int = 0,
    extensions: tuple[tuple[int, bytes], ...] | None = DEFAULT_EXTENSIONS,
) -> bytes:
    return (
        struct.pack("!H", version)
        + random
        + vector(session_id, 1)
        + struct.pack("!HB", suite, compression)
        + (b"" if extensions is None else extensions_block(extensions))
    )


class ClientHello(NamedTuple):
    """A ClientHello taken apart."""

    version: int
    random: bytes
    session_id: bytes
    cookie: bytes
    suites: tuple[int, ...]
    compression: bytes
    extensions: tuple[tuple[int, bytes], ...] | None


def parse_extensions(data: bytes) -> tuple[tuple[int, bytes], ...] | None:
    if not data:
        return None
    found = []
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    data = data[2:]
    while data:
        kind, length = struct.unpack_from("!HH", data)
        found.append((kind, data[4 : 4 + length]))
        data = data[4 + length :]
    return tuple(found)


def parse_client_hello(body: bytes) -> ClientHello:
    version, random = int.from_bytes(body[:2], "big"), body[2:34]
    at = 34
    parts = []
    for length_bytes in (1, 1, 2, 1):
        length = int.from_bytes(body[at : at + length_bytes], "big")
        parts.append(body[at + length_bytes : at + length_bytes + length])
        at += length_bytes + length
    session_id, cookie, suites, compression = parts
    return ClientHello(
        version,
        random,
        session_id,
        cookie,
        tuple(int.from_bytes(suites[i : i + 2], "big") for i in range(0, len(suites), 2)),
        compression,
        parse_extensions(body[at:]),
    )


class ServerHello(NamedTuple):
    """A ServerHello taken apart."""

    version: int
    random: bytes
    session_id: bytes
    suite: int
    compression: int
    extensions: tuple[tuple[int, bytes], ...] | None


def parse_server_hello(body: bytes) -> ServerHello:
    end = 35 + body[34]
    suite, compression = struct.unpack_from("!HB", body, end)
    return ServerHello(
        int.from_bytes(body[:2], "big"),
        body[2:34],
        body[35:end],
        suite,
        compression,
        parse_extensions(body[end + 3 :]),
    )


def parse_cookie(hello_verify_request_body: bytes) -> bytes:
    assert hello_verify_request_body[2] == len(hello_verify_request_body) - 3
    return hello_verify_request_body[3:]


# --- certificates, ECDHE ------------------------------------------------------------------------------

CERTIFICATE_REQUEST, CERTIFICATE_VERIFY = 13, 15
SECP256R1, SECP384R1, X25519 = 23, 24, 29
X509, RAW_PUBLIC_KEY = 0, 2


def uint16s(values) -> bytes:
    return vector(b"".join(struct.pack("!H", value) for value in values), 2)


def supported_groups(*groups: int) -> tuple[int, bytes]:
    return (10, uint16s(groups))


def signature_algorithms(*schemes: int) -> tuple[int, bytes]:
    return (13, uint16s(schemes))


POINT_FORMATS = (11, b"\x01\x00")


def server_name(name: bytes) -> tuple[int, bytes]:
    return (0, vector(b"\0" + vector(name, 2), 2))


def alpn(*protocols: bytes) -> tuple[int, bytes]:
    return (16, vector(b"".join(vector(protocol, 1) for protocol in protocols), 2))


def certificate(chain) -> bytes:
    """The body of Certificate with X.509 certificates."""
    return vector(b"".join(vector(each, 3) for each in chain), 3)


def parse_certificate(body: bytes) -> tuple[bytes, ...]:
    assert int.from_bytes(body[:3], "big") == len(body) - 3
    chain, at = [], 3
    while at < len(body):
        length = int.from_bytes(body[at : at + 3], "big")
        chain.append(body[at + 3 : at + 3 + length])
        at += 3 + length
    return tuple(chain)


def ecdhe_parameters(group: int, public: bytes) -> bytes:
    """RFC 8422 §5.4."""
    return b"\x03" + struct.pack("!H", group) + vector(public, 1)


def certificate_request(types: bytes, schemes, authorities=()) -> bytes:
    return vector(types, 1) + uint16s(schemes) + vector(b"".join(vector(each, 2) for each in authorities), 2)


def signed(scheme: int, signature: bytes) -> bytes:
    """What ends ServerKeyExchange and is the whole of CertificateVerify."""
    return struct.pack("!H", scheme) + vector(signature, 2)
