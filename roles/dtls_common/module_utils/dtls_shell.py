"""How the plugins run shell on a host: the only place that uses Ansible's undocumented call for it.

A host needs nothing but a POSIX shell with the usual small programs. Its command line is one short constant, the same for
every task; the script, its arguments and what is secret follow on standard input. So nothing of them stands in a
process list or in the ``EXEC`` lines of ``-vvv``, no file is transferred, and old ssh servers with short command lines
will do.

Only whole lines are run, and what acts is called on the last of them: of a script that arrives in part, nothing is.
"""

from __future__ import annotations

import ipaddress
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

if TYPE_CHECKING:
    from collections.abc import Mapping

MARK = b"dtls: "
"""Before each line that a script reports; a login may print others."""
_END = "#dtls-end"
# `read` takes one byte at a time of a pipe, so that what follows the script is left for it. A script may keep itself.
_BOOTSTRAP = (
    f': sansdtls {{name}}; dtls_script="$(while IFS= read -r l && [ "$l" != "{_END}" ]; do printf "%s\\n" "$l"; done)"; '
    'eval "$dtls_script"'
)
ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
"""For ssh: a host that goes away in the middle of something is missed after 20 s, not after a quarter of an hour."""
_SCRIPTS = Path(__file__).parent


class Answer(NamedTuple):
    """What a script said."""

    status: int
    report: dict[str, str]
    """The lines it reported, by their first word."""
    shown: bytes
    """What it showed of a file."""
    output: str
    """All of its standard output."""
    error: str

    def problem(self) -> str | None:
        """What went wrong, in words; ``None`` if nothing did."""
        if "failed" in self.report:
            return self.report["failed"]
        if self.status == 0 and "done" in self.report:
            return None
        said = self.error.strip() or self.output.strip() or "it said nothing"
        return f"its shell ended with status {self.status} before the work was done: {said[-1000:]}"


class ShellAction(ActionBase):  # type: ignore[misc]
    """What the plugins have in common: arguments that are checked, and a host that may be out of reach."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False

    SPEC: ClassVar[dict[str, Any]] = {}
    """As in a module; ``unreachable`` comes to it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the arguments, do what the task says, and make a lost host a result if it wants that."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        choice = {"type": "str", "default": "fail", "choices": ["fail", "result"]}
        _, options = self.validate_argument_spec({**self.SPEC, "unreachable": choice})
        self._stay_alert()
        try:
            result.update(self.act(options, task_vars or {}))
        except AnsibleConnectionFailure as error:
            if options["unreachable"] == "fail":
                raise
            # A key `unreachable` would end the host's play.
            result.update(
                changed=False, reached=False, msg=f"{self.host(task_vars)} cannot be reached: {error}"
            )
        except AnsibleActionFail as error:
            # What is raised, Ansible does not show to failed_when and until.
            result.update(changed=False, failed=True, reached=True, msg=error.message)
        else:
            result.setdefault("reached", True)
        return result

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Do the task; its result."""
        raise NotImplementedError

    def _stay_alert(self) -> None:
        if getattr(self._connection, "transport", "") != "ssh":
            return
        names = ("ssh_args", "ssh_common_args", "ssh_extra_args")
        given = [str(self._connection.get_option(name) or "") for name in names]
        if not any("ServerAliveInterval" in arguments for arguments in given):
            self._connection.set_option("ssh_extra_args", f"{given[-1]} {ALIVE}".strip())

    def host(self, task_vars: Mapping[str, Any] | None) -> str:
        """The host's name in the inventory, for messages."""
        return str(self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "the host"))

    def shell(self, name: str, *arguments: str, data: bytes = b"") -> Answer:
        """Run the script ``name`` of this folder with ``arguments``; it reads ``data`` from its standard input."""
        script = "".join(_script(file) for file in ("dtls_lib", name))
        words = " ".join(shlex.quote(argument) for argument in arguments)
        sent = f"set -- {words}\n{script}{_END}\n"
        done = self._low_level_execute_command(
            _BOOTSTRAP.format(name=name),
            in_data=sent.encode("utf-8", "surrogateescape") + data,
            encoding_errors="surrogateescape",
        )
        report, shown = reported(done["stdout"].encode("utf-8", "surrogateescape"))
        return Answer(int(done["rc"]), report, shown, done["stdout"], done["stderr"])

    def need(self, answer: Answer, task_vars: Mapping[str, Any], about: str) -> None:
        """Fail, naming the host, unless all went well."""
        problem = answer.problem()
        if problem is not None:
            raise AnsibleActionFail(f"{self.host(task_vars)}: {about}: {problem}")


def _script(name: str) -> str:
    """A script of this folder without what is only for readers."""
    lines = (_SCRIPTS / f"{name}.sh").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line.strip() and not line.lstrip().startswith("#"))


def connection(told: str) -> dict[str, Any]:
    """``SSH_CONNECTION`` as addresses and ports; empty where the host is not reached over ssh."""
    words = told.split()
    if len(words) != 4:
        return {}
    return {
        "client": _address(words[0]),
        "client_port": int(words[1]),
        "server": _address(words[2]),
        "server_port": int(words[3]),
    }


def _address(word: str) -> str:
    """As packets have it: without the zone of fe80::1%eth0, and as what it is where a socket for both families shows ::ffff:192.0.2.1."""
    address = ipaddress.ip_address(word.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def reported(output: bytes) -> tuple[dict[str, str], bytes]:
    """The lines that a script reported, by their first word (of several with the same one, the last), and the bytes it showed.

    ``dtls: shown N`` comes before N bytes that are no report, whatever stands in them.
    """
    report: dict[str, str] = {}
    shown = b""
    rest = output
    while rest:
        line, _, rest = rest.partition(b"\n")
        if not line.startswith(MARK):
            continue
        name, _, value = line[len(MARK) :].decode("utf-8", "surrogateescape").partition(" ")
        if name == "shown":
            shown, rest = rest[: int(value)], rest[int(value) :]
        report[name] = value
    return report, shown
