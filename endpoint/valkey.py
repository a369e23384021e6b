"""A connection to a Valkey or Redis server that comes back: what the key store and the forwarder share.

One coredis connection at a time, and all requests go through it: answers come in the order of the questions, so many
may be under way. (coredis' pools are not used: a place in one is lost with each attempt to connect that is cancelled, and here the
cancelling of lookups is everyday.) It is asked for a sign of life now and then, because a server that was unplugged does not
hang up; a connection for blocking commands is not, as their answers are signs enough. When it is lost everybody who waits hears
:class:`ServerAway` at once, and so does whoever asks until there is another one, which is tried for with growing pauses, and
jitter, so that a thousand endpoints do not come back to a restarted server in step.

Import this where it is needed: coredis takes half a second of a start, and most have no use for it.
"""

from __future__ import annotations

import math
import os
import ssl
from typing import TYPE_CHECKING, Any

import anyio
import trio
from coredis.connection import BaseConnection, TCPLocation, UnixDomainSocketLocation
from coredis.exceptions import RedisError, ResponseError

from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from anyio.abc import ByteStream
    from coredis.connection import BaseConnectionParams, Location

    from endpoint.valkey_access import ValkeyAccess

CONNECT_TIMEOUT = 5.0
"""Seconds for connecting, TLS and logging in."""
SIGN_OF_LIFE = 2.0
"""Seconds between two signs of life that are asked for, and for each to come."""
FIRST_PAUSE = 0.1
"""Seconds before the first attempt after a loss; each further one waits twice as long."""
LONGEST_PAUSE = 5.0
"""Seconds between two attempts at most: a server that is back is noticed within this time."""
MAX_REASON = 200
"""Characters of a reason: it may come from the server."""

Value = bytes | str | int | float


class ServerAway(Exception):
    """There is no answer from the server; the text says why."""


class ServerRefused(Exception):
    """The server has answered with an error; the text is the server's, made printable."""


class _Connection(BaseConnection):
    """Over a stream that is there. coredis' own kinds leave things open if they cannot connect."""

    def __init__(
        self, location: Location, stream: ByteStream, **options: Unpack[BaseConnectionParams]
    ) -> None:
        super().__init__(location, **options)
        self._given = stream

    async def _connect(self) -> ByteStream:
        return self._given

    def describe(self) -> str:
        return f"<connection to {self.location!r}>"


async def connect(access: ValkeyAccess) -> BaseConnection:
    """A connection, up to where the server would hear of us. Raises ``OSError``."""
    location: Location
    stream: ByteStream
    if access.address.path is not None:
        location = UnixDomainSocketLocation(access.address.path)
        stream = await anyio.connect_unix(access.address.path)
    else:
        location = TCPLocation(access.address.host, access.address.port)
        stream = await _connect_tcp(access, location.host, location.port)
    return _Connection(
        location,
        stream,
        username=access.username,
        password=access.password,
        db=access.database,
    )


async def _connect_tcp(access: ValkeyAccess, host: str, port: int) -> ByteStream:
    if access.tls is None:
        return await anyio.connect_tcp(host, port)
    return await anyio.connect_tcp(host, port, ssl_context=access.tls, tls_standard_compatible=False)


