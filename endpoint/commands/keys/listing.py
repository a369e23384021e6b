"""``keys list``: who has which keys, and how far a rotation is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from endpoint.admin import AdminError
from endpoint.commands.common import PROGRAM, WRONG_USE, CommandFailed
from endpoint.commands.keys.evidence import Evidence, answer, gathered, stamp
from endpoint.commands.keys.places import REFUSED, explained, named, setting, shown
from endpoint.commands.keys.telling import note, refuse, require_service
from endpoint.keystore.fingerprint import fingerprint
from endpoint.text import show_bytes

if TYPE_CHECKING:
    import argparse

    from endpoint.commands.keys.places import Setting

PAGE = 500
"""Identities asked for at once."""
WIDEST = 40
"""Characters of the column of identities; longer ones push the rest aside."""


def show(options: argparse.Namespace) -> int:
    """Print the list."""
    store = setting(options)
    if options.running and not options.json:
        raise CommandFailed(WRONG_USE, f"{PROGRAM} keys list: --running goes with --json")
    require_service(options, store)
    with explained():
        found = sorted(store.place.items())
    if options.identity:
        wanted = named(options)
        there = dict(found)
        unknown = [f"{shown(identity)}: is not known" for identity in wanted if identity not in there]
        if unknown:
            raise refuse(*unknown)
        found = [(identity, there[identity]) for identity in wanted]
    if options.in_rotation:
        found = [(identity, keys) for identity, keys in found if len(keys) > 1]
    evidence = gathered(store, [identity for identity, _ in found])
    if options.json:
        _print_json(found, evidence, _running(store) if options.running else None)
    else:
        _print_lines(found, evidence)
    if evidence.source is None and any(len(keys) > 1 for _, keys in found):
        note(evidence.remedy)
    return 0


def _running(store: Setting) -> dict[str, dict[str, Any]]:
    """By identity as shown: what the service accepts, and who is there."""
    found: dict[str, dict[str, Any]] = {}
    after: dict[str, Any] = {}
    while True:
        try:
            page = answer(store, "identities", limit=PAGE, **after)
        except AdminError as error:
            raise CommandFailed(REFUSED, f"{PROGRAM} keys list: {error}") from None
        for entry in page["identities"]:
            found[entry["identity"]] = {
                "accepted": entry["keys"],
                "live": entry["live"],
                "frozen": entry["frozen"],
            }
        if "next" not in page:
            return found
        after = {"after": page["next"]}


def _print_json(
    found: list[tuple[bytes, tuple[bytes, ...]]],
    evidence: Evidence,
    running: dict[str, dict[str, Any]] | None,
) -> None:
    entries = [_entry(identity, keys, evidence) for identity, keys in found]
    if running is not None:
        nothing: dict[str, Any] = {"accepted": [], "live": 0, "frozen": 0}
        for entry in entries:
            entry.update(running.get(entry["identity"], nothing))
        known = {entry["identity"] for entry in entries}
        # What is gone from the store is still accepted until the service has read it again.
        entries += [
            {"identity": identity, "current": None, "next": None, **entry}
            for identity, entry in running.items()
            if identity not in known and entry["accepted"]
        ]
    print(json.dumps({"identities": entries, "used_according_to": evidence.source}), flush=True)


def _entry(identity: bytes, keys: tuple[bytes, ...], evidence: Evidence) -> dict[str, Any]:
    use = evidence.uses.get(identity)
    confirmed = None
    if len(keys) > 1 and evidence.source is not None:
        confirmed = evidence.confirmed(identity, keys[1])
    return {
        "identity": show_bytes(identity),
        "identity_hex": identity.hex(),
        "current": fingerprint(keys[0]),
        "next": fingerprint(keys[1]) if len(keys) > 1 else None,
        "confirmed": confirmed,
        "used": None
        if use is None
        else {"fingerprint": use.fingerprint, "which": use.which, "when": stamp(use.when)},
    }


def _print_lines(found: list[tuple[bytes, tuple[bytes, ...]]], evidence: Evidence) -> None:
    width = min(WIDEST, max((len(show_bytes(identity)) for identity, _ in found), default=0))
    width = max(width, len("identity"))
    lines = [f"{'identity':<{width}}  {'current':<16}  {'next':<16}  last used"]
    for identity, keys in found:
        use = evidence.uses.get(identity)
        following = fingerprint(keys[1]) if len(keys) > 1 else "-"
        lines.append(
            f"{show_bytes(identity):<{width}}  {fingerprint(keys[0])}  {following:<16}  {_used(keys, use)}"
        )
    print("\n".join(lines), flush=True)


def _used(keys: tuple[bytes, ...], use: Any) -> str:
    if use is None:
        return "-"
    names = dict(zip(map(fingerprint, keys), ("current", "next"), strict=False))
    return f"{names.get(use.fingerprint, 'another key')}, {stamp(use.when)}"
