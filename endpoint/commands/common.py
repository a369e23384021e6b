"""What commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from endpoint.admin import AdminError, ask
from endpoint.config import ConfigFileError, load_config
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterable

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name

PROGRAM = "dtls-endpoint"
WRONG_USE = 2
PATIENCE = 10.0
"""Seconds that a service may take to answer an ordinary question."""


class CommandFailed(Exception):
    """A command cannot go on. ``status`` is the exit status; each of ``lines`` is for the operator."""

    def __init__(self, status: int, *lines: str):
        super().__init__("\n".join(lines))
        self.status = status
        self.lines = lines


def complain(lines: Iterable[str]) -> int:
    """Write each line to standard error; the exit status for wrong usage."""
    for line in lines:
        print(line, file=sys.stderr)
    return WRONG_USE


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option that nearly every command needs."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration, TOML")


def seconds(text: str) -> float:
    """An argument in seconds."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.01 <= number <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.01 to 86400")
    return number


def ask_service(
    options: argparse.Namespace, command: str, *, patience: float = PATIENCE, **parameters: Any
) -> dict[str, Any]:
    """The running service's answer to ``command``, through ``state.admin_socket``; :class:`CommandFailed` if there is none.

    Exit status 2 if the configuration is wrong or names no socket, 1 if nobody answers or the answer is no.
    """
    where = show_text(str(options.config))
    try:
        socket = load_config(options.config).state.admin_socket
    except ConfigFileError as error:
        raise CommandFailed(WRONG_USE, *error.problems) from None
    if socket is None:
        remedy = 'add  admin_socket = "admin.sock"'
        raise CommandFailed(WRONG_USE, f"{where}: state.admin_socket: missing; remedy: {remedy}")
    typed = f"{PROGRAM} {command.replace('_', ' ')}"
    try:
        answer = ask(socket, command, seconds=patience, **parameters)
    except AdminError as error:
        raise CommandFailed(1, f"{typed}: {error}") from None
    if not answer.get("ok"):
        raise CommandFailed(1, f"{typed}: {show_text(str(answer.get('error')))}")
    return answer
