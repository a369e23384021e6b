"""A real Redis or Valkey server for tests: on a UNIX socket, in memory only, stopped and started at will."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from typing import Any

from tests.conftest import require_program

PATIENCE = 300.0
"""Seconds after which a test that hangs is ended by killing the server. All tests of a module may share one."""


class ValkeyServer:
    """Use it in a ``with`` statement; it is running then. ``more`` are options of its configuration."""

    def __init__(self, directory, *more):
        self.program = shutil.which("valkey-server") or require_program("redis-server")
        self.socket = directory / "v.sock"
        self.directory = directory
        self.more = more
        self.process: Any = None
        self._watchdog: Any = None

    @property
    def address(self):
        return f"unix:{self.socket}"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Start it; it takes connections when this returns."""
        options = ["--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        options += ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(self.directory)]
        self.process = subprocess.Popen(
            [self.program, *options, *self.more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)
        self._watchdog.start()
        said = []
        # Redis 7.0 names the socket here, later ones and Valkey the kind.
        while not re.search(
            r"ready to accept connections (unix|at /)", line := self.process.stdout.readline(), re.IGNORECASE
        ):
            said.append(line)
            if not line:
                self.stop()
                raise AssertionError(f"the server does not start: {said}")

    def stop(self):
        """Kill it, as a crash or the kernel would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self._watchdog.cancel()
            self.process = None

    def freeze(self):
        """It keeps its connections and says nothing any more."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def do(self, *command):
        """Have a command carried out; its answer. An error is raised as ValueError."""
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(self.socket))
            client.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
            with client.makefile("rb") as answers:
                return _answer(answers)

    def keys(self, identity, prefix=b"psk:", **fields):
        """Give ``identity`` these fields and no others."""
        self.do("DEL", prefix + identity)
        if fields:
            self.do("HSET", prefix + identity, *(part for field in fields.items() for part in field))


def _answer(answers):
    line = answers.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    match kind:
        case b"+":
            return rest
        case b"-":
            raise ValueError(rest.decode())
        case b":":
            return int(rest)
        case b"$":
            return None if rest == b"-1" else answers.read(int(rest) + 2)[:-2]
        case b"*":
            return [_answer(answers) for _ in range(int(rest))]
    raise AssertionError(line)
