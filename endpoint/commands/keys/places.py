"""Where the keys are that a command is about, and what changing them for a rehearsal means."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import attrs

from endpoint.commands.common import WRONG_USE, CommandFailed
from endpoint.config import ConfigFileError, load_config
from endpoint.keystore.database import KeyDatabase, KeyDatabaseError
from endpoint.keystore.editing import PskFiles
from endpoint.keystore.file import KeyFileError, quoted_identity
from endpoint.replacing import ReplaceError
from endpoint.text import show_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from endpoint.config import EndpointConfig

REFUSED = 1
"""Exit status: the command line is right, and what it asks for is not done."""


class Changes(Protocol):
    """What can be done within one change."""

    def lookup(self, identity: bytes) -> tuple[bytes, ...]:
        """The keys of ``identity`` with the changes made so far."""
        ...

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """All identities with their keys; take them all before the next change."""
        ...

    def set(self, identity: bytes, keys: Sequence[bytes]) -> None:
        """Give ``identity`` these keys; ValueError for what cannot be kept."""
        ...

    def remove(self, identity: bytes) -> bool:
        """Forget ``identity``; whether it was known."""
        ...


class Place(Protocol):
    """Where keys are."""

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """All identities with their keys."""
        ...

    def change(self) -> AbstractContextManager[Changes]:
        """One change: all of it, or nothing if it raises."""
        ...


@attrs.frozen
class Setting:
    """What the options of a command name."""

    place: Place
    where: str
    """Its name, for messages."""
    config: EndpointConfig | None
    live: bool
    """Whether a service uses what is changed without reading it again."""
    usage_file: Path | None
    admin_socket: Path | None


def setting(options: argparse.Namespace, *, create: bool = False) -> Setting:
    """Find the keys; ``create``: a store that is not there is made, and counts as empty until then."""
    config = None
    database, files = options.psk_database, options.psk_file
    if options.config is not None:
        config = _configuration(options.config)
        database = config.credentials.psk_database
        files = config.credentials.psk_file
    if database is None and files is None:
        where = show_text(str(options.config))
        raise CommandFailed(
            WRONG_USE,
            f"{where}: credentials: names neither psk_file nor psk_database; keys elsewhere are changed where they are",
        )
    path: Path = files if database is None else database
    rehearsal = getattr(options, "dry_run", False)
    if database is not None:
        place: Place = _DatabasePlace(path, create=create, rehearsal=rehearsal)
    else:
        new_file = getattr(options, "file", None)
        place = PskFiles(path, create=create, new_file=new_file, rehearsal=rehearsal)
    return Setting(
        place=place,
        where=show_text(str(path)),
        config=config,
        live=database is not None,
        usage_file=options.usage_file or (config.state.usage_file if config else None),
        admin_socket=config.state.admin_socket if config else None,
    )


def _configuration(path: Path) -> EndpointConfig:
    try:
        return load_config(path)
    except ConfigFileError as error:
        raise CommandFailed(WRONG_USE, *error.problems) from None


class _DatabasePlace:
    """A database, opened when it is needed."""

    def __init__(self, path: Path, *, create: bool, rehearsal: bool) -> None:
        self._path = path
        self._create = create
        self._rehearsal = rehearsal

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """As :meth:`Place.items`."""
        with KeyDatabase(self._path) as database:
            yield from database.items()

    @contextmanager
    def change(self) -> Iterator[Changes]:
        """As :meth:`Place.change`."""
        if not self._rehearsal:
            with KeyDatabase(self._path, create=self._create) as database, database.change() as changes:
                yield changes
            return
        yield _RehearsedChanges({} if self._create and not self._path.exists() else dict(self.items()))


class _RehearsedChanges:
    """Changes of a database that come to nothing."""

    def __init__(self, keys: dict[bytes, tuple[bytes, ...]]) -> None:
        self._keys = keys

    def lookup(self, identity: bytes) -> tuple[bytes, ...]:
        """As :meth:`Changes.lookup`."""
        return self._keys.get(identity, ())

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """As :meth:`Changes.items`."""
        return iter(self._keys.items())

    def set(self, identity: bytes, keys: Sequence[bytes]) -> None:
        """As :meth:`Changes.set`."""
        self._keys[identity] = tuple(keys)

    def remove(self, identity: bytes) -> bool:
        """As :meth:`Changes.remove`."""
        return self._keys.pop(identity, None) is not None


@contextmanager
def explained() -> Iterator[None]:
    """Turn what is wrong with files into the command's failure."""
    try:
        yield
    except KeyDatabaseError as error:
        busy = error.code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR"))
        raise CommandFailed(REFUSED if busy else WRONG_USE, *error.problems) from None
    except KeyFileError as error:
        raise CommandFailed(WRONG_USE, *error.problems) from None
    except ReplaceError as error:
        raise CommandFailed(REFUSED, str(error)) from None


def named(options: argparse.Namespace) -> list[bytes]:
    """The identities of the command line, each once, in their order."""
    found: dict[bytes, None] = {}
    for text in options.identity:
        if not options.hex:
            identity = os.fsencode(text)
        else:
            try:
                identity = bytes.fromhex(text)
            except ValueError:
                raise CommandFailed(
                    WRONG_USE, f"{show_text(text)}: not hexadecimal, and --hex says so"
                ) from None
        if not identity:
            raise CommandFailed(WRONG_USE, "an identity is empty")
        found[identity] = None
    return list(found)


def shown(identity: bytes) -> str:
    """An identity for a message; nothing that may be a key."""
    return quoted_identity(identity)
