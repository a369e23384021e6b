"""What a connection keeps of a handshake that succeeded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from sansdtls.handshake.flight import FlightPart
    from sansdtls.handshake.negotiation import Negotiated
    from sansdtls.record.epochs import WriteEpoch
    from sansdtls.session import Session


@attrs.frozen(weakref_slot=False)
class Peer:
    """Who is at the other end, as far as the handshake proved it. All ``None``: a client that showed nothing."""

    psk_identity: bytes | None = None
    """The identity the key belongs to: the client's, on both sides."""
    psk_key_index: int | None = None
    """Which of the identity's keys matched: 0 is the current one, 1 the next."""
    certificate_chain: tuple[bytes, ...] | None = attrs.field(default=None, repr=False)
    """DER, the peer's own certificate first; the caller has accepted it."""
    raw_public_key: bytes | None = attrs.field(default=None, repr=False)
    """SubjectPublicKeyInfo in DER; the caller has accepted it."""

    @property
    def name(self) -> tuple[object, ...]:
        """Who it is, whichever of its keys it had. Peers that showed nothing are all alike."""
        return self.psk_identity, self.certificate_chain, self.raw_public_key

    def is_same_as(self, other: Peer) -> bool:
        """Whether both are the same peer, as far as that was shown."""
        return self.name == other.name


@attrs.frozen(kw_only=True)
class Outcome:
    """A handshake that succeeded: all that the connection keeps of it."""

    negotiated: Negotiated
    peer: Peer
    master_secret: bytes = attrs.field(repr=False)
    client_random: bytes
    server_random: bytes
    write: WriteEpoch
    last_flight: list[FlightPart]
    """To be repeated whenever the peer repeats its own; empty if the peer had the last word."""
    next_receive_seq: int
    max_plaintext: int
    """Bytes that the peer takes in one record."""
    max_accepted: int
    """Bytes that we take in one record."""
    session: Session | None
    """Client: what can be resumed later."""
