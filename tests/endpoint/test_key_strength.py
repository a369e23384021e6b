"""Fingerprints of keys, and which keys are called weak."""

import hashlib
import hmac
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.keystore.fingerprint import fingerprint
from endpoint.keystore.strength import PUBLISHED, weakness

ROOT = Path(__file__).parents[2]


def test_a_fingerprint_is_the_start_of_an_hmac_under_the_key():
    key = bytes(range(32))
    expected = hmac.new(key, b"sansdtls key fingerprint", hashlib.sha256).hexdigest()[:16]
    assert fingerprint(key) == expected
    assert fingerprint(key[::-1]) != expected


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (bytes(16), "repeats one byte"),
        (b"\xff" * 64, "repeats one byte"),
        (bytes.fromhex("deadbeef" * 4), "repeats the same 4 bytes"),
        (bytes.fromhex("deadbeef" * 4 + "dead"), "repeats the same 4 bytes"),
        (bytes.fromhex("00112233445566778899aabbccddeeff"), "counts up or down"),
        (bytes.fromhex("ffeeddccbbaa99887766554433221100"), "counts up or down"),
        (bytes.fromhex("8899aabbccddeeff0011223344556677"), "counts up or down"),
        (bytes.fromhex("0f1e2d3c4b5a69788796a5b4c3d2e1f0"), "counts up or down"),
        (bytes.fromhex("0123456789abcdeffedcba9876543210"), "counts up or down"),
        (bytes(range(32)), "counts up or down"),
        (bytes(range(250, 250 - 64, -1)), "counts up or down"),
        (b"\x00\x01" * 7 + b"\x02\x05\x06", "consists of 5 different bytes"),
        (b"SuperSecretKey12", "is text"),
        (b"correct horse battery staple", "is text"),
        (b"what? a long pass-phrase, with marks!", "is text"),
        (b"q83vEjRWeJCrze8SNFZ4kA==", "is text"),
        (random.Random(1).randbytes(16).hex().encode(), "hexadecimal once more"),
        (random.Random(1).randbytes(32).hex().upper().encode(), "hexadecimal once more"),
    ],
)
def test_what_people_write_instead_of_a_key_is_weak(key, reason):
    assert reason in (weakness(key) or "")


@pytest.mark.parametrize(
    ("program", "key"),
    [
        ("GnuTLS", "88f3824b3e5659f52d00e959bacab954b6540344"),
        ("Zabbix", "1f87b595725ac58dd977beef14b97461a7c1045b9a1c963065002c5473194952"),
        ("Zabbix", "e560cb0d918d26d31b4f642181f5f570ad89a390931102e5391d08327ba434e9"),
    ],
)
def test_keys_that_stand_in_manuals_are_weak(program, key):
    assert weakness(bytes.fromhex(key)) == f"is printed in the manual of {program}"
    assert fingerprint(bytes.fromhex(key)) in PUBLISHED


def test_every_key_of_our_own_documentation_is_weak():
    text = (ROOT / "README.md").read_text() + (ROOT / "endpoint/keystore/file.py").read_text()
    found = set(re.findall(r":((?:[0-9a-f]{2}){16,64})\b", text))
    assert len(found) >= 3
    assert not [key for key in found if weakness(bytes.fromhex(key)) is None]


@pytest.mark.parametrize("length", [16, 20, 32, 64])
def test_random_keys_pass(length):
    draw = random.Random(length)
    assert not [key for key in (draw.randbytes(length) for _ in range(3000)) if weakness(key)]


@given(st.binary(min_size=16, max_size=64))
def test_a_reason_never_holds_the_key(key):
    reason = weakness(key)
    assert reason is None or (key.hex() not in reason and repr(key)[2:-1] not in reason)


@given(st.binary(min_size=1, max_size=32), st.integers(2, 40))
def test_every_repetition_is_found(part, times):
    key = (part * times)[:64]
    if len(key) >= 16 and len(part) <= len(key) // 2:
        assert weakness(key) is not None


@given(st.integers(0, 255), st.integers(0, 255), st.integers(16, 64))
def test_every_sequence_is_found(start, step, length):
    assert weakness(bytes((start + number * step) % 256 for number in range(length))) is not None
