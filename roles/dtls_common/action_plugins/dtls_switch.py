"""``dtls_switch``: from one release of the endpoint to the next, and back if it does not serve; see library/dtls_switch.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ansible.errors import AnsibleActionFail

# As in dtls_file.py.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

from dtls_shell import Answer, ShellAction  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINT = {
    "base": {"type": "str", "default": "/opt/dtls-endpoint"},
    "manager": {"type": "str", "default": "systemd", "choices": ["systemd", "init"]},
    "service": {"type": "str", "default": "dtls-endpoint.service"},
    "units": {"type": "list", "elements": "str", "default": []},
    "pidfile": {"type": "str", "default": "/run/dtls-endpoint/pid"},
    "files": {"type": "list", "elements": "str", "default": []},
    "credentials": {"type": "list", "elements": "str", "default": []},
    "listeners": {"type": "list", "elements": "str", "default": []},
    "identity": {"type": "str", "default": ""},
    "psk_file": {"type": "str", "default": ""},
    "user": {"type": "str", "default": "dtls-endpoint"},
    "config": {"type": "str", "default": "/etc/dtls-endpoint/endpoint.toml"},
    "health_timeout": {"type": "int", "default": 30},
    "keep": {"type": "int", "default": 3},
}
"""What an endpoint is on its host, whatever is to be done with it."""


class ActionModule(ShellAction):
    """The action."""

    SPEC: ClassVar[dict[str, Any]] = {
        "state": {
            "type": "str",
            "default": "current",
            "choices": ["current", "previous", "verified", "absent"],
        },
        "release": {"type": "str", "default": ""},
        "endpoint": {"type": "dict", "default": {}, "options": ENDPOINT, "apply_defaults": True},
        "purge": {"type": "list", "elements": "str", "default": []},
        "pending": {"type": "bool", "default": False},
    }

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Have it done there, and say what came of it."""
        endpoint, check = options["endpoint"], bool(self._task.check_mode)
        for name in ("units", "files", "credentials"):
            odd = [text for text in endpoint[name] if set(text) & set(" \t\n*?[")]
            if odd:
                raise AnsibleActionFail(f"endpoint.{name}: {odd[0]!r} has a blank or a pattern in it")
        words = (
            options["state"], "yes" if check else "no", endpoint["base"], options["release"], endpoint["manager"],
            endpoint["service"], endpoint["units"], endpoint["pidfile"], endpoint["files"], endpoint["credentials"],
            endpoint["listeners"], endpoint["identity"], endpoint["psk_file"], endpoint["user"], endpoint["config"],
            str(endpoint["health_timeout"]), str(endpoint["keep"]), options["purge"],
        )  # fmt: skip
        answer = self.shell(
            "dtls_switch", *(" ".join(word) if isinstance(word, list) else word for word in words)
        )
        self.need(answer, task_vars, "the service")
        report = answer.report
        if "refused" in report:
            raise AnsibleActionFail(self._refusal(answer, task_vars))
        if "still" in report:
            log = (
                f"journalctl -u {endpoint['service']}"
                if endpoint["manager"] == "systemd"
                else "the log of the system"
            )
            raise AnsibleActionFail(
                f"{self.host(task_vars)}: the release {report['release']} does not serve: {report['still']}; remedy: {log}"
            )
        changes = report.get("changes", "").split()
        if check and options["pending"]:
            changes = changes or ["pending"]
        return {
            "changed": bool(changes) or "reloaded" in report,
            "release": report.get("release", ""),
            "before": report.get("before", ""),
            "reasons": changes,
            "restarted": "switched" in report,
            "reloaded": "reloaded" in report,
            "installed": "absent" not in report,
            "removed": report.get("removed", "").split(),
        }

    def _refusal(self, answer: Answer, task_vars: Mapping[str, Any]) -> str:
        report = answer.report
        what = f"{self.host(task_vars)}: the release {report['release']} does not serve: {report['refused'].strip('| ')}"
        if report.get("log"):
            what += f"; its log: {report['log'].strip('| ')}"
        if "stopped" in report:
            return f"{what}; there was none before it, so the service is stopped; remedy: dtls_endpoint_wheelhouse, dtls_endpoint_config"
        back = f"{what}; switched back to {report.get('back', '?')}"
        if "serves" in report:
            return f"{back}, which serves again; remedy: another dtls_endpoint_wheelhouse or dtls_endpoint_config"
        return f"{back}, WHICH DOES NOT SERVE EITHER: {report.get('still', '')}; remedy: look at the host now"
