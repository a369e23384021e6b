"""``connect`` as a device that may move: what it offers, what it says of it, how it keeps a NAT's mapping alive."""

import contextlib

import pytest
import trio

from endpoint import serve_dtls
from sansdtls import ConnectionIdPolicy, ReturnRoutability, ServerConfig
from tests.program.running import Running

KEY = bytes(range(16))


@pytest.fixture
def psk_file(tmp_path):
    path = tmp_path / "psk.txt"
    path.touch(mode=0o600)
    path.write_text(f"dev1:{KEY.hex()}\n")
    return path


@contextlib.asynccontextmanager
async def served(handler, policy):
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(
            lambda task_status: serve_dtls(
                handler,
                0,
                config=ServerConfig(connection_id=policy),
                keystore={b"dev1": KEY},
                host="127.0.0.1",
                task_status=task_status,
            )
        )
        yield f"127.0.0.1:{bound.port}"
        nursery.cancel_scope.cancel()


async def run_connect(psk_file, target, *options):
    """Exit status, standard output and standard error."""
    running = Running(
        "connect", target, "--identity", "dev1", "--psk-file", psk_file, *options, cwd=psk_file.parent
    )
    with running:
        out, error = await trio.to_thread.run_sync(running.process.communicate)
        return running.process.returncode, out, error


NO_PROOF = ConnectionIdPolicy(length=3, return_routability=ReturnRoutability.OFF)
ID = "the server gave connection ID {id}: it finds us at any address"


@pytest.mark.parametrize(
    ("policy", "options", "line"),
    [
        (ConnectionIdPolicy(length=3), ["--connection-id"], ID + ", after asking there"),
        (NO_PROOF, ["--connection-id"], ID),
        (None, ["--connection-id"], "the server gave no connection ID: it finds us by our address"),
        (ConnectionIdPolicy(length=3), [], None),
    ],
)
async def test_it_says_which_connection_id_it_was_given_if_it_asked_for_one(psk_file, policy, options, line):
    given = []

    async def handle(channel):
        given.append(channel.connection_id)
        assert channel.peer_connection_id == b""  # whoever never moves the peer needs no ID of his own
        async for data in channel:
            await channel.send(data)

    async with served(handle, policy) as target:
        status, out, error = await run_connect(psk_file, target, "--message", "hello", *options)
    assert (status, out) == (0, "hello\n")
    assert error.splitlines()[1:] == ([] if line is None else [line.format(id=given[0].hex())])


async def test_it_sends_empty_datagrams_while_it_has_nothing_to_say(psk_file):
    async def handle(channel):
        # It waits for a reply for up to an hour, so that only this lets it end.
        received = [await channel.receive() for _ in range(4)]
        await channel.send(repr(received).encode())
        await trio.sleep_forever()

    async with served(handle, None) as target:
        status, out, error = await run_connect(
            psk_file, target, "--message", "hello", "--wait", "3600", "--keep-alive", "0.05"
        )
    assert (status, out) == (0, "[b'hello', b'', b'', b'']\n"), error


async def test_an_interval_that_makes_no_sense_is_wrong_use(psk_file):
    status, _, error = await run_connect(psk_file, "127.0.0.1", "--keep-alive", "0")
    assert status == 2
    assert "--keep-alive" in error
