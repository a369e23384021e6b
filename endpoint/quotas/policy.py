"""The policy: each limit with its unit, its default and the reason for it. ``None`` = unlimited.

A name says whose the limit is: ``…_per_prefix`` and ``prefix_…`` a source prefix's, ``…_per_identity`` and ``identity_…``
an identity's, ``total_…`` everybody's. Of the older ones without such a word, handshakes are a prefix's and data one
association's. A rate is per second of the engine's clock.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import attrs

from endpoint.quotas.networks import NetworkQuota
from endpoint.quotas.ranges import within
from sansdtls import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


@enum.unique
class IdentityOverflow(enum.Enum):
    """Which association is closed when an identity has more than its share."""

    OLDEST = "oldest"
    """The one that has been silent longest. Lets a rebooted device in."""
    NEWCOMER = "newcomer"
    """The new one. For fleets that share an identity, where the limit counts devices."""


# Spelled out, because type checkers do not see through ``converter=tuple``.
def _networks(value: Iterable[NetworkQuota]) -> tuple[NetworkQuota, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class QuotaPolicy:
    """The quotas. ``None`` = unlimited. A rate is per second of the engine's clock."""

    # --- of a source prefix ---

    handshakes_per_second: float | None = attrs.field(
        default=100.0, validator=within(0.001, 1e6, "handshakes", whole=False, none=True)
    )
    """Per source prefix. 100 handshakes of 500 µs are 5 % of a core, and bring 10,000 devices behind
    one carrier's NAT back within two minutes."""
    handshake_burst: int = attrs.field(default=1_000, validator=within(1, 1_000_000, "handshakes"))
    """Handshakes a prefix may begin at once: half a second of a core."""
    half_open_per_prefix: int | None = attrs.field(
        default=1_024, validator=within(1, 10_000_000, "handshakes", none=True)
    )
    """Handshakes a prefix may have under way: a quarter of ``Limits.max_half_open``, and just above
    ``handshake_burst``. Each may hold ``Limits.max_reassembly_size`` bytes of fragments."""
    associations_per_prefix: int | None = attrs.field(
        default=10_000, validator=within(1, 10_000_000, "associations", none=True)
    )
    """Handshakes under way and live associations together: a tenth of ``Limits.max_associations``, so
    one prefix cannot fill the table, and enough for a carrier's NAT address."""
    prefix_datagrams_per_second: float | None = attrs.field(
        default=20_000.0, validator=within(0.001, 1e6, "datagrams", whole=False, none=True)
    )
    """Received on all associations of a prefix: 20 associations at their own limit, 40 % of a core."""
    prefix_datagram_burst: int = attrs.field(default=40_000, validator=within(1, 10_000_000, "datagrams"))
    """Datagrams a prefix may send at once after a pause. That of 20 associations."""
    prefix_bytes_per_second: float | None = attrs.field(
        default=20_971_520.0, validator=within(0.001, 1e12, "bytes", whole=False, none=True)
    )
    """Application data received on all associations of a prefix: 20 MiB, that of 20 associations."""
    prefix_byte_burst: int = attrs.field(default=83_886_080, validator=within(16_384, 10**12, "bytes"))
    """Bytes a prefix may send at once. That of 20 associations."""

    # --- of an identity ---

    identity_handshakes_per_second: float | None = attrs.field(
        default=10.0, validator=within(0.001, 1e6, "handshakes", whole=False, none=True)
    )
    """Handshakes that have proved an identity, wherever they come from; beyond, the new association is closed. A device
    needs one a day; ten a second is a key that many have, or a device in a loop. Raise it where devices share an
    identity."""
    identity_handshake_burst: int = attrs.field(default=1_000, validator=within(1, 1_000_000, "handshakes"))
    """The same at once: that of a prefix, as a shared identity and a shared address are alike."""
    associations_per_identity: int | None = attrs.field(
        default=4, validator=within(1, 10_000_000, "associations", none=True)
    )
    """One is enough for a device; the others are those it left behind when it came back from a new
    port. Raise it where devices share an identity."""
    identity_overflow: IdentityOverflow = attrs.field(
        default=IdentityOverflow.OLDEST, validator=attrs.validators.instance_of(IdentityOverflow)
    )
    """Which association is closed beyond that."""
    identity_datagrams_per_second: float | None = attrs.field(
        default=None, validator=within(0.001, 1e6, "datagrams", whole=False, none=True)
    )
    """Received on all associations of an identity. Unlimited, because ``associations_per_identity`` times
    ``datagrams_per_second`` is a limit already; of use where the former is raised."""
    identity_datagram_burst: int = attrs.field(default=4_000, validator=within(1, 10_000_000, "datagrams"))
    """Datagrams an identity may send at once after a pause."""
    identity_bytes_per_second: float | None = attrs.field(
        default=None, validator=within(0.001, 1e12, "bytes", whole=False, none=True)
    )
    """Application data received on all associations of an identity. Unlimited for the same reason."""
    identity_byte_burst: int = attrs.field(default=8_388_608, validator=within(16_384, 10**12, "bytes"))
    """Bytes an identity may send at once."""

    # --- of one association ---

    datagrams_per_second: float | None = attrs.field(
        default=1_000.0, validator=within(0.001, 1e6, "datagrams", whole=False, none=True)
    )
    """Received on one association. 1,000 of 20 µs are 2 % of a core."""
    datagram_burst: int = attrs.field(default=2_000, validator=within(1, 1_000_000, "datagrams"))
    """Datagrams an association may send at once after a pause."""
    bytes_per_second: float | None = attrs.field(
        default=1_048_576.0, validator=within(0.001, 1e12, "bytes", whole=False, none=True)
    )
    """Application data received on one association: 1 MiB, far above any sensor and enough for a
    firmware image upload."""
    byte_burst: int = attrs.field(default=4_194_304, validator=within(16_384, 10**12, "bytes"))
    """Bytes an association may send at once. At least one full record, or that could never pass."""
    waiting_bytes_per_association: int | None = attrs.field(
        default=262_144, validator=within(16_384, 10**12, "bytes", none=True)
    )
    """Received data that wait until a channel of ``serve_dtls`` is read: 64 datagrams, the usual ``buffer``, of 4 KiB.
    For embedding only: ``dtls-endpoint`` keeps no data for an association, its limits are those of ``[forward]``."""

    # --- of everybody ---

    total_handshakes_per_second: float | None = attrs.field(
        default=1_000.0, validator=within(0.001, 1e6, "handshakes", whole=False, none=True)
    )
    """Of all prefixes together: half a core at 500 µs each, so that the other half is left for data, and 100,000
    devices are back within two minutes."""
    total_handshake_burst: int = attrs.field(default=2_000, validator=within(1, 10_000_000, "handshakes"))
    """Handshakes that may begin at once: a second of a core."""
    total_datagrams_per_second: float | None = attrs.field(
        default=None, validator=within(0.001, 1e7, "datagrams", whole=False, none=True)
    )
    """Received on all associations. Unlimited, because decrypting them is the greater part of the work and has been
    done when they are counted; only who knows what stands behind knows a limit."""
    total_datagram_burst: int = attrs.field(default=50_000, validator=within(1, 10_000_000, "datagrams"))
    """Datagrams that may come at once: a second of a core."""
    total_bytes_per_second: float | None = attrs.field(
        default=None, validator=within(0.001, 1e12, "bytes", whole=False, none=True)
    )
    """Application data received on all associations. Unlimited for the same reason."""
    total_byte_burst: int = attrs.field(default=134_217_728, validator=within(16_384, 10**12, "bytes"))
    """Bytes that may come at once: a second of a gigabit link."""
    total_waiting_bytes: int | None = attrs.field(
        default=67_108_864, validator=within(16_384, 10**13, "bytes", none=True)
    )
    """``waiting_bytes_per_association`` for all channels together: 64 MiB, a thousand with 64 KiB each."""
    fair_reserve: float = attrs.field(default=0.25, validator=within(0, 1, "of the whole", whole=False))
    """The last part of what everybody shares (the ``total_…`` limits and ``Limits.max_half_open``), which is kept for
    those who hold less than is left. A quarter: one alone is not held back much. 0 = who comes first, is served."""

    # --- who is a source ---

    ipv4_prefix_length: int = attrs.field(default=32, validator=within(8, 32, "bits"))
    """What counts as one source: a whole address."""
    ipv6_prefix_length: int = attrs.field(default=56, validator=within(16, 128, "bits"))
    """The usual size of one customer's network (RFC 6177 leaves it between /48 and /64); a longer
    prefix would give each customer many quotas."""
    networks: tuple[NetworkQuota, ...] = attrs.field(
        default=(),
        converter=_networks,
        validator=attrs.validators.deep_iterable(attrs.validators.instance_of(NetworkQuota)),
    )
    """Sources for which a prefix's limits do not hold, or with other numbers, such as a carrier's NAT. A network alone,
    ``"100.64.0.0/10"``, has none; see below for a table. The longest that matches counts."""

    # --- what is remembered ---

    tracked_prefixes: int = attrs.field(default=16_384, validator=within(1, 10_000_000, "prefixes"))
    """Prefixes without any association whose rates are remembered, least recently used first out. About 500
    bytes each."""
    tracked_identities: int = attrs.field(default=16_384, validator=within(1, 10_000_000, "identities"))
    """The same for identities: about 400 bytes each, and the identity."""
    tracked_offenders: int = attrs.field(default=256, validator=within(1, 100_000, "offenders"))
    """Prefixes and identities, each with one reason, whose refusals are counted one by one: those that have most. About
    500 bytes each."""
    offender_half_life: float = attrs.field(
        default=600.0, validator=within(1, 31_536_000, "seconds", whole=False)
    )
    """Seconds after which a refusal counts half for that: ten minutes, so that who is at the top is there now."""
    # --- what waits for time ---

    handshake_share: float = attrs.field(
        default=0.25, validator=within(0.05, 0.95, "of the time", whole=False)
    )
    """What handshakes, and all else that no live association has sent, get of the time while there is more to read
    than time: there may be readings in it. A quarter: 500 handshakes a second, and the socket is emptied at three quarters
    of full speed. Of the time that nobody else wants they have all, whatever this says."""
    queued_datagrams: int = attrs.field(default=8_192, validator=within(64, 10_000_000, "datagrams"))
    """Those that may wait for time, all but records of live associations: a fleet of 10,000 that comes back within
    a second. About 1 KiB each besides their bytes. 8,192 hellos are answered in 0.25 s, long before their clients repeat
    them, after 1 s."""
    queued_bytes: int = attrs.field(default=8_388_608, validator=within(65_536, 10**10, "bytes"))
    """The same in bytes: 8 MiB, 1 KiB for each of 8,192. At least one datagram of any size."""

    @networks.validator
    def _each_once(self, attribute: attrs.Attribute[Any], value: tuple[NetworkQuota, ...]) -> None:
        seen = set()
        for network in value:
            if network.base in seen:
                raise ConfigError(
                    f'QuotaPolicy.networks: "{network.network}" is there twice; remedy: keep one of them'
                )
            seen.add(network.base)

    @classmethod
    def unlimited(cls) -> QuotaPolicy:
        """No quota at all: for benchmarks, and where something in front does it."""
        return cls(
            handshakes_per_second=None,
            half_open_per_prefix=None,
            associations_per_prefix=None,
            prefix_datagrams_per_second=None,
            prefix_bytes_per_second=None,
            identity_handshakes_per_second=None,
            associations_per_identity=None,
            identity_datagrams_per_second=None,
            identity_bytes_per_second=None,
            datagrams_per_second=None,
            bytes_per_second=None,
            waiting_bytes_per_association=None,
            total_handshakes_per_second=None,
            total_datagrams_per_second=None,
            total_bytes_per_second=None,
            total_waiting_bytes=None,
        )
