"""Several listeners of the program: what `check` and the log say of them, and whom they serve."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from endpoint import open_dtls
from tests.program.test_service import Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def check(home, listen):
    (home.path / "endpoint.toml").write_text(f'[credentials]\npsk_file = "psk.txt"\n[listen]\n{listen}')
    return subprocess.run(
        [sys.executable, "-m", "endpoint", "check", "--config", "endpoint.toml"],
        cwd=home.path,
        env={"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_tells_of_every_place_and_of_fragments(home):
    done = check(home, 'also = ["192.0.2.1:5685", "[::1]:0"]\npath_mtu_discovery = false')
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:5] == [
        "listens on UDP 127.0.0.1:5684 (reachable from this host only)",
        "listens on UDP 192.0.2.1:5685",
        "listens on UDP [::1], any free port (reachable from this host only)",
        "lets the network fragment datagrams, and does not hear of narrow paths",
    ]
    assert "fragment" not in check(home, "").stdout


async def test_every_listener_has_its_line_and_serves(home):
    with home.serve(listen='also = ["127.0.0.2:0", "127.0.0.3:0"]') as service:
        told = []
        for _ in range(3):
            line = await trio.to_thread.run_sync(service.line, service.process.stderr)
            told.append(json.loads(line))
        assert [fact["event"] for fact in told] == ["listening"] * 3
        assert [fact["address"] for fact in told] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        with trio.fail_after(20):
            for fact in told:
                async with await open_dtls(fact["address"], fact["port"], config=home.client()) as channel:
                    await channel.send(b"hello")
                    assert await channel.receive() == b"hello"
        assert await trio.to_thread.run_sync(service.end) == 0


def test_one_that_is_taken_keeps_the_service_from_starting(home):
    with home.serve() as holder:
        _, port = holder.listening()
        with home.serve(listen=f'also = ["127.0.0.1:{port}"]') as service:
            fact = json.loads(service.line(service.process.stderr))
            assert fact["event"] == "listen_failed"
            assert fact["error"].startswith(
                f"endpoint.toml: listen.also: 127.0.0.1:{port} is already in use; "
            )
            assert service.finished() == 1
