"""Running a peer: started, waited for until it listens, listened to, and killed at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PATIENCE = 60.0
"""Seconds after which a peer counts as stuck: more than any peer itself waits, which is half of it. Only failing tests take this long."""
POLL = 0.005
"""Seconds between two looks at something that cannot be waited on."""

LONGEST_SHOWN = 6_000
"""Characters of a peer's output in the message of a failure: some repeat themselves without end."""


def wait_until(condition: Callable[[], bool], what: Callable[[], str], *, within: float = PATIENCE) -> None:
    """Look until ``condition`` holds; fail with ``what()`` at the deadline."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"within {within} s not: {what()}")
        time.sleep(POLL)


def _is_bound(port: int) -> bool:
    """Whether a UDP socket of this machine is bound to ``port``, as Linux tells in /proc."""
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            # "  sl  local_address rem_address ...": the address in hex, a colon, the port in hex.
            if line.split()[1].endswith(f":{port:04X}"):
                return True
    return False


class PeerProcess:
    """A running peer. ``output`` is all that it has printed so far, standard error included."""

    def __init__(
        self, command: Sequence[str], *, directory: Path, name: str, environment: Mapping[str, str] = {}
    ) -> None:
        self.command = list(command)
        number = len(list(directory.glob(f"{name}*.log"))) + 1
        self._log = directory / f"{name}{number}.log"
        with self._log.open("xb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **environment},
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def exit_status(self) -> int | None:
        """``None`` while it runs."""
        return self._process.poll()

    def wait_until_bound(self, port: int) -> None:
        wait_until(
            lambda: _is_bound(port) or self.exit_status is not None, lambda: f"{self} listens on port {port}"
        )
        assert self.exit_status is None, f"it ended instead of listening: {self}"

    def say(self, line: str) -> None:
        """Type a line. A peer that has gone will not hear it, and the test sees that by its output."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def end_input(self) -> None:
        """The end of its input, on which the interactive peers close their connection."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def stop(self) -> None:
        self.end_input()
        self._process.kill()
        self._process.wait()

    def __str__(self) -> str:
        ending = "running" if self.exit_status is None else f"exit status {self.exit_status}"
        output = self.output
        if len(output) > LONGEST_SHOWN:
            half = LONGEST_SHOWN // 2
            output = f"{output[:half]}\n[...]\n{output[-half:]}"
        return f"{' '.join(self.command)} ({ending}), which printed:\n{output}"


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    directory: Path,
    name: str,
    listening_on: int | None = None,
    environment: Mapping[str, str] = {},
) -> Iterator[PeerProcess]:
    """A peer for the length of a ``with`` block; entered once it listens, if it is to listen."""
    process = PeerProcess(command, directory=directory, name=name, environment=environment)
    try:
        if listening_on is not None:
            process.wait_until_bound(listening_on)
        yield process
    finally:
        process.stop()
