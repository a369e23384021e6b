"""``open_dtls``: the client.

There is no background task. Whoever waits in ``receive`` drives the socket and the connection's
timers, as ``open_dtls`` does during the handshake. So while nobody is in ``receive``: datagrams wait in
the kernel's buffer (which drops what does not fit), a close_notify is not noticed, the idle timeout
does not strike, and a server that lost our last flight gets it again only with the next
``receive``. ``send`` works regardless. A client that only ever sends loses nothing by this but the
news that its server has gone; with connection IDs and a server that asks whether its new address is its own
(RFC 9853), also the chance to answer.

Keep-alives are of the same kind: a NAT forgets a mapping that nobody uses, after 30 s in many networks, and with it goes
whatever the server would have sent. While somebody waits in ``receive``, ``keep_alive`` sends an empty application
data record (RFC 5246 §6.2.1: "Zero-length fragments of Application data MAY be sent") whenever nothing was sent
for so long. It is not answered, so it does not tell whether the server is still there.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import trio

from endpoint.addresses import address_text
from endpoint.association import CredentialKind
from endpoint.causes import cause_text
from endpoint.channel import ChannelStatistics, DtlsChannel, HandshakeFailed
from endpoint.path_errors import discover_path_mtu, known_path_size
from endpoint.sockets import MAX_DATAGRAM_SIZE
from endpoint.verification import PeerRejected, as_verify
from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    ConfigError,
    Connection,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    HandshakeTimeout,
    PeerCertificateReceived,
    PeerRawKeyReceived,
)
from sansdtls.pki import Purpose

if TYPE_CHECKING:
    from typing import NoReturn

    from endpoint.verification import PeerRequest, Verify
    from sansdtls import Cause, ClientConfig, Event, Peer
    from sansdtls.pki import TrustPolicy, Verifier

MIN_KEEP_ALIVE, MAX_KEEP_ALIVE = 0.01, 86_400.0
"""Seconds. Below, it would be a flood; above, the server's idle timeout comes first where the device has no connection
ID."""

REFUSALS_BELIEVED = 2
"""ICMP "port unreachable" in answer to so many datagrams, with nothing else heard, ends an attempt.
One may be forged, or meet a server that is just starting; believing none would make a closed port look
like loss. Where another address is left to try, one is enough."""


async def open_dtls(
    host: str,
    port: int,
    *,
    config: ClientConfig,
    verify: Verify | Verifier | TrustPolicy | None = None,
    keep_alive: float | None = None,
) -> DtlsChannel:
    """Connect to ``host`` and return the channel once both sides have proved their key.

    ``verify`` says whether a server with a certificate or raw public key is the right one: a ``sansdtls.pki``
    trust policy or verifier, which looks for ``config.server_name`` in the certificate, a
    :class:`PeerVerifier`, or your own function (:data:`Verify`). Without it such servers are rejected.
    ``config.server_certificate_types`` says what is accepted at all. What a function of your own raises,
    other than :class:`PeerRejected`, is raised here.

    ``keep_alive``: while a task waits in ``receive``, send an empty datagram after so many seconds in which nothing was sent,
    so that a NAT on the way keeps its mapping; ``None`` = never.

    Use it as ``async with await open_dtls(...) as channel``. Where ``host`` has several addresses they are
    tried in the resolver's order; the next one's turn comes when one does not answer at all within
    ``config.retransmit.handshake_timeout``, or is refused or unreachable.

    Raises :class:`HandshakeFailed` (a ``trio.BrokenResourceError``, with ``cause``) where a DTLS peer
    answered and the handshake failed, e.g. for a wrong key; else an ``OSError``: ``TimeoutError``,
    ``ConnectionRefusedError``, ``socket.gaierror`` and so on. Each message names address and cause.
    """
    if config.psk_identity is not None and config.psk_key is None:
        raise ConfigError("ClientConfig.psk_key: open_dtls needs the key")
    if keep_alive is not None and not MIN_KEEP_ALIVE <= keep_alive <= MAX_KEEP_ALIVE:
        raise ConfigError(
            f"keep_alive: {keep_alive!r} is not within {MIN_KEEP_ALIVE:g} to {MAX_KEEP_ALIVE:g} seconds"
        )
    judge = as_verify(verify, Purpose.SERVER)
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    failures: list[OSError] = []
    for number, (family, _, _, _, target) in enumerate(found, start=1):
        try:
            return await _open_one(
                family,
                target,
                config,
                judge,
                keep_alive=keep_alive,
                refusals_believed=REFUSALS_BELIEVED if number == len(found) else 1,
            )
        except OSError as failure:
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    reasons = "; ".join(str(failure) for failure in failures)
    raise OSError(f"no address of {host!r} answers: {reasons}") from ExceptionGroup(
        f"attempts to reach {host!r}", failures
    )


async def _open_one(
    family: int,
    target: Any,
    config: ClientConfig,
    verify: Verify,
    *,
    keep_alive: float | None,
    refusals_believed: int,
) -> OpenedChannel:
    remote = address_text(target)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        discover_path_mtu(sock, wanted=True)
        try:
            # Connected, so that only this peer's datagrams, and ICMP errors, are delivered.
            sock.connect(target)
        except OSError as error:
            raise OSError(error.errno, f"{remote}: {error.strerror}") from error
        connection = Connection.client(config, entropy=os.urandom, now=trio.current_time())
        channel = OpenedChannel(
            connection,
            sock,
            remote=remote,
            verify=verify,
            server_name=config.server_name,
            keep_alive=keep_alive,
        )
        await channel.shake_hands(refusals_believed)
    except BaseException:
        sock.close()
        raise
    return channel


class OpenedChannel(DtlsChannel):
    """A client's channel: one connection on a socket of its own."""

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        *,
        remote: str,
        verify: Verify,
        server_name: str | None,
        keep_alive: float | None,
    ) -> None:
        super().__init__(connection, identity=b"", kind=CredentialKind.NONE, key_index=None)
        self._verify = verify
        self._server_name = server_name
        self._verifying: PeerRequest | None = None
        """What is to be verified next; only during the handshake."""
        self._rejection: PeerRejected | None = None
        self._socket = sock
        self._remote = remote
        self._local = address_text(sock.getsockname())
        self._arrived: deque[bytes] = deque()
        """Data of the datagram handled last; what comes after waits in the kernel's buffer."""
        self._unsent: deque[bytes] = deque()
        """Sealed datagrams that the kernel had no room for."""
        self._receiving = trio.Lock()
        self._writing = trio.Lock()
        self._wait = trio.CancelScope()
        self._keep_alive = math.inf if keep_alive is None else keep_alive
        self._established = False
        self._last_sent = trio.current_time()
        self._heard = False
        self._refusals = 0
        self._send_errors = 0
        self._last_error: OSError | None = None

    @property
    def remote(self) -> str:
        return self._remote

    @property
    def local(self) -> str:
        return self._local

    @property
    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, self._send_errors, self._connection.statistics)

    async def shake_hands(self, refusals_believed: int) -> None:
        """Run the handshake. Raises as :func:`open_dtls`."""
        try:
            self._flush()
            while self._connection.state is ConnectionState.HANDSHAKING:
                await self._step()
                if self._verifying is not None:
                    await self._verify_peer(self._verifying)
                if not self._heard and self._refusals >= refusals_believed:
                    raise ConnectionRefusedError(f"{self._remote}: connection refused; nothing listens there")
            if self._cause is not None:
                self._raise_handshake_failed(self._cause)
            await self._note_peer()
            self._established = True
        except BaseException:
            # Cancelled, or failed: the server need not wait for the rest.
            self._closed = True
            self._close()
            raise

    def _raise_handshake_failed(self, cause: Cause) -> NoReturn:
        if isinstance(cause, HandshakeTimeout) and not self._heard:
            hint = "" if self._last_error is None else f"; the last error was: {self._last_error}"
            raise TimeoutError(f"{self._remote}: no answer{hint}")
        why = cause_text(cause) if self._rejection is None else self._rejection.detail
        raise HandshakeFailed(f"{self._remote}: the handshake failed: {why}", cause)

    async def _note_peer(self) -> None:
        peer = self.peer
        self._kind = CredentialKind.of(peer)
        if peer.psk_identity is not None:
            self._identity = peer.psk_identity
            self._key_index = peer.psk_key_index
        elif self.negotiated.resumed:
            await self._judge_again(peer)

    async def _judge_again(self, peer: Peer) -> None:
        """Ask about what the server showed when the session was made: it is not shown again, and may have run out."""
        request: PeerRequest
        if peer.certificate_chain is not None:
            request = PeerCertificateReceived(
                self._connection, peer.certificate_chain, self._server_name, resumption=True
            )
        elif peer.raw_public_key is not None:
            request = PeerRawKeyReceived(
                self._connection, peer.raw_public_key, self._server_name, resumption=True
            )
        else:
            return
        try:
            answer = self._verify(request)
            self._identity = await answer if isinstance(answer, Awaitable) else answer
        except PeerRejected as rejected:
            self._rejection = rejected
            self._raise_handshake_failed(AuthenticationFailed(AuthenticationProblem.PEER_REJECTED))

    async def _verify_peer(self, request: PeerRequest) -> None:
        """Ask the verifier; where it takes its time, the connection's timers run on meanwhile."""
        self._verifying = None
        try:
            answer = self._verify(request)
            if isinstance(answer, Awaitable):
                answer = await self._while_stepping(answer)
            self._identity = answer
            events = self._connection.accept_peer(request, now=trio.current_time())
        except PeerRejected as rejected:
            self._rejection = rejected
            events = self._connection.reject_peer(request, rejected.alert, now=trio.current_time())
        self._take(events)
        self._flush()

    async def _while_stepping(self, awaitable: Awaitable[bytes]) -> bytes:
        answer: list[bytes] = []
        failure: list[Exception] = []

        async def find_out(done: trio.CancelScope) -> None:
            try:
                answer.append(await awaitable)
            except Exception as error:  # noqa: BLE001 - raised below: a nursery would wrap it into a group
                failure.append(error)
            done.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find_out, nursery.cancel_scope)
            while self._connection.state is ConnectionState.HANDSHAKING:
                await self._step()
            nursery.cancel_scope.cancel()
        if failure:
            raise failure[0]
        # None: the handshake ended first, of a timeout say, and any answer will do.
        return answer[0] if answer else b""

    async def receive(self) -> bytes:
        # One task at a time drives; the others wait here and find their turn, or the end.
        async with self._receiving:
            while not self._arrived or self._closed:
                if self._closed or self._cause is not None:
                    raise self._why_no_more()
                await self._step()
            return self._arrived.popleft()

    async def _step(self) -> None:
        """Wait for one datagram or the next timeout, whichever is first, and handle it."""
        datagram = None
        with trio.CancelScope(deadline=self._deadline()) as self._wait:
            datagram = await self._receive_datagram()
        now = trio.current_time()
        if datagram is not None:
            self._take(self._connection.receive_datagram(datagram, now=now))
        elif self._wait.cancelled_caught:
            self._take(self._connection.handle_timeout(now=now))
            self._send_keep_alive(now)
        self._flush()

    def _deadline(self) -> float:
        deadline = self._connection.next_timeout()
        keep_alive = self._last_sent + self._keep_alive if self._established else math.inf
        return keep_alive if deadline is None else min(deadline, keep_alive)

    def _send_keep_alive(self, now: float) -> None:
        """Send something if nothing was sent for long: then the timeout was that."""
        if self._established and self._cause is None and now >= self._last_sent + self._keep_alive:
            self._connection.send(b"", now=now)

    async def _receive_datagram(self) -> bytes | None:
        """One datagram, or ``None`` for an error (an ICMP message), which is noted and no more."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                datagram = self._socket.recv(MAX_DATAGRAM_SIZE)
            except BlockingIOError:
                continue  # another process took it, or its checksum was wrong
            except ConnectionRefusedError:
                self._refusals += 1
                return None
            except OSError as error:
                self._note_error(error)
                return None
            self._heard = True
            return datagram

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, DataReceived):
                self._arrived.append(event.data)
            elif isinstance(event, PeerCertificateReceived | PeerRawKeyReceived):
                self._verifying = event
            elif isinstance(event, ConnectionTerminated):
                self._cause = event.cause

    def _flush(self) -> None:
        outgoing = self._connection.datagrams_to_send()
        if outgoing:
            self._last_sent = trio.current_time()
            self._unsent.extend(datagram.data for datagram in outgoing)
        while self._unsent and self._send_now(self._unsent[0]):
            self._unsent.popleft()

    def _send_now(self, datagram: bytes) -> bool:
        """``False`` = the kernel has no room. Any other error is counted; the datagram counts as lost."""
        try:
            try:
                self._socket.send(datagram)
            except ConnectionRefusedError:
                # This reports what became of an earlier datagram, in place of sending this one.
                self._refusals += 1
                self._socket.send(datagram)
            except OSError as error:
                if len(datagram) > self._note_error(error):
                    raise
                self._socket.send(datagram)  # as above
        except BlockingIOError:
            return False
        except OSError as error:
            self._note_error(error)
            self._send_errors += 1
        return True

    def _note_error(self, error: OSError) -> int:
        """Have the connection send less if that was it, and a flight again; bytes that the path takes, 0 = not known."""
        if error.errno == errno.EAGAIN:
            return 0
        self._last_error = error
        size = known_path_size(self._socket) if error.errno == errno.EMSGSIZE else None
        if size is None:
            return 0
        self._take(self._connection.limit_datagram_size(size, now=trio.current_time()))
        self._unsent.extend(datagram.data for datagram in self._connection.datagrams_to_send())
        return size

    async def _until_writable(self) -> None:
        # Waiting for one descriptor in two tasks is an error in trio, hence the lock.
        while self._unsent and not self._closed:
            async with self._writing:
                await trio.lowlevel.wait_writable(self._socket)
                self._flush()

    def _transmit(self, data: bytes) -> None:
        self._connection.send(data, now=trio.current_time())
        self._settle()

    def _settle(self) -> None:
        self._flush()
        self._wait.deadline = min(self._wait.deadline, self._deadline())

    def _close(self) -> None:
        self._connection.close(now=trio.current_time())
        self._flush()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
