"""Signatures: the openssl program both ways, published vectors, and everything that is to be refused."""

import subprocess
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, x25519
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.crypto import signatures
from sansdtls.crypto.groups import BadPublicKey
from sansdtls.crypto.signatures import SigningKey, schemes_of, spki_of_certificate, verify_signature
from sansdtls.crypto.suites import NotAuthentic
from sansdtls.errors import ConfigError, UsageError
from sansdtls.iana import SignatureScheme as Scheme
from tests.conftest import require_program

DATA = b"client random, server random, parameters"
KINDS = {
    "P-256": ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "P-384": ["EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "Ed25519": ["ED25519"],
    "RSA": ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
}
SCHEMES = {
    "P-256": (Scheme.ECDSA_SECP256R1_SHA256, Scheme.ECDSA_SECP384R1_SHA384),
    "P-384": (Scheme.ECDSA_SECP384R1_SHA384, Scheme.ECDSA_SECP256R1_SHA256),
    "Ed25519": (Scheme.ED25519,),
    "RSA": (
        Scheme.RSA_PSS_RSAE_SHA256,
        Scheme.RSA_PSS_RSAE_SHA384,
        Scheme.RSA_PKCS1_SHA256,
        Scheme.RSA_PKCS1_SHA384,
    ),
}
PSS = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
DIGESTS = {
    Scheme.ECDSA_SECP256R1_SHA256: ["-sha256"],
    Scheme.ECDSA_SECP384R1_SHA384: ["-sha384"],
    Scheme.RSA_PSS_RSAE_SHA256: ["-sha256", *PSS],
    Scheme.RSA_PSS_RSAE_SHA384: ["-sha384", *PSS],
    Scheme.RSA_PKCS1_SHA256: ["-sha256"],
    Scheme.RSA_PKCS1_SHA384: ["-sha384"],
}
"""How `openssl dgst` is told a scheme."""
EVERY_SIGNATURE = pytest.mark.parametrize(
    ("kind", "scheme"), [(kind, scheme) for kind, schemes in SCHEMES.items() for scheme in schemes]
)


def openssl(*arguments: str | Path, check: bool = True, data: bytes = b"") -> bytes:
    program = require_program("openssl")
    done = subprocess.run([program, *arguments], check=check, capture_output=True, timeout=60, input=data)
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("keys")
    for kind, algorithm in KINDS.items():
        openssl("genpkey", "-algorithm", *algorithm, "-out", folder / f"{kind}.pem")
        openssl("pkey", "-in", folder / f"{kind}.pem", "-pubout", "-out", folder / f"{kind}.pub")
    (folder / "data").write_bytes(DATA)
    return folder


@pytest.fixture(scope="module")
def keys(files) -> dict[str, SigningKey]:
    return {kind: SigningKey.from_pem((files / f"{kind}.pem").read_bytes()) for kind in KINDS}


def forged(spki: bytes, scheme: int, data: bytes, signature: bytes) -> None:
    with pytest.raises(NotAuthentic):
        verify_signature(spki, scheme, data, signature)


# --- the openssl program ------------------------------------------------------------------------------


@EVERY_SIGNATURE
def test_openssl_verifies_what_we_sign(files, keys, kind, scheme, tmp_path):
    (tmp_path / "signature").write_bytes(keys[kind].sign(scheme, DATA))
    public, signature = files / f"{kind}.pub", tmp_path / "signature"
    if scheme is Scheme.ED25519:
        options = ["-rawin", "-in", files / "data", "-sigfile", signature]
        assert b"Success" in openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, *options)
    else:
        options = [*DIGESTS[scheme], "-verify", public, "-signature", signature, files / "data"]
        assert b"Verified OK" in openssl("dgst", *options)


@EVERY_SIGNATURE
def test_we_verify_what_openssl_signs(files, keys, kind, scheme):
    private = files / f"{kind}.pem"
    if scheme is Scheme.ED25519:
        signature = openssl("pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", files / "data")
    else:
        signature = openssl("dgst", *DIGESTS[scheme], "-sign", private, files / "data")
    verify_signature(keys[kind].spki, scheme, DATA, signature)


@pytest.mark.parametrize("kind", KINDS)
def test_the_public_half_is_what_openssl_says_it_is(files, keys, kind):
    spki = openssl("pkey", "-in", files / f"{kind}.pem", "-pubout", "-outform", "DER")
    assert keys[kind].spki == spki
    assert keys[kind].schemes == schemes_of(spki) == SCHEMES[kind]


