"""PRF, key block and record protection, against published vectors, a recording of OpenSSL and a second implementation."""

import hashlib
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.crypto.prf import digest, equal, hmac_sha256, prf, psk_premaster_secret
from sansdtls.crypto.suites import SUITES
from sansdtls.iana import CipherSuite
from sansdtls.record.epochs import ReadEpoch, WriteEpoch
from sansdtls.record.protection import make_protection
from sansdtls.wire.record import Record, read_record_untrusted
from tests.core import key_schedule, raw
from tests.recordings import recorded_datagrams, recorded_secrets

# Circulated on the IETF TLS mailing list and used by several implementations' test suites; the second
# implementation in tests/core/key_schedule.py arrives at the same output, with hmac of the standard library.
PRF_VECTORS = {
    "sha256": (
        hashes.SHA256(),
        "9bbe436ba940f017b17652849a71db35",
        "a0ba9f936cda311827a6f796ffd5198c",
        (
            "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14baf9af0f"
            "a022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff7018734"
            "7b66"
        ),
    ),
    "sha384": (
        hashes.SHA384(),
        "b80b733d6ceefcdc71566ea48e5567df",
        "cd665cf6a8447dd6ff8b27555edb7465",
        (
            "7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cde9ca0faa60be9fe34f82b1233c9146a0e5"
            "34cb400fed2700884f9dc236f80edd8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd4abfdad05d9184259b5b"
            "f8cd4d90fa0d31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee691c8f3a26854308d5eaa3be85e0990703d73e5"
            "6f"
        ),
    ),
}


@pytest.mark.parametrize("name", PRF_VECTORS)
def test_the_prf_gives_the_published_output(name):
    algorithm, secret, seed, output = PRF_VECTORS[name]
    expected = bytes.fromhex(output)
    for length in (1, 12, 48, len(expected)):
        arguments = (bytes.fromhex(secret), b"test label", bytes.fromhex(seed), length)
        assert prf(algorithm, *arguments) == expected[:length]
        assert key_schedule.prf(name, *arguments) == expected[:length]


@given(st.binary(max_size=80), st.binary(max_size=20), st.binary(max_size=80), st.integers(0, 200))
def test_the_prf_agrees_with_a_second_implementation(secret, label, seed, length):
    for name, algorithm in (("sha256", hashes.SHA256()), ("sha384", hashes.SHA384())):
        assert prf(algorithm, secret, label, seed, length) == key_schedule.prf(
            name, secret, label, seed, length
        )


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=100))
def test_hash_and_premaster_secret_agree_with_a_second_implementation(key, data):
    assert digest(hashes.SHA256(), data) == hashlib.sha256(data).digest()
    assert digest(hashes.SHA384(), data) == hashlib.sha384(data).digest()
    assert psk_premaster_secret(key) == key_schedule.premaster_psk(key)
    # HMAC is the PRF's first block of an empty label: P_hash(secret, seed) = HMAC(secret, A(1) + seed).
    assert len(hmac_sha256(key, data)) == 32
    assert equal(key, bytes(key))
    assert not equal(key, key + b"x")


KEY = bytes.fromhex("00112233445566778899aabbccddeeff")


# --- the recording of openssl 3.0 with itself ---------------------------------------------------------


class Recording(NamedTuple):
    """A recorded session, by sender."""

    client: list[bytes]
    server: list[bytes]
    client_random: bytes
    master_secret: bytes

    def sent_by(self, role: str) -> list[bytes]:
        return self.client if role == "client" else self.server


@pytest.fixture(scope="module")
def recording():
    datagrams = list(recorded_datagrams("openssl-psk-ccm8"))
    ((client_random, master_secret),) = recorded_secrets("openssl-psk-ccm8").items()
    return Recording(
        [each.payload for each in datagrams if each.destination_port == 22501],
        [each.payload for each in datagrams if each.source_port == 22501],
        client_random,
        master_secret,
    )


@pytest.fixture(scope="module")
def recorded_messages(recording):
    """(client randoms, server randoms, transcript up to ClientKeyExchange) of the recording."""
    client = raw.plaintext_messages(recording.sent_by("client"))
    server = raw.plaintext_messages(recording.sent_by("server")[1:])
    transcript = b""
    for message_seq, (kind, body) in [*list(client.items())[1:2], *server.items(), *list(client.items())[2:]]:
        if kind != raw.NEW_SESSION_TICKET:
            transcript += raw.fragment(kind, body, message_seq=message_seq)
    hello = raw.parse_client_hello(client[1][1])
    server_hello = raw.parse_server_hello(server[1][1])
    assert hello.random == recording.client_random
    assert server_hello.suite == raw.AES_128_CCM_8
    return hello, server_hello, transcript


def protection_of_recording(recording, recorded_messages):
    hello, server_hello, _ = recorded_messages
    suite = SUITES[CipherSuite.TLS_PSK_WITH_AES_128_CCM_8]
    block = prf(
        suite.prf_hash, recording.master_secret, b"key expansion", server_hello.random + hello.random, 40
    )
    client = make_protection(suite, block[:16], block[32:36])
    server = make_protection(suite, block[16:32], block[36:40])
    return {"client": client, "server": server}


def test_the_recorded_master_secret_follows_from_the_key(recording, recorded_messages):
    _, _, transcript = recorded_messages
    sha256 = hashes.SHA256()
    session_hash = digest(sha256, transcript)
    master_secret = prf(sha256, psk_premaster_secret(KEY), b"extended master secret", session_hash, 48)
    assert master_secret == recording.master_secret


