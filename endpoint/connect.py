"""``dtls-endpoint connect``: be a device. Sends lines, prints what comes back, one line each.

Standard output has the replies and nothing else; everything about the connection is on standard
error. A datagram may be lost and a reply may never come, so silence is no failure: after the last
message it waits ``wait`` seconds, again after each reply, or until there are as many replies as
messages.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import attrs
import trio

from endpoint import open_dtls
from endpoint.association import CredentialKind
from endpoint.text import show_bytes, show_text
from sansdtls import ClientConfig, DtlsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from endpoint import DtlsChannel, Verify
    from endpoint.saved import SavedSession

STANDARD_INPUT = 0


class ConnectError(Exception):
    """Why it did not work, for the operator."""


@attrs.frozen(kw_only=True)
class Request:
    """What to do."""

    host: str
    port: int
    config: ClientConfig
    verify: Verify | None = None
    """Judges a server with a certificate or raw public key; ``None`` = refuse it."""
    saved: SavedSession | None = None
    """Where the session is kept for the next time."""
    messages: tuple[bytes, ...] | None = None
    """None = the lines of standard input."""
    keep_alive: float | None = None
    """Seconds without sending after which an empty datagram is sent."""
    timeout: float
    """Seconds for the handshake; ``config`` has it too."""
    wait: float
    """Seconds of silence after which no more replies are expected."""

    @property
    def target(self) -> str:
        """Host and port as text."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return show_text(f"{host}:{self.port}")


def parse_target(text: str, default_port: int) -> tuple[str, int]:
    """``HOST``, ``HOST:PORT``, ``[IPv6]``, ``[IPv6]:PORT`` or a bare IPv6 address; ValueError says what is wrong."""
    bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed.group(1), bracketed.group(2)
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    if not host or "[" in host or "]" in host:
        raise ValueError(f"{text!r} is not HOST, HOST:PORT or [IPv6]:PORT")
    if port is None:
        return host, default_port
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{port!r} is not a port from 1 to 65535")
    return host, int(port)


def printable_reply(data: bytes) -> str:
    """A reply as one line: as it is if it is plain text (a line end is cut off), else escaped."""
    body = data.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return show_bytes(body)
    return text if text.isprintable() else show_bytes(body)


async def connect(request: Request, *, write: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Do it; :class:`ConnectError` names the cause of a failure."""
    try:
        # The handshake has its own deadline, and a better message; this one bounds name resolution.
        with trio.fail_after(request.timeout + 1):
            channel = await open_dtls(
                request.host,
                request.port,
                config=request.config,
                verify=request.verify,
                keep_alive=request.keep_alive,
            )
    except trio.TooSlowError:
        raise ConnectError(f"{request.target}: no connection within {request.timeout:g} seconds") from None
    except (OSError, trio.BrokenResourceError, DtlsError) as error:
        raise ConnectError(_reason(request, error)) from None
    async with channel:
        note(_connected(channel))
        if request.config.connection_id is not None:
            note(_identified(channel))
        if request.saved is not None:
            _keep_session(request.saved, channel, note)
        try:
            unanswered = await _Conversation(channel, request, write).run()
        except trio.EndOfChannel:
            raise ConnectError(f"{request.target}: the peer closed the association") from None
        except (OSError, trio.BrokenResourceError, DtlsError) as error:
            raise ConnectError(_reason(request, error)) from None
        if unanswered > 0:
            # Not a failure: an endpoint that hands data on answers nothing.
            note(f"{unanswered} sent without a reply within {request.wait:g} s")


def _connected(channel: DtlsChannel) -> str:
    suite = channel.negotiated.cipher_suite.name
    who = show_bytes(channel.identity)
    match channel.kind:
        case CredentialKind.PSK:
            return f'connected to {channel.remote} as "{who}" with {suite}'
        case CredentialKind.CERTIFICATE:
            return f'connected to {channel.remote}, by its certificate "{who}", with {suite}'
        case _:
            return f'connected to {channel.remote}, by its raw public key "{who}", with {suite}'


def _identified(channel: DtlsChannel) -> str:
    given = channel.peer_connection_id
    if not given:
        return "the server gave no connection ID: it finds us by our address"
    proof = ", after asking there" if channel.negotiated.return_routability else ""
    return f"the server gave connection ID {given.hex()}: it finds us at any address{proof}"


def _keep_session(saved: SavedSession, channel: DtlsChannel, note: Callable[[str], None]) -> None:
    if saved.offered:
        note(
            "resumed the session" if channel.negotiated.resumed else "not resumed: a full handshake was made"
        )
    session = channel.session
    if session is None:
        note("the server offers no resumption")
        return
    try:
        saved.store(session)
    except OSError as error:
        raise ConnectError(
            f"{show_text(str(saved.path))}: {(error.strerror or str(error)).lower()}"
        ) from None


class _Conversation:
    """Sends all messages and prints replies meanwhile."""

    def __init__(self, channel: DtlsChannel, request: Request, write: Callable[[str], None]):
        self._channel = channel
        self._messages = request.messages
        self._wait = request.wait
        self._write = write
        self._unanswered = 0
        self._everything_sent = False
        self._silence = trio.CancelScope()
        self._failure: Exception | None = None

    async def run(self) -> int:
        """How many messages had no reply; raises what ended the channel too early."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, nursery.cancel_scope)
            await self._send()
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        return self._unanswered

    async def _send(self) -> None:
        try:
            async for message in self._each_message():
                await self._channel.send(message)
                self._unanswered += 1
        except (trio.BrokenResourceError, DtlsError) as error:
            self._failure = self._failure or error
            return
        self._everything_sent = True
        if self._unanswered > 0:
            with self._silence:
                self._silence.deadline = trio.current_time() + self._wait
                await trio.sleep_forever()

    async def _receive(self, everything: trio.CancelScope) -> None:
        while True:
            try:
                data = await self._channel.receive()
            except (trio.EndOfChannel, trio.BrokenResourceError) as error:
                self._failure = error
                everything.cancel()
                return
            try:
                self._write(printable_reply(data))
            except ConnectError as error:
                self._failure = error
                everything.cancel()
                return
            self._unanswered -= 1
            if self._everything_sent:
                self._silence.deadline = trio.current_time() + self._wait
                if self._unanswered <= 0:
                    self._silence.cancel()

    async def _each_message(self) -> AsyncIterator[bytes]:
        if self._messages is None:
            async for line in lines_of(STANDARD_INPUT):
                yield line
        else:
            for message in self._messages:
                yield message


async def lines_of(descriptor: int) -> AsyncIterator[bytes]:
    """The lines of a file, pipe or terminal, without line ends.

    Read with ``os.read`` in a thread: the buffered reader of ``sys.stdin`` has a lock, and a thread
    left waiting in it stops the interpreter from ending.
    """
    kept = b""
    while chunk := await trio.to_thread.run_sync(os.read, descriptor, 65_536, abandon_on_cancel=True):
        *lines, kept = (kept + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
    if kept:
        yield kept


def _reason(request: Request, error: BaseException) -> str:
    text = show_text(str(error) or type(error).__name__)
    return text if request.host in text else f"{request.target}: {text}"


def run(request: Request) -> int:
    """Run it with the process's own streams; the exit status."""

    def write(line: str) -> None:
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except OSError as error:
            raise ConnectError(f"standard output: {(error.strerror or str(error)).lower()}") from None

    def note(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    trio.run(lambda: connect(request, write=write, note=note))
    return 0