@pytest.mark.parametrize("salt_length", ["0", "20", "max"])
def test_a_pss_signature_with_a_salt_of_another_length_than_the_hash_is_refused(files, keys, salt_length):
    options = ["-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", f"rsa_pss_saltlen:{salt_length}"]
    signature = openssl("dgst", *options, "-sign", files / "RSA.pem", files / "data")
    forged(keys["RSA"].spki, Scheme.RSA_PSS_RSAE_SHA256, DATA, signature)


# --- determinism --------------------------------------------------------------------------------------


def test_ecdsa_signatures_are_those_of_rfc_6979():
    private = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    key = SigningKey.wrap(ec.derive_private_key(private, ec.SECP256R1()))
    signature = key.sign(Scheme.ECDSA_SECP256R1_SHA256, b"sample")
    # RFC 6979 A.2.5, "With SHA-256, message = "sample"": r, then s, as DER integers
    assert signature == bytes.fromhex(
        "3046 022100 EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
        "     022100 F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
    )


def test_an_ed25519_signature_is_that_of_rfc_8032():
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey.wrap(ed25519.Ed25519PrivateKey.from_private_bytes(private))
    # RFC 8032 §7.1, TEST 1: the empty message
    assert key.spki.endswith(
        bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    )
    assert key.sign(Scheme.ED25519, b"") == bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )


@EVERY_SIGNATURE
def test_the_same_key_and_data_give_the_same_signature_but_for_pss(keys, kind, scheme):
    first, second = (keys[kind].sign(scheme, DATA) for _ in range(2))
    assert (first == second) is ("PSS" not in scheme.name)
    assert keys[kind].sign(scheme, DATA + b".") != first


def test_with_an_openssl_that_knows_no_rfc_6979_ecdsa_still_signs(monkeypatch):
    class OlderEcdsa(ec.ECDSA):
        def __init__(self, algorithm, deterministic_signing=False):
            if deterministic_signing:
                raise UnsupportedAlgorithm("ECDSA with deterministic signature (RFC 6979) is not supported")
            super().__init__(algorithm)

    monkeypatch.setattr(ec, "ECDSA", OlderEcdsa)
    algorithm = signatures._ecdsa(hashes.SHA256())
    private = ec.generate_private_key(ec.SECP256R1())
    key = SigningKey.wrap(private)
    verify_signature(key.spki, Scheme.ECDSA_SECP256R1_SHA256, DATA, private.sign(DATA, algorithm))


# --- forgeries ----------------------------------------------------------------------------------------


@EVERY_SIGNATURE
def test_a_signature_of_other_data_or_by_another_key_is_refused(keys, kind, scheme):
    signature = keys[kind].sign(scheme, DATA)
    verify_signature(keys[kind].spki, scheme, DATA, signature)
    for data in (b"", DATA[:-1], DATA + b"\0", DATA.upper()):
        forged(keys[kind].spki, scheme, data, signature)
    for other in KINDS.keys() - {kind}:
        forged(keys[other].spki, scheme, DATA, signature)
    if kind.startswith("P-"):
        curve = ec.SECP256R1() if kind == "P-256" else ec.SECP384R1()
        forged(SigningKey.wrap(ec.derive_private_key(99, curve)).spki, scheme, DATA, signature)


@EVERY_SIGNATURE
def test_a_signature_under_another_scheme_is_refused(keys, kind, scheme):
    signature = keys[kind].sign(scheme, DATA)
    for other in [*Scheme, 0x0201, 0x0203, 0x0603, 0x0808, 0x0809, 0, 0xFFFF]:
        if other != scheme:
            forged(keys[kind].spki, other, DATA, signature)


def test_a_scheme_may_be_a_plain_integer_as_it_comes_from_the_wire(keys):
    signature = keys["P-256"].sign(Scheme.ECDSA_SECP256R1_SHA256, DATA)
    verify_signature(keys["P-256"].spki, 0x0403, DATA, signature)


