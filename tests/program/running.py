"""Programs under test in processes of their own, watched line by line; nothing here sleeps."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PATIENCE = 120.0
"""Seconds after which a test that hangs is ended by killing its process: several lives of a service may lie within."""


class Running:
    """A process whose two outputs are read as they come. Use it in a ``with`` statement."""

    def __init__(self, *arguments, cwd, module="endpoint", stdout=subprocess.PIPE):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen = []
        """Every line of both outputs that was read."""
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)
        self._watchdog.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._watchdog.cancel()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def line(self, pipe):
        line = pipe.readline()
        if not line:
            raise AssertionError(f"the process ended or hung; seen: {self.seen}")
        self.seen.append(line)
        return line.rstrip("\n")

    def fact(self, event):
        """The next log line of this name; others before it are passed over."""
        while True:
            fact = json.loads(self.line(self.process.stderr))
            if fact["event"] == event:
                return fact

    def output(self):
        """The next line of standard output."""
        return self.line(self.process.stdout)

    def listening(self):
        """Address and port, once it listens."""
        fact = self.fact("listening")
        return fact["address"], fact["port"]

    def signal(self, name):
        self.process.send_signal(getattr(signal, name))

    def end(self, name="SIGTERM"):
        """Stop it; the exit status. The outputs are read to their end."""
        if self.process.poll() is None:
            self.signal(name)
        return self.finished()

    def finished(self):
        """Wait for its end; the exit status."""
        out, error = self.process.communicate()
        self.seen += [out or "", error]
        return self.process.returncode

    @property
    def everything(self):
        return "".join(self.seen)
