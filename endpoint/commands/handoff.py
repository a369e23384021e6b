"""``dtls-endpoint handoff``: have the running service end, and leave its associations to the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.commands.common import Commands, add_config, ask_service
from endpoint.text import show_text

if TYPE_CHECKING:
    import argparse

HANDOFF_PATIENCE = 60.0
"""Seconds for a service to hand over; 100,000 associations take less than 20."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "handoff",
        help="have the running service hand over to the next one, and end",
        description="Have the running service hand all associations over to the next one, as SIGTERM would, and end. "
        "Needs state.admin_socket. Exit status 1 if no service answers, or it has nothing to hand over to and goes on.",
    )
    add_config(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    answer = ask_service(options, "handoff", patience=HANDOFF_PATIENCE)
    count, to = answer.get("associations"), show_text(str(answer.get("to")))
    print(f"handed over {count} {'association' if count == 1 else 'associations'} to {to}", flush=True)
    return 0
