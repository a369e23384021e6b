"""Ports that are chosen before somebody binds them: free, and still free when that happens.

A port that the kernel has just chosen may be given to the next socket of any other program, such as another process of these
tests, before the one that it is for is there. So these are none that the kernel chooses.
"""

import contextlib
import os
import random
import re
import socket
from pathlib import Path

LOWEST = 12_000
"""Below are the ports of well-known services, also of those under test."""
SHARES = 8
"""Processes of one run of the tests that have ports of their own; with more, two share."""


def _chosen_by_the_kernel() -> int:
    """The first port that Linux gives to a socket that has asked for any."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])


def _share() -> range:
    """The ports of this process: two that look at the same moment must not find the same one."""
    number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % SHARES
    # Where the kernel chooses among nearly all ports there is nothing better than one of these.
    end = _chosen_by_the_kernel() if _chosen_by_the_kernel() > 2 * LOWEST else 65_536
    size = (end - LOWEST) // SHARES
    return range(LOWEST + number * size, LOWEST + (number + 1) * size)


def free_port(*, neighbours: int = 0, kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    """A port, by default of UDP, that nothing on this machine uses; the ``neighbours`` ports above it are free too.

    A random one, as another run of the tests may be under way.
    """
    share = _share()
    while True:
        port = random.choice(share[: len(share) - neighbours])
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for one in range(port, port + neighbours + 1):
                probes.enter_context(socket.socket(socket.AF_INET, kind)).bind(("", one))
            return port
