"""The PSK identity hint, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import PskRequested
from tests.interop.stacks import LIBCOAP_GNUTLS, LIBCOAP_OPENSSL, OPENSSL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.interop.conftest import Meeting
    from tests.interop.stacks import Stack

pytestmark = pytest.mark.interop


@pytest.mark.parametrize(
    ("stack", "options"),
    [
        (OPENSSL, ["-psk_hint", "basement"]),
        (LIBCOAP_OPENSSL, ["-h", "basement"]),
        (LIBCOAP_GNUTLS, ["-h", "basement"]),
    ],
    ids=str,
)
def test_our_client_is_asked_for_its_key_with_the_hint_of_their_server(
    meeting: Meeting, stack: Stack, options: Sequence[str]
):
    server, port = meeting.their_server(stack, options=options)
    client = meeting.our_client(stack, port, asks_for_key=True)
    client.connect(server.__str__)
    (request,) = (event for event in client.events if isinstance(event, PskRequested))
    assert (request.identity, request.hint) == (b"dev1", b"basement")


def test_openssl_prints_the_hint_of_our_server(meeting: Meeting):
    server = meeting.our_server(OPENSSL, hint=b"basement")
    client = meeting.their_client(OPENSSL, server.port)
    server.run_until(lambda: "PSK identity hint: basement" in client.output, lambda: f"the hint at {client}")
