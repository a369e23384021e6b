"""``[credentials.lookup]``: how a key store is asked that does not answer at once."""

from __future__ import annotations

import attrs

from endpoint.values import within


@attrs.frozen(kw_only=True)
class LookupPolicy:
    """``[credentials.lookup]``, and for embedders an argument of :class:`~endpoint.keystore.guard.GuardedStore`.

    None of it concerns ``psk_file``, which is in memory.
    """

    timeout: float = attrs.field(default=5.0, validator=within(0.01, 60, "seconds"))
    """Seconds from a question to its answer, waiting for a place included; then the handshake is refused, and the device comes
    back. A store nearby takes milliseconds; the default leaves room for a disk that stalls. Devices wait a minute or less."""
    concurrency: int = attrs.field(default=32, validator=within(1, 4096, "lookups", whole=True))
    """Lookups under way at once; others wait their turn. Bounds what a storm of handshakes does to the store."""
    negative_seconds: float = attrs.field(default=10.0, validator=within(0, 3600, "seconds"))
    """Seconds for which an identity is remembered to be unknown. So a device that asks again and again costs the store one
    lookup in this time, and a device whose key was just entered waits this long at most. 0 = nothing is remembered."""
    negative_size: int = attrs.field(
        default=10_000, validator=within(1, 10_000_000, "identities", whole=True)
    )
    """Unknown identities remembered, some 200 bytes each; the one that was used least recently is forgotten first."""
    longest_identity: int = attrs.field(default=1024, validator=within(1, 65_535, "bytes", whole=True))
    """Bytes; a longer identity is unknown without a question, so that nobody sends 16 KiB of noise through to the store. RFC 7925
    devices have at most 128."""
    failures: int = attrs.field(default=3, validator=within(1, 1000, "lookups", whole=True))
    """So many failed lookups in a row, and the store counts as down: handshakes are then refused without asking it."""
    retry: float = attrs.field(default=5.0, validator=within(0.1, 600, "seconds"))
    """Seconds at most between two attempts to reach a store that is down; the first come sooner. A store that is back is
    noticed within this time."""
