"""Ansible loads this by its path, in its own process: it writes what each task did, as lines of JSON."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ansible import context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorder
type: notification
short_description: Writes what each task did on each host
description:
  - Appends a line of JSON for each result to the file that the environment variable E(LAB_RECORD) names.
  - Nothing of a result itself is written, so no secret is, unless the environment variable E(LAB_RESULTS) is set.
"""


class CallbackModule(CallbackBase):
    """One line for each task and host; for a loop, one for all its items."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "recorder"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self._place = os.environ.get("LAB_RECORD")
        self._began = {}
        self.disabled = self._place is None

    def v2_runner_on_start(self, host, task):
        self._began[host.get_name(), task._uuid] = time.monotonic()

    def v2_runner_on_ok(self, result):
        self._write(result, "changed" if result.result.get("changed") else "ok")

    def v2_runner_on_skipped(self, result):
        self._write(result, "skipped")

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._write(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result):
        self._write(result, "unreachable")

    def _write(self, result, state):
        task, host = result.task, result.host.get_name()
        role = task._role
        began = self._began.pop((host, task._uuid), None)
        told = {
            # Without the collection that it may be of, and without the role that is said already.
            "role": role.get_name().rpartition(".")[2] if role is not None else None,
            "task": task.get_name().rpartition(" : ")[2] if role is not None else task.get_name(),
            "action": task.action,
            "place": task.get_path(),
            "host": host,
            "state": state,
            # Of the run: a task that only looks, and so has it for itself, did what it does.
            "check": bool(context.CLIARGS.get("check")) and bool(task.check_mode),
            "seconds": None if began is None else round(time.monotonic() - began, 3),
        }
        if os.environ.get("LAB_RESULTS"):
            told["result"] = result.result
        with Path(self._place or os.devnull).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told, default=str) + "\n")
