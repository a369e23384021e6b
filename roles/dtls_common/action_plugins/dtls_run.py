"""``dtls_run``: a command of a device, by its own shell; see library/dtls_run.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ansible.errors import AnsibleActionFail

# As in dtls_file.py.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

from dtls_shell import ShellAction  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping


class ActionModule(ShellAction):
    """The action."""

    SPEC: ClassVar[dict[str, Any]] = {
        "command": {"type": "str", "required": True},
        "timeout": {"type": "int", "default": 60},
    }

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Run it; AnsibleActionFail if it ends with another status than 0, or not in time."""
        command, timeout = options["command"], options["timeout"]
        if timeout < 1:
            raise AnsibleActionFail(f"timeout: {timeout} is no number of seconds from 1 on")
        if self._task.check_mode:
            return {"changed": True, "skipped": True, "msg": "is not run in check mode"}
        answer = self.shell("dtls_run", str(timeout), command)
        self.need(answer, task_vars, command)
        # Each line of it is marked, so that none can be taken for a report.
        said = "\n".join(line[2:] for line in answer.output.splitlines() if line.startswith("> ")).strip()
        status = int(answer.report["status"])
        if status:
            late = f", so it was ended after {timeout} s" if "late" in answer.report else ""
            raise AnsibleActionFail(
                f"{self.host(task_vars)}: {command}: status {status}{late}: {said[-1000:] or 'it said nothing'}"
            )
        return {"changed": True, "rc": 0, "said": said}
