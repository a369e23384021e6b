"""Networks whose prefixes have limits of their own, or none: one entry of ``QuotaPolicy.networks``.

Behind one address of a carrier's NAT are thousands of customers. What would be a flood from a single household is there
an ordinary morning, so an operator who knows the carrier names its addresses here.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, TypeAlias

import attrs

from endpoint.quotas.ranges import within
from sansdtls import ConfigError

Network: TypeAlias = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")
"""IPv4 addresses as a socket for both kinds shows them."""


def network_of(text: str) -> Network:
    """The network that ``text`` names; one of IPv4-mapped addresses is the IPv4 one. ConfigError if it names none."""
    try:
        if "%" in text:
            raise ValueError
        network = ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f'NetworkQuota.network: {text!r} is not a network; remedy: write it like "100.64.0.0/10" or "2001:db8::/32"'
        ) from None
    try:
        ip_network(text)
    except ValueError:
        host = text.partition("/")[0]
        raise ConfigError(
            f"NetworkQuota.network: {text!r} has bits set beyond its length;"
            f' remedy: "{network}" for the network, "{host}" for the one address'
        ) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        assert mapped is not None  # noqa: S101 - it is one of them
        return IPv4Network((int(mapped), network.prefixlen - _MAPPED.prefixlen))
    return network


def _network(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ARG001
    if not isinstance(value, str):
        raise ConfigError(f"NetworkQuota.network: {value!r} is not the text of a network")
    network_of(value)


@attrs.frozen(kw_only=True)
class NetworkQuota:
    """What holds for each source prefix within a network, in place of the limits of the same names. What is not given is unlimited.

    Limits of identities, of one association and of everybody hold there too.
    """

    network: str = attrs.field(
        validator=_network, metadata={"remedy": 'add the network, such as  network = "100.64.0.0/10"'}
    )
    """Address and length, such as ``"100.64.0.0/10"``; of IPv4-mapped addresses either form."""
    prefix_length: int | None = attrs.field(default=None)
    """What counts as one source there, in bits, no shorter than the network; where it is not given, the usual length, or
    the network if that is longer."""
    handshakes_per_second: float | None = attrs.field(
        default=None, validator=within(0.001, 1e6, "handshakes", whole=False, none=True)
    )
    """Handshakes of one source."""
    handshake_burst: int = attrs.field(default=1_000, validator=within(1, 1_000_000, "handshakes"))
    """The same at once."""
    half_open_per_prefix: int | None = attrs.field(
        default=None, validator=within(1, 10_000_000, "handshakes", none=True)
    )
    """Handshakes that one source may have under way."""
    associations_per_prefix: int | None = attrs.field(
        default=None, validator=within(1, 10_000_000, "associations", none=True)
    )
    """The same and live associations."""
    prefix_datagrams_per_second: float | None = attrs.field(
        default=None, validator=within(0.001, 1e6, "datagrams", whole=False, none=True)
    )
    """Received on all associations of one source."""
    prefix_datagram_burst: int = attrs.field(default=40_000, validator=within(1, 10_000_000, "datagrams"))
    """The same at once."""
    prefix_bytes_per_second: float | None = attrs.field(
        default=None, validator=within(0.001, 1e12, "bytes", whole=False, none=True)
    )
    """Application data received on all associations of one source."""
    prefix_byte_burst: int = attrs.field(default=83_886_080, validator=within(16_384, 10**12, "bytes"))
    """The same at once."""
    share: float = attrs.field(default=1.0, validator=within(0.001, 1e6, "shares", whole=False))
    """For how many a source there counts when something that everybody shares is short: see
    ``QuotaPolicy.fair_reserve``."""

    @prefix_length.validator
    def _no_shorter_than_the_network(self, attribute: attrs.Attribute[Any], value: int | None) -> None:
        base = network_of(self.network)
        within(base.prefixlen, base.max_prefixlen, "bits", none=True)(self, attribute, value)

    @property
    def base(self) -> Network:
        """The network, as it is compared with addresses."""
        return network_of(self.network)
