"""dtls_common is found both ways, from a folder of roles and in an installed collection, and its documentation is of it."""

import ast
import json
import re
import subprocess

import pytest
import yaml

from tests.roles.plays import COMMON, ROLES, Here, Plays, install_collection, load, program, task

ACTIONS = sorted(path.stem for path in (COMMON / "action_plugins").glob("*.py"))
FILTERS = sorted(
    name
    for file in ("dtls_psk", "dtls_psk_rotation")
    for name in load(f"filter_plugins/{file}").FilterModule().filters()
)
MASTER = "8f1c2a77d3e94b0596aa31f0cc5de21b7d40e6f38a95bc2210fe6bd9471385ac"
# It uses a filter first, and an action then, both by their short names, as our roles do.
USER = [
    {"name": "Filter", "ansible.builtin.set_fact": {"named": "{{ master | dtls_psk_fingerprint }}"}},
    {
        "name": "Put",
        "dtls_file": {"dest": "{{ place }}", "content": "{{ master | dtls_psk_derive('a', 1) }} {{ named }}"},
    },
]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """This repository as an installed collection, with a role that uses dtls_common in it."""
    installed = install_collection(tmp_path_factory.mktemp("collection"))
    write_user(installed / "ansible_collections/sansdtls/dtls/roles")
    return installed


def write_user(roles):
    for name, content in (("tasks", USER), ("meta", {"dependencies": ["dtls_common"]})):
        (roles / "user" / name).mkdir(parents=True)
        (roles / "user" / name / "main.yml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize("way", ["role", "collection"])
def test_a_role_finds_actions_and_filters_by_their_short_names(collection, tmp_path, way):
    environment = {"ANSIBLE_ROLES_PATH": f"{ROLES}:{tmp_path}"}
    role = "user"
    if way == "collection":
        environment = {
            "ANSIBLE_COLLECTIONS_PATH": str(collection),
            "ANSIBLE_ROLES_PATH": str(tmp_path / "none"),
        }
        role = "sansdtls.dtls.user"
    else:
        write_user(tmp_path)
    place = tmp_path / "out"
    told = Plays(Here(tmp_path)).run(
        roles=[role], variables={"master": MASTER, "place": str(place)}, environment=environment, hosts="localhost"
    )  # fmt: skip
    assert told.states("Put") == {"localhost": "changed"}
    filters = load("filter_plugins/dtls_psk").FilterModule().filters()
    assert place.read_text().split() == [
        filters["dtls_psk_derive"](MASTER, "a", 1),
        filters["dtls_psk_fingerprint"](MASTER),
    ]


def test_a_collection_has_what_ansible_uses_and_nothing_else(collection):
    installed = collection / "ansible_collections/sansdtls/dtls"
    assert (installed / "plugins/action/dtls_file.py").exists()
    assert (installed / "plugins/module_utils/dtls_file.sh").exists()
    assert {path.name for path in installed.iterdir() if path.is_dir()} == {
        "docs",
        "inventory",
        "meta",
        "playbooks",
        "plugins",
        "roles",
    }


@pytest.mark.parametrize("kind", ["module", "filter"])
def test_ansible_doc_tells_of_every_plugin(collection, tmp_path, kind):
    names = [f"sansdtls.dtls.{name}" for name in (ACTIONS if kind == "module" else FILTERS)]
    done = subprocess.run(
        [program("ansible-doc"), "-t", kind, "--json", *names],
        capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(collection), "LANG": "C.UTF-8", "ANSIBLE_LOCAL_TEMP": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sorted(told) == sorted(names)
    assert all(entry["doc"]["short_description"] for entry in told.values())


@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "dtls_filters"])
def test_documented_options_are_the_options(name):
    documented = yaml.safe_load(load(f"library/{name}").DOCUMENTATION)["options"]
    spec = load(f"action_plugins/{name}").ActionModule.SPEC
    assert set(documented) == {*spec, "unreachable"}
    for option, rules in spec.items():
        told = documented[option]
        assert told.get("default") == rules.get("default"), option
        assert told.get("choices") == rules.get("choices"), option
        assert told.get("required", False) == rules.get("required", False), option


def test_every_plugin_is_in_the_readme():
    text = (COMMON / "README.md").read_text()
    assert set(re.findall(r"`(dtls_[a-z_]+)`", text)) >= {*ACTIONS, *FILTERS}


def test_scripts_are_run_in_one_place_only():
    users = [
        path.name
        for path in ROLES.glob("**/*.py")
        if any(isinstance(node, ast.Attribute) and node.attr == "_low_level_execute_command" for node in ast.walk(ast.parse(path.read_text())))
    ]  # fmt: skip
    assert users == ["dtls_shell.py"]


def test_a_play_of_no_fleet_reads_its_own_facts(tmp_path):
    told = Plays(Here(tmp_path)).run(task("dtls_facts"), hosts="localhost")
    facts = told.of("localhost")
    assert facts["missing"] == []
    assert facts["python"]
    assert abs(facts["clock_offset"]) < 1
