"""The administrator's socket: who may use it, what it answers, and what it withstands."""

import json
import os
import socket
import stat

import pytest
import trio

from endpoint import admin
from endpoint.admin import MAX_CLIENTS, MAX_REQUEST, AdminError, AdminSocket, CommandError, ask


@pytest.fixture
def path(tmp_path):
    return tmp_path / "admin"


class Answering:
    """A socket that answers, and what it had to complain about."""

    def __init__(self, path):
        self.troubles: list[tuple[str, dict[str, object]]] = []
        self.gate = trio.Event()
        self.under_way = 0
        self.socket = AdminSocket(path, trouble=lambda what, **facts: self.troubles.append((what, facts)))
        self.socket.register("status", self.status)
        self.socket.register("refuse", self.refuse)
        self.socket.register("break", self.breaks)
        self.socket.register("wait", self.wait)

    async def status(self, request):
        return {"associations": 3, "said": request.get("say")}

    async def refuse(self, request):
        raise CommandError("there is nothing\nto do")

    async def breaks(self, request):
        raise RuntimeError("a key: 0011")

    async def wait(self, request):
        self.under_way += 1
        await self.gate.wait()
        return {}


@pytest.fixture
async def answering(path, nursery):
    one = Answering(path)
    await nursery.start(one.socket.run)
    yield one
    one.socket.close()


async def exchanged(path, data):
    """What comes back for these bytes; empty = nothing."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(data)
        answer = b""
        with trio.fail_after(30):
            try:
                async for more in stream:
                    answer += more
            except trio.BrokenResourceError:
                pass
    return answer


async def asked(path, command, **more):
    answer = await exchanged(path, json.dumps({"command": command, **more}).encode() + b"\n")
    assert answer.endswith(b"\n")
    return json.loads(answer)


async def test_a_command_is_answered_in_one_line(answering, path):
    assert await asked(path, "status", say="x") == {"ok": True, "associations": 3, "said": "x"}


async def test_a_command_that_cannot_be_done_says_why(answering, path):
    assert await asked(path, "refuse") == {"ok": False, "error": "there is nothing\nto do"}
    assert answering.troubles == []


async def test_a_command_that_breaks_is_reported_in_the_log_and_ends_nothing(answering, path):
    assert await asked(path, "break") == {"ok": False, "error": "the command failed; the log says why"}
    assert answering.troubles == [
        ("command failed", {"command": "break", "reason": "RuntimeError('a key: 0011')"})
    ]
    assert (await asked(path, "status"))["ok"]


async def test_an_unknown_command_is_answered_with_those_there_are(answering, path):
    assert await asked(path, "stop") == {
        "ok": False,
        "error": "unknown command; known are break, refuse, status, wait",
    }


@pytest.mark.parametrize(
    "junk", [b"\n", b"status\n", b"[]\n", b"{}\n", b'{"command": {}}\n', b"\xff\n", b"[" * 4000 + b"\n"]
)
async def test_junk_is_answered_with_an_example(answering, path, junk):
    answer = json.loads(await exchanged(path, junk))
    assert answer == {"ok": False, "error": 'a request is one line such as {"command": "status"}'}


async def test_a_request_without_end_is_cut_off(answering, path):
    assert await exchanged(path, b"x" * MAX_REQUEST) == b""
    longest = b'{"command": "status"' + b" " * (MAX_REQUEST - 22) + b"}\n"
    assert len(longest) == MAX_REQUEST
    assert json.loads(await exchanged(path, longest))["ok"]


async def test_who_leaves_without_a_request_or_before_the_answer_disturbs_nothing(answering, path):
    (await trio.open_unix_socket(path)).socket.close()
    stream = await trio.open_unix_socket(path)
    await stream.send_all(b'{"command": "wait"}\n')
    while not answering.under_way:
        await trio.lowlevel.checkpoint()
    await stream.aclose()
    answering.gate.set()
    assert (await asked(path, "status"))["ok"]


async def test_who_says_nothing_is_cut_off_in_time(answering, path, monkeypatch):
    monkeypatch.setattr(admin, "REQUEST_TIME", 0.01)
    assert await exchanged(path, b'{"command":') == b""


async def test_no_more_than_so_many_requests_are_under_way_and_their_end_can_be_waited_for(answering, path):
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_CLIENTS):
            nursery.start_soon(asked, path, "wait")
        while answering.under_way < MAX_CLIENTS:
            await trio.lowlevel.checkpoint()
        assert await asked(path, "status") == {"ok": False, "error": "too many requests at once; try again"}
        await answering.socket.wait_idle(0.001)
        assert answering.under_way == MAX_CLIENTS
        answering.gate.set()
        with trio.fail_after(30):
            await answering.socket.wait_idle(100)
    assert (await asked(path, "status"))["ok"]


# --- the socket's name -----------------------------------------------------------------------------


async def test_it_is_for_its_owner_before_it_has_a_name(path, monkeypatch):
    # Without the second chmod: the mode is there from the first moment.
    monkeypatch.setattr(type(path), "chmod", lambda *_: None)
    old = os.umask(0)
    try:
        one = Answering(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    one.socket.close()


async def test_its_name_goes_with_it(path):
    Answering(path).socket.close()
    assert not path.exists()


async def test_a_name_that_is_somebody_elses_by_now_is_left(path):
    one = Answering(path)
    path.unlink()
    path.write_text("mine")
    one.socket.close()
    assert path.read_text() == "mine"


async def test_what_a_dead_process_has_left_is_taken_over(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    Answering(path).socket.close()


async def test_another_services_socket_is_not_taken(answering, path):
    with pytest.raises(AdminError) as caught:
        Answering(path)
    assert str(caught.value) == (
        f"{path}: is in use by another process; remedy: stop that one, or name another socket"
    )
    assert (await asked(path, "status"))["ok"]


async def test_a_file_that_is_no_socket_is_not_removed(path):
    path.write_text("a key")
    with pytest.raises(AdminError, match="is there already, and no socket; remedy: name another"):
        Answering(path)
    assert path.read_text() == "a key"


async def test_a_directory_that_is_not_there_is_told(path):
    with pytest.raises(AdminError, match=r"its directory is not there; remedy: make it"):
        Answering(path / "below")


# --- the client ------------------------------------------------------------------------------------


async def test_the_client_gets_the_answer(answering, path):
    answer = await trio.to_thread.run_sync(lambda: ask(path, "status", seconds=10))
    assert answer == {"ok": True, "associations": 3, "said": None}


def test_a_service_that_is_not_there_is_told(path):
    with pytest.raises(AdminError) as caught:
        ask(path, "status", seconds=10)
    assert str(caught.value) == f"{path}: no service answers there; is it running?"
    path.write_text("")
    with pytest.raises(AdminError, match="no service"):
        ask(path, "status", seconds=10)


async def test_a_service_that_does_not_answer_in_time_or_goes_away_is_told(answering, path):
    def in_vain(seconds):
        with pytest.raises(AdminError) as caught:
            ask(path, "wait", seconds=seconds)
        return str(caught.value)

    assert await trio.to_thread.run_sync(in_vain, 0.01) == (
        f"{path}: the service does not answer within 0.01 s"
    )


@pytest.mark.parametrize("said", [b"", b"[]\n", b"ok\n"])
def test_half_an_answer_is_none(path, said):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        async def both():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, serve)
                with pytest.raises(AdminError, match="the service went away without an answer"):
                    await trio.to_thread.run_sync(lambda: ask(path, "x", seconds=10))

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(said)

        trio.run(both)
