"""Keys in a Valkey or Redis server.

An identity has a hash, whose name is ``prefix`` and the identity, byte by byte, with up to two fields, as hexadecimal digits::

    HSET psk:meter-18 current 00112233445566778899aabbccddeeff next ffeeddccbbaa99887766554433221100

``next`` is there during a rotation only; other fields are the operator's own, and not read. There is no hash of a
name unless somebody has entered that identity, so a name that is not there is an identity that is unknown. Rotation and removal
take effect with the next handshake: nothing is kept here.

The server needs one command of us, on names with that prefix, besides those of a connection::

    ACL SETUSER dtls-endpoint on >PASSWORD resetchannels -@all +hmget +ping ~psk:*

**Wrong data** (digits that are none, a key that is too short, ``next`` without ``current``, something that is no hash) refuses
the handshake, as an outage would, and is told with identity and remedy: the device is not a stranger, and told that its key were
wrong it might never come back. No text holds a key, or the value that should have been one.

Left out: clusters and sentinels (a hash is asked for on one server; a proxy or a floating address does the rest), keys as raw bytes
(32 digits and a raw key of 32 bytes could not be told apart), and pushed changes, as there is nothing here that could be outdated.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import trio

from endpoint.keystore import KeyDataError, StoreUnavailable
from endpoint.keystore.file import MAX_KEY_BYTES, MIN_KEY_BYTES, quoted_identity
from endpoint.valkey import ServerAway, ServerRefused, ValkeyLink

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.keystore import Keys
    from endpoint.valkey_access import ValkeyAccess

FIELDS = ("current", "next")
_DAMAGED = ("WRONGTYPE", "Operation against a key holding the wrong kind")


class ValkeyKeyStore:
    """See the module's text. A :class:`~endpoint.keystore.ManagedStore`; put a guard around it."""

    def __init__(self, access: ValkeyAccess, *, prefix: str = "psk:") -> None:
        """Make it inside ``trio.run``."""
        self._prefix = prefix.encode()
        self._link = ValkeyLink(access)

    def __repr__(self) -> str:
        return f"<ValkeyKeyStore {self._link.access.address}>"

    @property
    def on_change(self) -> Callable[[str | None], None]:
        """Hears why the server cannot be reached, and with ``None`` that it can again."""
        return self._link.changed

    @on_change.setter
    def on_change(self, changed: Callable[[str | None], None]) -> None:
        self._link.changed = changed

    def use(self, access: ValkeyAccess) -> None:
        """Connect with ``access`` from the next time on."""
        self._link.access = access

    async def lookup(self, identity: bytes) -> Keys:
        """The keys of ``identity``. Raises :class:`StoreUnavailable`, and :class:`KeyDataError` for wrong data."""
        try:
            values = await self._link.request("HMGET", self._prefix + identity, *FIELDS)
        except ServerAway as away:
            raise StoreUnavailable(str(away)) from None
        except ServerRefused as refused:
            if str(refused).startswith(_DAMAGED):
                raise self._damaged(identity, "is no hash; remedy: HSET it with current (and next)") from None
            raise StoreUnavailable(f"{self._link.access.address} says: {refused}") from None
        keys = [
            self._key(identity, name, value)
            for name, value in zip(FIELDS, values, strict=True)
            if value is not None
        ]
        if values[0] is None and keys:
            raise self._damaged(identity, "has next and no current key; remedy: HSET current, or HDEL next")
        return tuple(dict.fromkeys(keys))

    def _key(self, identity: bytes, name: str, value: object) -> bytes:
        if not isinstance(value, bytes) or not re.fullmatch(rb"(?:[0-9A-Fa-f]{2})+", value):
            raise self._damaged(identity, f"the {name} key is not an even number of hex digits")
        key = bytes.fromhex(value.decode("ascii"))
        if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise self._damaged(
                identity, f"the {name} key has {len(key)} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}"
            )
        return key

    def _damaged(self, identity: bytes, what: str) -> KeyDataError:
        address, prefix = self._link.access.address, self._prefix.decode()
        return KeyDataError(f"{address}: {prefix} and {quoted_identity(identity)}: {what}")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection, until cancelled."""
        task_status.started()
        await self._link.run()

    async def check(self) -> str | None:
        """Why lookups would fail now."""
        if self._link.reason is not None:
            return self._link.reason
        try:
            # As a lookup does it, so that missing rights show: of the empty identity, which no peer is asked about.
            await self._link.request("HMGET", self._prefix, *FIELDS)
        except ServerAway as away:
            return str(away)
        except ServerRefused as refused:
            return (
                None if str(refused).startswith(_DAMAGED) else f"{self._link.access.address} says: {refused}"
            )
        return None

    def statistics(self) -> dict[str, Any]:
        """Those of the connection."""
        return {"kind": "valkey", **self._link.statistics()}
