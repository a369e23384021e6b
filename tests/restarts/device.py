"""One meter on a socket of its own, driven by its test call by call."""

import os
import select
import time

from sansdtls import ClientConfig, Connection, ConnectionState, ConnectionTerminated, DataReceived
from tests.ledger import Ledger
from tests.restarts.meters import SUITE, identity, key

AGAIN_AFTER = 0.3
"""Seconds after which a message without an echo is sent again, as an application would: with a new record."""
PATIENCE = 20.0
"""Seconds after which a call has failed."""


class Silence(AssertionError):
    """Nothing came."""


class Device:
    """``sock`` is a UDP socket of any network namespace; it is closed with the device."""

    def __init__(self, sock, target, *, number=0, **more):
        """``more`` goes into the ``ClientConfig``."""
        self._sock = sock
        sock.setblocking(False)
        sock.connect(target)
        self._config = ClientConfig(
            psk_identity=identity(number), psk_key=key(number), cipher_suites=(SUITE,), **more
        )
        self._connection = None
        self.events = []
        self.sent = Ledger()
        self.received = Ledger()
        self.messages = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.close()

    @property
    def connection(self):
        assert self._connection is not None, "connect first"
        return self._connection

    @property
    def data(self):
        return [event.data for event in self.events if isinstance(event, DataReceived)]

    @property
    def ended(self):
        return any(isinstance(event, ConnectionTerminated) for event in self.events)

    def connect(self):
        """Make the handshake."""
        self._connection = Connection.client(self._config, entropy=os.urandom, now=time.monotonic())
        self._run_until(lambda: self.connection.state is not ConnectionState.HANDSHAKING)
        assert self.connection.state is ConnectionState.CONNECTED, self.events

    def send(self):
        """Send a message that was never sent before; returns it."""
        self.messages += 1
        message = b"message %d" % self.messages
        self.connection.send(message, now=time.monotonic())
        self._flush()
        return message

    def exchange_once(self):
        """Send once and wait for the echo, however long that takes."""
        self.wait_for(self.send())

    def exchange(self):
        """Send, again and again, until there is an echo of any of it: the first may be lost."""
        sent: list[bytes] = []

        def echoed():
            return any(message in self.data for message in sent)

        deadline = time.monotonic() + PATIENCE
        while not echoed():
            assert time.monotonic() < deadline, f"no echo of {len(sent)} messages; {self.events}"
            sent.append(self.send())
            self._run_until(echoed, within=AGAIN_AFTER, fail=False)

    def wait_for(self, message):
        """Wait for an echo."""
        self._run_until(lambda: message in self.data)

    def _run_until(self, condition, *, within=PATIENCE, fail=True):
        self._flush()
        deadline = time.monotonic() + within
        while not condition():
            now = time.monotonic()
            if now >= deadline:
                if fail:
                    raise Silence(f"not within {within} s; {self.events}")
                return
            due = self.connection.next_timeout()
            wait = min(deadline, deadline if due is None else due) - now
            readable, _, _ = select.select([self._sock], [], [], max(0.0, wait))
            now = time.monotonic()
            if readable:
                self._receive(now)
            elif due is not None and due <= now:
                self.events += self.connection.handle_timeout(now=now)
            self._flush()

    def _receive(self, now):
        try:
            data = self._sock.recv(65_535)
        except ConnectionError:  # a router that has forgotten us says so by ICMP
            return
        self.received.enter("endpoint", data, self.connection.connection_id)
        self.events += self.connection.receive_datagram(data, now=now)

    def _flush(self):
        for data, _ in self.connection.datagrams_to_send():
            self.sent.enter("device", data, self.connection.peer_connection_id)
            self._sock.send(data)
