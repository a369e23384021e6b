"""Frozen associations as bytes: they come back as they were, or are refused with a sentence; paths as well."""

import hashlib
import hmac
import math
import struct

import attrs
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given
from hypothesis import strategies as st

from sansdtls import CipherSuite, NamedGroup, Outgoing, SnapshotError, UsageError
from sansdtls import saved as module
from sansdtls.saved_paths import decode_path, encode_path
from sansdtls.snapshot import RESERVE, THAW_JUMP, decode_snapshot, encode_snapshot, expires_at
from sansdtls.testing import CounterEntropy
from sansdtls.wire.compact import encode_number
from tests.core import frozen

KEY = b"operator's key of thirty-two by."
OTHER_KEY = b"another key, no less long: 32 by"
ASSOCIATION = frozen.saved()
RICH = frozen.saved(
    is_client=True,
    cipher_suite=CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    resumed=True,
    group=NamedGroup.X25519,
    server_name="meters.example",
    alpn_protocol=b"coap",
    peer_connection_id=b"their cid",
    failed_opens=7,
    max_plaintext=512,
    max_accepted=1024,
    last_flight=((0, 14, 3, b""), (0, None, 0, b""), (1, 20, 4, b"verify data.")),
    epoch_0_sequence_number=9,
    certificate_chain=(b"leaf" * 100, b"intermediate" * 40),
    raw_public_key=b"SubjectPublicKeyInfo",
    path=("fd00::1", 5684, 0, 0),
    annotation=b"queue 7",
    session=frozen.session(b"a ticket"),
)
PINNED = (
    "01415dfe2010000000018116c0a840f5180400000000000102030405060708090a0b0c0d0e0f10111213141516171819"
    "1a1b1c1d1e1f202122232425262728292a2b2c2d2e2f6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d"
    "7e7f80818283c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7dc0ba10b400005039003"
    "a220a2693139322e302e322e313f952c08806f776e20636964086d6574657230343200f2b418e697e7053d"
)
"""``ASSOCIATION`` in version 1, as the first release wrote it."""


def refused(blob: bytes, *keys: bytes) -> str:
    with pytest.raises(SnapshotError) as caught:
        decode_snapshot(blob, keys=keys)
    message = str(caught.value)
    assert message
    return message


# --- there and back -------------------------------------------------------------------------------------


@given(frozen.associations())
@example(ASSOCIATION)
@example(RICH)
def test_an_association_comes_back_as_it_was(association):
    assert decode_snapshot(frozen.unsealed(association), keys=()) == association
    assert decode_snapshot(frozen.sealed(association, KEY), keys=(KEY,)) == association


def test_code_points_come_back_as_members_of_their_enums():
    again = decode_snapshot(frozen.unsealed(RICH), keys=())
    assert type(again.cipher_suite) is CipherSuite
    assert type(again.group) is NamedGroup


def test_the_window_of_a_connection_without_loss_takes_two_bytes_whatever_its_width():
    lengths = {
        len(frozen.unsealed(frozen.saved(read_highest=2000, read_seen=2**width - 1)))
        for width in (1, 32, 64, 127)
    }
    assert len(lengths) == 1


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_what_is_frozen_of_a_psk_association_is_small(keys):
    overhead = frozen.SALT_LENGTH + 16 - frozen.CHECKSUM_LENGTH if keys else 0
    assert len(encode_snapshot(ASSOCIATION, keys=keys, entropy=CounterEntropy(0))) <= 190 + overhead
    fresh = frozen.saved(read_highest=-1, read_seen=0, write_sequence_number=1)
    assert len(encode_snapshot(fresh, keys=keys, entropy=CounterEntropy(0))) <= 185 + overhead


def test_blobs_of_this_version_are_read_by_every_later_one():
    # If this fails, the encoding has changed: give it a new version.
    assert frozen.unsealed(ASSOCIATION).hex() == PINNED
    assert decode_snapshot(bytes.fromhex(PINNED), keys=()) == ASSOCIATION


def test_when_it_expires_is_told_without_a_key():
    for time in (-5.0, 0.0, 1234.5, math.inf):
        for keys in ((), (KEY,)):
            association = frozen.saved(expires_at=time)
            assert expires_at(encode_snapshot(association, keys=keys, entropy=CounterEntropy(0))) == time


