"""The keys of one sink, by its kind. They stand in ``[forward]``, or in a ``[[forward.sinks]]`` where there are several."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from endpoint.structure import within
from endpoint.text import show_text


def _name(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    # It becomes a label of metrics and a key of the log.
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", value):
        raise ValueError(
            f'name: "{show_text(value)}" is not up to 64 letters, digits, dots, dashes and underscores'
        )


def _some(_instance: object, attribute: attrs.Attribute[Any], value: tuple[object, ...] | None) -> None:
    if value is not None and not value:
        raise ValueError(f"{attribute.name}: an empty list means nobody; remedy: leave it out for everybody")


@attrs.frozen(kw_only=True)
class SinkTable:
    """What all kinds have: a name, and whose data it gets."""

    kind: ClassVar[str]

    name: str = attrs.field(default="", validator=_name)
    """What log and metrics call it; by default its kind."""
    identities: tuple[str, ...] | None = attrs.field(default=None, validator=_some)
    """Shell patterns (``*``, ``?``, ``[a-f]``) of the identities whose data it gets, as the log shows them, upper and lower
    case told apart. Without it: everybody's, also of devices that showed no identity."""
    alpn: tuple[bytes, ...] | None = attrs.field(default=None, validator=_some)
    """Protocols of which one must have been negotiated (RFC 7301); ``dtls.alpn_protocols`` has to name them too.
    Without it: any, or none."""
    also: bool = False
    """Whether the sinks that come after it are looked at as well when it gets a datagram."""

    @property
    def has_way_back(self) -> bool:
        """Whether what its other side sends goes to the devices."""
        return False

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.kind

    @property
    def chooses(self) -> bool:
        """Whether it does not get everybody's."""
        return self.identities is not None or self.alpn is not None

    def in_words(self) -> str:
        """What it does with a datagram."""
        raise NotImplementedError

    def for_whom(self) -> str:
        """Whose data it gets, in words."""
        whom = []
        if self.identities is not None:
            whom.append(f"identities like {show_text(', '.join(self.identities))}")
        if self.alpn is not None:
            protocols = ", ".join(protocol.decode() for protocol in self.alpn)
            whom.append(f"the protocols {show_text(protocols)}")
        return (" with ".join(whom) or "everybody") + (", and on to the next" if self.also else "")

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        return iter(())

    def below(self, directory: Path) -> SinkTable:
        """The same with every file name completed by ``directory``."""
        files: dict[str, Any] = {
            field.name: directory / value
            for field in attrs.fields(type(self))
            if isinstance(value := getattr(self, field.name), Path)
        }
        return attrs.evolve(self, **files)


@attrs.frozen(kw_only=True)
class BufferedTable(SinkTable):
    """What kinds have that may have to wait for their other side."""

    buffer: int = attrs.field(default=1_048_576, validator=within(1024, 2**32, "bytes", whole=True))
    """Bytes held while the other side is slow or away; beyond, datagrams are dropped and counted."""
    overflow: Literal["newest", "oldest"] = "newest"
    """Which are dropped then. ``newest``: what is held is older, but complete and in order. ``oldest``: for readings
    of which only the last ones matter."""

    def bounds(self) -> str:
        """The bound in words."""
        dropped = "" if self.overflow == "newest" else ", then dropping the oldest"
        return f"holding at most {self.buffer} bytes{dropped}"


@attrs.frozen(kw_only=True)
class JsonlTable(BufferedTable):
    """``kind = "jsonl"``: one JSON line for each datagram, on standard output."""

    kind: ClassVar[str] = "jsonl"

    def in_words(self) -> str:
        """What it does with a datagram."""
        return f"writes each datagram as a JSON line to standard output, {self.bounds()}"


@attrs.frozen(kw_only=True)
class EchoTable(SinkTable):
    """``kind = "echo"``: back to the sender."""

    kind: ClassVar[str] = "echo"

    def in_words(self) -> str:
        """What it does with a datagram."""
        return "sends every datagram back to its sender"


KINDS: dict[str, type[SinkTable]] = {table.kind: table for table in (JsonlTable, EchoTable)}
"""Every kind's table, by the name of the kind."""
