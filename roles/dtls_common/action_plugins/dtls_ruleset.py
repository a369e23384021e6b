"""``dtls_ruleset``: rules for packets that cannot lock anybody out; see library/dtls_ruleset.py.

The host arms a dead-man, loads the rules and answers. Then the connection is closed, and a new one, whose first packet
the new rules have judged, confirms. One that was open before would pass by ``ct state established`` and prove nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

# As in dtls_file.py.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

from dtls_admits import Chains, Session, Table, refusal  # noqa: E402
from dtls_rules import RulesError, checked_name, fingerprint, for_iptables, for_nft, nothing  # noqa: E402
from dtls_shell import Answer, ShellAction, connection  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

PATHS = {
    "nft": "/etc/dtls-guard/{name}.nft",
    "fw4": "/usr/share/nftables.d/ruleset-post/{name}.nft",
    "iptables-nft": "/etc/dtls-guard/{name}.iptables",
    "iptables-legacy": "/etc/dtls-guard/{name}.iptables",
}
"""Where rules are kept for the next boot."""
PAUSE = 0.3
"""Seconds between two attempts to get in."""
GRACE = 20.0
"""Seconds that the host may take to be there again after its dead-man."""


class ActionModule(ShellAction):
    """The action."""

    SPEC: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "backend": {"type": "str", "default": "auto", "choices": ["auto", *PATHS]},
        "content": {"type": "str", "default": ""},
        "rollback_after": {"type": "int", "default": 30},
        "learn": {"type": "int", "default": 3},
        "persist": {"type": "bool", "default": True},
        "path": {"type": "str", "default": ""},
        "check_session": {"type": "bool", "default": True},
        "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
    }

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Compare, and change what differs."""
        self._options, self._vars = options, task_vars
        self._nonce = secrets.token_hex(8)
        self._backend = options["backend"]
        self._path = options["path"]
        if not 5 <= options["rollback_after"] <= 600:
            raise AnsibleActionFail("rollback_after: is not from 5 to 600 seconds")
        if not 0 <= options["learn"] <= 60:
            raise AnsibleActionFail("learn: is not from 0 to 60 seconds")
        if options["state"] == "present" and not options["content"].strip():
            raise AnsibleActionFail("content: is empty; remedy: state=absent, if no rules are wanted")
        try:
            self._name = checked_name(options["name"])
            seen = self._look()
            if options["state"] == "absent":
                return self._remove(seen)
            make = for_nft if self._backend in {"nft", "fw4"} else for_iptables
            self._text = make(self._name, options["content"])
        except RulesError as error:
            raise AnsibleActionFail(str(error)) from None
        self._wanted = fingerprint(options["content"])
        return self._present(seen)

    # --- what is there ----------------------------------------------------------------------------

    def _look(self) -> Answer:
        # Which file it is depends on the backend, which the host may have to choose.
        backend = "nft" if self._backend == "auto" else self._backend
        self._path = self._options["path"] or PATHS[backend].format(name=self._name)
        answer = self._ask("look")
        if answer.report["problem"] and self._task.check_mode:
            return answer
        if answer.report["problem"]:
            raise AnsibleActionFail(f"{self._where()}: {answer.report['problem']}")
        chosen = answer.report["backend"]
        if chosen != self._backend:
            self._backend = chosen
            if not self._options["path"] and PATHS[chosen] != PATHS[backend]:
                return self._look()
        return answer

    def _ask(self, what: str, *, port: str = "", data: bytes = b"") -> Answer:
        answer = self.shell(
            "dtls_ruleset",
            what, self._name, self._backend, self._nonce, self._path, getattr(self, "_wanted", ""),
            hashlib.sha256(data).hexdigest(), str(self._options["rollback_after"]),
            "yes" if self._options["persist"] else "no", port, str(self._options["learn"]),
            data=data,
        )  # fmt: skip
        self.need(answer, self._vars, self._options["name"])
        return answer

    def _where(self) -> str:
        return f"{self.host(self._vars)}: {self._options['name']}"

    # --- what is wanted ---------------------------------------------------------------------------

    def _present(self, seen: Answer) -> dict[str, Any]:
        report = seen.report
        result: dict[str, Any] = {
            "changed": False,
            "confirmed": False,
            "rolled_back": False,
            "sha256": self._wanted,
            "backend": self._backend,
            "path": self._path,
        }
        self._refuse_foreign(report)
        others = report.get("others", "").split()
        in_force = report.get("live") == self._wanted and not report.get("pending") and not others
        written = report.get("written") == hashlib.sha256(self._text.encode()).hexdigest()
        if in_force and (written or not self._options["persist"]):
            return result | {"confirmed": True}
        result["changed"] = True
        if self._task.diff:
            result["diff"] = [self._diff(seen)]
        self._check_session(report.get("ssh", ""))
        if self._task.check_mode:
            if not report["problem"] and not in_force:
                self._ask("try", data=self._text.encode())
            return result
        if in_force:
            self._ask("rewrite", data=self._text.encode())
            return result | {"confirmed": True}
        return result | self._apply()

    def _refuse_foreign(self, report: Mapping[str, str]) -> None:
        if "foreign" in report:
            raise AnsibleActionFail(
                f"{self._where()}: there is such a table, and it is not ours; remedy: nft delete table inet {self._name}, or another "
                "name"
            )

    def _diff(self, seen: Answer) -> dict[str, str]:
        before = seen.shown.decode("utf-8", "replace")
        live = seen.report.get("live", "")
        if live not in before:
            before = f"rules of SHA-256 {live}\n" if live else ""
        before += "".join(f"# rules by {other}\n" for other in seen.report.get("others", "").split())
        return {
            "before": before,
            "after": self._text,
            "before_header": self._name,
            "after_header": self._name,
        }

    def _check_session(self, told: str) -> None:
        found = connection(told)
        if not found or not self._options["check_session"]:
            return
        session = Session(**found)
        nft = self._backend in {"nft", "fw4"}
        why = refusal(Table(self._options["content"]) if nft else Chains(self._text), session)
        if why:
            raise AnsibleActionFail(
                f"{self._where()}: content: would lock this very session out: {why}, as far as can be seen; remedy: a plain rule that "
                f"accepts TCP from {session.client} to port {session.server_port}, and ct state established; or check_session=false"
            )

    def _remove(self, seen: Answer) -> dict[str, Any]:
        in_force = any(seen.report.get(what, "").strip() for what in ("live", "pending", "others"))
        result: dict[str, Any] = {
            "changed": in_force or "written" in seen.report,
            "confirmed": True,
            "rolled_back": False,
            "sha256": "",
            "backend": self._backend,
        }
        if in_force:
            self._refuse_foreign(seen.report)
        if self._task.check_mode or not result["changed"]:
            return result
        if in_force:
            # Ours may be what lets the controller in past the host's own rules.
            self._options = self._options | {"persist": False}
            self._wanted, self._text = "", nothing(self._name, nft=self._backend in {"nft", "fw4"})
            result |= self._apply()
        if not result.get("failed"):
            self._ask("remove")
        return result

    # --- apply, connect anew, confirm -------------------------------------------------------------

    def _apply(self) -> dict[str, Any]:
        try:
            port = self._ask("apply", data=self._text.encode()).report.get("port", "")
        except AnsibleConnectionFailure:
            # Rules may be in force that end what was open; whether they are is asked over the next connection.
            port = ""
        began = time.monotonic()
        self._connect_sooner()
        seconds_left = self._options["learn"] + self._options["rollback_after"] + GRACE
        answer = self._confirm(port, began + seconds_left)
        state = answer.report["state"]
        if state == "confirmed":
            return {"confirmed": True}
        seconds = f"{time.monotonic() - began:.1f} s"
        reasons = {
            "rolled": f"nobody got in by a new connection, so what was before is back, after {seconds}; remedy: rules that "
            "admit the controller",
            "other": "other rules are in force than were loaded, so what was before is back; remedy: see who else changes them",
            "unloaded": "the connection broke before the rules were loaded, so what was before is in force; remedy: run it again",
            "lost": "the apply is gone: another one has taken its place, or the host was booted; remedy: run it again",
            "same": "no new connection could be made to confirm over, so what was before comes back; remedy: leave "
            "ControlMaster to Ansible",
        }
        unclear = (
            f"the host does not come to an end with it; remedy: look into /run/dtls-guard/{self._name} there"
        )
        said = f" ({answer.report['log']})" if answer.report.get("log", "").strip(" |") else ""
        return {
            "failed": True,
            "changed": False,
            "rolled_back": state in {"rolled", "other", "same"},
            "msg": f"{self._where()}: {reasons.get(state, unclear)}{said}",
        }

    def _connect_sooner(self) -> None:
        # Of the time until the dead-man acts, several attempts are to be made.
        try:
            patience = int(self._connection.get_option("timeout"))
            self._connection.set_option(
                "timeout", min(patience, max(3, self._options["rollback_after"] // 3))
            )
        except (KeyError, TypeError, ValueError):
            return

    def _new_connection(self) -> None:
        reset = getattr(self._connection, "reset", None)
        if reset is not None:
            reset()

    def _confirm(self, port: str, end: float) -> Answer:
        while True:
            self._new_connection()
            try:
                answer = self._ask("confirm", port=port)
            except AnsibleConnectionFailure as error:
                if time.monotonic() > end:
                    raise AnsibleConnectionFailure(
                        f"{self._where()}: does not answer any more, not even after its dead-man should have acted; remedy: its "
                        f"console, and nft delete table inet {self._name}, or a boot: {error}"
                    ) from None
            else:
                # "early": the rules are not loaded yet; "late": the dead-man was quicker by a moment, and is at work.
                if answer.report["state"] not in {"early", "late", "same"} or time.monotonic() > end:
                    return answer
            time.sleep(PAUSE)