@EVERY_SIGNATURE
def test_every_changed_byte_and_every_truncation_of_a_signature_is_refused(keys, kind, scheme):
    signature = keys[kind].sign(scheme, DATA)
    spki = keys[kind].spki
    for position in range(0, len(signature), 7):
        changed = bytearray(signature)
        changed[position] ^= 0x41
        forged(spki, scheme, DATA, bytes(changed))
        forged(spki, scheme, DATA, signature[:position])
    forged(spki, scheme, DATA, signature[:-1])
    forged(spki, scheme, DATA, signature + b"\0")


@given(kind=st.sampled_from(sorted(KINDS)), data=st.data(), signature=st.binary(max_size=300))
def test_arbitrary_bytes_are_no_signature(keys, kind, data, signature):
    scheme = data.draw(st.sampled_from(SCHEMES[kind]))
    forged(keys[kind].spki, scheme, DATA, signature)


def test_a_key_makes_no_signature_that_does_not_fit_it(keys):
    for kind, key in keys.items():
        for scheme in set(Scheme) - set(SCHEMES[kind]):
            with pytest.raises(UsageError, match=f"makes no {scheme!r}"):
                key.sign(scheme, DATA)


# --- public keys that are not used --------------------------------------------------------------------


def der(tag: int, content: bytes) -> bytes:
    length = len(content)
    long_form = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return (
        bytes([tag])
        + (bytes([length]) if length < 128 else bytes([0x80 | len(long_form)]) + long_form)
        + content
    )


