"""Devices for tests of the endpoint: real client connections on loopback sockets, and a recording observer."""

import contextlib
import math
import os

import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore
from endpoint.quotas import QuotaPolicy
from endpoint.udp import address_text, bind_udp, path_text
from sansdtls import (
    ClientConfig,
    Connection,
    ConnectionIdPolicy,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    ReturnRoutability,
    ServerConfig,
)

KEY = bytes(range(16))
IDENTITY = b"meter-1"
KEYS = {b"meter-%d" % number: KEY for number in range(1, 10)}
PATIENCE = 30
"""Seconds until a test that waits for something has failed."""


class Device:
    """A client that a test drives step by step, retransmissions included."""

    def __init__(self, port, *, identity=IDENTITY, key=KEY, host="127.0.0.1", config=None, policy=None):
        family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
        self.socket = trio.socket.socket(family, trio.socket.SOCK_DGRAM)
        self.server = (host, port)
        self.config = config or ClientConfig(psk_identity=identity, psk_key=key, connection_id=policy)
        # The first ClientHello is sent by start(), which makes another one of these each time.
        self.connection = Connection.client(self.config, entropy=os.urandom, now=trio.current_time())
        self.data = []
        self.cause = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    @property
    def path(self):
        """As the server writes it."""
        return address_text(self.socket.getsockname())

    @property
    def server_path(self):
        """The server's address, the same way."""
        return address_text(self.server)

    @property
    def connected(self):
        return self.connection.state is ConnectionState.CONNECTED

    async def move(self, *, host=None, at=None, keep=False):
        """Go on from another port, at the address ``at``, and ask the server at ``host``; returns the socket of before.

        It is closed unless it is to be kept.
        """
        before = self.socket
        self.server = (host or self.server[0], self.server[1])
        family = trio.socket.AF_INET6 if ":" in self.server[0] else trio.socket.AF_INET
        self.socket = trio.socket.socket(family, trio.socket.SOCK_DGRAM)
        if at is not None:
            await self.socket.bind((at, 0))
        await self.socket.connect(self.server)
        if not keep:
            before.close()
        return before

    async def start(self):
        """Send the first ClientHello of a new connection, from the same address as any before."""
        await self.socket.connect(self.server)
        self.connection = Connection.client(self.config, entropy=os.urandom, now=trio.current_time())
        self.cause = None
        await self.flush()

    async def flush(self):
        for outgoing in self.connection.datagrams_to_send():
            await self.socket.send(outgoing.data)

    async def step(self, *, answer=True):
        """Handle one datagram or timeout; without ``answer`` what is to be sent stays unsent."""
        deadline = self.connection.next_timeout()
        datagram = None
        with trio.move_on_at(math.inf if deadline is None else deadline):
            datagram = await self.socket.recv(65_535)
        now = trio.current_time()
        if datagram is None:
            events = self.connection.handle_timeout(now=now)
        else:
            events = self.connection.receive_datagram(datagram, now=now)
        for event in events:
            if isinstance(event, PeerCertificateReceived | PeerRawKeyReceived):
                # A device here trusts every server; what open_dtls makes of one is tested with channels.
                self.connection.accept_peer(event, now=now)
            elif isinstance(event, DataReceived):
                self.data.append(event.data)
            elif isinstance(event, ConnectionTerminated):
                self.cause = event.cause
        if answer:
            await self.flush()

    async def until(self, condition):
        with trio.fail_after(PATIENCE * 10):
            while not condition():
                await self.step()

    async def until_told(self, condition):
        """The same for what the server is to find out: it has its turn after each step."""
        with trio.fail_after(PATIENCE * 10):
            while not condition():
                await self.step()
                await wait_all_tasks_blocked()

    async def connect(self):
        """The whole handshake; afterwards ``connected`` or ``cause`` tells how it went."""
        await self.start()
        await self.until(lambda: self.connected or self.cause is not None)
        # Let the engine handle what was sent last.
        await wait_all_tasks_blocked()
        return self

    async def knock(self):
        """Prove the address and take the server's flight, and then leave it at that."""
        await self.start()
        await self.step()  # HelloVerifyRequest, answered
        await self.step(answer=False)  # ServerHello; ClientKeyExchange and Finished are never sent
        await wait_all_tasks_blocked()
        return self

    async def send(self, data):
        self.connection.send(data, now=trio.current_time())
        await self.flush()
        await wait_all_tasks_blocked()

    async def receive(self):
        await self.until(lambda: self.data or self.cause is not None)
        return self.data.pop(0)

    async def close(self):
        self.connection.close(now=trio.current_time())
        await self.flush()
        await wait_all_tasks_blocked()


