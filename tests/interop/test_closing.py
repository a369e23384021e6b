"""close_notify from our side; that theirs reaches us is in ``test_suites.py``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from sansdtls import LocalClose, PeerClose
from tests.interop.stacks import CLIENTS, OPENSSL

if TYPE_CHECKING:
    from tests.interop.conftest import Meeting
    from tests.interop.stacks import Stack

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("stack", [stack for stack in CLIENTS if stack.client_sees_close], ids=str)
def test_their_client_sees_that_our_server_has_closed(meeting: Meeting, stack: Stack):
    server = meeting.our_server(stack)
    client = meeting.their_client(stack, server.port)
    server.run_until(lambda: bool(server.completed), lambda: f"a handshake with {client}")
    server.completed[0].connection.close(now=time.monotonic())
    assert stack.client_sees_close is not None
    expected = stack.client_sees_close
    server.run_until(lambda: expected in client.output, lambda: f"close_notify at {client}")
    assert server.causes == [LocalClose()]
    assert len(server.server) == 0


def test_our_client_sees_that_openssl_s_server_has_closed(meeting: Meeting):
    server, port = meeting.their_server(OPENSSL)
    client = meeting.our_client(OPENSSL, port)
    client.connect(server.__str__)
    server.say("Q")
    client.run_until(lambda: bool(client.causes), lambda: f"close_notify from {server}")
    assert client.causes == [PeerClose()]
