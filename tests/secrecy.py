"""Whether a secret stands in a text, in any of the forms in which programs write bytes."""

import base64
import json

SHORTEST = 8
"""Bytes: of less, some form is in every long text."""


def forms(secret):
    """Ways to write bytes; those in lower case are looked for in any case."""
    hexadecimal = secret.hex()
    yield hexadecimal
    yield secret.hex(":")
    yield secret.hex(" ")
    yield secret.hex("-")
    yield "".join(f"\\x{byte:02x}" for byte in secret)
    yield ", ".join(map(str, secret))
    yield ",".join(map(str, secret))
    yield ", ".join(f"0x{byte:02x}" for byte in secret)
    yield secret[::-1].hex()
    yield repr(secret)[2:-1].lower()
    yield json.dumps(secret.decode("latin-1"))[1:-1].lower()
    yield secret.decode("utf-8", "backslashreplace").lower()


def in_base64(secret):
    """What of it stands in base64 text, wherever in a longer text the secret begins."""
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * offset + secret).decode().rstrip("=")
            # The first and last digits depend on what stands beside it.
            yield encoded[4 if offset else 0 : -2]


def assert_no_secret(text, secrets):
    """``text`` (str or bytes) holds none of ``secrets`` (bytes, or str such as a password) in any form."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    plain = data.decode("latin-1")
    lower = plain.lower()
    assert plain, "there is nothing to look at"
    for secret in secrets:
        raw = secret.encode() if isinstance(secret, str) else bytes(secret)
        assert len(raw) >= SHORTEST, "too short to be looked for"
        where = f"secret of {len(raw)} bytes, sum {sum(raw)}"
        assert raw not in data, f"{where}: as it is"
        for form in forms(raw):
            assert form not in lower, f"{where}: {form[:12]}…"
        for form in in_base64(raw):
            assert form not in plain, f"{where}: in base64"


def pem_secrets(pem):
    """The lines of a PEM file, without its marks, as secrets."""
    lines = [line for line in pem.splitlines() if line and "-----" not in line]
    return [line for line in lines if len(line) >= SHORTEST]
