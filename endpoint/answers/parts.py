"""What answers are made of."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import attrs
import trio

from endpoint.keystore.fingerprint import fingerprint
from endpoint.text import UtcStamps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from endpoint.answers.names import Names
    from endpoint.engine import Engine
    from endpoint.history import History
    from endpoint.keystore import KeyStore
    from endpoint.tally import Tally
    from endpoint.usage import KeyUsage

LOOKUP_TIME = 5.0
"""Seconds for the key store to say which keys an identity has."""


@attrs.frozen(kw_only=True, eq=False)
class Parts:
    """The parts of a running service that are asked."""

    engine: Engine
    keystore: KeyStore
    names: Names
    """The identities of the key store, where it can list them."""
    statistics: Callable[[], Mapping[str, Any]]
    """Of all parts together."""
    tally: Tally
    history: History
    usage: KeyUsage | None
    not_ready: Callable[[], Awaitable[Mapping[str, str]]]
    """What keeps the service from its work, by part."""
    state: Callable[[], str]
    """``serving`` or ``stopping``."""
    version: str
    started: float
    """Seconds since the epoch."""
    uptime: Callable[[], float]
    """Seconds."""


@attrs.frozen
class Keys:
    """Which keys an identity has, or why that is not known."""

    fingerprints: tuple[str, ...] = ()
    unavailable: str | None = None


async def keys_of(keystore: KeyStore, identity: bytes, *, deadline: float | None = None) -> Keys:
    """Ask the store, until ``deadline`` on trio's clock; by default for :data:`LOOKUP_TIME`. Never raises."""
    until = trio.current_time() + LOOKUP_TIME if deadline is None else deadline
    try:
        with trio.fail_at(until):
            answer = keystore.lookup(identity)
            keys = await answer if isinstance(answer, Awaitable) else answer
        return Keys(tuple(fingerprint(key) for key in keys))
    except trio.TooSlowError:
        return Keys(unavailable=f"it does not answer within {LOOKUP_TIME:g} s")
    except Exception as error:  # noqa: BLE001 - whatever a store raises is what the operator wants to know
        return Keys(unavailable=str(error) or type(error).__name__)


def stamp(seconds: float) -> str:
    """Seconds since the epoch as UTC text."""
    return UtcStamps()(seconds)


def used(usage: KeyUsage | None, identity: bytes) -> dict[str, Any] | None:
    """Which key it used last, and when."""
    last = None if usage is None else usage.last(identity)
    if last is None:
        return None
    return {"fingerprint": last.fingerprint, "which": last.which, "when": stamp(last.when)}
