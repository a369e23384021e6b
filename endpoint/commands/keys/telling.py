"""What a command that changes keys says in the end, and how it gets a service to use them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from endpoint.admin import AdminError
from endpoint.commands.common import PROGRAM, WRONG_USE, CommandFailed
from endpoint.commands.keys.evidence import answer
from endpoint.commands.keys.places import REFUSED
from endpoint.keystore.editing import cannot_be_written, line_for
from endpoint.keystore.fingerprint import fingerprint
from endpoint.text import show_bytes, show_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from endpoint.commands.keys.places import Setting

T = TypeVar("T")

MAX_LINES = 50
"""Identities in a message; the rest is counted."""
RELOAD_PATIENCE = 60.0
"""Seconds for a service to read its keys again; a million take about ten."""
PROGRESS_FROM = 5_000
"""Things to do from which on a bar is shown, on a terminal."""


@attrs.frozen
class Done:
    """What was done to one identity."""

    identity: bytes
    what: str
    """Such as ``added``; ``unchanged`` is not told line by line."""
    key: bytes | None = attrs.field(default=None, repr=False)
    """The key that is new with it."""


UNCHANGED = "unchanged"


def refuse(*lines: str) -> CommandFailed:
    """To be raised: nothing was changed."""
    return CommandFailed(REFUSED, *shortened(list(lines)))


def shortened(lines: list[str]) -> list[str]:
    """At most :data:`MAX_LINES` of them."""
    if len(lines) <= MAX_LINES:
        return lines
    return [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} more"]


def tell(
    options: argparse.Namespace,
    setting: Setting,
    done: list[Done],
    *,
    aside: Iterable[tuple[bytes, str]] = (),
    brief: bool = False,
) -> None:
    """Say what was done, and get the service to use it; :class:`CommandFailed` if the service does not do it.

    ``aside``: identities that were left as they are, and why. ``brief``: only how many of each.
    """
    changed = [one for one in done if one.what != UNCHANGED]
    show = getattr(options, "show", False) and not options.dry_run
    aside = list(aside)
    if options.json:
        print(json.dumps(_as_json(options, setting, done, aside, show=show)), flush=True)
    elif brief:
        _print_counts(options, done)
    else:
        _print(options, done, aside, show=show)
    # With --drop also if nothing was changed: who asks again after an accident has a service that has read nothing yet.
    dropping = getattr(options, "drop", False)
    if options.dry_run or not (changed or dropping):
        return
    if options.reload or dropping:
        reload(setting)
    elif setting.config is not None and not setting.live:
        note("a running service uses this after a reload (--reload, or SIGHUP)")


def _as_json(
    options: argparse.Namespace,
    setting: Setting,
    done: list[Done],
    aside: list[tuple[bytes, str]],
    *,
    show: bool,
) -> dict[str, Any]:
    return {
        "changed": any(one.what != UNCHANGED for one in done),
        "dry_run": options.dry_run,
        "reload_needed": not setting.live and any(one.what != UNCHANGED for one in done),
        "identities": [
            {
                "identity": show_bytes(one.identity),
                "what": one.what,
                # Of a rehearsal it would be that of a key that never was.
                "fingerprint": fingerprint(one.key) if one.key and not options.dry_run else None,
                **({"key": one.key.hex()} if show and one.key else {}),
            }
            for one in done
        ],
        "left": [{"identity": show_bytes(identity), "why": why} for identity, why in aside],
    }


def _print(
    options: argparse.Namespace, done: list[Done], aside: list[tuple[bytes, str]], *, show: bool
) -> None:
    would = "would be " if options.dry_run else ""
    unchanged = 0
    for one in done:
        if one.what == UNCHANGED:
            unchanged += 1
            continue
        named = f", key {fingerprint(one.key)}" if one.key and not options.dry_run else ""
        text = f"{show_bytes(one.identity)}: {would}{one.what}{named}"
        if show:
            note(text)  # so that standard output is a PSK file
            if one.key:
                print_key(one.identity, one.key)
        else:
            print(text)
    if unchanged:
        note(f"{unchanged} unchanged")
    for line in shortened([f"{show_bytes(identity)}: {why}" for identity, why in aside]):
        note(line)
    sys.stdout.flush()


def _print_counts(options: argparse.Namespace, done: list[Done]) -> None:
    would = "would be " if options.dry_run else ""
    for what, count in Counter(one.what for one in done).items():
        identities = "identity" if count == 1 else "identities"
        print(f"{count} {identities} {'' if what == UNCHANGED else would}{what}")
    sys.stdout.flush()


def print_key(identity: bytes, key: bytes) -> None:
    """A line of a PSK file on standard output; where none can hold the identity, the key alone."""
    if cannot_be_written(identity):
        print(key.hex())
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(line_for(identity, key) + b"\n")


def note(line: str) -> None:
    """For people, not for what reads the output."""
    print(line, file=sys.stderr)


def require_service(options: argparse.Namespace, setting: Setting) -> None:
    """Before anything is done: :class:`CommandFailed` if ``--reload``, ``--drop`` or ``--running`` has nobody to ask."""
    wanted = next(
        (f"--{name}" for name in ("drop", "reload", "running") if getattr(options, name, False)), None
    )
    if wanted and setting.admin_socket is None:
        remedy = "add state.admin_socket" if setting.config else "give --config"
        raise CommandFailed(WRONG_USE, f"{PROGRAM} keys: {wanted}: no service can be asked; remedy: {remedy}")


def reload(setting: Setting) -> None:
    """Have the service read the keys again."""
    try:
        told = answer(setting, "reload", patience=RELOAD_PATIENCE, wait=True)
    except AdminError as error:
        raise CommandFailed(REFUSED, f"the keys are changed, but not in use: {error}") from None
    if not told.get("reloaded"):
        errors = [show_text(str(error)) for error in told.get("errors", ())]
        raise CommandFailed(
            REFUSED, "the keys are changed, but the service goes on with those before:", *shortened(errors)
        )
    note("the running service uses them")


def end_others(setting: Setting, keys: Mapping[bytes, tuple[bytes, ...]]) -> None:
    """Have the service end associations of these identities that were made with other keys than these."""
    for identity, value in keys.items():
        accepted = [fingerprint(key) for key in value]
        try:
            found = answer(setting, "end", identity=show_bytes(identity), accepted=accepted)
        except AdminError as error:
            raise CommandFailed(REFUSED, f"the keys are changed, but associations go on: {error}") from None
        live, frozen = found.get("live", 0), found.get("frozen", 0)
        if live or frozen:
            note(f"{show_bytes(identity)}: {live} live and {frozen} frozen associations ended")


def progress(things: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same things, with a bar on standard error if they are many and somebody looks."""
    if total < PROGRESS_FROM or sys.stderr is None or not sys.stderr.isatty():
        yield from things
        return
    from rich.console import Console  # noqa: PLC0415 - 60 ms that most commands need not pay
    from rich.progress import track  # noqa: PLC0415

    yield from track(things, total=total, description=what, console=Console(stderr=True), transient=True)
