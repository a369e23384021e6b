"""``dtls-endpoint keys``: the pre-shared keys of a fleet, in PSK files or in SQLite, through a rotation and otherwise.

A rotation, device by device or all at once::

    keys rotate ID…      each gets a next key, which the service accepts beside the current one
    keys export --next   these keys, for the devices
    keys list            who has used the next key
    keys retire ID…      the next key becomes the current one, and the old one is gone; refused while it may still be
    needed

With several endpoints, whoever has asked all of them: ``keys import --next -`` takes next keys from elsewhere, and
``keys retire --left-with -`` says which key of each identity is to stay.

No key is taken from the command line, which every user of the machine can read, and none is printed unless ``--show``
says so. Each change is whole: all that a command does, or nothing (several files of one directory: one after the
other). Exit status 0: done, or there was nothing to do. 1: refused, and nothing was changed. 2: the command line, the
configuration or a key file is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from endpoint.commands.keys import carrying, changing, listing
from endpoint.keystore.file import MAX_KEY_BYTES, MIN_KEY_BYTES

if TYPE_CHECKING:
    from endpoint.commands.common import Commands

_DROP = "have the running service read the keys again, and end associations that were made with other keys"
DEFAULT_LENGTH = 32
"""Bytes of a key that is made: 256 bits, more than any cipher suite here keeps of it."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "keys",
        help="add, list, rotate, retire, remove, import and export pre-shared keys",
        description="Change or show the pre-shared keys of a configuration: PSK files, or an SQLite database. No key is "
        "printed unless --show says so; none is taken from the command line. Exit status 1 if it is refused, and "
        "nothing was changed.",
    )
    what = parser.add_subparsers(title="what to do", metavar="WHAT", required=True)
    _add(what)
    _list(what)
    _rotate(what)
    _retire(what)
    _remove(what)
    _import(what)
    _export(what)


def _add(what: Commands) -> None:
    parser = _parser(what, "add", "give new identities a key, or one a next key")
    _store(parser)
    _identities(parser)
    parser.add_argument(
        "--key-file", metavar="FILE", help="the key, hexadecimal; - = standard input; default: a random one"
    )
    parser.add_argument(
        "--next", action="store_true", help="as the next key of an identity that is there, for a rotation"
    )
    _making(parser)
    _file(parser)
    _changing(parser, changing.add)


def _list(what: Commands) -> None:
    parser = _parser(what, "list", "who has keys, which (fingerprints), and who has used the next one")
    _store(parser)
    _identities(parser, "*")
    parser.add_argument("--in-rotation", action="store_true", help="only those with a next key")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--running",
        action="store_true",
        help="with --json, also which keys the running service accepts, and how many associations there are; "
        "exit status 1 if it does not answer",
    )
    parser.set_defaults(run=listing.show, changes=False)


def _rotate(what: Commands) -> None:
    parser = _parser(what, "rotate", "make a next key, accepted beside the current one")
    _store(parser)
    _identities(parser, "*")
    parser.add_argument("--all", action="store_true", help="for all that have no next key")
    parser.add_argument(
        "--replace", action="store_true", help="make another where there is a next key that was not used yet"
    )
    _making(parser)
    _changing(parser, changing.rotate)


def _retire(what: Commands) -> None:
    parser = _parser(what, "retire", "forget the old key: the next one becomes the current one")
    _store(parser)
    _identities(parser, "*")
    parser.add_argument(
        "--all-confirmed",
        action="store_true",
        help="of all that have used their next key; the others are told",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also of devices that have not used their next key: they may be locked out",
    )
    parser.add_argument(
        "--left-with",
        metavar="FILE",
        help="instead of ID: lines IDENTITY:FINGERPRINT, the key that each is left with, whatever is known here of its use; "
        "refused of identities without such a key; - = standard input",
    )
    parser.add_argument("--drop", action="store_true", help=_DROP)
    _changing(parser, changing.retire)


def _remove(what: Commands) -> None:
    parser = _parser(what, "remove", "forget identities and their keys")
    _store(parser)
    _identities(parser)
    parser.add_argument("--missing-ok", action="store_true", help="pass over those that are not there")
    parser.add_argument(
        "--drop",
        action="store_true",
        help="have the running service read the keys again and end their associations",
    )
    _changing(parser, changing.remove)


def _import(what: Commands) -> None:
    parser = _parser(what, "import", "take over keys from a PSK file")
    _store(parser)
    parser.add_argument(
        "source", metavar="FILE", help="a PSK file or a directory of such files; - = standard input"
    )
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--replace", action="store_true", help="give identities that are there the keys of FILE"
    )
    known.add_argument(
        "--next",
        action="store_true",
        help="give identities that are there the key of FILE as their next one, beside the current one",
    )
    parser.add_argument("--force", action="store_true", help="take weak keys as well")
    parser.add_argument("--drop", action="store_true", help=_DROP)
    _file(parser)
    _changing(parser, carrying.bring)


def _export(what: Commands) -> None:
    parser = _parser(what, "export", "write keys as a PSK file")
    _store(parser)
    _identities(parser, "*")
    parser.add_argument("--next", action="store_true", help="only next keys, for the devices")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="make this file, mode 0600; default: standard output"
    )
    parser.add_argument("--replace", action="store_true", help="--output may be there already")
    parser.add_argument(
        "--show", action="store_true", help="even to a terminal, or to a file that others can read"
    )
    parser.set_defaults(run=carrying.out, changes=False)


# --- options of several -----------------------------------------------------------------------------


def _parser(what: Commands, name: str, text: str) -> argparse.ArgumentParser:
    # No abbreviations: "--key 0011…" would be taken for --key-file, and the key for the name of a file.
    return what.add_parser(name, help=text, description=text, allow_abbrev=False)


def _store(parser: argparse.ArgumentParser) -> None:
    store = parser.add_mutually_exclusive_group(required=True)
    store.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration, TOML, which names the keys"
    )
    store.add_argument("--psk-file", type=Path, metavar="FILE", help="a PSK file or a directory of them")
    store.add_argument("--psk-database", type=Path, metavar="FILE", help="an SQLite database of keys")
    parser.add_argument(
        "--usage-file",
        type=Path,
        metavar="FILE",
        help="the service's state.usage_file, which says who has used which key; with --config that is known",
    )


def _identities(parser: argparse.ArgumentParser, how_many: str = "+") -> None:
    parser.add_argument("identity", nargs=how_many, metavar="ID", help="as text")
    parser.add_argument("--hex", action="store_true", help="identities are given in hexadecimal")


def _making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--length",
        type=_length,
        default=DEFAULT_LENGTH,
        metavar="N",
        help=f"bytes of a key that is made, {MIN_KEY_BYTES} to {MAX_KEY_BYTES} (default {DEFAULT_LENGTH})",
    )
    parser.add_argument("--force", action="store_true", help="do it although it is a weak key, or one in use")
    parser.add_argument("--show", action="store_true", help="print the keys, as lines of a PSK file")


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file",
        metavar="NAME",
        help="where in a directory of PSK files new identities go, such as meters.txt",
    )


def _changing(parser: argparse.ArgumentParser, run: object) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    parser.add_argument(
        "--reload", action="store_true", help="have the running service use it, through state.admin_socket"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run, changes=True)


def _length(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not MIN_KEY_BYTES <= number <= MAX_KEY_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of bytes from {MIN_KEY_BYTES} to {MAX_KEY_BYTES}"
        )
    return number
