"""What tasks did: of one run of a playbook, and of all runs of a whole test run.

Every run is recorded. ``Fleet.playbook(..., record=True)`` returns its :class:`Record`; :data:`everything` has the
results of all, and :func:`never_seen` says which task of which role never showed what it should have shown.
"""

import json
import re
from pathlib import Path

import attrs
import yaml

PLUGINS = Path(__file__).parent / "callback_plugins"

CANNOT_CHANGE = {
    "ansible.builtin.assert",
    "ansible.builtin.debug",
    "ansible.builtin.fail",
    "ansible.builtin.gather_facts",
    "ansible.builtin.getent",
    "ansible.builtin.group_by",
    "ansible.builtin.import_role",
    "ansible.builtin.import_tasks",
    "ansible.builtin.include_role",
    "ansible.builtin.include_tasks",
    "ansible.builtin.include_vars",
    "ansible.builtin.package_facts",
    "ansible.builtin.pause",
    "ansible.builtin.ping",
    "ansible.builtin.service_facts",
    "ansible.builtin.set_fact",
    "ansible.builtin.setup",
    "ansible.builtin.slurp",
    "ansible.builtin.stat",
    "ansible.builtin.validate_argument_spec",
    "ansible.builtin.wait_for",
    "ansible.builtin.wait_for_connection",
    "dtls_facts",
    "sansdtls.dtls.dtls_facts",
}
"""Actions that look, decide or wait: to be seen ``ok`` is all that can be asked of them."""
UNSEEN = {"ansible.builtin.meta", "ansible.builtin.import_tasks", "ansible.builtin.import_role"}
"""Actions that no callback hears of."""
KEYWORDS = {
    "always", "any_errors_fatal", "args", "async", "become", "become_exe", "become_flags", "become_method",
    "become_user", "block", "changed_when", "check_mode", "collections", "connection", "debugger", "delay",
    "delegate_facts", "delegate_to", "diff", "environment", "failed_when", "ignore_errors", "ignore_unreachable",
    "listen", "local_action", "loop", "loop_control", "module_defaults", "name", "no_log", "notify", "poll", "port",
    "register", "remote_user", "rescue", "retries", "run_once", "tags", "throttle", "timeout", "until", "vars", "when",
}  # fmt: skip
"""Of a task, all but its action."""
EXCEPTION = re.compile(r"#\s*never (changed|ok|seen): \S")
"""A task that cannot show one of the two says so in a comment, among its lines or right above them, with the reason."""


@attrs.frozen
class Result:
    """What one task did on one host."""

    role: str | None
    task: str
    action: str
    place: str
    host: str
    state: str
    """``changed``, ``ok``, ``skipped``, ``failed``, ``ignored`` (failed, and the task does not mind) or ``unreachable``."""
    check: bool
    seconds: float | None
    result: dict = attrs.field(factory=dict, eq=False, repr=False)
    """What it returned, if that was asked for."""

    def __str__(self):
        return f"{self.host}: {self.task} ({self.place}): {self.state}"


@attrs.frozen
class Record:
    """The results of one run, and what it printed."""

    results: list[Result]
    output: str = attrs.field(repr=False)
    status: int = 0
    """What the program ended with."""

    def of(self, *states, role=None, host=None):
        """The results in these states, of one role and one host if told."""
        return [
            result
            for result in self.results
            if result.state in states and role in {None, result.role} and host in {None, result.host}
        ]

    @property
    def changed(self):
        """The results that changed something."""
        return self.of("changed")

    def hosts_changed(self):
        """Of each host, how many tasks changed something."""
        counts = {result.host: 0 for result in self.results}
        for result in self.changed:
            counts[result.host] += 1
        return counts


everything: list[Result] = []
"""The results of all runs of this process."""


def read(place, output="", status=0):
    """The record in a file that the plugin wrote; :data:`everything` has it, too, then."""
    lines = place.read_text().splitlines() if place.exists() else []
    record = Record([Result(**json.loads(line)) for line in lines], output, status)
    everything.extend(record.results)
    return record


def assert_unchanged(record):
    """Fail if a task changed anything, or if nothing ran."""
    assert record.results, f"no task ran:\n{record.output}"
    assert not record.changed, "changed:\n" + "\n".join(map(str, record.changed))


# --- which tasks there are --------------------------------------------------------------------------


@attrs.frozen
class Task:
    """A task as it stands in a file of a role."""

    role: str
    file: Path
    line: int
    name: str
    action: str
    keywords: dict = attrs.field(repr=False)
    text: str = attrs.field(repr=False)
    handler: bool = False

    @property
    def place(self):
        """Where it stands, the same however the role was found: by a link, or as one of a collection."""
        return _place(f"{self.file}:{self.line}")

    def __str__(self):
        return f"{self.role}: {self.name} ({self.file.name}:{self.line})"

    def wanted(self):
        """The states that it has to be seen in, each once at least."""
        excepted = {match[1] for match in EXCEPTION.finditer(self.text)}
        if self.action in UNSEEN or "seen" in excepted:
            return set()
        if self.action == "ansible.builtin.fail":
            return {"failed"}
        states = {"changed", "ok"}
        if self.action in CANNOT_CHANGE or self.keywords.get("changed_when") is False:
            states = {"ok"}
        elif self.handler or self.keywords.get("changed_when") is True:
            # It runs because something changed, or says itself that it always does something.
            states = {"changed"}
        return states - excepted


def _place(told):
    return told.rpartition("/roles/")[2]


def tasks_of(roles):
    """All tasks and handlers of the roles in a folder."""
    for file in sorted(roles.glob("*/tasks/**/*.yml")) + sorted(roles.glob("*/handlers/**/*.yml")):
        role = file.relative_to(roles).parts[0]
        text = file.read_text()
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        if document is not None:
            yield from _tasks(document, role, file, text.splitlines(), handler="handlers" in file.parts)


def _tasks(nodes, role, file, lines, *, handler):
    for node in nodes.value:
        keywords = {key.value: value for key, value in node.value}
        if "block" in keywords:
            for part in ("block", "rescue", "always"):
                if part in keywords:
                    yield from _tasks(keywords[part], role, file, lines, handler=handler)
            continue
        plain = yaml.SafeLoader("").construct_document
        actions = [name for name in keywords if name not in KEYWORDS and not name.startswith("with_")]
        yield Task(
            role=role,
            file=file,
            line=node.start_mark.line + 1,
            name=keywords["name"].value if "name" in keywords else "(no name)",
            action=actions[0] if actions else "(no action)",
            keywords={name: plain(value) for name, value in keywords.items()},
            text=_text(node, lines),
            handler=handler,
        )


def _text(node, lines):
    """The lines of a task, with the comment above them; YAML counts what stands before the next task, too."""
    first, last = node.start_mark.line, node.end_mark.line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    while (line := lines[last - 1]).strip() == "" or re.match(rf" {{0,{node.start_mark.column - 1}}}#", line):
        last -= 1
    return "\n".join(lines[first:last])


def never_seen(roles, results):
    """Lines that say which task was never seen in which state; what ran in check mode does not count."""
    seen: dict[tuple[str, str], set[str]] = {}
    for result in results:
        if not result.check:
            # By its name as well: in a copy of a role that a test has changed, another task may stand in that line.
            # One that failed and was expected to is as good as one that went well: it ran.
            seen.setdefault((_place(result.place), result.task), set()).add(
                "failed" if result.state == "ignored" else result.state
            )
    return [
        f"{task}: never {' and never '.join(sorted(missing))}"
        for task in tasks_of(roles)
        if (missing := task.wanted() - seen.get((task.place, task.name), set()))
    ]
