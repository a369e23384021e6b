"""``[forward]``: where received data go."""

from __future__ import annotations

from typing import Literal

import attrs

from endpoint.structure import within


@attrs.frozen(kw_only=True)
class Forward:
    """``[forward]``: where received data go."""

    kind: Literal["jsonl", "echo"] = "jsonl"
    """``jsonl``: one JSON line for each datagram, on standard output. ``echo``: back to the sender."""
    buffer: int = attrs.field(default=1_048_576, validator=within(1024, 2**32, "bytes", whole=True))
    """For ``jsonl``: lines held while the reader of standard output is slow; beyond, new ones are
    dropped and counted."""
