"""Devices that send: real DTLS clients, each in its device's namespace, with the key file that the roles manage.

A device's firmware is played here, because a device has no Python: a thread enters the device's namespace, reads the key
file through the device's root, and streams numbered datagrams to an endpoint that echoes them. What every role promises
can then be counted: associations lost, handshakes failed, numbers that never came back.

The firmware's rules, which `dtls_psk` counts on:

- the key file is read when the program starts, and when the reload command (``touch /run/sensor.reload``) was given;
- a new key is tried at once, with a new handshake; the old association is closed when that has succeeded;
- if it fails, the key of ``psk.previous`` is tried;
- while the endpoint is silent it goes on, for as many datagrams as the device's own socket can take back in one burst (some 270
  with Linux's default), or the lab would count what the device drops itself;
- an association on which nothing comes back for a while is given up, and a new one made.
"""

import contextlib
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import attrs
import trio

from endpoint import open_dtls
from endpoint.channel import HandshakeFailed
from sansdtls import ClientConfig, ConnectionIdPolicy, RetransmitPolicy
from tests.namespaces import enter, within

KEY_FILE = "etc/dtls/psk"
RELOAD = "run/sensor.reload"
PORT = 5684
INTERVAL = 0.02
"""Seconds between two datagrams of a device."""
WINDOW = 250
"""After so many datagrams without an echo, which are 5 s, the next one comes when a third of the patience is over."""
PATIENCE = 20.0
"""Seconds that an echo may take: longer than a restart of the service on a busy machine."""
GRACE = 1.0
"""Seconds by which an echo may be later than that of a datagram that was sent after its own."""
HANDSHAKE_TIME = 20.0
END_TIME = 30.0
"""Seconds after which something that has to come has not."""


@attrs.define
class Figures:
    """What one device has seen."""

    sent: int = 0
    echoed: int = 0
    handshakes: int = 0
    failed: int = 0
    """Handshakes that failed."""
    ended: int = 0
    """Associations that ended without the device having asked for it."""
    reloads: int = 0
    """Reload commands that have led to a new association."""
    identity: str = ""
    key: str = attrs.field(default="", repr=False)
    """The key of the association that it has now."""
    overflowed: int = 0
    """Of what is lost, datagrams that came back and found the kernel's buffer full: this machine was too slow."""
    why: list[str] = attrs.Factory(list)
    """What went wrong, in words, with the time of day: what lost it is found in the logs by that."""


_DROPS = (
    "grep ^Udp: /proc/net/snmp; nft list ruleset | grep 'drop\\|limit' | grep -v 'packets 0 ';"
    "iptables-legacy -vS | grep DROP | grep -v -e '-c 0 0'"
)
_STATUS = (
    "/opt/dtls-endpoint/current/bin/dtls-endpoint status --config /etc/dtls-endpoint/endpoint.toml --json"
)


class _Stopped(Exception):
    """The end came while there was no association."""


