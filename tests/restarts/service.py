"""The endpoint of these tests: a directory with its configuration, under a supervisor with its socket."""

import contextlib
import socket

from tests.program.supervisor import Supervisor
from tests.restarts.meters import psk_lines

LISTENING = "dtls"
"""The name that the socket's unit gives it."""


@contextlib.contextmanager
def supervised(directory, count):
    """A supervisor for an endpoint that knows so many meters, and where it listens; not started yet."""
    psk_file = directory / "psk.txt"
    psk_file.touch(mode=0o600)
    psk_file.write_text(psk_lines(count))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("127.0.0.1", 0))
        configure(directory, sock.getsockname()[1])
        with Supervisor(
            "serve", "--config", "endpoint.toml", cwd=directory, sockets={LISTENING: sock}
        ) as supervisor:
            yield supervisor, sock.getsockname()


def configure(directory, port, state=""):
    """Write the configuration; ``state`` is the table of that name."""
    (directory / "endpoint.toml").write_text(
        f'[credentials]\npsk_file = "psk.txt"\n[listen]\nport = {port}\n[forward]\nkind = "echo"\n{state}'
    )
