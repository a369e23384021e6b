"""The endpoint of these tests: a directory with its configuration, under a supervisor with its socket."""

import contextlib
import socket

from tests.namespaces import within
from tests.program.supervisor import Supervisor
from tests.restarts.meters import psk_lines

COMMAND = ("serve", "--config", "endpoint.toml")
LISTENING = "dtls"
"""The name that the socket's unit gives it."""


@contextlib.contextmanager
def supervised(directory, count, state=""):
    """A supervisor for an endpoint that knows so many meters, and where it listens; not started yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("127.0.0.1", 0))
        address, port = sock.getsockname()
        prepare(directory, count, address, port, state)
        with Supervisor(*COMMAND, cwd=directory, sockets={LISTENING: sock}) as supervisor:
            yield supervisor, (address, port)


def in_namespace(directory, namespace, address, port, state=""):
    """A supervisor for an endpoint that lives in a network namespace and makes its own socket."""
    prepare(directory, 10, address, port, state)
    return Supervisor(*COMMAND, cwd=directory, within=within(namespace))


def prepare(directory, count, address, port, state=""):
    """Write keys of so many meters, and the configuration with ``state`` as the table of that name."""
    for name, text in (("psk.txt", psk_lines(count)), ("state.key", "42" * 32 + "\n")):
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(text)
    (directory / "endpoint.toml").write_text(
        '[credentials]\npsk_file = "psk.txt"\n'
        f'[listen]\naddress = "{address}"\nport = {port}\n[forward]\nkind = "echo"\n{state}'
    )
