"""Identities: how often they handshake, and what their associations send together. Proved ones only.

How many associations an identity has, live and frozen, is known elsewhere (``roster``, ``sleepers``).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

from endpoint.quotas.buckets import DataRates, SharedBudget, spend

if TYPE_CHECKING:
    from endpoint.quotas.policy import QuotaPolicy

_LOOKED_AT = 2
"""Entries of a table, the ones used longest ago, that are looked at for each one that comes: more than come."""


@attrs.define(eq=False, weakref_slot=False)
class IdentityState(SharedBudget):
    """What the associations of one identity may still send together."""

    identity: bytes
    live: int = 0
    """Associations that pay from it."""


class Identities:
    """All that are known. One with a live association is not forgotten; of the others, those used last are remembered."""

    def __init__(self, policy: QuotaPolicy) -> None:
        self._rate = policy.identity_handshakes_per_second
        self._burst = policy.identity_handshake_burst
        self._tracked = policy.tracked_identities
        self.rates = DataRates.of(
            policy.identity_datagrams_per_second,
            policy.identity_datagram_burst,
            policy.identity_bytes_per_second,
            policy.identity_byte_burst,
        )
        """What one may send; ``None`` = there is no limit."""
        self._handshakes: OrderedDict[bytes, float] = OrderedDict()
        """When the bucket of each is full again."""
        self._held: dict[bytes, IdentityState] = {}
        self._resting: OrderedDict[bytes, IdentityState] = OrderedDict()

    def __len__(self) -> int:
        """Entries of all tables."""
        return len(self._handshakes) + len(self._held) + len(self._resting)

    @property
    def held(self) -> int:
        """Those that have a live association, where their data are limited."""
        return len(self._held)

    def take_handshake(self, identity: bytes, now: float) -> bool:
        """One more of ``identity``, if it may have one."""
        if self._rate is None:
            return True
        handshakes = self._handshakes
        for _ in range(min(_LOOKED_AT, len(handshakes))):
            oldest = next(iter(handshakes))
            if handshakes[oldest] > now:
                break
            del handshakes[oldest]  # full again, which is what it would be if it were unknown
        granted, handshakes[identity] = spend(
            handshakes.get(identity, now), rate=self._rate, burst=self._burst, now=now
        )
        handshakes.move_to_end(identity)
        if len(handshakes) > self._tracked:
            handshakes.popitem(last=False)
        return granted

    def hold(self, identity: bytes, now: float) -> IdentityState | None:
        """It has one live association more; what that one pays from, if there is a limit."""
        if self.rates is None:
            return None
        state = self._held.get(identity)
        if state is None:
            if identity in self._resting:
                state = self._resting.pop(identity)
            else:
                state = IdentityState(self.rates.datagram_burst, self.rates.byte_burst, now, identity)
            self._held[identity] = state
        state.live += 1
        return state

    def release(self, state: IdentityState) -> None:
        """It has one less."""
        state.live -= 1
        if not state.live:
            identity = state.identity
            del self._held[identity]
            self._resting[identity] = state
            if len(self._resting) > self._tracked:
                self._resting.popitem(last=False)
