"""The program as a user runs it: usage, configuration errors and ``check``, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

K1 = "00112233445566778899aabbccddeeff"
K2 = "ffeeddccbbaa99887766554433221100"


@pytest.fixture
def home(tmp_path):
    (tmp_path / "psk.txt").write_text(f"dev1:{K1}\ndev2:{K1}\ndev2:{K2}\n")
    (tmp_path / "psk.txt").chmod(0o600)
    (tmp_path / "endpoint.toml").write_text('[credentials]\npsk_file = "psk.txt"\n[listen]\nport = 0\n')
    return tmp_path


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "endpoint", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", [[], ["serve"], ["check"], ["connect"]])
def test_every_command_explains_itself(home, command):
    done = run(*command, "--help", cwd=home)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: dtls-endpoint")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["serve"],
        ["check", "--config"],
        ["connect"],
        ["connect", "localhost"],
        ["connect", "[::1", "--identity", "dev1", "--psk-file", "psk.txt"],
        ["connect", "h:99999", "--identity", "dev1", "--psk-file", "psk.txt"],
        ["connect", "h", "--identity", "dev1", "--psk-file", "psk.txt", "--cipher-suite", "NULL"],
        ["connect", "h", "--identity", "dev1", "--psk-file", "psk.txt", "--wait", "soon"],
        ["connect", "h", "--identity", "dev1", "--psk-file", "psk.txt", "--mtu", "12"],
        ["connect", "h", "--identity", "dev1", "--psk-file", "none.txt"],
        ["connect", "h", "--identity", "stranger", "--psk-file", "psk.txt"],
    ],
)
def test_wrong_usage_ends_with_2_and_without_a_traceback(home, arguments):
    done = run(*arguments, cwd=home)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_check_says_what_the_endpoint_would_do(home):
    done = run("check", "--config", "endpoint.toml", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "endpoint.toml: right"
    assert lines[1] == "listens on UDP 127.0.0.1, any free port (reachable from this host only)"
    assert lines[3] == "accepts 2 identities from psk.txt, 1 of them with a next key"
    assert K1 not in done.stdout


@pytest.mark.parametrize("command", ["check", "serve"])
def test_all_mistakes_of_configuration_and_keys_are_told_at_once_with_2(home, command):
    (home / "endpoint.toml").write_text(
        '[credentials]\npsk_file = "psk.txt"\n[listen]\nport = 70000\naddres = "::1"\n'
    )
    (home / "psk.txt").write_text(f"dev1:{K1[:-1]}\nnonsense\n")
    done = run(command, "--config", "endpoint.toml", cwd=home)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        'endpoint.toml: listen.addres: unknown key (did you mean "address"?)',
        "endpoint.toml: listen.port: 70000 is not within 0 to 65535",
        'psk.txt:1: the key of "dev1" has 31 hex digits, an odd number; one is missing or too many',
        "psk.txt:2: not identity:hexkey (there is no colon)",
    ]


@pytest.mark.parametrize("command", ["check", "serve"])
def test_keys_that_others_may_read_are_refused_with_the_remedy(home, command):
    (home / "psk.txt").chmod(0o640)
    done = run(command, "--config", "endpoint.toml", cwd=home)
    assert done.returncode == 2
    assert done.stderr == (
        "psk.txt: mode 0640 gives group or others access to the keys; remedy: chmod 600 psk.txt\n"
    )


def test_check_notes_what_is_legal_but_odd(home):
    (home / "psk.txt").write_text(f"#6465:{K1}\n")
    done = run("check", "--config", "endpoint.toml", cwd=home)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-2:] == [
        "note: psk.txt:1: a comment here; GnuTLS would read it as an identity in hex",
        "note: psk.txt: no identity, so nobody can connect",
    ]


def test_a_missing_configuration_is_one_line(home):
    done = run("check", "--config", "none.toml", cwd=home)
    assert (done.returncode, done.stderr) == (2, "none.toml: cannot be read: no such file or directory\n")


def test_the_key_file_is_found_beside_the_configuration(home):
    done = run("check", "--config", str(home / "endpoint.toml"), cwd="/")
    assert done.returncode == 0, done.stderr
    assert json.dumps(str(home / "psk.txt"))[1:-1] in done.stdout
