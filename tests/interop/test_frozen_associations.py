"""Associations that we freeze and thaw: Bouncy Castle and Mbed TLS notice nothing of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from sansdtls import ConnectionIdPolicy, ConnectionThawed, PeerClose
from tests.interop.identified import IDENTIFIED, rebound, said

if TYPE_CHECKING:
    from tests.interop.identified import IdentifiedMeeting, IdentifiedStack

pytestmark = pytest.mark.interop

with_each_stack = pytest.mark.parametrize("stack", IDENTIFIED, ids=str)
with_and_without_id = pytest.mark.parametrize("cid", ["c0ffee", None], ids=["cid", "path"])


@with_each_stack
@with_and_without_id
def test_their_client_goes_on_with_a_server_that_was_restarted(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, cid: str | None
):
    server = identified_meeting.our_server(ConnectionIdPolicy())
    client = identified_meeting.their_client(stack, server.port, cid=cid)
    for greeting in ("first", "second", "third"):
        client.say(f"send {greeting}")
        server.run_until(
            lambda: f"heard {greeting}" in said(client, "received"),  # noqa: B023
            lambda: f"an answer for {client}",
        )
        server.restart()
        assert (len(server.server), server.server.frozen) == (0, 1)
        if cid is not None:
            rebound(client)
    client.say("close")
    server.run_until(lambda: bool(server.causes), lambda: f"close_notify from {client}")
    assert server.causes == [PeerClose()]
    assert len([event for event in server.events if isinstance(event, ConnectionThawed)]) == 3
    assert len(server.completed) == 1


@with_each_stack
def test_their_client_is_woken_by_data_from_a_server_that_was_restarted(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack
):
    server = identified_meeting.our_server(ConnectionIdPolicy())
    client = identified_meeting.their_client(stack, server.port, cid="c0ffee")
    client.say("send hello")
    server.run_until(lambda: "heard hello" in said(client, "received"), lambda: f"an answer for {client}")
    handle = b"c" + server.completed[0].connection.connection_id
    server.restart()
    now = time.monotonic()
    connection = server.server.wake(handle, now=now)
    assert connection is not None
    connection.send(b"news", now=now)
    server.run_until(lambda: "news" in said(client, "received"), lambda: f"our news at {client}")


@with_each_stack
@with_and_without_id
def test_their_server_goes_on_with_a_client_that_was_restarted(
    identified_meeting: IdentifiedMeeting, stack: IdentifiedStack, cid: str | None
):
    server, port = identified_meeting.their_server(stack, cid=cid)
    client = identified_meeting.our_client(ConnectionIdPolicy(), port)
    client.connect(server.__str__)
    for greeting in (b"first", b"second", b"third"):
        client.send(greeting)
        heard = b"heard " + greeting
        client.run_until(lambda: heard in client.received, lambda: f"an answer from {server}")  # noqa: B023
        client.restart()
        if cid is not None:
            client.rebind()
    client.close()
    client.run_until(lambda: "closed" in server.output, lambda: f"close_notify at {server}")