class _Settled:
    """What coredis calls when a connection is ready."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, _value: object = None) -> None:
        self.event.set()


class ValkeyLink:
    """See the module's text. ``request`` and ``batch`` work while :meth:`run` runs."""

    def __init__(
        self,
        access: ValkeyAccess,
        *,
        changed: Callable[[str | None], None] = lambda _reason: None,
        blocking: bool = False,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``changed(reason)`` hears of a server that cannot be reached, once, and with ``None`` of one that can again.

        ``blocking``: for commands that wait at the server, as a sign of life would have to wait behind them. Whoever sends them
        sees for himself that an answer comes, and else calls :meth:`drop`.
        """
        self.access = access
        """What the next connection is made with."""
        self.changed = changed
        self._blocking = blocking
        self._entropy = entropy
        self._lost = trio.Event()
        self._dropped = ""
        self._connection: BaseConnection | None = None
        self._reason: str | None = f"{access.address}: no connection yet"
        self._told: str | None = None
        self._connected = trio.Event()
        self._connects = 0
        self._attempts = 0

    @property
    def reason(self) -> str | None:
        """Why there is no connection; ``None`` = there is one."""
        return self._reason

    @property
    def client_id(self) -> int | None:
        """What the server calls this connection."""
        return None if self._connection is None else self._connection.client_id

    def drop(self, reason: str) -> None:
        """Give the connection up, and make another one."""
        self._dropped = reason
        self._gone()
        self._lost.set()

    async def wait_connected(self) -> None:
        """Return when there is a connection."""
        await self._connected.wait()

    async def request(self, *command: Value) -> Any:
        """The server's answer. Raises :class:`ServerAway` and :class:`ServerRefused`."""
        connection = self._connection
        if connection is None:
            raise ServerAway(self._reason)
        name, *arguments = command
        try:
            return await connection.create_request(_as_bytes(name), *arguments, decode=False)
        except ResponseError as error:
            raise ServerRefused(_text(error)) from None
        except (RedisError, TimeoutError) as error:
            raise ServerAway(f"{self.access.address}: {_why(error)}") from None

    async def batch(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        """The answers to many commands that are sent together; one that was refused has a :class:`ServerRefused` as its answer.

        Raises :class:`ServerAway` if any answer is missing; then nobody knows which were carried out.
        """
        connection = self._connection
        if connection is None:
            raise ServerAway(self._reason)
        try:
            requests = [
                connection.create_request(
                    _as_bytes(command[0]), *command[1:], decode=False, raise_exceptions=False
                )
                for command in commands
            ]
            answers: list[Any] = [await request for request in requests]
        except (RedisError, TimeoutError) as error:
            raise ServerAway(f"{self.access.address}: {_why(error)}") from None
        for index, answer in enumerate(answers):
            if isinstance(answer, ResponseError):
                answers[index] = ServerRefused(_text(answer))
            elif isinstance(answer, BaseException):
                raise ServerAway(f"{self.access.address}: {_why(answer)}")
        return answers

    async def run(self) -> None:
        """Keep a connection, until cancelled."""
        attempt = 0
        while True:
            began = trio.current_time()
            reason = await self._one_connection()
            if trio.current_time() - began > LONGEST_PAUSE:
                attempt = 0  # one that is made and lost again and again is tried for ever more slowly, too
            self._away(reason)
            await trio.sleep(self._pause(attempt))
            attempt += 1

    async def _one_connection(self) -> str:
        """Connect, and return when that has failed or the connection is lost: why."""
        self._attempts += 1
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                connection = await connect(self.access)
        except trio.TooSlowError:
            return f"no answer within {CONNECT_TIMEOUT:g} seconds"
        except (OSError, ssl.SSLError, ValueError) as error:
            return _why(error)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return "the connection was closed before TLS was agreed on"  # by what stands before the server, perhaps
        settled = _Settled()
        lost = self._lost = trio.Event()
        self._dropped = reason = ""

        async def live() -> None:
            nonlocal reason
            try:
                await connection.run(task_status=settled)
            except RedisError as error:
                reason = reason or _why(error)  # cancelled while it logs in, it raises one, too
            finally:
                self._gone()
                lost.set()
                settled.event.set()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                with trio.move_on_after(CONNECT_TIMEOUT):
                    await settled.event.wait()
                if not settled.event.is_set():
                    reason = f"no answer within {CONNECT_TIMEOUT:g} seconds"
                elif not lost.is_set():
                    self._here(connection)
                    reason = await self._watch(connection, lost)
                nursery.cancel_scope.cancel()
        finally:
            self._gone()
        return reason

    async def _watch(self, connection: BaseConnection, lost: trio.Event) -> str:
        while True:
            with trio.move_on_after(math.inf if self._blocking else SIGN_OF_LIFE):
                await lost.wait()
            if lost.is_set():
                return self._dropped or "the connection was closed"
            try:
                with trio.fail_after(SIGN_OF_LIFE):
                    await connection.create_request(b"PING", decode=False)
            except trio.TooSlowError:
                return f"no sign of life within {SIGN_OF_LIFE:g} seconds"
            except ResponseError:
                pass  # an ACL without PING: an answer nevertheless
            except RedisError as error:
                return _why(error)

    def _here(self, connection: BaseConnection) -> None:
        self._connection = connection
        self._connects += 1
        self._reason = None
        self._connected.set()
        self._tell(None)

    def _gone(self) -> None:
        """At once, or whoever waits for a connection would be told of one that there is not."""
        self._connection = None
        if self._connected.is_set():
            self._connected = trio.Event()
            self._reason = f"{self.access.address}: the connection was lost"

    def _away(self, reason: str) -> None:
        self._reason = f"{self.access.address}: {reason}"
        self._tell(self._reason)

    def _tell(self, reason: str | None) -> None:
        if (reason is None) != (self._told is None):
            self._told = reason
            self.changed(reason)

    def _pause(self, attempt: int) -> float:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 20))
        return longest * (1 + int.from_bytes(self._entropy(2)) / 0xFFFF) / 2

    def statistics(self) -> dict[str, int]:
        """``connected`` (0 or 1), ``connects``, and ``attempts`` to connect."""
        return {
            "connected": int(self._connection is not None),
            "connects": self._connects,
            "attempts": self._attempts,
        }


def _as_bytes(name: Value) -> bytes:
    return name.encode() if isinstance(name, str) else bytes(name)  # type: ignore[arg-type]


def _why(error: BaseException) -> str:
    """The innermost cause that has words: coredis' own say "unable to connect" of everything."""
    words = _text(error)
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return words
        words = _text(error) or words


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return show_text(error.strerror.lower())
    return show_text(str(error))[:MAX_REASON]
