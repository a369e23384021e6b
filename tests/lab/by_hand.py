"""An endpoint that no role has deployed: this repository's program in the namespace of a host, supervised by the test.

With it the lab's own counting is tried, and whatever needs an endpoint but not its deployment.
"""

import contextlib
import ctypes
import secrets
import socket
import threading
from pathlib import Path

from tests.lab.network import within
from tests.program.supervisor import Supervisor

CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE = 33
"""Of <asm/socket.h>; Python has no name for it."""


def enter(namespace):
    """Take the calling thread into a network namespace, for the rest of its life."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / namespace).open("rb") as descriptor:
        assert libc.setns(descriptor.fileno(), CLONE_NEWNET) == 0, ctypes.get_errno()


def socket_within(namespace, port):
    """A UDP socket bound in a network namespace, usable from any thread."""
    made = []

    def make():
        enter(namespace)
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # As a socket unit asks for: what devices send during a restart waits in it.
        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        one.bind(("0.0.0.0", port))  # noqa: S104 - all of a namespace that has one address
        made.append(one)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class HandMadeEndpoint:
    """An echo service with a key for each device; use it in a ``with`` statement.

    Its socket is the test's, so what comes while it is restarted waits; associations go over by the descriptor store.
    ``stored`` false: neither, as for a service without a manager.
    """

    def __init__(self, host, devices, *, port=5684, stored=True):
        self._folder = host.network and host.folder.parent / f"by-hand-{host.name}"
        self._folder.mkdir(exist_ok=True)
        self.keys = {device.name: [secrets.token_hex(32)] for device in devices}
        """Of each identity the keys that are accepted, at most two."""
        self._file = self._folder / "psk.txt"
        self.write()
        configuration = self._folder / "endpoint.toml"
        configuration.write_text(
            f'[listen]\naddress = "0.0.0.0"\nport = {port}\n[credentials]\npsk_file = "{self._file}"\n[forward]\nkind = "echo"\n'
        )
        self._undo = contextlib.ExitStack()
        sockets = (
            {"listen": self._undo.enter_context(socket_within(host.namespace, port))} if stored else None
        )
        self.service = self._undo.enter_context(
            Supervisor(
                "serve",
                "--config",
                configuration,
                cwd=self._folder,
                sockets=sockets,
                within=within(host.namespace),
            )
        )

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def start(self):
        """Start it and wait until it serves."""
        self.service.start()
        self.service.fact("listening")

    def restart(self, name="SIGTERM"):
        """End it by a signal, start it again, wait until it serves."""
        self.service.stop(name)
        self.start()

    def write(self):
        """Write :attr:`keys` into its file; :meth:`reload` has it read them."""
        lines = [f"{identity}:{key}\n" for identity, keys in self.keys.items() for key in keys]
        fresh = self._file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text("".join(lines))
        fresh.rename(self._file)

    def reload(self):
        """Have it read its keys, and wait until it has."""
        count = len(self.service.facts("reloaded"))
        self.service.signal("SIGHUP")
        self.service.wait_until(lambda: len(self.service.facts("reloaded")) > count, "it logs reloaded")

    def provision(self, device, key=None):
        """Put a key where the device's firmware reads it: its own first one, unless told otherwise."""
        place = device.root / "etc/dtls"
        place.mkdir(parents=True, exist_ok=True)
        if (place / "psk").exists():
            (place / "psk").rename(place / "psk.previous")
        (place / "psk").write_text(f"{device.name}:{key or self.keys[device.name][0]}\n")
        (device.root / "run/sensor.reload").touch()
