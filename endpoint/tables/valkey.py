"""How a Valkey or Redis server is reached: the keys that ``[credentials.valkey]`` and a ``valkey`` sink share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

import attrs

from endpoint.tables.names import MAX_SOCKET_NAME, file_name
from endpoint.values import within

DEFAULT_VALKEY_PORT = 6379
_SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
"""Whether they mean TLS."""
_EXAMPLES = '"unix:/run/valkey/valkey.sock", "valkey://host:6379", or "valkeys://host:6379" for TLS'


@attrs.frozen
class ValkeyAddress:
    """Where a server is: a UNIX socket, or a host and port."""

    path: str | None = None
    host: str = ""
    port: int = DEFAULT_VALKEY_PORT
    tls: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'valkeys' if self.tls else 'valkey'}://{host}:{self.port}"

    @property
    def crosses_network_in_clear(self) -> bool:
        """Whether keys could be read on the way."""
        return self.path is None and not self.tls and self.host not in ("localhost", "127.0.0.1", "::1")

    @classmethod
    def parse(cls, text: str) -> ValkeyAddress:
        """What ``text`` names; ValueError says what is wrong with it, and repeats nothing that may be a password."""
        if text.startswith(("/", "unix:")):
            return cls(path=_socket_path(text.removeprefix("unix:")))
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError:
            raise ValueError(f"is no address; remedy: {_EXAMPLES}") from None
        if url.scheme not in _SCHEMES or not url.hostname:
            raise ValueError(f"is no address; remedy: {_EXAMPLES}")
        _require_plain(url)
        return cls(
            host=url.hostname,
            port=DEFAULT_VALKEY_PORT if port is None else port,
            tls=_SCHEMES[url.scheme],
        )


def _socket_path(path: str) -> str:
    if path.startswith("//"):  # unix:///run/…, as some write it
        path = "/" + path.lstrip("/")
    if not path.startswith("/"):
        raise ValueError('the socket needs its whole path, such as "unix:/run/valkey/valkey.sock"')
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > MAX_SOCKET_NAME:
        raise ValueError(f"the name of a socket has at most {MAX_SOCKET_NAME} bytes, and no NUL character")
    return path


def _require_plain(url: SplitResult) -> None:
    if url.username is not None or url.password is not None:
        raise ValueError(
            "holds a user or password, which everybody who reads this file would know;"
            " remedy: put them under username and password_file"
        )
    if url.path.strip("/") or url.query or url.fragment:
        raise ValueError(
            "only host and port are possible; remedy: the number of the database goes under database"
        )


def server_address(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    """A validator: an address as :class:`ValkeyAddress` takes it."""
    if value is not None:
        try:
            ValkeyAddress.parse(value)
        except ValueError as error:
            raise ValueError(f"{attribute.name}: {error}") from None


def _name(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and not re.fullmatch(r"[\x21-\x7e]{1,128}", value):
        raise ValueError(f"{attribute.name}: 1 to 128 printable characters without blanks are needed")


def key_prefix(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    """A validator: what names in the server begin with."""
    if not 1 <= len(value.encode()) <= 128:
        raise ValueError(f"{attribute.name}: has {len(value.encode())} bytes, not 1 to 128")


@attrs.frozen(kw_only=True)
class ValkeyLogin:
    """How this program shows the server who it is, and the other way round."""

    username: str | None = attrs.field(default=None, validator=_name)
    """The user, where the server has an ACL; its ``default`` user if none is given."""
    password_file: Path | None = attrs.field(default=None, validator=file_name)
    """A file with the password and nothing else, mode 0600. Never in the address: that is shown."""
    database: int = attrs.field(default=0, validator=within(0, 65_535, "", whole=True))
    """The number of the database within the server."""
    ca_file: Path | None = attrs.field(default=None, validator=file_name)
    """For TLS: the CAs that the server's certificate may be from, PEM; by default those of the system."""
    certificate: Path | None = attrs.field(default=None, validator=file_name)
    """For TLS: our certificate, PEM, where the server asks for one, as it does by default."""
    private_key: Path | None = attrs.field(default=None, validator=file_name)
    """The key of ``certificate``, PEM, mode 0600."""

    def below(self, directory: Path) -> Self:
        """The same with every file name completed by ``directory``."""
        files: dict[str, Any] = {
            field.name: directory / value
            for field in attrs.fields(type(self))
            if isinstance(value := getattr(self, field.name), Path)
        }
        return attrs.evolve(self, **files)

    def contradictions_with(self, address: ValkeyAddress | None) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        if self.username and not self.password_file:
            yield "password_file", "missing; a username needs it"
        if bool(self.certificate) != bool(self.private_key):
            missing = "private_key" if self.certificate else "certificate"
            yield missing, "missing; certificate and private_key belong together"
        tls_only = next((name for name in ("ca_file", "certificate") if getattr(self, name)), None)
        if tls_only and address is not None and not address.tls:
            yield tls_only, "is of no use without TLS; remedy: an address that begins with valkeys://"


@attrs.frozen(kw_only=True)
class ValkeyKeys(ValkeyLogin):
    """``[credentials.valkey]``: the server that ``psk_valkey`` names, and where the keys are in it."""

    prefix: str = attrs.field(default="psk:", validator=key_prefix)
    """What the name of a hash begins with; the identity, byte by byte, is the rest. Whatever begins so can be asked for by
    strangers, so nothing else should."""
