"""A real NAT: three network namespaces of this machine, and nftables in the middle one.

::

    device 10.0.0.2 ──── 10.0.0.1  router  192.0.2.1 ──── 192.0.2.2 endpoint
                            masquerade to a port of a range
"""

import contextlib
import itertools
import os
import socket

import pytest
import trio

from tests.conftest import IN_CI, require_program
from tests.namespaces import inside, join, run, within

ROUTER_INSIDE = "10.0.0.1"
DEVICE = "10.0.0.2"
ROUTER_OUTSIDE = "192.0.2.1"
ENDPOINT = "192.0.2.2"
FIRST_PORT = 20_000
PORTS = 100
"""In each range from which the router takes ports. No range is used twice, so no rebinding gives the same."""

_numbers = itertools.count()


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
                run("ip", "netns", "add", name)
                # The virtual Ethernet in it goes with it.
                undo.callback(run, "ip", "netns", "delete", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            self._join(self.device, DEVICE, "inside", ROUTER_INSIDE)
            self._join(self.endpoint, ENDPOINT, "outside", ROUTER_OUTSIDE)
            run("ip", "-n", self.device, "route", "add", "default", "via", ROUTER_INSIDE)
            run(*within(self.router), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
            self._masquerade()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def _join(self, namespace, address, router_end, router_address):
        join(namespace, self.router, router_end)
        for where, link, at in ((namespace, "eth0", address), (self.router, router_end, router_address)):
            run("ip", "-n", where, "address", "add", f"{at}/24", "dev", link)
            run("ip", "-n", where, "link", "set", link, "up")

    def rebind(self):
        """The router forgets all it has translated, and translates to other ports from now on."""
        self._rebindings += 1
        self._masquerade()
        run(*within(self.router), "conntrack", "--flush")

    def _masquerade(self):
        first = FIRST_PORT + PORTS * self._rebindings
        # "add table" and "flush table" in one transaction: the rule is replaced, whether there was one or not.
        rules = f"""
            add table ip nat
            flush table ip nat
            add chain ip nat out {{ type nat hook postrouting priority srcnat; }}
            add rule ip nat out oifname "outside" ip protocol udp masquerade to :{first}-{first + PORTS - 1} random
        """
        run(*within(self.router), "nft", "--file", "-", text=rules)

    def lead_home(self, port):
        """In the device's namespace 127.0.0.1 and this port are the endpoint's: for clients that know no other."""
        run(*within(self.device), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
        rules = f"""
            add table ip nat
            add chain ip nat local {{ type nat hook output priority -100; }}
            add rule ip nat local ip daddr 127.0.0.1 udp dport {port} dnat to {ENDPOINT}
            add chain ip nat out {{ type nat hook postrouting priority srcnat; }}
            add rule ip nat out oifname "eth0" ip saddr 127.0.0.1 masquerade
        """
        run(*within(self.device), "nft", "--file", "-", text=rules)

    @staticmethod
    def socket(namespace, family=socket.AF_INET):
        """A UDP socket that lives in a namespace, to be used from here."""
        return inside(namespace, lambda: socket.socket(family, socket.SOCK_DGRAM))


async def in_namespace(namespace, function):
    """Run an async ``function`` in a thread that is in a namespace, with a trio of its own; what it returns."""
    return await trio.to_thread.run_sync(
        inside, namespace, lambda: trio.run(function), abandon_on_cancel=True
    )


def require_namespaces():
    """Skip the test where there can be none, fail it in CI."""
    for program in ("ip", "nft", "conntrack"):
        require_program(program)
    try:
        with Namespaces():
            pass
    except RuntimeError as reason:
        (pytest.fail if IN_CI else pytest.skip)(f"no network namespaces with a NAT: {reason}")
