"""The service and the client as processes, over loopback: signals, reloads, failures, data."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from endpoint import open_dtls
from sansdtls import ClientConfig, RetransmitPolicy
from tests.ports import free_port
from tests.program.running import Running

K1 = "00112233445566778899aabbccddeeff"
K2 = "ffeeddccbbaa99887766554433221100"
K3 = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


class Home:
    """A directory with a configuration and keys."""

    def __init__(self, path):
        self.path = path
        self.keys(f"dev1:{K1}\n")

    def keys(self, text, name="psk.txt"):
        (self.path / name).touch(mode=0o600)
        (self.path / name).write_text(text)

    def serve(self, more="", *, port=0, kind="echo", address="127.0.0.1", listen="", stdout=subprocess.PIPE):
        (self.path / "endpoint.toml").write_text(
            f'[credentials]\npsk_file = "psk.txt"\n'
            f'[listen]\naddress = "{address}"\nport = {port}\n{listen}\n[forward]\nkind = "{kind}"\n{more}'
        )
        return Running("serve", "--config", "endpoint.toml", cwd=self.path, stdout=stdout)

    def connect(self, target, *more, identity="dev1", psk_file="psk.txt"):
        return Running(
            "connect", target, "--identity", identity, "--psk-file", psk_file, *more, cwd=self.path
        )

    def client(self, key=K1, identity=b"dev1"):
        return ClientConfig(psk_identity=identity, psk_key=bytes.fromhex(key))


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def target(running):
    address, port = running.listening()
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def finished(running):
    """Exit status, standard output and standard error of a process that ends by itself."""
    with running:
        out, error = running.process.communicate()
        return running.process.returncode, out, error


def no_secret(text):
    return not any(key in text.lower() for key in (K1, K2, K3))


def test_the_first_line_says_where_it_listens(home):
    with home.serve() as service:
        fact = json.loads(service.line(service.process.stderr))
        assert list(fact)[:3] == ["event", "address", "port"]
        assert (fact["event"], fact["address"]) == ("listening", "127.0.0.1")
        assert fact["port"] > 0
        assert service.end() == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_echo_comes_back_as_one_line(home, address):
    with home.serve(address=address) as service:
        status, out, error = finished(
            home.connect(target(service), "--message", "hello", "--message", "21.4 °C", "--message", "a\nb")
        )
        assert (status, sorted(out.splitlines())) == (0, ["21.4 °C", "a\\x0ab", "hello"])
        assert error.startswith("connected to ")
        connected = service.fact("connected")
        assert (connected["identity"], connected["key_used"]) == ("dev1", "current")
        assert service.fact("disconnected")["cause"] == "PeerClose"
        assert service.end() == 0
        assert no_secret(service.everything + out + error)


def test_lines_of_standard_input_are_sent(home):
    with home.serve() as service, home.connect(target(service)) as device:
        device.process.stdin.write("one\n")
        device.process.stdin.flush()
        assert device.output() == "one"
        device.process.stdin.write("two")
        out, _ = device.process.communicate()
        assert (device.process.returncode, out) == (0, "two\n")


def test_a_device_whose_endpoint_stops_is_told_and_does_not_hang_on_its_input(home):
    with home.serve() as service, home.connect(target(service)) as device:
        device.process.stdin.write("one\n")
        device.process.stdin.flush()
        assert device.output() == "one"
        assert service.end() == 0
        # Its standard input is still open: a thread waits in it.
        assert device.process.wait() == 1
        assert "the peer closed the association" in device.process.stderr.read()


def test_silence_is_no_failure_and_is_told(home):
    with home.serve(kind="jsonl") as service:
        status, out, error = finished(home.connect(target(service), "--message", "x", "--wait", "0.01"))
        assert (status, out) == (0, "")
        assert error.splitlines()[1] == "1 sent without a reply within 0.01 s"


def test_data_come_out_as_json_lines(home):
    with home.serve(kind="jsonl") as service:
        status, out, _ = finished(home.connect(target(service), "--message", "21.4", "--wait", "0.01"))
        assert (status, out) == (0, "")
        line = json.loads(service.output())
        assert (line["identity"], line["data"]) == ("dev1", "21.4")
        assert line["path"].startswith("127.0.0.1:")
        assert service.end() == 0


@pytest.mark.parametrize("suite", ["PSK_WITH_AES_128_CCM_8", "TLS_PSK_WITH_CHACHA20_POLY1305_SHA256"])
def test_a_cipher_suite_can_be_chosen(home, suite):
    with home.serve() as service:
        assert finished(home.connect(target(service), "--message", "x", "--cipher-suite", suite))[:2] == (
            0,
            "x\n",
        )
        assert service.fact("connected")["cipher_suite"].endswith(suite)


def test_no_common_cipher_suite_is_told_on_both_sides(home):
    with home.serve('[dtls]\ncipher_suites = ["PSK_WITH_AES_128_CCM"]') as service:
        status, _, error = finished(
            home.connect(target(service), "--message", "x", "--cipher-suite", "PSK_WITH_AES_128_CCM_8")
        )
        assert status == 1
        assert "handshake_failure" in error
        assert service.fact("handshake_failed")["cause"] == "PeerIncompatible"


@pytest.mark.slow
@pytest.mark.parametrize(("line", "cause"), [(f"dev1:{K2}", "wrong_key"), (f"dev9:{K1}", "unknown_identity")])
def test_wrong_key_and_unknown_identity_are_named_in_the_log_and_alike_to_the_device(home, line, cause):
    home.keys(line + "\n", "device.txt")
    with home.serve("[dtls]\nretransmit = { initial_timeout = 0.2 }") as service:
        identity = line.partition(":")[0]
        status, out, error = finished(
            home.connect(target(service), "--message", "x", identity=identity, psk_file="device.txt")
        )
        assert (status, out) == (1, "")
        assert "decrypt_error: it does not know the identity, or the key is wrong" in error
        failed = service.fact("handshake_failed")
        assert failed["cause"] == f"AuthenticationFailed.{cause}"
        assert failed["identity"] == identity
        assert failed["path"].startswith("127.0.0.1:")
        service.end()
        assert no_secret(service.everything + error)


def test_a_closed_port_is_told_at_once(home):
    port = free_port()
    status, _, error = finished(home.connect(f"127.0.0.1:{port}", "--message", "x"))
    assert status == 1
    assert error.startswith(f"dtls-endpoint connect: 127.0.0.1:{port}: ")
    assert "refused" in error


# --- signals ----------------------------------------------------------------------------------------


async def test_a_stop_tells_the_peers_and_ends_with_0(home):
    with home.serve() as service:
        address, port = service.listening()
        async with await open_dtls(address, port, config=home.client()) as channel:
            service.signal("SIGTERM")
            with trio.fail_after(30), pytest.raises(trio.EndOfChannel):
                await channel.receive()
            stopped = await trio.to_thread.run_sync(service.fact, "stopped")
            assert stopped["associations_left"] == 0
            assert await trio.to_thread.run_sync(service.finished) == 0


def test_interrupting_it_is_a_stop_too(home):
    with home.serve() as service:
        service.listening()
        assert service.end("SIGINT") == 0
        assert "Traceback" not in service.everything


def test_a_second_signal_ends_it_at_once(home):
    # Nobody reads the pipe, so that handing on what was received would take the whole 60 seconds.
    reading, writing = os.pipe()
    with os.fdopen(reading), home.serve(kind="jsonl", listen="drain = 60", stdout=writing) as service:
        os.write(writing, b"x" * 65_536)
        os.close(writing)
        device = home.connect(target(service), "--message", "x", "--wait", "0.01")
        assert finished(device)[0] == 0
        service.fact("disconnected")
        service.signal("SIGTERM")
        service.fact("stopping")
        service.signal("SIGTERM")
        service.fact("stopped_at_once")
        assert service.finished() == 1


async def test_a_reload_takes_the_new_keys_and_keeps_the_connections(home):
    with home.serve() as service:
        address, port = service.listening()
        async with await open_dtls(address, port, config=home.client()) as old:
            home.keys(f"dev1:{K1}\ndev1:{K2}\ndev2:{K3}\n")
            service.signal("SIGHUP")
            reloaded = await trio.to_thread.run_sync(service.fact, "reloaded")
            assert {name: reloaded[name] for name in ("identities", "added", "removed", "changed")} == {
                "identities": 2,
                "added": 1,
                "removed": 0,
                "changed": 1,
            }
            with trio.fail_after(30):
                await old.send(b"still here")
                assert await old.receive() == b"still here"
                for client in (home.client(K3, b"dev2"), home.client(K2)):
                    async with await open_dtls(address, port, config=client) as new:
                        await new.send(b"new")
                        assert await new.receive() == b"new"
        assert await trio.to_thread.run_sync(service.end) == 0
        assert no_secret(service.everything)


async def test_a_bad_reload_keeps_the_old_keys_and_names_every_mistake(home):
    with home.serve() as service:
        address, port = service.listening()
        home.keys(f"dev2:{K2}\ndev1:{K1[:-1]}\nnonsense\n")
        service.signal("SIGHUP")
        failed = await trio.to_thread.run_sync(service.fact, "reload_failed")
        assert [line.split(": ")[0] for line in failed["errors"]] == ["psk.txt:2", "psk.txt:3"]
        assert failed["kept"] == 1
        with trio.fail_after(30):
            async with await open_dtls(address, port, config=home.client()) as channel:
                await channel.send(b"hello")
                assert await channel.receive() == b"hello"
        assert await trio.to_thread.run_sync(service.end) == 0
        assert no_secret(service.everything)


# --- what can go wrong around it --------------------------------------------------------------------


@pytest.fixture
def taken():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", free_port()))
        yield other


def test_a_port_that_is_taken_is_an_error_with_the_remedy(home, taken):
    port = taken.getsockname()[1]
    status, out, error = finished(home.serve(port=port))
    assert (status, out) == (1, "")
    (line,) = error.splitlines()
    fact = json.loads(line)
    assert fact["event"] == "listen_failed"
    assert fact["error"].startswith(f"endpoint.toml: listen.port: 127.0.0.1:{port} is already in use")


def test_with_retry_it_waits_until_the_port_is_free(home, taken):
    port = taken.getsockname()[1]
    with home.serve(port=port, listen="retry = 20") as service:
        assert "already in use" in service.fact("listen_retry")["error"]
        taken.close()
        assert service.listening() == ("127.0.0.1", port)
        assert service.end() == 0


def test_it_can_be_stopped_while_it_waits_for_the_port(home, taken):
    with home.serve(port=taken.getsockname()[1], listen="retry = inf") as service:
        service.fact("listen_retry")
        assert service.end() == 0


def test_a_closed_output_ends_it_with_the_reason(home):
    with home.serve(kind="jsonl") as service:
        where = target(service)
        service.process.stdout.close()
        service.process.stdout = None
        finished(home.connect(where, "--message", "x", "--wait", "0.01"))
        assert service.fact("forward_failed")["error"] == "standard output was closed by its reader"
        assert service.finished() == 1
        assert "Traceback" not in service.everything


def test_an_output_that_was_never_open_is_told_and_no_socket_is_taken_for_it(home):
    home.serve(kind="jsonl").__exit__()
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m endpoint serve --config endpoint.toml >&-"],
        cwd=home.path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"] == "standard output is closed; there is nowhere to write data to"


def test_interrupting_the_client_leaves_no_traceback(home):
    with home.serve() as service, home.connect(target(service)) as device:
        assert device.line(device.process.stderr).startswith("connected to ")
        device.signal("SIGINT")
        assert device.process.wait() == 130  # before its standard input is closed, which ends it, too
        device.finished()
        assert "Traceback" not in device.everything
        assert service.fact("disconnected")["cause"] == "PeerClose"


def test_a_client_whose_output_is_closed_says_so(home):
    with home.serve() as service, home.connect(target(service)) as device:
        device.process.stdout.close()
        device.process.stdout = None
        device.process.stdin.write("one\n")
        device.process.stdin.flush()
        assert device.process.wait() == 1
        assert device.process.stderr.read().splitlines()[1:] == [
            "dtls-endpoint connect: standard output: broken pipe"
        ]


async def test_a_service_that_restarts_takes_the_device_back_on_its_old_port(home):
    with home.serve(port=free_port()) as service:
        address, port = service.listening()
        fast = ClientConfig(
            psk_identity=b"dev1", psk_key=bytes.fromhex(K1), retransmit=RetransmitPolicy(initial_timeout=0.1)
        )
        with trio.fail_after(30):
            async with await open_dtls(address, port, config=fast):
                assert await trio.to_thread.run_sync(service.end) == 0
                with home.serve(port=port) as again:
                    await trio.to_thread.run_sync(again.listening)
                    async with await open_dtls(address, port, config=fast) as channel:
                        await channel.send(b"back")
                        assert await channel.receive() == b"back"
