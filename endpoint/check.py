"""``dtls-endpoint check``: whether configuration and keys are right, and what they would do."""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

from endpoint.config import ConfigFileError, load_config
from endpoint.keystore.file import KeyFileError, load_psk
from endpoint.text import show_text

if TYPE_CHECKING:
    from pathlib import Path

    from endpoint.config import EndpointConfig
    from endpoint.keystore.file import PskSet


class NotRightError(Exception):
    """``problems``: each mistake as one line."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def load_all(path: Path) -> tuple[EndpointConfig, PskSet]:
    """The configuration and its keys; :class:`NotRightError` lists the mistakes of both."""
    try:
        config = load_config(path)
    except ConfigFileError as error:
        problems = list(error.problems)
        if error.psk_file is not None:
            try:
                load_psk(error.psk_file)
            except KeyFileError as keys:
                problems += keys.problems
        raise NotRightError(problems) from None
    try:
        return config, load_psk(config.credentials.psk_file)
    except KeyFileError as error:
        raise NotRightError(list(error.problems)) from None


def describe(path: Path, config: EndpointConfig, keys: PskSet) -> list[str]:
    """What a service with this configuration would do, and what is worth a look."""
    listen, server = config.listen, config.server_config
    lines = [
        f"{show_text(str(path))}: right",
        f"listens on UDP {_address(listen.address, listen.port)}{_reach(listen.address)}",
        f"while the address is not available: {_retry(listen.retry)}",
        (
            f"accepts {_count(len(keys.keys), 'identity', 'identities')} from "
            f"{show_text(str(config.credentials.psk_file))}, {keys.in_rotation} of them with a next key"
        ),
        f"speaks DTLS 1.2 with {', '.join(suite.name for suite in server.cipher_suites)}",
        (
            f"extended master secret: {server.extended_master_secret.value}; datagrams of at most "
            f"{server.mtu} bytes; at most {server.limits.max_associations} associations"
        ),
        _forward(config),
        f"logs to standard error from level {config.log.level}; a stop takes at most {listen.drain:g} s",
    ]
    notes = list(keys.notes)
    if not keys.keys:
        notes.append(f"{show_text(str(config.credentials.psk_file))}: no identity, so nobody can connect")
    return lines + [f"note: {note}" for note in notes]


def _address(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if port else f"{shown}, any free port"


def _reach(host: str) -> str:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return ""
    return " (reachable from this host only)" if local else ""


def _retry(seconds: float) -> str:
    if not seconds:
        return "ends with an error"
    return "keeps trying" if seconds == math.inf else f"keeps trying for {seconds:g} s"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _forward(config: EndpointConfig) -> str:
    if config.forward.kind == "echo":
        return "sends every datagram back to its sender"
    return f"writes each datagram as a JSON line to standard output, holding at most {config.forward.buffer} bytes"
