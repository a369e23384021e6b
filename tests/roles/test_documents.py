"""What a role says of itself agrees: argument_specs, defaults, README, and what its tasks use. Needs no lab."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.roles.role_files import ROLES, Role, all_roles, is_secret

REPOSITORY = ROLES.parent
EXAMPLE = REPOSITORY / "inventory" / "example"
UNRESTRICTED = {"str", "raw", "dict", "list"}
"""Types whose mistakes Ansible tells without the value."""
OURS = re.compile(r"^(sansdtls\.dtls\.)?dtls_\w+$")


def each_role():
    return pytest.mark.parametrize("role", all_roles(), ids=lambda role: role.name)


def problems(role):
    """All that does not agree in a role."""
    found = []
    options, defaults = role.options, role.defaults
    if not role.readme:
        return [f"{role.name} has no README.md"]
    if not role.entries:
        return [f"{role.name} has no meta/argument_specs.yml"]
    found += [
        f"{name} has a default and no argument_spec" for name in sorted(defaults.keys() - options.keys())
    ]
    found += [
        f"{name} is in no default and its argument_spec has one"
        for name in sorted(options.keys() - defaults.keys())
        if "default" in options[name]
    ]
    for name, option in options.items():
        if not name.startswith(f"{role.name}_"):
            found.append(f"{name} does not begin with {role.name}_")
        if "default" in option and name in defaults and option["default"] != defaults[name]:
            found.append(f"{name}: default {defaults[name]!r}, in the argument_spec {option['default']!r}")
        if not option.get("description") or "type" not in option:
            found.append(f"{name}: an argument_spec has a description and a type")
        if is_secret(name) and (
            option.get("type") not in UNRESTRICTED or "choices" in option or option.get("default")
        ):
            found.append(
                f"{name} is secret: Ansible would tell its value when its type is wrong, and a default is none"
            )
    found += _table_problems(role) + _entry_problems(role)
    known = options.keys() | role.made | role.filters
    found += [
        f"README.md names {name}, which there is not" for name in sorted(role.named(role.readme) - known)
    ]
    for path in role.files("tasks/**/*.yml", "handlers/**/*.yml", "templates/**/*", "vars/*.yml"):
        unknown = role.named(path.read_text()) - known - {f"{role.name}_{part}" for part in ("role",)}
        found += [
            f"{path.relative_to(role.folder)} names {name}, which there is not" for name in sorted(unknown)
        ]
    found += [
        f"vars/main.yml: {name} does not begin with __{role.name}_"
        for name in role.internal
        if not name.startswith(f"__{role.name}_")
    ]
    used = "".join(
        path.read_text()
        for path in role.files(
            "tasks/**/*.yml", "handlers/**/*.yml", "templates/**/*", "vars/*.yml", "defaults/*.yml"
        )
    )
    found += [f"{name} is used nowhere" for name in options if used.count(name) <= (name in defaults)]
    return found


def _table_problems(role):
    """What README.md's table of variables says otherwise than the defaults."""
    found: list[str] = []
    told: dict[str, str] = {}
    for names, default in re.findall(r"^\| ((?:`\w+`,? ?)+)\| (.*?) \|", role.readme, re.MULTILINE):
        told |= dict.fromkeys(re.findall(rf"`({role.name}_\w+)`", names), default)
    for name in role.options:
        default = role.defaults.get(name, "")
        if name not in told:
            found.append(f"{name} has no row in README.md")
        elif code := re.fullmatch("`(.+)`", told[name]):
            value = yaml.safe_load(code[1])
            if (value, type(value)) != (default, type(default)) and default != f"{{{{ {code[1]} }}}}":
                found.append(f"{name}: default {default!r}, in README.md {code[1]}")
        elif isinstance(default, bool | int | float) or (
            default and "{{" not in default and "," not in str(default)
        ):
            found.append(f"{name}: default {default!r}, in README.md only in words: {told[name]}")
    return found