class Recorder:
    """An observer that keeps what it is told; ``echo`` makes it answer."""

    def __init__(self, *, echo=False):
        self.echo = echo
        self.live = []
        self.data = []
        self.ended = []
        self.failed = []
        self.rejections = []
        self.refusals = []
        self.troubles = []
        self.moves = []
        self.requests = []
        self.asleep = []

    def moved(self, association, old, proof):
        self.moves.append((path_text(old), association.remote, proof))

    def move_requested(self, association, request):
        self.requests.append((association, request))

    def frozen(self, association):
        self.live.remove(association)
        self.asleep.append(association)

    def thawed(self, association):
        self.live.append(association)

    def completed(self, association):
        self.live.append(association)

    def received(self, association, data):
        assert association in self.live
        self.data.append(data)
        if self.echo:
            assert association.send(data)

    def terminated(self, association, cause):
        self.live.remove(association)
        self.ended.append((association, cause))

    def handshake_failed(self, path, identity, cause, rejection):
        self.failed.append((path_text(path), identity, cause))
        self.rejections.append(rejection)

    def refused(self, path, reason):
        self.refusals.append((path_text(path), reason))

    def trouble(self, what, **facts):
        self.troubles.append((what, facts))


class Served:
    """A running engine and what belongs to it."""

    def __init__(self, engine, observer, nursery):
        self.engine = engine
        self.observer = observer
        self.nursery = nursery
        self.port = engine.sockets[0].port
        self.devices = []

    def roamer(self, *, identity=IDENTITY, policy=None, **options):
        """A device that may move: the server finds it by its connection ID. Without return routability by default."""
        policy = policy or ConnectionIdPolicy(length=0, return_routability=ReturnRoutability.OFF)
        return self.device(identity=identity, policy=policy, **options)

    def device(self, **options):
        device = Device(self.port, **options)
        self.devices.append(device)
        return device

    @property
    def gauges(self):
        figures = self.engine.statistics()
        server = figures["server"]
        return {
            "handshakes": figures["handshakes"],
            "associations": figures["associations"],
            "identities": figures["identities"],
            "lookups": figures["lookups"],
            "half_open": server["half_open"],
            "live": server["associations"],
            "slots": self.engine._quotas.slots,
            "paths": self.engine._roster.paths,
        }

    @property
    def idle(self):
        """Whether nothing is left of any peer."""
        return not any(self.gauges.values())


@contextlib.asynccontextmanager
async def serving(
    *,
    config=None,
    keystore=None,
    quotas=None,
    observer=None,
    address="127.0.0.1",
    entropy=os.urandom,
    sockets=None,
    **options,
):
    """An engine on loopback, ended when the block ends. ``sockets`` are the caller's to close."""
    with contextlib.ExitStack() as opened:
        if sockets is None:
            sockets = [opened.enter_context(bound) for bound in await bind_udp(address, 0)]
        observer = observer or Recorder(echo=True)
        engine = Engine(
            config or ServerConfig(),
            sockets=sockets,
            keystore=keystore or DictKeyStore(KEYS),
            quotas=quotas or QuotaPolicy(),
            observer=observer,
            entropy=entropy,
            **options,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            served = Served(engine, observer, nursery)
            try:
                yield served
            finally:
                for device in served.devices:
                    device.socket.close()
            nursery.cancel_scope.cancel()
