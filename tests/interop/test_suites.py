"""Every suite that the other stacks have, our server with their client and our client with their server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import LocalClose, PeerClose
from tests.interop.ours import COAP_GET
from tests.interop.stacks import CLIENTS, SERVERS

if TYPE_CHECKING:
    from sansdtls import CipherSuite
    from tests.interop.conftest import Meeting
    from tests.interop.stacks import Stack

pytestmark = pytest.mark.interop


def with_each_suite(stacks: tuple[Stack, ...], *, client: bool) -> pytest.MarkDecorator:
    pairs = [
        (stack, suite)
        for stack in stacks
        for suite in stack.suites
        if not client or suite not in stack.client_lacks
    ]
    names = [f"{stack}-{suite.name.removeprefix('TLS_').replace('PSK_WITH_', '')}" for stack, suite in pairs]
    return pytest.mark.parametrize(("stack", "suite"), pairs, ids=names)


@with_each_suite(CLIENTS, client=True)
def test_their_client_talks_to_our_server(meeting: Meeting, stack: Stack, suite: CipherSuite):
    server = meeting.our_server(stack, suite=suite)
    client = meeting.their_client(stack, server.port, suite=suite)
    if stack.types_hello:
        client.say("hello")
    server.run_until(lambda: "heard hello" in client.output, lambda: f"an answer for {client}")
    (completed,) = server.completed
    assert completed.psk_identity == b"dev1"
    negotiated = completed.connection.negotiated
    assert negotiated is not None
    assert negotiated.cipher_suite is suite
    assert negotiated.extended_master_secret is stack.has_extended_master_secret
    client.end_input()
    server.run_until(lambda: bool(server.causes), lambda: f"close_notify from {client}")
    assert server.causes == [PeerClose()]


@with_each_suite(SERVERS, client=False)
def test_our_client_talks_to_their_server(meeting: Meeting, stack: Stack, suite: CipherSuite):
    server, port = meeting.their_server(stack, suite=suite)
    client = meeting.our_client(stack, port, suite=suite)
    client.connect(server.__str__)
    negotiated = client.connection.negotiated
    assert negotiated is not None
    assert negotiated.cipher_suite is suite
    assert negotiated.extended_master_secret is stack.has_extended_master_secret
    client.send(COAP_GET if stack.speaks_coap else b"hello\n")
    if stack.types_answer:
        client.run_until(lambda: "hello" in server.output, lambda: f"hello at {server}")
        server.say("heard hello")
    client.run_until(lambda: bool(client.received), lambda: f"an answer from {server}")
    assert stack.answer in client.received[0]
    client.close()
    expected = stack.server_sees_close
    client.run_until(
        lambda: bool(client.causes) and (expected is None or expected in server.output),
        lambda: f"the end of our connection, with close_notify at {server}",
    )
    assert client.causes == [LocalClose()]
