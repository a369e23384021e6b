"""Wrong keys and unknown identities: who is told what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import AuthenticationFailed, AuthenticationProblem, ConnectionTerminated, RetransmitPolicy
from tests.interop.stacks import BOUNCY_CASTLE, GNUTLS, MBEDTLS, OPENSSL

if TYPE_CHECKING:
    from tests.interop.conftest import Meeting
    from tests.interop.stacks import Stack

pytestmark = pytest.mark.interop

WRONG_KEY = bytes(16)
IMPATIENT = RetransmitPolicy(initial_timeout=0.25, max_retransmissions=3, handshake_timeout=5.0)
"""Our side decides after two periods of retransmission that a key is wrong."""


@pytest.mark.parametrize(
    ("identity", "problem"),
    [("dev1", AuthenticationProblem.WRONG_KEY), ("dev2", AuthenticationProblem.UNKNOWN_IDENTITY)],
    ids=["wrong-key", "unknown-identity"],
)
@pytest.mark.parametrize("stack", [OPENSSL, GNUTLS, BOUNCY_CASTLE, MBEDTLS], ids=str)
def test_their_client_is_told_decrypt_error_by_our_server(
    meeting: Meeting, stack: Stack, identity: str, problem: AuthenticationProblem
):
    server = meeting.our_server(stack, retransmit=IMPATIENT)
    client = meeting.their_client(stack, server.port, identity=identity, key=WRONG_KEY)
    server.run_until(
        lambda: (stack.sees_decrypt_error or "failed") in client.output, lambda: f"decrypt_error at {client}"
    )
    assert server.causes == [AuthenticationFailed(problem=problem, identity=identity.encode())]
    assert isinstance(server.events[-1], ConnectionTerminated)
    assert len(server.server) == 0
