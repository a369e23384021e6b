"""Resumption by session ticket and by session ID, both ways, with openssl and gnutls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
import pytest

from sansdtls import (
    AlertDescription,
    CertificateType,
    ClientAuthentication,
    ClientConfig,
    Peer,
    ResumptionPolicy,
    ServerConfig,
    Session,
)
from tests.interop import stacks
from tests.interop.certified import GNUTLS, OPENSSL, CertifiedStack
from tests.interop.credentials import SERVER_NAME

if TYPE_CHECKING:
    from sansdtls import Connection, PeerCertificateReceived, PeerRawKeyReceived
    from tests.interop.conftest import CertifiedMeeting, Meeting
    from tests.interop.credentials import Pair
    from tests.interop.ours import OurServer
    from tests.interop.process import PeerProcess

pytestmark = pytest.mark.interop

TICKETS, IDS = ResumptionPolicy(cache_size=0), ResumptionPolicy(tickets=False)


@attrs.frozen(kw_only=True)
class Way:
    """How a session is remembered, and whether the client has a certificate."""

    ticket: bool
    mutual: bool

    def __str__(self) -> str:
        return f"{'ticket' if self.ticket else 'id'}-{'mutual' if self.mutual else 'server'}"


with_each_way = pytest.mark.parametrize(
    "way",
    [Way(ticket=ticket, mutual=mutual) for ticket in (True, False) for mutual in (False, True)],
    ids=str,
)
with_each_stack = pytest.mark.parametrize("stack", [OPENSSL, GNUTLS], ids=str)


def _server_config(pair: Pair, way: Way) -> ServerConfig:
    return ServerConfig(
        credentials=(pair.server.ours(),),
        client_authentication=ClientAuthentication.REQUIRED if way.mutual else ClientAuthentication.NONE,
        resumption=TICKETS if way.ticket else IDS,
    )


def _client_config(pair: Pair, way: Way, session: Session | None) -> ClientConfig:
    return ClientConfig(
        server_certificate_types=(CertificateType.X509,),
        server_name=SERVER_NAME,
        credentials=(pair.client.ours(),) if way.mutual else (),
        session=session,
        request_ticket=way.ticket,
    )


def _resumed(server: OurServer) -> list[bool]:
    """Of each handshake, whether it resumed a session."""
    found = []
    for completed in server.completed:
        assert completed.connection.negotiated is not None
        found.append(completed.connection.negotiated.resumed)
    return found


Connect = Callable[[Sequence[str]], "PeerProcess"]
"""Starts their client with further options."""


def come_twice(connect: Connect, stack: CertifiedStack, server: OurServer, *, ticket: bool) -> PeerProcess:
    """Their client connects to our server, ends, and comes back with the session; the last one is returned."""
    if stack is GNUTLS:
        client = connect(["--resume", *([] if ticket else ["--noticket"])])
    else:
        no_ticket = [] if ticket else ["-no_ticket"]
        first = connect(["-sess_out", "session", *no_ticket])
        first.say("hello")
        server.run_until(lambda: "heard hello" in first.output, first.__str__)
        first.end_input()
        server.run_until(lambda: bool(server.causes), first.__str__)
        client = connect(["-sess_in", "session", *no_ticket])
    server.run_until(lambda: len(server.completed) == 2, client.__str__)
    client.say("hello")
    server.run_until(lambda: "heard hello" in client.output, client.__str__)
    return client


def connecting(
    meeting: CertifiedMeeting, stack: CertifiedStack, pair: Pair, server: OurServer, *, mutual: bool
) -> Connect:
    own = pair.client if mutual else None
    return lambda options: meeting.their_client(
        stack, server.port, own=own, trusts=pair.server, options=options
    )


NO_TICKET = {OPENSSL: "-no_ticket", GNUTLS: "--noticket"}
RESUMED = {OPENSSL: "Reused, TLSv1.2", GNUTLS: "*** This is a resumed session"}


@with_each_way
@with_each_stack
def test_their_client_resumes_with_our_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack, way: Way
):
    pair = pairs["p256"]
    server = certified_meeting.our_server(_server_config(pair, way))
    connect = connecting(certified_meeting, stack, pair, server, mutual=way.mutual)
    client = come_twice(connect, stack, server, ticket=way.ticket)
    assert _resumed(server) == [False, True]
    assert RESUMED[stack] in client.output
    first, second = (completed.connection.peer for completed in server.completed)
    assert first == second


@with_each_stack
def test_their_client_whose_certificate_is_no_longer_good_cannot_resume(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack
):
    def judge(shown: PeerCertificateReceived | PeerRawKeyReceived) -> AlertDescription | None:
        return AlertDescription.CERTIFICATE_REVOKED if shown.resumption else None

    pair, way = pairs["p256"], Way(ticket=True, mutual=True)
    server = certified_meeting.our_server(_server_config(pair, way), judge=judge)
    connect = connecting(certified_meeting, stack, pair, server, mutual=way.mutual)
    client = come_twice(connect, stack, server, ticket=way.ticket)
    assert _resumed(server) == [False, False]
    assert RESUMED[stack] not in client.output


def test_their_client_makes_a_full_handshake_where_our_server_forgets_sessions(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    # openssl does not come back where it was given no session.
    pair, way = pairs["p256"], Way(ticket=True, mutual=False)
    server = certified_meeting.our_server(attrs.evolve(_server_config(pair, way), resumption=None))
    connect = connecting(certified_meeting, GNUTLS, pair, server, mutual=False)
    come_twice(connect, GNUTLS, server, ticket=True)
    assert _resumed(server) == [False, False]


@with_each_way
@with_each_stack
def test_our_client_resumes_with_their_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack, way: Way
):
    pair = pairs["p256"]
    server, port = certified_meeting.their_server(
        stack,
        own=pair.server,
        trusts=pair.client if way.mutual else None,
        options=[] if way.ticket else [NO_TICKET[stack]],
    )
    first = _visit(certified_meeting, stack, server, _client_config(pair, way, None), port)
    session = first.session
    assert session is not None
    assert bool(session.ticket) is way.ticket
    saved = Session.from_bytes(session.to_bytes())
    second = _visit(certified_meeting, stack, server, _client_config(pair, way, saved), port)
    _check_resumed(first, second)


def _visit(
    meeting: CertifiedMeeting, stack: CertifiedStack, server: PeerProcess, config: ClientConfig, port: int
) -> Connection:
    """Our client connects, exchanges a line and closes."""
    client = meeting.our_client(config, port)
    client.connect(server.__str__)
    hello = f"hello from {client.port}\n"
    client.send(hello.encode())
    if stack.types_answer:
        client.run_until(lambda: hello in server.output, server.__str__)
        server.say("heard hello")
    client.run_until(lambda: bool(client.received), server.__str__)
    client.close()
    return client.connection


def _check_resumed(first: Connection, second: Connection) -> None:
    assert first.negotiated is not None
    assert second.negotiated is not None
    assert (first.negotiated.resumed, second.negotiated.resumed) == (False, True)
    assert first.peer == second.peer


# --- with pre-shared keys and raw public keys -------------------------------------------------------

WITH_PSK = {OPENSSL: stacks.OPENSSL, GNUTLS: stacks.GNUTLS}
with_ticket_or_id = pytest.mark.parametrize("ticket", [True, False], ids=["ticket", "id"])


@with_ticket_or_id
@with_each_stack
def test_their_client_with_a_key_resumes_with_our_server(
    meeting: Meeting, stack: CertifiedStack, ticket: bool
):
    server = meeting.our_server(WITH_PSK[stack])
    client = come_twice(
        lambda options: meeting.their_client(WITH_PSK[stack], server.port, options=options),
        stack,
        server,
        ticket=ticket,
    )
    assert _resumed(server) == [False, True]
    assert RESUMED[stack] in client.output
    assert [completed.psk_identity for completed in server.completed] == [b"dev1", b"dev1"]


def test_their_client_with_another_key_by_now_does_not_resume(meeting: Meeting):
    old, new = stacks.OPENSSL.key, bytes(16)
    keys = {b"dev1": [old]}
    server = meeting.our_server(stacks.OPENSSL, keys=keys)

    def connect(options: Sequence[str]) -> PeerProcess:
        key = new if "-sess_in" in options else old
        keys[b"dev1"] = [key]
        return meeting.their_client(stacks.OPENSSL, server.port, key=key, options=options)

    come_twice(connect, OPENSSL, server, ticket=True)
    assert _resumed(server) == [False, False]


@with_ticket_or_id
@with_each_stack
def test_our_client_with_a_key_resumes_with_their_server(
    meeting: Meeting, certified_meeting: CertifiedMeeting, stack: CertifiedStack, ticket: bool
):
    server, port = meeting.their_server(WITH_PSK[stack], options=[] if ticket else [NO_TICKET[stack]])
    config = ClientConfig(psk_identity=b"dev1", psk_key=WITH_PSK[stack].key, request_ticket=ticket)
    first = _visit(certified_meeting, stack, server, config, port)
    second = _visit(certified_meeting, stack, server, attrs.evolve(config, session=first.session), port)
    _check_resumed(first, second)


@with_ticket_or_id
def test_gnutls_with_a_raw_key_resumes_with_our_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], ticket: bool
):
    pair = pairs["p256"]
    config = ServerConfig(
        credentials=(pair.server.ours_raw(),),
        client_authentication=ClientAuthentication.REQUIRED,
        client_certificate_types=(CertificateType.RAW_PUBLIC_KEY,),
    )
    server = certified_meeting.our_server(config)
    client = come_twice(
        lambda options: certified_meeting.their_client(
            GNUTLS, server.port, own=pair.client, raw=True, options=options
        ),
        GNUTLS,
        server,
        ticket=ticket,
    )
    assert _resumed(server) == [False, True]
    assert RESUMED[GNUTLS] in client.output
    assert server.completed[1].connection.peer == Peer(raw_public_key=pair.client.spki)


@with_ticket_or_id
def test_our_client_with_a_raw_key_resumes_with_gnutls(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], ticket: bool
):
    pair = pairs["p256"]
    options = [] if ticket else [NO_TICKET[GNUTLS]]
    server, port = certified_meeting.their_server(
        GNUTLS, own=pair.server, trusts=pair.client, raw=True, options=options
    )
    config = ClientConfig(
        server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,),
        credentials=(pair.client.ours_raw(),),
        request_ticket=ticket,
    )
    first = _visit(certified_meeting, GNUTLS, server, config, port)
    second = _visit(certified_meeting, GNUTLS, server, attrs.evolve(config, session=first.session), port)
    _check_resumed(first, second)
    assert second.peer == Peer(raw_public_key=pair.server.spki)
