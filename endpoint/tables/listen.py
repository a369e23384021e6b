"""``[listen]``: the UDP sockets, and the service's start and stop."""

from __future__ import annotations

import ipaddress
import re

import attrs

from endpoint.structure import within
from endpoint.text import show_text
from endpoint.udp import RECEIVE_BUFFER_SIZE

DEFAULT_PORT = 5684
"""CoAP over DTLS, the registered port that most devices are built with (RFC 7252 §6.2)."""


def _address(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    """An IP address, or what may be a name; whether a name resolves is seen when it is bound."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        shown = show_text(value)
        if re.fullmatch(r"\[.*\]", value):
            raise ValueError(f'address: "{shown}" has brackets; remedy: leave them out') from None
        if ":" in value:
            raise ValueError(
                f'address: "{shown}" is no IPv6 address (a port belongs in listen.port)'
            ) from None
        if not re.fullmatch(r"[0-9A-Za-z._-]+", value) or re.fullmatch(r"[0-9.]+", value):
            raise ValueError(
                f'address: "{shown}" is not an address ("0.0.0.0" = all of IPv4, "::" = IPv6 and IPv4)'
            ) from None


@attrs.frozen(kw_only=True)
class Listen:
    """``[listen]``: the UDP socket, and the service's start and stop."""

    address: str = attrs.field(default="127.0.0.1", validator=_address)
    """IP address or name of this host. The default reaches this host only: nothing is exposed before
    somebody says so. ``0.0.0.0`` = all of IPv4, ``::`` = all of IPv6 and IPv4."""
    port: int = attrs.field(default=DEFAULT_PORT, validator=within(0, 65_535, "", whole=True))
    """UDP port; 0 = any free one, told by the ``listening`` line of the log."""
    retry: float = attrs.field(default=0.0, validator=within(0, float("inf"), "seconds"))
    """How long to keep trying, with backoff, while the port is taken or the address is not there yet
    (an interface that comes up late). 0 = fail at once; ``inf`` = for ever."""
    receive_buffer: int = attrs.field(
        default=RECEIVE_BUFFER_SIZE, validator=within(4096, 2**30, "bytes", whole=True)
    )
    """Bytes asked of the kernel for received datagrams; it grants at most net.core.rmem_max. Holds a
    burst from the whole fleet while a handshake is computed."""
    drain: float = attrs.field(default=5.0, validator=within(0, 3600, "seconds"))
    """How long a stop may take to tell all peers (close_notify) and to hand on what was received."""
