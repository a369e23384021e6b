"""``keys import`` and ``keys export``: keys from and to PSK files."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from endpoint.commands.common import WRONG_USE, CommandFailed
from endpoint.commands.keys.places import explained, named, setting, shown
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
from endpoint.files import MAX_FILE_BYTES
from endpoint.keystore.editing import cannot_be_written, line_for
from endpoint.keystore.file import PskReader, load_psk, refuse_mistakes
from endpoint.keystore.strength import weakness
from endpoint.replacing import NewContent, locked, replace_files
from endpoint.text import show_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


# --- import -----------------------------------------------------------------------------------------


def bring(options: argparse.Namespace) -> int:
    """Take over all keys of a file, or none."""
    store = setting(options, create=True)
    require_service(options, store)
    with explained():
        keys = _source(options.source)
    if not options.force:
        _refuse_weak(keys)
    done, problems = [], []
    with explained(), store.place.change() as changes:
        for identity, value in progress(keys.items(), len(keys), "importing"):
            before = changes.lookup(identity)
            if before == value or (options.next and value[0] in before and len(value) == 1):
                done.append(Done(identity, UNCHANGED))
                continue
            problem = _why_not_taken(before, value, options)
            if problem is None:
                try:
                    changes.set(identity, (*before, *value) if options.next else value)
                except ValueError as error:
                    problem = str(error)
            if problem is not None:
                problems.append(f"{shown(identity)}: {problem}")
                continue
            known = "given a next key" if options.next else "replaced"
            done.append(Done(identity, known if before else "added", value[0]))
        if problems:
            raise refuse(*problems)
    tell(options, store, done, brief=True)
    if options.drop and not options.dry_run:
        end_others(store, keys)
    return 0


def _why_not_taken(
    before: tuple[bytes, ...], value: tuple[bytes, ...], options: argparse.Namespace
) -> str | None:
    if options.next:
        if len(value) > 1:
            return "has two keys in FILE; remedy: with --next, only the next one"
        if len(before) > 1:
            return "has another next key already; remedy: keys retire, or --replace instead of --next"
    elif before and not options.replace:
        return "is known already, with other keys; remedy: --replace"
    return None


def _source(name: str) -> Mapping[bytes, tuple[bytes, ...]]:
    if name != "-":
        return load_psk(Path(name)).keys
    reader = PskReader()
    reader.content("standard input", sys.stdin.buffer.read(MAX_FILE_BYTES))
    refuse_mistakes(Path("standard input"), reader)
    return reader.keys


def _refuse_weak(keys: Mapping[bytes, tuple[bytes, ...]]) -> None:
    weak = [
        f"{shown(identity)}: its {which} key {reason}"
        for identity, value in progress(keys.items(), len(keys), "looking at keys")
        for which, key in zip(("current", "next"), value, strict=False)
        if (reason := weakness(key)) is not None
    ]
    if weak:
        raise refuse(*weak, "remedy: other keys for these devices, or --force")


# --- export -----------------------------------------------------------------------------------------


def out(options: argparse.Namespace) -> int:
    """Write keys as lines of a PSK file."""
    store = setting(options)
    if options.output is None and not options.show:
        _refuse_to_show()
    with explained():
        found = dict(sorted(store.place.items()))
    if options.identity:
        wanted = named(options)
        unknown = [f"{shown(identity)}: is not known" for identity in wanted if identity not in found]
        if unknown:
            raise refuse(*unknown)
        found = {identity: found[identity] for identity in wanted}
    if options.next:
        found = {identity: keys[1:] for identity, keys in found.items() if len(keys) > 1}
    problems = [
        f"{shown(identity)}: {problem}, so no PSK file can hold it"
        for identity in found
        if (problem := cannot_be_written(identity))
    ]
    if problems:
        raise refuse(*problems)
    content = b"".join(line_for(identity, key) + b"\n" for identity, keys in found.items() for key in keys)
    if options.output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return 0
    _write(options.output, content, replace=options.replace)
    note(
        f"{len(found)} {'identity' if len(found) == 1 else 'identities'} written to {show_text(str(options.output))}"
    )
    return 0


def _write(path: Path, content: bytes, *, replace: bool) -> None:
    if path.exists() or path.is_symlink():
        if not replace:
            raise refuse(f"{show_text(str(path))}: is there already; remedy: another name, or --replace")
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            where = show_text(str(path))
            raise refuse(
                f"{where}: mode {mode:04o} gives group or others access to keys; remedy: chmod 600 {where}"
            )
    real = Path(os.path.realpath(path))
    with explained(), locked([real.parent]):
        replace_files([NewContent(real, content)])


def _refuse_to_show() -> None:
    """Raise if standard output is for more eyes than ours."""
    if sys.stdout is None:
        raise CommandFailed(WRONG_USE, "standard output is closed; remedy: --output FILE")
    status = os.fstat(sys.stdout.fileno())
    if sys.stdout.isatty():
        raise CommandFailed(WRONG_USE, "keys are not written to a terminal; remedy: --output FILE, or --show")
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise CommandFailed(
            WRONG_USE,
            f"standard output is a file with mode {mode:04o}, which others can read; remedy: --output FILE, or --show",
        )
