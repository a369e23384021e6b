"""Single values of TOML, taken strictly: hooks for ``endpoint.structure``, and what validators of tables share.

Each hook raises :class:`StructureError` with keys relative to its value.
"""

from __future__ import annotations

import datetime as dt
import difflib
import re
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from endpoint.text import show_text
from sansdtls import CipherSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import attrs

T = TypeVar("T")


class StructureError(Exception):
    """What is wrong, as (dotted key, text) pairs."""

    def __init__(self, mistakes: Iterable[tuple[str, str]]):
        self.mistakes = list(mistakes)
        super().__init__("; ".join(f"{key}: {what}" for key, what in self.mistakes))


def within(
    low: float, high: float, unit: str, *, whole: bool = False
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """A validator: a number from ``low`` to ``high``, both included."""

    def check(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if whole and not isinstance(value, int):
            raise ValueError(f"{attribute.name}: {value!r} is not a whole number")
        if not low <= value <= high:
            bounds = f"at least {low}" if high == float("inf") else f"within {low} to {high}"
            raise ValueError(f"{attribute.name}: {value!r} is not {bounds} {unit}".rstrip())

    return check


def mistake(what: str, key: str = "") -> StructureError:
    """What is wrong, at ``key`` below the value, or with the value itself."""
    return StructureError([(key, what)])


_TYPE_NAMES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
    dt.datetime: "a date",
    dt.date: "a date",
    dt.time: "a time",
}


def is_needed(needed: str, value: Any) -> StructureError:
    """That ``value`` is of another type than what is ``needed``, in words."""
    shown = f" ({show_value(value)})" if isinstance(value, (bool, int, float, str)) else ""
    return mistake(f"{needed} is needed, not {_TYPE_NAMES.get(type(value), 'this')}{shown}")


def show_value(value: Any) -> str:
    """A value as it stands in the file, cut where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    return f'"{show_text(value[:80])}{"…" if len(value) > 80 else ""}"'


def take_text(value: Any, _: Any) -> str:
    """A hook for text."""
    if not isinstance(value, str):
        raise is_needed("text", value)
    return value


def take_flag(value: Any, _: Any) -> bool:
    """A hook for true and false."""
    if not isinstance(value, bool):
        raise is_needed("true or false", value)
    return value


def take_whole_number(value: Any, _: Any) -> int:
    """A hook for numbers without a point; true and false are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise is_needed("a whole number", value)
    return value


def take_number(value: Any, _: Any) -> float:
    """A hook for numbers."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise is_needed("a number", value)
    return value


def take_path(value: Any, _: Any) -> Path:
    """A hook for names of files."""
    if not isinstance(value, str):
        raise is_needed("the name of a file", value)
    if not value:
        raise mistake("the name of a file is needed, not nothing")
    return Path(value)


def choice(value: Any, allowed: Sequence[str]) -> str:
    """``value`` if it is one of ``allowed``; StructureError says which there are."""
    if value not in allowed:
        raise mistake(f"{show_value(value)} is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}")
    return typing.cast("str", value)


def list_of(what: str, member: Callable[[Any], T]) -> Callable[[Any, Any], tuple[T, ...]]:
    """A hook for lists; ``member`` raises ValueError or StructureError for a member that is wrong."""

    def hook(value: Any, _: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise is_needed(f"a list of {what}", value)
        members: list[T] = []
        mistakes: list[tuple[str, str]] = []
        for one in value:
            try:
                members.append(member(one))
            except StructureError as error:
                mistakes += error.mistakes
            except ValueError as error:
                mistakes.append(("", str(error)))
        if mistakes:
            raise StructureError(mistakes)
        return tuple(members)

    return hook


def take_protocol_name(value: Any) -> bytes:
    """A protocol of ALPN, as its bytes."""
    return take_text(value, str).encode()


def take_bytes(value: Any, _: Any) -> bytes:
    """A hook for bytes, which stand in the file as hexadecimal digits."""
    if not isinstance(value, str):
        raise is_needed("text in hex digits", value)
    if not re.fullmatch(r"([0-9A-Fa-f]{2})*", value):
        raise mistake(f"{show_value(value)} is not an even number of hex digits")
    return bytes.fromhex(value)


def cipher_suite(name: object) -> CipherSuite:
    """A cipher suite by its IANA name, with or without ``TLS_``; ValueError names the known ones."""
    known = {suite.name: suite for suite in CipherSuite}
    if isinstance(name, str):
        plain = name.upper().replace("-", "_")
        suite = known.get(plain) or known.get(f"TLS_{plain}")
        if suite is not None:
            return suite
        hint = did_you_mean(f"TLS_{plain.removeprefix('TLS_')}", known)
        if hint:
            raise ValueError(f"{show_value(name)} is not a cipher suite of this program{hint}")
    raise ValueError(f"{show_value(name)} is not a cipher suite of this program; it has {', '.join(known)}")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The one of ``known`` that is most like ``value``, as the end of a message; empty if none is."""
    near = difflib.get_close_matches(str(value), list(known), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""
