"""Several sinks in one service, as a process: one of them ends, the others go on."""

import json
import socket

import pytest
import trio

from endpoint import open_dtls
from sansdtls import ClientConfig
from tests.program.running import Running

KEY = "00112233445566778899aabbccddeeff"


class Home:
    def __init__(self, path):
        self.path = path
        (path / "psk.txt").touch(mode=0o600)
        (path / "psk.txt").write_text("".join(f"{name}:{KEY}\n" for name in ("meter-1", "pump-1", "valve-1")))

    def serve(self, forward):
        (self.path / "endpoint.toml").write_text(
            f'[listen]\nport = 0\n[credentials]\npsk_file = "psk.txt"\n{forward}'
        )
        return Running("serve", "--config", "endpoint.toml", cwd=self.path)

    def tell(self, where, identity, message, *, answers=0):
        """What a device gets back, which sends this; so many answers are waited for."""

        async def talk():
            config = ClientConfig(psk_identity=identity.encode(), psk_key=bytes.fromhex(KEY))
            with trio.fail_after(20):
                async with await open_dtls(*where, config=config) as channel:
                    await channel.send(message.encode())
                    return [(await channel.receive()).decode() for _ in range(answers)]

        return trio.run(talk)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


SEVERAL = """
[[forward.sinks]]
kind = "jsonl"
identities = ["meter-*", "pump-*"]
also = true
[[forward.sinks]]
name = "answers"
kind = "echo"
identities = ["meter-*"]
[[forward.sinks]]
name = "pumps"
kind = "udp"
upstream = "127.0.0.1:{port}"
identities = ["pump-*"]
"""


def test_a_closed_output_does_not_end_a_service_with_other_sinks(home):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        with home.serve(SEVERAL.format(port=server.getsockname()[1])) as service:
            where = service.listening()
            assert home.tell(where, "meter-1", "one", answers=1) == ["one"]
            line = json.loads(service.output())
            assert (line["identity"], line["data"]) == ("meter-1", "one")
            home.tell(where, "pump-1", "two")
            assert server.recv(100) == b"two"
            assert json.loads(service.output())["data"] == "two"
            home.tell(where, "valve-1", "nobody's")
            assert service.fact("forward_unmatched")["identity"] == "valve-1"
            service.process.stdout.close()
            service.process.stdout = None
            assert home.tell(where, "meter-1", "three", answers=1) == ["three"]
            failed = service.fact("forward_failed")
            assert (failed["sink"], failed["error"]) == ("jsonl", "standard output was closed by its reader")
            assert home.tell(where, "meter-1", "four", answers=1) == ["four"]
            service.signal("SIGINT")
            forward = service.fact("stopped")["statistics"]["forward"]
            assert service.finished() == 0
    sinks = forward["sinks"]
    assert sinks["jsonl"]["over"]
    # "three" was written to nobody, "four" came after the end.
    assert sinks["jsonl"]["drops"] == {"write_failed": 1, "over": 1}
    assert {name: sink["forwarded"] for name, sink in sinks.items()} == {
        "jsonl": 2,
        "answers": 3,
        "pumps": 1,
    }
    assert forward["unmatched"] == 1


def test_what_waits_for_a_program_that_is_away_is_handed_on_before_the_end(home):
    path = home.path / "there"
    with home.serve('[forward]\nkind = "unix"\npath = "there"\n') as service:
        where = service.listening()
        home.tell(where, "meter-1", "kept")
        assert service.fact("forward_down")["reason"] == "no such file or directory"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
            program.bind(str(path))
            program.settimeout(20)
            assert service.end("SIGINT") == 0
            assert json.loads(program.recv(1000))["data"] == "kept"


def test_a_sink_that_can_never_work_ends_the_start(home):
    with home.serve('[forward]\nkind = "unix"\npath = "there"\nlisten = "gone/back"\n') as service:
        fact = service.fact("forward_failed")
        assert fact["error"].endswith(
            "gone/back: its directory is not there; remedy: make it, for the service only"
        )
        assert service.finished() == 1
