"""Who may connect, with which keys, and who is there: in order of the identity's bytes, page by page.

An answer of the admin socket is bounded (1 MiB), and so is a page: in entries, and in bytes, because an identity may be
long. ``next`` is what to ask for after it; without it, that was all. What comes and goes between two pages
may be missed or not, and nothing that was there all the time is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from endpoint.admin import CommandError
from endpoint.answers.names import smallest
from endpoint.answers.parts import LOOKUP_TIME, keys_of, used
from endpoint.text import json_line, read_shown, show_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endpoint.answers.parts import Parts

DEFAULT_LIMIT = 500
MAX_LIMIT = 1_000
"""Entries of a page."""
MAX_PAGE = 524_288
"""Bytes of a page, so that it fits into an answer."""


async def identities(parts: Parts, request: Mapping[str, Any]) -> dict[str, Any]:
    """A page: ``after`` (an identity as shown; by default the beginning) and ``limit`` say which."""
    after, limit = _asked(request)
    names = await _following(parts, after, limit + 1)
    entries: list[dict[str, Any]] = []
    size = 0
    # For all of them together: who asks does not wait a page of time-outs.
    deadline = trio.current_time() + LOOKUP_TIME
    for name in names[:limit]:
        entry = await _entry(parts, name, deadline)
        size += len(json_line(entry).encode()) + 2
        if entries and size > MAX_PAGE:
            break
        entries.append(entry)
    answer: dict[str, Any] = {"identities": entries}
    if len(entries) < len(names):
        answer["next"] = entries[-1]["identity"]
    return answer


def _asked(request: Mapping[str, Any]) -> tuple[bytes | None, int]:
    after, limit = request.get("after"), request.get("limit", DEFAULT_LIMIT)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_LIMIT:
        raise CommandError(f"limit: a whole number within 1 to {MAX_LIMIT} is needed")
    try:
        return None if after is None else read_shown(after), limit
    except (ValueError, TypeError):
        raise CommandError("after: an identity as shown is needed") from None


async def _following(parts: Parts, after: bytes | None, count: int) -> list[bytes]:
    """The next names. A fleet has 100,000, so in portions: devices are served meanwhile."""
    best = await parts.names.page(after, count)
    if parts.usage is not None:
        best += [name for name, _ in parts.usage.page(after or b"", count)]
    return await smallest(parts.engine.identities(), after, count, best)


async def _entry(parts: Parts, name: bytes, deadline: float) -> dict[str, Any]:
    keys = await keys_of(parts.keystore, name, deadline=deadline)
    entry: dict[str, Any] = {
        "identity": show_bytes(name),
        "keys": list(keys.fingerprints),
        "used": used(parts.usage, name),
        "live": len(parts.engine.associations(name)),
        "frozen": parts.engine.frozen_of(name),
    }
    if keys.unavailable is not None:
        entry["unavailable"] = keys.unavailable
    return entry
