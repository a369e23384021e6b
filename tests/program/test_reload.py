"""`dtls-endpoint reload`, and what the service manager hears of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program.supervisor import Supervisor

K1, K2 = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"


def keys(home, text):
    (home / "psk.txt").touch(mode=0o600)
    (home / "psk.txt").write_text(text)


def reload(home, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "endpoint", "reload", "--config", "endpoint.toml", *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def home(tmp_path):
    keys(tmp_path, f"dev1:{K1}\n")
    (tmp_path / "endpoint.toml").write_text(
        '[credentials]\npsk_file = "psk.txt"\n[listen]\nport = 0\n[forward]\nkind = "echo"\n'
        '[state]\nadmin_socket = "admin.sock"\n'
    )
    return tmp_path


def test_a_reload_says_what_changed_or_every_mistake_and_the_manager_hears_of_it(home):
    with Supervisor(
        "serve", "--config", "endpoint.toml", cwd=home, environment={"WATCHDOG_USEC": "60000000"}
    ) as service:
        service.start()
        service.wait_until_said("READY")
        service.wait_until_said("WATCHDOG")
        keys(home, f"dev1:{K1}\ndev1:{K2}\ndev2:{K2}\n#6d31:{K1}\n")
        done = reload(home, "--wait")
        assert (done.returncode, done.stdout) == (
            0,
            "reloaded: 2 identities; 1 added, 0 removed, 1 changed, 1 with a next key\n",
        )
        assert done.stderr.startswith("warning: psk.txt:4: ")
        service.catch_up()
        said = [message for message in service.messages if "RELOADING" in message or "READY" in message]
        assert [next(iter(message)) for message in said] == ["READY", "RELOADING", "READY"]
        assert int(said[1]["MONOTONIC_USEC"]) > 0

        keys(home, f"dev2:{K2[:-1]}\nnonsense\n")
        done = reload(home, "--wait")
        assert (done.returncode, done.stdout) == (1, "")
        lines = done.stderr.splitlines()
        assert [line.split(": ")[0] for line in lines[:2]] == ["psk.txt:1", "psk.txt:2"]
        assert lines[2:] == [
            "dtls-endpoint reload: nothing was changed; the service goes on with 2 identities"
        ]
        done = reload(home, "--json")
        assert done.returncode == 1
        told = json.loads(done.stdout)
        assert (told["reloaded"], told["kept"], told["errors_in_all"]) == (False, 2, 2)
        service.catch_up()
        assert service.messages[-1]["STATUS"].endswith(f"; the last reload failed: {told['errors'][0]}")

        keys(home, f"dev1:{K2}\n")
        done = reload(home, "--json")
        told = json.loads(done.stdout)
        assert done.returncode == 0
        assert {
            "reloaded": True,
            "added": 0,
            "removed": 1,
            "changed": 1,
            "warnings": [],
        }.items() <= told.items()
        (home / "psk.txt").chmod(0o644)  # readable by others: as good as no file
        done = reload(home)
        assert (done.returncode, done.stdout) == (0, "asked for; the log says what comes of it\n")
        service.wait_until(lambda: len(service.facts("reload_failed")) == 3, "it logs the third failure")
        assert service.stop() == 0
        assert [name for message in service.messages[-2:] for name in message] == [
            "EXTEND_TIMEOUT_USEC",
            "STOPPING",
            "STATUS",
        ]
        log = service.errors.read_text()
        assert not any(key in log + done.stdout + done.stderr for key in (K1, K2))


def test_where_nobody_answers_the_exit_status_is_1(home):
    done = reload(home, "--wait")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dtls-endpoint reload: admin.sock: no service answers there; is it running?\n"


def test_without_an_admin_socket_it_is_said_what_to_add(home):
    config = home / "endpoint.toml"
    config.write_text(config.read_text().partition("[state]")[0])
    done = reload(home)
    assert done.returncode == 2
    assert done.stderr == (
        'endpoint.toml: state.admin_socket: missing; remedy: add  admin_socket = "admin.sock"\n'
    )
