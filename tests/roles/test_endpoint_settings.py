"""What the role dtls_endpoint makes of variables: configuration, units, releases. No lab is needed."""

import re
import subprocess
import sys
import tomllib
import zipfile

import attrs
import jinja2
import pytest
import yaml
from ansible.errors import AnsibleFilterError

from endpoint.config import load_config
from endpoint.tables.sinks import UdpTable
from tests.lab.fleet import REPOSITORY

ROLE = REPOSITORY / "roles" / "dtls_endpoint"
sys.path.insert(0, str(REPOSITORY / "roles" / "dtls_common" / "filter_plugins"))

from dtls_endpoint import (  # noqa: E402 - as Ansible would find it
    FilterModule,
    endpoint_listeners,
    endpoint_network,
    endpoint_release,
    endpoint_settings,
    toml,
)

ALL = ["[::]:5684"]


def rendered(name, config=None, *, listen=ALL, init="systemd", **more):
    """A template of the role, with its defaults and these variables."""
    told = {
        **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        **yaml.safe_load((ROLE / "defaults/main.yml").read_text()),
        "dtls_endpoint_config": config or {},
        "dtls_endpoint_listen": listen,
        "__dtls_endpoint_host": {"init": init},
        **more,
    }
    settings = endpoint_settings(told["dtls_endpoint_config"], listen, systemd=init == "systemd")
    network = endpoint_network(settings)
    wanted = told["dtls_endpoint_private_network"]
    told |= {
        "__dtls_endpoint_settings": settings,
        "__dtls_endpoint_network": network,
        "__dtls_endpoint_listeners": endpoint_listeners(listen),
        "__dtls_endpoint_private": not network["needed"] if wanted == "auto" else wanted,
        "__dtls_endpoint_systemd": init == "systemd",
    }
    # As Ansible sets it for templates.
    environment = jinja2.Environment(  # noqa: S701 - no HTML
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {**FilterModule().filters(), "bool": bool}
    template = environment.from_string((ROLE / "templates" / name).read_text())
    return template.render(told)


def directives(text):
    """The lines of a unit that say something."""
    return [line for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)]


def test_the_defaults_are_a_configuration_that_loses_nothing(tmp_path):
    text = rendered("endpoint.toml.j2")
    place = tmp_path / "endpoint.toml"
    place.write_text(text)
    config = load_config(place)
    assert config.listen.places == (("::", 5684),)
    assert config.state.store == "sqlite"
    assert str(config.credentials.psk_file) == "/etc/dtls-endpoint/psk.d"
    # What dtls_psk asks: who has used which key, and what there is now.
    assert str(config.state.usage_file) == "/var/lib/dtls-endpoint/usage.db"
    assert str(config.state.admin_socket) == "/run/dtls-endpoint/admin.sock"


def test_the_endpoint_takes_the_configuration_of_the_example(tmp_path):
    told = yaml.safe_load((REPOSITORY / "inventory/example/group_vars/dtls_endpoints.yml").read_text())
    place = tmp_path / "endpoint.toml"
    place.write_text(
        rendered("endpoint.toml.j2", told["dtls_endpoint_config"], listen=told["dtls_endpoint_listen"])
    )
    assert load_config(place).forward.kind == "unix"


@pytest.mark.parametrize(
    ("given", "systemd", "has", "lacks"),
    [
        ({"state": {"store": "memory"}}, True, {"key_file", "admin_socket"}, {"file", "handoff_file"}),
        ({"state": {"store": "memory"}}, False, {"handoff_file", "key_file"}, {"file"}),
        ({"state": {"usage_file": None}}, True, {"file", "key_file"}, {"usage_file"}),
    ],
)
def test_associations_are_kept_as_the_host_can(given, systemd, has, lacks):
    state = endpoint_settings(given, ALL, systemd=systemd)["state"]
    assert has <= set(state)
    assert not lacks & set(state)


def test_keys_elsewhere_take_the_place_of_the_directory():
    assert endpoint_settings({"credentials": {"psk_database": "k.db"}}, ALL)["credentials"] == {
        "psk_database": "k.db"
    }


@pytest.mark.parametrize(
    ("listen", "near"),
    [
        ("[::]:5684", "[::1]:5684"),
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("192.0.2.1", "192.0.2.1:5684"),
        ("[2001:db8::1]", "[2001:db8::1]:5684"),
    ],
)
def test_a_listener_is_reached_from_the_host_itself(listen, near):
    assert endpoint_listeners([listen])[0]["near"] == near


