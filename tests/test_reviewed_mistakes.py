"""The mistakes that security reviews found in the DTLS server this project answers: each is looked for here.

Most have tests of their own that go deeper; here stands one for each, so that none is forgotten.
"""

import ast
import re
import socket
from pathlib import Path

import attrs
import pytest
import trio

from endpoint.udp import ListenError, RetryPolicy, bind_udp
from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    CipherSuite,
    ClientConfig,
    ConnectionTerminated,
    Limits,
    Server,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy, Fleet, Pair

ROOT = Path(__file__).parent.parent
SOURCES = [path for package in ("sansdtls", "endpoint") for path in sorted((ROOT / package).rglob("*.py"))]
MAX_STATEMENTS = 40
"""In one function. What it answers had everything in one, 300 lines long."""


def causes(pair):
    return [event.cause for event in pair.server_events if isinstance(event, ConnectionTerminated)]


def datagrams(pair):
    return [
        (entry.datagram.time, entry.datagram.source, len(entry.datagram.data)) for entry in pair.network.log
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_key_stands_in_the_source(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"""["']([0-9A-Fa-f]{32,})["']|fromhex\(b?["']""", text)
    allowed = "sansdtls/testing/" in str(path)  # the key of tests, which is no secret
    assert allowed or found == []


def test_not_any_identity_is_accepted():
    pair = Pair(ClientConfig(psk_identity=b"stranger", psk_key=Pair.KEY))
    pair.run_for(60)
    assert causes(pair) == [AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY, b"stranger")]
    assert len(pair.server) == 0


def test_the_peer_is_verified():
    pair = Pair(ClientConfig(psk_identity=Pair.IDENTITY, psk_key=b"another key's 16"))
    pair.run_for(60)
    assert causes(pair) == [AuthenticationFailed(AuthenticationProblem.WRONG_KEY, Pair.IDENTITY)]
    assert len(pair.server) == 0


@pytest.mark.parametrize("limit", ["max_half_open", "max_associations", "max_total_reassembly_size"])
def test_clients_and_handshakes_are_limited_by_default(limit):
    assert 0 < getattr(ServerConfig().limits, limit) < 10_000_000


def test_more_handshakes_than_the_limit_are_not_begun():
    fleet = Fleet(ServerConfig(limits=Limits(max_half_open=2)), keys={b"dev": [Pair.KEY]})
    fleet.psk_after = None  # nobody gets further than half-way
    for number in range(5):
        fleet.connect(ClientConfig(psk_identity=b"dev", psk_key=Pair.KEY), f"client {number}")
    fleet.run_for(1)
    assert fleet.server.statistics.half_open == 2


def test_the_peer_cannot_tell_a_wrong_key_from_an_unknown_identity():
    wrong = Pair(keys={Pair.IDENTITY: [b"another key's 16"]})
    unknown = Pair(keys={})
    for pair in (wrong, unknown):
        pair.run_for(60)
    assert datagrams(wrong) == datagrams(unknown)
    assert causes(wrong) != causes(unknown)


async def test_the_result_of_a_write_is_looked_at():
    (udp,) = await bind_udp("127.0.0.1", 0)
    failed = []
    with udp:
        udp.on_send_failed = lambda address, _code: failed.append(address)
        udp.send(b"x" * 70_000, ("127.0.0.1", 9))  # larger than a datagram can be
        assert failed == [("127.0.0.1", 9)]
        assert dict(udp.send_errors) == {"EMSGSIZE": 1}


def test_cookies_are_made_with_a_key_that_nobody_knows_and_that_is_replaced():
    config = ClientConfig(psk_identity=b"dev", psk_key=Pair.KEY)

    def cookie_at(now, seed):
        server = Server(ServerConfig(), entropy=CounterEntropy(seed), now=0.0)
        pair = Pair(config)
        (hello,) = pair.client.datagrams_to_send() or [entry.datagram for entry in pair.network.log][:1]
        server.receive_datagram(hello.data, path="p", now=now)
        return server.datagrams_to_send()[0].data

    assert cookie_at(0, seed=1) == cookie_at(59, seed=1)
    assert cookie_at(0, seed=1) != cookie_at(0, seed=2)
    assert cookie_at(0, seed=1) != cookie_at(61, seed=1)


def test_a_handshake_that_fails_leaves_nothing_behind():
    pair = Pair(keys={})
    pair.run_for(60)
    statistics = pair.server.statistics
    assert (statistics.half_open, statistics.associations, statistics.reassembly_size) == (0, 0, 0)


async def test_a_port_that_is_taken_is_tried_again_until_it_is_free(autojump_clock):
    taken = socket.socket(type=socket.SOCK_DGRAM)
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with pytest.raises(ListenError, match="already in use"):
        await bind_udp("127.0.0.1", port)
    async with trio.open_nursery() as nursery:

        async def release():
            await trio.sleep(10)
            taken.close()

        nursery.start_soon(release)
        (udp,) = await bind_udp("127.0.0.1", port, retry=RetryPolicy(total=60))
    with udp:
        assert udp.port == port


def test_hint_and_cipher_suites_are_configuration():
    suite = CipherSuite.TLS_PSK_WITH_AES_256_CCM_8
    pair = Pair(server_config=ServerConfig(cipher_suites=[suite], psk_identity_hint=b"fleet"))
    pair.handshake()
    assert pair.client.negotiated is not None
    assert pair.client.negotiated.cipher_suite is suite
    assert ServerConfig().psk_identity_hint is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_does_everything(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, functions):
            statements = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
            assert statements <= MAX_STATEMENTS, f"{node.name} has {statements} statements"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_follow_one_convention(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert re.fullmatch(r"_{0,2}[a-z][a-z0-9_]*", node.name)
        elif isinstance(node, ast.ClassDef):
            assert re.fullmatch(r"_?[A-Z][A-Za-z0-9]*", node.name)


def test_configuration_cannot_be_changed_behind_a_servers_back():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ServerConfig().limits = Limits()  # type: ignore[misc]  # the attempt is the test
