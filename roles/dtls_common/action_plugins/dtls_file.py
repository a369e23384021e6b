"""``dtls_file``: content to a file of any host with a POSIX shell, whole or not at all; see library/dtls_file.py."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ansible import constants
from ansible.errors import AnsibleActionFail

# A role path and an installed collection have no import in common that would find it.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

from dtls_secrets import digest, run_key  # noqa: E402
from dtls_shell import Answer, ShellAction  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODE = re.compile(r"0?[0-7]{3}|[0-7]{4}")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.$-]*")
_LETTERS = "rwxrwxrwx"


class ActionModule(ShellAction):
    """The action."""

    SPEC: ClassVar[dict[str, Any]] = {
        "dest": {"type": "str", "required": True},
        # No type: a mistake in it would be reported with the value.
        "content": {"type": "raw"},
        "content_from": {"type": "raw"},
        "mode": {"type": "raw"},
        "owner": {"type": "str", "default": ""},
        "group": {"type": "str", "default": ""},
        "validate": {"type": "str", "default": ""},
        "previous": {"type": "str", "default": ""},
        "secret": {"type": "bool", "default": True},
        "state": {"type": "str", "default": "present", "choices": ["present", "absent", "directory", "link"]},
        "target": {"type": "str", "default": ""},
    }

    def act(self, options: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Compare, and put in place what differs."""
        state, secret = options["state"], options["secret"]
        dest = _path(options["dest"], "dest")
        previous = _path(options["previous"], "previous") if options["previous"] else ""
        content = _content(options)
        mode = _mode(options["mode"], directory=state == "directory")
        for name in ("owner", "group"):
            if options[name] and not _OWNER.fullmatch(options[name]):
                raise AnsibleActionFail(f"{name}: {options[name]!r} is no name of a {name}")
        if options["validate"] and "%s" not in options["validate"]:
            raise AnsibleActionFail("validate: the command has no %s, which stands for the file")
        key = run_key(constants.DEFAULT_LOCAL_TMP) if secret else ""
        wanted = digest(key, content) if state == "present" else "-"
        check = bool(self._task.check_mode)
        show = 0 if secret or not self._task.diff else constants.MAX_FILE_SIZE_FOR_DIFF
        answer = self.shell(
            "dtls_file",
            dest, posixpath.dirname(dest), posixpath.basename(dest), state, _as_listed(mode), f"{mode:04o}",
            options["owner"], options["group"], previous,
            options["validate"], options["target"], "yes" if secret else "no", "yes" if check else "no", str(show),
            data=f"{key}\n{wanted}\n".encode() + (b"" if check else content),
        )  # fmt: skip
        self.need(answer, task_vars, dest)
        differing = answer.report.get("changes", "").split()
        result = {"changed": bool(differing), "dest": dest, "state": state, "differing": differing}
        if state == "present":
            result |= {"sha256": wanted, "size": len(content)}
        if "kept" in answer.report:
            result["previous"] = previous
        if self._task.diff and differing:
            after = _Side(options, content, wanted, mode)
            result["diff"] = [
                {
                    "before_header": dest,
                    "after_header": dest,
                    "before": _before(answer, secret=secret, owned=after.owned),
                    "after": after.text(secret=secret),
                }
            ]
        return result


class _Side:
    """What there will be, for the diff."""

    def __init__(self, options: dict[str, Any], content: bytes, wanted: str, mode: int) -> None:
        self._options = options
        self._content = content
        self._wanted = wanted
        self._mode = mode
        self.owned = [name for name in ("owner", "group") if options[name]]

    def text(self, *, secret: bool) -> str:
        state = self._options["state"]
        if state == "absent":
            return ""
        if state == "link":
            return f"link to {self._options['target']}\n"
        ids = "".join(f"{name} {self._options[name]}\n" for name in self.owned)
        head = f"mode {self._mode:04o}\n{ids}"
        if state == "directory":
            return f"directory\n{head}"
        return head + _shown(self._content, self._wanted, len(self._content), secret=secret)


def _before(answer: Answer, *, secret: bool, owned: list[str]) -> str:
    report = answer.report
    if report["found"] == "absent":
        return ""
    if report["found"] == "link":
        return f"link to {report.get('target', '')}\n"
    # A name only where it is the one asked for; the host was asked for numbers.
    numbers = {"owner": report["uid"], "group": report["gid"]}
    differing = report.get("changes", "").split()
    ids = "".join(f"{name} {numbers[name]}\n" for name in owned if name in differing)
    head = f"mode {_as_number(report['mode']):04o}\n{ids}"
    if report["found"] == "directory":
        return f"directory\n{head}"
    return head + _shown(answer.shown, report["digest"], int(report["size"]), secret=secret)


def _shown(content: bytes, digested: str, size: int, *, secret: bool) -> str:
    """Content of a file in a diff: of a secret, only that it is another."""
    if secret:
        return f"a secret of {size} bytes, {digested[:16]} under the key of this run\n"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = None
    if text is None or "\0" in text or len(content) != size or size > constants.MAX_FILE_SIZE_FOR_DIFF:
        return f"{size} bytes, sha256 {digested}\n"
    return text


def _path(text: str, name: str) -> str:
    if not text.startswith("/") or "\n" in text or "\0" in text or posixpath.normpath(text) == "/":
        raise AnsibleActionFail(f"{name}: {text!r} is no absolute path of a file")
    return posixpath.normpath(text)


def _content(options: dict[str, Any]) -> bytes:
    content, lines = options["content"], options["content_from"]
    present = options["state"] == "present"
    if present != ((content is None) != (lines is None)) or (
        not present and (content is not None or lines is not None)
    ):
        raise AnsibleActionFail("either content or content_from is needed with state=present, and only there")
    if (options["state"] == "link") != bool(options["target"]):
        raise AnsibleActionFail("target is needed with state=link, and only there")
    if not present:
        return b""
    if lines is not None:
        if not isinstance(lines, (list, tuple)) or not all(isinstance(line, str) for line in lines):
            raise AnsibleActionFail("content_from: is no list of lines")
        content = "".join(f"{line}\n" for line in lines)
    if isinstance(content, bytes):
        return content
    if not isinstance(content, str):
        raise AnsibleActionFail("content: is no text; remedy: a filter such as to_json, or quotes")
    return content.encode("utf-8", "surrogateescape")


def _mode(value: Any, *, directory: bool) -> int:
    if value is None:
        return 0o700 if directory else 0o600
    # YAML makes a number of an unquoted 0600, and which one depends on its version.
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise AnsibleActionFail(f'mode: {value!r} is no mode as text; remedy: quotes, as in mode: "0600"')
    return int(value, 8)


def _as_listed(mode: int) -> str:
    """As ``ls -l`` shows it, the kind of file left out."""
    letters = [letter if mode >> (8 - place) & 1 else "-" for place, letter in enumerate(_LETTERS)]
    for bit, place, both, alone in ((0o4000, 2, "s", "S"), (0o2000, 5, "s", "S"), (0o1000, 8, "t", "T")):
        if mode & bit:
            letters[place] = both if letters[place] == "x" else alone
    return "-" + "".join(letters)


def _as_number(listed: str) -> int:
    mode = 0
    for place, letter in enumerate(listed[1:10]):
        if letter in "rwxst":
            mode |= 1 << (8 - place)
        if letter in "sStT":
            mode |= {2: 0o4000, 5: 0o2000, 8: 0o1000}[place]
    return mode
