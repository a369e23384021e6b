"""A real NAT: three network namespaces of this machine, and nftables in the middle one.

::

    device 10.0.0.2 ──── 10.0.0.1  router  192.0.2.1 ──── 192.0.2.2 endpoint
                            masquerade to a port of a range
"""

import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import trio

from tests.conftest import IN_CI, require_program

CLONE_NEWNET = 0x40000000
ROUTER_INSIDE = "10.0.0.1"
DEVICE = "10.0.0.2"
ROUTER_OUTSIDE = "192.0.2.1"
ENDPOINT = "192.0.2.2"
FIRST_PORT = 20_000
PORTS = 100
"""In each range from which the router takes ports. No range is used twice, so no rebinding gives the same."""

_numbers = itertools.count()


class Impossible(Exception):
    """This machine cannot have such networks; says why."""


class Namespaces:
    """Use it in a ``with`` statement; at its end all is gone. The names are this process's own."""

    def __init__(self):
        stem = f"dtls-{os.getpid()}-{next(_numbers)}"
        self.device, self.router, self.endpoint = (f"{stem}-{name}" for name in ("dev", "nat", "end"))
        self._rebindings = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            for name in (self.device, self.router, self.endpoint):
                _run("ip", "netns", "add", name)
                # The virtual Ethernet in it goes with it.
                undo.callback(_run, "ip", "netns", "delete", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            self._join(self.device, DEVICE, "inside", ROUTER_INSIDE)
            self._join(self.endpoint, ENDPOINT, "outside", ROUTER_OUTSIDE)
            _run("ip", "-n", self.device, "route", "add", "default", "via", ROUTER_INSIDE)
            _run(*self.within(self.router), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
            self._masquerade()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def _join(self, namespace, address, router_end, router_address):
        _run(
            "ip",
            "-n",
            namespace,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            router_end,
            "netns",
            self.router,
        )
        for where, link, at in ((namespace, "eth0", address), (self.router, router_end, router_address)):
            _run("ip", "-n", where, "address", "add", f"{at}/24", "dev", link)
            _run("ip", "-n", where, "link", "set", link, "up")

    @staticmethod
    def within(namespace):
        """What to put before a command that is to run in a namespace."""
        return ("ip", "netns", "exec", namespace)

    def rebind(self):
        """The router forgets all it has translated, and translates to other ports from now on."""
        self._rebindings += 1
        self._masquerade()
        _run(*self.within(self.router), "conntrack", "--flush")

    def _masquerade(self):
        first = FIRST_PORT + PORTS * self._rebindings
        # "add table" and "flush table" in one transaction: the rule is replaced, whether there was one or not.
        rules = f"""
            add table ip nat
            flush table ip nat
            add chain ip nat out {{ type nat hook postrouting priority srcnat; }}
            add rule ip nat out oifname "outside" ip protocol udp masquerade to :{first}-{first + PORTS - 1} random
        """
        _run(*self.within(self.router), "nft", "--file", "-", text=rules)

    def lead_home(self, port):
        """In the device's namespace 127.0.0.1 and this port are the endpoint's: for clients that know no other."""
        _run(*self.within(self.device), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
        rules = f"""
            add table ip nat
            add chain ip nat local {{ type nat hook output priority -100; }}
            add rule ip nat local ip daddr 127.0.0.1 udp dport {port} dnat to {ENDPOINT}
            add chain ip nat out {{ type nat hook postrouting priority srcnat; }}
            add rule ip nat out oifname "eth0" ip saddr 127.0.0.1 masquerade
        """
        _run(*self.within(self.device), "nft", "--file", "-", text=rules)

    def socket(self, namespace, family=socket.AF_INET):
        """A UDP socket that lives in a namespace, to be used from here."""
        made = []

        def make():
            # A thread of its own: what it enters, it alone is in, and it ends in there.
            if _enter(namespace):
                made.append(socket.socket(family, socket.SOCK_DGRAM))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if not made:
            raise Impossible(f"the namespace {namespace} cannot be entered")
        return made[0]


def _enter(namespace):
    libc = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / namespace).open("rb") as descriptor:
        return libc.setns(descriptor.fileno(), CLONE_NEWNET) == 0


async def in_namespace(namespace, function):
    """Run an async ``function`` in a thread that is in a namespace, with a trio of its own; what it returns."""
    outcome = []
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def run():
        try:
            assert _enter(namespace)
            outcome.append(trio.run(function))
        except BaseException as error:
            outcome.append(error)
        token.run_sync_soon(done.set)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    await done.wait()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def require_namespaces():
    """Skip the test where there can be none, fail it in CI."""
    for program in ("ip", "nft", "conntrack"):
        require_program(program)
    try:
        with Namespaces():
            pass
    except Impossible as reason:
        (pytest.fail if IN_CI else pytest.skip)(f"no network namespaces with a NAT: {reason}")


def _run(*command, text=None):
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise Impossible(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
