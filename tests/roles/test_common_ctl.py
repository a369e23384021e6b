"""``dtls_ctl`` with the real program, on this machine; and what it refuses, without one."""

import sys

import pytest

from endpoint.keystore.fingerprint import fingerprint
from tests.roles.plays import REPOSITORY, Here, Plays, load, task
from tests.secrecy import assert_no_secret

CTL = load("action_plugins/dtls_ctl")
KEY = "8f1c2a77d3e94b0596aa31f0cc5de21b7d40e6f38a95bc2210fe6bd9471385ac"
NEXT = "5be0cd19137e2179a1f0d04c3c6ef372fe94f82b510e527f9b05688c1f83d9ab"


@pytest.fixture
def here(tmp_path):
    """A folder with the program and a configuration."""
    program = tmp_path / "dtls-endpoint"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m endpoint.cli "$@"\n')
    program.chmod(0o755)
    keys = tmp_path / "psk.d"
    keys.mkdir(mode=0o700)
    file = keys / "devices.txt"
    file.write_text("")
    file.chmod(0o600)
    (tmp_path / "endpoint.toml").write_text(f'[credentials]\npsk_file = "{keys}"\n[forward]\nkind = "echo"\n')
    return tmp_path


@pytest.fixture
def plays(here):
    return Plays(Here(here))


@pytest.fixture
def ctl(here):
    def ctl(*words, name=None, keywords=None, **more):
        given = {"program": str(here / "dtls-endpoint"), "config": str(here / "endpoint.toml")}
        return task(
            "dtls_ctl",
            name=name or " ".join(words),
            keywords=keywords,
            **given | {"args": list(words)} | more,
        )

    return ctl


def test_keys_are_changed_by_standard_input_and_told_by_fingerprints(here, plays, ctl):
    put = ("keys", "add", "sensor 7", "--key-file", "-", "--file", "devices.txt")
    tasks = [
        ctl(*put, name="add", stdin="{{ key }}\n"),
        ctl(*put, name="again", stdin="{{ key }}\n"),
        ctl(*put, "--next", name="next", stdin="{{ next }}"),
        ctl("keys", "list", name="list"),
    ]
    (here / "keys.yml").write_text(f"key: {KEY}\nnext: {NEXT}\n")
    given = {"hosts": "localhost", "arguments": ["-vvvvv", "--diff", "-e", f"@{here / 'keys.yml'}"]}
    # A next key of an identity that is not there is refused, and in a rehearsal nothing was added.
    rehearsed = plays.run(tasks[0], tasks[3], **given | {"arguments": [*given["arguments"], "--check"]})
    assert rehearsed.of("localhost", "add").state == "changed"
    assert (here / "psk.d/devices.txt").read_text() == ""
    told = plays.run(*tasks, **given)
    states = {name: told.of("localhost", name).state for name in ("add", "again", "next", "list")}
    assert states == {"add": "changed", "again": "ok", "next": "changed", "list": "ok"}
    assert told.of("localhost", "add")["answer"]["identities"][0]["fingerprint"] == fingerprint(
        bytes.fromhex(KEY)
    )
    (entry,) = told.of("localhost", "list")["answer"]["identities"]
    assert entry["identity"] == "sensor 7"
    for run in (rehearsed, told):
        assert_no_secret(run.output, [bytes.fromhex(KEY), bytes.fromhex(NEXT)])
    assert (here / "psk.d/devices.txt").read_text() == f"sensor 7:{KEY}\nsensor 7:{NEXT}\n"


def test_what_the_program_says_is_in_the_error(here, plays, ctl):
    tasks = [
        ctl("keys", "add", "--next", "nobody", name="refused", keywords={"ignore_errors": True}),
        ctl("keys", "add", "--next", "nobody", name="accepted", accept=[0, 1]),
        ctl("status", name="no service", keywords={"ignore_errors": True}),
        ctl("check", name="check", accept=[0, 2]),
        ctl("keys", "list", name="wrong", config="/nowhere.toml", keywords={"ignore_errors": True}),
    ]
    told = plays.run(*tasks, hosts="localhost")
    assert "localhost: dtls-endpoint keys add: status 1" in told.of("localhost", "refused")["msg"]
    assert "nobody" in told.of("localhost", "refused")["msg"]
    accepted = told.of("localhost", "accepted")
    assert (accepted.state, accepted["status"]) == ("ok", 1)
    assert any("nobody" in line for line in accepted["errors"])
    assert "admin_socket" in told.of("localhost", "no service")["msg"]
    assert "lines" in told.of("localhost", "check")["answer"] or told.of("localhost", "check")["errors"]
    assert "/nowhere.toml" in told.of("localhost", "wrong")["msg"]


def test_on_a_bare_host_check_mode_skips_and_a_run_says_what_is_missing(plays, ctl):
    one = ctl("keys", "list", program="/opt/nowhere/dtls-endpoint")
    assert plays.run(one, hosts="localhost", arguments=["--check"]).of("localhost").state == "skipped"
    told = plays.run(one, hosts="localhost", status=2).of("localhost")["msg"]
    assert "there is no /opt/nowhere/dtls-endpoint; remedy: the role dtls_endpoint" in told


@pytest.mark.parametrize(
    "words", [["serve"], ["keys"], ["keys", "export"], ["capture", "list"], ["--version"], []]
)
def test_what_is_not_for_here_is_refused(words):
    with pytest.raises(Exception, match="begin with none of the commands"):
        CTL.command(words)


def test_what_prints_keys_is_refused():
    with pytest.raises(Exception, match="--show prints keys"):
        CTL.command(["keys", "add", "a", "--show"])


def test_every_command_of_the_program_that_changes_keys_is_known():
    from endpoint.cli import _parser

    for name in sorted(CTL.CHANGING):
        assert _parser().parse_args([*name, "--config", "x", "--json", "--dry-run", "a"]).changes
    for name in sorted(CTL.ASKING - {("doctor",)}):
        assert _parser().parse_args([*name, "--config", "x", "--json"]).json


def test_what_is_no_json_comes_as_lines():
    assert CTL.read('{"a": 1}\n', lines=False) == {"a": 1}
    assert CTL.read('{"a": 1}\n{"a": 2}\n', lines=True) == [{"a": 1}, {"a": 2}]
    assert CTL.read("", lines=True) == []
    assert CTL.read("all is right\n", lines=False) == {"lines": ["all is right"]}
