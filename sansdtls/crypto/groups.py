"""Ephemeral Diffie-Hellman, RFC 8422 §5.4, §5.7, §5.10 and §5.11.

The attacker chooses the peer's public value. A point that is not on our curve lies on a weaker one, and each
handshake against such a point tells a little about our private key; a point of small order makes the
shared secret one that the attacker knows. So every public value is checked before the secret is used, and
no private key serves two handshakes: there is nothing to collect. Compressed points are not read: both RFC
8422 and our hellos name the uncompressed form only.

The private key comes from the ``entropy`` that was given, so a recorded handshake can be made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sansdtls.errors import UsageError
from sansdtls.iana import NamedGroup

if TYPE_CHECKING:
    from collections.abc import Callable

_X25519_LENGTH = 32
"""Bytes of a private key, a public key and a shared secret, RFC 7748 §5."""
_UNCOMPRESSED = 0x04
"""First byte of an uncompressed point, RFC 8422 §5.4.1."""
_MAX_DRAWS = 8
"""Private keys drawn before the entropy source is called broken. One of P-256 is out of range once in
2**32 times, one of P-384 once in 2**194 times."""

_CURVES: dict[NamedGroup, tuple[ec.EllipticCurve, int, int]] = {
    NamedGroup.SECP256R1: (
        ec.SECP256R1(),
        32,
        0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551,
    ),
    NamedGroup.SECP384R1: (
        ec.SECP384R1(),
        48,
        0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_C7634D81_F4372DDF_581A0DB2_48B0A77A_ECEC196A_CCC52973,
    ),
}
"""curve, bytes of a coordinate and of a private key, order of the base point (FIPS 186-4 D.1.2)."""


class BadPublicKey(Exception):
    """A public key that is not to be computed with. Internal, as :class:`~sansdtls.errors.DecodeError` is.

    ``rule`` is a short sentence for the operator.
    """

    def __init__(self, rule: str):
        super().__init__(rule)
        self.rule = rule


class EphemeralKey:
    """One side's key pair of one handshake."""

    __slots__ = ("_private", "group", "public")

    def __init__(
        self,
        group: NamedGroup,
        private: ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey,
        public: bytes,
    ) -> None:
        self._private = private
        self.group = group
        self.public = public
        """As it stands in a key exchange message: RFC 8422 §5.4.1 for the NIST curves, 32 bytes for X25519."""

    @classmethod
    def generate(cls, group: NamedGroup, entropy: Callable[[int], bytes]) -> EphemeralKey:
        """A new key pair. The bytes that ``entropy`` gives determine it."""
        if group is NamedGroup.X25519:
            x_private = x25519.X25519PrivateKey.from_private_bytes(_draw(entropy, _X25519_LENGTH))
            return cls(group, x_private, x_private.public_key().public_bytes_raw())
        curve, length, order = _CURVES[group]
        for _ in range(_MAX_DRAWS):
            # FIPS 186-4 B.4.2: what is out of range is drawn anew, never reduced, so that no key is likelier.
            scalar = int.from_bytes(_draw(entropy, length))
            if 0 < scalar < order:
                private = ec.derive_private_key(scalar, curve)
                public = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
                return cls(group, private, public)
        raise UsageError(f"entropy: {_MAX_DRAWS} draws gave no private key of {group.name}")

    def exchange(self, peer_public: bytes) -> bytes:
        """The shared secret: the premaster secret of ECDHE, the first half of that of ECDHE_PSK.

        RFC 8422 §5.10: the x-coordinate, whose leading zeros "MUST NOT be truncated", or what X25519 gives.
        """
        private = self._private
        try:
            if isinstance(private, x25519.X25519PrivateKey):
                # RFC 8422 §5.11: "With X25519 and X448, a receiving party MUST check whether the computed
                # premaster secret is the all-zero value and abort the handshake if so": a ValueError here,
                # as is a key of another length than 32.
                return private.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public))
            curve, length, _ = _CURVES[self.group]
            if len(peer_public) != 1 + 2 * length or peer_public[0] != _UNCOMPRESSED:
                raise BadPublicKey(f"{self.group.name}: not an uncompressed point")
            # RFC 8422 §5.11: "A receiving party MUST check that the x and y parameters from the peer's public
            # value satisfy the curve equation, y^2 = x^3 + ax + b mod p.": a ValueError here.
            return private.exchange(
                ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(curve, peer_public)
            )
        except ValueError:
            raise BadPublicKey(f"{self.group.name}: a public key that is no point to compute with") from None

    def __repr__(self) -> str:
        """Without the private key."""
        return f"EphemeralKey({self.group.name}, public={self.public.hex()})"


def _draw(entropy: Callable[[int], bytes], length: int) -> bytes:
    """``length`` bytes; a source that gives fewer would make a weak key unseen."""
    drawn = entropy(length)
    if len(drawn) != length:
        raise UsageError(f"entropy: {len(drawn)} bytes instead of {length}")
    return drawn
