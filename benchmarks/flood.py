"""``python -m benchmarks.flood``: forged hellos, many times more than the server can handshake, and honest devices.

First the CPU of a handshake is measured; what a core could do in a second is the capacity. Then the devices are
watched in peace, and again while hellos from random addresses come at ``--times`` the capacity: half of the
devices send readings on live associations and have them echoed, half of them handshake, leave and begin again. Server,
flood and devices are three processes. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

import trio

from benchmarks import flooding, report
from benchmarks.control import Measured
from benchmarks.harness import FULL, QUICK
from benchmarks.plan import ENGINE_CCM_8

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Running

MILLISECONDS = 1e3


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--times", type=float, default=20.0, help="the flood, in capacities (default 20)")
    parser.add_argument("--rate", type=float, help="the flood, in hellos a second, instead of --times")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each part takes (default 20)")
    parser.add_argument(
        "--devices", type=int, default=100, help="honest ones, half of them live (default 100)"
    )
    parser.add_argument("--every", type=float, default=0.1, help="seconds between readings (default 0.1)")
    return parser.parse_args(argv)


def _watch(server: Running, flood: Measured, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """One part: what the devices saw, what the server counted and used, how many hellos were sent."""
    before, used = server.process.facts(), server.process.cpu()

    def ready() -> None:
        if rate:
            flood.tell((server.port, rate, options.seconds))

    half = options.devices // 2

    async def devices() -> tuple[flooding.Seen, flooding.Seen]:
        return await flooding.honest(
            server.port,
            live=half,
            handshaking=options.devices - half,
            every=options.every,
            seconds=options.seconds,
            ready=ready,
        )

    readings, handshakes = trio.run(devices)
    sent = int(flood.hear(options.seconds + 60)) if rate else 0
    after = server.process.facts()
    return {
        "readings": readings,
        "handshakes": handshakes,
        "hellos": sent,
        "answered": after["server"]["cookies_sent"] - before["server"]["cookies_sent"],
        "dropped": {
            stage: count - before["datagrams_dropped"].get(stage, 0)
            for stage, count in after["datagrams_dropped"].items()
        },
        "lost by the kernel": after["sockets"][0]["dropped_by_kernel"]
        - before["sockets"][0]["dropped_by_kernel"],
        "cpu": server.process.cpu() - used,
    }


def _line(name: str, seen: flooding.Seen) -> str:
    times = (seen.percentile(part) * MILLISECONDS for part in (0.5, 0.99, 1.0))
    shown = "".join("         -" if math.isnan(one) else f"{one:10.1f}" for one in times)
    return f"  {name:<12}{seen.begun:8,}{seen.lost:8,}{shown}"


def _print(title: str, part: dict[str, Any], seconds: float) -> None:
    print(f"\n{title:<14}{'begun':>8}{'lost':>8}{'median':>10}{'99 %':>10}{'longest':>10}   [ms]")
    print(_line("readings", part["readings"]))
    print(_line("handshakes", part["handshakes"]))
    if part["hellos"]:
        print(
            f"  forged hellos: {part['hellos']:,}, {part['hellos'] / seconds:,.0f} a second; "
            f"hellos answered: {part['answered']:,}"
        )
        print(f"  dropped by the endpoint: {part['dropped']}, by the kernel: {part['lost by the kernel']:,}")
    print(f"  CPU of the server: {part['cpu']:.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    facts = report.environment()
    with Measured(flooding.flood, 1) as flood, ENGINE_CCM_8.start() as server:
        flood.ask("start")
        server.handshake(QUICK)
        microseconds = server.handshake(FULL)
        capacity = 1e6 / microseconds
        rate = options.rate or options.times * capacity
        buffer = server.process.facts()["sockets"][0]["receive_buffer"]
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
        print(f"{ENGINE_CCM_8.name}, {ENGINE_CCM_8.suite}, receive buffer {buffer:,} bytes")
        print(f"a handshake takes {microseconds:.0f} us of CPU: capacity {capacity:,.0f} a second")
        _print("in peace", _watch(server, flood, 0.0, options), options.seconds)
        title = f"{rate / capacity:.0f} times"
        _print(title, _watch(server, flood, rate, options), options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
