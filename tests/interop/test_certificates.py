"""Certificates: every suite, group, signature and kind of key that the other stacks offer.

The other side is told what to use, so ours has to find it among all that it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from sansdtls import (
    DEFAULT_CIPHER_SUITES,
    CertificateType,
    CipherSuite,
    ClientAuthentication,
    ClientConfig,
    NamedGroup,
    ServerConfig,
    SignatureScheme,
)
from tests.interop.certified import KIND_OF_SCHEME, STACKS, CertifiedStack, kind_of
from tests.interop.credentials import SERVER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sansdtls import Connection
    from tests.interop.conftest import CertifiedMeeting
    from tests.interop.credentials import Pair

pytestmark = pytest.mark.interop


@attrs.frozen(kw_only=True)
class Row:
    """One handshake. ``None`` = whatever both sides like best."""

    stack: CertifiedStack
    kind: str
    """Of both sides' keys."""
    mutual: bool
    suite: CipherSuite | None = None
    group: NamedGroup | None = None
    scheme: SignatureScheme | None = None

    def __str__(self) -> str:
        told = [word.name for word in (self.suite, self.group, self.scheme) if word is not None]
        told = [name.removeprefix("TLS_ECDHE_") for name in told]
        return "-".join([self.stack.name, *(told or [self.kind])])

    def cipher_suites(self) -> tuple[CipherSuite, ...]:
        """Ours: all where the other side names the one to be taken."""
        if self.suite is None or self.stack.takes_suite:
            return DEFAULT_CIPHER_SUITES
        return (self.suite,)

    def groups(self) -> tuple[NamedGroup, ...]:
        return tuple(NamedGroup) if self.group is None or self.stack.takes_group else (self.group,)

    def check(self, connection: Connection) -> None:
        negotiated = connection.negotiated
        assert negotiated is not None
        assert negotiated.cipher_suite is self.suite or self.suite is None
        assert negotiated.group is self.group or self.group is None
        assert negotiated.extended_master_secret
        assert not negotiated.resumed


def _rows(*, server: bool) -> Iterator[Row]:
    for stack in STACKS:
        schemes, kinds, mutual = stack.schemes, stack.kinds, True
        if server:
            schemes = stack.server_schemes or schemes
            kinds = stack.server_kinds or kinds
            mutual = stack.asks_clients
        for suite in stack.suites:
            yield Row(stack=stack, kind=kind_of(suite), mutual=False, suite=suite)
        # A group also bounds the curves of certificates (RFC 8422 §5.1.1), so those are RSA here.
        for group in stack.groups:
            yield Row(stack=stack, kind="rsa", mutual=False, group=group)
        for scheme in schemes:
            yield Row(stack=stack, kind=KIND_OF_SCHEME[scheme], mutual=mutual, scheme=scheme)
        for kind in kinds:
            yield Row(stack=stack, kind=kind, mutual=mutual)


@pytest.mark.parametrize("row", list(_rows(server=False)), ids=str)
def test_their_client_talks_to_our_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], row: Row
):
    pair = pairs[row.kind]
    config = ServerConfig(
        psk=False,
        cipher_suites=row.cipher_suites(),
        groups=row.groups(),
        credentials=(pair.server.ours(),),
        client_authentication=ClientAuthentication.REQUIRED if row.mutual else ClientAuthentication.NONE,
    )
    server = certified_meeting.our_server(config)
    client = certified_meeting.their_client(
        row.stack,
        server.port,
        suite=row.suite,
        group=row.group,
        scheme=row.scheme,
        own=pair.client if row.mutual else None,
        trusts=pair.server,
    )
    if row.stack.types_hello:
        client.say("hello")
    server.run_until(lambda: "heard hello" in client.output, lambda: f"an answer for {client}")
    (completed,) = server.completed
    row.check(completed.connection)
    peer = completed.connection.peer
    assert peer is not None
    assert (peer.certificate_chain or ())[:1] == ((pair.client.der,) if row.mutual else ())


@pytest.mark.parametrize("row", list(_rows(server=True)), ids=str)
def test_our_client_talks_to_their_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], row: Row
):
    pair = pairs[row.kind]
    server, port = certified_meeting.their_server(
        row.stack,
        suite=row.suite,
        group=row.group,
        scheme=row.scheme,
        own=pair.server,
        trusts=pair.client if row.mutual else None,
    )
    config = ClientConfig(
        cipher_suites=row.cipher_suites(),
        groups=row.groups(),
        server_certificate_types=(CertificateType.X509,),
        server_name=SERVER_NAME,
        credentials=(pair.client.ours(),) if row.mutual else (),
    )
    client = certified_meeting.our_client(config, port)
    client.connect(server.__str__)
    row.check(client.connection)
    peer = client.connection.peer
    assert peer is not None
    assert (peer.certificate_chain or ())[:1] == (pair.server.der,)
    client.send(b"hello\n")
    if row.stack.types_answer:
        client.run_until(lambda: "hello" in server.output, lambda: f"hello at {server}")
        server.say("heard hello")
    client.run_until(lambda: bool(client.received), lambda: f"an answer from {server}")
    assert row.stack.answer in client.received[0]
