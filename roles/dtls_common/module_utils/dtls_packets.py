"""What the filter in front of an endpoint, or of a device, lets through: made of the endpoint's own quotas.

The kernel is to drop what the endpoint would have refused anyway, before it costs anything, and nothing else. So its limits
follow from those of ``[quotas]``:

- To answer a ClientHello with a cookie costs the endpoint a sixteenth of a handshake or less (25 to 30 µs against 500 µs), so
  whoever may begin so many handshakes may send sixteen times as many hellos, and all together, too.
- A handshake needs two, one without and one with a cookie. The others are for a fleet whose endpoint is away for a while:
  each of its devices repeats its hello some ten times in the first minute, and an endpoint that is back has its quotas whole.
- With certificates, some six more datagrams of a client are in clear, or more where they are short.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from typing import TYPE_CHECKING, Any

from dtls_settings import listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HELLOS_PER_HANDSHAKE = 16
CLEAR_PER_HELLO = 3
"""Datagrams in clear for each ClientHello, itself included."""
# Those of endpoint.quotas.QuotaPolicy and NetworkQuota; a test compares them. The controller need not have the endpoint installed.
DEFAULTS: dict[str, Any] = {
    "handshakes_per_second": 100.0,
    "handshake_burst": 1_000,
    "total_handshakes_per_second": 1_000.0,
    "total_handshake_burst": 2_000,
    "ipv4_prefix_length": 32,
    "ipv6_prefix_length": 56,
    "tracked_prefixes": 16_384,
}
_UNLIMITED = ("unlimited", "never")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_UNITS = (("second", 1), ("minute", 60), ("hour", 3_600), ("day", 86_400))
# Which kernels and tools can count to.
_MOST = 1_000_000
_MOST_SOURCES = 1_048_576


class Wrong(ValueError):
    """A variable has a value that makes no sense; says which, and the remedy."""


def limits(quotas: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is counted: ``sources``, the longest network first, and ``total``.

    ``given`` has what overrides the quotas (``hello_rate``, ``hello_burst``, ``total_hello_rate``, ``total_hello_burst``,
    ``sources_max``; None or empty = from the quotas; "unlimited" = none) and ``exempt``, a list of networks.
    """
    # As in dtls_endpoint_config, null leaves the default; "unlimited" is what takes a limit away.
    told = DEFAULTS | _set(quotas)
    lengths = {
        4: _length(told["ipv4_prefix_length"], 32, "ipv4_prefix_length"),
        6: _length(told["ipv6_prefix_length"], 128, "ipv6_prefix_length"),
    }
    default = _hellos(told, "", given)
    classes: dict[Network, dict[str, Any]] = {}
    for entry in told.get("networks") or []:
        # What a network's table does not say is unlimited there.
        own = {"handshake_burst": DEFAULTS["handshake_burst"]} | _set(
            {"network": entry} if isinstance(entry, str) else entry
        )
        base = network(str(own.get("network")), "dtls_endpoint_config.quotas.networks")
        length = max(lengths[base.version], base.prefixlen)
        if "prefix_length" in own:
            length = _length(own["prefix_length"], base.max_prefixlen, "networks.prefix_length")
        classes[base] = _source(base, length, *_hellos(own, "", {}))
    for text in given.get("exempt") or []:
        base = network(str(text), "dtls_firewall_rate_exempt")
        classes[base] = _source(base, base.max_prefixlen, None, 0)
    longest_first = sorted(
        classes, key=lambda base: (-base.prefixlen, base.version, int(base.network_address))
    )
    sources = [classes[base] | {"name": f"net{number}"} for number, base in enumerate(longest_first)]
    sources += [
        _source(None, lengths[version], *default, version=version) | {"name": f"ipv{version}"}
        for version in (4, 6)
    ]
    # Those the endpoint remembers without an association, and as many that have one.
    most = _either(given, "sources_max", told, "tracked_prefixes", 2, _whole)
    most = min(most, _MOST_SOURCES)
    for source in sources:
        for kind in ("hello", "in_clear"):
            _named(source[kind], f"{source['name']}{kind[0]}", source["length"], source["timeout"], most)
    everybody = _bucket(*_hellos(told, "total_", given))
    _named(everybody, "all")
    return {"sources": sources, "total": everybody, "sources_max": most}


