"""``dtls-endpoint reload``: have the running service read its credentials again."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from endpoint.commands.common import PROGRAM, Commands, add_config, ask_service, seconds
from endpoint.text import show_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

RELOAD_PATIENCE = 60.0
"""Seconds for a service to read its credentials; a million keys take about ten."""

_COUNTS = (
    ("added", "added"),
    ("removed", "removed"),
    ("changed", "changed"),
    ("in_rotation", "with a next key"),
    ("own_credentials", "own credentials"),
    ("client_cas", "client CAs"),
    ("crls", "revocation lists"),
    ("raw_public_keys", "raw public keys"),
)


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "reload",
        help="have the running service read its credentials again",
        description="Have the running service read its keys, certificates and revocation lists again, all or nothing, as SIGHUP "
        "does. Needs state.admin_socket. With --wait it says what has changed, or each mistake, and the exit status is 1 "
        "where there is one: the service then goes on with what it had. Without, it only says that it was asked for.",
    )
    add_config(parser)
    parser.add_argument("--wait", action="store_true", help="wait until it is done, and say what came of it")
    parser.add_argument(
        "--json", action="store_true", help="print what came of it as one JSON line; implies --wait"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=RELOAD_PATIENCE,
        metavar="S",
        help=f"wait at most so many seconds (default {RELOAD_PATIENCE:g}); the service goes on all the same",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    wait = options.wait or options.json
    answer = ask_service(options, "reload", patience=options.timeout, wait=wait)
    if not wait:
        print("asked for; the log says what comes of it", flush=True)
        return 0
    if options.json:
        print(json.dumps({name: value for name, value in answer.items() if name != "ok"}), flush=True)
    else:
        _tell(answer)
    return 0 if answer.get("reloaded") else 1


def _tell(answer: Mapping[str, Any]) -> None:
    for warning in answer.get("warnings", ()):
        print(f"warning: {show_text(str(warning))}", file=sys.stderr)
    if answer.get("reloaded"):
        counts = ", ".join(f"{answer[name]} {text}" for name, text in _COUNTS if name in answer)
        print(f"reloaded: {_identities(answer.get('identities'))}; {counts}", flush=True)
        return
    errors = answer.get("errors", ())
    for error in errors:
        print(show_text(str(error)), file=sys.stderr)
    more = int(answer.get("errors_in_all", 0)) - len(errors)
    if more > 0:
        print(f"and {more} more; dtls-endpoint check tells all", file=sys.stderr)
    kept = answer.get("kept")
    stays = "what was loaded before" if kept is None else _identities(kept)
    print(f"{PROGRAM} reload: nothing was changed; the service goes on with {stays}", file=sys.stderr)


def _identities(count: object) -> str:
    return f"{count} {'identity' if count == 1 else 'identities'}"