def test_what_is_left_out_for_safety_is_a_small_part_of_what_a_key_may_seal():
    assert 0 < THAW_JUMP < RESERVE <= 2**23 // 1000


# --- seals ----------------------------------------------------------------------------------------------


def test_a_sealed_blob_is_sealed_as_the_essay_says():
    # With primitives only: HMAC-SHA-256 gives the blob's own key, header and salt are authenticated.
    blob = frozen.sealed(ASSOCIATION, KEY)
    start, rest = (
        blob[: frozen.HEADER_LENGTH + frozen.SALT_LENGTH],
        blob[frozen.HEADER_LENGTH + frozen.SALT_LENGTH :],
    )
    assert start[:1] == b"\x81"
    key = hmac.digest(KEY, b"sansdtls snapshot key" + start[frozen.HEADER_LENGTH :], "sha256")
    assert AESGCM(key).decrypt(bytes(12), rest, start) == frozen.body_of(frozen.unsealed(ASSOCIATION))


def test_an_unsealed_blob_ends_in_a_checksum_of_all_before():
    blob = frozen.unsealed(ASSOCIATION)
    assert blob[-8:] == hashlib.sha256(blob[:-8]).digest()[:8]


def test_each_seal_takes_a_salt_of_192_random_bits_and_so_a_key_of_its_own():
    drawn = []

    def entropy(length: int) -> bytes:
        drawn.append(length)
        return bytes([len(drawn)]) * length

    one, two = (encode_snapshot(ASSOCIATION, keys=(KEY,), entropy=entropy) for _ in range(2))
    assert drawn == [24, 24]
    end = frozen.HEADER_LENGTH + frozen.SALT_LENGTH
    assert one[frozen.HEADER_LENGTH : end] == b"\1" * 24
    # The same key stream would leave equal bytes where the plaintexts are equal, which is everywhere.
    assert sum(a == b for a, b in zip(one[end:], two[end:], strict=True)) < 20
    encode_snapshot(ASSOCIATION, keys=(), entropy=entropy)
    assert len(drawn) == 2


def test_a_sealed_blob_shows_nothing_but_when_it_expires():
    blob = frozen.sealed(RICH, KEY)
    plain = frozen.body_of(frozen.unsealed(RICH))
    assert not [at for at in range(len(plain) - 4) if plain[at : at + 4] in blob]


def test_the_first_key_seals_and_each_opens():
    blob = frozen.sealed(ASSOCIATION, KEY, OTHER_KEY)
    assert decode_snapshot(blob, keys=(KEY,)) == ASSOCIATION
    assert decode_snapshot(blob, keys=(OTHER_KEY, KEY)) == ASSOCIATION
    assert "another key" in refused(blob, OTHER_KEY)


def test_a_sealed_blob_is_refused_without_a_key():
    assert "no key" in refused(frozen.sealed(ASSOCIATION, KEY))


def test_an_unsealed_blob_is_refused_where_there_is_a_key_since_anybody_can_write_one():
    assert "not sealed" in refused(frozen.unsealed(ASSOCIATION), KEY)


# --- damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize("association", [ASSOCIATION, RICH])
def test_a_blob_with_one_bit_changed_is_refused(association, keys):
    blob = encode_snapshot(association, keys=keys, entropy=CounterEntropy(0))
    for bit in range(8 * len(blob)):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        refused(bytes(changed), *keys)


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize("association", [ASSOCIATION, RICH])
def test_a_blob_cut_short_or_made_longer_is_refused(association, keys):
    blob = encode_snapshot(association, keys=keys, entropy=CounterEntropy(0))
    for length in range(len(blob)):
        refused(blob[:length], *keys)
    for more in (b"\0", blob, bytes(1000)):
        refused(blob + more, *keys)


@pytest.mark.parametrize("association", [ASSOCIATION, RICH])
def test_a_body_cut_short_or_made_longer_is_refused_whatever_its_checksum(association):
    body = frozen.body_of(frozen.unsealed(association))
    for length in range(len(body)):
        refused(frozen.blob_of(body[:length]))
    assert "trailing" in refused(frozen.blob_of(body + b"\0"))


