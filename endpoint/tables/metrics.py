"""``[metrics]``: figures over HTTP, and what is remembered for questions about devices."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

import attrs

from endpoint.text import show_text
from endpoint.values import within


def _address(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(
            f'address: "{show_text(value[:80])}" is no IP address; remedy: "127.0.0.1" or "::1" for this host only'
        ) from None


def _port(_instance: object, _attribute: attrs.Attribute[Any], value: int | Literal["off"]) -> None:
    if isinstance(value, int) and not 0 <= value <= 65_535:
        raise ValueError(f"port: {value!r} is not within 0 to 65535")


@attrs.frozen(kw_only=True)
class Metrics:
    """``[metrics]``: Prometheus figures and health over HTTP, and the memory of ``dtls-endpoint doctor``."""

    address: str = attrs.field(default="127.0.0.1", validator=_address)
    """IP address that ``/metrics``, ``/healthz`` and ``/readyz`` are served at. Who can reach it learns how the
    endpoint is, without identities and addresses of devices, and needs no password; so by default this host only."""
    port: int | Literal["off"] = attrs.field(default="off", validator=_port)
    """TCP port; 0 = any free one, told by the ``metrics_listening`` line of the log; ``"off"`` = no HTTP at all."""
    remembered_identities: int = attrs.field(
        default=16_384, validator=within(1, 10_000_000, "identities", whole=True)
    )
    """Devices whose last handshakes are remembered, 400 bytes to 2 KB each; the one not heard of for longest is forgotten
    first. Give it the size of the fleet, if there is room."""
    remembered_strangers: int = attrs.field(
        default=1_024, validator=within(1, 1_000_000, "names", whole=True)
    )
    """Names that are nobody's, kept apart so that invented ones push out no device."""
    remembered_addresses: int = attrs.field(
        default=4_096, validator=within(1, 10_000_000, "addresses", whole=True)
    )
    """Addresses whose last failures are remembered: those that devices came from, and as many others."""

    @property
    def loopback(self) -> bool:
        """Whether only this host can reach it."""
        return ipaddress.ip_address(self.address).is_loopback
