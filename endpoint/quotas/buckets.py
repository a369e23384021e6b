"""What limits are made of: buckets of tokens, budgets of data, and one bucket that many share evenly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from endpoint.quotas.identities import IdentityState
    from endpoint.quotas.policy import QuotaPolicy
    from endpoint.quotas.prefixes import PrefixState

_UNLIMITED = math.inf
_ROUNDING = 1e-6
"""Of a token, so that a burst of 1,000 is not 999 because of the last digit of a time."""
_FORGOTTEN = 50.0
"""Added to the exponent when a shared bucket has filled up: what any part took then counts e**-50, which is nothing."""


# --- of one ------------------------------------------------------------------------------------------


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


def spend(full_at: float, *, rate: float, burst: float, now: float) -> tuple[bool, float]:
    """One token of a bucket that will be full again at ``full_at``: whether there was one, and when it will be full now.

    The same bucket in one number, for tables with many. A clock that goes back empties it at most.
    """
    debt = min(max(full_at - now, 0.0), burst / rate)
    granted = debt + 1 / rate <= (burst + _ROUNDING) / rate
    return granted, now + debt + (1 / rate if granted else 0.0)


@attrs.frozen
class DataRates:
    """How much data the associations of somebody may send together; infinite where there is no limit."""

    datagram_rate: float = _UNLIMITED
    datagram_burst: float = _UNLIMITED
    byte_rate: float = _UNLIMITED
    byte_burst: float = _UNLIMITED

    @classmethod
    def of(
        cls, datagrams: float | None, datagram_burst: float, size: float | None, byte_burst: float
    ) -> DataRates | None:
        """From two fields of a policy and their bursts; ``None`` = neither is limited."""
        if datagrams is None and size is None:
            return None
        return cls(
            *((_UNLIMITED, _UNLIMITED) if datagrams is None else (datagrams, float(datagram_burst))),
            *((_UNLIMITED, _UNLIMITED) if size is None else (size, float(byte_burst))),
        )


@attrs.define(eq=False, weakref_slot=False)
class SharedBudget:
    """What the associations of a prefix or of an identity may still send together. The rates are the caller's."""

    datagrams: float
    size: float
    refilled: float

    def refill(self, rates: DataRates, now: float) -> None:
        """Up to the time ``now``."""
        elapsed = now - self.refilled
        if elapsed > 0:
            self.refilled = now
            self.datagrams = min(rates.datagram_burst, self.datagrams + elapsed * rates.datagram_rate)
            self.size = min(rates.byte_burst, self.size + elapsed * rates.byte_rate)


@attrs.define(eq=False, weakref_slot=False)
class DataBudget:
    """What one association may still send. Made by :meth:`Quotas.data_budget`; one clock for both counts."""

    datagrams: float
    size: float
    refilled: float
    exceeded: bool = False
    """Whether the last datagram was refused: tells the beginning of an excess from its middle."""
    source: PrefixState | None = None
    """The prefix that pays as well."""
    identity: IdentityState | None = None
    """The identity that pays as well, where there is a limit for that."""


# --- of all ------------------------------------------------------------------------------------------


class Part(Protocol):
    """What one of many has taken from a :class:`FairBucket` lately, as it was when ``exponent`` was the bucket's."""

    taken: float
    exponent: float


@attrs.define(eq=False, weakref_slot=False)
class PlainPart:
    """A :class:`Part` and nothing else."""

    taken: float = 0.0
    exponent: float = 0.0


class FairBucket:
    """A token bucket that many share, and of which none takes the last part from the others.

    What has been taken and not refilled yet, the *level*, is put down to those who took it. Refilling gives it back to
    each in proportion, as if the level were a queue that is served in order. While more than ``reserve`` of the burst is left
    whoever comes gets something. Of what is left then a part gets something only while its own level is below what is
    left (times its ``weight``): so the greedy stop each other before the bucket is empty, all at the same level, however
    much they ask for, and who has taken little finds something left. As the greedy are given back the same, they go
    on at the same rate.

    Levels shrink by a factor that is the same for all; its logarithm is summed up, so a part is brought up to date when it
    is looked at, and costs nothing else.
    """

    __slots__ = ("_burst", "_exponent", "_rate", "_refilled", "_reserve", "level")

    def __init__(self, *, rate: float, burst: float, reserve: float, now: float = -math.inf) -> None:
        """``rate`` a second, at most ``burst`` at once; ``reserve`` is a fraction of the burst."""
        self._rate = rate
        self._burst = float(burst)
        self._reserve = reserve * burst
        self._refilled = now
        self._exponent = 0.0
        self.level = 0.0
        """What was taken and has not been refilled."""

    def left(self, now: float) -> float:
        """What could be taken by somebody who has taken nothing."""
        self._refill(now)
        return self._burst - self.level

    def taken_by(self, part: Part, now: float) -> float:
        """What ``part``, which is brought up to date, has taken and has not been given back."""
        self._refill(now)
        if part.taken:
            part.taken *= math.exp(self._exponent - part.exponent)
        part.exponent = self._exponent
        return part.taken

    def may_take(self, part: Part, amount: float, *, weight: float, now: float) -> bool:
        """Whether ``amount`` may be taken by ``part``, which is brought up to date."""
        taken = self.taken_by(part, now)
        left = self._burst - self.level
        if amount > left:
            return False
        return left > self._reserve or taken + amount <= left * weight

    def take(self, part: Part, amount: float) -> None:
        """Take what :meth:`may_take` has just allowed."""
        part.taken += amount
        self.level += amount

    def _refill(self, now: float) -> None:
        elapsed = now - self._refilled
        if elapsed <= 0:
            return
        self._refilled = now
        if not self.level:
            return
        refilled = elapsed * self._rate
        if refilled < self.level:
            self._exponent += math.log1p(-refilled / self.level)
            self.level -= refilled
        else:
            self._exponent -= _FORGOTTEN
            self.level = 0.0


class WaitingData:
    """Received data that wait for their reader: how many bytes one association may hold, and all together.

    Sized like a buffer that many share: in the last part of it nobody gets more than as much as is left.
    """

    __slots__ = ("_each", "_reserve", "_total", "size")

    def __init__(self, policy: QuotaPolicy) -> None:
        each, total = policy.waiting_bytes_per_association, policy.total_waiting_bytes
        self._each = _UNLIMITED if each is None else each
        self._total = _UNLIMITED if total is None else total
        self._reserve = 0 if total is None else policy.fair_reserve * total
        self.size = 0
        """Bytes that wait, of all."""

    def admit(self, held: int, size: int) -> bool:
        """Whether ``size`` bytes more may wait for a reader who has ``held`` waiting; they then do, until :meth:`release`."""
        left = self._total - self.size
        if held + size > self._each or size > left:
            return False
        if left <= self._reserve and held + size > left:
            return False
        self.size += size
        return True

    def release(self, size: int) -> None:
        """They were read, or will not be any more."""
        self.size -= size