@pytest.mark.parametrize("version", [0, 2, 3, 127])
@pytest.mark.parametrize("sealed", [0, 0x80])
def test_another_version_is_refused_by_its_number(version, sealed):
    blob = frozen.with_checksum(bytes([version | sealed]) + frozen.unsealed(ASSOCIATION)[1:-8])
    for keys in ((), (KEY,)):
        assert f"version {version};" in refused(blob, *keys)
    with pytest.raises(SnapshotError, match=f"version {version};"):
        expires_at(blob)


@pytest.mark.parametrize("time", [math.nan, -math.inf])
def test_a_blob_whose_end_is_no_time_is_refused(time):
    blob = frozen.blob_of(frozen.body_of(frozen.unsealed(ASSOCIATION)), expires_at=time)
    assert "expires_at" in refused(blob)
    with pytest.raises(SnapshotError, match="expires_at"):
        expires_at(blob)


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_when_it_expires_is_not_told_of_what_is_too_short_to_be_a_blob(keys):
    blob = encode_snapshot(ASSOCIATION, keys=keys, entropy=CounterEntropy(0))
    for length in range(frozen.HEADER_LENGTH + (frozen.SALT_LENGTH if keys else frozen.CHECKSUM_LENGTH)):
        with pytest.raises(SnapshotError):
            expires_at(blob[:length])


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_nothing_but_a_snapshot_error(data):
    refused(data)
    refused(data, KEY)
    for first in (b"\x01", b"\x81"):
        refused(first + data)
        refused(first + data, KEY)


@given(frozen.associations(), st.data())
@example(RICH, None)
def test_whatever_is_read_at_all_is_what_would_be_written(association, data):
    """So no two blobs mean the same, and nothing is carried along between the fields."""
    body = bytearray(frozen.body_of(frozen.unsealed(association)))
    if data is None:
        changes = [(at, value) for at in range(len(body)) for value in (0, 0x7F, 0x80, 0xFF)]
        for at, value in changes:
            changed = bytes(body[:at]) + bytes([value]) + bytes(body[at + 1 :])
            _is_canonical_or_refused(frozen.blob_of(changed))
        return
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1) | st.integers(120, max(120, len(body) - 1)))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not body:
            break
    _is_canonical_or_refused(frozen.blob_of(bytes(body)))


@given(st.binary(min_size=125, max_size=300))
def test_any_body_with_a_right_checksum_is_refused_or_is_what_would_be_written(body):
    _is_canonical_or_refused(frozen.blob_of(body))


def _is_canonical_or_refused(blob: bytes) -> None:
    try:
        association = decode_snapshot(blob, keys=())
    except SnapshotError as error:
        assert str(error)
    else:
        assert frozen.unsealed(association) == blob


# --- impossible values ----------------------------------------------------------------------------------

IMPOSSIBLE = [
    {"cipher_suite": 0x1301},
    {"group": 999},
    {"write_sequence_number": 2**48},
    {"read_highest": 2**48},
    {"read_highest": -1, "read_seen": 1},
    {"read_highest": -1, "read_seen": 6},
    {"read_highest": 5, "read_seen": 0},  # the highest could be replayed
    {"read_highest": 5, "read_seen": 2},
    {"read_highest": 5, "read_seen": 2**7 - 1},  # the seventh would be number -1
    {"read_highest": 5000, "read_seen": 2**1025 - 1},
    {"read_highest": 5000, "read_seen": 2**1024 + 1},
    {"failed_opens": 2**64},
    {"max_plaintext": 0},
    {"max_plaintext": 2**16},
    {"max_accepted": 0},
    {"max_accepted": 2**14 + 1},
    {"next_receive_seq": 2**16 + 1},
    {"epoch_0_sequence_number": 2**48},
    {"generation": 2**64},
    {"serial": 2**64},
    {"connection_id": bytes(21)},
    {"peer_connection_id": bytes(256)},
    {"annotation": bytes(1025)},
    {"psk_key_index": 256},
    {"last_received": math.nan},
    {"last_received": math.inf},
    {"last_received": -math.inf},
    {"expires_at": math.nan},
    {"expires_at": -math.inf},
    {"last_flight": ((2, 20, 4, b""),)},
    {"last_flight": ((1, 20, 2**16, b""),)},
    {"last_flight": ((1, 99, 4, b""),)},
    {"session": b"none that was ever saved"},
]
impossible = pytest.mark.parametrize("fields", IMPOSSIBLE, ids=str)


@impossible
def test_impossible_values_are_not_written(fields):
    with pytest.raises(SnapshotError, match=list(fields)[-1]):
        frozen.unsealed(frozen.saved(**fields))


