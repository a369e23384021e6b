"""TOML values into frozen attrs classes, with every mistake told at the key where it is.

cattrs finds the hook for each type; the hooks here and in ``endpoint.values`` are stricter than its own,
which would turn ``"5684"`` into 5684 and ``2.9`` into 2, and they gather mistakes where cattrs stops at the
first of a class. A class's own validators stay the only place that knows its ranges: they raise
``ConfigError`` or ``ValueError`` with a text ``Class.field: what``, which is taken apart again here.
"""

from __future__ import annotations

import difflib
import enum
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import cattrs

from endpoint.quotas import NetworkQuota
from endpoint.text import show_text
from endpoint.values import (
    StructureError,
    choice,
    cipher_suite,
    is_needed,
    list_of,
    mistake,
    show_value,
    take_bytes,
    take_flag,
    take_number,
    take_path,
    take_protocol_name,
    take_text,
    take_whole_number,
)
from sansdtls import CipherSuite, ConfigError, RetransmitPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

RETRANSMIT_PRESETS: Mapping[str, Callable[[], RetransmitPolicy]] = {
    "default": RetransmitPolicy,
    "constrained": RetransmitPolicy.constrained,
}
"""Names that stand for a whole ``[dtls.retransmit]`` table."""
NO_NUMBER = ("never", "unlimited")
"""Either stands for None where a number may be absent; TOML has no null."""
NO_TABLE = "off"
"""Stands for None where a whole table may be absent."""


def structure(table: Mapping[str, Any], cls: type[T], *, private: Sequence[str] = ()) -> T:
    """``table`` as an instance of ``cls``. Values below the keys in ``private`` are left out of messages."""
    try:
        return _CONVERTER.structure(table, cls)
    except StructureError as error:
        secret = tuple(f"{key}." for key in private)
        raise StructureError(
            (key, _without_value(what) if key.startswith(secret) and secret else what)
            for key, what in error.mistakes
        ) from None


# --- hooks: each raises StructureError with keys relative to its value ---------------------------------


def _members_of(kind: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
    """The hook for a tuple of an enumeration: code points by their name, choices by their value."""
    (cls, _ellipsis) = typing.get_args(kind)
    if cls is CipherSuite:
        return list_of("cipher suites", cipher_suite)
    by_name = issubclass(cls, int)
    known = {member.name.lower() if by_name else member.value: member for member in cls}
    return list_of(
        "names, each one of " + ", ".join(known),
        lambda value: known[choice(value.lower() if isinstance(value, str) else value, tuple(known))],
    )


def _named_tables(kind: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """The hook for a table whose keys are free and whose values are tables of one class."""
    table = _Table(typing.get_args(kind)[1])

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise is_needed("a table", value)
        made, mistakes = {}, []
        for name, inner in value.items():
            try:
                made[name] = table(inner, kind)
            except StructureError as error:
                shown = show_text(name)
                mistakes += [
                    (f'"{shown}".{key}' if key else f'"{shown}"', what) for key, what in error.mistakes
                ]
        if mistakes:
            raise StructureError(mistakes)
        return made

    return hook


def _networks(value: Any, kind: Any) -> tuple[NetworkQuota, ...]:
    """Each is a table, or the network alone."""
    table = _Table(NetworkQuota)

    def network(one: Any) -> NetworkQuota:
        if isinstance(one, str):
            one = {"network": one}
        try:
            return typing.cast("NetworkQuota", table(one, kind))
        except StructureError as error:
            named = one.get("network") if isinstance(one, dict) else None
            where = f"{show_value(named)}." if isinstance(named, str) else ""
            raise StructureError(
                (f"{where}{key}".removesuffix(".network"), what) for key, what in error.mistakes
            ) from None

    return list_of("networks", network)(value, kind)


def _retransmit(value: Any, cls: Any) -> RetransmitPolicy:
    if isinstance(value, str):
        return RETRANSMIT_PRESETS[choice(value, tuple(RETRANSMIT_PRESETS))]()
    if not isinstance(value, dict):
        raise is_needed('"default", "constrained" or a table', value)
    return typing.cast("RetransmitPolicy", _Table(RetransmitPolicy)(value, cls))


def _optional_number(kind: Any) -> Callable[[Any, Any], Any]:
    inner = next(member for member in typing.get_args(kind) if member is not type(None))

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, str):
            return None if value in NO_NUMBER else choice(value, NO_NUMBER)
        return _CONVERTER.structure(value, inner)

    return hook


def _number_or_word(kind: Any) -> Callable[[Any, Any], Any]:
    """The hook for ``int | Literal["off"]``."""
    number, words = typing.get_args(kind)

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, str) and value not in typing.get_args(words):
            told = " or ".join(f'"{word}"' for word in typing.get_args(words))
            raise mistake(f"{show_value(value)} is neither a whole number nor {told}")
        return _CONVERTER.structure(value, words if isinstance(value, str) else number)

    return hook