@pytest.mark.parametrize(
    "listen", ["gateway.example:5684", "::", "[192.0.2.1]:1:2", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3:1"]
)
def test_what_systemd_cannot_bind_is_refused_by_name(listen):
    with pytest.raises(AnsibleFilterError, match=r"dtls_endpoint_listen: .*remedy"):
        endpoint_listeners([listen])


def test_the_address_is_told_in_one_place():
    with pytest.raises(AnsibleFilterError, match=r"dtls_endpoint_config: listen.port"):
        endpoint_settings({"listen": {"port": 1}}, ALL)


@pytest.mark.parametrize(
    ("config", "needed", "far"),
    [
        ({}, False, False),
        ({"forward": {"kind": "unix", "path": "/x"}}, False, False),
        ({"forward": {"kind": "udp", "upstream": "a:1"}}, True, True),
        ({"forward": {"kind": "udp", "upstream": "192.0.2.1:1"}}, True, False),
        ({"forward": {"sinks": [{"kind": "echo"}, {"kind": "valkey", "server": "unix:/x"}]}}, False, False),
        ({"forward": {"sinks": [{"kind": "echo"}, {"kind": "valkey", "server": "valkey://a"}]}}, True, True),
        ({"forward": {"sinks": [{"kind": "valkey", "server": "valkeys://[2001:db8::1]:1"}]}}, True, False),
        ({"metrics": {"port": "off"}}, False, False),
        ({"metrics": {"port": 9684}}, True, False),
        ({"metrics": {"port": 9684, "address": "10.0.0.1"}}, True, True),
        ({"credentials": {"psk_valkey": "unix:/run/v"}}, False, False),
        ({"credentials": {"psk_valkey": "valkey://a"}}, True, True),
        ({"credentials": {"psk_module": "a:b"}}, True, True),
    ],
)
def test_the_role_works_out_what_needs_a_network(config, needed, far):
    found = endpoint_network(endpoint_settings(config, ALL))
    assert (found["needed"], found["far"]) == (needed, far)
    unit = directives(rendered("dtls-endpoint.service.j2", config))
    assert ("PrivateNetwork=yes" in unit) == (not needed)
    assert ("IPAddressDeny=any" in unit) == (not far)


@pytest.mark.parametrize(
    ("config", "more", "status"),
    [
        ({}, {}, 0),
        ({"metrics": {"port": 9684}}, {}, 0),
        ({"forward": {"kind": "udp", "upstream": "a:1"}}, {}, 1),
        ({"forward": {"kind": "udp", "upstream": "192.0.2.1:1"}}, {}, 0),
        ({"forward": {"kind": "udp", "upstream": "a:1"}}, {"dtls_endpoint_network_allow": ["192.0.2.1"]}, 0),
    ],
)
def test_the_exposure_is_at_most_one(tmp_path, config, more, status):
    unit = tmp_path / "dtls-endpoint.service"
    unit.write_text(rendered("dtls-endpoint.service.j2", config, **more))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=10", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout[-500:] + done.stderr


def test_what_the_configuration_names_by_address_may_be_reached_and_nothing_else():
    sinks = [
        {"kind": "udp", "upstream": "[2001:db8::1]:5683", "identities": ["a*"], "max_upstreams": 50},
        {"kind": "udp", "upstream": "127.0.0.1:5683", "identities": ["b*"]},
        {"kind": "valkey", "server": "valkey://192.0.2.7:6379"},
        {"kind": "valkey", "server": "valkey://192.0.2.8:6379"},
    ]
    unit = directives(
        rendered(
            "dtls-endpoint.service.j2",
            {"forward": {"sinks": sinks}},
            dtls_endpoint_network_allow=["192.0.2.53"],
        )
    )
    (allowed,) = (line for line in unit if line.startswith("IPAddressAllow="))
    assert set(allowed.partition("=")[2].split()) == {
        "localhost",
        "2001:db8::1",
        "192.0.2.7",
        "192.0.2.8",
        "192.0.2.53",
    }
    assert "LimitNOFILE=11074" in unit


def test_there_are_files_for_as_many_upstreams_as_the_endpoint_opens_by_default():
    network = endpoint_network({"forward": {"kind": "udp", "upstream": "192.0.2.1:5683"}})
    assert network["sockets"] == attrs.fields(UdpTable).max_upstreams.default


def test_the_units_say_what_the_published_ones_say():
    for name in ("dtls-endpoint.service", "dtls-endpoint.socket"):
        published = directives((REPOSITORY / "docs/systemd" / name).read_text())
        ours = directives(rendered(f"{name}.j2"))
        paths = [line.replace("/opt/dtls-endpoint/current/bin/", "/usr/bin/") for line in ours]
        assert paths == published


def test_toml_comes_back_as_it_was():
    table = {
        "listen": {"address": "::", "port": 5684, "also": ["a:1"], "retry": float("inf")},
        "credentials": {"names": {"a.b c": {"certificate": 'x"\\\n\x7fé'}}},
        "forward": {"sinks": [{"kind": "udp", "wake": False}, {"kind": "echo"}]},
        "empty": {},
    }
    assert tomllib.loads(toml(table)) == table
    with pytest.raises(AnsibleFilterError, match=r"listen.when"):
        toml({"listen": {"when": object()}})


def test_a_release_is_named_by_what_is_in_it(tmp_path):
    def wheel(name, content):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as made:
            made.writestr(zipfile.ZipInfo("file"), content)

    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(AnsibleFilterError, match=r"dtls_endpoint_wheelhouse: .*remedy: pip wheel"):
            endpoint_release(bad)
    wheel("sansdtls-1", "a")
    wheel("trio-1", "a")
    first = endpoint_release(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert endpoint_release(str(tmp_path)) == first
    wheel("trio-1", "b")
    assert endpoint_release(tmp_path) != first


def test_the_init_script_is_a_shell_script_without_holes(tmp_path):
    script = tmp_path / "script"
    script.write_text(rendered("dtls-endpoint.init.j2", init="busybox"))
    assert "{{" not in script.read_text()
    for shell in ("dash", "busybox"):
        command = [shell, "sh", "-n", script] if shell == "busybox" else [shell, "-n", script]
        subprocess.run(command, check=True)
    usage = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "start|stop|restart|reload|status" in usage.stderr


def test_every_shell_script_of_the_role_is_posix():
    for script in (
        *ROLE.glob("files/*.sh"),
        *(REPOSITORY / "roles/dtls_common/module_utils").glob("dtls_[rs]*.sh"),
    ):
        subprocess.run(["dash", "-n", script], check=True)
        subprocess.run(["busybox", "sh", "-n", script], check=True)
