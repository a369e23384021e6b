"""The pipe between the program and the processes it measures, as both ends see it.

A measured process says its UDP port once, then answers questions about itself: how much CPU it has
used, and how much memory it holds. Answering costs it some 50 µs; batches are made long enough that
this does not show.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

Pipe = Connection

ANSWER_TIMEOUT = 20.0
"""Seconds until a measured process that says nothing is given up. Starting one takes about 1 s."""
SETTLE_INTERVAL = 0.02
"""Seconds between two looks at a process that is expected to come to rest."""
SETTLED_CPU = 0.001
"""Seconds of CPU in one interval below which a process counts as at rest."""
SETTLE_LOOKS = 100
"""Looks after which a process that does not come to rest is measured all the same."""


def resident_bytes() -> int:
    """Memory of this process that is in RAM, after giving back what is free."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # not glibc: what was freed stays in the figure
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hear(pipe: Pipe) -> Any:
    """The next question; ``"stop"`` also where nobody is left to ask."""
    try:
        return pipe.recv()
    except EOFError:
        return "stop"


async def answer(pipe: Pipe, facts: Callable[[], dict[str, Any]]) -> None:
    """Answer questions until told to stop. For the measured process, inside trio."""
    while True:
        await trio.lowlevel.wait_readable(pipe.fileno())
        match hear(pipe):
            case "cpu":
                pipe.send(time.process_time())
            case "memory":
                pipe.send(resident_bytes())
            case "facts":
                pipe.send(facts())
            case _:
                return


class Measured:
    """A process that is measured, as the program sees it. A context manager; leaving it ends the process."""

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        # "spawn": the measured process shares nothing with the load generator, not even warm caches.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *args), daemon=True)
        # Ctrl-C is for the program, which then ends the measured processes in order.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, interrupt)
        theirs.close()

    def ask(self, question: object) -> Any:
        self.tell(question)
        return self.hear()

    def tell(self, question: object) -> None:
        self._pipe.send(question)

    def hear(self, timeout: float = ANSWER_TIMEOUT) -> Any:
        if not self._pipe.poll(timeout):
            raise TimeoutError(f"{self._process.name} gave no answer within {timeout:.0f} s")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(1)
            raise RuntimeError(f"{self._process.name} ended, status {self._process.exitcode}") from None

    def cpu(self) -> float:
        """Seconds of CPU, user and system, that the process has used so far."""
        return float(self.ask("cpu"))

    def settled_cpu(self) -> float:
        """The same, once the process has nothing left to do."""
        before = self.cpu()
        for _ in range(SETTLE_LOOKS):
            time.sleep(SETTLE_INTERVAL)
            after = self.cpu()
            if after - before < SETTLED_CPU:
                return after
            before = after
        return before

    def memory(self) -> int:
        """Bytes of memory in RAM."""
        return int(self.ask("memory"))

    def facts(self) -> dict[str, Any]:
        return dict(self.ask("facts"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._pipe.send("stop")
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
