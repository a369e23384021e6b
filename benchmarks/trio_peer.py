"""trio's ``DTLSEndpoint`` as it comes, with an echo handler; and the pyOpenSSL client that loads it.

Two set-ups. ``ECDHE-ECDSA`` is what its documentation leads to: a context with a certificate and
OpenSSL's defaults. ``PSK`` is the same endpoint on the cipher suite that this project's rows use, so
that one ratio compares like with like; pyOpenSSL has no call for it, so it goes through the bindings
that pyOpenSSL itself is made of.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import trio
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from benchmarks import certificate, control
from benchmarks.load import HOST, PSK_IDENTITY, PSK_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.control import Pipe
    from benchmarks.load import Client

MTU = 1472
"""Bytes of UDP payload; what trio itself assumes on IPv4."""
RECORD_HEADER_SIZE = 13

_keep_alive: list[Any] = []
"""C callbacks, which OpenSSL refers to without owning."""


def _use_psk(context: SSL.Context, ciphers: str, *, server: bool) -> None:
    binding = Binding()
    lib, ffi = binding.lib, binding.ffi
    context.set_cipher_list(ciphers.encode())
    if server:

        @ffi.callback("unsigned int(SSL *, const char *, unsigned char *, unsigned int)")
        def server_key(_ssl: Any, _identity: Any, key: Any, _size: int) -> int:
            ffi.memmove(key, PSK_KEY, len(PSK_KEY))
            return len(PSK_KEY)

        lib.SSL_CTX_set_psk_server_callback(context._context, server_key)
        _keep_alive.append(server_key)
    else:
        signature = "unsigned int(SSL *, const char *, char *, unsigned int, unsigned char *, unsigned int)"

        @ffi.callback(signature)
        def client_key(_ssl: Any, _hint: Any, identity: Any, _room: int, key: Any, _size: int) -> int:
            ffi.memmove(identity, PSK_IDENTITY + b"\0", len(PSK_IDENTITY) + 1)
            ffi.memmove(key, PSK_KEY, len(PSK_KEY))
            return len(PSK_KEY)

        lib.SSL_CTX_set_psk_client_callback(context._context, client_key)
        _keep_alive.append(client_key)


def serve(pipe: Pipe, psk_ciphers: str | None) -> None:
    """The measured process."""
    trio.run(_serve, pipe, psk_ciphers)


async def _serve(pipe: Pipe, psk_ciphers: str | None) -> None:
    context = SSL.Context(SSL.DTLS_METHOD)
    if psk_ciphers is None:
        shown, key = certificate.self_signed()
        context.use_certificate(shown)
        context.use_privatekey(key)
    else:
        _use_psk(context, psk_ciphers, server=True)
    seen_ciphers: set[str | None] = set()

    async def echo(channel: trio.DTLSChannel) -> None:
        with contextlib.suppress(SSL.Error, trio.BrokenResourceError):  # the client has left
            await channel.do_handshake()
            seen_ciphers.add(channel._ssl.get_cipher_name())
            while True:
                await channel.send(await channel.receive())

    sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await sock.bind((HOST, 0))
    with trio.DTLSEndpoint(sock) as endpoint:
        async with trio.open_nursery() as nursery:
            await nursery.start(endpoint.serve, context, echo)
            pipe.send(sock.getsockname()[1])
            await control.answer(pipe, lambda: {"suites": sorted(map(str, seen_ciphers))})
            nursery.cancel_scope.cancel()


class OpenSslClient:
    """A DTLS client out of pyOpenSSL and memory BIOs."""

    def __init__(self, context: SSL.Context, session: SSL.Session | None = None) -> None:
        self.established = False
        self._context = context
        self._ssl = SSL.Connection(context)
        if session is not None:
            self._ssl.set_session(session)
        self._ssl.set_ciphertext_mtu(MTU)
        self._ssl.set_connect_state()

    @property
    def resumed(self) -> bool:
        return bool(Binding().lib.SSL_session_reused(self._ssl._ssl))

    @property
    def group(self) -> str | None:
        name = self._ssl.get_group_name()
        return None if name is None else name.lower()

    def resume(self) -> OpenSslClient:
        return OpenSslClient(self._context, self._ssl.get_session())

    def start(self) -> list[bytes]:
        return self._advance()

    def receive(self, datagram: bytes) -> list[bytes]:
        self._ssl.bio_write(datagram)
        return self._advance()

    def repeat(self) -> list[bytes]:
        self._ssl.DTLSv1_handle_timeout()
        return self._outgoing()

    def seal(self, payload: bytes) -> bytes:
        self._ssl.write(payload)
        return self._ssl.bio_read(MTU)

    def unseal(self, datagram: bytes) -> bytes | None:
        self._ssl.bio_write(datagram)
        try:
            return self._ssl.read(MTU)
        except SSL.WantReadError:
            return None

    def close(self) -> list[bytes]:
        with contextlib.suppress(SSL.Error):  # no answer yet; none is awaited
            self._ssl.shutdown()
        return self._outgoing()

    def _advance(self) -> list[bytes]:
        with contextlib.suppress(SSL.WantReadError):
            self._ssl.do_handshake()
            self.established = True
        return self._outgoing()

    def _outgoing(self) -> list[bytes]:
        """What OpenSSL has written, as datagrams: its memory BIO joins them, so pack records anew."""
        written = b""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                written += self._ssl.bio_read(65_536)
        datagrams: list[bytes] = []
        while written:
            size = RECORD_HEADER_SIZE + int.from_bytes(written[11:13], "big")
            record, written = written[:size], written[size:]
            if datagrams and len(datagrams[-1]) + size <= MTU:
                datagrams[-1] += record
            else:
                datagrams.append(record)
        return datagrams


def client_factory(psk_ciphers: str | None) -> Callable[[], Client]:
    context = SSL.Context(SSL.DTLS_METHOD)
    context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_RENEGOTIATION)
    context.set_verify(SSL.VERIFY_NONE)  # the load generator's own cost is of no interest
    if psk_ciphers is not None:
        _use_psk(context, psk_ciphers, server=False)
    return lambda: OpenSslClient(context)
