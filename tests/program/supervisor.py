"""What systemd does for a service, as far as the service can tell, and no more; see :class:`Supervisor`.

The parts of the protocols, from systemd's documentation (sd_listen_fds, sd_notify, FILE_DESCRIPTOR_STORE):

    LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES    descriptors from 3 on: the listening sockets, then what is
                                              stored, each with its name
    NOTIFY_SOCKET                             datagrams of NAME=value lines come from the service
    FDSTORE=1 FDNAME=name                     keep the descriptors that come with this datagram
    FDSTOREREMOVE=1 FDNAME=name               forget those of this name
    BARRIER=1                                 close the descriptor that comes with it: all before is done

What is stored stays stored until it is removed, however often the service is started, and also if it is
killed. So a service that takes state out of the store has to remove it before it uses it.
"""

import array
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PATIENCE = 60.0
"""Seconds after which something that a test waits for has failed to happen."""
POLL = 0.005
"""Seconds between two looks at what cannot be waited on."""
FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START."""
OUT_OF_THE_WAY = 100
"""Descriptors kept for the service are numbered from here on, so that none is where another has to go."""
CAUGHT_UP = b"CAUGHT_UP=1"
"""What the supervisor tells itself: all that was said before has been heard when this comes."""
MAX_STORED = 64
"""FileDescriptorStoreMax=; what comes beyond is closed."""


class Supervisor:
    """Runs one service, again and again, with the same sockets. Use it in a ``with`` statement.

    ``sockets`` maps names to bound sockets: they are the supervisor's, so datagrams that come while the
    service is down wait in their buffers. What the service writes goes to ``output`` and ``errors``, files
    of which nobody has to read: its log never blocks it. ``within`` is put before the command; it has to
    become that (``ip netns exec`` does), not to start it.
    """

    def __init__(self, *arguments, cwd, sockets=None, module="endpoint", environment=None, within=()):
        self._command = [*within, sys.executable, "-m", module, *map(str, arguments)]
        self._cwd = Path(cwd)
        self._environment = environment or {}
        self._sockets = [(name, _keep(one.fileno())) for name, one in (sockets or {}).items()]
        self.output = self._cwd / "supervised.out"
        self.errors = self._cwd / "supervised.err"
        self._read_from = 0
        self.stored = []
        """(name, descriptor) of everything in the descriptor store."""
        self.messages = []
        """What the service has said since it was last started: dicts."""
        self._process = None
        self._heard = threading.Condition()
        self._caught_up = threading.Event()
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # No abstract name, which a service in another network namespace could not reach; and not below pytest's
        # temporary directories, whose names may be too long for a socket.
        self._directory = tempfile.TemporaryDirectory(prefix="notify")
        self._notified.bind(f"{self._directory.name}/socket")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._notified.shutdown(socket.SHUT_RD)
        self._listener.join()
        self._notified.close()
        self._directory.cleanup()
        for _, descriptor in (*self._sockets, *self.stored):
            os.close(descriptor)

    # --- the service's life ---

    def start(self):
        """Start the service; it is running but perhaps not ready when this returns."""
        assert self._process is None or self.ended, "it is running"
        with self._heard:
            self.messages = []
            handed = [*self._sockets, *self.stored]
        self._read_from = self.errors.stat().st_size if self.errors.exists() else 0
        # bash knows its process id before it becomes the service, and can move descriptors.
        moves = "".join(f" {at}<&{kept} {kept}<&-" for at, (_, kept) in enumerate(handed, FIRST_DESCRIPTOR))
        listen = {
            "LISTEN_FDS": str(len(handed)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in handed),
        }
        with self.output.open("ab") as out, self.errors.open("ab") as error:
            self._process = subprocess.Popen(
                ["bash", "-c", f'export LISTEN_PID=$$; exec "$@"{moves}', "bash", *self._command],
                cwd=self._cwd,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path.cwd()),
                    "NOTIFY_SOCKET": self._notified.getsockname(),
                    **(listen if handed else {}),
                    **self._environment,
                },
                pass_fds=[kept for _, kept in handed],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
            )

    @property
    def process(self):
        """The last that was started."""
        assert self._process is not None, "it was never started"
        return self._process

    def signal(self, name):
        self.process.send_signal(getattr(signal, name))

    @property
    def ended(self):
        return self.process.poll() is not None

    def wait(self):
        """Wait for its end, and until all that it has said and stored by then is there; the exit status."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end; {self.describe()}") from None
        self.catch_up()
        return status

    def catch_up(self):
        """Return when everything that the service has sent so far is heard: the thread that listens may be late."""
        self._caught_up.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(CAUGHT_UP, self._notified.getsockname())
        assert self._caught_up.wait(PATIENCE), "nobody listens"

    def stop(self, name="SIGTERM"):
        """Ask it to end, and wait for that; the exit status."""
        self.signal(name)
        return self.wait()

    def restart(self, name="SIGTERM"):
        """Stop it and start it again; returns the exit status of the run that ended."""
        status = self.stop(name)
        self.start()
        return status

    # --- what it says ---

    def has_said(self, name, value="1"):
        """Whether a notification, such as ``READY=1``, has come since it was started."""
        with self._heard:
            return any(message.get(name) == value for message in self.messages)

    def wait_until_said(self, name, value="1"):
        self.wait_until(lambda: self.has_said(name, value), f"it says {name}={value}")

    def facts(self, event=None, *, ever=False):
        """The log lines of this run so far, as dicts (of this event, where given); ``ever``: of all runs."""
        if not self.errors.exists():
            return []
        with self.errors.open("rb") as log:
            log.seek(0 if ever else self._read_from)
            lines = log.read().splitlines(keepends=True)
        facts = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]
        return [fact for fact in facts if event is None or fact["event"] == event]

    def fact(self, event):
        """The last log line of this name in this run, waited for."""
        self.wait_until(lambda: self.facts(event), f"it logs {event}")
        return self.facts(event)[-1]

    def wait_until(self, condition, what):
        """Look until ``condition`` holds; fail when the service has ended without, or patience has."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = self.ended
            if condition():
                return
            assert not ended, f"it ended before {what}; {self.describe()}"
            assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}; {self.describe()}"
            time.sleep(POLL)

    def describe(self):
        """For the message of a failed test."""
        said = self.errors.read_bytes()[self._read_from :] if self.errors.exists() else b""
        return (
            f"status {self.process.poll()}, stored {[name for name, _ in self.stored]}, "
            f"notified {self.messages[-10:]}, log:\n{said[-4000:].decode(errors='replace')}"
        )

    # --- the manager's side of NOTIFY_SOCKET ---

    def _listen(self):
        room = socket.CMSG_SPACE(MAX_STORED * array.array("i").itemsize)
        while True:
            data, ancillary, _, _ = self._notified.recvmsg(65_536, room, socket.MSG_CMSG_CLOEXEC)
            if not data:
                return
            if data == CAUGHT_UP:
                self._caught_up.set()
                continue
            message = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
            descriptors = array.array("i")
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
            with self._heard:
                self._obey(message, list(descriptors))
                self.messages.append(message)

    def _obey(self, message, descriptors):
        name = message.get("FDNAME", "stored")
        if message.get("FDSTOREREMOVE") == "1":
            for one, descriptor in self.stored:
                if one == name:
                    os.close(descriptor)
            self.stored = [(one, descriptor) for one, descriptor in self.stored if one != name]
        elif message.get("FDSTORE") == "1":
            for descriptor in descriptors:
                # As systemd: the same file is stored once.
                known = any(_same_file(descriptor, other) for _, other in self.stored)
                if len(self.stored) < MAX_STORED and not known:
                    self.stored.append((name, _keep(descriptor)))
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(descriptor):
    """A copy out of the way of the numbers that a service expects, closed in every program but that."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, OUT_OF_THE_WAY)


def _same_file(one, other):
    one, other = os.fstat(one), os.fstat(other)
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
