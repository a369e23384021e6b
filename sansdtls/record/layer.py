"""What one connection sends and receives with: its current epochs, its path, its outbox, its counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sansdtls.iana import AlertDescription, AlertLevel, ContentType
from sansdtls.record.epochs import ReadEpoch, WriteEpoch
from sansdtls.statistics import ConnectionStatistics, ServerStatistics, count
from sansdtls.wire.record import encode_alert

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from sansdtls.events import DiscardReason
    from sansdtls.paths import PathCheck
    from sansdtls.record.ciphers import Ciphers
    from sansdtls.record.protection import Protection


class Outgoing(NamedTuple):
    """A datagram to send: its bytes and the path to send it on."""

    data: bytes
    path: Hashable


class RecordLayer:
    """The record state of one connection.

    A server shares its ``outbox`` with its connections, so that their datagrams leave in the order in
    which they were made, and its ``totals``, so that nothing has to be added up.
    """

    __slots__ = (
        "connection_id",
        "max_datagram_size",
        "outbox",
        "path",
        "path_check",
        "read",
        "statistics",
        "totals",
        "write",
    )

    def __init__(
        self,
        *,
        path: Hashable,
        outbox: list[Outgoing],
        totals: ServerStatistics | None,
        window_width: int,
        max_datagram_size: int,
        first_sequence_number: int = 0,
    ) -> None:
        self.max_datagram_size = max_datagram_size
        """Bytes that a datagram may have: what is configured, or less where the path is known to take less."""
        self.path = path
        """Where datagrams go, unless ``path_check`` says otherwise."""
        self.path_check: PathCheck | None = None
        """Exists while another path is in question."""
        self.connection_id = b""
        """What the peer is to put into its records; none unless offered or agreed on."""
        self.outbox = outbox
        self.statistics = ConnectionStatistics()
        self.totals = totals
        self.read = ReadEpoch(0, window_width)
        self.write = WriteEpoch(0, first_sequence_number=first_sequence_number)

    def send_datagrams(self, datagrams: Iterable[bytes]) -> None:
        """Queue datagrams on the connection's path, or the one that is about to become it."""
        for data in datagrams:
            self.send_datagram(data)

    def send_datagram(self, data: bytes) -> None:
        """The same for one."""
        check = self.path_check
        self.send_on(self.path if check is None else check.path_for(len(data)), data)

    def send_on(self, path: Hashable, data: bytes) -> None:
        """Queue one datagram on ``path``."""
        self.outbox.append(Outgoing(data, path))
        self.statistics.datagrams_sent += 1
        if self.totals is not None:
            self.totals.datagrams_sent += 1

    def send_alerts(self, *alerts: tuple[AlertLevel, AlertDescription]) -> None:
        """Queue alerts, in one datagram, under the current write epoch. Dropped if no numbers are left for them."""
        if self.write.available >= len(alerts):
            records = [self.write.record(ContentType.ALERT, encode_alert(*alert)) for alert in alerts]
            self.send_datagrams([b"".join(records)])

    def discard(self, reason: DiscardReason) -> None:
        """Count noise."""
        count(self.statistics.records_discarded, reason)
        if self.totals is not None:
            count(self.totals.records_discarded, reason)

    def count_mac_failure(self) -> None:
        """Count a record that no key authenticated."""
        self.statistics.mac_failures += 1
        if self.totals is not None:
            self.totals.mac_failures += 1

    def count_retransmission(self) -> None:
        """Count a flight sent again."""
        self.statistics.retransmissions += 1
        if self.totals is not None:
            self.totals.retransmissions += 1

    def share_ciphers(self, ciphers: Ciphers) -> None:
        """Keep cipher objects for as long as ``ciphers`` has room for them."""
        for protection in self._protections():
            protection.share(ciphers)

    def forget_keys(self) -> None:
        """Drop both epochs; nothing is read or written any more, and no path asked."""
        self.path_check = None
        for protection in self._protections():
            protection.forget_key()
        self.read = ReadEpoch(0, 1)
        self.write = WriteEpoch(0)

    def _protections(self) -> list[Protection]:
        return [each for each in (self.read.protection, self.write.protection) if each is not None]