class Sensor:
    """One device's firmware, in a thread of its own. ``deaf``: it takes no notice of reload commands."""

    def __init__(
        self, device, target, *, port=PORT, patience=PATIENCE, handshake_time=HANDSHAKE_TIME, deaf=False
    ):
        self.device = device
        self.figures = Figures()
        self._target = target
        self._port = port
        self._patience = patience
        self._handshake_time = handshake_time
        self._deaf = deaf
        self._unanswered = {}
        self._heard = 0.0
        self._behind = 0
        """Datagrams since the last echo."""
        self._stopping = False
        self._connecting = None
        self._channels = []
        self._ready = threading.Event()
        self._token = None
        self._error = None
        self._thread = threading.Thread(target=self._run, name=device.name, daemon=True)

    def start(self):
        """Begin; :meth:`wait_until_connected` says when there is an association."""
        self._thread.start()

    def wait_until_connected(self, seconds=END_TIME):
        """Return when the first handshake has succeeded."""
        self.wait_until(lambda figures: figures.handshakes, seconds)

    def wait_until(self, condition, seconds=END_TIME):
        """Return when ``condition`` holds of the figures."""
        end = time.monotonic() + seconds
        while not condition(self.figures):
            assert self._thread.is_alive(), f"{self.device.name} has ended: {self._error!r}: {self.figures}"
            assert time.monotonic() < end, f"{self.device.name}: not within {seconds:g} s: {self.figures}"
            time.sleep(0.005)

    def stop(self):
        """Send no more, wait for the last echoes, end."""
        self._stopping = True
        self._ready.wait(1)
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._give_up)
        self._thread.join(self._patience + END_TIME)

    def assert_sound(self):
        """Fail if the sensor itself broke, because then its figures say nothing."""
        assert self._error is None, f"{self.device.name}: {self._error!r}"
        assert not self._thread.is_alive(), f"{self.device.name} does not end"

    @property
    def lost(self):
        """Numbers that were sent and never came back."""
        return self.figures.sent - self.figures.echoed

    def _run(self):
        try:
            enter(self.device.namespace)
            trio.run(self._live)
        except Exception as error:
            self._error = error

    def _give_up(self):
        if self._connecting is not None:
            self._connecting.cancel()

    async def _live(self):
        self._token = trio.lowlevel.current_trio_token()
        self._ready.set()
        try:
            with contextlib.suppress(_Stopped):
                await self._send_on_and_on()
        finally:
            self.figures.overflowed = _overflowed()
            for channel in self._channels:
                await channel.aclose()

    async def _send_on_and_on(self):
        stamp = self._stamp()
        channel = await self._connect()
        while not self._stopping:
            over = await self._stream(channel, stamp)
            if over == "reload":
                stamp = self._stamp()
                fresh = await self._connect()
                self.figures.reloads += 1
                await self._answers(channel)
                await channel.aclose()
                channel = fresh
            elif over == "ended":
                self.figures.ended += 1
                await channel.aclose()
                stamp = self._stamp()
                channel = await self._connect()
        await self._answers(channel)
        await channel.aclose()

    async def _stream(self, channel, stamp):
        """Send and take echoes until there is a reason to stop; which."""
        self._unanswered = {}
        self._heard = trio.current_time()
        self._behind = 0
        while not self._stopping:
            number = str(self.figures.sent).encode()
            try:
                await channel.send(number)
                self._unanswered[number] = trio.current_time()
                self.figures.sent += 1
                self._behind += 1
                with trio.move_on_after(INTERVAL):
                    while True:
                        self._take(await channel.receive())
                if self._behind >= WINDOW:
                    with trio.move_on_after(self._patience / 3):
                        self._take(await channel.receive())
            except (trio.EndOfChannel, trio.BrokenResourceError, OSError) as error:
                self._note(f"the association ended: {error}")
                return "ended"
            if (
                trio.current_time() - max(self._heard, min(self._unanswered.values(), default=0.0))
                > self._patience
            ):
                self._note(f"nothing came back for {self._patience:g} s")
                return "ended"
            if self._stamp() != stamp:
                return "reload"
        return "stop"

    async def _answers(self, channel):
        newest = str(self.figures.sent - 1).encode()
        with trio.move_on_after(self._patience) as waiting:
            try:
                while self._unanswered:
                    if newest not in self._unanswered:
                        # What was sent before it and does not come back at once is lost.
                        waiting.deadline = min(waiting.deadline, trio.current_time() + GRACE)
                    self._take(await channel.receive())
            except (trio.EndOfChannel, trio.BrokenResourceError, OSError) as error:
                self._note(f"the association ended before the last echoes: {error}")
        for number, sent in self._unanswered.items():
            ago = trio.current_time() - sent
            self._note(f"number {number.decode()}, sent {ago:.2f} s before, never came back")

    def _note(self, what):
        self.figures.why.append(f"{datetime.now(UTC):%H:%M:%S.%f} {what}")

    def _take(self, data):
        if self._unanswered.pop(data, None) is not None:
            self.figures.echoed += 1
            self._heard = trio.current_time()
            self._behind = 0

    async def _connect(self):
        """Try the key, then the previous one, until one works."""
        with trio.CancelScope() as self._connecting:
            while not self._stopping:
                for name in (KEY_FILE, f"{KEY_FILE}.previous"):
                    if credential := self._read(name):
                        channel = await self._try(name, *credential)
                        if channel is not None:
                            return channel
                await trio.sleep(0.05)
        raise _Stopped

    async def _try(self, name, identity, key):
        config = ClientConfig(
            psk_identity=identity.encode(),
            psk_key=bytes.fromhex(key),
            connection_id=ConnectionIdPolicy(length=0),
            retransmit=RetransmitPolicy(handshake_timeout=self._handshake_time),
        )
        try:
            channel = await open_dtls(self._target, self._port, config=config)
        except (HandshakeFailed, OSError) as error:
            self.figures.failed += 1
            self._note(f"{name}: {error}")
            await trio.sleep(0.2)
            return None
        self._channels.append(channel)
        self.figures.handshakes += 1
        self.figures.identity, self.figures.key = identity, key
        return channel

    def _read(self, name):
        try:
            line = (self.device.root / name).read_text().strip()
        except OSError:
            return None
        identity, _, key = line.rpartition(":")
        return (identity, key) if identity else None

    def _stamp(self):
        if self._deaf:
            return 0
        try:
            return (self.device.root / RELOAD).stat().st_mtime_ns
        except OSError:
            return 0


