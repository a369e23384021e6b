"""Plays of a few tasks, and what they returned."""

import itertools
import json
import subprocess
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

import attrs

from tests.lab import recorder

REPOSITORY = Path(__file__).parents[2]
ROLES = REPOSITORY / "roles"
COMMON = ROLES / "dtls_common"

_numbers = itertools.count()


@attrs.frozen
class Answer:
    """What one task returned on one host."""

    role: str | None
    host: str
    task: str
    state: str
    result: dict

    @classmethod
    def of(cls, told):
        """Of a line of the record; one that failed has failed, whether the play minds or not."""
        state = "failed" if told.state == "ignored" else told.state
        return cls(told.role, told.host, told.task, state, told.result)

    def __getitem__(self, name):
        return self.result[name]


@attrs.frozen
class Run:
    """A run of a play."""

    output: str = attrs.field(repr=False)
    answers: list[Answer]

    def of(self, host, task=None):
        """What a task of the play returned on a host; without a name, of the only one."""
        found = [answer for answer in self.answers if answer.host == host and task in {None, answer.task}]
        found = [answer for answer in found if answer.role is None]
        assert len(found) == 1, (found, self.output)
        return found[0]

    def states(self, task):
        """On each host, how it went."""
        return {answer.host: answer.state for answer in self.answers if answer.task == task}


class Plays:
    """Runs tasks on a fleet, one play each time."""

    def __init__(self, fleet):
        self._fleet = fleet

    def write(self, tasks, *, hosts="all", roles=("dtls_common",), variables=None, **keywords):
        """The file of a play."""
        place = self._fleet.folder / f"play-{next(_numbers)}.yml"
        play = {
            "hosts": hosts,
            "gather_facts": False,
            "roles": list(roles),
            "vars": variables or {},
            "tasks": tasks,
        }
        place.write_text(json.dumps([play | keywords], indent=1))
        return place

    def run(self, *tasks, status=0, arguments=(), inventory=None, environment=None, **play):
        """Run ``tasks``; a :class:`Run`."""
        record = self._fleet.playbook(
            self.write(list(tasks), **play), *arguments,
            inventory=inventory, status=status, record=True, LAB_RESULTS="1", **environment or {},
        )  # fmt: skip
        return Run(record.output, [Answer.of(told) for told in record.results])


class Here:
    """In place of a fleet: this machine as its own only host, ``localhost``, in a folder of the test."""

    def __init__(self, folder):
        self.folder = folder

    def playbook(
        self, playbook, *arguments, inventory=None, status=0, timeout=120, record=False, **environment
    ):
        """As :meth:`Fleet.playbook`."""
        place = self.folder / f"record-{next(_numbers)}.jsonl"
        words = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            inventory or "localhost,",
            "-c",
            "local",
        ]
        own = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "ANSIBLE_ROLES_PATH": str(ROLES),
            "ANSIBLE_CALLBACK_PLUGINS": str(recorder.PLUGINS),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "LAB_RECORD": str(place),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "True",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        }
        done = subprocess.run(
            [*words, str(playbook), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.folder, env=own | environment, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"status {done.returncode}, not {status}:\n{done.stdout}"
        return recorder.read(place, done.stdout, done.returncode) if record else done.stdout


def program(name):
    """One of Ansible's programs, beside this Python."""
    return str(Path(sys.executable).with_name(name))


def install_collection(folder):
    """Build a collection of this repository, as it stands, and install it below ``folder``; the path for Ansible."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "ANSIBLE_LOCAL_TEMP": str(folder / "ansible"),
    }
    installed = folder / "collections"
    for words in (
        ["build", "--output-path", str(folder), str(REPOSITORY)],
        ["install", "--offline", "-p", str(installed), str(folder / "sansdtls-dtls-0.1.0.tar.gz")],
    ):
        done = subprocess.run(
            [program("ansible-galaxy"), "collection", *words], capture_output=True, text=True, env=environment, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return installed


def task(action, *, name=None, keywords=None, **arguments):
    """A task of a play."""
    return {"name": name or action, action: arguments} | (keywords or {})


def load(path):
    """A file of dtls_common as a module, such as ``module_utils/dtls_keys``."""
    if str(COMMON / "module_utils") not in sys.path:
        # Where they find each other.
        sys.path.append(str(COMMON / "module_utils"))
    place = COMMON / f"{path}.py"
    name = f"common_{place.stem}_{place.parent.name}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = str(place)
        sys.modules[name] = module
        SourceFileLoader(name, str(place)).exec_module(module)
    return sys.modules[name]
