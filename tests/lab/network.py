"""The network of a lab: a namespace with a bridge for the controller, and one namespace for each host."""

import contextlib

from tests.lab import clean
from tests.namespaces import join, run

PREFIX4, PREFIX6 = "10.77.0", "fd77::"
CONTROLLER = f"{PREFIX4}.1"


class Network:
    """Use it in a ``with`` statement."""

    def __init__(self, stem):
        self._stem = stem
        self.controller = f"{stem}-ctl"
        self._undo = contextlib.ExitStack()

    def __enter__(self):
        self._namespace(self.controller)
        self._ip("link", "add", "br0", "type", "bridge")
        self._ip("addr", "add", f"{CONTROLLER}/24", "dev", "br0")
        self._ip("addr", "add", f"{PREFIX6}1/64", "dev", "br0", "nodad")
        self._ip("link", "set", "br0", "up")
        return self

    def __exit__(self, *_):
        self._undo.close()

    def add(self, name, number):
        """A namespace for a host at the addresses with this last number; its name."""
        namespace = f"{self._stem}-{name}"
        self._namespace(namespace)
        # Names of interfaces are short.
        outside = f"v{number}"
        join(namespace, self.controller, outside)
        self._ip("link", "set", outside, "master", "br0", "up")
        run("ip", "-n", namespace, "addr", "add", f"{PREFIX4}.{number}/24", "dev", "eth0")
        run("ip", "-n", namespace, "addr", "add", f"{PREFIX6}{number}/64", "dev", "eth0", "nodad")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        run("ip", "-n", namespace, "route", "add", "default", "via", CONTROLLER)
        return namespace

    def unplug(self, number, *, plugged=False):
        """Take the cable of a host out of the bridge, or put it in again."""
        self._ip("link", "set", f"v{number}", "up" if plugged else "down")

    def _namespace(self, name):
        run("ip", "netns", "add", name)
        self._undo.callback(run, "ip", "netns", "delete", name)
        # Such as the controller's shared SSH connections, which outlive the play.
        self._undo.callback(clean.kill, lambda: clean.inside(name))
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _ip(self, *arguments):
        run("ip", "-n", self.controller, *arguments)
