"""The supervisor of these tests behaves as systemd does: sockets, the descriptor store, notifications."""

import os
import socket

import pytest

from tests.program.supervisor import Supervisor

SERVICE = """
import array, json, os, signal, socket, sys

def notify(text, *descriptors):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        manager.sendmsg([text.encode()], rights)

def barrier():
    reading, writing = os.pipe()
    notify("BARRIER=1", writing)
    os.close(writing)
    assert os.read(reading, 1) == b""

assert int(os.environ.get("LISTEN_PID", os.getpid())) == os.getpid()
count = int(os.environ.get("LISTEN_FDS", 0))
names = os.environ.get("LISTEN_FDNAMES", "").split(":")[:count]
texts = []
for number, name in enumerate(names, 3):
    if name == "dtls":
        with socket.socket(fileno=number) as listening:
            texts.append(listening.recv(100).decode())
    else:
        os.lseek(number, 0, os.SEEK_SET)
        texts.append(os.read(number, 100).decode())
high = [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= 100]
print(json.dumps({"event": "got", "names": names, "texts": texts, "high": high}), file=sys.stderr, flush=True)
if "remove" in sys.argv:
    notify("FDSTOREREMOVE=1\\nFDNAME=state")
else:
    state = os.memfd_create("state")
    os.write(state, b"saved")
    notify("FDSTORE=1\\nFDNAME=state", state)
    notify("FDSTORE=1\\nFDNAME=state", state)
barrier()
notify("READY=1\\nSTATUS=well")
signal.pause()
"""


@pytest.fixture
def listening():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        yield one


def supervised(path, listening, *arguments):
    (path / "pretender.py").write_text(SERVICE)
    environment = {"PYTHONPATH": str(path)}
    return Supervisor(
        *arguments, cwd=path, sockets={"dtls": listening}, module="pretender", environment=environment
    )


def send(text, listening):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.sendto(text, listening.getsockname())


def test_a_service_gets_its_sockets_with_what_came_meanwhile_and_what_it_has_stored(tmp_path, listening):
    with supervised(tmp_path, listening) as supervisor:
        send(b"early", listening)
        supervisor.start()
        supervisor.wait_until_said("READY")
        assert supervisor.has_said("STATUS", "well")
        got = supervisor.fact("got")
        assert (got["names"], got["texts"], got["high"]) == (["dtls"], ["early"], [])
        assert supervisor.stop("SIGKILL") == -9
        send(b"between", listening)
        supervisor.start()
        got = supervisor.fact("got")
        assert (got["names"], got["texts"], got["high"]) == (["dtls", "state"], ["between", "saved"], [])


def test_the_store_forgets_only_what_is_removed(tmp_path, listening):
    with supervised(tmp_path, listening, "remove") as supervisor:
        for name in ("state", "other"):
            descriptor = os.memfd_create(name)
            supervisor._obey({"FDSTORE": "1", "FDNAME": name}, [descriptor])
        send(b"x", listening)
        supervisor.start()
        supervisor.wait_until_said("READY")
        assert [name for name, _ in supervisor.stored] == ["other"]


def test_a_service_that_ends_too_early_is_told_with_its_log(tmp_path, listening):
    with Supervisor(cwd=tmp_path, module="no_such_module") as supervisor:
        supervisor.start()
        with pytest.raises(AssertionError, match="No module named no_such_module"):
            supervisor.wait_until_said("READY")
