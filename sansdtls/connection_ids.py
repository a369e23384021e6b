"""Connection IDs: how they are made, and what may move the path of an association that has one.

A connection ID (RFC 9146) names an association in each record, so that it is found whatever address the
record comes from. Each side chooses the IDs that it wants to receive. They are sent in clear and stay the
same for the life of the association: whoever watches two networks can tell that the same device is on both
(RFC 9146 §8). So our clients offer the extension only when told to.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from sansdtls.errors import ConfigError
from sansdtls.validators import bytes_of_length, in_range, instance_of, whole

MAX_CONNECTION_ID_LENGTH = 20
"""Bytes of an ID that we ask for. RFC 9146 allows 255, but each record carries it; 20 is QUIC's bound too, and
leaves room for a node's number besides 128 random bits. IDs that a peer asks for may have any length."""

Generator: TypeAlias = Callable[[Callable[[int], bytes]], bytes]
"""Makes a connection ID; its argument returns that many random bytes."""


@enum.unique
class ReturnRoutability(enum.Enum):
    """Whether and how a new path is proven by RFC 9853 before it is used."""

    OFF = "off"
    """The extension is neither offered nor answered."""
    BASIC = "basic"
    """RFC 9853 §5.1: the new path is asked. One round trip."""
    ENHANCED = "enhanced"
    """RFC 9853 §5.2: the old path is asked first. If it still answers, nothing moves: somebody has forwarded
    the peer's datagrams to get between us. Costs ``probe_timeout`` after each true change of address."""


@enum.unique
class PathPolicy(enum.Enum):
    """What a newer authenticated record from a new path does where the peer does not know RFC 9853."""

    MOVE = "move"
    """The path changes at once. Somebody who can change source addresses of datagrams under way can point our
    answers at a victim (RFC 9146 §9), until the device's next record."""
    APPLICATION = "application"
    """``PathChangeRequested`` asks the caller, who may have a way to find out (CoAP's Echo option, RFC 9175)."""
    NEVER = "never"
    """Data are delivered, answers go on to the old path."""


@attrs.frozen(kw_only=True)
class ConnectionIdPolicy:
    """Connection IDs, RFC 9146, of one side. Lengths in bytes, times in seconds."""

    length: int = attrs.field(default=8, validator=whole(0, MAX_CONNECTION_ID_LENGTH, "bytes"))
    """Of the IDs that the peer puts into its records. 8 random bytes neither collide nor can be guessed. 0 = we
    use the peer's, but need none."""
    prefix: bytes = attrs.field(
        default=b"", validator=bytes_of_length(0, MAX_CONNECTION_ID_LENGTH - 1, secret=False)
    )
    """Begins every ID: the number of a node or worker, by which a balancer can route. The rest is random."""
    generator: Generator | None = None
    """Makes IDs of ``length`` bytes in another way; ``None`` = ``prefix`` and random bytes. An ID in use is
    asked for again."""
    padding: int = attrs.field(default=1, validator=whole(1, 1024, "bytes"))
    """Content, type and padding of a record of data or of an alert fill a multiple of this many bytes, or as much
    as mtu and peer take, if that is less: so only the number of such blocks is seen, and data look like alerts.
    In records with an ID only; 1 = no padding."""
    return_routability: ReturnRoutability = attrs.field(
        default=ReturnRoutability.BASIC, validator=instance_of(ReturnRoutability)
    )
    """How a new path is proven, where the peer knows RFC 9853."""
    path_policy: PathPolicy = attrs.field(default=PathPolicy.MOVE, validator=instance_of(PathPolicy))
    """What moves the path where it does not."""
    probe_timeout: float = attrs.field(default=1.0, validator=in_range(0.01, 600, "seconds"))
    """How long to wait for the answer to a path_challenge; RFC 9853 §5.5: three round trips, or 1 s if unknown."""
    max_probes: int = attrs.field(default=3, validator=whole(1, 20, "challenges"))
    """How many challenges, each with a fresh cookie, a path may leave unanswered."""

    @prefix.validator
    def _leaves_room(self, attribute: attrs.Attribute[bytes], value: bytes) -> None:
        if value and len(value) >= self.length:
            raise ConfigError(
                f"ConnectionIdPolicy.prefix: {len(value)} bytes leave no random byte of {self.length}"
            )

    def generate(self, entropy: Callable[[int], bytes]) -> bytes:
        """A new ID. Raises UsageError's ConfigError if the generator returns something else than ``length`` bytes."""
        if self.generator is None:
            return self.prefix + entropy(self.length - len(self.prefix)) if self.length else b""
        made: Any = self.generator(entropy)
        if not isinstance(made, bytes) or len(made) != self.length:
            raise ConfigError(
                f"ConnectionIdPolicy.generator: made {made!r}, where {self.length} bytes are needed"
            )
        return made
