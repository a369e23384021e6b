"""``[listen]``: the UDP sockets, and the service's start and stop."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

import attrs

from endpoint.text import show_text
from endpoint.udp import RECEIVE_BUFFER_SIZE
from endpoint.values import within

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ALSO = 63
"""Further sockets. A host with more addresses that matter has all interfaces in one: ``"::"``."""

DEFAULT_PORT = 5684
"""CoAP over DTLS, the registered port that most devices are built with (RFC 7252 §6.2)."""


def _why_no_address(value: str) -> str | None:
    """Why ``value`` is neither an IP address nor what may be a name; whether that resolves is seen when it is bound."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if re.fullmatch(r"\[.*\]", value):
            return "has brackets; remedy: leave them out"
        if ":" in value:
            return "is no IPv6 address (a port belongs in listen.port)"
        if not re.fullmatch(r"[0-9A-Za-z._-]+", value) or re.fullmatch(r"[0-9.]+", value):
            return 'is not an address ("0.0.0.0" = all of IPv4, "::" = IPv6 and IPv4)'
    return None


def _address(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    reason = _why_no_address(value)
    if reason is not None:
        raise ValueError(f'address: "{show_text(value)}" {reason}')


def _place(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[host]:port``; ``ValueError`` says what is wrong."""
    shown = show_text(text[:80])
    found = re.fullmatch(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<plain>[^:\[\]]*)):(?P<port>[0-9]{1,5})", text)
    if found is None:
        raise ValueError(
            f'also: "{shown}" is no address with a port; remedy: "192.0.2.1:{DEFAULT_PORT}" or "[2001:db8::1]:{DEFAULT_PORT}"'
        )
    bracketed = found["bracketed"]
    host = str(found["plain"] if bracketed is None else bracketed)
    if bracketed is not None and ":" not in host:
        raise ValueError(
            f'also: "{shown}" has brackets around what is no IPv6 address; remedy: leave them out'
        )
    reason = _why_no_address(host)
    if reason is not None:
        raise ValueError(f'also: "{shown}": "{show_text(host[:80])}" {reason}')
    port = int(found["port"])
    if port > 65_535:
        raise ValueError(f'also: "{shown}": {port} is not within 0 to 65535')
    return host, port


def _places(_instance: object, _attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if len(value) > MAX_ALSO:
        raise ValueError(f'also: {len(value)} are more than {MAX_ALSO}; remedy: address = "::"')
    for text in value:
        _place(text)


@attrs.frozen(kw_only=True)
class Listen:
    """``[listen]``: the UDP sockets, and the service's start and stop."""

    address: str = attrs.field(default="127.0.0.1", validator=_address)
    """IP address or name of this host. The default reaches this host only: nothing is exposed before
    somebody says so. ``0.0.0.0`` = all of IPv4, ``::`` = all of IPv6 and IPv4."""
    port: int = attrs.field(default=DEFAULT_PORT, validator=within(0, 65_535, "", whole=True))
    """UDP port; 0 = any free one, told by the ``listening`` line of the log."""
    also: tuple[str, ...] = attrs.field(default=(), validator=_places)
    """Further sockets, such as ``["192.0.2.1:5684", "[2001:db8::1]:5684", "gateway.example:5685"]``: all are bound, or the service
    does not start. Port 0 is as above. A name with several addresses is bound to each."""
    retry: float = attrs.field(default=0.0, validator=within(0, float("inf"), "seconds"))
    """How long to keep trying, with backoff, while the port is taken or the address is not there yet
    (an interface that comes up late). 0 = fail at once; ``inf`` = for ever."""
    receive_buffer: int = attrs.field(
        default=RECEIVE_BUFFER_SIZE, validator=within(4096, 2**30, "bytes", whole=True)
    )
    """Bytes asked of the kernel for received datagrams; it grants at most net.core.rmem_max. Holds a
    burst from the whole fleet while a handshake is computed."""
    path_mtu_discovery: bool = True
    """Whether datagrams are sent with "don't fragment" and the network's answers to those that are too large are believed:
    handshakes are then cut to what the path takes, and larger data are refused. ``false`` = they may be fragmented on
    their way, for networks that neither let them pass nor say so."""
    drain: float = attrs.field(default=5.0, validator=within(0, 3600, "seconds"))
    """How long a stop may take to tell all peers (close_notify) and to hand on what was received."""

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each socket (or several, for a name), this one first."""
        return ((self.address, self.port), *map(_place, self.also))

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        places = self.places
        for number, (host, port) in enumerate(places[1:], start=1):
            for other, at in places[:number]:
                reason = _conflict(host, other) if port and port == at else None
                if reason is not None:
                    shown = show_text(self.also[number - 1])
                    yield "also", f'"{shown}" {reason}'
                    break


def _conflict(host: str, other: str) -> str | None:
    """Why a host cannot be bound beside another one with the same port."""
    try:
        one, two = ipaddress.ip_address(host), ipaddress.ip_address(other)
    except ValueError:
        return "is there twice; remedy: leave one out" if host.lower() == other.lower() else None
    if one == two:
        return "is there twice; remedy: leave one out"
    every = [address for address in (one, two) if address.is_unspecified]
    if one.version != two.version and any(address.version == 6 for address in every):
        return (
            'cannot be bound beside "::" with the same port, which serves IPv4 as well; '
            "remedy: leave it out, or name the addresses of IPv6 one by one"
        )
    if one.version == two.version and every:
        return f'cannot be bound beside "{every[0]}" with the same port, which serves all addresses; remedy: leave it out'
    return None
