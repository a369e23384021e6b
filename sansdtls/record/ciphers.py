"""Which of a server's associations have their cipher objects at hand.

A cipher object of OpenSSL's takes 0.6 KiB with CCM and 2.4 KiB with GCM, and each association needs two: more than
all else that it keeps. To make one and drop another takes 1 to 2 us. So those made last are kept, and of all others
only the keys: up to 2,048 associations in use pay nothing, and where more take turns, an answered datagram costs 3
to 4 us more, a sixth.

First made, first dropped: an association in use whose turn has come gets new ones with its next record. To keep
track of who used what last would cost every record more than it saves. Anybody can make a server prepare ciphers,
with junk under a connection ID or from a path that is known; that costs one made for the record and one made again
for whom it displaced, and no memory beyond the limit.

The keys lie in memory as plain bytes, as they do inside OpenSSL's objects. What an association that has ended kept
of them is let go of at once; Python cannot overwrite it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

MAX_CIPHERS = 4_096
"""Cipher objects that a server keeps: both directions of 2,048 associations, 9.6 MiB with GCM, 2.4 MiB with CCM. More
would help only where more are in use at once, and take 4.8 KiB for each of those with GCM."""


class Prepared(Protocol):
    """What has a cipher object and can make it again."""

    def drop_cipher(self) -> None:
        """Do without it until it is needed."""


class Ciphers:
    """Those that have one, the one made first in front."""

    __slots__ = ("_limit", "_prepared")

    def __init__(self, limit: int = MAX_CIPHERS) -> None:
        self._limit = limit
        self._prepared: OrderedDict[Prepared, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prepared)

    def add(self, prepared: Prepared) -> None:
        """One is about to be made; the oldest goes if there are too many."""
        self._prepared[prepared] = None
        if len(self._prepared) > self._limit:
            self._prepared.popitem(last=False)[0].drop_cipher()

    def discard(self, prepared: Prepared) -> None:
        """One has dropped it, or never had any."""
        self._prepared.pop(prepared, None)
