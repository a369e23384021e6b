"""``dtls-endpoint doctor``: why a device does not get in, and what to do."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from endpoint.commands.common import WRONG_USE, CommandFailed, Commands, add_config, ask_service
from endpoint.commands.views import doctor_lines
from endpoint.text import read_shown, show_bytes

if TYPE_CHECKING:
    import argparse


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="why a device does not get in",
        description="Ask the running service about a device: whether its identity is known, which keys are accepted (by fingerprint) and "
        "which it used last, whether it is connected, and why its last handshakes failed, with what to do. Needs "
        "state.admin_socket. Exit status 1 if no service answers, or the identity is not known.",
    )
    add_config(parser)
    parser.add_argument(
        "identity",
        nargs="?",
        metavar="IDENTITY",
        help=r"as the log shows it: \x00 stands for a byte, \\ for a backslash",
    )
    parser.add_argument(
        "--path", metavar="ADDRESS", help="an address instead, with or without port: what happened there"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, whose shape is documented")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if (options.identity is None) == (options.path is None):
        raise CommandFailed(WRONG_USE, "doctor: either an identity or --path ADDRESS is needed")
    answer = ask_service(options, "doctor", **_question(options))
    print(json.dumps(answer, indent=2) if options.json else "\n".join(doctor_lines(answer)), flush=True)
    return 1 if answer.get("known") is False else 0


def _question(options: argparse.Namespace) -> dict[str, Any]:
    if options.path is not None:
        return {"address": options.path}
    try:
        # From the bytes: an argument that is not UTF-8 is an identity, too.
        shown = os.fsencode(options.identity).decode("utf-8", "backslashreplace")
        return {"identity": show_bytes(read_shown(shown))}
    except ValueError as error:
        raise CommandFailed(WRONG_USE, f"doctor: the identity: {error}") from None
