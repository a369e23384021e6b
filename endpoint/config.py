"""The configuration file: TOML in, one frozen :class:`EndpointConfig` out, or every mistake at once.

Every key has a default, its unit and its reason here; only ``[credentials]``, which is in
``endpoint.credentials``, must be given. ``[dtls]`` is :class:`sansdtls.ServerConfig` and ``[quotas]`` is
:class:`QuotaPolicy`, field by field, so their documentation is there. How values become objects is in
``endpoint.structure``.

A mistake is one line, ``file: key: what is wrong (and the remedy)``. All of them are reported, so
that a file is put right in one go. Values under ``[credentials]`` are never repeated in a message.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import attrs

from endpoint.credentials import Credentials
from endpoint.quotas import QuotaPolicy
from endpoint.structure import StructureError, structure, within
from endpoint.text import show_text
from endpoint.udp import RECEIVE_BUFFER_SIZE
from sansdtls import ServerConfig

NOT_IN_DTLS = (
    # What [credentials] says.
    "psk",
    "psk_identity_hint",
    "credentials",
    "client_authentication",
    "client_certificate_types",
    "client_certificate_authorities",
    # What [state] says.
    "freeze_after",
    "snapshot_keys",
    # No setting for a service.
    "log_secrets",
)
"""Fields of ``ServerConfig`` that are no keys of ``[dtls]``."""

MAX_SOCKET_NAME = 107
"""Bytes that the name of a UNIX socket can have."""

DEFAULT_PORT = 5684
"""CoAP over DTLS, the registered port that most devices are built with (RFC 7252 §6.2)."""


class ConfigFileError(Exception):
    """The configuration cannot be used. ``problems`` has one line for each mistake."""

    def __init__(self, problems: list[str], credentials: Credentials | None = None):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
        self.credentials = credentials
        """The files that were named all the same, so that their mistakes can be reported too."""


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


@attrs.frozen(kw_only=True)
class Forward:
    """``[forward]``: where received data go."""

    kind: Literal["jsonl", "echo"] = "jsonl"
    """``jsonl``: one JSON line for each datagram, on standard output. ``echo``: back to the sender."""
    buffer: int = attrs.field(default=1_048_576, validator=within(1024, 2**32, "bytes", whole=True))
    """For ``jsonl``: lines held while the reader of standard output is slow; beyond, new ones are
    dropped and counted."""


@attrs.frozen(kw_only=True)
class Log:
    """``[log]``: what is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level written. Associations are ``info``, failed handshakes ``warning``."""
    failures_per_second: float = attrs.field(
        default=1.0, validator=within(0.001, 1_000_000, "lines a second")
    )
    """Lines a second for each cause of failure that a stranger can bring about; the rest is counted."""
    failures_burst: int = attrs.field(default=20, validator=within(1, 1_000_000, "lines", whole=True))
    """Lines of one cause that may come at once, after quiet."""


def _file_name(_instance: object, attribute: attrs.Attribute[Path | None], value: Path | None) -> None:
    if value is not None and "\0" in str(value):
        raise ValueError(f"{attribute.name}: a file name cannot hold a NUL character")


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    """Up to a year, or never."""
    if value is not None:
        within(0.001, 31_536_000, "seconds")(instance, attribute, value)


@attrs.frozen(kw_only=True)
class State:
    """``[state]``: associations that are put to sleep, and those that outlive the process.

    What a stop keeps: see ``endpoint.handoff`` for the file and the service manager's store, and
    ``endpoint.state`` for SQLite, which keeps associations also when the process is killed.
    """

    freeze_after: float | None = attrs.field(default=300.0, validator=_seconds)
    """Seconds of silence after which an association is frozen to a few hundred bytes, and woken by its next
    datagram; ``"never"`` = not at all. Five minutes: most devices speak in bursts, hours apart."""
    store: Literal["memory", "sqlite"] = "memory"
    """Where frozen associations are kept. ``sqlite`` also keeps all that are live, every
    ``checkpoint_interval``, so that they survive a crash."""
    file: Path | None = attrs.field(default=None, validator=_file_name)
    """The SQLite database, on a local disk, in a directory that nobody else can write."""
    checkpoint_interval: float = attrs.field(default=1.0, validator=within(0.01, 3600, "seconds"))
    """Seconds. For ``sqlite``: how often what has changed is written; what a device sent within that time before a
    crash can be replayed once."""
    handoff_file: Path | None = attrs.field(default=None, validator=_file_name)
    """For ``memory``: SIGTERM writes all associations there, and the next start takes them back. Without it a service
    manager that keeps descriptors is used, if there is one, which lasts for restarts but not for a stop and a start."""
    handoff_max_age: float | None = attrs.field(default=7_776_000.0, validator=_seconds)
    """Seconds after which what was handed over is not taken back; ``"never"`` = always. 90 days is when associations
    with a connection ID expire."""
    key_file: Path | None = attrs.field(default=None, validator=_file_name)
    """Keys that seal what is saved: see ``endpoint.keystore.sealing`` for the file. Mode 0600."""
    admin_socket: Path | None = attrs.field(default=None, validator=_file_name)
    """A UNIX socket for ``dtls-endpoint handoff``; its owner only (0600) may use it. By default there is none."""

    def below(self, directory: Path) -> State:
        """The same with every file name completed by ``directory``."""
        files: dict[str, Any] = {
            field.name: directory / value
            for field in attrs.fields(State)
            if isinstance(value := getattr(self, field.name), Path)
        }
        return attrs.evolve(self, **files)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        durable = self.store == "sqlite"
        if durable and not self.file:
            yield "file", 'missing; remedy: add  file = "associations.db"'
        if self.file and not durable:
            yield "file", 'is of no use with store = "memory"; remedy: store = "sqlite"'
        if self.handoff_file and durable:
            yield (
                "handoff_file",
                'is of no use with store = "sqlite", which keeps everything; remedy: remove it',
            )
        if (durable or self.handoff_file) and not self.key_file:
            what = 'store = "sqlite"' if durable else "handoff_file"
            yield "key_file", f'missing; {what} needs it; remedy: add  key_file = "state.key"'
        seen: dict[Path, str] = {}
        for name in ("key_file", "file", "handoff_file", "admin_socket"):
            path = getattr(self, name)
            if path is not None and seen.setdefault(path, name) != name:
                yield name, f"is the same file as {seen[path]}; remedy: name another"
        if self.admin_socket and len(os.fsencode(self.admin_socket)) > MAX_SOCKET_NAME:
            yield (
                "admin_socket",
                f"the name has more than {MAX_SOCKET_NAME} bytes; remedy: a shorter directory",
            )


@attrs.frozen(kw_only=True)
class EndpointConfig:
    """The whole file."""

    credentials: Credentials = attrs.field(
        metadata={"remedy": 'add  [credentials]  and below it  psk_file = "psk.txt"  or a certificate'}
    )
    listen: Listen = Listen()
    dtls: ServerConfig = attrs.field(
        default=ServerConfig(),
        metadata={"without": NOT_IN_DTLS},
    )
    quotas: QuotaPolicy = attrs.field(factory=QuotaPolicy)
    forward: Forward = Forward()
    state: State = State()
    log: Log = Log()


def load_config(path: Path) -> EndpointConfig:
    """Read a configuration file; :class:`ConfigFileError` lists all mistakes."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigFileError([f"{show_text(str(path))}: cannot be read: {reason}"]) from None
    return parse_config(content, name=str(path), directory=path.parent)