def der_integer(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def rsa_spki(
    modulus: int, exponent: int, algorithm: str = "2a864886f70d010101", options: bytes = b"\5\0"
) -> bytes:
    """A SubjectPublicKeyInfo, RFC 3279 §2.3.1; the options of rsaEncryption are NULL."""
    identifier = der(0x30, der(6, bytes.fromhex(algorithm)) + options)
    key = der(0x30, der_integer(modulus) + der_integer(exponent))
    return der(0x30, identifier + der(3, b"\0" + key))


MODULUS = 2**2047 + 0x1234567
"""Odd and long enough; nobody has to know its factors to be refused."""


@pytest.mark.parametrize(
    ("spki", "rule"),
    [
        pytest.param(rsa_spki(MODULUS >> 1, 65537), "an RSA key of 2047 bits", id="RSA 2047"),
        pytest.param(rsa_spki(MODULUS >> 1024, 65537), "an RSA key of 1024 bits", id="RSA 1024"),
        pytest.param(rsa_spki(2**8192 + 1, 65537), "an RSA key of 8193 bits", id="RSA 8193"),
        pytest.param(rsa_spki(MODULUS, 2**32 + 1), "an exponent above", id="33 bits of exponent"),
        pytest.param(rsa_spki(MODULUS, MODULUS - 2), "an exponent above", id="long exponent"),
        pytest.param(rsa_spki(MODULUS, 1), "cannot be read", id="exponent 1"),
        pytest.param(rsa_spki(MODULUS, 65536), "cannot be read", id="even exponent"),
        pytest.param(rsa_spki(MODULUS, 65537) + b"\0", "cannot be read", id="trailing byte"),
        pytest.param(b"", "cannot be read", id="nothing"),
        pytest.param(b"\x30\0", "cannot be read", id="empty sequence"),
    ],
)
def test_an_rsa_key_that_is_weak_costly_or_odd_is_refused(spki, rule):
    for use in (schemes_of, lambda key: verify_signature(key, Scheme.RSA_PKCS1_SHA256, DATA, bytes(256))):
        with pytest.raises(BadPublicKey, match=rule) as caught:
            use(spki)
        assert caught.value.rule


def test_rsa_keys_at_the_bounds_are_used():
    for modulus, exponent in ((2**2047 + 1, 3), (2**8191 + 1, 65537), (MODULUS, 2**32 - 1)):
        assert schemes_of(rsa_spki(modulus, exponent)) == SCHEMES["RSA"]


COMPRESSED_P256 = "3039301306072a8648ce3d020106082a8648ce3d030107032200"


@pytest.mark.parametrize(
    "form", ["PKCS #1", "compressed point", "no NULL after rsaEncryption", "RSASSA-PSS", "PEM"]
)
def test_a_key_in_another_form_than_its_der_is_refused(files, keys, form):
    point = keys["P-256"].spki[-65:]
    other = {
        "PKCS #1": der(0x30, der_integer(MODULUS) + der_integer(65537)),
        "compressed point": bytes.fromhex(COMPRESSED_P256) + bytes([2 + (point[-1] & 1)]) + point[1:33],
        "no NULL after rsaEncryption": rsa_spki(MODULUS, 65537, options=b""),
        "RSASSA-PSS": rsa_spki(MODULUS, 65537, "2a864886f70d01010a", b""),
        "PEM": (files / "P-256.pub").read_bytes(),
    }[form]
    with pytest.raises(BadPublicKey):
        schemes_of(other)


UNSUPPORTED = {
    "P-521": ["EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
    "secp256k1": ["EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
    "Ed448": ["ED448"],
    "X25519": ["X25519"],
    "RSA 1024": ["RSA", "-pkeyopt", "rsa_keygen_bits:1024"],
    "RSASSA-PSS": ["RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"],
    "explicit parameters": [
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-pkeyopt",
        "ec_param_enc:explicit",
    ],
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_public_key_of_a_kind_that_is_not_supported_is_refused(kind):
    private = openssl("genpkey", "-algorithm", *UNSUPPORTED[kind])
    spki = openssl("pkey", "-pubout", "-outform", "DER", data=private)
    with pytest.raises(BadPublicKey):
        schemes_of(spki)
    with pytest.raises(BadPublicKey):
        verify_signature(spki, Scheme.ECDSA_SECP256R1_SHA256, DATA, bytes(70))


@given(data=st.data())
def test_a_changed_public_key_verifies_nothing_and_raises_nothing_else(keys, data):
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    scheme = SCHEMES[kind][0]
    signature = keys[kind].sign(scheme, DATA)
    spki = bytearray(keys[kind].spki)
    spki[data.draw(st.integers(0, len(spki) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((BadPublicKey, NotAuthentic)):
        verify_signature(bytes(spki[: data.draw(st.integers(0, len(spki)))]), scheme, DATA, signature)
    with pytest.raises((BadPublicKey, NotAuthentic)):
        verify_signature(bytes(spki), scheme, DATA, signature)


# --- certificates -------------------------------------------------------------------------------------


def certificate(private: Path, *options: str) -> bytes:
    return openssl(
        "req", "-x509", "-key", private, "-subj", "/CN=meter", "-days", "3650", "-outform", "DER", *options
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_of_a_certificate_is_found_as_it_stands_there(files, keys, kind):
    issued = certificate(files / f"{kind}.pem")
    assert spki_of_certificate(issued) == keys[kind].spki
    assert keys[kind].spki in issued


@pytest.mark.parametrize("kind", ["P-521", "Ed448", "RSA 1024", "RSASSA-PSS"])
def test_a_certificate_with_a_key_that_is_not_supported_is_refused(kind, tmp_path):
    openssl("genpkey", "-algorithm", *UNSUPPORTED[kind], "-out", tmp_path / "key.pem")
    issued = certificate(tmp_path / "key.pem")
    with pytest.raises(BadPublicKey):
        spki_of_certificate(issued)


def test_a_certificate_with_a_compressed_point_is_refused(tmp_path):
    uncompressed = openssl("genpkey", "-algorithm", *KINDS["P-256"])
    openssl("ec", "-conv_form", "compressed", "-out", tmp_path / "key.pem", data=uncompressed)
    issued = certificate(tmp_path / "key.pem")
    with pytest.raises(BadPublicKey, match="not an ordinary SubjectPublicKeyInfo"):
        spki_of_certificate(issued)


def test_what_is_no_certificate_is_a_bad_public_key(files):
    issued = certificate(files / "P-256.pem")
    for bad in (b"", b"\x30\0", issued[:-1], issued + b"\0", issued[: len(issued) // 2]):
        with pytest.raises(BadPublicKey):
            spki_of_certificate(bad)


@pytest.mark.parametrize("serial", ["0", "-5"])
def test_an_odd_serial_number_raises_nothing_but_a_bad_public_key(files, keys, serial):
    # Tests run with every warning an error, as ``python -W error`` does: the worst case.
    issued = certificate(files / "P-256.pem", "-set_serial", serial)
    with pytest.raises(BadPublicKey):
        spki_of_certificate(issued)


@given(position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_changed_certificate_gives_a_key_or_a_bad_public_key(certificates, position, change):
    for issued in certificates:
        changed = bytearray(issued)
        changed[int(position * len(issued))] ^= change
        try:
            spki = spki_of_certificate(bytes(changed))
        except BadPublicKey as error:
            assert error.rule
        else:
            assert spki in changed
            assert schemes_of(spki)


@pytest.fixture(scope="module")
def certificates(files) -> list[bytes]:
    return [certificate(files / f"{kind}.pem") for kind in KINDS]


# --- private keys from files --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_read_from_pem_and_der_with_and_without_a_password(files, keys, kind):
    plain = (files / f"{kind}.pem").read_bytes()
    in_der = openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", data=plain)
    locked = openssl("pkcs8", "-topk8", "-passout", "pass:secret", data=plain)
    locked_der = openssl("pkcs8", "-topk8", "-passout", "pass:secret", "-outform", "DER", data=plain)
    for key in (
        SigningKey.from_der(in_der),
        SigningKey.from_pem(locked, b"secret"),
        SigningKey.from_der(locked_der, b"secret"),
        SigningKey.from_pem(plain, b""),
    ):
        assert key.spki == keys[kind].spki


def test_a_key_is_found_behind_its_certificate_and_its_curve(files, keys):
    issued = openssl("x509", "-inform", "DER", data=certificate(files / "P-256.pem"))
    older = openssl("ec", data=(files / "P-256.pem").read_bytes())
    curve = openssl("ecparam", "-name", "prime256v1")
    assert SigningKey.from_pem(issued + curve + older).spki == keys["P-256"].spki


def test_a_file_without_a_usable_key_is_named_for_what_it_is(files):
    plain = (files / "P-256.pem").read_bytes()
    locked = openssl("pkcs8", "-topk8", "-passout", "pass:secret", data=plain)
    for call, reason in (
        (lambda: SigningKey.from_pem(b""), "there is none in PEM"),
        (lambda: SigningKey.from_pem((files / "P-256.pub").read_bytes()), "there is none in PEM"),
        (lambda: SigningKey.from_pem(plain.replace(b"M", b"A", 1)), "cannot be read$"),
        (lambda: SigningKey.from_pem(locked), "needs a password"),
        (lambda: SigningKey.from_pem(locked, b"guess"), "the password may be wrong"),
        (lambda: SigningKey.from_pem(plain, b"secret"), "has no password, yet one is given"),
        (lambda: SigningKey.from_der(b"\x30\0"), "cannot be read$"),
        (lambda: SigningKey.from_der(plain), "cannot be read$"),
    ):
        with pytest.raises(ConfigError, match=f"^private key: .*{reason}"):
            call()


@pytest.mark.parametrize(
    ("private", "kind"),
    [
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
        (x25519.X25519PrivateKey.generate(), "X25519"),
        (ec.generate_private_key(ec.SECP521R1()), "ECDSA secp521r1"),
        (ec.generate_private_key(ec.SECP256K1()), "ECDSA secp256k1"),
        ("-----BEGIN PRIVATE KEY-----", "str"),
    ],
    ids=["Ed448", "X25519", "P-521", "secp256k1", "text"],
)
def test_a_private_key_of_a_kind_that_is_not_supported_is_a_config_error(private, kind):
    with pytest.raises(ConfigError, match=f"not supported: {kind}$"):
        SigningKey.wrap(private)


def test_a_private_key_on_a_curve_that_nobody_knows_is_a_config_error():
    private = openssl("ecparam", "-name", "secp160r1", "-genkey", "-noout")
    with pytest.raises(ConfigError, match="private key: of a kind that is not supported"):
        SigningKey.from_pem(private)


def test_a_short_rsa_key_is_a_config_error_that_says_so():
    private = openssl("genpkey", "-algorithm", *UNSUPPORTED["RSA 1024"])
    with pytest.raises(ConfigError, match="private key: an RSA key of 1024 bits, not of 2048 to 8192"):
        SigningKey.from_pem(private)


def test_the_key_is_not_shown(keys):
    secret = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    shown = repr(SigningKey.wrap(ec.derive_private_key(secret, ec.SECP256R1())))
    assert shown.startswith("SigningKey(ECDSA secp256r1, spki sha256 ")
    assert f"{secret:x}" not in shown.lower()
    assert str(secret) not in shown
    assert repr(keys["RSA"]).startswith("SigningKey(RSA 2048, ")
    assert repr(keys["Ed25519"]).startswith("SigningKey(Ed25519, ")
