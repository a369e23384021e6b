"""Devices that send: real DTLS clients, each in its device's namespace, with the key file that the roles manage.

A device's firmware is played here, because a device has no Python: a thread enters the device's namespace, reads the key
file through the device's root, and streams numbered datagrams to an endpoint that echoes them. What every role promises
can then be counted: associations lost, handshakes failed, numbers that never came back.

The firmware's rules, which `dtls_psk` counts on:

- the key file is read when the program starts, and when the reload command (``touch /run/sensor.reload``) was given;
- a new key is tried at once, with a new handshake; the old association is closed when that has succeeded;
- if it fails, the key of ``psk.previous`` is tried.
"""

import contextlib
import ctypes
import threading
from pathlib import Path

import attrs
import trio

from endpoint import open_dtls
from endpoint.channel import HandshakeFailed
from sansdtls import ClientConfig, ConnectionIdPolicy, RetransmitPolicy

CLONE_NEWNET = 0x40000000
KEY_FILE = "etc/dtls/psk"
RELOAD = "run/sensor.reload"
PORT = 5684
INTERVAL = 0.02
"""Seconds between two datagrams of a device."""
ANSWER_TIME = 10.0
"""Seconds that an echo may take: longer than a restart of the service on a busy machine."""


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
    identity: str = ""
    key: str = attrs.field(default="", repr=False)
    """The key of the association that it has now."""
    why: list[str] = attrs.Factory(list)
    """What went wrong, in words."""


class Stopped(Exception):
    """The end came while there was no association."""


class Sensor:
    """One device's firmware, in a thread of its own."""

    def __init__(self, device, target, *, port=PORT):
        self.device = device
        self.figures = Figures()
        self._target = target
        self._port = port
        self._unanswered = {}
        self._stop = trio.Event()
        self._ready = threading.Event()
        self._token = None
        self._thread = threading.Thread(target=self._run, name=device.name, daemon=True)

    def start(self):
        """Begin; :meth:`wait_until_connected` says when there is an association."""
        self._thread.start()

    def wait_until_connected(self, seconds=30):
        """Return when the first handshake has succeeded."""
        assert self._ready.wait(seconds), f"{self.device.name} does not connect: {self.figures}"

    def stop(self):
        """Send no more, wait for the last echoes, end."""
        if self._token is not None:
            self._token.run_sync_soon(self._stop.set)
        self._thread.join(ANSWER_TIME + 30)

    @property
    def lost(self):
        """Numbers that were sent and never came back."""
        return self.figures.sent - self.figures.echoed

    def _run(self):
        libc = ctypes.CDLL(None, use_errno=True)
        with (Path("/run/netns") / self.device.namespace).open("rb") as descriptor:
            assert libc.setns(descriptor.fileno(), CLONE_NEWNET) == 0
        trio.run(self._live)

    async def _live(self):
        self._token = trio.lowlevel.current_trio_token()
        with contextlib.suppress(Stopped):
            await self._send_on_and_on()

    async def _send_on_and_on(self):
        channel = await self._connect()
        while not self._stop.is_set():
            stamp = self._stamp()
            over = await self._stream(channel, stamp)
            if over == "reload":
                self.figures.reloads += 1
                fresh = await self._connect()
                await self._answers(channel)
                await channel.aclose()
                channel = fresh
            elif over == "ended":
                self.figures.ended += 1
                await channel.aclose()
                channel = await self._connect()
        await self._answers(channel)
        await channel.aclose()

    async def _stream(self, channel, stamp):
        """Send and take echoes until there is a reason to stop; which."""
        while not self._stop.is_set():
            number = str(self.figures.sent).encode()
            try:
                await channel.send(number)
                self._unanswered[number] = trio.current_time()
                self.figures.sent += 1
                with trio.move_on_after(INTERVAL):
                    while True:
                        self._take(await channel.receive())
            except (trio.EndOfChannel, trio.BrokenResourceError) as error:
                self.figures.why.append(f"the association ended: {error}")
                return "ended"
            if self._stamp() != stamp:
                return "reload"
        return "stop"

    async def _answers(self, channel):
        with trio.move_on_after(ANSWER_TIME):
            try:
                while self._unanswered:
                    self._take(await channel.receive())
            except (trio.EndOfChannel, trio.BrokenResourceError):
                pass

    def _take(self, data):
        if self._unanswered.pop(data, None) is not None:
            self.figures.echoed += 1

    async def _connect(self):
        """Try the key, then the previous one, until one works."""
        while True:
            for name in (KEY_FILE, f"{KEY_FILE}.previous"):
                if self._stop.is_set():
                    raise trio.Cancelled._create()
                credential = self._read(name)
                if credential is None:
                    continue
                identity, key = credential
                config = ClientConfig(
                    psk_identity=identity.encode(),
                    psk_key=bytes.fromhex(key),
                    connection_id=ConnectionIdPolicy(length=0),
                    retransmit=RetransmitPolicy(handshake_timeout=20.0),
                )
                try:
                    channel = await open_dtls(self._target, self._port, config=config)
                except (HandshakeFailed, OSError) as error:
                    self.figures.failed += 1
                    self.figures.why.append(f"{name}: {error}")
                    await trio.sleep(0.2)
                    continue
                self.figures.handshakes += 1
                self.figures.identity, self.figures.key = identity, key
                self._ready.set()
                return channel
            await trio.sleep(0.05)

    def _read(self, name):
        try:
            line = (self.device.root / name).read_text().strip()
        except OSError:
            return None
        identity, _, key = line.rpartition(":")
        return (identity, key) if identity else None

    def _stamp(self):
        try:
            return (self.device.root / RELOAD).stat().st_mtime_ns
        except OSError:
            return 0


class Streams:
    """A sensor for each device of a fleet; use it in a ``with`` statement, and :meth:`check` after it."""

    def __init__(self, fleet, *, port=PORT):
        endpoints = fleet.endpoints
        self.sensors = {
            device.name: Sensor(device, endpoints[number % len(endpoints)].address, port=port)
            for number, device in enumerate(fleet.devices)
        }

    def __enter__(self):
        for sensor in self.sensors.values():
            sensor.start()
        for sensor in self.sensors.values():
            sensor.wait_until_connected()
        return self

    def __exit__(self, *_):
        for sensor in self.sensors.values():
            sensor.stop()

    def __getitem__(self, name):
        return self.sensors[name]

    def check(self, *, ended=0, failed=0, lost=0):
        """Fail unless so many associations were lost, handshakes failed and numbers never came back, in all."""
        figures = {name: sensor.figures for name, sensor in self.sensors.items()}
        seen = {
            "ended": sum(one.ended for one in figures.values()),
            "failed": sum(one.failed for one in figures.values()),
            "lost": sum(sensor.lost for sensor in self.sensors.values()),
        }
        assert seen == {"ended": ended, "failed": failed, "lost": lost}, figures
        assert all(one.sent for one in figures.values()), figures