def parse_config(content: bytes, *, name: str, directory: Path) -> EndpointConfig:
    """The configuration in ``content``; ``name`` is for messages, relative names are in ``directory``."""
    where = show_text(name)
    try:
        tables = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigFileError([f"{where}: line {line}: not UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        what = re.sub(r"^(.*) \(at (.*)\)$", r"\2: \1", show_text(str(error)))
        raise ConfigFileError([f"{where}: {what}"]) from None
    try:
        config = structure(tables, EndpointConfig, private=("credentials",))
    except StructureError as error:
        problems = [f"{where}: {key}: {what}" if key else f"{where}: {what}" for key, what in error.mistakes]
        raise ConfigFileError(problems, _credentials_in(tables, directory)) from None
    credentials, state = config.credentials.below(directory), config.state.below(directory)
    mistakes = [
        f"{where}: {table}{key and '.'}{key}: {what}"
        for table, told in (("credentials", credentials), ("state", state))
        for key, what in told.contradictions()
    ]
    if mistakes:
        raise ConfigFileError(mistakes, credentials)
    return attrs.evolve(config, credentials=credentials, state=state)


def _credentials_in(tables: dict[str, Any], directory: Path) -> Credentials | None:
    try:
        return structure(tables.get("credentials"), Credentials).below(directory)  # type: ignore[arg-type]
    except StructureError:
        return None
