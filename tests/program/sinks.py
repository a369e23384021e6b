"""What tests of sinks share: associations that are none, and a collector of what is told."""

from types import SimpleNamespace
from typing import Any

import trio

from endpoint.association import CredentialKind
from endpoint.forward import Sink
from endpoint.forward.devices import LiveDevices
from sansdtls import ConnectionState

PATIENCE = 30
"""Seconds until a test that waits for something has failed."""


class FakeAssociation:
    """Has what sinks look at."""

    def __init__(self, identity=b"meter-17", *, alpn=None, kind=CredentialKind.PSK, room=1000, heard=0.0):
        self.identity = identity
        self.kind = kind
        self.identified = kind is not CredentialKind.NONE
        self.route = None
        self.handle = None
        self.context = None
        self.path = (0, ("192.0.2.7", 40000))
        self.local_address = ("192.0.2.1", 5684)
        self.last_received = heard
        self.room = room
        self.sent = []
        self.connection = SimpleNamespace(
            negotiated=SimpleNamespace(alpn_protocol=alpn), state=ConnectionState.CONNECTED, max_payload=room
        )

    @property
    def remote(self):
        host, port = self.path[1][:2]
        return f"{host}:{port}"

    def send(self, data):
        if self.connection.state is not ConnectionState.CONNECTED or len(data) > self.room:
            return False
        self.sent.append(data)
        return True


def device(*arguments, **options) -> Any:
    return FakeAssociation(*arguments, **options)


def devices_of(*associations):
    """The way back to these."""
    return LiveDevices(lambda: FakeEngine(associations))


class FakeEngine:
    """Knows these associations; ``asleep`` are woken by their handle."""

    def __init__(self, associations=(), asleep=()):
        self.live = list(associations)
        self.asleep = list(asleep)

    def associations(self, identity):
        return [one for one in self.live if one.identity == identity]

    def sleeping(self, identity):
        return [one.handle for one in self.asleep if one.identity == identity]

    def wake(self, handle):
        (woken,) = [one for one in self.asleep if one.handle == handle]
        self.asleep.remove(woken)
        self.live.append(woken)
        return woken


class Told:
    """Collects what a sink tells, and lets tests wait for it."""

    def __init__(self):
        self.facts = []
        self._something = trio.lowlevel.ParkingLot()

    def __call__(self, event, **facts):
        self.facts.append((event, facts))
        self._something.unpark_all()

    @property
    def events(self):
        return [event for event, _ in self.facts]

    async def until(self, event):
        """The facts of the first such event."""
        with trio.fail_after(PATIENCE):
            while event not in self.events:
                await self._something.park()
        return next(facts for name, facts in self.facts if name == event)


class Collector(Sink):
    """Keeps what it gets and hears, and fails when told to."""

    def __init__(self, *, run=None, raises=()):
        super().__init__()
        self.delivered = []
        self.heard = []
        self.closed = 0
        self.started = []
        self.flushed = False
        self._run = run
        self._raises = raises

    def _maybe_raise(self, what):
        if what in self._raises:
            raise RuntimeError(f"{what} is broken")

    def deliver(self, association, data):
        self._maybe_raise("deliver")
        self.delivered.append((association, data))

    async def run(self):
        self.started.append(trio.current_time())
        self._maybe_raise("run")
        if self._run is not None:
            await self._run()
        await trio.sleep_forever()

    async def flush(self):
        self._maybe_raise("flush")
        self.flushed = True

    def close(self):
        self._maybe_raise("close")
        self.closed += 1

    def connected(self, association):
        self._maybe_raise("connected")
        self.heard.append(("connected", association))

    def moved(self, association):
        self.heard.append(("moved", association))

    def frozen(self, association):
        self.heard.append(("frozen", association))

    def thawed(self, association):
        self.heard.append(("thawed", association))

    def disconnected(self, association):
        self.heard.append(("disconnected", association))

    def statistics(self):
        return {"forwarded": len(self.delivered), "forward_dropped": self.drops.total()}
