"""``dtls-endpoint status``: how the running service is; and who may connect, with which keys."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from endpoint.commands.common import WRONG_USE, CommandFailed, Commands, add_config, ask_service
from endpoint.commands.views import identity_lines, status_lines
from endpoint.text import json_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

REFRESH = 1.0
"""Seconds between two looks with ``--watch``."""
PAGE = 500
"""Identities asked for at once."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "status",
        help="how the running service is",
        description="Say how the running service is: listeners, associations, handshakes of the last minutes by result, refusals, "
        "key store, sinks. Needs state.admin_socket. Exit status 0 if it is ready, 1 if it is not, or no service answers.",
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, whose shape is documented")
    parser.add_argument(
        "--identities",
        action="store_true",
        help="who may connect: for each identity the fingerprints of its keys, which it used last and when, and its "
        "live and frozen associations; with --json one object a line",
    )
    parser.add_argument("--watch", action="store_true", help="look again every second, until interrupted")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.identities and options.watch:
        raise CommandFailed(WRONG_USE, "status: --identities and --watch do not go together")
    if options.identities:
        return _identities(options)
    if options.watch and not options.json and sys.stdout is not None and sys.stdout.isatty():
        return _live(options)
    while True:
        answer = ask_service(options, "status")
        text = json.dumps(answer, indent=None if options.watch else 2) if options.json else _text(answer)
        print(text, flush=True)
        if not options.watch:
            return 0 if answer["ready"] else 1
        time.sleep(REFRESH)


def _text(answer: dict[str, Any]) -> str:
    return "\n".join(status_lines(answer))


def _identities(options: argparse.Namespace) -> int:
    for entry in _all_identities(options):
        if options.json:
            print(json_line(entry))
        else:
            print(*identity_lines(entry), sep="\n")
    return 0


def _all_identities(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    after: dict[str, Any] = {}
    while True:
        page = ask_service(options, "identities", limit=PAGE, **after)
        yield from page["identities"]
        if "next" not in page:
            return
        after = {"after": page["next"]}


def _live(options: argparse.Namespace) -> int:
    # Here: what it loads takes a while, and nobody else needs it.
    from rich.live import Live  # noqa: PLC0415

    from endpoint.commands.tables import status_table  # noqa: PLC0415

    with Live(status_table(ask_service(options, "status")), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(REFRESH)
            try:
                live.update(status_table(ask_service(options, "status")), refresh=True)
            except CommandFailed as failure:
                # It may be restarting; what was is better than nothing.
                live.update("\n".join([*failure.lines, "", "trying again"]), refresh=True)