def _entry_problems(role):
    """Entry points and tags that README.md does not tell, and such as there are not."""
    found = [
        f"{entry} has an argument_spec and no tasks"
        for entry in role.entries
        if not role.files(f"tasks/{entry}.yml")
    ]
    found += [
        f"the entry point {entry} is not in README.md"
        for entry in role.entries.keys() - {"main"}
        if not re.search(rf"`(tasks_from: )?{entry}(\.yml)?`", role.readme)
    ]
    found += [
        f"README.md tells of tasks_from {entry}, which has no argument_spec"
        for entry in re.findall(r"tasks_from: (\w+)", role.readme)
        if entry not in role.entries
    ]
    tags = {tag for task in role.tasks for tag in task.keywords.get("tags", [])} - {"always", "never"}
    found += [f"the tag {tag} is not in README.md" for tag in sorted(tags) if f"`{tag}`" not in role.readme]
    return found


@each_role()
def test_variables_are_the_same_in_argument_specs_defaults_readme_and_tasks(role):
    assert problems(role) == []


@each_role()
def test_a_template_begins_by_saying_who_wrote_the_file(role):
    for path in role.files("templates/**/*"):
        beginning = "\n".join(path.read_text().splitlines()[:4])
        assert re.search(rf"{role.name}|ansible_managed|_header", beginning), path


def task_problems(role):
    """What is wrong with tasks that ansible-lint does not see."""
    found = []
    secret = {name for name in role.options if is_secret(name)}
    for task in role.tasks:
        text = re.sub(r"#.*", "", task.text)
        if "." not in task.action and not OURS.match(task.action):
            found.append(f"{task}: {task.action} is no full name")
        if task.action.count(".") and not task.action.startswith(("ansible.builtin.", "sansdtls.dtls.")):
            found.append(f"{task}: {task.action} is not of ansible-core")
        hidden = task.keywords.get("no_log")
        if hidden is not None and not re.fullmatch(r"\{\{.*_secure_logging.*\}\}", str(hidden)):
            found.append(f"{task}: no_log is {hidden}, not a variable that can be switched")
        named = {name for name in secret if re.search(rf"\b{name}\b", text)}
        if named and task.action == "ansible.builtin.set_fact":
            found.append(f"{task}: {sorted(named)} would be a fact")
        elif (
            named
            and hidden is None
            and task.action not in {"ansible.builtin.assert", "ansible.builtin.include_tasks"}
        ):
            found.append(f"{task}: {sorted(named)} without no_log")
        if (
            task.action in {"ansible.builtin.shell", "ansible.builtin.command", "ansible.builtin.raw"}
            and named
        ):
            found.append(f"{task}: {sorted(named)} in arguments, which every user of the host sees")
        if not task.handler and not re.match(r"[A-Z]", task.name):
            found.append(f"{task}: the name of a task is a sentence")
    return found


@each_role()
def test_tasks_have_full_names_hide_secrets_by_a_switch_and_put_none_into_facts_or_arguments(role):
    assert task_problems(role) == []


def test_playbooks_use_entry_points_that_are_specified():
    used = {
        (told["name"], told.get("tasks_from", "main").removesuffix(".yml"))
        for playbook in (REPOSITORY / "playbooks").glob("*.yml")
        for play in yaml.safe_load(playbook.read_text())
        for task in [
            *play.get("tasks", []),
            *({"import_role": {"name": one["role"]}} for one in play.get("roles", [])),
        ]
        for action, told in task.items()
        if action.endswith(("import_role", "include_role"))
    }
    assert used >= {("dtls_endpoint", "main"), ("dtls_endpoint", "status"), ("dtls_psk", "revoke")}
    assert used <= {(role.name, entry) for role in all_roles() for entry in role.entries}


@each_role()
def test_a_role_says_which_ansible_it_needs(role):
    assert role.meta["galaxy_info"]["min_ansible_version"] == "2.19"


