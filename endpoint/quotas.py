"""Per-client quotas: how much of a shared endpoint one peer may use.

Attacker
    Has real addresses (it answered our cookie) and perhaps the keys of some devices, and wants the
    endpoint to have no time or memory left for the others. Or it is no attacker at all: a device
    with a bug that reboots, handshakes or sends in a loop. Whoever forges source addresses never
    gets here: nothing is counted before a cookie came back, so nobody can spend another's quota.

Properties
    1. Handshakes (the most expensive thing a peer can cause) are paid from a token bucket of the
       peer's *source prefix*: a whole IPv4 address, and for IPv6 the /56 that one customer gets,
       because within it addresses cost nothing. An IPv4-mapped IPv6 address counts as IPv4, so a
       dual-stack socket gives nobody a second bucket.
    2. Handshakes under way and live associations of a prefix are counted together and exactly; each
       gives its slot back on every way it can end. A device that rebooted may always replace
       its own association: the one that will go is not held against the one that comes. (If it stays after
       all, because it is another device's and has a connection ID, the one that came has to go.) An
       association that moves takes its slot along, and one that wakes up gets one, be the prefix full or not:
       what was admitted is not refused later. A frozen one needs none; ``Limits.max_frozen`` bounds those.
    3. Live associations of one identity are limited too, where a key has leaked or a device comes
       back from a new port each time. By default the one that has been silent longest gives way: the
       newcomer has just proved the key, and refusing it would lock out a rebooted device until the
       idle timeout.
    4. Data of one association are limited in datagrams and in bytes per second, after decryption
       (only then it is known whose they are) and before delivery, so that a forwarder sees no flood.
    5. Refusal is silent, which gives a flood no answer to amplify, and is counted by reason.
    6. Every table is bounded. Buckets are kept for the ``tracked_prefixes`` used last. A bucket that
       has filled up again equals none, so forgetting is exact unless more prefixes than that were
       active within ``handshake_burst / handshakes_per_second``; the forgotten ones then get a new
       burst. Counts are never forgotten; ``Limits`` bounds how many there can be.

Left out, and why
    A limit over all prefixes together: an attacker with many would use it up and so shut out everybody;
    ``Limits.max_half_open`` and ``Limits.max_associations`` bound the total. The stateless answers before
    the cookie: they are ``Server``'s, cost about 60 µs each, and only a packet filter in front
    makes them cheaper. What we send: an echo is no larger than its question, and other programs
    know themselves what they send.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from sansdtls import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.addresses import Address

Prefix: TypeAlias = tuple[int, int]
"""IP version, and the leading bits of the address as a number."""


@enum.unique
class IdentityOverflow(enum.Enum):
    """Which association is closed when an identity has more than its share."""

    OLDEST = "oldest"
    """The one that has been silent longest. Lets a rebooted device in."""
    NEWCOMER = "newcomer"
    """The new one. For fleets that share an identity, where the limit counts devices."""


def _within(
    low: float, high: float, unit: str, *, whole: bool = True, none: bool = False
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    kinds = (int,) if whole else (int, float)

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ARG001
        if none and value is None:
            return
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            number = "whole number" if whole else "number"
            raise ConfigError(
                f"QuotaPolicy.{attribute.name}: {value!r} is not a {number} within {low} to {high} {unit}"
            )

    return check


@attrs.frozen(kw_only=True)
class QuotaPolicy:
    """The quotas. ``None`` = unlimited. A rate is per second of the engine's clock."""

    handshakes_per_second: float | None = attrs.field(
        default=100.0, validator=_within(0.001, 1e6, "handshakes", whole=False, none=True)
    )
    """Per source prefix. 100 handshakes of 500 µs are 5 % of a core, and bring 10,000 devices behind
    one carrier's NAT back within two minutes."""
    handshake_burst: int = attrs.field(default=1_000, validator=_within(1, 1_000_000, "handshakes"))
    """Handshakes a prefix may begin at once: half a second of a core."""
    associations_per_prefix: int | None = attrs.field(
        default=10_000, validator=_within(1, 10_000_000, "associations", none=True)
    )
    """Handshakes under way and live associations together: a tenth of ``Limits.max_associations``, so
    one prefix cannot fill the table, and enough for a carrier's NAT address."""
    associations_per_identity: int | None = attrs.field(
        default=4, validator=_within(1, 10_000_000, "associations", none=True)
    )
    """One is enough for a device; the others are those it left behind when it came back from a new
    port. Raise it where devices share an identity."""
    identity_overflow: IdentityOverflow = attrs.field(
        default=IdentityOverflow.OLDEST, validator=attrs.validators.instance_of(IdentityOverflow)
    )
    """Which association is closed beyond that."""
    datagrams_per_second: float | None = attrs.field(
        default=1_000.0, validator=_within(0.001, 1e6, "datagrams", whole=False, none=True)
    )
    """Received on one association. 1,000 of 20 µs are 2 % of a core."""
    datagram_burst: int = attrs.field(default=2_000, validator=_within(1, 1_000_000, "datagrams"))
    """Datagrams an association may send at once after a pause."""
    bytes_per_second: float | None = attrs.field(
        default=1_048_576.0, validator=_within(0.001, 1e12, "bytes", whole=False, none=True)
    )
    """Application data received on one association: 1 MiB, far above any sensor and enough for a
    firmware image upload."""
    byte_burst: int = attrs.field(default=4_194_304, validator=_within(16_384, 10**12, "bytes"))
    """Bytes an association may send at once. At least one full record, or that could never pass."""
    ipv4_prefix_length: int = attrs.field(default=32, validator=_within(8, 32, "bits"))
    """What counts as one source: a whole address."""
    ipv6_prefix_length: int = attrs.field(default=56, validator=_within(16, 128, "bits"))
    """The usual size of one customer's network (RFC 6177 leaves it between /48 and /64); a longer
    prefix would give each customer many quotas."""
    tracked_prefixes: int = attrs.field(default=16_384, validator=_within(1, 10_000_000, "prefixes"))
    """Token buckets kept, least recently used first out. About 250 bytes each."""
    handshake_share: float = attrs.field(
        default=0.25, validator=_within(0.05, 0.95, "of the time", whole=False)
    )
    """What handshakes, and all else that no live association has sent, get of the time while there is more to read
    than time, readings perhaps. A quarter: 500 handshakes a second, and what waits is read at three quarters of full speed.
    Of the time that nobody else wants they have all, whatever this says."""
    queued_datagrams: int = attrs.field(default=8_192, validator=_within(64, 10_000_000, "datagrams"))
    """Those that may wait for time, all but records of live associations: a fleet of 10,000 at once. About 1 KiB each
    besides their bytes. 16,384 hellos are answered in 0.4 s, before their clients repeat them after 1 s."""
    queued_bytes: int = attrs.field(default=16_777_216, validator=_within(65_536, 10**10, "bytes"))
    """The same in bytes: 16 MiB, 1 KiB for each of 16,384. At least one datagram of any size."""

    @classmethod
    def unlimited(cls) -> QuotaPolicy:
        """No quota at all: for benchmarks, and where something in front does it."""
        return cls(
            handshakes_per_second=None,
            associations_per_prefix=None,
            associations_per_identity=None,
            datagrams_per_second=None,
            bytes_per_second=None,
        )


