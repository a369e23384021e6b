"""The state behind one policy, for one engine."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from endpoint.quotas.buckets import DataBudget, DataRates, FairBucket, PlainPart
from endpoint.quotas.identities import Identities
from endpoint.quotas.offenders import Offenders
from endpoint.quotas.prefixes import Networks, Prefixes, PrefixState
from sansdtls import Limits

if TYPE_CHECKING:
    from endpoint.addresses import Address
    from endpoint.association import Association
    from endpoint.quotas.offenders import Offender
    from endpoint.quotas.policy import QuotaPolicy
    from endpoint.quotas.prefixes import Prefix

_OF_PREFIXES = frozenset(
    (
        "prefix_datagrams_per_second",
        "prefix_bytes_per_second",
        "total_datagrams_per_second",
        "total_bytes_per_second",
    )
)
"""Reasons to refuse data that are found in what a prefix has had."""
SHOWN_OFFENDERS = 10
"""Offenders in :meth:`Quotas.statistics`: as many as anybody reads."""


class Quotas:
    """Who may have how much. Each refusal is counted by its reason, in :attr:`refused`; the name of the field that said no."""

    def __init__(self, policy: QuotaPolicy, limits: Limits | None = None) -> None:
        """``limits`` are the server's, of which what all share is kept even."""
        self.policy = policy
        self.refused: Counter[str] = Counter()
        """Refusals by the name of the field of the policy, or of ``Limits``."""
        self.offenders = Offenders(size=policy.tracked_offenders, half_life=policy.offender_half_life)
        """Who is refused most."""
        self._networks = Networks(policy)
        self._handshakes = _shared(policy.total_handshakes_per_second, policy.total_handshake_burst, policy)
        self._prefixes = Prefixes(self._networks, tracked=policy.tracked_prefixes, shared=self._handshakes)
        self._identities = Identities(policy)
        self._identity_rates = self._identities.rates or DataRates()
        self._max_half_open = (limits or Limits()).max_half_open
        self._slots = 0
        self._live = 0
        self._datagram_rate = policy.datagrams_per_second
        self._datagram_burst = float(policy.datagram_burst)
        self._byte_rate = policy.bytes_per_second
        self._byte_burst = float(policy.byte_burst)
        self._all_datagrams = _shared(policy.total_datagrams_per_second, policy.total_datagram_burst, policy)
        self._all_bytes = _shared(policy.total_bytes_per_second, policy.total_byte_burst, policy)
        self._limits_all_data = self._all_datagrams is not None or self._all_bytes is not None
        self.limits_data = (
            self._datagram_rate is not None
            or self._byte_rate is not None
            or self._limits_all_data
            or self._networks.limit_data
            or self._identities.rates is not None
        )
        """Whether :meth:`admit_data` can ever refuse."""

    def prefix_of(self, address: Address) -> Prefix:
        """What ``address`` is counted under."""
        return self._networks.prefix_of(address)

    # --- handshakes and associations of a prefix ---

    def admit_handshake(self, prefix: Prefix, *, replaces: bool, now: float) -> str | None:
        """``None`` = yes, and the prefix holds one slot more until :meth:`release`; else why not.

        ``replaces``: the path has a live association, which will end when this handshake succeeds.
        """
        self._prefixes.forget_recovered(now)
        state = self._prefixes.at(prefix)
        reason = self._why_no_handshake(state, replaces=replaces, now=now)
        if reason is not None:
            return self._refuse(reason, prefix, now)
        self._prefixes.hold(prefix)
        self._slots += 1
        return None

    def _why_no_handshake(self, state: PrefixState, *, replaces: bool, now: float) -> str | None:
        """What is limited by numbers is asked first, as a refusal there takes nothing from any bucket."""
        limits = state.limits
        # A replacement stays within the limit once it is done; until then it may be one above.
        if limits.associations is not None and state.slots - replaces >= limits.associations:
            return "associations_per_prefix"
        half_open = state.slots - state.live
        if limits.half_open is not None and half_open >= limits.half_open:
            return "half_open_per_prefix"
        left = self._max_half_open - self.half_open
        if left <= self.policy.fair_reserve * self._max_half_open and half_open + 1 > left * limits.share:
            return "max_half_open"
        everybody = self._handshakes
        if everybody is not None and not everybody.may_take(state, 1, weight=limits.share, now=now):
            return "total_handshakes_per_second"
        if not state.take_handshake(now):
            return "handshakes_per_second"
        if everybody is not None:
            everybody.take(state, 1)
        return None

    def completed(self, prefix: Prefix) -> None:
        """A handshake that holds a slot has become a live association, which keeps it."""
        self._prefixes.holder(prefix).live += 1
        self._live += 1

    def release(self, prefix: Prefix, *, live: bool = False) -> None:
        """Give back the slot of a handshake that has ended; or with ``live``, of an association."""
        state = self._prefixes.holder(prefix)
        if live:
            state.live -= 1
            self._live -= 1
        self._prefixes.release(prefix)
        self._slots -= 1

    def hold(self, prefix: Prefix) -> None:
        """An association that was admitted before is back, or has moved here: counted, never refused."""
        self._prefixes.hold(prefix).live += 1
        self._slots += 1
        self._live += 1

    def prefix_is_over(self, prefix: Prefix) -> bool:
        """Whether ``prefix`` holds more slots than it may."""
        state = self._prefixes.get(prefix)
        limit = None if state is None else state.limits.associations
        return state is not None and limit is not None and state.slots > limit

    def count_prefix_overflow(self, prefix: Prefix, now: float) -> str:
        """Count it; returns the reason."""
        return self._refuse("associations_per_prefix", prefix, now)

    def associations_of(self, prefix: Prefix) -> int:
        """Slots that ``prefix`` holds."""
        state = self._prefixes.get(prefix)
        return 0 if state is None else state.slots

    @property
    def slots(self) -> int:
        """Slots that all prefixes hold: handshakes under way and live associations."""
        return self._slots

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return self._slots - self._live

    # --- associations of an identity ---

    def admit_identity(self, identity: bytes, now: float) -> str | None:
        """``None`` = one that has just proved ``identity`` may stay, as far as rates go; else why not."""
        if self._identities.take_handshake(identity, now):
            return None
        return self._refuse("identity_handshakes_per_second", identity, now)

    def identity_is_full(self, held: int) -> bool:
        """Whether an identity with ``held`` live associations may have no further one."""
        limit = self.policy.associations_per_identity
        return limit is not None and held >= limit

    def count_identity_overflow(self, identity: bytes, now: float) -> str:
        """Count it; returns the reason."""
        return self._refuse("associations_per_identity", identity, now)

    # --- data ---

    def data_budget(
        self, now: float, *, prefix: Prefix | None = None, identity: bytes | None = None
    ) -> DataBudget:
        """A full budget for a new association, which pays from those of its prefix and identity too.

        With an ``identity``, give it back by :meth:`end_budget`. A ``prefix`` has to hold a slot.
        """
        budget = DataBudget(self._datagram_burst, self._byte_burst, now)
        if prefix is not None:
            self.charge(budget, prefix)
        if identity is not None:
            budget.identity = self._identities.hold(identity, now)
        return budget

    def charge(self, budget: DataBudget, prefix: Prefix) -> None:
        """``prefix`` pays from now on: the peer has proved to be there."""
        state = self._prefixes.holder(prefix)
        pays = state.limits.data is not None or self._limits_all_data
        budget.source = state if pays else None

    def end_budget(self, budget: DataBudget) -> None:
        """Its association is over, or frozen."""
        if budget.identity is not None:
            self._identities.release(budget.identity)
            budget.identity = None

    def admit_data(self, budget: DataBudget, size: int, now: float) -> str | None:
        """``None`` = a datagram of ``size`` bytes may pass, and is paid for; else why not."""
        elapsed = now - budget.refilled
        if elapsed > 0:
            budget.refilled = now
            if self._datagram_rate is not None:
                budget.datagrams = min(self._datagram_burst, budget.datagrams + elapsed * self._datagram_rate)
            if self._byte_rate is not None:
                budget.size = min(self._byte_burst, budget.size + elapsed * self._byte_rate)
        reason = None
        if budget.datagrams < 1:
            reason = "datagrams_per_second"
        elif budget.size < size:
            reason = "bytes_per_second"
        elif budget.source is not None or budget.identity is not None:
            reason = self._pay_together(budget, size, now)
        if reason is not None:
            budget.exceeded = True
            self.refused[reason] += 1
            return reason
        budget.exceeded = False
        if self._datagram_rate is not None:
            budget.datagrams -= 1
        if self._byte_rate is not None:
            budget.size -= size
        return None

    def _pay_together(self, budget: DataBudget, size: int, now: float) -> str | None:
        """What the prefix, the identity and all share. Nothing is taken from any of them unless all have it."""
        source, identity = budget.source, budget.identity
        rates = None if source is None else source.limits.data
        if rates is not None and source is not None:
            source.refill(rates, now)
            if source.datagrams < 1:
                return "prefix_datagrams_per_second"
            if source.size < size:
                return "prefix_bytes_per_second"
        if identity is not None:
            identity.refill(self._identity_rates, now)
            if identity.datagrams < 1:
                return "identity_datagrams_per_second"
            if identity.size < size:
                return "identity_bytes_per_second"
        if self._limits_all_data and source is not None:
            reason = self._take_of_all(source, size, now)
            if reason is not None:
                return reason
        if rates is not None and source is not None:
            source.datagrams -= 1
            source.size -= size
        if identity is not None:
            identity.datagrams -= 1
            identity.size -= size
        return None

    def _take_of_all(self, source: PrefixState, size: int, now: float) -> str | None:
        if source.data_parts is None:
            source.data_parts = PlainPart(), PlainPart()
        datagrams, sizes = source.data_parts
        share = source.limits.share
        if self._all_datagrams is not None and not self._all_datagrams.may_take(
            datagrams, 1, weight=share, now=now
        ):
            return "total_datagrams_per_second"
        if self._all_bytes is not None:
            if not self._all_bytes.may_take(sizes, size, weight=share, now=now):
                return "total_bytes_per_second"
            self._all_bytes.take(sizes, size)
        if self._all_datagrams is not None:
            self._all_datagrams.take(datagrams, 1)
        return None

    def blame(self, reason: str, association: Association, now: float) -> None:
        """Note whose datagram :meth:`admit_data`, which does not know, has refused.

        That of its identity, unless it has none or what it lacks is the prefix's: of the one that pays.
        """
        source = association.budget.source
        offender: Offender = association.prefix if source is None else source.prefix
        if association.identified and reason not in _OF_PREFIXES:
            offender = association.identity
        self.offenders.note(offender, reason, now)

    # --- figures ---

    def statistics(self, *, now: float) -> dict[str, Any]:
        """Counters and gauges as plain values. ``top`` has the worst offenders: who, reason, and refusals of late."""
        return {
            "slots": self._slots,
            "half_open": self.half_open,
            "prefixes": self._prefixes.held,
            "tracked_prefixes": len(self._prefixes) - self._prefixes.held,
            "tracked_identities": len(self._identities),
            "tracked_offenders": len(self.offenders),
            "top": [
                {"who": who, "reason": reason, "count": count}
                for who, reason, count in self.offenders.top(SHOWN_OFFENDERS, now=now)
            ],
        }

    def __len__(self) -> int:
        """Entries in all tables, for tests and metrics."""
        return len(self._prefixes) + len(self._identities)

    def _refuse(self, reason: str, offender: Offender, now: float) -> str:
        self.refused[reason] += 1
        self.offenders.note(offender, reason, now)
        return reason


def _shared(rate: float | None, burst: int, policy: QuotaPolicy) -> FairBucket | None:
    return None if rate is None else FairBucket(rate=rate, burst=burst, reserve=policy.fair_reserve)
