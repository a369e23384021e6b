"""The filters for keys, and what they have in common with the endpoint."""

import random
import secrets

import pytest
from ansible.errors import AnsibleFilterError
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from endpoint.keystore.file import PskReader
from endpoint.keystore.fingerprint import fingerprint
from endpoint.keystore.strength import PUBLISHED, weakness
from tests.roles.plays import load

FILTERS = load("filter_plugins/dtls_psk").FilterModule().filters()
derive = FILTERS["dtls_psk_derive"]
MASTER = "8f1c2a77d3e94b0596aa31f0cc5de21b7d40e6f38a95bc2210fe6bd9471385ac"


def test_a_fingerprint_is_what_the_endpoint_shows():
    for length in range(1, 65):
        key = secrets.token_bytes(length)
        assert FILTERS["dtls_psk_fingerprint"](key.hex()) == fingerprint(key)
        assert FILTERS["dtls_psk_fingerprint"](f" {key.hex().upper()}\n") == fingerprint(key)


@pytest.mark.parametrize("length", [16, 20, 32, 33, 48, 64])
@pytest.mark.parametrize(("device", "generation"), [("device-1", 0), ("gerät 7", 12), ("a", 10**9)])
def test_a_derived_key_is_what_another_hkdf_derives(device, generation, length):
    info = device.encode() + b"\0" + str(generation).encode()
    other = HKDF(algorithm=SHA256(), length=length, salt=b"sansdtls-psk-v1", info=info)
    assert derive(MASTER, device, generation, length) == other.derive(bytes.fromhex(MASTER)).hex()


def test_what_is_derived_today_is_derived_for_ever():
    assert derive(MASTER, "device-1", 3) == "33e062b8bfc67af9aff18b46bf2fd7e44ee702e3c4dbfb0da4cfa94d62abc76a"


def test_each_device_and_each_generation_has_a_key_of_its_own():
    keys = {derive(MASTER, device, generation) for device in ("a", "b", "a1") for generation in (1, 2, 11)}
    assert len(keys) == 9
    assert all(len(key) == 64 and FILTERS["dtls_strong"](key) for key in keys)


def test_a_generation_may_come_as_text_as_templates_have_it():
    assert derive(MASTER, "a", "7", "16") == derive(MASTER, "a", 7, 16)


SECRET = "correct horse battery staple"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: derive(SECRET, "a", 1), "the master key: is not hexadecimal"),
        (lambda: derive(SECRET.encode().hex()[:30], "a", 1), "the master key: has 15 bytes"),
        (lambda: derive(MASTER, "", 1), "the device's name"),
        (lambda: derive(MASTER, "a\0b", 1), "the device's name"),
        (lambda: derive(MASTER, "a", -1), "the generation: -1"),
        (lambda: derive(MASTER, "a", SECRET), "the generation: is no number"),
        (lambda: derive(MASTER, "a", 1, 15), "the length: 15"),
        (lambda: derive(MASTER, "a", 1, 65), "the length: 65"),
        (lambda: FILTERS["dtls_psk_fingerprint"](SECRET), "the key: is not hexadecimal"),
        (lambda: FILTERS["dtls_psk_lines"]({"a": SECRET}), "the key of 'a': is not hexadecimal"),
        (lambda: FILTERS["dtls_psk_lines"]({"#a": MASTER}), "can hold the identity '#a'"),
        (lambda: FILTERS["dtls_psk_lines"]({"a\nb": MASTER}), "can hold the identity"),
        (lambda: FILTERS["dtls_psk_lines"]({"": MASTER}), "can hold the identity"),
    ],
)
def test_an_error_says_what_is_wrong_and_shows_no_secret(call, says):
    with pytest.raises(AnsibleFilterError) as caught:
        call()
    error = caught.value
    assert says in str(error)
    while error is not None:
        assert SECRET not in repr(error)
        assert MASTER not in repr(error)
        assert SECRET.encode().hex()[:30] not in repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_lines_are_read_by_the_endpoint():
    keys = {"a:b": secrets.token_hex(32), "gerät 7": [secrets.token_hex(16), secrets.token_hex(32)]}
    reader = PskReader()
    reader.content("a file", "".join(f"{line}\n" for line in FILTERS["dtls_psk_lines"](keys)).encode())
    told = {identity.decode(): [key.hex() for key in value] for identity, value in reader.keys.items()}
    assert told == {"a:b": [keys["a:b"]], "gerät 7": keys["gerät 7"]}


def weak_keys():
    yield from (bytes([byte]) * 16 for byte in (0, 0x41, 255))
    yield bytes(range(16))
    yield bytes(range(32, 0, -1))
    yield bytes.fromhex("00112233445566778899aabbccddeeff")
    yield b"correct horse battery staple"
    yield b"supersecretpassword"
    yield secrets.token_hex(16).encode()
    yield secrets.token_bytes(8) * 4
    yield bytes.fromhex("9f" * 8 + "a0" * 8)
    source = random.Random(6)
    for _ in range(300):
        yield bytes(source.choice(b"abcdefgh 0123") for _ in range(source.randrange(16, 64)))
        yield bytes(source.choices([1, 2, 3, 4, 5, 6, 250], k=source.randrange(16, 64)))
        yield bytes((at * source.choice([1, 1, 1, 3])) % 256 for at in range(source.randrange(16, 64)))


def test_a_key_is_strong_here_where_it_is_strong_for_the_endpoint():
    seen = set()
    for key in [*weak_keys(), *(secrets.token_bytes(length) for length in range(16, 65) for _ in range(20))]:
        strong = weakness(key) is None
        seen.add(strong)
        assert FILTERS["dtls_strong"](key.hex()) == strong, key.hex()
    assert seen == {True, False}


@pytest.mark.parametrize(
    "text",
    # Without ids of their own they would be other tests in each run.
    [
        "", "00", pytest.param(secrets.token_hex(15), id="short"), pytest.param(secrets.token_hex(65), id="long"),
        "x" * 32, None, 7, SECRET,
    ],
)  # fmt: skip
def test_what_is_no_key_is_not_strong(text):
    assert FILTERS["dtls_strong"](text) is False


def test_published_keys_are_the_endpoints():
    assert set(PUBLISHED) == load("module_utils/dtls_keys")._PUBLISHED