# --- token buckets ----------------------------------------------------------------------------------


@attrs.define(eq=False)
class TokenBucket:
    """``tokens`` at the time ``refilled``; rate and burst are the caller's, so that a bucket stays small."""

    tokens: float
    refilled: float

    def take(self, amount: float, *, rate: float, burst: float, now: float) -> bool:
        """Take ``amount`` if there is as much; ``False`` = there is not, and nothing was taken."""
        elapsed = now - self.refilled
        if elapsed > 0:
            # min, not max: a bucket never holds more than its burst.
            self.tokens = min(burst, self.tokens + elapsed * rate)
            self.refilled = now
        if self.tokens < amount:
            return False
        self.tokens -= amount
        return True


@attrs.define(eq=False)
class DataBudget:
    """What one association may still send. Made by :meth:`Quotas.data_budget`; one clock for both counts."""

    datagrams: float
    size: float
    refilled: float
    exceeded: bool = False
    """Whether the last datagram was refused: tells the beginning of an excess from its middle."""


class Quotas:
    """The state behind one policy, for one engine. Refusals are counted in :attr:`refused`."""

    def __init__(self, policy: QuotaPolicy) -> None:
        self.policy = policy
        self.refused: Counter[str] = Counter()
        """Refusals by the name of the policy's field."""
        self._handshakes: OrderedDict[Prefix, TokenBucket] = OrderedDict()
        self._associations: dict[Prefix, int] = {}
        self._ipv4_shift = 32 - policy.ipv4_prefix_length
        self._ipv6_shift = 128 - policy.ipv6_prefix_length
        self._datagram_rate = policy.datagrams_per_second
        self._datagram_burst = float(policy.datagram_burst)
        self._byte_rate = policy.bytes_per_second
        self._byte_burst = float(policy.byte_burst)
        self.limits_data = self._datagram_rate is not None or self._byte_rate is not None
        """Whether :meth:`admit_data` can ever refuse."""

    def prefix_of(self, address: Address) -> Prefix:
        """What ``address`` is counted under."""
        host = ip_address(address[0].partition("%")[0])
        if isinstance(host, IPv6Address):
            if host.ipv4_mapped is None:
                return 6, int(host) >> self._ipv6_shift
            host = host.ipv4_mapped
        return 4, int(host) >> self._ipv4_shift

    # --- handshakes and associations of a prefix ---

    def admit_handshake(self, prefix: Prefix, *, replaces: bool, now: float) -> str | None:
        """``None`` = yes, and the prefix holds one slot more until :meth:`release`; else why not.

        ``replaces``: the path has a live association, which will end when this handshake succeeds.
        """
        limit = self.policy.associations_per_prefix
        held = self._associations.get(prefix, 0)
        # A replacement stays within the limit once it is done; until then it may be one above.
        if limit is not None and held - replaces >= limit:
            return self._refuse("associations_per_prefix")
        if not self._take_handshake(prefix, now):
            return self._refuse("handshakes_per_second")
        self._associations[prefix] = held + 1
        return None

    def prefix_is_over(self, prefix: Prefix) -> bool:
        """Whether ``prefix`` holds more slots than it may."""
        limit = self.policy.associations_per_prefix
        return limit is not None and self._associations.get(prefix, 0) > limit

    def count_prefix_overflow(self) -> str:
        """Count it; returns the reason."""
        return self._refuse("associations_per_prefix")

    def hold(self, prefix: Prefix) -> None:
        """An association that was admitted before is back, or has moved here: counted, never refused."""
        self._associations[prefix] = self._associations.get(prefix, 0) + 1

    def release(self, prefix: Prefix) -> None:
        """Give back the slot of an association or handshake that has ended."""
        held = self._associations[prefix] - 1
        if held:
            self._associations[prefix] = held
        else:
            del self._associations[prefix]

    def associations_of(self, prefix: Prefix) -> int:
        """Slots that ``prefix`` holds."""
        return self._associations.get(prefix, 0)

    def _take_handshake(self, prefix: Prefix, now: float) -> bool:
        rate = self.policy.handshakes_per_second
        if rate is None:
            return True
        burst = self.policy.handshake_burst
        bucket = self._handshakes.get(prefix)
        if bucket is None:
            if len(self._handshakes) >= self.policy.tracked_prefixes:
                self._handshakes.popitem(last=False)
            bucket = self._handshakes[prefix] = TokenBucket(burst, now)
        else:
            self._handshakes.move_to_end(prefix)
        return bucket.take(1, rate=rate, burst=burst, now=now)

    # --- associations of an identity ---

    def identity_is_full(self, held: int) -> bool:
        """Whether an identity with ``held`` live associations may have no further one."""
        limit = self.policy.associations_per_identity
        return limit is not None and held >= limit

    def count_identity_overflow(self) -> str:
        """Count it; returns the reason."""
        return self._refuse("associations_per_identity")

    # --- data of one association ---

    def data_budget(self, now: float) -> DataBudget:
        """A full budget for a new association."""
        return DataBudget(self._datagram_burst, self._byte_burst, now)

    def admit_data(self, budget: DataBudget, size: int, now: float) -> str | None:
        """``None`` = a datagram of ``size`` bytes may pass, and is paid for; else why not."""
        elapsed = now - budget.refilled
        if elapsed > 0:
            budget.refilled = now
            if self._datagram_rate is not None:
                budget.datagrams = min(self._datagram_burst, budget.datagrams + elapsed * self._datagram_rate)
            if self._byte_rate is not None:
                budget.size = min(self._byte_burst, budget.size + elapsed * self._byte_rate)
        if budget.datagrams < 1:
            budget.exceeded = True
            return self._refuse("datagrams_per_second")
        if budget.size < size:
            budget.exceeded = True
            return self._refuse("bytes_per_second")
        budget.exceeded = False
        if self._datagram_rate is not None:
            budget.datagrams -= 1
        if self._byte_rate is not None:
            budget.size -= size
        return None

    def _refuse(self, reason: str) -> str:
        self.refused[reason] += 1
        return reason

    def __len__(self) -> int:
        """Entries in all tables, for tests and metrics."""
        return len(self._handshakes) + len(self._associations)
