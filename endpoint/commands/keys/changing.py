"""``keys add``, ``rotate``, ``retire``, ``remove``."""

from __future__ import annotations

import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from endpoint.admin import AdminError
from endpoint.commands.common import PROGRAM, WRONG_USE, CommandFailed
from endpoint.commands.keys.evidence import Evidence, answer, gathered, read_fingerprints
from endpoint.commands.keys.places import REFUSED, Changes, explained, named, setting, shown
from endpoint.commands.keys.telling import (
    UNCHANGED,
    Done,
    end_others,
    note,
    progress,
    refuse,
    require_service,
    tell,
)
from endpoint.files import RefusedFileError, read_private
from endpoint.keystore.file import MAX_KEY_BYTES, MIN_KEY_BYTES
from endpoint.keystore.fingerprint import fingerprint
from endpoint.keystore.strength import weakness
from endpoint.text import show_bytes, show_text

if TYPE_CHECKING:
    import argparse

    from endpoint.commands.keys.places import Setting

_LIKE_A_KEY = re.compile(r"[0-9A-Fa-f]{32}")
MAX_KEY_TEXT = 1_024
"""Bytes that are read of standard input for a key."""


# --- add --------------------------------------------------------------------------------------------


def add(options: argparse.Namespace) -> int:
    """Give identities their first key, or one its next."""
    identities = named(options)
    store = setting(options, create=not options.next)
    require_service(options, store)
    given = None if options.key_file is None else _given_key(options)
    if given is not None and len(identities) > 1:
        raise CommandFailed(WRONG_USE, f"{PROGRAM} keys add: --key-file is for one identity")
    done, problems = [], []
    with explained(), store.place.change() as changes:
        for identity in identities:
            key = given or new_key(options.length)
            before = changes.lookup(identity)
            problem = _why_not_added(key, before, options)
            if problem:
                problems.append(f"{shown(identity)}: {problem}")
            elif key in before:
                done.append(Done(identity, UNCHANGED))
            else:
                problems += _set(changes, identity, (*before, key))
                done.append(Done(identity, "given a next key" if before else "added", key))
        _refuse(problems)
    tell(options, store, done)
    return 0


def _why_not_added(key: bytes, before: tuple[bytes, ...], options: argparse.Namespace) -> str | None:
    weak = None if options.force else weakness(key)
    if weak:
        return f"the key {weak}; remedy: another key, or --force"
    if options.next:
        if not before:
            return "is not known; remedy: keys add without --next"
        if key == before[0]:
            return "that is its current key already"
        if len(before) > 1 and key != before[1]:
            return "has another next key already; remedy: keys retire, or keys rotate --replace"
    elif before and key != before[0]:
        return "is known already, with another key; remedy: keys rotate, or keys add --next"
    return None


def _given_key(options: argparse.Namespace) -> bytes:
    """The key in ``--key-file``; never what stands there in a message."""
    name = options.key_file
    where = "standard input" if name == "-" else show_text(name)
    if _LIKE_A_KEY.search(name):
        raise CommandFailed(
            WRONG_USE,
            f"{PROGRAM} keys add: --key-file: the name of a file is needed, not a key; remedy: put it in the file",
        )
    try:
        if name == "-":
            text = sys.stdin.buffer.read(MAX_KEY_TEXT)
        else:
            text = read_private(Path(name), what="a key", plural="key")
    except RefusedFileError as refused:
        raise CommandFailed(WRONG_USE, f"{where}: {refused}") from None
    digits = text.strip()
    if not re.fullmatch(rb"(?:[0-9A-Fa-f]{2})+", digits):
        raise CommandFailed(
            WRONG_USE, f"{where}: not a key in hexadecimal; remedy: openssl rand -hex 32 makes one"
        )
    key = bytes.fromhex(digits.decode("ascii"))
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise CommandFailed(
            WRONG_USE, f"{where}: the key has {len(key)} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}"
        )
    return key


def new_key(length: int) -> bytes:
    """A random key that nobody would call weak."""
    while True:
        key = secrets.token_bytes(length)
        if weakness(key) is None:
            return key


# --- rotate -----------------------------------------------------------------------------------------


def rotate(options: argparse.Namespace) -> int:
    """Make next keys."""
    identities = _these_or_all(options, "--all")
    store = setting(options)
    require_service(options, store)
    # Asked before the change begins: meanwhile nobody else could change anything.
    evidence = gathered(store, identities) if options.replace and not options.force else None
    done, aside, problems = [], [], []
    with explained(), store.place.change() as changes:
        chosen = identities if identities is not None else [identity for identity, _ in changes.items()]
        for identity in progress(chosen, len(chosen), "making keys"):
            before = changes.lookup(identity)
            if len(before) > 1 and identities is None and not options.replace:
                aside.append((identity, "has a next key already"))
                continue
            problem = _why_not_rotated(identity, before, options, evidence)
            if problem:
                problems.append(f"{shown(identity)}: {problem}")
                continue
            key = new_key(options.length)
            problems += _set(changes, identity, (before[0], key))
            done.append(Done(identity, "given a next key", key))
        _refuse(problems)
    tell(options, store, done, aside=aside)
    return 0


def _why_not_rotated(
    identity: bytes, before: tuple[bytes, ...], options: argparse.Namespace, evidence: Evidence | None
) -> str | None:
    if not before:
        return "is not known"
    if len(before) == 1:
        return None
    if not options.replace:
        return "has a next key already; remedy: keys retire, or --replace if no device has it yet"
    if evidence is None:
        return None
    if evidence.source is None:
        return f"{evidence.remedy}; remedy: --force"
    if evidence.confirmed(identity, before[1]):
        return "has used its next key; remedy: keys retire"
    return None