def _named(bucket: dict[str, Any], name: str, *others: int) -> None:
    # A hash table of iptables lives on while rules that are replaced still have it, and keeps its numbers. So
    # other numbers need another name.
    if bucket:
        told = repr((sorted(bucket.items()), others))
        bucket["table"] = f"dtls-{name}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


def _source(
    base: Network | None, length: int, rate: float | None, burst: int, *, version: int = 0
) -> dict[str, Any]:
    version = base.version if base is not None else version
    whole = length == (32 if version == 4 else 128)
    mask: Network = ipaddress.IPv4Network((0, length)) if version == 4 else ipaddress.IPv6Network((0, length))
    source = {
        "version": version,
        "network": str(base) if base is not None else "",
        "length": length,
        "mask": "" if whole else str(mask.netmask),
        "hello": _bucket(rate, burst),
        "in_clear": _bucket(rate and rate * CLEAR_PER_HELLO, burst * CLEAR_PER_HELLO),
        "timeout": 0,
    }
    if rate:
        # A bucket that has not been touched for so long is full: to forget it changes nothing.
        source["timeout"] = max(10, min(86_400, math.ceil(burst / rate) + 1))
    return source


def _bucket(rate: float | None, burst: int) -> dict[str, Any]:
    if rate is None:
        return {}
    unit, number = "second", rate
    for unit, seconds in _UNITS:
        number = rate * seconds
        if number >= 1 and (number >= 100 or number == int(number) or unit == "day"):
            break
    return {"rate": f"{min(_MOST, math.ceil(number - 1e-9))}/{unit}", "burst": max(1, min(burst, _MOST))}


def _set(table: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (table or {}).items() if value is not None}


def _hellos(quotas: Mapping[str, Any], whose: str, given: Mapping[str, Any]) -> tuple[float | None, int]:
    """ClientHellos a second, and at once."""
    return (
        _either(given, f"{whose}hello_rate", quotas, f"{whose}handshakes_per_second", HELLOS_PER_HANDSHAKE, _rate),
        _either(given, f"{whose}hello_burst", quotas, f"{whose}handshake_burst", HELLOS_PER_HANDSHAKE, _whole),
    )  # fmt: skip


def _either(
    given: Mapping[str, Any],
    name: str,
    quotas: Mapping[str, Any],
    quota: str,
    factor: int,
    read: Callable[[Any, str], Any],
) -> Any:
    """What is given, else so many times what the quota says; None is no limit."""
    if given.get(name) not in (None, ""):
        return read(given[name], f"dtls_firewall_{name}")
    found = read(quotas.get(quota, "unlimited"), f"dtls_endpoint_config.quotas.{quota}")
    return found and found * factor


def _rate(told: Any, name: str) -> float | None:
    if told in _UNLIMITED:
        return None
    try:
        rate = float(told)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0.001 <= rate <= _MOST:
        raise Wrong(f'{name}: {told!r} is no rate; remedy: a number per second, or "unlimited"')
    return rate


def _whole(told: Any, name: str) -> int:
    try:
        number = int(told)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise Wrong(f"{name}: {told!r} is no number; remedy: a whole number from 1 on")
    return number


def _length(given: Any, most: int, name: str) -> int:
    number = _whole(given, f"dtls_endpoint_config.quotas.{name}")
    if number > most:
        raise Wrong(f"dtls_endpoint_config.quotas.{name}: {given!r} is no length of a prefix of {most} bits")
    return number


