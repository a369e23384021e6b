"""The helper that looks for secrets finds them."""

import base64
import json

import pytest

from tests.secrecy import assert_no_secret, pem_secrets

KEY = bytes.fromhex("00112233445566778899aabbccddeeff")


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        b"x" + KEY + b"y",
        f"key={KEY.hex()}",
        KEY.hex().upper(),
        KEY.hex().swapcase(),
        KEY.hex(":").upper(),
        repr(KEY),
        repr(list(KEY)),
        repr(bytearray(KEY)),
        json.dumps({"key": KEY.decode("latin-1")}),
        json.dumps([*KEY], separators=(",", ":")),
        KEY[::-1].hex(),
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(b"a" + KEY + b"bc").decode(),
        base64.b64encode(b"ab" + KEY).decode(),
    ],
    ids=range(15),
)
def test_a_key_is_found_in_any_form(text):
    with pytest.raises(AssertionError, match="secret of 16 bytes"):
        assert_no_secret(text, [KEY])


def test_a_password_is_found_and_a_line_of_a_pem_file():
    with pytest.raises(AssertionError):
        assert_no_secret("valkey://user:correct horse@host", ["correct horse"])
    pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"
    with pytest.raises(AssertionError):
        assert_no_secret(f"... {pem} ...", pem_secrets(pem))


def test_what_is_no_secret_is_not_found_and_an_empty_text_proves_nothing():
    assert_no_secret("the key of dev1 is wrong", [KEY, "correct horse"])
    with pytest.raises(AssertionError, match="nothing to look at"):
        assert_no_secret("", [KEY])
    with pytest.raises(AssertionError, match="too short"):
        assert_no_secret("x", [b"1234567"])
