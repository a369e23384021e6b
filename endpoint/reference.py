"""The reference of the configuration file, as Markdown, out of the classes that define it.

``python -m endpoint.reference > docs/configuration.md`` (``make docs``) writes it; a test compares the two, so that
what is documented is what is there.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from endpoint.config import EndpointConfig
from endpoint.structure import NO_TABLE, fields_of

HEAD = """# The configuration file

TOML. Every key has a default but those of `[credentials]`, of which some are needed. Unknown keys are refused, with the likeliest name;
`dtls-endpoint check --config FILE` tells every mistake at once. File names are relative to the directory of the configuration file.
Times are in seconds unless it says otherwise; where there may be no limit, `"unlimited"` or `"never"` stands for none (`None` below). Where a whole table may be absent, `"off"` does.
"""

_PLAIN = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    Path: "file name",
    bytes: "hexadecimal text",
}


def reference() -> str:
    """The whole of it."""
    return "\n".join([HEAD, *_table(EndpointConfig, "", ())])


def _table(cls: type, name: str, without: tuple[str, ...]) -> Iterator[str]:
    texts = _texts(cls)
    below: list[tuple[str, type, tuple[str, ...]]] = []
    if name:
        yield f"## `[{name}]`\n"
        yield from _paragraph(inspect.cleandoc(cls.__doc__ or ""))
    if hasattr(cls, "variants"):
        yield from _variants(cls.variants)
        return
    for key, (kind, field) in fields_of(cls, without).items():
        dotted = f"{name}.{key}" if name else key
        inner = _inner(kind)
        if inner is not None:
            below.append((f"{dotted}{_suffix(kind)}", inner, tuple(field.metadata.get("without", ()))))
            if not name or not texts.get(key):
                continue
        told = _plain(texts.get(key, ""))
        yield f"- **`{key}`** ({_kind(kind)}; {_default(field)}): {told}"
    if name:
        yield ""
    for dotted, inner, leaves_out in below:
        yield from _table(inner, dotted, leaves_out)


def _variants(variants: Mapping[str, type]) -> Iterator[str]:
    """A table whose keys depend on its ``kind``: those of all kinds first, then each kind's own."""
    keys = {kind: fields_of(cls) for kind, cls in variants.items()}
    common = [key for key in next(iter(keys.values())) if all(key in own for own in keys.values())]
    names = [_value(kind) for kind in variants]
    yield f"- **`kind`** ({' or '.join(names)}; default {names[0]}): which of those below."
    for kind, cls in variants.items():
        texts = _texts(cls)
        first = kind == next(iter(variants))
        told = {
            key: f"- **`{key}`** ({_kind(what)}; {_default(field)}): {_plain(texts.get(key, ''))}"
            for key, (what, field) in keys[kind].items()
        }
        if first:
            yield from (told[key] for key in common)
        yield f'\n### `kind = "{kind}"`\n'
        yield from _paragraph(inspect.cleandoc(cls.__doc__ or ""))
        yield from (line for key, line in told.items() if key not in common)
    yield ""


def _paragraph(text: str) -> Iterator[str]:
    # The class's own text names the table again, as it is read there.
    text = re.sub(r"^``(\[[^\]]*\]|kind = [^`]*)``[:.] ", "", text)
    for part in text.split("\n\n"):
        if "\n    " in part or part.endswith("::"):
            continue
        told = _plain(part)
        yield told[:1].upper() + told[1:] + "\n"


def _texts(cls: type) -> dict[str, str]:
    """The text below each field, of the class and those that it extends."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if not attrs.has(one):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)  # noqa: S101 - what the source of a class is
        name = ""
        for statement in body.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
            elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found[name] = inspect.cleandoc(str(statement.value.value))
                name = ""
            else:
                name = ""
    return found


def _plain(text: str) -> str:
    """One paragraph, its marks those of Markdown."""
    text = re.sub(r":(?:class|func|meth|data|attr):`~?([^`]+)`", _last_name, text)
    return " ".join(text.replace("``", "`").split())


def _last_name(match: re.Match[str]) -> str:
    return f"`{match.group(1).rpartition('.')[2]}`"


def _inner(kind: Any) -> type | None:
    """The class of a table, of each of several named tables, or of each table of a list."""
    members = [kind, *(member for member in typing.get_args(kind))]
    return next((member for member in members if isinstance(member, type) and attrs.has(member)), None)


def _suffix(kind: Any) -> str:
    return (
        '."NAME"' if typing.get_origin(kind) is Mapping else "[]" if typing.get_origin(kind) is tuple else ""
    )


def _kind(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(f'`"{choice}"`' for choice in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(member) for member in arguments if member is not type(None))
    if origin is tuple:
        if attrs.has(arguments[0]):
            return "list of tables, or of texts that stand for one"
        # Of what is bytes only ALPN's names come in lists, and they are written as text.
        return f"list of {'text' if arguments[0] is bytes else _kind(arguments[0])}"
    if origin is Mapping:
        return "tables"
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and not issubclass(kind, int):
        return " or ".join(f'`"{member.value}"`' for member in kind)
    if isinstance(kind, type) and attrs.has(kind):
        return f'a table, or `"{NO_TABLE}"`'
    return _PLAIN.get(kind, "name")


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "must be given"
    default: Any = field.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = default.factory()
    if attrs.has(type(default)):
        return "default: see there"
    return f"default {_value(default)}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, enum.Enum):
        value = value.name if isinstance(value, int) else value.value
    if isinstance(value, (tuple, list)):
        return ", ".join(_value(member) for member in value) or "none"
    if isinstance(value, float):
        return f"`{value:.12g}`"
    if isinstance(value, (str, bytes, Path)):
        text = value.hex() if isinstance(value, bytes) else str(value)
        return f'`"{text}"`' if text else "empty"
    return f"`{value}`" if not isinstance(value, Mapping) else "none"


if __name__ == "__main__":
    sys.stdout.write(reference())
