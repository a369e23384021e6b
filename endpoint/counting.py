"""What an engine tells about itself to whoever looks: who is here, and how much of what has happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections import Counter

    from endpoint.admission import Admission
    from endpoint.association import Association
    from endpoint.intake import Intake
    from endpoint.quotas import Quotas
    from endpoint.roster import Roster
    from endpoint.sleepers import Sleepers
    from endpoint.sockets import UdpSocket
    from sansdtls import Server


class CountingEngine:
    """The part of :class:`~endpoint.Engine` that is for looking at."""

    sockets: tuple[UdpSocket, ...]
    _admission: Admission
    _dropped: Counter[str]
    _intake: Intake
    _keep_alives: int
    _observer_failures: int
    _quotas: Quotas
    _roster: Roster
    _server: Server
    _sleepers: Sleepers

    if TYPE_CHECKING:

        def now(self) -> float: ...

    @property
    def quotas(self) -> Quotas:
        """What is refused, and to whom. For looking at."""
        return self._quotas

    def associations(self, identity: bytes | None = None) -> list[Association]:
        """The live associations, of one identity or all."""
        return list(self._roster) if identity is None else self._roster.of(identity)

    def frozen_of(self, identity: bytes) -> int:
        """How many frozen associations an identity has."""
        return len(self._sleepers.of(identity))

    def identities(self) -> list[bytes]:
        """All that have an association, live or frozen, in no order and perhaps twice."""
        return [*self._roster.names(), *self._sleepers.names()]

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges as plain nested dicts, for logs, metrics and tests."""
        server = attrs.asdict(self._server.statistics)
        server["records_discarded"] = {
            reason.value: count for reason, count in self._server.statistics.records_discarded.items()
        }
        return {
            "server": server,
            "handshakes": len(self._admission),
            "associations": len(self._roster),
            "frozen": self._server.frozen,
            "keep_alives": self._keep_alives,
            "identities": self._roster.identities,
            "lookups": self._admission.lookups.pending,
            "lookup_failures": self._admission.lookups.failures,
            "lookups_unavailable": self._admission.lookups.unavailable,
            "lookup_seconds": self._admission.lookups.seconds.statistics(),
            "handshake_seconds": self._admission.seconds(),
            "verifications": self._admission.verifications.pending,
            "verification_failures": self._admission.verifications.failures,
            "refused": dict(self._quotas.refused),
            "quotas": self._quotas.statistics(now=self.now()),
            "datagrams_dropped": {**self._dropped, **self._intake.drops_by_stage},
            "intake": self._intake.statistics(),
            "observer_failures": self._observer_failures,
            "sockets": [udp.statistics() for udp in self.sockets],
        }
