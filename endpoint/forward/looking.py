"""What ``check`` can see of ``[forward]`` without starting anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.forward.unix import why_not
from endpoint.forward.upstreams import files_allowed
from endpoint.tables.sinks import UdpTable, UnixTable, ValkeyTable
from endpoint.tables.valkey import ValkeyAddress
from endpoint.text import show_text
from endpoint.valkey_access import AccessError, load_access

if TYPE_CHECKING:
    from pathlib import Path

    from endpoint.tables.forward import Forward


def forward_mistakes(path: Path, forward: Forward) -> list[str]:
    """What would keep a service from starting."""
    mistakes = []
    for sink in forward.sinks:
        if isinstance(sink, ValkeyTable):
            mistakes += _access_mistakes(sink)
        problem = why_not(sink.listen) if isinstance(sink, UnixTable) and sink.listen else None
        if problem is not None:
            mistakes.append(f"{show_text(str(path))}: forward.{forward.key_of(sink)}listen: {problem}")
    return mistakes


def _access_mistakes(sink: ValkeyTable) -> list[str]:
    try:
        load_access(sink.server, sink.login())
    except AccessError as error:
        return list(error.problems)
    return []


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
        f"{address}: data cross the network in clear; remedy: valkeys:// for TLS"
        for sink in forward.sinks
        if isinstance(sink, ValkeyTable)
        and (address := ValkeyAddress.parse(sink.server)).crosses_network_in_clear
    ]
    remarks += [
        f"{show_text(str(sink.path))}: is not there now; datagrams wait for it in the buffer"
        for sink in forward.sinks
        if isinstance(sink, UnixTable) and not sink.path.exists()
    ]
    return remarks
