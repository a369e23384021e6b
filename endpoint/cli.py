"""The command line: ``dtls-endpoint COMMAND``; see ``endpoint.commands`` for each.

Exit status 0: done. 1: it failed (port taken, no connection). 2: the command line or a configuration
or key file is wrong; each mistake is one line on standard error. 130: interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from typing import TYPE_CHECKING

from endpoint.commands import capture, check, connect, doctor, handoff, keys, reload, serve, status
from endpoint.commands.common import PROGRAM, CommandFailed, complain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = (serve, check, reload, status, doctor, keys, handoff, capture, connect)
"""In the order in which ``--help`` tells of them."""
INTERRUPTED = 130
"""What a shell makes of SIGINT: 128 + 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit status."""
    _keep_standard_descriptors()
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
    except CommandFailed as failure:
        complain(failure.lines)
        status = failure.status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseExceptionGroup as group:
        # trio wraps it where it struck inside a nursery.
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        status = INTERRUPTED
    except BrokenPipeError:
        status = 1
    return status if _flushed() else status or 1


def _flushed() -> bool:
    """Flush standard output; False = nobody reads it, and the interpreter must not try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _keep_standard_descriptors() -> None:
    """Put /dev/null where a standard descriptor is closed, or the next socket would become the output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Terminate DTLS for a fleet of devices.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or configuration.",
    )
    try:
        version = importlib.metadata.version("sansdtls")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
