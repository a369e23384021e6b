"""The roles as they stand in files: their variables, tasks and words, for tests that compare them."""

import re
from pathlib import Path

import attrs
import yaml

from tests.lab import recorder

ROLES = Path(__file__).parents[2] / "roles"
SECRET = re.compile(r"(^|_)(master|keys?|password|passphrase|secret)(_|$)")
"""Words in the name of a variable that holds a secret."""
NO_SECRET = re.compile(r"_(file|files|path|dir|folder|length|generation|id|identity|previous|logging)$")
"""Endings of names that speak about a secret."""


@attrs.frozen
class Role:
    """A role's folder."""

    folder: Path

    @property
    def name(self):
        return self.folder.name

    def _yaml(self, place):
        path = self.folder / place
        return (yaml.safe_load(path.read_text()) if path.exists() else None) or {}

    @property
    def defaults(self):
        return self._yaml("defaults/main.yml")

    @property
    def internal(self):
        return self._yaml("vars/main.yml")

    @property
    def meta(self):
        return self._yaml("meta/main.yml")

    @property
    def entries(self):
        """Of each entry point, its options."""
        specs = self._yaml("meta/argument_specs.yml").get("argument_specs", {})
        return {name: spec.get("options", {}) for name, spec in specs.items()}

    @property
    def options(self):
        """All variables, whichever entry point tells them."""
        return {name: option for options in self.entries.values() for name, option in options.items()}

    @property
    def readme(self):
        path = self.folder / "README.md"
        return path.read_text() if path.exists() else ""

    @property
    def tasks(self):
        return [task for task in recorder.tasks_of(self.folder.parent) if task.role == self.name]

    def files(self, *patterns):
        return sorted(path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file())

    def named(self, text):
        """The public variables of this role that a text names."""
        return set(re.findall(rf"(?<!\w){self.name}_\w+", text))

    @property
    def made(self):
        """Variables that its tasks set, as answers to whoever includes it."""
        text = "\n".join(path.read_text() for path in self.files("tasks/**/*.yml"))
        set_there = re.findall(rf"^\s+({self.name}_\w+):", text, re.MULTILINE)
        return {*set_there, *re.findall(rf"register: ({self.name}_\w+)", text)}

    @property
    def filters(self):
        """Names of plugins begin with the role's, too."""
        return {
            path.stem for path in self.folder.parent.glob("*/*/*") if path.stem.startswith("dtls_")
        } | set(
            re.findall(
                r'"(dtls_\w+)":',
                "".join(path.read_text() for path in self.folder.parent.glob("*/filter_plugins/*.py")),
            )
        )


def is_secret(name):
    """Whether a variable of that name holds a secret."""
    return bool(SECRET.search(name)) and not NO_SECRET.search(name)


def all_roles(folder=ROLES):
    """All roles in a folder."""
    return [Role(path) for path in sorted(folder.iterdir()) if path.is_dir()]