def network(text: str, name: str) -> Network:
    """The network or address that ``text`` is; one of IPv4-mapped addresses is the IPv4 one."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise Wrong(
            f"{name}: {error}; remedy: an address or a network such as 192.0.2.7 or 2001:db8::/32, no name:"
            " a name would have to be looked up while the rules are loaded"
        ) from None
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_MAPPED):
        mapped = found.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(mapped or 0), found.prefixlen - _MAPPED.prefixlen))
    return found


def addresses(texts: Any, name: str) -> dict[str, list[str]]:
    """Addresses and networks by family, without those that others contain."""
    if isinstance(texts, str):
        raise Wrong(f"{name}: {texts!r} is a text; remedy: a list")
    found = [network(str(text), name) for text in texts or []]
    four = ipaddress.collapse_addresses(one for one in found if isinstance(one, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(one for one in found if isinstance(one, ipaddress.IPv6Network))
    return {"ipv4": [_short(one) for one in four], "ipv6": [_short(one) for one in six]}


def _short(one: Network) -> str:
    return str(one.network_address) if one.prefixlen == one.max_prefixlen else str(one)


def ports(texts: Iterable[Any]) -> list[int]:
    """The ports of ``dtls_endpoint_listen``."""
    try:
        return sorted({one["port"] for one in listeners(texts)})
    except ValueError as error:
        raise Wrong(f"dtls_endpoint_listen: {error}") from None


def port(given: Any, name: str) -> int:
    """One port."""
    try:
        number = int(given)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 65_535:
        raise Wrong(f"{name}: {given!r} is no port; remedy: a number from 1 to 65535")
    return number


def egress(
    entries: Sequence[Mapping[str, Any]], name: str = "dtls_firewall_egress_extra"
) -> list[dict[str, Any]]:
    """What else may go out, each with ``protocol``, ``ports``, ``ipv4`` and ``ipv6``."""
    found = []
    for entry in entries or []:
        unknown = sorted(set(entry) - {"protocol", "ports", "to"})
        protocol = entry.get("protocol", "udp")
        if unknown or protocol not in ("tcp", "udp") or not entry.get("ports"):
            raise Wrong(
                f"{name}: {dict(entry)!r} is not understood; remedy: protocol (tcp or udp), ports (a list) and,"
                " unless it is everywhere, to (a list of addresses)"
            )
        where = addresses(entry.get("to"), name)
        found.append(
            {
                "protocol": protocol,
                "ports": sorted({port(one, name) for one in entry["ports"]}),
                "ipv4": where["ipv4"] if entry.get("to") else ["0.0.0.0/0"],
                "ipv6": where["ipv6"] if entry.get("to") else ["::/0"],
            }
        )
    return found


def device_egress(
    endpoints: Any, dtls_ports: Iterable[Any], dns: Any, ntp: Any, extra: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What a device may begin, each with ``why``."""
    entries = [
        ("DTLS to its endpoints", "dtls_firewall_endpoints", "udp", dtls_ports, endpoints),
        ("DNS", "dtls_firewall_dns_servers", "udp", [53], dns),
        ("DNS", "dtls_firewall_dns_servers", "tcp", [53], dns),
        ("NTP", "dtls_firewall_ntp_servers", "udp", [123], ntp),
    ]
    found = []
    for why, name, protocol, which, where in entries:
        if not where and name == "dtls_firewall_endpoints":
            raise Wrong(
                f"{name}: is empty, so a device could reach none; remedy: their addresses, or the group dtls_endpoints"
            )
        if where:
            found += [
                one | {"why": why}
                for one in egress([{"protocol": protocol, "ports": list(which), "to": where}], name)
            ]
    return found + [one | {"why": "dtls_firewall_egress_extra"} for one in egress(extra)]


def refusal(session: Mapping[str, Any] | None, ssh_ports: Iterable[Any], sources: Iterable[Any]) -> str:
    """Why rules of a device would end ``session``, the connection that they come over; empty if they admit it."""
    admitted = [network(str(text), "dtls_firewall_management_sources") for text in sources]
    if not admitted:
        return "dtls_firewall_management_sources is empty, and this connection is not ssh, so nobody could come in. Remedy: name the addresses"
    if not session:
        return ""
    here = network(str(session["client"]), "the connection")
    if not any(here.version == one.version and here.subnet_of(one) for one in admitted):  # type: ignore[arg-type]
        return (
            f"this connection comes from {session['client']}, which dtls_firewall_management_sources does not admit."
            " Remedy: add it, or come from another address"
        )
    known = sorted({port(one, "dtls_firewall_ssh_ports") for one in ssh_ports})
    if session["server_port"] not in known:
        return (
            f"this connection goes to port {session['server_port']}, and dtls_firewall_ssh_ports has only"
            f" {', '.join(map(str, known)) or 'none'}. Remedy: add it"
        )
    return ""
