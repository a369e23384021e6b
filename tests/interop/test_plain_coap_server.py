"""libcoap's server without DTLS behind a running ``dtls-endpoint serve``, asked by libcoap's clients with DTLS."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import require_program
from tests.interop.process import PATIENCE, running, wait_until
from tests.interop.stacks import LIBCOAP_GNUTLS, LIBCOAP_OPENSSL
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.interop.process import PeerProcess
    from tests.interop.stacks import LibCoap

pytestmark = pytest.mark.interop

ROOT = Path(__file__).parent.parent.parent
PLAIN_SERVER = "coap-server-notls"
CONFIGURATION = """
[listen]
address = "127.0.0.1"
port = 0
[credentials]
psk_file = "keys.psk"
[forward]
kind = "udp"
upstream = "127.0.0.1:{port}"
"""
BOTH = pytest.mark.parametrize("stack", [LIBCOAP_OPENSSL, LIBCOAP_GNUTLS], ids=str)


class Gateway:
    """The endpoint, the plain server behind it, and how to ask."""

    def __init__(self, process: PeerProcess, server: PeerProcess, server_port: int, directory: Path) -> None:
        self.process = process
        self.server = server
        self.server_port = server_port
        self._directory = directory
        wait_until(lambda: bool(self.facts("listening")) or process.exit_status is not None, process.__str__)
        assert process.exit_status is None, str(process)
        self.port: int = self.facts("listening")[0]["port"]

    def facts(self, event: str) -> list[dict[str, Any]]:
        lines = [line for line in self.process.output.splitlines(keepends=True) if line.endswith("\n")]
        return [fact for fact in map(json.loads, lines) if fact["event"] == event]

    def command(self, stack: LibCoap, *options: str, path: str) -> list[str]:
        stack.require()
        credentials = ["-k", stack.key.decode(), "-u", "coap1"]
        return [
            f"coap-client-{stack.backend}",
            *credentials,
            *options,
            f"coaps://127.0.0.1:{self.port}/{path}",
        ]

    def ask(self, stack: LibCoap, *options: str, path: str = "") -> bytes:
        """What the client prints."""
        done = subprocess.run(
            self.command(stack, "-B", "30", *options, path=path),
            cwd=self._directory,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{done} of {self.process} before {self.server}"
        return done.stdout


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    require_program(PLAIN_SERVER)
    keys = tmp_path / "keys.psk"
    keys.touch(mode=0o600)
    keys.write_text(f"coap1:{LIBCOAP_OPENSSL.key.hex()}\n", encoding="utf-8")
    server_port = free_port()
    (tmp_path / "endpoint.toml").write_text(CONFIGURATION.format(port=server_port), encoding="utf-8")
    serve = [sys.executable, "-m", "endpoint", "serve", "--config", str(tmp_path / "endpoint.toml")]
    with (
        running(
            [PLAIN_SERVER, "-A", "127.0.0.1", "-p", str(server_port), "-v", "7"],
            directory=tmp_path,
            name="server",
            listening_on=server_port,
        ) as server,
        running(
            serve, directory=tmp_path, name="endpoint", environment={"PYTHONPATH": str(ROOT)}
        ) as endpoint,
    ):
        yield Gateway(endpoint, server, server_port, tmp_path)


@BOTH
def test_coap_client_gets_what_the_plain_server_has(gateway: Gateway, stack: LibCoap):
    assert LIBCOAP_OPENSSL.answer in gateway.ask(stack)
    assert b"</time>" in gateway.ask(stack, path=".well-known/core")
    assert len(gateway.facts("connected")) == 2


@BOTH
def test_what_takes_many_blocks_arrives_whole_both_ways(gateway: Gateway, stack: LibCoap, tmp_path: Path):
    content = bytes(range(32, 127)) * 40
    (tmp_path / "content").write_bytes(content)
    gateway.ask(stack, "-m", "put", "-b", "256", "-f", "content", path="example_data")
    assert gateway.ask(stack, "-b", "128", path="example_data").rstrip(b"\n") == content


@BOTH
def test_an_observation_goes_on(gateway: Gateway, stack: LibCoap, tmp_path: Path):
    command = gateway.command(stack, "-s", "120", path="time")
    with running(command, directory=tmp_path, name="observer") as observer:
        # The server tells the time of day, once a second.
        wait_until(lambda: len(set(re.findall(r"\d\d:\d\d:\d\d", observer.output))) >= 3, observer.__str__)
        assert observer.exit_status is None
    assert len(gateway.facts("connected")) == 1


def test_each_device_has_an_address_of_its_own_at_the_server(gateway: Gateway):
    for _ in range(2):
        gateway.ask(LIBCOAP_OPENSSL)
    sources = {
        line.split("<->")[1].split()[0] for line in gateway.server.output.splitlines() if "<->" in line
    }
    assert len(sources) == 2, gateway.server


def test_a_plain_server_that_was_away_is_used_again(gateway: Gateway, tmp_path: Path):
    gateway.server.stop()
    stack = LIBCOAP_OPENSSL
    with running(gateway.command(stack, "-B", "120", path=""), directory=tmp_path, name="patient") as client:
        wait_until(lambda: bool(gateway.facts("forward_down")), gateway.process.__str__)
        command = [PLAIN_SERVER, "-A", "127.0.0.1", "-p", str(gateway.server_port)]
        with running(command, directory=tmp_path, name="again", listening_on=gateway.server_port):
            # It repeats its question by itself, RFC 7252 §4.2.
            wait_until(lambda: stack.answer.decode() in client.output, client.__str__)
            wait_until(lambda: bool(gateway.facts("forward_up")), gateway.process.__str__)
    assert gateway.facts("forward_down")[0]["reason"] == "connection refused"
