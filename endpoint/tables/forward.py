"""``[forward]``: where received data go. The keys of each kind of sink are in ``endpoint.tables.sinks``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from endpoint.structure import structure
from endpoint.tables.sinks import KINDS, JsonlTable, SinkTable, UnixTable
from endpoint.text import show_text
from endpoint.values import StructureError, choice

DEFAULT_KIND = JsonlTable.kind


@attrs.frozen(kw_only=True)
class Forward:
    """``[forward]``: where received data go.

    One sink's keys stand in the table itself. Where there are several, each has a `[[forward.sinks]]` with its `kind`:
    a datagram goes to the first sink that is meant to have it, and to those behind it for as long as `also` is true.
    """

    variants: ClassVar[Mapping[str, type[SinkTable]]] = KINDS

    sinks: tuple[SinkTable, ...] = attrs.field(factory=lambda: (JsonlTable(),))

    @property
    def kind(self) -> str:
        """The kind of the first sink, which mostly is the only one."""
        return self.sinks[0].kind

    @classmethod
    def from_table(cls, table: object) -> Forward:
        """For ``endpoint.structure``: raises StructureError."""
        if not isinstance(table, dict):
            raise StructureError([("", "a table is needed, not this")])
        if "sinks" not in table:
            return cls(sinks=(_sink(table, DEFAULT_KIND),))
        mistakes = [
            (key, "belongs into a sink where there are several; remedy: move it below its [[forward.sinks]]")
            for key in table
            if key != "sinks"
        ]
        given = table["sinks"]
        if not isinstance(given, list) or not given:
            mistakes.append(("sinks", "a list of tables is needed, [[forward.sinks]]"))
            raise StructureError(mistakes)
        sinks = []
        for number, one in enumerate(given, 1):
            try:
                sinks.append(_sink(one, None))
            except StructureError as error:
                where = _where(one, number)
                mistakes += [(f"{where}.{key}" if key else where, what) for key, what in error.mistakes]
        if mistakes:
            raise StructureError(mistakes)
        return cls(sinks=tuple(sinks))

    def key_of(self, sink: SinkTable) -> str:
        """What stands before a sink's keys in messages, after ``forward.``."""
        return f'sinks."{sink.label}".' if len(self.sinks) > 1 else ""

    def below(self, directory: Path) -> Forward:
        """The same with every file name completed by ``directory``."""
        return attrs.evolve(self, sinks=tuple(sink.below(directory) for sink in self.sinks))

    def contradictions(self, alpn_protocols: Sequence[bytes]) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs. ``alpn_protocols`` are those that are negotiated."""
        seen: set[str] = set()
        listening: dict[Path, str] = {}
        for sink in self.sinks:
            where = self.key_of(sink)
            if sink.label in seen:
                yield f"{where}name", 'two sinks are called so; remedy: give each its own  name = "…"'
            seen.add(sink.label)
            if sink.alpn is not None and not set(sink.alpn) & set(alpn_protocols):
                shown = ", ".join(f'"{show_text(protocol.decode())}"' for protocol in sink.alpn)
                yield (
                    f"{where}alpn",
                    f"can never match, as no such protocol is negotiated; remedy: [dtls] alpn_protocols = [{shown}]",
                )
            yield from ((f"{where}{key}", what) for key, what in sink.contradictions())
            if isinstance(sink, UnixTable) and sink.listen is not None:
                if sink.listen in listening:
                    other = listening[sink.listen]
                    yield f"{where}listen", f'is that of the sink "{other}" too; remedy: name another'
                listening.setdefault(sink.listen, sink.label)
        if sum(isinstance(sink, JsonlTable) for sink in self.sinks) > 1:
            yield "sinks", "only one sink can write to standard output; remedy: one of kind jsonl"


def _where(table: object, number: int) -> str:
    """A sink's place in messages: its name, or its number from 1."""
    name = table.get("name") or table.get("kind") if isinstance(table, dict) else None
    return f'sinks."{show_text(name)}"' if isinstance(name, str) else f"sinks.{number}"


def _sink(table: object, default_kind: str | None) -> SinkTable:
    if not isinstance(table, dict):
        raise StructureError([("", "a table is needed, not this")])
    keys: dict[str, Any] = dict(table)
    kind = keys.pop("kind", default_kind)
    if kind is None:
        raise StructureError([("kind", f"missing; remedy: one of {', '.join(KINDS)}")])
    try:
        cls = KINDS[choice(kind, tuple(KINDS))]
    except StructureError as error:
        raise StructureError([("kind", what) for _, what in error.mistakes]) from None
    mistakes = []
    known = {field.name for field in attrs.fields(cls)}
    for key in [key for key in keys if key not in known]:
        others = [
            name for name, other in KINDS.items() if key in {field.name for field in attrs.fields(other)}
        ]
        if others:
            mistakes.append((key, f'is of no use with kind = "{kind}"; it belongs to {", ".join(others)}'))
            del keys[key]
    try:
        sink = structure(keys, cls)
    except StructureError as error:
        raise StructureError([*mistakes, *error.mistakes]) from None
    if mistakes:
        raise StructureError(mistakes)
    return sink
