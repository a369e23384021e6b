"""Source prefixes: what an address is counted under, which limits hold there, and what is remembered of it.

A prefix that holds a slot is never forgotten; ``Limits.max_half_open`` and ``Limits.max_associations`` bound how many there
can be. Of the others those used last are remembered, as long as there is anything to remember: once all its
buckets are full again a prefix is as good as new.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeAlias

import attrs

from endpoint.quotas.buckets import DataRates, PlainPart, SharedBudget, spend

if TYPE_CHECKING:
    from endpoint.addresses import Address
    from endpoint.quotas.buckets import FairBucket
    from endpoint.quotas.networks import NetworkQuota
    from endpoint.quotas.policy import QuotaPolicy

Prefix: TypeAlias = tuple[int, int]
"""IP version, and the leading bits of the address as a number, with a one before them that tells how many they are."""

_WIDTHS = {4: 32, 6: 128}
_MAPPED = 0xFFFF
"""The first 96 bits of an IPv4-mapped IPv6 address, RFC 4291 §2.5.5.2."""
_LOOKED_AT = 2
"""Remembered prefixes, the ones used longest ago, that are looked at for each one that comes: more than come."""


def _as_number(host: str) -> tuple[int, int]:
    """IP version and address; IPv4-mapped is IPv4. A tenth of what ``ip_address`` costs, as it is asked for each hello."""
    if ":" not in host:
        return 4, int.from_bytes(socket.inet_aton(host))
    number = int.from_bytes(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
    return (4, number & 0xFFFF_FFFF) if number >> 32 == _MAPPED else (6, number)


def prefix_text(prefix: Prefix) -> str:
    """``192.0.2.0/24`` or ``2001:db8::/56``."""
    version, marked = prefix
    length = marked.bit_length() - 1
    number = (marked ^ 1 << length) << _WIDTHS[version] - length
    return f"{IPv4Address(number) if version == 4 else IPv6Address(number)}/{length}"


@attrs.frozen
class PrefixLimits:
    """What holds for each prefix of a network, or of all the rest."""

    length: int
    """Bits of an address that make it one prefix."""
    handshakes_per_second: float | None
    handshake_burst: int
    half_open: int | None
    associations: int | None
    data: DataRates | None
    share: float

    @classmethod
    def of(cls, given: QuotaPolicy | NetworkQuota, length: int, share: float = 1.0) -> PrefixLimits:
        """Those that a policy names, or one of its networks."""
        return cls(
            length=length,
            handshakes_per_second=given.handshakes_per_second,
            handshake_burst=given.handshake_burst,
            half_open=given.half_open_per_prefix,
            associations=given.associations_per_prefix,
            data=DataRates.of(
                given.prefix_datagrams_per_second,
                given.prefix_datagram_burst,
                given.prefix_bytes_per_second,
                given.prefix_byte_burst,
            ),
            share=share,
        )


class Networks:
    """Which limits hold for an address: those of the longest network that it is in.

    One dict for each length that occurs, which are few however many networks there are.
    """

    def __init__(self, policy: QuotaPolicy) -> None:
        lengths = {4: policy.ipv4_prefix_length, 6: policy.ipv6_prefix_length}
        self._usual = {version: PrefixLimits.of(policy, length) for version, length in lengths.items()}
        tables: dict[int, dict[int, dict[int, PrefixLimits]]] = {4: {}, 6: {}}
        for told in policy.networks:
            base = told.base
            length = told.prefix_length or max(base.prefixlen, lengths[base.version])
            bits = int(base.network_address) >> base.max_prefixlen - base.prefixlen
            table = tables[base.version].setdefault(base.prefixlen, {})
            table[bits] = PrefixLimits.of(told, length, told.share)
        self.limit_data = any(
            limits.data is not None
            for found in (self._usual, *(table for tables_ in tables.values() for table in tables_.values()))
            for limits in found.values()
        )
        """Whether any prefix's data are limited."""
        self._tables = {version: sorted(found.items(), reverse=True) for version, found in tables.items()}

    def limits_of(self, prefix: Prefix) -> PrefixLimits:
        """What holds for it."""
        version, marked = prefix
        length = marked.bit_length() - 1
        return self._find(version, (marked ^ 1 << length) << _WIDTHS[version] - length, length)

    def prefix_of(self, address: Address) -> Prefix:
        """What ``address`` is counted under."""
        version, number = _as_number(address[0])
        length = self._find(version, number, _WIDTHS[version]).length
        return version, 1 << length | number >> _WIDTHS[version] - length

    def _find(self, version: int, number: int, known: int) -> PrefixLimits:
        """For the first ``known`` bits of ``number``."""
        for length, table in self._tables[version]:
            if length <= known:
                found = table.get(number >> _WIDTHS[version] - length)
                if found is not None:
                    return found
        return self._usual[version]


