"""The endpoint's configuration as the role makes it: defaults that are safe, and what follows from them for its unit."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ETC = "/etc/dtls-endpoint"
STATE = "/var/lib/dtls-endpoint"
RUN = "/run/dtls-endpoint"
DEFAULT_PORT = 5684
MAX_UPSTREAMS = 10_000
"""Of a sink of the kind udp, as in docs/configuration.md."""
KEY_PLACES = ("psk_file", "psk_database", "psk_valkey", "psk_module")
"""Of these only one is possible."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LISTENER = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?")


def listeners(texts: Iterable[Any]) -> list[dict[str, Any]]:
    """``ADDRESS[:PORT]`` or ``[ADDRESS][:PORT]`` in parts, and where a client on the host itself finds each.

    Names are refused: systemd binds the sockets before anybody can be asked for an address.
    """
    found = []
    for text in texts:
        parts = _LISTENER.fullmatch(str(text))
        port = int(parts["port"] or DEFAULT_PORT) if parts else 0
        try:
            address = ipaddress.ip_address((parts["six"] or parts["four"]) if parts else "")
        except ValueError:
            address = None
        if address is None or not 1 <= port <= 65_535:
            raise ValueError(
                f"{str(text)!r} is no address with a port; remedy: 0.0.0.0:5684, [::]:5684 or 192.0.2.1:5684"
            )
        near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))  # noqa: S104 - a name, not bound
        found.append(
            {
                "address": str(address),
                "port": port,
                "listen": place(str(address), port),
                "near": place(near, port),
            }
        )
    if not found:
        raise ValueError("there is none; remedy: [::]:5684 for all addresses of the host")
    return found


def place(address: str, port: int) -> str:
    """Address and port as one text."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def settings(given: Mapping[str, Any], *, listen: Iterable[Any], systemd: bool) -> dict[str, Any]:
    """All tables of the configuration: ``given`` over defaults. A value of ``None`` takes a default away.

    The defaults lose no association: neither by a restart, nor by a crash, nor by a release that does not work.
    """
    places = listeners(listen)
    mine = given.get("listen") or {}
    twice = sorted({"address", "port", "also"} & set(mine))
    if twice:
        raise ValueError(
            f"listen.{twice[0]}: is what dtls_endpoint_listen says, which the socket unit needs, too"
        )
    told = given.get("state") or {}
    state: dict[str, Any] = {"store": "sqlite", "file": f"{STATE}/associations.db"}
    if told.get("store", "sqlite") != "sqlite":
        # systemd keeps descriptors from one process to the next; nobody else does.
        state = {} if systemd else {"handoff_file": f"{STATE}/handoff"}
    state |= {
        "key_file": f"{ETC}/state.key",
        "usage_file": f"{STATE}/usage.db",
        "admin_socket": f"{RUN}/admin.sock",
    }
    elsewhere = set(KEY_PLACES) & set(given.get("credentials") or {})
    defaults: dict[str, Any] = {
        "listen": {"address": places[0]["address"], "port": places[0]["port"]},
        "credentials": {} if elsewhere else {"psk_file": f"{ETC}/psk.d"},
        "state": state,
    }
    if places[1:]:
        defaults["listen"]["also"] = [one["listen"] for one in places[1:]]
    return _without_none(_over(defaults, given))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def network(table: Mapping[str, Any]) -> dict[str, Any]:
    """Why the service needs a network of its own besides the sockets it is given, if it does, and how much of one."""
    why: list[str] = []
    peers: list[str | None] = []
    credentials = table.get("credentials") or {}
    sinks = _sinks(table.get("forward") or {})
    servers = [("credentials.psk_valkey", credentials.get("psk_valkey"))]
    servers += [("forward.kind valkey", sink.get("server")) for sink in sinks if sink.get("kind") == "valkey"]
    for name, server in servers:
        if server and not str(server).startswith("unix:"):
            why.append(name)
            peers.append(_address(urlsplit(str(server)).netloc))
    if credentials.get("psk_module"):
        # Nobody knows what it does.
        why.append("credentials.psk_module")
        peers.append(None)
    upstreams = [sink for sink in sinks if sink.get("kind") == "udp"]
    for sink in upstreams:
        why.append("forward.kind udp")
        peers.append(_address(str(sink.get("upstream"))))
    metrics = table.get("metrics") or {}
    port = metrics.get("port", "off")
    if port != "off":
        why.append("metrics.port")
        # Who asks there may be anywhere, unless it is on this host.
        address = str(metrics.get("address", "127.0.0.1"))
        peers.append(address if _loopback(address) else None)
    return {
        "needed": bool(why),
        "why": why,
        "far": None in peers,
        "peers": [peer for peer in dict.fromkeys(peers) if peer and not _loopback(peer)],
        "port": port if isinstance(port, int) and not isinstance(port, bool) else 0,
        "sockets": sum(int(sink.get("max_upstreams", MAX_UPSTREAMS)) for sink in upstreams),
    }


def _address(place: str) -> str | None:
    """The address in ``ADDRESS[:PORT]``; none of a name, which may stand for another one tomorrow."""
    host = place.rpartition("@")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _sinks(forward: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return forward.get("sinks") or [forward]


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def toml(table: Mapping[str, Any]) -> str:
    """A dictionary of tables as TOML; within lists, tables are written in line."""
    lines: list[str] = []
    _table(table, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _table(table: Mapping[str, Any], names: tuple[str, ...], lines: list[str]) -> None:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    below = {key: value for key, value in table.items() if isinstance(value, dict)}
    if names and (plain or not below):
        lines += ["", f"[{'.'.join(map(_key, names))}]"]
    lines += [f"{_key(key)} = {_value(value, (*names, key))}" for key, value in plain.items()]
    for key, value in below.items():
        _table(value, (*names, key), lines)


def _key(name: Any) -> str:
    return str(name) if _BARE.fullmatch(str(name)) else _text(str(name))


def _value(value: Any, names: tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        # "inf" and "nan" are TOML's words as well.
        return str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(one, names) for one in value)}]"
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(key)} = {_value(one, (*names, key))}" for key, one in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    raise ValueError(f"{'.'.join(map(str, names))}: a {type(value).__name__} cannot be written as TOML")


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