def fields_of(cls: type, without: Sequence[str] = ()) -> dict[str, tuple[Any, attrs.Attribute[Any]]]:
    """The keys of the table that ``cls`` stands for, each with its type and field; ``without`` are none."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: (hints[field.name], field)
        for field in attrs.fields(cls)
        if field.init and field.name not in without and not _is_function(hints[field.name])
    }


class _Table:
    """Structures a table into an attrs class."""

    def __init__(self, cls: type, without: Sequence[str] = ()):
        self._cls = cls
        self._fields = fields_of(cls, without)

    def __call__(self, table: Any, _: Any) -> Any:
        if not isinstance(table, dict):
            raise is_needed("a table", table)
        mistakes: list[tuple[str, str]] = []
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in self._fields:
                mistakes.append((key, f"unknown key{self._hint(key)}"))
                continue
            kind, field = self._fields[key]
            try:
                values[key] = _structure_field(value, kind, field)
            except StructureError as error:
                mistakes += [(f"{key}.{inner}" if inner else key, what) for inner, what in error.mistakes]
        for name, (_kind, field) in self._fields.items():
            if field.default is attrs.NOTHING and name not in table:
                mistakes.append((name, f"missing; remedy: {field.metadata.get('remedy', 'give a value')}"))
        if any(
            field.default is attrs.NOTHING and name not in values for name, (_, field) in self._fields.items()
        ):
            raise StructureError(mistakes)
        made = self._build(values, mistakes)
        if mistakes:
            raise StructureError(mistakes)
        return made

    def _build(self, values: dict[str, Any], mistakes: list[tuple[str, str]]) -> Any:
        """Call the class until its validators are content, leaving out the field that each names."""
        while True:
            try:
                return self._cls(**values)
            except (ConfigError, ValueError) as error:
                key, what = _taken_apart(str(error))
                mistakes.append((key, what))
                if key not in values or self._fields[key][1].default is attrs.NOTHING:
                    return None
                del values[key]

    def _hint(self, key: str) -> str:
        near = difflib.get_close_matches(key, self._fields, 1)
        if near:
            return f' (did you mean "{near[0]}"?)'
        below = [path for path in self._paths() if path.rpartition(".")[2] == key]
        return f' (did you mean "{below[0]}"?)' if len(below) == 1 else ""

    def _paths(self) -> list[str]:
        """The dotted keys of the tables below this one."""
        found = []
        for name, (kind, field) in self._fields.items():
            table = _table_in(kind)
            if table is not None:
                inner = _Table(table, field.metadata.get("without", ()))
                found += [f"{name}.{path}" for path in [*inner._fields, *inner._paths()]]
        return found


def _structure_field(value: Any, kind: Any, field: attrs.Attribute[Any]) -> Any:
    without = field.metadata.get("without")
    return _Table(kind, without)(value, kind) if without else _CONVERTER.structure(value, kind)


def _taken_apart(text: str) -> tuple[str, str]:
    """``Limits.max_half_open: what`` as key and what."""
    head, colon, what = text.partition(": ")
    name = head.rpartition(".")[2]
    return (name, what) if colon and name.isidentifier() else ("", text)


def _without_value(what: str) -> str:
    """A mistake's text without the value that it shows."""
    if " is needed, not " in what:
        return what.partition(" (")[0]
    return re.sub(r'^".*" is not one of ', "the value is not one of ", what)


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def _is_optional_number(kind: Any) -> bool:
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return False
    return set(typing.get_args(kind)) in ({int, type(None)}, {float, type(None)})


