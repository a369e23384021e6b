"""``dtls_facts``: what a host is and has, in one round trip, without Python there; see library/dtls_facts.py."""

from __future__ import annotations

import ipaddress
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

# As in dtls_file.py.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

from dtls_shell import ShellAction, connection  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXTS = (
    "init", "nft", "iptables_legacy", "iptables_nft", "python", "python_version", "kernel", "machine", "hostname",
    "distribution", "distribution_version",
)  # fmt: skip


class ActionModule(ShellAction):
    """The action."""

    SPEC: ClassVar[dict[str, Any]] = {"as_facts": {"type": "bool", "default": False}}

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Ask, and give the answers their types."""
        before = time.time()
        answer = self.shell("dtls_facts")
        after = time.time()
        self.need(answer, task_vars, "its facts cannot be read")
        report = answer.report
        facts: dict[str, Any] = {name: report.get(name, "") for name in _TEXTS}
        facts["fw4"] = "fw4" in report
        facts["uci"] = "uci" in report
        facts["uid"] = int(report["uid"])
        facts["missing"] = report["missing"].split()
        facts["ssh"] = connection(report["ssh"])
        if facts["ssh"]:
            facts["ssh"]["network"] = network(facts["ssh"]["client"])
        facts["clock"] = int(report["clock"])
        # Whole seconds there, and the way there and back: less than this is nothing.
        facts["clock_offset"] = round(offset(facts["clock"], before, after), 1)
        facts["backend"] = backend(facts)
        result: dict[str, Any] = {"changed": False, **facts}
        if options["as_facts"]:
            result["ansible_facts"] = {f"dtls_{name}": value for name, value in facts.items()}
        return result


def network(client: str) -> str:
    """Where the client will come from next time: hosts change their IPv6 addresses within a /64 every day (RFC 8981)."""
    return str(ipaddress.ip_network((client, 64), strict=False)) if ":" in client else client


def offset(clock: int, before: float, after: float) -> float:
    """How many seconds the host's clock is ahead, at least; it was read between ``before`` and ``after``."""
    if clock + 1 < before:
        return clock + 1 - before
    return max(0.0, clock - after)


def backend(facts: Mapping[str, Any]) -> str:
    """What rules are loaded with where nothing else is asked for; empty if nothing is there."""
    if facts["fw4"] and facts["nft"]:
        return "fw4"
    for program, name in (
        ("nft", "nft"),
        ("iptables_nft", "iptables-nft"),
        ("iptables_legacy", "iptables-legacy"),
    ):
        if facts[program]:
            return name
    return ""
