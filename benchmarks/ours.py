"""This project's side: the two servers of ``endpoint`` that are measured, and the client that loads them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import sansdtls
from benchmarks.load import PSK_IDENTITY, PSK_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.load import Client


def client_config(suite: sansdtls.CipherSuite) -> sansdtls.ClientConfig:
    return sansdtls.ClientConfig(psk_identity=PSK_IDENTITY, psk_key=PSK_KEY, cipher_suites=(suite,))


def server_config(suite: sansdtls.CipherSuite) -> sansdtls.ServerConfig:
    return sansdtls.ServerConfig(cipher_suites=(suite,))


class SansIoClient:
    """A client connection of the core, for the load generator."""

    def __init__(self, config: sansdtls.ClientConfig) -> None:
        self.established = False
        self._connection = sansdtls.Connection.client(config, entropy=os.urandom, now=time.monotonic())

    def start(self) -> list[bytes]:
        return self._outgoing()

    def receive(self, datagram: bytes) -> list[bytes]:
        self._heed(self._connection.receive_datagram(datagram, now=time.monotonic()))
        return self._outgoing()

    def repeat(self) -> list[bytes]:
        self._heed(self._connection.handle_timeout(now=time.monotonic()))
        return self._outgoing()

    def seal(self, payload: bytes) -> bytes:
        self._connection.send(payload, now=time.monotonic())
        (datagram,) = self._outgoing()
        return datagram

    def unseal(self, datagram: bytes) -> bytes | None:
        for event in self._connection.receive_datagram(datagram, now=time.monotonic()):
            if isinstance(event, sansdtls.DataReceived):
                return event.data
        return None

    def close(self) -> list[bytes]:
        self._connection.close(now=time.monotonic())
        return self._outgoing()

    def _heed(self, events: Iterable[sansdtls.Event]) -> None:
        for event in events:
            if isinstance(event, sansdtls.HandshakeCompleted):
                self.established = True

    def _outgoing(self) -> list[bytes]:
        return [outgoing.data for outgoing in self._connection.datagrams_to_send()]


def client_factory(suite: sansdtls.CipherSuite) -> Callable[[], Client]:
    config = client_config(suite)
    return lambda: SansIoClient(config)
