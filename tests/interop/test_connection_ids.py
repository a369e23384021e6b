"""Connection IDs, RFC 9146, with Bouncy Castle and Mbed TLS: negotiated, on the wire, and when somebody moves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
import pytest

from sansdtls import ConnectionIdPolicy, LocalClose, PathChanged, PathProof, PeerClose
from tests.interop.identified import (
    GCM,
    IDENTIFIED,
    MBED_TLS,
    WITH_CERTIFICATE,
    cid_said,
    rebound,
    said,
    shown_and_trusted,
)
from tests.interop.records import TLS12_CID, protected_records, records_of
from tests.interop.stacks import CCM_8

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sansdtls import CipherSuite, Connection
    from tests.interop.credentials import Pair
    from tests.interop.identified import IdentifiedMeeting, IdentifiedStack
    from tests.interop.ours import OurClient, OurServer
    from tests.interop.process import PeerProcess
    from tests.interop.records import Record

pytestmark = pytest.mark.interop

THEIRS = "c0ffee0123456789"
"""Their connection ID, in hex, where its length does not matter."""
OVERHEAD = {CCM_8: 8 + 8, GCM: 8 + 16}
"""Bytes that a suite adds to a record: explicit nonce and tag."""
FINISHED = 12 + 12 + 1
"""Bytes of Finished with its header and its type, which we do not pad."""


@attrs.frozen
class Shape:
    """Who has a connection ID: the length of ours and the hex of theirs. ``None`` = no extension."""

    ours: int | None
    theirs: str | None

    @property
    def policy(self) -> ConnectionIdPolicy | None:
        return None if self.ours is None else ConnectionIdPolicy(length=self.ours)

    @property
    def negotiated(self) -> tuple[int, bytes]:
        """The length of what they are to send, and what we are to send."""
        if self.ours is None or self.theirs is None:
            return 0, b""
        return self.ours, bytes.fromhex(self.theirs)

    def __str__(self) -> str:
        ours = "without" if self.ours is None else self.ours
        theirs = "without" if self.theirs is None else len(self.theirs) // 2
        return f"ours_{ours}-theirs_{theirs}"


BOTH = Shape(8, THEIRS)
ONLY_OURS = Shape(8, "")
ONLY_THEIRS = Shape(0, THEIRS)
SHAPES = (
    BOTH,
    Shape(8, "01"),
    Shape(8, "0102030405"),
    Shape(8, "ab" * 20),
    Shape(1, THEIRS),
    Shape(20, "0102030405"),
    ONLY_OURS,
    ONLY_THEIRS,
    Shape(0, ""),
    Shape(8, None),
    Shape(None, THEIRS),
)
COMBINATIONS = [
    *((stack, CCM_8, shape) for stack in IDENTIFIED for shape in SHAPES),
    *((stack, GCM, shape) for stack in IDENTIFIED for shape in (BOTH, ONLY_OURS, ONLY_THEIRS)),
    # The shape of the nonce and of the additional data are the suite's.
    *((MBED_TLS, suite, BOTH) for suite in MBED_TLS.suites if suite not in {CCM_8, GCM}),
]


def with_each_combination() -> pytest.MarkDecorator:
    names = [
        f"{stack}-{suite.name.removeprefix('TLS_').replace('PSK_WITH_', '')}-{shape}"
        for stack, suite, shape in COMBINATIONS
    ]
    return pytest.mark.parametrize(("stack", "suite", "shape"), COMBINATIONS, ids=names)


with_each_stack = pytest.mark.parametrize("stack", IDENTIFIED, ids=str)


def send(server: OurServer, connection: Connection, data: bytes) -> None:
    connection.send(data, now=time.monotonic())
    server.flush()


def serve_hello(server: OurServer, client: PeerProcess, greeting: str = "hello") -> Connection:
    """Let the client say hello and hear our answer."""
    client.say(f"send {greeting}")
    server.run_until(
        lambda: f"heard {greeting}" in said(client, "received"), lambda: f"an answer for {client}"
    )
    return server.completed[0].connection


def say_hello(client: OurClient, server: PeerProcess, greeting: str = "hello") -> None:
    """Say hello and hear their answer."""
    client.send(greeting.encode())
    heard = f"heard {greeting}".encode()
    client.run_until(lambda: heard in client.received, lambda: f"an answer from {server}")


# --- what is negotiated, and what is on the wire ----------------------------------------------------


def check_both_sides(
    ours: OurServer | OurClient, connection: Connection, theirs: PeerProcess, shape: Shape
) -> None:
    length, their_cid = shape.negotiated
    our_cid = connection.connection_id
    assert len(our_cid) == length
    assert connection.peer_connection_id == their_cid
    negotiated = connection.negotiated
    assert negotiated is not None
    assert not negotiated.return_routability  # we offer it; neither peer knows it
    assert cid_said(theirs, "own-cid") == their_cid
    assert cid_said(theirs, "peer-cid") == our_cid
    protected_records(ours.datagrams_received, our_cid)
    protected_records(ours.datagrams_sent, their_cid)


@with_each_combination()
def test_their_client_talks_to_our_server(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, suite: CipherSuite, shape: Shape
):
    server = identified_meeting.our_server(shape.policy, suite=suite)
    client = identified_meeting.their_client(stack, server.port, suite=suite, cid=shape.theirs)
    connection = serve_hello(server, client)
    negotiated = connection.negotiated
    assert negotiated is not None
    assert negotiated.cipher_suite is suite
    check_both_sides(server, connection, client, shape)
    client.say("close")
    server.run_until(lambda: bool(server.causes), lambda: f"close_notify from {client}")
    assert server.causes == [PeerClose()]


@with_each_combination()
def test_our_client_talks_to_their_server(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, suite: CipherSuite, shape: Shape
):
    server, port = identified_meeting.their_server(stack, suite=suite, cid=shape.theirs)
    client = identified_meeting.our_client(shape.policy, port, suite=suite)
    client.connect(server.__str__)
    say_hello(client, server)
    check_both_sides(client, client.connection, server, shape)
    client.close()
    client.run_until(
        lambda: bool(client.causes) and "closed" in server.output, lambda: f"close_notify at {server}"
    )
    assert client.causes == [LocalClose()]


def test_their_client_and_our_server_show_certificates(
    identified_meeting: IdentifiedMeeting, pairs: dict[str, Pair]
):
    pair = pairs["p256"]
    server = identified_meeting.our_server(
        ConnectionIdPolicy(), suite=WITH_CERTIFICATE, credentials=[pair.server.ours("localhost")]
    )
    client = identified_meeting.their_client(
        MBED_TLS,
        server.port,
        suite=WITH_CERTIFICATE,
        cid=THEIRS,
        options=shown_and_trusted(pair.client, pair.server),
    )
    check_both_sides(server, serve_hello(server, client), client, BOTH)


def test_our_client_and_their_server_show_certificates(
    identified_meeting: IdentifiedMeeting, pairs: dict[str, Pair]
):
    pair = pairs["p256"]
    server, port = identified_meeting.their_server(
        MBED_TLS,
        suite=WITH_CERTIFICATE,
        cid=THEIRS,
        options=shown_and_trusted(pair.server, pair.client),
    )
    client = identified_meeting.our_client(
        ConnectionIdPolicy(), port, suite=WITH_CERTIFICATE, credentials=[pair.client.ours()]
    )
    client.connect(server.__str__)
    say_hello(client, server)
    check_both_sides(client, client.connection, server, BOTH)


def test_each_handshake_has_connection_ids_of_its_own_also_one_that_resumes_a_session(
    identified_meeting: IdentifiedMeeting,
):
    server = identified_meeting.our_server(ConnectionIdPolicy())
    client = identified_meeting.their_client(MBED_TLS, server.port, cid=THEIRS)
    first = serve_hello(server, client).connection_id
    server.datagrams_received.clear()
    server.datagrams_sent.clear()
    client.say("reconnect")
    client.say("send again")
    server.run_until(lambda: "heard again" in said(client, "received"), lambda: f"an answer for {client}")
    negotiated = [completed.connection.negotiated for completed in server.completed]
    assert [outcome is not None and outcome.resumed for outcome in negotiated] == [False, True]
    second = server.completed[1].connection
    assert second.connection_id != first
    assert cid_said(client, "peer-cid") == second.connection_id
    old, *new = records_of(server.datagrams_received, cid_length=8)
    assert (old.content_type, old.cid) == (TLS12_CID, first)  # close_notify
    assert {record.cid for record in new if record.epoch == 1} == {second.connection_id}


# --- padding ----------------------------------------------------------------------------------------


def plaintext_sizes(records: list[Record], suite: CipherSuite) -> set[int]:
    """With type and padding."""
    return {record.size - OVERHEAD[suite] for record in records}


@with_each_stack
@pytest.mark.parametrize("suite", [CCM_8, GCM], ids=lambda suite: suite.name)
def test_their_server_strips_our_padding(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, suite: CipherSuite
):
    server, port = identified_meeting.their_server(stack, suite=suite, cid=THEIRS)
    client = identified_meeting.our_client(ConnectionIdPolicy(padding=64), port, suite=suite)
    client.connect(server.__str__)
    greetings = ["h" * length for length in (1, 62, 63, 64, 65)]
    for greeting in greetings:
        say_hello(client, server, greeting)
    assert said(server, "received") == greetings
    sent = protected_records(client.datagrams_sent, bytes.fromhex(THEIRS))
    assert plaintext_sizes(sent, suite) == {FINISHED, 64, 128}


@with_each_stack
def test_their_client_strips_our_padding_and_we_theirs(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack
):
    server = identified_meeting.our_server(ConnectionIdPolicy(padding=64))
    client = identified_meeting.their_client(stack, server.port, cid=THEIRS)
    greetings = ["h" * length for length in (1, 14, 15, 16, 17)]
    for greeting in greetings:
        serve_hello(server, client, greeting)
    assert server.received == [greeting.encode() for greeting in greetings]
    assert said(client, "received") == [f"heard {greeting}" for greeting in greetings]
    sent = protected_records(server.datagrams_sent, bytes.fromhex(THEIRS))
    assert plaintext_sizes(sent, CCM_8) == {FINISHED, 64}
    # Mbed TLS fills its records too; Bouncy Castle does not.
    our_cid = server.completed[0].connection.connection_id
    received = protected_records(server.datagrams_received, our_cid)
    assert all(size % 16 == 0 for size in plaintext_sizes(received, CCM_8)) is (stack.padding == 16)


@with_each_stack
@pytest.mark.parametrize("padding", [1, 16])
def test_their_server_takes_a_datagram_filled_to_its_limit(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, padding: int
):
    server, port = identified_meeting.their_server(stack, cid=THEIRS)
    client = identified_meeting.our_client(ConnectionIdPolicy(padding=padding), port, mtu=600)
    client.connect(server.__str__)
    say_hello(client, server, "h" * client.connection.max_payload)
    assert 600 - padding < client.largest_sent <= 600


def test_padding_is_beyond_what_max_fragment_length_counts(identified_meeting: IdentifiedMeeting):
    server = identified_meeting.our_server(ConnectionIdPolicy(), answer=lambda data: b"heard " + data[:5])
    client = identified_meeting.their_client(MBED_TLS, server.port, cid=THEIRS, options=["fragment=1"])
    connection = serve_hello(server, client)
    assert connection.max_payload <= 512
    client.say(f"send {'h' * 512}")
    server.run_until(lambda: server.received[1:] == [b"h" * 512], lambda: f"a full record of {client}")
    received = protected_records(server.datagrams_received, connection.connection_id)
    assert max(plaintext_sizes(received, CCM_8)) == 512 + 16  # the type, and 15 bytes of padding


# --- when the client moves --------------------------------------------------------------------------


def at(port: int) -> tuple[str, int]:
    return "127.0.0.1", port


def moves(ours: OurServer | OurClient) -> list[tuple[Hashable, Hashable]]:
    """From where to where; neither peer knows return routability, so a newer record is all the proof."""
    changes = [event for event in ours.events if isinstance(event, PathChanged)]
    assert all(change.proof is PathProof.NEWER_RECORD for change in changes)
    return [(change.old, change.new) for change in changes]


@with_each_stack
@pytest.mark.parametrize("shape", [BOTH, ONLY_OURS], ids=str)
def test_our_server_follows_their_client(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, shape: Shape
):
    server = identified_meeting.our_server(shape.policy)
    client = identified_meeting.their_client(stack, server.port, cid=shape.theirs)
    connection = serve_hello(server, client)
    for greeting in ("second", "third"):
        old, new = connection.path, at(rebound(client))
        assert old != new
        serve_hello(server, client, greeting)
        assert connection.path == new
        assert moves(server)[-1] == (old, new)
    assert len(moves(server)) == 2
    send(server, connection, b"news")
    server.run_until(lambda: "news" in said(client, "received"), lambda: f"our news at {client}")
    assert len(server.completed) == 1
    client.say("close")
    server.run_until(lambda: bool(server.causes), lambda: f"close_notify from {client}")
    assert server.causes == [PeerClose()]


def test_without_a_connection_id_a_client_that_has_moved_is_nobody(identified_meeting: IdentifiedMeeting):
    server = identified_meeting.our_server(ConnectionIdPolicy(length=0))
    client = identified_meeting.their_client(MBED_TLS, server.port, cid=THEIRS)
    connection = serve_hello(server, client)
    old, heard = connection.path, len(server.datagrams_received)
    rebound(client)
    client.say("send lost")
    server.run_until(lambda: len(server.datagrams_received) > heard, lambda: f"a record of {client}")
    assert server.received == [b"hello"]
    assert connection.path == old


@with_each_stack
def test_our_server_tells_two_clients_apart_that_move(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack
):
    server = identified_meeting.our_server(ConnectionIdPolicy())
    first = identified_meeting.their_client(stack, server.port, cid="01")
    connection = serve_hello(server, first)
    # The other connection ID is the same: it is the client's, and names nothing here.
    second = identified_meeting.their_client(MBED_TLS, server.port, cid="01")
    serve_hello(server, second, "too")
    other = server.completed[1].connection
    ports = {rebound(first): connection, rebound(second): other}
    serve_hello(server, second, "second moved")
    serve_hello(server, first, "first moved")
    assert {connection.path, other.path} == {at(port) for port in ports}
    assert all(connection.path == at(port) for port, connection in ports.items())


@with_each_stack
@pytest.mark.parametrize("shape", [BOTH, ONLY_THEIRS], ids=str)
def test_their_server_follows_our_client(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, shape: Shape
):
    server, port = identified_meeting.their_server(stack, cid=shape.theirs)
    client = identified_meeting.our_client(shape.policy, port)
    client.connect(server.__str__)
    say_hello(client, server)
    for greeting in ("second", "third"):
        client.rebind()
        say_hello(client, server, greeting)
        assert said(server, "moved")[-1] == str(client.port)
    server.say("send news")
    client.run_until(lambda: b"news" in client.received, lambda: f"news from {server}")
    client.close()
    client.run_until(lambda: "closed" in server.output, lambda: f"close_notify at {server}")


# --- when the server moves --------------------------------------------------------------------------


@with_each_stack
@pytest.mark.parametrize("shape", [BOTH, ONLY_OURS], ids=str)
def test_our_client_follows_their_server(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, shape: Shape
):
    server, port = identified_meeting.their_server(stack, cid=shape.theirs)
    client = identified_meeting.our_client(shape.policy, port)
    client.connect(server.__str__)
    say_hello(client, server)
    new = at(rebound(server))
    server.say("send news")
    client.run_until(lambda: b"news" in client.received, lambda: f"news from {server}")
    assert moves(client) == [(at(port), new)]
    say_hello(client, server, "again")


@with_each_stack
def test_their_client_follows_our_server(identified_meeting: IdentifiedMeeting, stack: IdentifiedStack):
    server = identified_meeting.our_server(ConnectionIdPolicy())
    client = identified_meeting.their_client(stack, server.port, cid=THEIRS)
    connection = serve_hello(server, client)
    server.rebind()
    send(server, connection, b"news")
    server.run_until(lambda: "news" in said(client, "received"), lambda: f"our news at {client}")
    assert said(client, "moved") == [str(server.port)]
    serve_hello(server, client, "again")
