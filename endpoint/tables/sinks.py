"""The keys of one sink, by its kind. They stand in ``[forward]``, or in a ``[[forward.sinks]]`` where there are several."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from endpoint.tables.names import MAX_SOCKET_NAME, file_name, seconds
from endpoint.tables.valkey import ValkeyAddress, ValkeyLogin, key_prefix, server_address
from endpoint.text import show_text
from endpoint.values import within


def _version(host: str) -> int | None:
    """4 or 6 for an address, ``None`` for anything else."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def host_and_port(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT`` taken apart; ValueError says what is wrong."""
    shown = show_text(text)
    match = re.fullmatch(r"(?:\[([^][]*)\]|([^][:]*)):([0-9]{1,5})", text)
    if match is None:
        raise ValueError(f'"{shown}" is not HOST:PORT or [IPv6]:PORT')
    inside, outside, port = match.group(1), match.group(2), int(match.group(3))
    if not 1 <= port <= 65_535:
        raise ValueError(f"port {port} is not within 1 to 65535")
    if inside is not None:
        if _version(inside) != 6:
            raise ValueError(f'"{shown}": what is in brackets is no IPv6 address')
        return inside, port
    # Without a letter it is an address with a mistake in it, and no name.
    if _version(outside) != 4 and not re.fullmatch(r"(?=.*[A-Za-z])[0-9A-Za-z._-]{1,253}", outside):
        raise ValueError(f'"{shown}": the host is neither an address nor a name')
    return outside, port