@attrs.define(eq=False, weakref_slot=False)
class PrefixState(SharedBudget):
    """What is known of one prefix. It is its own budget for data and its own part of the shared handshakes, to save memory."""

    prefix: Prefix
    limits: PrefixLimits
    taken: float = 0.0
    exponent: float = 0.0
    slots: int = 0
    """Handshakes under way and live associations."""
    live: int = 0
    """The latter."""
    full_at: float = 0.0
    """When its bucket of handshakes is full again."""
    data_parts: tuple[PlainPart, PlainPart] | None = None
    """Its parts of the shared datagrams and bytes, where there are limits for that."""

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return self.slots - self.live

    def take_handshake(self, now: float) -> bool:
        """Take one from its bucket, if there is one."""
        limits = self.limits
        if limits.handshakes_per_second is None:
            return True
        granted, self.full_at = spend(
            self.full_at, rate=limits.handshakes_per_second, burst=limits.handshake_burst, now=now
        )
        return granted

    def is_as_new(self, now: float) -> bool:
        """Whether its own buckets are full."""
        rates = self.limits.data
        if self.full_at > now:
            return False
        if rates is None:
            return True
        self.refill(rates, now)
        return self.datagrams >= rates.datagram_burst and self.size >= rates.byte_burst


class Prefixes:
    """All that are known."""

    def __init__(self, networks: Networks, *, tracked: int, shared: FairBucket | None) -> None:
        """``tracked`` are remembered without a slot; ``shared`` are the handshakes of all."""
        self._networks = networks
        self._tracked = tracked
        self._shared = shared
        self._held: dict[Prefix, PrefixState] = {}
        self._resting: OrderedDict[Prefix, PrefixState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held) + len(self._resting)

    @property
    def held(self) -> int:
        """Those that have a slot."""
        return len(self._held)

    def get(self, prefix: Prefix) -> PrefixState | None:
        """What is known of it."""
        return self._held.get(prefix) or self._resting.get(prefix)

    def at(self, prefix: Prefix) -> PrefixState:
        """The same; it is known from now on, and was used just now."""
        state = self._held.get(prefix)
        if state is None:
            state = self._resting.get(prefix)
            if state is None:
                state = self._made(prefix)
            self._rest(prefix, state)
        return state

    def holder(self, prefix: Prefix) -> PrefixState:
        """What is known of one that holds a slot."""
        return self._held[prefix]

    def hold(self, prefix: Prefix) -> PrefixState:
        """It has one slot more."""
        state = self._held.get(prefix)
        if state is None:
            state = self._resting.pop(prefix) if prefix in self._resting else self._made(prefix)
            self._held[prefix] = state
        state.slots += 1
        return state

    def release(self, prefix: Prefix) -> PrefixState:
        """It has one slot less."""
        state = self._held[prefix]
        state.slots -= 1
        if not state.slots:
            del self._held[prefix]
            self._rest(prefix, state)
        return state

    def forget_recovered(self, now: float) -> None:
        """Those used longest ago, where nothing is to be remembered of them any more."""
        for _ in range(min(_LOOKED_AT, len(self._resting))):
            prefix = next(iter(self._resting))
            state = self._resting[prefix]
            if not state.is_as_new(now) or (self._shared and self._shared.taken_by(state, now) >= 1):
                return
            del self._resting[prefix]

    def _made(self, prefix: Prefix) -> PrefixState:
        limits = self._networks.limits_of(prefix)
        data = limits.data
        return PrefixState(
            datagrams=data.datagram_burst if data else 0.0,
            size=data.byte_burst if data else 0.0,
            refilled=0.0,
            prefix=prefix,
            limits=limits,
        )

    def _rest(self, prefix: Prefix, state: PrefixState) -> None:
        limits = state.limits
        if self._shared is None and limits.handshakes_per_second is None and limits.data is None:
            self._resting.pop(prefix, None)
            return
        self._resting[prefix] = state
        self._resting.move_to_end(prefix)
        if len(self._resting) > self._tracked:
            self._resting.popitem(last=False)