# --- the tests themselves ---------------------------------------------------------------------------

SOUND = {
    "defaults/main.yml": "dtls_x_master: ''\ndtls_x_wait: 3\n",
    "meta/argument_specs.yml": """
argument_specs:
  main:
    options:
      dtls_x_master: {type: str, description: The master., default: ''}
      dtls_x_wait: {type: int, description: Seconds., default: 3}
      dtls_x_generation: {type: raw, description: Which key.}
  look: {options: {}}
""",
    "README.md": """
| `dtls_x_master` | `""` | the master |
| `dtls_x_wait` | `3` | seconds |
| `dtls_x_generation` | none | which key |

Sets `dtls_x_report`. Tags: `write`. `tasks_from: look.yml` looks.
""",
    "tasks/look.yml": "",
    "vars/main.yml": "__dtls_x_all: '{{ dtls_x_wait }}'\n",
    "tasks/main.yml": """
- name: Write it
  dtls_file:
    content: "{{ dtls_x_master }}{{ dtls_x_generation }}"
  no_log: "{{ dtls_x_secure_logging }}"
  register: dtls_x_report
  tags: [write]
- name: Look
  ansible.builtin.command: "true"
""",
}


def role_with(tmp_path, place=None, old="", new=""):
    for name, text in SOUND.items():
        path = tmp_path / "dtls_x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if place:
        path = tmp_path / "dtls_x" / place
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return Role(tmp_path / "dtls_x")


def test_a_sound_role_has_no_problems(tmp_path):
    role = role_with(
        tmp_path,
        "tasks/main.yml",
        'no_log: "{{ dtls_x_secure_logging }}"',
        'no_log: "{{ dtls_x_wait or z_secure_logging }}"',
    )
    assert problems(role) == []
    assert task_problems(role) == []


@pytest.mark.parametrize(
    ("place", "old", "new", "told"),
    [
        ("defaults/main.yml", "wait: 3", "wait: 4", "dtls_x_wait: default 4, in the argument_spec 3"),
        ("defaults/main.yml", "dtls_x_wait: 3\n", "", "dtls_x_wait is in no default"),
        ("defaults/main.yml", "dtls_x_wait", "dtls_x_more: 1\ndtls_x_wait", "dtls_x_more has a default and no argument_spec"),
        ("meta/argument_specs.yml", "type: str", "type: int", "dtls_x_master is secret"),
        ("meta/argument_specs.yml", "description: Seconds., ", "", "dtls_x_wait: an argument_spec has a description"),
        ("README.md", "| `dtls_x_wait` | `3`", "`dtls_x_wait` ", "dtls_x_wait has no row in README.md"),
        ("README.md", "| `3`", "| `4`", "dtls_x_wait: default 3, in README.md 4"),
        ("README.md", "| `3`", "| `'3'`", "dtls_x_wait: default 3, in README.md '3'"),
        ("README.md", "| `3`", "| a few", "dtls_x_wait: default 3, in README.md only in words"),
        ("README.md", "Sets ", "Sets `dtls_x_weight`, ", "README.md names dtls_x_weight"),
        ("README.md", "`write`", "write", "the tag write is not in README.md"),
        ("README.md", "look.yml", "see.yml", "the entry point look is not in README.md"),
        ("README.md", "look.yml", "see.yml", "README.md tells of tasks_from see, which has no argument_spec"),
        ("meta/argument_specs.yml", "  look:", "  see:", "see has an argument_spec and no tasks"),
        ("tasks/main.yml", "true", "sleep {{ dtls_x_wat }}", "tasks/main.yml names dtls_x_wat,"),
        ("tasks/main.yml", "{{ dtls_x_generation }}", "", "dtls_x_generation is used nowhere"),
        ("vars/main.yml", "__dtls_x_all", "dtls_all", "vars/main.yml: dtls_all does not begin with __dtls_x_"),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_told(tmp_path, place, old, new, told):
    assert any(problem.startswith(told) for problem in problems(role_with(tmp_path, place, old, new)))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"{{ dtls_x_secure_logging }}"', "true", "no_log is True, not a variable"),
        ('  no_log: "{{ dtls_x_secure_logging }}"\n', "", "['dtls_x_master'] without no_log"),
        ("dtls_file:\n    content:", "ansible.builtin.set_fact:\n    fact:", "would be a fact"),
        ("dtls_file:\n    content:", "ansible.builtin.command:\n    cmd:", "in arguments, which every user"),
        ("ansible.builtin.command", "command", "command is no full name"),
        ("ansible.builtin.command", "community.general.ufw", "is not of ansible-core"),
        ("name: Look", "name: look", "is a sentence"),
    ],
)
def test_what_a_task_must_not_do_is_told(tmp_path, old, new, told):
    assert any(told in problem for problem in task_problems(role_with(tmp_path, "tasks/main.yml", old, new)))


