"""The unit files in docs/systemd: what systemd says of them, and that the service runs under what they take away."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from endpoint import open_dtls
from sansdtls import ClientConfig
from tests.conftest import IN_CI, require_program
from tests.program.confined import settings, system_calls
from tests.program.supervisor import Supervisor

UNITS = Path(__file__).parents[2] / "docs" / "systemd"
SERVICE, SOCKET = UNITS / "dtls-endpoint.service", UNITS / "dtls-endpoint.socket"
KEY = "00112233445566778899aabbccddeeff"
MOST_EXPOSURE = 1.0
"""Of 10, as systemd counts: lower is better."""


def analyze(*arguments):
    require_program("systemd-analyze")
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_exposure_is_low_and_what_is_left_has_its_reason():
    done = analyze("security", "--offline=true", SERVICE)
    found = re.search(r"Overall exposure level for dtls-endpoint.service: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= MOST_EXPOSURE, done.stdout
    told = json.loads(analyze("security", "--offline=true", "--json=short", SERVICE).stdout)
    # What is left, each with its reason: Python and its libraries are the host's (RootDirectory); notifications and the
    # admin socket (AF_UNIX); the boot id (ProcSubset); ProtectClock= lets the clock be read (DeviceAllow). Newer versions
    # may count more; nothing may count much.
    left = {one["json_field"]: float(one["exposure"]) for one in told if one["exposure"] is not None}
    assert {"RestrictAddressFamilies_AF_UNIX", "ProcSubset"} <= set(left)
    assert max(left.values()) <= 0.2, left


def test_systemd_understands_every_line(tmp_path):
    # With a program that is there, which is all that it asks about the machine.
    require_program("systemd-analyze")
    for unit in (SERVICE, SOCKET):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/dtls-endpoint", "/bin/true"))
    done = analyze("verify", tmp_path / SERVICE.name, tmp_path / SOCKET.name)
    ours = [line for line in done.stderr.splitlines() if "dtls-endpoint" in line]
    assert ours == []


def test_every_line_has_a_reason_above_it_or_with_its_group():
    for unit in (SERVICE, SOCKET):
        for paragraph in unit.read_text().split("\n\n"):
            assert "#" in paragraph or paragraph.startswith(("[Unit]\nDescription", "[Install]")), paragraph


def test_the_socket_is_what_the_configuration_means_by_all_interfaces():
    text = SOCKET.read_text()
    assert "ListenDatagram=[::]:5684\n" in text
    assert "BindIPv6Only=both\n" in text


def test_no_group_of_dangerous_system_calls_is_left():
    require_program("systemd-analyze")
    left = system_calls(SERVICE)
    assert {"recvmsg", "sendmsg", "sendto", "epoll_wait", "futex", "flock", "fsync"} <= left
    assert not left & {
        "ptrace",
        "mount",
        "reboot",
        "init_module",
        "setuid",
        "bpf",
        "setns",
        "unshare",
        "keyctl",
    }


@pytest.mark.slow
async def test_the_service_runs_under_what_its_unit_takes_away(tmp_path):
    # In a network namespace of its own, without a capability, with the filter of system calls: everything of a life. The socket
    # and the manager's door come from outside.
    if os.geteuid():
        (pytest.fail if IN_CI else pytest.skip)("only root can give up what root may do")
    require_program("systemd-analyze")
    home, state, run = (tmp_path / name for name in ("etc", "state", "run"))
    for directory in (home, state, run):
        directory.mkdir(mode=0o700)
    files = {
        "psk.txt": f"dev1:{KEY}\n",
        "state.key": f"{bytes(range(32)).hex()}\n",
        "endpoint.toml": '[credentials]\npsk_file = "psk.txt"\n[forward]\nkind = "echo"\n'
        f'[state]\nadmin_socket = "{run}/admin.sock"\nstore = "sqlite"\nfile = "{state}/a.db"\nkey_file = "state.key"\n',
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port = udp.getsockname()[1]
        files["endpoint.toml"] += f"[listen]\nport = {port}\n"
        for name, text in files.items():
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        confined = (sys.executable, "-m", "tests.program.confined", str(SERVICE))
        service = Supervisor(
            "serve",
            "--config",
            home / "endpoint.toml",
            cwd=tmp_path,
            sockets={"dtls-endpoint.socket": udp},
            within=confined,
            environment={"WATCHDOG_USEC": "60000000", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        with service:
            await trio.to_thread.run_sync(live, service, home, port)


def live(service, home, port):
    """A life: start, serve, reload, restart, serve the same association, stop."""
    service.start()
    service.wait_until_said("READY")
    client = ClientConfig(psk_identity=b"dev1", psk_key=bytes.fromhex(KEY))

    async def talk():
        with trio.fail_after(30):
            async with await open_dtls("127.0.0.1", port, config=client) as channel:
                await channel.send(b"hello")
                assert await channel.receive() == b"hello"
                service.signal("SIGHUP")
                await trio.to_thread.run_sync(service.fact, "reloaded")
                assert await trio.to_thread.run_sync(service.restart) == 0
                await trio.to_thread.run_sync(service.wait_until_said, "READY")
                await channel.send(b"again")
                assert await channel.receive() == b"again"

    trio.run(talk)
    assert service.facts("restored")[-1]["associations"] == 1
    service.wait_until_said("WATCHDOG")
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert service.stop("SIGINT") == 0
    for trouble in ("crashed", "notify_failed", "handoff_failed", "command_failed"):
        assert service.facts(trouble, ever=True) == []


def test_what_the_text_of_the_unit_names_is_there():
    told = dict(settings(SERVICE))
    assert told["ExecReload"].startswith("/usr/bin/dtls-endpoint reload ")
    assert told["ExecStart"].startswith("/usr/bin/dtls-endpoint serve ")
    assert told["RestartPreventExitStatus"] == "2"
