"""Small and large datagrams: the handshake is fragmented as the MTU asks, and data fills it to the last byte.

Identities are as long as the other side takes them. With 255 bytes, and an MTU of 256, ClientKeyExchange
has to be fragmented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import CertificateType, ClientAuthentication, ClientConfig, ServerConfig
from tests.interop import certified
from tests.interop.credentials import SERVER_NAME
from tests.interop.ours import COAP_GET, answer_to_coap, answer_to_hello
from tests.interop.stacks import CLIENTS, IP_AND_UDP_HEADERS, OPENSSL, SERVERS

if TYPE_CHECKING:
    from tests.interop.conftest import CertifiedMeeting, Meeting
    from tests.interop.credentials import Pair
    from tests.interop.stacks import Stack

pytestmark = pytest.mark.interop

CCM_8_OVERHEAD = 13 + 8 + 8
"""Bytes that a record with CCM_8 adds to its data: header, explicit nonce, tag."""
SMALL_MTU = 256
LONGEST_COAP_MESSAGE = 1024
"""Bytes; RFC 7252 §4.6 has implementations take 1152 and suggests 1024 of payload."""


@pytest.mark.parametrize("mtu", [256, 512, 1400])
@pytest.mark.parametrize("stack", CLIENTS, ids=str)
def test_their_client_talks_to_our_server_at_an_mtu_of(meeting: Meeting, stack: Stack, mtu: int):
    size = mtu - CCM_8_OVERHEAD

    def answer(data: bytes) -> bytes:
        if stack.speaks_coap:
            return answer_to_coap(data).ljust(min(size, LONGEST_COAP_MESSAGE), b".")
        return answer_to_hello(data)[:size].ljust(size, b".")

    identity = "d" * stack.longest_identity
    server = meeting.our_server(stack, mtu=mtu, keys={identity.encode(): [stack.key]}, answer=answer)
    client = meeting.their_client(stack, server.port, identity=identity, mtu=mtu)
    if stack.types_hello:
        client.say("hello".ljust(size - len("\n"), "."))
    server.run_until(lambda: "heard hello" in client.output, lambda: f"an answer for {client}")
    if stack.has_mtu:
        assert server.largest_received <= mtu
    if stack.types_hello:
        assert server.largest_received == mtu
    if not stack.speaks_coap:
        assert server.largest_sent == mtu


@pytest.mark.parametrize("mtu", [256, 512, 1400])
@pytest.mark.parametrize("stack", SERVERS, ids=str)
def test_our_client_talks_to_their_server_at_an_mtu_of(meeting: Meeting, stack: Stack, mtu: int):
    identity = "d" * stack.longest_identity
    # OpenSSL puts Finished into the datagram of a ticket without looking at its MTU.
    options = ["-no_ticket"] if stack is OPENSSL else []
    server, port = meeting.their_server(stack, identity=identity, mtu=mtu, options=options)
    client = meeting.our_client(stack, port, identity=identity, mtu=mtu)
    client.connect(server.__str__)
    if stack.speaks_coap:
        client.send(COAP_GET)
    else:
        hello = b"hello".ljust(client.connection.max_payload - len(b"\n"), b".") + b"\n"
        client.send(hello)
        assert client.largest_sent == mtu
        client.run_until(
            lambda: (
                hello == b"".join(client.received)
                if stack.echoes
                else hello.decode().strip() in server.output
            ),
            lambda: f"all of {hello!r} at {server}",
        )
    if stack.types_answer:
        server.say("heard hello".ljust(mtu - CCM_8_OVERHEAD - len("\n"), "."))
    client.run_until(lambda: bool(client.received), lambda: f"an answer from {server}")
    assert stack.answer in client.received[0]
    if stack.has_mtu:
        assert client.largest_received <= mtu


def test_a_hello_that_openssl_has_to_fragment_is_answered(meeting: Meeting):
    """With all its suites OpenSSL's hello takes two datagrams, before it has a cookie."""
    server = meeting.our_server(OPENSSL, mtu=256)
    client = meeting.their_client(OPENSSL, server.port, mtu=256, options=["-cipher", "ALL:PSK:@SECLEVEL=0"])
    client.say("hello")
    server.run_until(lambda: "heard hello" in client.output, lambda: f"an answer for {client}")
    # RFC 6347 §4.2.2: length is at offset 1 of the handshake header, fragment_length at 9.
    header = server.first_received[13:25]
    assert header[9:12] < header[1:4]


# --- certificates, which are several datagrams long ---------------------------------------------------

MTU_OPTIONS = {
    certified.OPENSSL: ["-mtu", str(SMALL_MTU + IP_AND_UDP_HEADERS)],
    certified.GNUTLS: ["--mtu", str(SMALL_MTU)],
}
"""For the stacks that take any; the others still have to put our fragments together."""


@pytest.mark.parametrize("stack", certified.STACKS, ids=str)
def test_their_client_reads_the_certificate_of_our_server_in_pieces(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: certified.CertifiedStack
):
    pair, mutual = pairs["rsa"], "rsa" in stack.kinds
    config = ServerConfig(
        mtu=SMALL_MTU,
        credentials=(pair.server.ours(),),
        client_authentication=ClientAuthentication.REQUIRED if mutual else ClientAuthentication.NONE,
    )
    server = certified_meeting.our_server(config)
    client = certified_meeting.their_client(
        stack,
        server.port,
        own=pair.client if mutual else None,
        trusts=pair.server,
        options=MTU_OPTIONS.get(stack, ()),
    )
    if stack.types_hello:
        client.say("hello")
    server.run_until(lambda: "heard hello" in client.output, lambda: f"an answer for {client}")
    if stack in MTU_OPTIONS:
        assert server.largest_received <= SMALL_MTU


@pytest.mark.parametrize("stack", certified.STACKS, ids=str)
def test_their_server_reads_the_certificate_of_our_client_in_pieces(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: certified.CertifiedStack
):
    pair, mutual = pairs["rsa"], "rsa" in stack.kinds and stack.asks_clients
    server, port = certified_meeting.their_server(
        stack,
        own=pair.server,
        trusts=pair.client if mutual else None,
        options=MTU_OPTIONS.get(stack, ()),
    )
    config = ClientConfig(
        mtu=SMALL_MTU,
        server_certificate_types=(CertificateType.X509,),
        server_name=SERVER_NAME,
        credentials=(pair.client.ours(),) if mutual else (),
    )
    client = certified_meeting.our_client(config, port)
    client.connect(server.__str__)
    if stack in MTU_OPTIONS:
        assert client.largest_received <= SMALL_MTU
    client.send(b"hello\n")
    if stack.types_answer:
        client.run_until(lambda: "hello" in server.output, server.__str__)
        server.say("heard hello")
    client.run_until(lambda: bool(client.received), lambda: f"an answer from {server}")
