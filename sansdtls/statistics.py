"""Counters. Named once here; the same names appear in metrics and documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import attrs

from sansdtls.holders import Holders

if TYPE_CHECKING:
    from sansdtls.events import DiscardReason


@attrs.define(eq=False, weakref_slot=False)
class ConnectionStatistics:
    """Counters of one connection. Bytes are application data."""

    datagrams_received: int = 0
    datagrams_sent: int = 0
    records_received: int = 0
    """Authenticated application data records."""
    records_sent: int = 0
    """The same, sent."""
    bytes_received: int = 0
    bytes_sent: int = 0
    mac_failures: int = 0
    """Records that no key authenticated."""
    retransmissions: int = 0
    """Flights sent again, for whatever reason."""
    path_changes: int = 0
    """Times that datagrams began to go to another path."""
    path_checks_failed: int = 0
    """Return routability checks (RFC 9853) after which they did not: no answer, or the peer was still heard where
    it was. Many of them are a sign of an attack, or of a path that is not stable."""
    path_responses_ignored: int = 0
    """Answers to no challenge that is open: late, repeated, forged or from a path that was not asked. RFC 9853 §7.1:
    several for one challenge could suggest an attack."""
    records_discarded: dict[DiscardReason, int] = attrs.field(init=False)
    """Made when somebody looks: of 100,000 connections most never discard anything."""


def _make_when_looked_at() -> None:
    # Not with __getattr__, which would slow down every other counter.
    slot: Any = vars(ConnectionStatistics)["records_discarded"]

    def records_discarded(statistics: ConnectionStatistics) -> dict[DiscardReason, int]:
        try:
            return cast("dict[DiscardReason, int]", slot.__get__(statistics))
        except AttributeError:
            made: dict[DiscardReason, int] = {}
            slot.__set__(statistics, made)
            return made

    type.__setattr__(ConnectionStatistics, "records_discarded", property(records_discarded))


_make_when_looked_at()


class _Shared:
    """What connections of a server share besides its counters, and no figure."""

    __slots__ = ("_holders",)

    @property
    def holders(self) -> Holders:
        """Of the bytes in ``reassembly_size``; made when there are any."""
        try:
            return self._holders
        except AttributeError:
            self._holders: Holders = Holders()
            return self._holders


@attrs.define(eq=False)
class ServerStatistics(_Shared):
    """Counters of a server and all of its connections, past ones included. The gauges come last."""

    datagrams_received: int = 0
    datagrams_sent: int = 0
    cookies_sent: int = 0
    cookies_bad: int = 0
    """Hellos whose cookie did not verify; each was answered with a fresh one."""
    offers_refused: int = 0
    handshakes_started: int = 0
    """Offers accepted."""
    handshakes_completed: int = 0
    handshakes_failed: dict[str, int] = attrs.field(factory=dict)
    """By :func:`cause_name`."""
    psk_unknown: int = 0
    """Key requests answered with no key."""
    retransmissions: int = 0
    mac_failures: int = 0
    evictions: int = 0
    """Idle associations that gave way to a newcomer."""
    freezes: int = 0
    """Associations that the server froze by itself."""
    thaws: int = 0
    """Associations that came back."""
    thaws_refused: int = 0
    """Records for a frozen association that were not authentic; it stayed as it was."""
    frozen_lost: int = 0
    """Frozen associations that could not be used when they were needed: damaged in the store, or used up."""
    path_changes: int = 0
    """Times that datagrams began to go to another path."""
    path_checks_failed: int = 0
    """Return routability checks (RFC 9853) after which they did not: no answer, or the peer was still heard where
    it was. Many of them are a sign of an attack, or of a path that is not stable."""
    path_responses_ignored: int = 0
    """Answers to no challenge that is open: late, repeated, forged or from a path that was not asked. RFC 9853 §7.1:
    several for one challenge could suggest an attack."""
    records_discarded: dict[DiscardReason, int] = attrs.field(factory=dict)
    half_open: int = 0
    """Gauge: offers, hello reassemblies and handshakes under way."""
    associations: int = 0
    """Gauge: completed associations, without the frozen ones."""
    frozen: int = 0
    """Gauge: frozen associations."""
    reassembly_size: int = 0
    """Gauge: bytes of handshake fragments held."""


def count(counters: dict[DiscardReason, int], reason: DiscardReason) -> None:
    """One more of ``reason``."""
    counters[reason] = counters.get(reason, 0) + 1


def cause_name(cause: object) -> str:
    """The label under which a cause is counted: its class, and for authentication its problem."""
    name = type(cause).__name__
    problem = getattr(cause, "problem", None)
    return f"{name}.{problem.value}" if problem is not None else name
