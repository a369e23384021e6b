"""Network namespaces of this machine: what a simulated NAT, and the hosts of a lab, are in."""

import ctypes
import os
import subprocess
import threading
from pathlib import Path

CLONE_NEWNET = 0x40000000


def run(*command, text=None):
    """Run a program; what it printed. The error has what it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def within(namespace):
    """What to put before a command that is to run in a namespace."""
    return ("ip", "netns", "exec", namespace)


def join(namespace, other, end):
    """Lay a cable from ``eth0`` of a namespace to the interface ``end`` of another one; it goes with either."""
    run(*f"ip -n {namespace} link add eth0 type veth peer {end} netns {other}".split())


def enter(namespace):
    """Take the calling thread into a namespace, for the rest of its life."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / namespace).open("rb") as descriptor:
        if libc.setns(descriptor.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)


def inside(namespace, function):
    """What ``function`` returns, or raises, in a namespace; sockets that it makes stay there."""
    outcome = []

    def call():
        try:
            enter(namespace)
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    # What enters is in there to its end.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
