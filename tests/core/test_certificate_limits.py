"""What a certificate handshake may cost: sizes, fragments, slots given back."""

import attrs
import pytest

from sansdtls import (
    AlertDescription,
    ConnectionState,
    DiscardReason,
    HandshakeTimeout,
    Limits,
    PeerCertificateReceived,
    ProtocolViolation,
)
from sansdtls.testing import Network, Pair
from tests.core import raw
from tests.core.credentials import ECDSA_SHA256, shown
from tests.core.ecdhe_puppets import EcdheClient, asking_config, client_config
from tests.core.puppet import ServerRig


def long_credential(size: int):
    """A credential whose chain has about ``size`` bytes."""
    one = shown("p256").chain[1]
    return attrs.evolve(
        shown("p256").certificate(), chain=(shown("p256").chain[0], *[one] * (size // len(one)))
    )


# --- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [256, 1232, 9000])
def test_chains_of_15_kib_pass_in_both_directions(mtu):
    credential = long_credential(15_000)
    pair = Pair(
        client_config(credentials=(credential,), mtu=mtu),
        asking_config(credentials=(credential,), mtu=mtu),
        network=Network(mtu=mtu),
    )
    pair.handshake()
    assert pair.now < 1
    assert pair.client.peer == pair.server_connection.peer
    assert pair.client.peer is not None
    assert pair.client.peer.certificate_chain == credential.chain


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_chain_above_the_limit_is_refused(role):
    limits = {"limits": Limits(max_handshake_message_size=2000)}
    long_one, small = (long_credential(3000),), (shown("p256").certificate(),)
    if role == "client":
        configs = client_config(**limits), asking_config(credentials=long_one)
    else:
        configs = client_config(credentials=long_one), asking_config(credentials=small, **limits)
    pair = Pair(*configs)
    pair.run_for(5)
    (cause,) = pair.server_causes() if role == "server" else [pair.client_end.cause]
    assert isinstance(cause, ProtocolViolation)
    assert cause.description is AlertDescription.ILLEGAL_PARAMETER
    assert len(pair.server) == 0


def test_an_announced_chain_takes_no_memory_before_it_comes():
    client = EcdheClient(ServerRig(asking_config()), credential=shown("p256"))
    client.hello()
    for number in range(50):
        piece = raw.fragment(raw.CERTIFICATE, b"x", message_seq=2, offset=200 * number, total=16_000)
        client.give(client.record(raw.HANDSHAKE, piece))
    assert client.rig.server.statistics.reassembly_size < 50 * 80
    client.wait(200)
    assert client.rig.server.statistics.reassembly_size == 0


def test_pieces_of_a_chain_in_any_order_with_repetitions_are_put_together():
    client = EcdheClient(ServerRig(asking_config()), credential=shown("p256"))
    client.hello()
    body = client.certificate_body()
    whole = client.certificate()
    pieces = [
        raw.fragment(raw.CERTIFICATE, body[at : at + 70], message_seq=2, offset=at, total=len(body))
        for at in range(0, len(body), 50)
    ]
    assert len(whole) > 400
    for piece in [*pieces[::-2], *pieces[::2], *pieces]:
        client.give(client.record(raw.HANDSHAKE, piece))
    records = [
        client.key_exchange(),
        client.certificate_verify(),
        client.change_cipher_spec(),
        client.finished(),
    ]
    client.read_flight_6(client.give(*records))
    assert client.rig.connection.peer is not None
    assert client.rig.connection.peer.certificate_chain == shown("p256").chain


# --- slots ----------------------------------------------------------------------------------------------


def no_certificate(client: EcdheClient) -> None:
    client.give(client.certificate(bytes(3)))


def garbage(client: EcdheClient) -> None:
    client.give(client.certificate(raw.certificate([b"garbage"])))


def bad_share(client: EcdheClient) -> None:
    client.give(client.certificate(), client.message(raw.CLIENT_KEY_EXCHANGE, b"\x20" + bytes(32)))


def bad_signature(client: EcdheClient) -> None:
    client.give(client.certificate(), client.key_exchange())
    client.give(client.certificate_verify(raw.signed(ECDSA_SHA256, b"0")))


def rejected(client: EcdheClient) -> None:
    client.rig.verdict = AlertDescription.UNKNOWN_CA
    client.give(*client.flight_5())


def bad_finished(client: EcdheClient) -> None:
    client.give(client.certificate(), client.key_exchange(), client.certificate_verify())
    client.give(client.change_cipher_spec(), client.finished(bytes(12)))


def silence(client: EcdheClient) -> None:
    client.wait(200)


def silence_after_certificate(client: EcdheClient) -> None:
    client.give(client.certificate())
    client.wait(200)


def silence_after_certificate_verify(client: EcdheClient) -> None:
    client.give(client.certificate(), client.key_exchange(), client.certificate_verify())
    client.wait(200)


def no_answer_of_the_caller(client: EcdheClient) -> None:
    client.rig.answer_requests = False
    client.give(*client.flight_5())
    client.wait(200)


def keys_that_do_not_fit(client: EcdheClient) -> None:
    client.give(client.certificate(), client.key_exchange(), client.certificate_verify())
    finished = raw.fragment(raw.FINISHED, bytes(12), message_seq=client.message_seq)
    client.shared = bytes(32)
    client.derive_keys()
    for _ in range(3):
        client.give(client.change_cipher_spec(), client.record(raw.HANDSHAKE, finished, epoch=1))
        client.wait(3)


FAILURES = {
    no_certificate: "AuthenticationFailed.no_certificate",
    garbage: "ProtocolViolation",
    bad_share: "ProtocolViolation",
    bad_signature: "AuthenticationFailed.bad_signature",
    rejected: "AuthenticationFailed.peer_rejected",
    bad_finished: "AuthenticationFailed.bad_finished",
    silence: "HandshakeTimeout",
    silence_after_certificate: "HandshakeTimeout",
    silence_after_certificate_verify: "HandshakeTimeout",
    no_answer_of_the_caller: "HandshakeTimeout",
    keys_that_do_not_fit: "AuthenticationFailed.bad_finished",
}


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
def test_a_failed_certificate_handshake_of_any_kind_gives_its_slot_back_and_is_counted(fail):
    # CVE-2022-39368 Californium
    limit = 2
    rig = ServerRig(asking_config(limits=Limits(max_half_open=limit)))
    for attempt in range(3 * limit):
        client = EcdheClient(rig, credential=shown("p256"), random=bytes([attempt]) * 32)
        client.hello()
        fail(client)
        client.wait(0)
        statistics = rig.server.statistics
        assert statistics.half_open == statistics.associations == len(rig.server) == 0
        assert statistics.reassembly_size == 0
        assert statistics.handshakes_failed == {FAILURES[fail]: attempt + 1}
    assert rig.server.next_timeout() is None
    rig.verdict, rig.answer_requests = None, True
    EcdheClient(rig, credential=shown("p256"), random=b"9" * 32).handshake()
    assert rig.server.statistics.handshakes_completed == 1


def test_while_the_caller_thinks_about_one_client_others_get_in():
    rig = ServerRig(asking_config())
    rig.answer_requests = False
    slow = EcdheClient(rig, credential=shown("p256"), path="slow")
    slow.hello()
    slow.give(*slow.flight_5())
    rig.answer_requests = True
    for number in range(20):
        EcdheClient(
            rig, credential=shown("p384"), random=bytes([number]) * 32, path=f"quick {number}"
        ).handshake()
    assert len(rig.server) == 20
    assert rig.server.statistics.half_open == 1
    (request,) = [event for event in rig.events if getattr(event.connection, "path", None) == "slow"]
    assert isinstance(request, PeerCertificateReceived)
    request.connection.accept_peer(request, now=rig.now)
    slow.read_flight_6(rig.sent("slow"))
    assert len(rig.server) == 21


def test_a_client_that_waits_for_its_caller_ignores_repetitions_and_ends_in_time():
    pair = Pair(client_config(), asking_config())
    pair.judge_after = None
    pair.run_for(60)
    assert pair.client.state is ConnectionState.HANDSHAKING
    sent = len(pair.network.sent_by("client"))
    discarded = pair.client.statistics.records_discarded
    assert discarded[DiscardReason.DUPLICATE_HANDSHAKE_MESSAGE] > 3
    pair.run_for(200)
    assert len(pair.network.sent_by("client")) == sent
    assert isinstance(pair.client_end.cause, HandshakeTimeout)
