"""What ``check`` can see of ``[forward]`` without starting anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.forward.unix import why_not
from endpoint.forward.upstreams import files_allowed
from endpoint.tables.sinks import UdpTable, UnixTable
from endpoint.text import show_text

if TYPE_CHECKING:
    from pathlib import Path

    from endpoint.tables.forward import Forward


def forward_mistakes(path: Path, forward: Forward) -> list[str]:
    """What would keep a service from starting."""
    mistakes = []
    for sink in forward.sinks:
        problem = why_not(sink.listen) if isinstance(sink, UnixTable) and sink.listen else None
        if problem is not None:
            mistakes.append(f"{show_text(str(path))}: forward.{forward.key_of(sink)}listen: {problem}")
    return mistakes


def remarks_about(forward: Forward) -> list[str]:
    """What is worth a look."""
    remarks = []
    wanted = sum(sink.max_upstreams for sink in forward.sinks if isinstance(sink, UdpTable))
    allowed = files_allowed()
    if allowed is not None and wanted > allowed:
        remarks.append(
            f"forward: a process of this user may open files for {allowed} sockets, not for max_upstreams = {wanted}; remedy: "
            f"LimitNOFILE= in the unit, or ulimit -n"
        )
    if not any(sink.identities is None and sink.alpn is None for sink in forward.sinks):
        remarks.append("forward: what no sink is for is dropped and counted (unmatched)")
    remarks += [
        f"{show_text(str(sink.path))}: is not there now; datagrams wait for it in the buffer"
        for sink in forward.sinks
        if isinstance(sink, UnixTable) and not sink.path.exists()
    ]
    return remarks
