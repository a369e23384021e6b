"""The identities of a key store, in the order of their bytes, where it can list them.

A PSK file has them in memory, a database gives them page by page (``page``); Valkey and most stores that somebody writes for
himself can only be asked for one.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

AT_ONCE = 4_096
"""Identities that are looked through before devices get a turn: about a millisecond."""
PAGE = 10_000
"""Identities that a store is asked for at once."""
MOST = 2_000_000
"""Identities that are read in all, to look for similar ones."""


class Names:
    """Lists the identities of ``keystore``, or of the store that it stands in front of."""

    def __init__(self, keystore: object, at_hand: Callable[[], Iterable[bytes]]) -> None:
        """``at_hand`` gives those that are in memory, in any order."""
        self._at_hand = at_hand
        innermost: Any = keystore
        while hasattr(innermost, "store"):
            innermost = innermost.store
        self._page = getattr(innermost, "page", None)

    async def page(self, after: bytes | None, limit: int) -> list[bytes]:
        """The next ``limit`` identities behind ``after``. None where the store cannot be listed, or cannot answer now."""
        if self._page is None:
            return await smallest(list(self._at_hand()), after, limit)
        try:
            return list(await self._page(after, limit))
        except Exception:  # noqa: BLE001 - keys_of says of each identity that is known otherwise why
            return []

    async def all(self) -> list[bytes]:
        """All of them."""
        if self._page is None:
            return list(self._at_hand())
        found: list[bytes] = []
        while len(found) < MOST:
            page = await self.page(found[-1] if found else None, PAGE)
            found += page
            if len(page) < PAGE:
                break
        return found


async def smallest(
    names: Collection[bytes], after: bytes | None, count: int, besides: Iterable[bytes] = ()
) -> list[bytes]:
    """The first ``count`` of ``names`` and ``besides`` behind ``after``, each once.

    A fleet has 100,000, so in portions. ``names`` is a copy: tables change while others have their turn.
    """
    best = sorted(set(besides))[:count]
    ordered = list(names)
    for start in range(0, len(ordered), AT_ONCE):
        portion = {name for name in ordered[start : start + AT_ONCE] if after is None or name > after}
        best = heapq.nsmallest(count, portion.union(best))
        await trio.lowlevel.checkpoint()
    return best
