"""Wrong keys and unknown identities: who is told what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    ConnectionTerminated,
    HandshakeTimeout,
    PeerAlert,
    RetransmitPolicy,
)
from tests.interop.records import records_of
from tests.interop.stacks import BOUNCY_CASTLE, CLIENTS, OPENSSL, TINYDTLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.interop.conftest import Meeting
    from tests.interop.stacks import Stack

pytestmark = pytest.mark.interop

WRONG_KEY = b"not the same key"
IMPATIENT = RetransmitPolicy(initial_timeout=0.5)
ALL_THE_TIME = RetransmitPolicy().handshake_timeout
"""Seconds. None of them is waited for, and none is missing to a peer that is slow."""


def finished(datagrams: Sequence[bytes]) -> int:
    """How often there is the only protected record that a handshake with a wrong key comes to."""
    return sum(record.epoch == 1 for record in records_of(datagrams, cid_length=0))


@pytest.mark.parametrize(
    ("identity", "problem"),
    [("dev1", AuthenticationProblem.WRONG_KEY), ("dev2", AuthenticationProblem.UNKNOWN_IDENTITY)],
    ids=["wrong-key", "unknown-identity"],
)
@pytest.mark.parametrize(
    "stack", [stack for stack in CLIENTS if stack.sees_decrypt_error is not None], ids=str
)
def test_their_client_is_told_decrypt_error_by_our_server(
    meeting: Meeting, stack: Stack, identity: str, problem: AuthenticationProblem
):
    server = meeting.our_server(stack)
    client = meeting.their_client(stack, server.port, identity=identity, key=WRONG_KEY)
    expected = stack.sees_decrypt_error
    assert expected is not None
    heard = 0
    while not server.causes:
        server.run_until(
            lambda: finished(server.datagrams_received) > heard or bool(server.causes),  # noqa: B023
            lambda: f"Finished of {client}",
        )
        if server.causes:
            break
        heard = finished(server.datagrams_received)
        # A key is wrong when Finished could not be decrypted before and after our flight was repeated; or, of a client that does not
        # repeat its own, at the deadline. Their patience is short, libcoap's 5 s; so our timers run out at once.
        if stack.repeats_itself:
            server.skip_to_timer()
        else:
            server.skip(ALL_THE_TIME)
        server.turn()
    server.run_until(lambda: expected in client.output, lambda: f"decrypt_error at {client}")
    assert server.causes == [AuthenticationFailed(problem=problem, identity=identity.encode())]
    assert isinstance(server.events[-1], ConnectionTerminated)
    assert len(server.server) == 0


@pytest.mark.parametrize(
    ("stack", "identity", "alert"),
    [
        (BOUNCY_CASTLE, "dev1", AlertDescription.BAD_RECORD_MAC),
        (BOUNCY_CASTLE, "dev2", AlertDescription.UNKNOWN_PSK_IDENTITY),
        (TINYDTLS, "dev2", AlertDescription.INTERNAL_ERROR),
    ],
    ids=["bouncycastle-wrong-key", "bouncycastle-unknown-identity", "tinydtls-unknown-identity"],
)
def test_our_client_hears_the_alert_of_their_server(
    meeting: Meeting, stack: Stack, identity: str, alert: AlertDescription
):
    server, port = meeting.their_server(stack)
    client = meeting.our_client(stack, port, identity=identity, key=WRONG_KEY, retransmit=IMPATIENT)
    client.run_until(lambda: bool(client.causes), lambda: f"an alert from {server}")
    assert client.causes == [PeerAlert(alert, authenticated=False)]


def test_our_client_times_out_where_a_server_keeps_silent_about_its_wrong_key(meeting: Meeting):
    server, port = meeting.their_server(OPENSSL)
    soon = RetransmitPolicy(initial_timeout=0.1)
    client = meeting.our_client(OPENSSL, port, key=WRONG_KEY, retransmit=soon)
    # It has had the time to say something before the second.
    client.run_until(lambda: finished(client.datagrams_sent) == 2, lambda: f"a repetition for {server}")
    client.skip(ALL_THE_TIME)
    client.run_until(lambda: bool(client.causes), lambda: f"the end of it with {server}")
    assert client.causes == [HandshakeTimeout("AWAIT_SESSION_TICKET")]
