"""``keys list``: who has which keys, and how far a rotation is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from endpoint.commands.keys.evidence import Evidence, gathered, stamp
from endpoint.commands.keys.places import explained, named, setting, shown
from endpoint.commands.keys.telling import note, refuse
from endpoint.keystore.fingerprint import fingerprint
from endpoint.text import show_bytes

if TYPE_CHECKING:
    import argparse

WIDEST = 40
"""Characters of the column of identities; longer ones push the rest aside."""


def show(options: argparse.Namespace) -> int:
    """Print the list."""
    store = setting(options)
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
        _print_json(found, evidence)
    else:
        _print_lines(found, evidence)
    if evidence.source is None and any(len(keys) > 1 for _, keys in found):
        note(evidence.remedy)
    return 0


def _print_json(found: list[tuple[bytes, tuple[bytes, ...]]], evidence: Evidence) -> None:
    entries = [_entry(identity, keys, evidence) for identity, keys in found]
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
