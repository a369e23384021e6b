"""Ansible loads this by its path, in its own process: it writes what each task returned, as lines of JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: answers
type: notification
short_description: Writes what each task returned on each host
description:
  - Appends a line of JSON for each result to the file that the environment variable E(LAB_ANSWERS) names.
"""


class CallbackModule(CallbackBase):
    """One line for each task and host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "answers"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self._place = os.environ.get("LAB_ANSWERS", "")
        self.disabled = not self._place

    def v2_runner_on_ok(self, result):
        self._write(result, "changed" if result.result.get("changed") else "ok")

    def v2_runner_on_skipped(self, result):
        self._write(result, "skipped")

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._write(result, "failed")

    def v2_runner_on_unreachable(self, result):
        self._write(result, "unreachable")

    def _write(self, result, state):
        told = {
            "role": result.task._role.get_name() if result.task._role else None,
            "task": result.task.get_name().rpartition(" : ")[2],
            "host": result.host.get_name(),
            "state": state,
            "result": result.result,
        }
        with Path(self._place).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told, default=str) + "\n")