def test_the_page_for_operators_tells_of_every_playbook_and_of_nothing_that_there_is_not():
    text = (REPOSITORY / "docs/roles.md").read_text()
    named = set(re.findall(r"\b\w+\.yml\b", text)) - {"hosts.yml", "vault.yml"}
    assert named == {path.name for path in (REPOSITORY / "playbooks").glob("*.yml")}
    variables = set(re.findall(r"\bdtls_(?:endpoint|psk|firewall)_\w+", text))
    assert variables <= {name for role in all_roles() for name in role.options}
    for place in re.findall(r"\]\(([^)]+)\)", text):
        assert (REPOSITORY / "docs" / place).exists(), place


# --- the example ------------------------------------------------------------------------------------


def listed(tmp_path, inventory, *arguments):
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-inventory", "-i", inventory, "--list", *arguments],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_playbooks_find_the_roles_from_wherever_they_are_started(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "--syntax-check", "-i", EXAMPLE, *(REPOSITORY / "playbooks").glob("*.yml")],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_can_be_listed_and_has_both_groups(tmp_path):
    told = listed(tmp_path, EXAMPLE)
    assert told["dtls_endpoints"]["hosts"]
    assert told["dtls_devices"]["hosts"]
    assert told["_meta"]["hostvars"]["meter-0001"]["dtls_psk_master"] == "{{ vault_dtls_psk_master }}"


def test_the_example_uses_only_variables_that_the_roles_have(tmp_path):
    known = {name for role in all_roles() for name in role.options}
    roles = {role.name for role in all_roles()}
    for host, variables in listed(tmp_path, EXAMPLE)["_meta"]["hostvars"].items():
        for name in variables:
            if any(name.startswith(f"{role}_") for role in roles):
                assert name in known, f"{host}: {name}"


def test_the_example_has_no_secret_only_references_to_the_vault():
    for path in sorted(EXAMPLE.rglob("*")):
        if path.is_file():
            assert not re.search(r"[0-9a-fA-F]{24,}", path.read_text()), path
            for name, value in (
                (yaml.safe_load(path.read_text()) or {}).items() if path.suffix == ".yml" else ()
            ):
                if is_secret(name):
                    assert re.fullmatch(r"\{\{ vault_\w+ \}\}", value), f"{path}: {name}"


def test_a_vault_made_as_the_example_tells_gives_the_master(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "example")
    (tmp_path / "password").write_text("only for this test")
    vault = tmp_path / "example/group_vars/all/vault.yml"
    vault.write_text("vault_dtls_psk_master: 00112233\n")
    programs = Path(sys.executable).parent
    subprocess.run(
        [programs / "ansible-vault", "encrypt", "--vault-password-file", tmp_path / "password", vault],
        check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    told = listed(tmp_path, tmp_path / "example", "--vault-password-file", str(tmp_path / "password"))
    assert told["_meta"]["hostvars"]["meter-0001"]["vault_dtls_psk_master"]