# --- retire -----------------------------------------------------------------------------------------


def retire(options: argparse.Namespace) -> int:
    """Forget old keys."""
    if options.left_with is not None:
        return _left_with(options)
    identities = _these_or_all(options, "--all-confirmed")
    store = setting(options)
    require_service(options, store)
    evidence = gathered(store, identities)
    if evidence.source is None and not options.force:
        raise refuse(f"{evidence.remedy}; remedy: --force, which may lock devices out")
    done, aside, problems = [], [], []
    left: dict[bytes, tuple[bytes, ...]] = {}
    with explained(), store.place.change() as changes:
        chosen = (
            identities
            if identities is not None
            else [identity for identity, keys in changes.items() if len(keys) > 1]
        )
        for identity in progress(chosen, len(chosen), "retiring keys"):
            keys = changes.lookup(identity)
            if not keys:
                problems.append(f"{shown(identity)}: is not known")
            elif len(keys) == 1:
                done.append(Done(identity, UNCHANGED))
                left[identity] = keys
            elif options.force or evidence.confirmed(identity, keys[1]):
                problems += _set(changes, identity, keys[1:])
                left[identity] = keys[1:]
                done.append(Done(identity, "left with its next key", keys[1]))
            elif identities is None:
                aside.append((identity, f"not confirmed: it {evidence.doubt(identity)}"))
            else:
                doubt = f"has not used its next key: it {evidence.doubt(identity)}"
                problems.append(f"{shown(identity)}: {doubt}; remedy: wait, or --force")
        _refuse(problems)
    tell(options, store, done, aside=aside)
    if options.drop and not options.dry_run:
        end_others(store, left)
    return 0


def _left_with(options: argparse.Namespace) -> int:
    """Leave each identity with the key that somebody names who knows more than this endpoint."""
    if options.identity or options.all_confirmed:
        raise CommandFailed(WRONG_USE, f"{PROGRAM} keys retire: --left-with names the identities itself")
    store = setting(options)
    require_service(options, store)
    wanted = read_fingerprints(options.left_with)
    left: dict[bytes, tuple[bytes, ...]] = {}
    done, problems = [], []
    with explained(), store.place.change() as changes:
        for identity, named_ in progress(wanted.items(), len(wanted), "retiring keys"):
            keys = changes.lookup(identity)
            kept = tuple(key for key in keys if fingerprint(key) == named_)
            if not keys:
                problems.append(f"{shown(identity)}: is not known")
            elif not kept:
                problems.append(f"{shown(identity)}: has no key {named_}, so nothing of it is retired")
            elif kept == keys:
                done.append(Done(identity, UNCHANGED))
            else:
                problems += _set(changes, identity, kept)
                done.append(Done(identity, "left with one key", kept[0]))
            left[identity] = kept
        _refuse(problems)
    tell(options, store, done)
    if options.drop and not options.dry_run:
        end_others(store, left)
    return 0


# --- remove -----------------------------------------------------------------------------------------


def remove(options: argparse.Namespace) -> int:
    """Forget identities."""
    identities = named(options)
    store = setting(options)
    require_service(options, store)
    done, problems = [], []
    with explained(), store.place.change() as changes:
        for identity in identities:
            if changes.remove(identity):
                done.append(Done(identity, "removed"))
            elif options.missing_ok:
                done.append(Done(identity, UNCHANGED))
            else:
                problems.append(f"{shown(identity)}: is not known; remedy: --missing-ok")
        _refuse(problems)
        empty = next(iter(changes.items()), None) is None
    tell(options, store, done)
    if empty and not store.live and not options.dry_run:
        note("no identity is left: a reload refuses that, a restart does not")
    if not options.dry_run and store.admin_socket is not None:
        _tell_of_associations(options, store, identities)
    return 0


def _tell_of_associations(options: argparse.Namespace, store: Setting, identities: list[bytes]) -> None:
    """End the associations of those that were removed, or say how many there are."""
    for identity in identities:
        try:
            found = answer(store, "end" if options.drop else "key_use", identity=show_bytes(identity))
        except AdminError as error:
            if options.drop:
                raise CommandFailed(
                    REFUSED, f"the keys are removed, but associations go on: {error}"
                ) from None
            return
        live, frozen = found.get("live", 0), found.get("frozen", 0)
        if live or frozen:
            what = "ended" if options.drop else "go on, remedy: --drop"
            note(f"{show_bytes(identity)}: {live} live and {frozen} frozen associations {what}")


# --- several ----------------------------------------------------------------------------------------


def _these_or_all(options: argparse.Namespace, option: str) -> list[bytes] | None:
    """The identities of the command line; ``None`` = all, as ``option`` says."""
    everybody = getattr(options, option.strip("-").replace("-", "_"))
    if everybody == bool(options.identity):
        raise CommandFailed(WRONG_USE, f"{PROGRAM} keys: name identities, or give {option}")
    return None if everybody else named(options)


def _set(changes: Changes, identity: bytes, keys: tuple[bytes, ...]) -> list[str]:
    try:
        changes.set(identity, keys)
    except ValueError as error:
        return [f"{shown(identity)}: {error}"]
    return []


def _refuse(problems: list[str]) -> None:
    if problems:
        raise refuse(*problems)