@impossible
def test_impossible_values_are_not_read_whoever_wrote_them(fields, monkeypatch):
    with monkeypatch.context() as careless:
        careless.setattr(module, "_check", id)
        blob = frozen.unsealed(frozen.saved(**fields))
    assert refused(blob)


@pytest.mark.parametrize(
    "fields",
    [
        {"master_secret": bytes(47)},
        {"master_secret": bytes(49)},
        {"client_random": bytes(31)},
        {"server_random": bytes(33)},
        {"write_sequence_number": -1},
        {"read_highest": -2},
        {"read_seen": -1},
        {"failed_opens": -1},
        {"next_receive_seq": -1},
        {"generation": -1},
        {"serial": -1},
        {"psk_key_index": -1},
        {"last_flight": ((1, -1, 4, b""),)},
        {"last_flight": ((1, 256, 4, b""),)},
        {"last_flight": ((1, 20, -1, b""),)},
        {"server_name": "\udc80"},
    ],
    ids=str,
)
def test_values_that_have_no_encoding_are_not_written_either(fields):
    with pytest.raises(SnapshotError):
        frozen.unsealed(frozen.saved(**fields))


def test_a_refusal_tells_no_secret():
    with pytest.raises(SnapshotError) as caught:
        frozen.unsealed(frozen.saved(master_secret=b"s" * 47))
    assert "sss" not in str(caught.value)


# --- one way to write each value ------------------------------------------------------------------------

AFTER_FIXED = 125
"""Where the numbers begin in a body: write_sequence_number first."""


def test_a_number_in_more_bytes_than_it_needs_is_refused():
    body = frozen.body_of(frozen.unsealed(frozen.saved(write_sequence_number=5)))
    assert body[AFTER_FIXED] == 5
    longer = body[:AFTER_FIXED] + b"\x85\x00" + body[AFTER_FIXED + 1 :]
    assert "shortest" in refused(frozen.blob_of(longer))


@pytest.mark.parametrize("encoded", [b"\xff" * 9 + b"\x02", b"\xff" * 10 + b"\x00", b"\xff" * 40])
def test_a_number_of_more_than_64_bits_is_refused(encoded):
    body = frozen.body_of(frozen.unsealed(frozen.saved(write_sequence_number=5)))
    assert "64 bits" in refused(frozen.blob_of(body[:AFTER_FIXED] + encoded + body[AFTER_FIXED + 1 :]))


def test_a_window_whose_first_record_was_not_seen_is_refused_as_a_longer_way_to_say_it():
    body = frozen.body_of(frozen.unsealed(frozen.saved(write_sequence_number=5, read_highest=5, read_seen=1)))
    at = AFTER_FIXED + 2
    assert body[at : at + 2] == b"\1\0"
    assert "window" in refused(frozen.blob_of(body[:at] + b"\2\2" + body[at + 2 :]))


@pytest.mark.parametrize("width", [1025, 2**40, 2**64 - 1])
def test_a_window_that_is_wider_than_any_is_refused_before_it_takes_memory(width):
    body = frozen.body_of(frozen.unsealed(frozen.saved(write_sequence_number=5, read_highest=5, read_seen=1)))
    at = AFTER_FIXED + 2
    wide = body[:at] + encode_number(width) + b"\0" + body[at + 2 :]
    assert f"window of {width} " in refused(frozen.blob_of(wide))


def test_a_flag_for_what_is_not_there_or_for_nothing_known_is_refused():
    body = frozen.body_of(frozen.unsealed(frozen.saved(failed_opens=3)))
    at = body.rindex(b"\x03\x08meter042")
    assert "flag" in refused(frozen.blob_of(body[:at] + b"\0" + body[at + 1 :]))
    for bit in (21, 22, 23):
        flags = int.from_bytes(body[:3], "big") | 1 << bit
        assert "flag" in refused(frozen.blob_of(flags.to_bytes(3, "big") + body[3:]))


# --- nothing to see -------------------------------------------------------------------------------------


def test_the_repr_of_a_saved_association_shows_no_secret():
    association = attrs.evolve(
        RICH, annotation=b"my own affair", session=frozen.session(b"resumption secret")
    )
    shown = f"{association!r} {association}"
    for hidden in (
        association.master_secret,
        b"my own affair",
        b"resumption secret",
        b"verify data.",
        b"leafleaf",
    ):
        assert repr(hidden)[2:-1] not in shown
        assert repr(hidden[:12])[2:-1] not in shown
        assert hidden.hex() not in shown
    assert "meters.example" in shown


