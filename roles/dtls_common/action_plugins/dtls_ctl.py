"""``dtls_ctl``: the endpoint's program on its host, with answers as data; see library/dtls_ctl.py."""

from __future__ import annotations

import json
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

PROGRAM = "/opt/dtls-endpoint/current/bin/dtls-endpoint"
CONFIG = "/etc/dtls-endpoint/endpoint.toml"

CHANGING = {("keys", what) for what in ("add", "rotate", "retire", "remove", "import")}
"""Commands that have --json and --dry-run, and say whether they changed anything."""
ASKING = {("keys", "list"), ("status",), ("doctor",)}
"""Commands that have --json and change nothing."""
LOOKING = {("check",)}
"""Commands without --json that change nothing."""
ACTING = {("handoff",), ("reload",)}
"""Commands without --dry-run that change something."""
TELLING = {("reload",)}
"""Those of them that have --json, and say what they changed."""


class ActionModule(ShellAction):
    """The action."""

    SPEC: ClassVar[dict[str, Any]] = {
        "args": {"type": "list", "elements": "str", "required": True},
        # No type: a mistake in it would be reported with the value.
        "stdin": {"type": "raw", "default": ""},
        "config": {"type": "str", "default": CONFIG},
        "program": {"type": "str", "default": PROGRAM},
        "accept": {"type": "list", "elements": "int", "default": [0]},
    }

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Run it, and read what it says."""
        words = options["args"]
        name = command(words)
        check = bool(self._task.check_mode)
        if check and name in ACTING:
            return {
                "changed": True,
                "skipped": True,
                "msg": f"{' '.join(name)}: is not rehearsed in check mode",
            }
        given = options["stdin"]
        if not isinstance(given, (str, bytes)):
            raise AnsibleActionFail("stdin: is no text; remedy: quotes")
        data = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
        answer = self.shell("dtls_ctl", *self._line(options, name, words, check=check), data=data)
        about = f"{Path(options['program']).name} {' '.join(name)}"
        self.need(answer, task_vars, about)
        if "missing" in answer.report:
            return self._missing(options, task_vars, about, check=check)
        status = int(answer.report["status"])
        errors = _errors(answer)
        if status not in options["accept"]:
            said = "; ".join(errors) or answer.shown.decode("utf-8", "replace")[-1000:] or "it said nothing"
            raise AnsibleActionFail(f"{self.host(task_vars)}: {about}: status {status}: {said}")
        found = read(answer.shown.decode("utf-8", "replace"), lines="--identities" in words)
        changed = name in ACTING - TELLING or (isinstance(found, dict) and _changed(name, found))
        return {"changed": changed, "status": status, "answer": found, "errors": errors}

    @staticmethod
    def _line(options: dict[str, Any], name: tuple[str, ...], words: list[str], *, check: bool) -> list[str]:
        line = [options["program"], *name]
        if options["config"] and not {"--config", "--psk-file", "--psk-database"} & set(words):
            line += ["--config", options["config"]]
        if name in CHANGING | ASKING | TELLING and "--json" not in words:
            line.append("--json")
        if name in CHANGING and check and "--dry-run" not in words:
            line.append("--dry-run")
        return line + words[len(name) :]

    def _missing(
        self, options: dict[str, Any], task_vars: Mapping[str, Any], about: str, *, check: bool
    ) -> dict[str, Any]:
        text = f"{about}: there is no {options['program']}"
        if check:
            # On a bare host the tasks before would have brought it.
            return {"changed": False, "skipped": True, "answer": {}, "errors": [], "msg": text}
        raise AnsibleActionFail(f"{self.host(task_vars)}: {text}; remedy: the role dtls_endpoint, or program")


def command(words: list[str]) -> tuple[str, ...]:
    """The command that ``words`` begin with; AnsibleActionFail for one that is not for here."""
    for length in (1, 2):
        name = tuple(words[:length])
        if name in CHANGING | ASKING | LOOKING | ACTING:
            if "--show" in words:
                raise AnsibleActionFail(
                    "args: --show prints keys, which Ansible would show; remedy: leave it out"
                )
            return name
    known = ", ".join(sorted(" ".join(name) for name in CHANGING | ASKING | LOOKING | ACTING))
    raise AnsibleActionFail(f"args: begin with none of the commands that can be run here: {known}")


def _changed(name: tuple[str, ...], found: Mapping[str, Any]) -> bool:
    if name in TELLING:
        return any(found.get(count) for count in ("added", "removed", "changed"))
    return name in CHANGING and bool(found.get("changed"))


def _errors(answer: Answer) -> list[str]:
    _, _, told = answer.output.partition("dtls: begin\n")
    told, _, _ = told.partition("dtls: status ")
    return [line for line in told.splitlines() if line]


def read(text: str, *, lines: bool) -> Any:
    """What the program printed, as data: of a page of identities a list, of what is no JSON its lines."""
    text = text.strip()
    try:
        if lines:
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text) if text else {}
    except ValueError:
        return {"lines": text.splitlines()}
