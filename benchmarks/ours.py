"""This project's side: the two servers of ``endpoint`` that are measured, and the client that loads them."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

import attrs
from cryptography.hazmat.primitives.serialization import Encoding

import sansdtls
from benchmarks import certificate
from benchmarks.load import PSK_IDENTITY, PSK_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.load import Client


WITH_CERTIFICATE = frozenset((sansdtls.CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,))
"""Suites of which the server shows a certificate. The client shows none."""
GROUP = sansdtls.NamedGroup.X25519
"""What their key exchange uses: the defaults lead to it, as OpenSSL's do."""


def client_config(suite: sansdtls.CipherSuite, *, connection_id: bool = False) -> sansdtls.ClientConfig:
    """``connection_id``: it puts the server's ID into its records; it needs none itself."""
    if suite in WITH_CERTIFICATE:
        x509 = sansdtls.CertificateType.X509
        return sansdtls.ClientConfig(cipher_suites=(suite,), server_certificate_types=(x509,))
    return sansdtls.ClientConfig(
        psk_identity=PSK_IDENTITY,
        psk_key=PSK_KEY,
        cipher_suites=(suite,),
        connection_id=sansdtls.ConnectionIdPolicy(length=0) if connection_id else None,
    )


def server_config(suite: sansdtls.CipherSuite, *, freeze_after: float | None = None) -> sansdtls.ServerConfig:
    if suite in WITH_CERTIFICATE:
        shown, key = certificate.self_signed()
        credential = sansdtls.CertificateCredential(
            (shown.public_bytes(Encoding.DER),), sansdtls.SigningKey.wrap(key)
        )
        return sansdtls.ServerConfig(cipher_suites=(suite,), psk=False, credentials=(credential,))
    return sansdtls.ServerConfig(cipher_suites=(suite,), freeze_after=freeze_after)


class SansIoClient:
    """A client connection of the core, for the load generator."""

    def __init__(self, config: sansdtls.ClientConfig) -> None:
        self.established = False
        self._config = config
        self._connection = sansdtls.Connection.client(config, entropy=os.urandom, now=time.monotonic())

    @property
    def resumed(self) -> bool:
        negotiated = self._connection.negotiated
        return negotiated is not None and negotiated.resumed

    @property
    def group(self) -> str | None:
        negotiated = self._connection.negotiated
        group = None if negotiated is None else negotiated.group
        return None if group is None else group.name.lower()

    def resume(self) -> SansIoClient:
        return SansIoClient(attrs.evolve(self._config, session=self._connection.session))

    def start(self) -> list[bytes]:
        return self._outgoing()

    def receive(self, datagram: bytes) -> list[bytes]:
        self._heed(self._connection.receive_datagram(datagram, now=time.monotonic()))
        return self._outgoing()

    @property
    def due(self) -> float:
        """When to :meth:`repeat`."""
        due = self._connection.next_timeout()
        return math.inf if due is None else due

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
            elif isinstance(event, sansdtls.PeerCertificateReceived):
                # The load generator's own cost is of no interest: it believes every certificate.
                self._heed(self._connection.accept_peer(event, now=time.monotonic()))

    def _outgoing(self) -> list[bytes]:
        return [outgoing.data for outgoing in self._connection.datagrams_to_send()]


def client_factory(suite: sansdtls.CipherSuite) -> Callable[[], Client]:
    config = client_config(suite)
    return lambda: SansIoClient(config)
