"""``dtls_release``: a release of the endpoint's program beside the others; see library/dtls_release.py."""

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
from dtls_wheels import archive, look_at, release_of, version_of  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = "/opt/dtls-endpoint"


class ActionModule(ShellAction):
    """The action."""

    SPEC: ClassVar[dict[str, Any]] = {
        "wheelhouse": {"type": "str", "required": True},
        "base": {"type": "str", "default": BASE},
        "python": {"type": "str", "default": "python3"},
    }

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """See whether it is there; else send the wheels, and install them."""
        folder = Path(options["wheelhouse"]).expanduser()
        try:
            wheels = look_at(folder)
        except ValueError as error:
            raise AnsibleActionFail(f"{self.host(task_vars)}: dtls_endpoint_wheelhouse: {error}") from None
        name = release_of(wheels)
        arguments = options["base"], name
        result = {"release": name, "version": version_of(wheels)}
        answer = self.shell("dtls_release", *arguments, "look", options["python"])
        self.need(answer, task_vars, f"the release {name}")
        if "there" in answer.report:
            return {"changed": False, **result}
        if self._task.check_mode:
            return {"changed": True, **result}
        answer = self.shell("dtls_release", *arguments, "install", options["python"], data=archive(wheels))
        self.need(answer, task_vars, f"the release {name} of {folder}")
        # "there": somebody else has installed it meanwhile.
        return {"changed": "installed" in answer.report, **result}
