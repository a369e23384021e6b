"""``dtls-endpoint capture``: record what one device and the service say, and read what was recorded."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from endpoint.capture import decoding, limits, replaying
from endpoint.capture.reading import ReadingError, read_secrets
from endpoint.commands.common import WRONG_USE, CommandFailed, Commands, add_config, ask_service
from endpoint.keystore.file import KeyFileError, load_psk
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_PREFIXES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_DURATIONS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "capture",
        help="record one device's datagrams with its secrets, and read recordings",
        description="Record what one device and the running service say to each other, with the secrets that make it "
        "readable (pcapng, for Wireshark), and read such recordings, or anybody's.",
    )
    what = parser.add_subparsers(title="what to do", metavar="WHAT", required=True)
    _add_start(what)
    _add_stop(what)
    _add_list(what)
    decoding_options = _add_reading(
        what,
        "decode",
        "tell what is in a recording, datagram by datagram",
        "Tell what is in a recording (pcap or pcapng): flights, records and messages, opened where a key log or key "
        "allows. Exit status 1 if something in it is not authentic.",
    )
    decoding_options.add_argument(
        "--full", action="store_true", help="application data in full; else the beginning of each"
    )
    decoding_options.set_defaults(run=_decode)
    _add_reading(
        what,
        "replay",
        "give a recorded device's datagrams to this server once more",
        "Give the datagrams of a recorded device to this program's own server side once more, at their times, with what the "
        "recorded server drew at random, and tell the events and answers. For full handshakes of plain PSK suites, with "
        "--psk-file: ephemeral keys are in no recording. Exit status 1 if anything goes otherwise than recorded.",
    ).set_defaults(run=_replay)


# --- the running service ------------------------------------------------------------------------------


def _add_start(what: Commands) -> None:
    parser = what.add_parser(
        "start",
        help="begin to record",
        description="Have the running service record the datagrams of some identities, with their secrets, or of an "
        "address, without. It ends by itself. Needs state.admin_socket and state.capture_directory, where the service "
        "makes the files. Whoever gets them can read all that the devices said.",
    )
    add_config(parser)
    whose = parser.add_argument_group("whose datagrams")
    whose.add_argument(
        "--identity", action="append", default=[], metavar="ID", help="an identity, exactly; may be repeated"
    )
    whose.add_argument(
        "--identity-hex", action="append", default=[], metavar="HEX", help="the same, in hexadecimal"
    )
    whose.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="ADDRESS[:PORT]",
        help="where a device is, for one whose handshake fails; may be repeated",
    )
    parser.add_argument(
        "--seconds",
        type=_duration,
        default=limits.DEFAULT_SECONDS,
        metavar="N[s|m|h|d]",
        help=f"how long (default {limits.DEFAULT_SECONDS:g})",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=limits.DEFAULT_BYTES,
        metavar="N[K|M|G]",
        help="how large, in bytes (default 16M)",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--keylog", action="store_true", help="write a key log (NSS format) beside it")
    kinds.add_argument("--keylog-only", action="store_true", help="write nothing but the key log")
    parser.add_argument(
        "--rehandshake",
        action="store_true",
        help="end the associations that there are (close_notify), because only those that begin now can be read",
    )
    parser.set_defaults(run=_start)


def _start(options: argparse.Namespace) -> int:
    identities = [os.fsencode(text).hex() for text in options.identity] + options.identity_hex
    kinds = ["keylog"] if options.keylog_only else ["pcapng", "keylog"] if options.keylog else ["pcapng"]
    answer = ask_service(
        options,
        "capture_start",
        identities=identities,
        paths=options.path,
        duration=options.seconds,
        size=options.size,
        kinds=kinds,
        rehandshake=options.rehandshake,
    )
    for kind, name in _files(answer).items():
        print(f"capture {answer.get('number')}: {kind} in {show_text(name)}")
    live = answer.get("live")
    if live and options.rehandshake:
        print(f"{live} live: closed; readable from their next handshake on")
    elif live:
        print(f"{live} live: recorded, and not readable before their next handshake (--rehandshake)")
    return 0


def _add_stop(what: Commands) -> None:
    parser = what.add_parser("stop", help="end one recording, or all")
    add_config(parser)
    parser.add_argument("number", type=int, nargs="?", metavar="NUMBER", help="which; without: all")
    parser.set_defaults(run=_stop)


def _stop(options: argparse.Namespace) -> int:
    which = {} if options.number is None else {"number": options.number}
    _tell(ask_service(options, "capture_stop", **which), "ended", "nothing was being captured")
    return 0


def _add_list(what: Commands) -> None:
    parser = what.add_parser("list", help="what is being recorded")
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    answer = ask_service(options, "capture_list")
    if options.json:
        print(json.dumps({name: value for name, value in answer.items() if name != "ok"}))
    else:
        _tell(answer, "", "nothing is being captured")
    return 0


def _tell(answer: Mapping[str, object], ended: str, none: str) -> None:
    captures = answer.get("captures")
    if not isinstance(captures, list) or not captures:
        print(none)
        return
    for capture in captures:
        whose = ", ".join([*capture["identities"], *capture["paths"]])
        left = ended or f"{capture['seconds_left']:g} s left"
        lost = f", {capture['lost']} datagrams lost" if capture["lost"] else ""
        print(
            f"capture {capture['number']} of {show_text(whose)}: {left}, {capture['datagrams']} datagrams, "
            f"{capture['readable_handshakes']} readable handshakes{lost}"
        )
        for name in _files(capture).values():
            print(f"  {show_text(name)}")


def _files(answer: Mapping[str, object]) -> Mapping[str, str]:
    files = answer.get("files")
    return {str(kind): str(name) for kind, name in files.items()} if isinstance(files, dict) else {}


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,12})([kmg]?)i?b?", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 65536, 500K, 16M or 1G")
    return int(found[1]) * _PREFIXES[found[2]]


def _duration(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90, 10m, 2h or 1d")
    return float(found[1]) * _DURATIONS[found[2]]


# --- files --------------------------------------------------------------------------------------------


def _add_reading(what: Commands, name: str, brief: str, description: str) -> argparse.ArgumentParser:
    parser = what.add_parser(name, help=brief, description=description)
    parser.add_argument("file", type=Path, metavar="FILE", help="pcap or pcapng")
    parser.add_argument(
        "--keylog", type=Path, metavar="FILE", help="key log (NSS format), beside what the recording has"
    )
    parser.add_argument(
        "--psk-file",
        type=Path,
        metavar="FILE",
        help="keys, identity:hexkey a line, or a directory of such files: opens plain PSK suites",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="the server's, where a recording begins in the middle"
    )
    return parser


def _decode(options: argparse.Namespace) -> int:
    source = _source(options)
    _print(decoding.decode(source, full=options.full))
    return 1 if source.not_authentic else 0


def _replay(options: argparse.Namespace) -> int:
    source = _source(options)
    _print(replaying.replay(source))
    return 1 if source.not_replayed else 0


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            print(line)
    except ReadingError as error:
        raise CommandFailed(WRONG_USE, str(error)) from None


def _source(options: argparse.Namespace) -> decoding.Source:
    try:
        secrets = {} if options.keylog is None else read_secrets(options.keylog)
        keys: Mapping[bytes, Sequence[bytes]] = (
            {} if options.psk_file is None else load_psk(options.psk_file).keys
        )
    except ReadingError as error:
        raise CommandFailed(WRONG_USE, str(error)) from None
    except KeyFileError as error:
        raise CommandFailed(WRONG_USE, *error.problems) from None
    return decoding.Source(options.file, secrets=secrets, keys=keys, port=options.port)