def _host_and_port(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        host_and_port(value)
    except ValueError as error:
        raise ValueError(f"{attribute.name}: {error}") from None


def _address(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and _version(value) is None:
        raise ValueError(f'{attribute.name}: "{show_text(value)}" is no IP address; remedy: one of this host')


def _file_name(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    file_name(instance, attribute, value)


def _name(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    # It becomes a label of metrics and a key of the log.
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", value):
        raise ValueError(
            f'name: "{show_text(value)}" is not up to 64 letters, digits, dots, dashes and underscores'
        )


def _some(_instance: object, attribute: attrs.Attribute[Any], value: tuple[object, ...] | None) -> None:
    if value is not None and not value:
        raise ValueError(f"{attribute.name}: an empty list means nobody; remedy: leave it out for everybody")


def _entries(instance: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None:
        within(1, 2**40, "entries", whole=True)(instance, attribute, value)


def _prefix_or_none(instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        key_prefix(instance, attribute, value)


@attrs.frozen(kw_only=True)
class SinkTable:
    """What all kinds have: a name, and whose data it gets."""

    kind: ClassVar[str]

    name: str = attrs.field(default="", validator=_name)
    """What log and metrics call it; by default its kind."""
    identities: tuple[str, ...] | None = attrs.field(default=None, validator=_some)
    """Shell patterns (``*``, ``?``, ``[a-f]``) of the identities whose data it gets, as the log shows them, upper and lower
    case told apart. Without it: everybody's, also of devices that showed no identity."""
    alpn: tuple[bytes, ...] | None = attrs.field(default=None, validator=_some)
    """Protocols of which one must have been negotiated (RFC 7301); ``dtls.alpn_protocols`` has to name them too.
    Without it: any, or none."""
    also: bool = False
    """Whether the sinks that come after it are looked at as well when it gets a datagram."""

    @property
    def has_way_back(self) -> bool:
        """Whether what its other side sends goes to the devices."""
        return False

    @property
    def wakes(self) -> bool:
        """Whether that wakes frozen associations."""
        return getattr(self, "wake", False)

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.kind

    @property
    def chooses(self) -> bool:
        """Whether it does not get everybody's."""
        return self.identities is not None or self.alpn is not None

    def in_words(self) -> str:
        """What it does with a datagram."""
        raise NotImplementedError

    def for_whom(self) -> str:
        """Whose data it gets, in words."""
        whom = []
        if self.identities is not None:
            whom.append(f"identities like {show_text(', '.join(self.identities))}")
        if self.alpn is not None:
            protocols = ", ".join(protocol.decode() for protocol in self.alpn)
            whom.append(f"the protocols {show_text(protocols)}")
        return (" with ".join(whom) or "everybody") + (", and on to the next" if self.also else "")

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        return iter(())

    def below(self, directory: Path) -> SinkTable:
        """The same with every file name completed by ``directory``."""
        files: dict[str, Any] = {
            field.name: directory / value
            for field in attrs.fields(type(self))
            if isinstance(value := getattr(self, field.name), Path)
        }
        return attrs.evolve(self, **files)


@attrs.frozen(kw_only=True)
class BufferedTable(SinkTable):
    """What kinds have that may have to wait for their other side."""

    buffer: int = attrs.field(default=1_048_576, validator=within(1024, 2**32, "bytes", whole=True))
    """Bytes held while the other side is slow or away; beyond, datagrams are dropped and counted."""
    overflow: Literal["newest", "oldest"] = "newest"
    """Which are dropped then. ``newest``: what is held is older, but complete and in order. ``oldest``: for readings
    of which only the last ones matter."""

    def bounds(self) -> str:
        """The bound in words."""
        dropped = "" if self.overflow == "newest" else ", then dropping the oldest"
        return f"holding at most {self.buffer} bytes{dropped}"


@attrs.frozen(kw_only=True)
class JsonlTable(BufferedTable):
    """``kind = "jsonl"``: one JSON line for each datagram, on standard output."""

    kind: ClassVar[str] = "jsonl"

    def in_words(self) -> str:
        """What it does with a datagram."""
        return f"writes each datagram as a JSON line to standard output, {self.bounds()}"


@attrs.frozen(kw_only=True)
class EchoTable(SinkTable):
    """``kind = "echo"``: back to the sender."""

    kind: ClassVar[str] = "echo"

    def in_words(self) -> str:
        """What it does with a datagram."""
        return "sends every datagram back to its sender"


@attrs.frozen(kw_only=True)
class UdpTable(SinkTable):
    """``kind = "udp"``: to a server without DTLS, such as one for CoAP, LwM2M or MQTT-SN; what it answers goes back.

    Each association has a socket of its own there, so that the server sees each device at an address of its own.
    """

    kind: ClassVar[str] = "udp"

    upstream: str = attrs.field(
        validator=_host_and_port, metadata={"remedy": 'add  upstream = "127.0.0.1:5683"'}
    )
    """``HOST:PORT`` or ``[IPv6]:PORT`` of the server. A name is looked up again every minute."""
    bind: str | None = attrs.field(default=None, validator=_address)
    """Address of this host that the sockets have, for firewalls and servers that look at it; by default the kernel chooses."""
    idle: float | None = attrs.field(default=86_400.0, validator=seconds)
    """Seconds of silence after which an association's socket is closed; ``"never"`` = when it ends. The server then takes the
    device for a new one. A day, through which devices may sleep: registrations and observations should outlive that."""
    max_upstreams: int = attrs.field(default=10_000, validator=within(1, 1_000_000, "sockets", whole=True))
    """Sockets at once, each a descriptor; beyond, the one that has been silent longest is closed. There are about 28,000
    ports for one address of ours."""
    wake: bool = True
    """Whether an answer for a device whose association is frozen (``state.freeze_after``) wakes that, so that the answer is sent.
    Of use for devices that are silent and listen. ``false`` for those that sleep, as nobody hears it: it is dropped and counted."""
    proxy_protocol: Literal["off", "every", "first"] = "off"
    """A header with identity and address of the device (PROXY protocol version 2, ``endpoint.forward.proxy``). Off, as a
    plain server takes it for nonsense. ``every``: in front of each datagram, which is what servers expect that
    have no connections. ``first``: in front of the first of each socket, when the device has moved, and when one did not arrive, as far
    as that is known."""

    @property
    def has_way_back(self) -> bool:
        """Whether what its other side sends goes to the devices."""
        return True

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        there = _version(host_and_port(self.upstream)[0])
        if self.bind is not None and there is not None and there != _version(self.bind):
            yield (
                "bind",
                f'"{self.bind}" cannot reach "{show_text(self.upstream)}"; remedy: an address of the same version of IP',
            )

    def in_words(self) -> str:
        """What it does with a datagram."""
        header = {
            "off": "",
            "every": ", with a PROXY header",
            "first": ", the first with a PROXY header",
        }[self.proxy_protocol]
        source = f", from {self.bind}" if self.bind else ""
        idle = "" if self.idle is None else f" and closed after {self.idle:g} s of silence"
        unless = "" if self.wake else ", unless the device sleeps"
        return (
            f"sends each datagram to UDP {show_text(self.upstream)}{source}{header}, and what is answered back{unless}; "
            f"one socket an association, at most {self.max_upstreams}{idle}"
        )


@attrs.frozen(kw_only=True)
class UnixTable(BufferedTable):
    """``kind = "unix"``: to the datagram socket of another program on this host, and from it back."""

    kind: ClassVar[str] = "unix"

    path: Path = attrs.field(validator=_file_name, metadata={"remedy": 'add  path = "/run/…/readings.sock"'})
    """The other program's socket."""
    listen: Path | None = attrs.field(default=None, validator=file_name)
    """Our socket, mode 0600, for the way back: JSON objects with ``identity``, and ``data`` or ``data_base64``. By default
    there is none."""
    wake: bool = True
    """Whether an answer for a device whose association is frozen (``state.freeze_after``) wakes that, so that the answer is sent.
    Of use for devices that are silent and listen. ``false`` for those that sleep, as nobody hears it: it is dropped and counted."""
    format: Literal["json", "raw"] = "json"
    """``json``: an object as of ``jsonl``. ``raw``: what the device sent and nothing else, so nobody can tell whose it is."""

    @property
    def has_way_back(self) -> bool:
        """Whether what its other side sends goes to the devices."""
        return self.listen is not None

    def in_words(self) -> str:
        """What it does with a datagram."""
        what = "as a JSON object " if self.format == "json" else ""
        unless = "" if self.wake else ", and are dropped for devices that sleep"
        back = f"; answers come by {show_text(str(self.listen))}{unless}" if self.listen else ""
        return f"sends each datagram {what}to the socket {show_text(str(self.path))}, {self.bounds()}{back}"

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        for key in ("path", "listen"):
            name = getattr(self, key)
            if name is not None and len(os.fsencode(name)) > MAX_SOCKET_NAME:
                yield key, f"the name has more than {MAX_SOCKET_NAME} bytes; remedy: a shorter directory"
        if self.listen == self.path:
            yield "listen", "is the same socket as path; remedy: name another"


@attrs.frozen(kw_only=True)
class ValkeyTable(BufferedTable):
    """``kind = "valkey"``: into a stream of a Valkey or Redis server, and from a stream for each device back."""

    kind: ClassVar[str] = "valkey"

    server: str = attrs.field(
        validator=server_address, metadata={"remedy": 'add  server = "unix:/run/valkey/valkey.sock"'}
    )
    """Its address, as of ``credentials.psk_valkey``."""
    stream: str = attrs.field(default="dtls:data", validator=key_prefix)
    """The stream that gets an entry (XADD) for each datagram."""
    max_entries: int | None = attrs.field(default=1_000_000, validator=_entries)
    """Entries that the stream holds, about: the server removes the oldest beyond (MAXLEN ~). ``"unlimited"`` is for those who
    trim it themselves."""
    downlink_prefix: str | None = attrs.field(default=None, validator=_prefix_or_none)
    """What the names of the streams for devices begin with, such as ``dtls:to:``; the identity, byte by byte, is the rest. Without it
    there is no way back."""
    username: str | None = None
    """As of ``[credentials.valkey]``, as all that follow."""
    password_file: Path | None = attrs.field(default=None, validator=file_name)
    """A file with the password, mode 0600."""
    database: int = 0
    """The number of the database within the server."""
    ca_file: Path | None = attrs.field(default=None, validator=file_name)
    """For TLS: the CAs that the server's certificate may be from."""
    certificate: Path | None = attrs.field(default=None, validator=file_name)
    """For TLS: our certificate."""
    private_key: Path | None = attrs.field(default=None, validator=file_name)
    """The key of ``certificate``, mode 0600."""

    def __attrs_post_init__(self) -> None:
        self.login()  # which knows what is possible

    def login(self) -> ValkeyLogin:
        """How this program shows the server who it is."""
        return ValkeyLogin(**{field.name: getattr(self, field.name) for field in attrs.fields(ValkeyLogin)})

    @property
    def has_way_back(self) -> bool:
        """Whether what its other side sends goes to the devices."""
        return self.downlink_prefix is not None

    def in_words(self) -> str:
        """What it does with a datagram."""
        kept = "" if self.max_entries is None else f", which holds about {self.max_entries}"
        back = (
            ""
            if self.downlink_prefix is None
            else f'; sends devices that are awake what is in the streams "{show_text(self.downlink_prefix)}" + identity'
        )
        return (
            f'adds each datagram to the stream "{show_text(self.stream)}"{kept}, at {ValkeyAddress.parse(self.server)}, '
            f"{self.bounds()}{back}; not asked now, as check touches no network"
        )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        yield from self.login().contradictions_with(ValkeyAddress.parse(self.server))
        if self.downlink_prefix is not None and self.stream.startswith(self.downlink_prefix):
            yield (
                "downlink_prefix",
                "the stream's own name begins so, and a device may be called as its rest; remedy: another",
            )


KINDS: dict[str, type[SinkTable]] = {
    table.kind: table for table in (JsonlTable, EchoTable, UdpTable, UnixTable, ValkeyTable)
}
"""Every kind's table, by the name of the kind."""