def _overflowed():
    """UDP datagrams that the namespace of this thread has dropped for want of room."""
    heads, values = (
        line.split()
        for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
        if line.startswith("Udp:")
    )
    return int(values[heads.index("RcvbufErrors")])


class Streams:
    """A sensor for each device of a fleet; use it in a ``with`` statement, and :meth:`check` after it.

    ``how`` goes to each :class:`Sensor`. They have an association when the ``with`` begins; with ``connected`` false they
    may still wait for their keys, as new devices do.
    """

    def __init__(self, fleet, *, connected=True, **how):
        self._connected = connected
        self._fleet = fleet
        endpoints = fleet.endpoints
        self.steps = []
        """What was done meanwhile, with the time of day at which it began."""
        self.sensors = {
            device.name: Sensor(device, endpoints[number % len(endpoints)].address, **how)
            for number, device in enumerate(fleet.devices)
        }

    def __enter__(self):
        for sensor in self.sensors.values():
            sensor.start()
        try:
            if self._connected:
                for sensor in self.sensors.values():
                    sensor.wait_until_connected()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for sensor in self.sensors.values():
            sensor.stop()

    def __getitem__(self, name):
        return self.sensors[name]

    def wait_until_echoed(self, more=20):
        """Return when each device has had so many more echoes."""
        marks = {name: sensor.figures.echoed + more for name, sensor in self.sensors.items()}
        for name, sensor in self.sensors.items():
            sensor.wait_until(lambda figures, mark=marks[name]: figures.echoed >= mark)

    def step(self, name):
        """What is done next; told when something was lost."""
        self.steps.append(f"{datetime.now(UTC):%H:%M:%S.%f} {name}")

    def totals(self):
        """Sums over all devices."""
        names = ("sent", "echoed", "handshakes", "failed", "ended", "reloads")
        sums = {name: sum(getattr(one.figures, name) for one in self.sensors.values()) for name in names}
        return sums | {"lost": sum(sensor.lost for sensor in self.sensors.values())}

    def _drops(self):
        """What hosts say of datagrams that they have dropped: the kernel, filters, and the service."""
        said = {}
        for host in self._fleet.hosts.values():
            command = [*within(host.namespace), "sh", "-c", _DROPS]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said[host.name] = done.stdout.splitlines()
        for host in self._fleet.endpoints:
            with contextlib.suppress(subprocess.TimeoutExpired):  # as much as can be said is said
                said[host.name].append(host.ssh(_STATUS, check=False))
        return said

    def check(self, *, ended=0, failed=0, lost=0):
        """Fail unless so many associations were lost, handshakes failed and numbers never came back, in all."""
        for sensor in self.sensors.values():
            sensor.assert_sound()
        figures = {name: sensor.figures for name, sensor in self.sensors.items()}
        totals = self.totals()
        seen = {name: totals[name] for name in ("ended", "failed", "lost")}
        wanted = {"ended": ended, "failed": failed, "lost": lost}
        assert seen == wanted, (figures, self.steps, self._drops())
        assert all(one.sent for one in figures.values()), figures
