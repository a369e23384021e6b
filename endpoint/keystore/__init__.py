"""Where keys come from.

A key store answers one question: which pre-shared keys does this identity have? It may answer at
once (a file, a dictionary) or later (a database, an HSM); the engine serves other peers meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEYS = 2
"""Keys per identity: the current and, during a rotation, the next. More would let a store turn each
client Finished into a search."""

Keys: TypeAlias = Sequence[bytes]
"""The keys of one identity, current first; empty = the identity is unknown."""


class KeyStore(Protocol):
    """Looks up the keys of an identity."""

    def lookup(self, identity: bytes) -> Keys | Awaitable[Keys]:
        """The keys of ``identity``, current first, at most two; ``[]`` if it is unknown.

        ``identity`` is what an unauthenticated peer sent: any bytes, of any length up to 65,535. A
        sequence is used at once, so computing it must not block. An awaitable runs in a task of its
        own and is cancelled when its handshake ends first. An exception counts as "unknown" and is
        reported through ``Observer.trouble``.
        """
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