def test_a_snapshot_error_is_the_callers_mistake():
    assert issubclass(SnapshotError, UsageError)


# --- paths ----------------------------------------------------------------------------------------------


def nested(depth: int) -> tuple:
    path: tuple = ()
    for _ in range(depth - 1):
        path = (path,)
    return path


PATHS = [
    None,
    True,
    False,
    0,
    -1,
    30,
    31,
    5684,
    2**64 - 1,
    -(2**64) + 1,
    "",
    "client",
    "é",
    b"",
    b"\0" * 40,
    (),
    ((),),
    ("192.0.2.1", 5684),
    (0, ("192.0.2.1", 5684)),
    (1, ("fd00::1", 5684, 0, 3)),
    (0, ("192.0.2.1", 5684, ((0, 8, b"\xc0\0\2\1\0\0\0\0"),))),
    ("client", "server"),
    nested(8),
]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_path_comes_back_as_it_was(path):
    again = decode_path(encode_path(path))
    assert again == path
    assert type(again) is type(path)


def test_different_paths_are_different_bytes():
    assert len({encode_path(path) for path in PATHS}) == len(PATHS)


@given(frozen.paths)
def test_any_path_of_the_kinds_that_can_be_saved_comes_back(path):
    encoded = encode_path(path)
    again = decode_path(encoded)
    assert repr(again) == repr(path)  # == would take True for 1
    assert encode_path(again) == encoded


@given(st.binary(max_size=60))
def test_bytes_are_a_path_in_one_way_or_none(data):
    try:
        path = decode_path(data)
    except SnapshotError as error:
        assert str(error)
    else:
        assert encode_path(path) == data


@given(frozen.paths)
def test_a_path_cut_short_or_made_longer_is_refused(path):
    encoded = encode_path(path)
    for changed in (*(encoded[:length] for length in range(len(encoded))), encoded + b"\0"):
        with pytest.raises(SnapshotError):
            decode_path(changed)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (1.5, "float"),
        (("192.0.2.1", 5684.0), "float"),
        (frozenset(), "frozenset"),
        (object(), "object"),
        (2**64, "65 bits"),
        (-(2**64), "65 bits"),
        (b"x" * 1023, "1026 bytes"),
        ("\ud800", "surrogate"),
        (nested(9), "8 deep"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_path_that_cannot_be_saved_is_refused_by_what_it_is(path, named):
    with pytest.raises(SnapshotError, match=named):
        encode_path(path)
    with pytest.raises(SnapshotError, match=named):
        frozen.unsealed(frozen.saved(path=path))


@pytest.mark.parametrize("kind", [0x3F, 0x5F])
def test_an_integer_of_65_bits_in_a_path_is_not_read(kind):
    largest = 2**64 - 1 - 31 - (kind == 0x5F)
    assert decode_path(bytes([kind]) + encode_number(largest)) in (2**64 - 1, -(2**64) + 1)
    with pytest.raises(SnapshotError):
        decode_path(bytes([kind]) + encode_number(largest + 1))


@pytest.mark.parametrize("data", [b"\x61\xff", b"\x63\xed\xa0\x80"])
def test_a_text_that_is_no_utf_8_is_not_read(data):
    with pytest.raises(SnapshotError, match="path"):
        decode_path(data)


def test_a_named_tuple_is_saved_as_a_tuple_and_so_finds_the_same_association():
    path = Outgoing(b"a", ("b", 1))  # the next best named tuple
    assert encode_path(path) == encode_path(tuple(path))


def test_a_path_nested_too_deep_or_too_long_is_not_read_either():
    many = b"\xa1" * 2000 + b"\0"
    for data in (b"\xa1" * 9 + b"\0", many):
        with pytest.raises(SnapshotError, match="begins with 0xa1"):
            decode_path(data)
    longest = encode_path(b"x" * 1021)
    assert len(longest) == 1024
    with pytest.raises(SnapshotError, match="1025 bytes"):
        decode_path(longest.replace(b"x", b"xx", 1)[:1] + struct.pack("<BB", 0xDF, 0x07) + b"x" * 1022)
