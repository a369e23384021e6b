"""``make run``: the demo shows data at once, says what to type, and ends cleanly."""

import json
import socket
import stat

import pytest

from endpoint.demo import DEVICE, METER, THERMOMETER, DemoError, prepare_keys
from endpoint.keystore.file import load_psk
from tests.program.running import Running


def test_the_keys_are_private_random_and_kept(tmp_path):
    path = prepare_keys(tmp_path / "var")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    keys = load_psk(path).keys
    assert set(keys) == {DEVICE.encode(), THERMOMETER.encode(), METER.encode()}
    assert len(set(keys.values())) == 3
    assert prepare_keys(tmp_path / "var") == path
    assert load_psk(path).keys == keys
    assert [entry.name for entry in path.parent.iterdir()] == ["psk.txt"]


def test_keys_that_do_not_fit_are_not_replaced(tmp_path):
    path = tmp_path / "psk.txt"
    path.touch(mode=0o600)
    path.write_text("mine:00112233445566778899aabbccddeeff\n")
    with pytest.raises(DemoError, match="no key for demo-device, sensor-1, sensor-2"):
        prepare_keys(tmp_path)
    assert path.read_text().startswith("mine:")


def start(directory, port):
    return Running("--port", port, cwd=directory, module="endpoint.demo")


def test_it_shows_data_says_what_to_type_and_ends_cleanly(tmp_path):
    with start(tmp_path, 0) as demo:
        assert demo.output().startswith("The endpoint listens on 127.0.0.1:")
        commands: list[str] = []
        devices: set[str] = set()
        while devices < {THERMOMETER, METER}:
            line = demo.output()
            if line.startswith("{"):
                devices.add(json.loads(line)["identity"])
            elif line.startswith("  "):
                commands.append(line.split()[0].rpartition("/")[2] + " " + line.split()[1])
        assert [command.split()[0] for command in commands][1:] == ["openssl", "gnutls-cli"]
        assert demo.end("SIGINT") == 0
        assert "Traceback" not in demo.everything


def test_a_taken_port_is_said_and_another_one_taken(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with start(tmp_path, port) as demo:
            assert demo.output() == f"Port {port} is taken by another program; taking a free one."
            assert f":{port}." not in demo.output()
            assert demo.end("SIGINT") == 0
