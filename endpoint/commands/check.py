"""``dtls-endpoint check``: look at a configuration and at all that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint import check
from endpoint.advice import with_remedy
from endpoint.commands.common import Commands, add_config, complain
from endpoint.forward.looking import forward_mistakes
from endpoint.text import show_text
from endpoint.verification import wall_clock

if TYPE_CHECKING:
    import argparse


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "check",
        help="check a configuration and its credentials",
        description="Check a configuration file and the keys, certificates, revocation lists and saved associations "
        "that it names, with permissions and dates, and say what the endpoint would do. Touches no network. Exit status 0 if all is right, else 2.",
    )
    add_config(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if not options.config.exists():
        # The name was typed just now: what is wrong with it needs no advice.
        return complain([f"{show_text(str(options.config))}: cannot be read: no such file or directory"])
    try:
        config, credentials = check.load_all(options.config)
    except check.NotRightError as error:
        return complain(map(with_remedy, error.problems))
    now = wall_clock()
    mistakes = [
        *credentials.lapses(now),
        *check.state_mistakes(options.config, config.state),
        *forward_mistakes(options.config, config.forward),
    ]
    if mistakes:
        return complain(map(with_remedy, mistakes))
    print("\n".join(check.describe(options.config, config, credentials, now)), flush=True)
    return 0
