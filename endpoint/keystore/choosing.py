"""The key store that ``[credentials]`` names, ready for an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.keystore.guard import GuardedStore
from endpoint.keystore.module import make_store
from endpoint.keystore.sqlite import SqliteKeyStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.credentials import Credentials
    from endpoint.keystore import KeyStore
    from endpoint.keystore.loading import LoadedCredentials


async def guarded_store(
    told: Credentials, loaded: LoadedCredentials, *, trouble: Callable[..., None]
) -> GuardedStore | None:
    """The store behind its guard; ``None`` for a PSK file, which is in memory and needs neither task nor guard.

    Raises :class:`~endpoint.keystore.StoreStartError`.
    """
    store: KeyStore
    if told.psk_database is not None:
        store = SqliteKeyStore(told.psk_database)
    elif loaded.valkey is not None:
        # Half a second of a start, which those who have no use for it need not wait.
        from endpoint.keystore.valkey import ValkeyKeyStore  # noqa: PLC0415 - see above

        store = ValkeyKeyStore(loaded.valkey, prefix=told.valkey.prefix)
    elif told.psk_module is not None:
        store = await make_store(told.psk_module, loaded.module)
    else:
        return None
    return GuardedStore(store, told.lookup, trouble=trouble)
