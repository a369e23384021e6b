"""Answers of the admin socket as tables of rich, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from endpoint.commands.views import status_rows

if TYPE_CHECKING:
    from collections.abc import Mapping


def status_table(answer: Mapping[str, Any]) -> Table:
    """The service's status. Texts are no markup: a device may be called ``[bold]``."""
    table = Table(title="dtls-endpoint", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, text in status_rows(answer):
        bad = what.startswith("not ready") or (what == "state" and not answer["ready"])
        table.add_row(Text(what), Text(text, style="red" if bad else ""))
    return table
