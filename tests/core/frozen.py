"""Frozen associations for tests: a typical one, any one, and blobs that nobody should have written."""

import hashlib
import math
import struct
from typing import Any

from hypothesis import strategies as st

from sansdtls import CipherSuite, NamedGroup, Session
from sansdtls.iana import HandshakeType
from sansdtls.saved import SavedAssociation
from sansdtls.snapshot import encode_snapshot
from sansdtls.testing import CounterEntropy

HEADER_LENGTH = 9
CHECKSUM_LENGTH = 8
SALT_LENGTH = 24


def saved(**more: Any) -> SavedAssociation:
    """What a server keeps of a meter with a PSK that has been sending for a day."""
    fields: dict[str, Any] = {
        "is_client": False,
        "cipher_suite": CipherSuite.TLS_PSK_WITH_AES_128_CCM_8,
        "extended_master_secret": True,
        "secure_renegotiation": True,
        "resumed": False,
        "group": None,
        "server_name": None,
        "alpn_protocol": None,
        "return_routability": True,
        "master_secret": bytes(range(48)),
        "client_random": bytes(range(100, 132)),
        "server_random": bytes(range(200, 232)),
        "connection_id": b"\x80own cid",
        "peer_connection_id": b"",
        "write_sequence_number": 1500,
        "read_highest": 1440,
        "read_seen": 2**64 - 1,
        "failed_opens": 0,
        "max_plaintext": 2**14,
        "max_accepted": 2**14,
        "next_receive_seq": 5,
        "last_flight": (),
        "epoch_0_sequence_number": 0,
        "psk_identity": b"meter042",
        "psk_key_index": 0,
        "certificate_chain": None,
        "raw_public_key": None,
        "path": (0, ("192.0.2.1", 5684)),
        "last_received": 86_400.25,
        "expires_at": 7_862_400.25,
        "generation": 3,
        "serial": 400,
        "annotation": b"",
        "session": b"",
    }
    assert not set(more) - set(fields)
    return SavedAssociation(**fields | more)


def unsealed(association: SavedAssociation) -> bytes:
    return encode_snapshot(association, keys=(), entropy=CounterEntropy(0))


def session(ticket: bytes) -> bytes:
    """What a client keeps to resume."""
    suite = CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256
    return Session(cipher_suite=suite, master_secret=bytes(48), ticket=ticket).to_bytes()


def sealed(association: SavedAssociation, *keys: bytes, seed: int = 0) -> bytes:
    return encode_snapshot(association, keys=keys, entropy=CounterEntropy(seed))


def with_checksum(header_and_body: bytes) -> bytes:
    """An unsealed blob of any content, whose checksum is right."""
    return header_and_body + hashlib.sha256(header_and_body).digest()[:CHECKSUM_LENGTH]


def body_of(blob: bytes) -> bytes:
    return blob[HEADER_LENGTH:-CHECKSUM_LENGTH]


def blob_of(body: bytes, expires_at: float = 1.0) -> bytes:
    return with_checksum(struct.pack("!Bd", 1, expires_at) + body)


# --- any values -----------------------------------------------------------------------------------------

times = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.integers(0, 2**64 - 1)
small = st.integers(0, 300)
texts = st.text(max_size=40)
path_items = (
    st.none() | st.booleans() | st.integers(-(2**64) + 1, 2**64 - 1) | small | texts | st.binary(max_size=40)
)
paths = st.recursive(path_items, lambda items: st.lists(items, max_size=4).map(tuple), max_leaves=8)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int]:
    """Highest number and mask."""
    highest = draw(st.integers(-1, 2**48 - 1) | small)
    if highest < 0:
        return -1, 0
    width = min(highest + 1, 1024)
    return highest, draw(st.integers(0, 2**width - 1) | st.integers(0, 2 ** min(width, 5) - 1)) | 1


@st.composite
def associations(draw: st.DrawFn) -> SavedAssociation:
    highest, seen = draw(windows())
    fields = {
        name: draw(strategy)
        for name, strategy in {
            "is_client": st.booleans(),
            "cipher_suite": st.sampled_from(CipherSuite),
            "extended_master_secret": st.booleans(),
            "secure_renegotiation": st.booleans(),
            "resumed": st.booleans(),
            "group": st.none() | st.sampled_from(NamedGroup),
            "server_name": st.none() | texts,
            "alpn_protocol": st.none() | st.binary(max_size=255),
            "return_routability": st.booleans(),
            "master_secret": st.binary(min_size=48, max_size=48),
            "client_random": st.binary(min_size=32, max_size=32),
            "server_random": st.binary(min_size=32, max_size=32),
            "connection_id": st.binary(max_size=20),
            "peer_connection_id": st.binary(max_size=255),
            "write_sequence_number": st.integers(0, 2**48 - 1),
            "failed_opens": small | numbers,
            "max_plaintext": st.just(2**14) | st.integers(1, 2**16 - 1),
            "max_accepted": st.just(2**14) | st.integers(1, 2**14),
            "next_receive_seq": st.integers(0, 2**16),
            "last_flight": st.lists(
                st.tuples(
                    st.integers(0, 1),
                    st.none() | st.sampled_from(HandshakeType),
                    st.integers(0, 2**16 - 1),
                    st.binary(max_size=200),
                ),
                max_size=4,
            ).map(tuple),
            "epoch_0_sequence_number": st.integers(0, 2**48 - 1),
            "psk_identity": st.none() | st.binary(max_size=200),
            "psk_key_index": st.none() | st.integers(0, 255),
            "certificate_chain": st.none() | st.lists(st.binary(max_size=300), max_size=4).map(tuple),
            "raw_public_key": st.none() | st.binary(max_size=100),
            "path": paths,
            "last_received": times,
            "expires_at": times | st.just(math.inf),
            "generation": small | numbers,
            "serial": small | numbers,
            "annotation": st.binary(max_size=1024),
            "session": st.just(b"") | st.binary(max_size=100).map(session),
        }.items()
    }
    return saved(**fields, read_highest=highest, read_seen=seen)
