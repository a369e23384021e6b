"""A python-mbedtls peer: (client|server) port suite identity key-in-hex.

The record layer is driven over memory buffers, one datagram in and out at a time, because
``TLSWrappedSocket`` needs two ``accept`` calls with a rebinding socket between them.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress
from typing import Any

from mbedtls.tls import (
    ClientContext,
    DTLSConfiguration,
    HelloVerifyRequest,
    RaggedEOF,
    ServerContext,
    WantReadError,
    WantWriteError,
)

HANDSHAKE_OVER = "HANDSHAKE_OVER"
LARGEST_DATAGRAM = 65_535
WAIT = 30.0
"""Seconds for an answer, also on a machine that stands still for some of them."""
TICK = 0.05


def say(line: str) -> None:
    print(line, flush=True)


def flush(buffer: Any, link: socket.socket) -> None:
    """Send what is waiting, one record to a datagram: the buffer does not keep datagrams apart."""
    waiting = buffer.peek_outgoing(LARGEST_DATAGRAM)
    buffer.consume_outgoing(len(waiting))
    while waiting:
        size = 13 + int.from_bytes(waiting[11:13], "big")
        link.send(waiting[:size])
        waiting = waiting[size:]


def handshake(buffer: Any, link: socket.socket) -> None:
    deadline = time.monotonic() + WAIT
    link.settimeout(TICK)
    while buffer._handshake_state.name != HANDSHAKE_OVER:
        try:
            buffer.do_handshake()
        except WantReadError:
            flush(buffer, link)
            if time.monotonic() > deadline:
                raise
            # Called again after a pause, do_handshake looks at its timer and repeats its flight.
            with suppress(TimeoutError):
                buffer.receive_from_network(link.recv(LARGEST_DATAGRAM))
        except WantWriteError:
            flush(buffer, link)
    flush(buffer, link)
    link.settimeout(WAIT)


def receive(buffer: Any, link: socket.socket) -> bytes:
    while True:
        buffer.receive_from_network(link.recv(LARGEST_DATAGRAM))
        with suppress(WantReadError):
            return bytes(buffer.read(LARGEST_DATAGRAM))


def client(port: int, suite: str, identity: str, key: bytes) -> None:
    configuration = DTLSConfiguration(
        pre_shared_key=(identity, key), ciphers=(suite,), validate_certificates=False
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(WAIT)
        link.connect(("127.0.0.1", port))
        buffer = ClientContext(configuration).wrap_buffers(None)
        handshake(buffer, link)
        say("connected")
        buffer.write(b"hello")
        flush(buffer, link)
        say(f"received {receive(buffer, link).decode()}")
        buffer.shutdown()
        flush(buffer, link)


def server(port: int, suite: str, identity: str, key: bytes) -> None:
    configuration = DTLSConfiguration(
        pre_shared_key_store={identity: key}, ciphers=(suite,), validate_certificates=False
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.bind(("127.0.0.1", port))
        link.settimeout(WAIT)
        _, address = link.recvfrom(LARGEST_DATAGRAM, socket.MSG_PEEK)
        link.connect(address)
        context = ServerContext(configuration)
        while True:
            # Mbed TLS starts afresh after each HelloVerifyRequest.
            buffer = context.wrap_buffers()
            buffer.setcookieparam(repr(address).encode())
            try:
                handshake(buffer, link)
                break
            except HelloVerifyRequest:
                flush(buffer, link)
        say("connected")
        while True:
            try:
                text = receive(buffer, link).decode()
            except RaggedEOF:
                text = ""
            if not text:
                say("closed")
                return
            say(f"received {text}")
            if text == "bye":
                buffer.shutdown()
                flush(buffer, link)
                return
            buffer.write(f"heard {text[:5]}".encode())
            flush(buffer, link)


if __name__ == "__main__":
    role, port, suite, identity, key = sys.argv[1:]
    try:
        {"client": client, "server": server}[role](int(port), suite, identity, bytes.fromhex(key))
    except Exception as error:  # a peer program reports whatever stops it
        say(f"failed: {type(error).__name__}: {error}")
        sys.exit(1)