def _is_number_or_word(kind: Any) -> bool:
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return False
    number, *others = typing.get_args(kind)
    return number in (int, float) and len(others) == 1 and _is_literal(others[0])


def _is_optional(kind: Any) -> bool:
    arguments = typing.get_args(kind)
    return (
        typing.get_origin(kind) in (types.UnionType, typing.Union)
        and len(arguments) == 2
        and type(None) in arguments
    )


def _unless_absent(kind: Any) -> Callable[[Any, Any], Any]:
    """The hook for what may be left out; TOML has no null, so a value that is there is of the type itself."""
    inner = next(member for member in typing.get_args(kind) if member is not type(None))
    if not attrs.has(inner):
        return lambda value, _: _CONVERTER.structure(value, inner)

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, str):
            choice(value, (NO_TABLE,))
            return None
        return _CONVERTER.structure(value, inner)

    return hook


def _table_in(kind: Any) -> type | None:
    """The class that a table stands for, also where the table may be absent."""
    members = typing.get_args(kind) if _is_optional(kind) else (kind,)
    return next((member for member in members if attrs.has(member)), None)


def _is_function(kind: Any) -> bool:
    """A function, or perhaps none, cannot stand in a file."""
    members = typing.get_args(kind) if _is_optional(kind) else (kind,)
    return any(typing.get_origin(member) is Callable for member in members)


def _is_tuple_of_choices(kind: Any) -> bool:
    arguments = typing.get_args(kind)
    return (
        typing.get_origin(kind) is tuple
        and len(arguments) == 2
        and isinstance(arguments[0], type)
        and issubclass(arguments[0], enum.Enum)
    )


def _is_named_tables(kind: Any) -> bool:
    return typing.get_origin(kind) is Mapping and attrs.has(typing.get_args(kind)[1])


def _is_named_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum) and not issubclass(kind, int)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    for kind, hook in (
        (str, take_text),
        (bool, take_flag),
        (int, take_whole_number),
        (float, take_number),
        (Path, take_path),
        (bytes, take_bytes),
    ):
        converter.register_structure_hook(kind, hook)
    # Later registrations are asked first.
    converter.register_structure_hook_factory(attrs.has, _Table)
    converter.register_structure_hook_func(lambda kind: kind is RetransmitPolicy, _retransmit)
    converter.register_structure_hook_factory(_is_tuple_of_choices, _members_of)
    converter.register_structure_hook_func(
        lambda kind: kind == tuple[bytes, ...], list_of("texts", take_protocol_name)
    )
    converter.register_structure_hook_func(
        lambda kind: kind == tuple[str, ...], list_of("texts", lambda value: take_text(value, str))
    )
    # A class that knows better than its fields tell how it stands in a file.
    converter.register_structure_hook_func(
        lambda kind: hasattr(kind, "from_table"), lambda value, kind: kind.from_table(value)
    )
    converter.register_structure_hook_func(lambda kind: kind == tuple[NetworkQuota, ...], _networks)
    converter.register_structure_hook_factory(_is_named_tables, _named_tables)
    converter.register_structure_hook_factory(_is_optional, _unless_absent)
    converter.register_structure_hook_func(
        _is_literal, lambda value, kind: choice(value, typing.get_args(kind))
    )
    converter.register_structure_hook_func(
        _is_named_choice, lambda value, kind: kind(choice(value, [member.value for member in kind]))
    )
    converter.register_structure_hook_factory(_is_optional_number, _optional_number)
    converter.register_structure_hook_factory(_is_number_or_word, _number_or_word)
    return converter


_CONVERTER = _make_converter()
