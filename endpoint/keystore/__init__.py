"""Where keys come from.

A key store answers one question: which pre-shared keys does this identity have? It may answer at
once (a file, a dictionary) or later (a database, an HSM); the engine serves other peers meanwhile.

Three answers are possible, and the difference matters to the device that waits: keys; none (the identity is unknown, and
the handshake goes on and fails as with a wrong key); and :class:`StoreUnavailable`, on which the handshake ends at once with an
alert that has the device come back. A store that answers later wants a :class:`~endpoint.keystore.guard.GuardedStore` around it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEYS = 2
"""Keys per identity: the current and, during a rotation, the next. More would let a store turn each
client Finished into a search."""

Keys: TypeAlias = Sequence[bytes]
"""The keys of one identity, current first; empty = the identity is unknown."""


def why_no_keys(answer: object) -> str | None:
    """What is wrong with a store's answer; ``None`` if it is keys, or none. The text holds none of it."""
    # bytes are a sequence too, of numbers: the likeliest mistake of a store deserves its own words.
    if not isinstance(answer, Sequence) or isinstance(answer, (bytes, bytearray, str)):
        return f"a list of keys is needed, not {type(answer).__name__}"
    return None if all(isinstance(key, bytes) for key in answer) else "a key is not bytes"


class StoreUnavailable(Exception):
    """The store cannot say now which keys an identity has. The text is for the operator, and holds no key."""

    what = "key store unavailable"
    """As which fact it is told."""


class KeyDataError(StoreUnavailable):
    """What the store has for this identity cannot be used; all others are not concerned.

    It is refused like an outage, not like a stranger: the device is one that somebody has entered, and the mistake will be put right.
    """

    what = "key record unusable"


class StoreStartError(Exception):
    """The store cannot be used, and a human is needed; the text is for the operator."""


class KeyStore(Protocol):
    """Looks up the keys of an identity."""

    def lookup(self, identity: bytes) -> Keys | Awaitable[Keys]:
        """The keys of ``identity``, current first, at most two; ``[]`` if it is unknown.

        ``identity`` is what an unauthenticated peer sent: any bytes, of any length up to 65,535. A
        sequence is used at once, so computing it must not block. An awaitable runs in a task of its
        own and is cancelled when its handshake ends first. :class:`StoreUnavailable` has the device come back;
        any other exception counts as "unknown". Each is reported through ``Observer.trouble``.
        """
        ...


@runtime_checkable
class ManagedStore(Protocol):
    """A :class:`KeyStore` with a life of its own: connections, threads, figures."""

    def lookup(self, identity: bytes) -> Keys | Awaitable[Keys]:
        """See :meth:`KeyStore.lookup`. Answers with :class:`StoreUnavailable` while :meth:`run` does not run."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep what lookups need, until cancelled. A store that is down is no reason to raise or to return."""
        ...

    async def check(self) -> str | None:
        """Why it could not answer now, for the operator; ``None`` = it could."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges, as plain nested dicts."""
        ...


class DictKeyStore:
    """Keys in memory, for tests and for programs that bring their own storage."""

    def __init__(self, keys: Mapping[bytes, bytes | Keys] | None = None) -> None:
        self._keys: dict[bytes, tuple[bytes, ...]] = {}
        for identity, value in (keys or {}).items():
            self.set(identity, *((value,) if isinstance(value, bytes) else value))

    def lookup(self, identity: bytes) -> Keys:
        """See :meth:`KeyStore.lookup`."""
        return self._keys.get(identity, ())

    def set(self, identity: bytes, *keys: bytes) -> None:
        """Give ``identity`` these keys, current first; live associations are not touched.

        Raises ``ValueError`` for no key, more than two, or an empty one. The message names the
        identity only.
        """
        if not 1 <= len(keys) <= MAX_KEYS:
            raise ValueError(f"{identity!r}: {len(keys)} keys, not 1 to {MAX_KEYS}")
        if not all(keys):
            raise ValueError(f"{identity!r}: a key is empty")
        self._keys[identity] = keys

    def remove(self, identity: bytes) -> None:
        """Forget ``identity``; unknown ones are ignored."""
        self._keys.pop(identity, None)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        # Neither keys nor identities: a repr ends up in logs and tracebacks.
        return f"<DictKeyStore with {len(self._keys)} identities>"
