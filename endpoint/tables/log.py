"""``[log]``: what is written to standard error."""

from __future__ import annotations

from typing import Literal

import attrs

from endpoint.values import within


@attrs.frozen(kw_only=True)
class Log:
    """``[log]``: what is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level written. Associations are ``info``, failed handshakes ``warning``."""
    failures_per_second: float = attrs.field(
        default=1.0, validator=within(0.001, 1_000_000, "lines a second")
    )
    """Lines a second for each cause of failure that a stranger can bring about; the rest is counted."""
    failures_burst: int = attrs.field(default=20, validator=within(1, 1_000_000, "lines", whole=True))
    """Lines of one cause that may come at once, after quiet."""
