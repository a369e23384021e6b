"""The configuration file: TOML in, one frozen :class:`EndpointConfig` out, or every mistake at once.

Every key has a default, its unit and its reason in ``endpoint.tables``; only ``[credentials]``, which is in
``endpoint.credentials``, must be given. ``[dtls]`` is :class:`sansdtls.ServerConfig` and ``[quotas]`` is
:class:`QuotaPolicy`, field by field, so their documentation is there. How values become objects is in
``endpoint.structure``.

A mistake is one line, ``file: key: what is wrong (and the remedy)``. All of them are reported, so
that a file is put right in one go. Values under ``[credentials]`` are never repeated in a message.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs

from endpoint.credentials import Credentials
from endpoint.quotas import QuotaPolicy
from endpoint.structure import structure
from endpoint.tables.forward import Forward
from endpoint.tables.listen import Listen
from endpoint.tables.log import Log
from endpoint.tables.metrics import Metrics
from endpoint.tables.state import State
from endpoint.text import show_text
from endpoint.values import StructureError
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

NOT_IN_QUOTAS = ("waiting_bytes_per_association", "total_waiting_bytes")
"""Fields of ``QuotaPolicy`` that are no keys of ``[quotas]``: they are about channels, of which a service has none."""


class ConfigFileError(Exception):
    """The configuration cannot be used. ``problems`` has one line for each mistake."""

    def __init__(self, problems: list[str], credentials: Credentials | None = None):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
        self.credentials = credentials
        """The files that were named all the same, so that their mistakes can be reported too."""


@attrs.frozen(kw_only=True)
class EndpointConfig:
    """The whole file."""

    credentials: Credentials = attrs.field(
        metadata={"remedy": 'add  [credentials]  and below it  psk_file = "psk.txt"  or a certificate'}
    )
    listen: Listen = attrs.field(factory=Listen)
    dtls: ServerConfig = attrs.field(
        default=ServerConfig(),
        metadata={"without": NOT_IN_DTLS},
    )
    quotas: QuotaPolicy = attrs.field(factory=QuotaPolicy, metadata={"without": NOT_IN_QUOTAS})
    forward: Forward = attrs.field(factory=Forward)
    state: State = attrs.field(factory=State)
    metrics: Metrics = attrs.field(factory=Metrics)
    log: Log = attrs.field(factory=Log)


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
    forward = config.forward.below(directory)
    mistakes = [
        f"{where}: {table}{key and '.'}{key}: {what}"
        for table, contradictions in (
            ("listen", config.listen.contradictions()),
            ("credentials", credentials.contradictions()),
            ("state", state.contradictions()),
            ("forward", forward.contradictions(config.dtls.alpn_protocols)),
        )
        for key, what in contradictions
    ]
    if mistakes:
        raise ConfigFileError(mistakes, credentials)
    return attrs.evolve(config, credentials=credentials, state=state, forward=forward)


def _credentials_in(tables: dict[str, Any], directory: Path) -> Credentials | None:
    try:
        return structure(tables.get("credentials"), Credentials).below(directory)  # type: ignore[arg-type]
    except StructureError:
        return None
