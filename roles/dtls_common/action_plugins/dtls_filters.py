"""``dtls_filters``: makes the filters known by their short names, also where these roles come in a collection.

When it is loaded: a role's templates may use a filter in its first task, and Ansible, in its main process, loads the action
of a task before anything of it is templated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import filter_loader

filter_loader.add_directory(str(Path(__file__).resolve().parents[1] / "filter_plugins"))


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action, which has nothing left to do."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Say that nothing was changed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        return result | {"changed": False}
