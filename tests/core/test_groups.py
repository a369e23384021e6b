"""Ephemeral Diffie-Hellman: published vectors, the openssl program, and public values that are no points."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.crypto.groups import BadPublicKey, EphemeralKey
from sansdtls.errors import UsageError
from sansdtls.iana import NamedGroup
from sansdtls.testing import CounterEntropy
from tests.conftest import require_program

LENGTHS = {NamedGroup.SECP256R1: (32, 65), NamedGroup.SECP384R1: (48, 97), NamedGroup.X25519: (32, 32)}
"""Bytes of a private key and of a shared secret, and of a public key."""
NIST_GROUPS = (NamedGroup.SECP256R1, NamedGroup.SECP384R1)
PRIMES = {
    NamedGroup.SECP256R1: 2**256 - 2**224 + 2**192 + 2**96 - 1,
    NamedGroup.SECP384R1: 2**384 - 2**128 - 2**96 + 2**32 - 1,
}
COEFFICIENTS = {
    NamedGroup.SECP256R1: 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    NamedGroup.SECP384R1: int(
        "b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef", 16
    ),
}
"""b of y**2 = x**3 - 3*x + b, FIPS 186-4 D.1.2."""
ORDERS = {
    NamedGroup.SECP256R1: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    NamedGroup.SECP384R1: 2**384 - 0x389CB27E0BC8D220A7E5F24DB74F58851313E695333AD68D,
}


class Scripted:
    """Entropy that gives what it was told to give, and remembers what it was asked for."""

    def __init__(self, *draws: bytes):
        self.draws = list(draws)
        self.asked: list[int] = []

    def __call__(self, length: int) -> bytes:
        self.asked.append(length)
        return self.draws.pop(0)


def key_of(group: NamedGroup, private: bytes) -> EphemeralKey:
    return EphemeralKey.generate(group, Scripted(private))


def some_key(group: NamedGroup, seed: int = 0) -> EphemeralKey:
    return EphemeralKey.generate(group, CounterEntropy(seed))


# --- published vectors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "private", "public", "peer_private", "peer_public", "secret"),
    [
        pytest.param(
            NamedGroup.X25519,
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
            id="RFC 7748 §6.1",
        ),
        pytest.param(
            NamedGroup.SECP256R1,
            "C88F01F5 10D9AC3F 70A292DA A2316DE5 44E9AAB8 AFE84049 C62A9C57 862D1433",
            """04 DAD0B653 94221CF9 B051E1FE CA5787D0 98DFE637 FC90B9EF 945D0C37 72581180
               5271A046 1CDB8252 D61F1C45 6FA3E59A B1F45B33 ACCF5F58 389E0577 B8990BB3""",
            "C6EF9C5D 78AE012A 011164AC B397CE20 88685D8F 06BF9BE0 B283AB46 476BEE53",
            """04 D12DFB52 89C8D4F8 1208B702 70398C34 2296970A 0BCCB74C 736FC755 4494BF63
               56FBF3CA 366CC23E 8157854C 13C58D6A AC23F046 ADA30F83 53E74F33 039872AB""",
            "D6840F6B 42F6EDAF D13116E0 E1256520 2FEF8E9E CE7DCE03 812464D0 4B9442DE",
            id="RFC 5903 §8.1",
        ),
        pytest.param(
            NamedGroup.SECP384R1,
            """099F3C70 34D4A2C6 99884D73 A375A67F 7624EF7C 6B3C0F16 0647B674 14DCE655 E35B5380 41E649EE
               3FAEF896 783AB194""",
            """04 667842D7 D180AC2C DE6F74F3 7551F557 55C7645C 20EF73E3 1634FE72 B4C55EE6 DE3AC808 ACB4BDB4
               C88732AE E95F41AA
               9482ED1F C0EEB9CA FC498462 5CCFC23F 65032149 E0E144AD A0241815 35A0F38E EB9FCFF3 C2C947DA
               E69B4C63 4573A81C""",
            """41CB0779 B4BDB85D 47846725 FBEC3C94 30FAB46C C8DC5060 855CC9BD A0AA2942 E0308312 916B8ED2
               960E4BD5 5A7448FC""",
            """04 E558DBEF 53EECDE3 D3FCCFC1 AEA08A89 A987475D 12FD950D 83CFA417 32BC509D 0D1AC43A 0336DEF9
               6FDA41D0 774A3571
               DCFBEC7A ACF31964 72169E83 8430367F 66EEBE3C 6E70C416 DD5F0C68 759DD1FF F83FA401 42209DFF
               5EAAD96D B9E6386C""",
            """11187331 C279962D 93D60424 3FD592CB 9D0A926F 422E4718 7521287E 7156C5C4 D6031355 69B9E9D0
               9CF5D4A2 70F59746""",
            id="RFC 5903 §8.2",
        ),
    ],
)
def test_published_vectors_hold_in_both_directions(group, private, public, peer_private, peer_public, secret):
    ours, theirs = (key_of(group, bytes.fromhex(key)) for key in (private, peer_private))
    assert ours.public == bytes.fromhex(public)
    assert theirs.public == bytes.fromhex(peer_public)
    assert ours.exchange(theirs.public) == theirs.exchange(ours.public) == bytes.fromhex(secret)


SPKI_PREFIXES = {
    NamedGroup.SECP256R1: "3059301306072a8648ce3d020106082a8648ce3d030107034200",
    NamedGroup.SECP384R1: "3076301006072a8648ce3d020106052b81040022036200",
    NamedGroup.X25519: "302a300506032b656e032100",
}
"""What stands in front of the bytes of the point in a SubjectPublicKeyInfo, RFC 5480 and RFC 8410."""
OPENSSL_ALGORITHMS = {
    NamedGroup.SECP256R1: ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    NamedGroup.SECP384R1: ["EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    NamedGroup.X25519: ["X25519"],
}


def openssl(*arguments: str | Path) -> bytes:
    program = require_program("openssl")
    return subprocess.run([program, *arguments], check=True, capture_output=True, timeout=30).stdout


@pytest.mark.parametrize("group", NamedGroup)
def test_openssl_arrives_at_the_same_secret(group, tmp_path):
    prefix = bytes.fromhex(SPKI_PREFIXES[group])
    theirs = tmp_path / "theirs.pem"
    theirs.write_bytes(openssl("genpkey", "-algorithm", *OPENSSL_ALGORITHMS[group]))
    their_spki = openssl("pkey", "-in", theirs, "-pubout", "-outform", "DER")
    assert their_spki.startswith(prefix)
    ours = some_key(group)
    (tmp_path / "ours.der").write_bytes(prefix + ours.public)
    secret = openssl("pkeyutl", "-derive", "-inkey", theirs, "-peerkey", tmp_path / "ours.der")
    assert ours.exchange(their_spki.removeprefix(prefix)) == secret


# --- entropy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", NamedGroup)
def test_the_entropy_bytes_determine_the_key_and_each_key_takes_new_ones(group):
    private_length, public_length = LENGTHS[group]
    entropy = CounterEntropy(7)
    first, second = (EphemeralKey.generate(group, entropy) for _ in range(2))
    assert first.public != second.public
    assert some_key(group, 7).public == first.public
    assert some_key(group, 8).public != first.public
    assert {len(first.public), len(second.public)} == {public_length}
    scripted = Scripted(bytes(range(1, 1 + private_length)))
    EphemeralKey.generate(group, scripted)
    assert scripted.asked == [private_length]


@pytest.mark.parametrize("group", NIST_GROUPS)
def test_a_private_key_out_of_range_is_drawn_anew(group):
    length = LENGTHS[group][0]
    order = ORDERS[group]
    good = bytes(range(1, 1 + length))
    entropy = Scripted(
        b"\xff" * length, order.to_bytes(length, "big"), bytes(length), good, b"never asked for"
    )
    assert EphemeralKey.generate(group, entropy).public == key_of(group, good).public
    assert entropy.asked == [length] * 4


@pytest.mark.parametrize("group", NIST_GROUPS)
def test_the_smallest_and_the_largest_private_key_are_used(group):
    length = LENGTHS[group][0]
    smallest = key_of(group, (1).to_bytes(length, "big"))
    largest = key_of(group, (ORDERS[group] - 1).to_bytes(length, "big"))
    # They are the base point and its negative: the same x.
    assert smallest.public[: 1 + length] == largest.public[: 1 + length]
    assert smallest.public != largest.public


@pytest.mark.parametrize("group", NIST_GROUPS)
@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_entropy_that_never_gives_a_private_key_is_the_callers_mistake(group, byte):
    with pytest.raises(UsageError, match=f"entropy: 8 draws gave no private key of {group.name}"):
        EphemeralKey.generate(group, lambda length: byte * length)


@pytest.mark.parametrize("group", NamedGroup)
@pytest.mark.parametrize("difference", [-1, 1])
def test_entropy_of_another_length_than_asked_for_is_the_callers_mistake(group, difference):
    with pytest.raises(UsageError, match=r"entropy: \d+ bytes instead of"):
        EphemeralKey.generate(group, lambda length: b"\x11" * (length + difference))


@pytest.mark.parametrize("group", NamedGroup)
def test_the_private_key_is_not_shown(group):
    private = bytes(range(1, 1 + LENGTHS[group][0]))
    shown = repr(key_of(group, private))
    assert group.name in shown
    assert private.hex() not in shown
    assert str(int.from_bytes(private, "big")) not in shown


# --- secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", NamedGroup)
def test_leading_zeros_of_the_secret_stay(group):
    ours = some_key(group)
    length = LENGTHS[group][0]
    for peer in range(1, 5000):
        # The first byte of X25519's secret is its least significant one; it counts all the same.
        secret = ours.exchange(key_of(group, peer.to_bytes(length, "big")).public)
        assert len(secret) == length
        if secret[0] == 0:
            return
    pytest.fail("no secret began with a zero byte")


# --- public values that are no points -----------------------------------------------------------------


def refused(key: EphemeralKey, public: bytes, reason: str = "") -> None:
    with pytest.raises(BadPublicKey) as caught:
        key.exchange(public)
    assert caught.value.rule.startswith(key.group.name)
    assert reason in caught.value.rule


@pytest.mark.parametrize("group", NIST_GROUPS)
@given(data=st.data())
def test_a_point_off_the_curve_is_refused(group, data):
    point = bytearray(some_key(group, 1).public)
    length = LENGTHS[group][0]
    bit = data.draw(st.integers(8, 8 * len(point) - 1))
    point[bit // 8] ^= 0x80 >> bit % 8
    x, y = (int.from_bytes(point[i : i + length], "big") for i in (1, 1 + length))
    prime = PRIMES[group]
    assert (y * y - x**3 + 3 * x - COEFFICIENTS[group]) % prime, "still on the curve"
    refused(some_key(group), bytes(point))


@pytest.mark.parametrize("group", NIST_GROUPS)
def test_every_other_form_of_a_point_is_refused(group):
    ours = some_key(group)
    point = some_key(group, 1).public
    length = LENGTHS[group][0]
    x, y = point[1 : 1 + length], point[1 + length :]
    parity = point[-1] & 1
    compressed = bytes([2 + parity]) + x
    hybrid = bytes([6 + parity]) + x + y
    for form in (compressed, hybrid, b"\0", bytes(len(point)), x + y, b"\5" + x + y):
        refused(ours, form, "not an uncompressed point")
    refused(ours, b"\4" + y + x, "no point")
    assert len(ours.exchange(b"\4" + x + y)) == length


@pytest.mark.parametrize("group", NamedGroup)
def test_a_public_key_of_another_length_is_refused(group):
    ours, point = some_key(group), some_key(group, 1).public
    for length in range(len(point)):
        refused(ours, point[:length])
    refused(ours, point + b"\0")
    refused(ours, point + point)


@pytest.mark.parametrize("group", NamedGroup)
def test_a_point_of_another_group_is_refused(group):
    for other in set(NamedGroup) - {group}:
        refused(some_key(group), some_key(other).public)


@pytest.mark.parametrize("group", NIST_GROUPS)
def test_a_coordinate_above_the_prime_is_refused_though_its_remainder_is_on_the_curve(group):
    prime, b, length = PRIMES[group], COEFFICIENTS[group], LENGTHS[group][0]
    for x in range(100):
        square = (x**3 - 3 * x + b) % prime
        y = pow(square, (prime + 1) // 4, prime)
        if y * y % prime == square:
            break
    else:
        pytest.fail("no point found")
    ours = some_key(group)
    assert len(ours.exchange(b"\4" + x.to_bytes(length, "big") + y.to_bytes(length, "big"))) == length
    refused(ours, b"\4" + (x + prime).to_bytes(length, "big") + y.to_bytes(length, "big"))


@pytest.mark.parametrize(
    "public",
    [
        "00" * 32,
        "01" + "00" * 31,
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "00" * 31 + "80",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_points_of_small_order_that_make_the_secret_zero_are_refused(public, seed):
    refused(some_key(NamedGroup.X25519, seed), bytes.fromhex(public))


@given(st.sampled_from(NamedGroup), st.binary(max_size=100))
def test_arbitrary_bytes_give_a_secret_or_a_bad_public_key_and_nothing_else(group, public):
    try:
        secret = some_key(group).exchange(public)
    except BadPublicKey as error:
        assert error.rule
    else:
        assert group is NamedGroup.X25519
        assert len(secret) == 32
        assert any(secret)
