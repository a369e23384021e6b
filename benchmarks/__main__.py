"""``python -m benchmarks``: this project's endpoint beside trio's DTLSEndpoint, in one run.

Servers run in processes of their own, all up at once, and are measured in turn, run after run
(A B C A B C ...), so that whatever else the machine does falls on all of them alike. Only ratios
from one run are comparable between machines. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import attrs

from benchmarks import plan, report
from benchmarks.harness import FULL, QUICK, Scale
from benchmarks.load import LoadFailed

if TYPE_CHECKING:
    from collections.abc import Sequence


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, for a first look")
    parser.add_argument(
        "--repeat", type=int, metavar="N", help=f"runs (default {FULL.repeat}, quick {QUICK.repeat})"
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help=f"datagrams in a burst (default {FULL.window})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(argv)


def _scale(arguments: argparse.Namespace) -> Scale:
    scale = QUICK if arguments.quick else FULL
    if arguments.repeat is not None:
        scale = attrs.evolve(scale, repeat=max(1, arguments.repeat))
    if arguments.window is not None:
        window = min(max(1, arguments.window), FULL.window)
        scale = attrs.evolve(scale, window=window, echo_bursts=scale.echo_bursts * scale.window // window)
    return scale


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    scale = _scale(arguments)
    facts = report.environment()  # before the runs add their own load
    try:
        series = plan.run(scale, _progress)
    except (LoadFailed, TimeoutError, RuntimeError) as error:
        print(f"\nnothing to report: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _progress("")
    if arguments.json:
        print(report.as_json(scale, facts, series, plan.NOTE))
    else:
        print(report.heading(scale, facts))
        print(report.table(series))
        print("\n" + plan.NOTE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
