"""The load of the flood: forged hellos from all of 127.0.0.0/8 in a process of their own, and honest devices.

Any address of 127.0.0.0/8 is this machine's, so anybody may send from each of them: the datagram's source is given with it
(IP_PKTINFO). What comes back to a forged address is thrown away by the kernel, as it would be anywhere.
"""

from __future__ import annotations

import math
import random
import socket
import struct
import time
from typing import TYPE_CHECKING

import attrs
import trio

from benchmarks import control, ours
from benchmarks.load import HOST
from sansdtls import CipherSuite

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.control import Pipe

SUITE = CipherSuite.TLS_PSK_WITH_AES_128_CCM_8
_IP_PKTINFO = 8
_IN_PKTINFO = struct.Struct("=I4s4s")
PORTS = 64
"""Sockets that hellos are forged from; each has a port of its own and all addresses."""
HELLOS = 256
"""Different ones, so that not every datagram is the same."""
TICK = 0.0005
"""Seconds between two bursts of the flood."""
BURST = 0.005
"""Seconds of the flood that may come at once."""
READING = 64
"""Bytes."""
LATE = 3.0
"""Seconds after which a reading that has not come back is lost."""
FAREWELL = 0.2
"""Seconds between two handshakes of the same device."""
GIVE_UP = 60.0
"""Seconds after which a handshake has failed; what clients take by default."""


# --- the flood --------------------------------------------------------------------------------------


def flood(pipe: Pipe, seed: int) -> None:
    """The flooding process: ``(port, rate, seconds)`` comes in, how many were sent goes out."""
    chance = random.Random(seed)
    while (question := control.hear(pipe)) != "stop":
        if question == "start":
            pipe.send("ready")
            continue
        pipe.send(_flood(chance, *question))


def _flood(chance: random.Random, port: int, rate: float, seconds: float) -> int:
    hellos = [hello for _ in range(HELLOS) for hello in ours.SansIoClient(ours.client_config(SUITE)).start()]
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(PORTS)]
    for sock in sockets:
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - the source is chosen per datagram, within loopback
    target = (HOST, port)
    sent = 0
    begun = before = time.monotonic()
    owed = 0.0
    while (now := time.monotonic()) - begun < seconds:
        # A line does not catch up: what was not sent while the process had to wait is not sent at once later.
        owed = min(owed + (now - before) * rate, BURST * rate)
        before = now
        for _ in range(int(owed)):
            # 127.64.0.0 and up: no honest device is there.
            address = (0x7F400000 | chance.getrandbits(22)).to_bytes(4)
            ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, address, bytes(4)))]
            sockets[sent % PORTS].sendmsg([hellos[chance.getrandbits(8)]], ancillary, 0, target)
            sent += 1
        owed %= 1
        time.sleep(TICK)
    for sock in sockets:
        sock.close()
    return sent


# --- honest devices ---------------------------------------------------------------------------------


@attrs.define
class Seen:
    """What the devices of one kind have seen."""

    begun: int = 0
    lost: int = 0
    """Never answered, or never completed."""
    seconds: list[float] = attrs.field(factory=list)
    """How long each took that was."""

    def percentile(self, part: float) -> float:
        """The time that so much of them stayed within."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


class _Device:
    """A client with a socket at an address of its own."""

    def __init__(self, port: int, number: int) -> None:
        self.sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self._server = (HOST, port)
        self._address = f"127.1.{number // 250}.{number % 250 + 1}"
        self.client = ours.SansIoClient(ours.client_config(SUITE))

    async def bind(self) -> None:
        await self.sock.bind((self._address, 0))
        await self.sock.connect(self._server)

    async def handshake(self) -> bool:
        """Whether it has succeeded; repeats as a client does."""
        self.client = ours.SansIoClient(ours.client_config(SUITE))
        await self._send(self.client.start())
        with trio.move_on_after(GIVE_UP):
            while not self.client.established:
                data = None
                with trio.move_on_after(max(0.0, self.client.due - time.monotonic())):
                    data = await self.sock.recv(2_000)
                await self._send(self.client.repeat() if data is None else self.client.receive(data))
            return True
        return False

    async def _send(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            await self.sock.send(datagram)

    async def leave(self) -> None:
        await self._send(self.client.close())


async def _keeps_reading(device: _Device, seen: Seen, every: float, seconds: float) -> None:
    """Send a reading now and then, and take the time until its echo."""
    sent: dict[bytes, float] = {}

    async def listen() -> None:
        while True:
            payload = device.client.unseal(await device.sock.recv(2_000))
            if payload is not None and (begun := sent.pop(payload, None)) is not None:
                seen.seconds.append(trio.current_time() - begun)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        ends = trio.current_time() + seconds
        await trio.sleep(random.random() * every)
        while trio.current_time() < ends:
            payload = b"%0*d" % (READING, seen.begun)
            seen.begun += 1
            sent[payload] = trio.current_time()
            await device.sock.send(device.client.seal(payload))
            await trio.sleep(every)
        await trio.sleep(LATE if sent else 0)
        nursery.cancel_scope.cancel()
    seen.lost += len(sent)


async def _keeps_connecting(device: _Device, seen: Seen, seconds: float) -> None:
    """Handshake, leave, and do so again, as long as there is time; what was begun is brought to an end."""
    ends = trio.current_time() + seconds
    await trio.sleep(random.random() * FAREWELL)
    while trio.current_time() < ends:
        seen.begun += 1
        begun = trio.current_time()
        if await device.handshake():
            seen.seconds.append(trio.current_time() - begun)
            await device.leave()
        else:
            seen.lost += 1
        await trio.sleep(FAREWELL)


async def honest(
    port: int, *, live: int, handshaking: int, every: float, seconds: float, ready: Callable[[], None]
) -> tuple[Seen, Seen]:
    """What ``live`` devices see of their readings and ``handshaking`` ones of their handshakes, in so many seconds.

    ``ready`` is called when the live ones are connected and all are about to begin.
    """
    readings, handshakes = Seen(), Seen()
    devices = [_Device(port, number) for number in range(live + handshaking)]
    for device in devices:
        await device.bind()
    for device in devices[:live]:
        await device.handshake()
    ready()
    async with trio.open_nursery() as nursery:
        for device in devices[:live]:
            nursery.start_soon(_keeps_reading, device, readings, every, seconds)
        for device in devices[live:]:
            nursery.start_soon(_keeps_connecting, device, handshakes, seconds)
    for device in devices:
        device.sock.close()
    return readings, handshakes
