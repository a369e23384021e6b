"""What a running service does for rotation and removal: it remembers who uses which key, and ends who has none.

Commands of the admin socket, for ``dtls-endpoint keys``. Identities are text as the log shows it::

    key_use     identity               use (fingerprint, which, when: seconds since 1970; null if nothing is known),
                                       live and frozen: associations made with a pre-shared key
    key_uses    after, limit           uses: a list of the same with identity, in the order of their bytes; more
    end         identity, accepted     live and frozen: associations made with a pre-shared key that are ended; accepted
                                       (fingerprints, may be left out): not those that were made with one of these keys
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from endpoint.admin import CommandError
from endpoint.ending import Ending
from endpoint.standing import Standing
from endpoint.text import read_shown, show_bytes
from endpoint.usage import KeyUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from endpoint.admin import Command
    from endpoint.credentials import Credentials
    from endpoint.engine import Engine
    from endpoint.keystore import KeyStore
    from endpoint.observer import Observer
    from endpoint.usage import KeyUse

MAX_PAGE = 1_000
"""Identities in one answer."""
MAX_PAGE_BYTES = 500_000
"""Of identities in one answer, as an identity may be long and an answer may not."""
FLUSH_GRACE = 1.0
"""Seconds at a stop for what is not written yet."""


class Rotation:
    """Made before the engine, attached when there is one. Use it inside ``trio.run``."""

    def __init__(
        self,
        usage_file: Path | None,
        credentials: Credentials,
        *,
        keystore: Callable[[], KeyStore],
        log: FilteringBoundLogger,
        trouble: Callable[..., None],
    ) -> None:
        self.usage = KeyUsage(usage_file, trouble=trouble)
        self.standing = Standing(credentials, keystore, log=log, trouble=trouble)
        self._working = trio.CancelScope()
        self._idle = trio.Event()

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Whom the engine is to tell of events."""
        return self.usage, self.standing

    def attach(self, engine: Engine) -> None:
        """There is an engine, with all that it has taken over."""
        self.standing.engine = engine
        self.standing.taken_over()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        try:
            with self._working:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.usage.run)
                    nursery.start_soon(self.standing.run)
                    task_status.started()
        finally:
            self._idle.set()

    async def finish(self) -> None:
        """Write what is not written yet."""
        # One at a time writes: what was under way is cut short, and written once more.
        self._working.cancel()
        await self._idle.wait()
        await self.usage.flush(FLUSH_GRACE)

    def close(self) -> None:
        """Close the file."""
        self.usage.close()

    def statistics(self) -> dict[str, Any]:
        """Gauges and counters."""
        return {**self.usage.statistics(), **self.standing.statistics()}

    # --- the admin socket ---------------------------------------------------------------------------

    def commands(self) -> Mapping[str, Command]:
        """What operators can ask."""
        return {"key_use": self._key_use, "key_uses": self._key_uses, "end": self._end}

    def _engine(self) -> Engine:
        if self.standing.engine is None:
            raise CommandError("the service is starting")
        return self.standing.engine

    async def _key_use(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        identity = _identity(request, "identity")
        use, there = self.usage.last(identity), self._engine().keyed_associations(identity)
        return {"use": None if use is None else _shown(use), "live": there.live, "frozen": there.frozen}

    async def _key_uses(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        after = _identity(request, "after") if request.get("after") else b""
        limit = request.get("limit", MAX_PAGE)
        if not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
            raise CommandError(f"limit: a whole number within 1 to {MAX_PAGE} is needed")
        uses: list[dict[str, object]] = []
        size = 0
        page = self.usage.page(after, limit)
        for identity, use in page:
            shown = show_bytes(identity)
            size += len(shown.encode())
            if uses and size > MAX_PAGE_BYTES:
                break
            uses.append({"identity": shown, **_shown(use)})
        return {"uses": uses, "more": len(uses) < len(page) or len(page) == limit}

    async def _end(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        identity, accepted = _identity(request, "identity"), request.get("accepted")
        if accepted is not None and not (
            isinstance(accepted, list) and all(isinstance(one, str) for one in accepted)
        ):
            raise CommandError("accepted: a list of fingerprints is needed")
        ended = self._engine().end_associations(identity, accepted, Ending.DROP)
        return {"live": ended.live, "frozen": ended.frozen}


def _identity(request: Mapping[str, Any], name: str) -> bytes:
    try:
        return read_shown(request[name])
    except KeyError:
        raise CommandError(f"{name}: an identity is needed") from None
    except (ValueError, TypeError) as error:
        raise CommandError(f"{name}: {error}") from None


def _shown(use: KeyUse) -> dict[str, object]:
    return {"fingerprint": use.fingerprint, "which": use.which, "when": use.when}
