"""Disks that are full and files that cannot be read, under a service that runs: told once, with what it means, and over when it is over."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from endpoint import open_dtls
from sansdtls import ClientConfig
from tests.conftest import IN_CI
from tests.program.supervisor import Supervisor
from tests.program.test_reload import reload
from tests.program.test_service import Home, finished, target

pytestmark = pytest.mark.slow

KEY = "00112233445566778899aabbccddeeff"
DEVICES = 40
"""More rows than the pages of a new database have room for."""

SMALL_DISK = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=256k,mode=0700 tmpfs state && exec "$@"',
    "sh",
)
"""Puts a file system of its own, which only the service sees, at ``state``."""


def require_mounts():
    done = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True)
    if done.returncode:
        (pytest.fail if IN_CI else pytest.skip)("only root can mount a small disk")


def fill(path):
    with path.open("wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))


def configured(home, more):
    (home / "psk.txt").touch(mode=0o600)
    (home / "psk.txt").write_text("".join(f"dev{number}:{KEY}\n" for number in range(DEVICES)))
    (home / "state.key").touch(mode=0o600)
    (home / "state.key").write_text(f"{bytes(range(32)).hex()}\n")
    (home / "endpoint.toml").write_text(
        f'[credentials]\npsk_file = "psk.txt"\n[listen]\nport = 0\n[forward]\nkind = "echo"\n[state]\n{more}'
    )


async def talk(service, devices):
    """That many are connected at once, so that there is something to save."""
    fact = service.fact("listening")
    with trio.fail_after(60):
        async with contextlib.AsyncExitStack() as connected:
            for number in range(devices):
                client = ClientConfig(psk_identity=b"dev%d" % number, psk_key=bytes.fromhex(KEY))
                channel = await open_dtls(fact["address"], fact["port"], config=client)
                await connected.enter_async_context(channel)
                await channel.send(b"hello")
                assert await channel.receive() == b"hello"
            if devices > 1:
                await trio.to_thread.run_sync(service.fact, "state_not_saved")


def test_a_database_on_a_full_disk_is_told_once_and_goes_on_when_there_is_room(tmp_path):
    require_mounts()
    (tmp_path / "state").mkdir(mode=0o700)
    configured(
        tmp_path,
        'store = "sqlite"\nfile = "state/a.db"\nkey_file = "state.key"\ncheckpoint_interval = 0.05\n',
    )
    with Supervisor("serve", "--config", "endpoint.toml", cwd=tmp_path, within=SMALL_DISK) as service:
        service.start()
        service.wait_until_said("READY")
        # Its own view of the file system; the journal may grow to what one row takes.
        filler = Path(f"/proc/{service.process.pid}/root{tmp_path}/state/filler")
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        trio.run(talk, service, DEVICES)
        trouble = service.fact("state_not_saved")
        assert "full" in trouble["reason"]
        assert trouble["reason"].startswith("state/a.db: ")
        trio.run(talk, service, 1)  # devices are served all the same
        filler.unlink()
        assert service.fact("state_saved_again")["failures"] >= 1
        assert len(service.facts("state_not_saved")) == 1
        assert service.stop() == 0
        assert service.facts("state_not_saved") == [trouble]


def test_an_output_that_is_full_is_told_and_devices_are_served(tmp_path):
    home = Home(tmp_path)
    with Path("/dev/full").open("w") as full, home.serve(kind="jsonl", stdout=full) as service:
        where = target(service)
        for _ in range(2):
            assert finished(home.connect(where, "--message", "x", "--wait", "0.01"))[0] == 0
        assert service.end() == 0
        assert '"reason": "no space left on device"' in service.everything


def test_credentials_that_cannot_be_read_are_not_taken_and_those_before_stay(tmp_path):
    # As on a disk that went away: the file is a directory that is not there, then a file that is no text.
    configured(tmp_path, 'admin_socket = "admin.sock"\n')
    with Supervisor("serve", "--config", "endpoint.toml", cwd=tmp_path) as service:
        service.start()
        service.wait_until_said("READY")
        shutil.move(tmp_path / "psk.txt", tmp_path / "gone")
        done = reload(tmp_path, "--wait")
        assert done.returncode == 1
        assert done.stderr.splitlines()[0] == "psk.txt: cannot be read: no such file or directory"
        (tmp_path / "psk.txt").write_bytes(os.urandom(4096))
        (tmp_path / "psk.txt").chmod(0o600)
        done = reload(tmp_path, "--wait")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith("goes on with 40 identities")
        trio.run(talk, service, 1)
        assert service.stop() == 0
