"""Server name, application protocol and record sizes, as both sides see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import (
    AlertDescription,
    CertificateType,
    ClientConfig,
    PeerAlert,
    PeerIncompatible,
    ServerConfig,
)
from tests.interop.certified import GNUTLS, OPENSSL, CertifiedStack

if TYPE_CHECKING:
    from sansdtls import Negotiated
    from tests.interop.conftest import CertifiedMeeting
    from tests.interop.credentials import Pair
    from tests.interop.ours import OurClient, OurServer
    from tests.interop.process import PeerProcess

pytestmark = pytest.mark.interop

X509 = (CertificateType.X509,)
NAME = "meters.example"


def negotiated_by(server: OurServer, client: PeerProcess) -> Negotiated:
    server.run_until(lambda: bool(server.completed), lambda: f"a handshake with {client}")
    negotiated = server.completed[0].connection.negotiated
    assert negotiated is not None
    return negotiated


def sizes_received(ours: OurServer | OurClient) -> list[int]:
    return [len(data) for data in ours.received]


# --- server name ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "option"), [(OPENSSL, "-servername"), (GNUTLS, "--sni-hostname")], ids=["openssl", "gnutls"]
)
def test_their_client_is_shown_the_certificate_for_the_name_it_asks_for(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack, option: str
):
    named, unnamed = pairs["p384"].server.ours(NAME), pairs["p256"].server.ours()
    server = certified_meeting.our_server(ServerConfig(credentials=(unnamed, named)))
    for name, kind in ((NAME, "p384"), ("other.example", "p256")):
        client = certified_meeting.their_client(
            stack, server.port, trusts=pairs[kind].server, options=[option, name]
        )
        client.say("hello")
        server.run_until(lambda: "heard hello" in client.output, client.__str__)  # noqa: B023
        assert f"{kind} server" in client.output
        negotiated = server.completed[-1].connection.negotiated
        assert negotiated is not None
        assert negotiated.server_name == name


def test_openssl_hears_the_name_that_our_client_asks_for(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    named = pairs["p384"].server
    options = ["-servername", NAME, "-cert2", named.file(".pem"), "-key2", named.file(".key")]
    server, port = certified_meeting.their_server(OPENSSL, own=pairs["p256"].server, options=options)
    config = ClientConfig(server_certificate_types=X509, server_name=NAME)
    client = certified_meeting.our_client(config, port)
    client.connect(server.__str__)
    assert client.connection.peer is not None
    assert (client.connection.peer.certificate_chain or ())[:1] == (named.der,)
    expected = f'Hostname in TLS extension: "{NAME}"'
    client.run_until(lambda: expected in server.output, server.__str__)


# --- application protocol ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "options"),
    [(OPENSSL, ["-alpn", "mqtt,coap"]), (GNUTLS, ["--alpn", "mqtt", "--alpn", "coap"])],
    ids=["openssl", "gnutls"],
)
def test_their_client_and_our_server_agree_on_the_protocol_that_our_server_likes_best(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack, options: list[str]
):
    pair = pairs["p256"]
    config = ServerConfig(credentials=(pair.server.ours(),), alpn_protocols=(b"coap", b"mqtt"))
    server = certified_meeting.our_server(config)
    client = certified_meeting.their_client(stack, server.port, trusts=pair.server, options=options)
    assert negotiated_by(server, client).alpn_protocol == b"coap"
    expected = {OPENSSL: "ALPN protocol: coap", GNUTLS: "Application protocol: coap"}[stack]
    server.run_until(lambda: expected in client.output, client.__str__)


@pytest.mark.parametrize(
    ("stack", "options"),
    [(OPENSSL, ["-alpn", "mqtt,coap"]), (GNUTLS, ["--alpn", "mqtt", "--alpn", "coap"])],
    ids=["openssl", "gnutls"],
)
def test_our_client_and_their_server_agree_on_a_protocol(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack, options: list[str]
):
    server, port = certified_meeting.their_server(stack, own=pairs["p256"].server, options=options)
    config = ClientConfig(server_certificate_types=X509, alpn_protocols=(b"lwm2m", b"coap"))
    client = certified_meeting.our_client(config, port)
    client.connect(server.__str__)
    assert client.connection.negotiated is not None
    assert client.connection.negotiated.alpn_protocol == b"coap"


def test_openssl_is_refused_when_it_offers_other_protocols_only(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    pair = pairs["p256"]
    config = ServerConfig(credentials=(pair.server.ours(),), alpn_protocols=(b"coap",))
    server = certified_meeting.our_server(config)
    client = certified_meeting.their_client(
        OPENSSL, server.port, trusts=pair.server, options=["-alpn", "mqtt"]
    )
    server.run_until(lambda: "alert no application protocol" in client.output, client.__str__)
    (cause,) = server.causes
    assert isinstance(cause, PeerIncompatible)
    assert cause.description is AlertDescription.NO_APPLICATION_PROTOCOL


# --- record sizes -----------------------------------------------------------------------------------


def test_our_server_keeps_to_the_fragment_length_that_openssl_asks_for(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    pair = pairs["p256"]
    server = certified_meeting.our_server(ServerConfig(credentials=(pair.server.ours(),)))
    client = certified_meeting.their_client(
        OPENSSL, server.port, trusts=pair.server, options=["-maxfraglen", "512"]
    )
    client.say("hello".ljust(505, "."))
    server.run_until(lambda: "heard hello" in client.output, client.__str__)
    # The answer fills the 512 bytes.
    assert sizes_received(server) == [506]
    assert server.completed[0].connection.max_payload == 512
    # OpenSSL has taken note of our answer, and counts what it sends itself.
    client.say("hello".ljust(512, "."))
    server.run_until(lambda: "exceeds max fragment size" in client.output, client.__str__)


def test_openssl_keeps_to_the_fragment_length_that_our_client_asks_for(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    server, port = certified_meeting.their_server(OPENSSL, own=pairs["p256"].server)
    client = certified_meeting.our_client(
        ClientConfig(server_certificate_types=X509, max_fragment_length=512), port
    )
    client.connect(server.__str__)
    assert client.connection.max_payload == 512
    client.send(b"hello".ljust(511, b".") + b"\n")
    client.run_until(lambda: "hello...." in server.output, server.__str__)
    server.say("heard hello".ljust(511, "."))
    client.run_until(lambda: bool(client.received), server.__str__)
    assert sizes_received(client) == [512]
    server.say("heard hello".ljust(512, "."))
    client.run_until(lambda: "exceeds max fragment size" in server.output, server.__str__)
    client.run_until(lambda: bool(client.causes), server.__str__)
    assert client.causes == [PeerAlert(AlertDescription.INTERNAL_ERROR)]


def test_our_server_and_gnutls_keep_to_each_others_record_size_limit(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    pair = pairs["p256"]
    config = ServerConfig(credentials=(pair.server.ours(),), record_size_limit=600)
    server = certified_meeting.our_server(config)
    client = certified_meeting.their_client(
        GNUTLS, server.port, trusts=pair.server, options=["--recordsize", "512"]
    )
    client.say("hello".ljust(505, "."))
    server.run_until(lambda: "heard hello" in client.output, client.__str__)
    assert sizes_received(server) == [506]
    assert server.completed[0].connection.max_payload == 512
    client.say("hello".ljust(600, "."))
    server.run_until(lambda: "The transmitted packet is too large" in client.output, client.__str__)


def test_our_client_and_gnutls_keep_to_each_others_record_size_limit(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    options = ["--recordsize", "512"]
    server, port = certified_meeting.their_server(GNUTLS, own=pairs["p256"].server, options=options)
    config = ClientConfig(server_certificate_types=X509, record_size_limit=600)
    client = certified_meeting.our_client(config, port)
    client.connect(server.__str__)
    assert client.connection.max_payload == 512
    hello = b"hello".ljust(511, b".") + b"\n"
    client.send(hello)
    client.run_until(lambda: b"".join(client.received) == hello, server.__str__)