def test_the_recorded_protected_records_open_and_seal_to_the_same_bytes(recording, recorded_messages):
    protection = protection_of_recording(recording, recorded_messages)
    opened = []
    for role in ("client", "server"):
        epoch = ReadEpoch(1, 64, protection[role], max_failed_opens=10)
        for datagram in recording.sent_by(role):
            offset = 0
            while offset < len(datagram):
                record = read_record_untrusted(datagram, offset)
                assert record is not None
                offset += 13 + len(record.fragment)
                if record.epoch == 0:
                    continue
                of_record = epoch.open(record)
                assert of_record is not None
                content_type, plaintext = of_record
                assert content_type == record.content_type
                opened.append((role, int(record.content_type), plaintext))
                # OpenSSL 3.0 chooses the explicit nonce as we do, so that sealing gives back its record.
                assert protection[role].seal(record.content_type, record.number, plaintext) == raw.record(
                    record.content_type, record.fragment, epoch=1, seq=record.sequence_number
                )
        assert epoch.failed_opens == 0
    kinds = [(role, kind) for role, kind, _ in opened]
    assert kinds.count(("client", raw.HANDSHAKE)) == kinds.count(("server", raw.HANDSHAKE)) == 1
    assert [body for _, kind, body in opened if kind == raw.ALERT] == [b"\x01\x00", b"\x01\x00"]
    assert [body for _, kind, body in opened if kind == raw.APPLICATION_DATA] == [b"hello-peer\n"]


def test_the_recorded_client_finished_proves_the_transcript(recording, recorded_messages):
    protection = protection_of_recording(recording, recorded_messages)
    _, _, transcript = recorded_messages
    (finished,) = [
        record
        for datagram in recording.sent_by("client")
        for record in raw.records(datagram)
        if record.type == raw.HANDSHAKE and record.epoch == 1
    ]
    _, plaintext = protection["client"].open(read_record_untrusted(finished.encoded, 0))
    sha256 = hashes.SHA256()
    expected = prf(sha256, recording.master_secret, b"client finished", digest(sha256, transcript), 12)
    assert plaintext[12:] == expected


def parsed(encoded: bytes) -> Record:
    record = read_record_untrusted(encoded, 0)
    assert record is not None
    return record


# --- protection, every suite --------------------------------------------------------------------------


@pytest.mark.parametrize("code", raw.ALL_SUITES, ids=hex)
def test_every_suite_seals_as_the_second_implementation_does(code):
    row = SUITES[CipherSuite(code)]
    key, iv = bytes(range(row.key_length)), bytes(range(90, 90 + row.fixed_iv_length))
    ours, theirs = make_protection(row, key, iv), key_schedule.Protection(code, key, iv)
    for number, plaintext in (
        (1 << 48, b""),
        (1 << 48 | 7, b"reading"),
        (0xFFFF << 48 | 2**48 - 1, bytes(1000)),
    ):
        sealed = ours.seal(raw.APPLICATION_DATA, number, plaintext)
        assert sealed == theirs.seal(
            raw.APPLICATION_DATA, plaintext, epoch=number >> 48, seq=number & (1 << 48) - 1
        )
        assert ours.open(parsed(sealed)) == (raw.APPLICATION_DATA, plaintext)
        assert len(sealed) == len(plaintext) + 13 + row.overhead


@pytest.mark.parametrize("code", raw.ALL_SUITES, ids=hex)
def test_no_bit_of_a_protected_record_can_be_changed_and_none_left_out(code):
    row = SUITES[CipherSuite(code)]
    protection = make_protection(row, bytes(row.key_length), bytes(row.fixed_iv_length))
    sealed = protection.seal(raw.APPLICATION_DATA, 1 << 48 | 5, b"reading")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        record = read_record_untrusted(bytes(changed), 0)
        assert record is None or protection.open(record) is None
    for length in range(len(sealed) - 13):
        shorter = raw.record(23, sealed[13 : 13 + length], epoch=1, seq=5)
        assert protection.open(parsed(shorter)) is None


@pytest.mark.parametrize("code", raw.ALL_SUITES, ids=hex)
def test_the_explicit_nonce_is_the_record_number_and_never_repeats(code):
    row = SUITES[CipherSuite(code)]
    epoch = WriteEpoch(1, make_protection(row, bytes(row.key_length), bytes(row.fixed_iv_length)))
    seen = set()
    for _ in range(300):
        record = parsed(epoch.record(raw.APPLICATION_DATA, b"same"))
        if row.explicit_nonce_length:
            assert record.fragment[:8] == record.number.to_bytes(8, "big")
        seen.add((record.number, record.fragment))
    assert len({number for number, _ in seen}) == len({fragment for _, fragment in seen}) == 300


# RFC 9325 §4.4 for AES-GCM in DTLS 1.2; RFC 9147 §4.5.3 for the others, which RFC 9325 does not name. For
# CCM_8 that section's appendix arrives at 2**7 forgeries; sansdtls/crypto/suites.py says why not.
LIMITS = {
    raw.AES_128_GCM: (int(2**24.5), 2**28),
    raw.AES_256_GCM: (int(2**24.5), 2**28),
    raw.AES_128_CCM: (2**23, int(2**23.5)),
    raw.AES_256_CCM: (2**23, int(2**23.5)),
    raw.AES_128_CCM_8: (2**23, 2**24),
    raw.AES_256_CCM_8: (2**23, 2**24),
    raw.CHACHA20: (2**48 - 1, 2**36),
}


@pytest.mark.parametrize("code", raw.ALL_SUITES, ids=hex)
def test_every_suite_has_the_usage_limits_that_the_standards_name(code):
    row = SUITES[CipherSuite(code)]
    max_sealed, max_failed_opens = LIMITS[code]
    assert row.max_sealed == max_sealed
    assert row.max_failed_opens <= max_failed_opens
    assert row.max_failed_opens >= 2**20, "an association is not to be ended by a little junk"
