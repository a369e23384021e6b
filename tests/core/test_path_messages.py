"""The messages of RFC 9853 in themselves, and what becomes of bad ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import (
    AlertDescription,
    ConnectionState,
    ConnectionTerminated,
    DiscardReason,
    ProtocolViolation,
)
from sansdtls.errors import DecodeError
from sansdtls.iana import PathMessageType
from sansdtls.wire.return_routability import (
    PathMessage,
    decode_path_message_untrusted,
    encode_path_message,
)
from tests.core.roaming import (
    AWAY,
    CHALLENGE,
    CHECK,
    DROP,
    HOME,
    NO_CHECK,
    RESPONSE,
    Roaming,
    connecting,
    data_in,
)

# --- the codec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message_type", "encoded"),
    [
        (PathMessageType.PATH_CHALLENGE, "000102030405060708"),
        (PathMessageType.PATH_RESPONSE, "010102030405060708"),
        (PathMessageType.PATH_DROP, "020102030405060708"),
    ],
)
def test_a_message_is_a_type_and_a_cookie_of_eight_bytes(message_type, encoded):
    cookie = bytes(range(1, 9))
    assert encode_path_message(message_type, cookie).hex() == encoded
    assert decode_path_message_untrusted(bytes.fromhex(encoded)) == PathMessage(message_type, cookie)


@given(st.sampled_from(PathMessageType), st.binary(min_size=8, max_size=8))
def test_what_is_encoded_is_decoded(message_type, cookie):
    encoded = encode_path_message(message_type, cookie)
    assert decode_path_message_untrusted(encoded) == (message_type, cookie)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_message_or_unknown_or_a_decode_error(fragment):
    try:
        message = decode_path_message_untrusted(fragment)
    except DecodeError:
        assert not fragment or (fragment[0] <= DROP and len(fragment) != 9)
    else:
        if message is None:
            assert fragment[0] > DROP
        else:
            assert encode_path_message(*message) == fragment


# --- on the wire --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [HOME, AWAY])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x00" + b"c" * 7,
        b"\x00" + b"c" * 9,
        b"\x01" + b"c" * 7,
        b"\x02" + b"c" * 100,
        b"\x03" + b"c" * 8,
        b"\x03",
        b"\xff" * 9,
    ],
    ids=bytes.hex,
)
def test_a_malformed_message_or_one_of_an_unknown_type_is_counted_and_not_answered(content, path):
    # RFC 9853 §4: unknown types are to be ignored gracefully. RFC 9146 §6: "silently discard" what is invalid.
    roaming = Roaming()
    assert roaming.give(roaming.made(CHECK, content), path) == []
    assert roaming.connection.statistics.records_discarded == {DiscardReason.BAD_PATH_MESSAGE: 1}
    assert [sent.kind for sent in roaming.sent()] == (["challenge"] if path == AWAY else [])
    assert data_in(roaming.say(b"goes on", path)) == [b"goes on"]


@pytest.mark.parametrize("kind", [CHALLENGE, RESPONSE, DROP])
@pytest.mark.parametrize(
    ("server", "client"),
    [(NO_CHECK, {"length": 0}), ({}, {"length": 0, **NO_CHECK})],
    ids=["server does not", "client does not"],
)
def test_without_both_sides_agreement_a_message_is_unexpected(server, client, kind):
    # RFC 9853 §3: "MUST NOT use RRC unless both sides have successfully exchanged rrc extensions"
    roaming = Roaming(server, client)
    assert roaming.connection.negotiated is not None
    assert not roaming.connection.negotiated.return_routability
    roaming.give(roaming.check(kind, b"c" * 8), HOME)
    (cause,) = [event.cause for event in roaming.events if isinstance(event, ConnectionTerminated)]
    assert isinstance(cause, ProtocolViolation)
    assert cause.description is AlertDescription.UNEXPECTED_MESSAGE
    assert roaming.connection.state is ConnectionState.CLOSED


def test_a_client_refuses_messages_it_did_not_agree_on_too():
    roaming = Roaming(NO_CHECK)
    datagram = roaming.connection._layer.write.record(CHECK, bytes(9))
    (event,) = roaming.device.receive_datagram(datagram, now=roaming.now, path="server")
    assert isinstance(event, ConnectionTerminated)
    assert isinstance(event.cause, ProtocolViolation)
    assert event.cause.description is AlertDescription.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("client", [{"length": 0}, {"length": 5}], ids=["without own ID", "with own ID"])
def test_a_client_answers_a_challenge_at_once_once_and_with_its_cookie(client):
    # RFC 9853 §5.4; without an ID of the client the message is in a record of type 27, in clear.
    roaming = Roaming(client=client)
    datagram = roaming.connection._layer.write.record(CHECK, b"\x00" + b"saltsalt")
    assert (datagram[0] == CHECK) is (client["length"] == 0)
    assert roaming.device.receive_datagram(datagram, now=roaming.now, path="server") == []
    (outgoing,) = roaming.device.datagrams_to_send()
    assert outgoing.path == "server"
    assert roaming.device.receive_datagram(datagram, now=roaming.now, path="server") == []
    assert roaming.device.datagrams_to_send() == []  # a copy is a replay
    roaming.give(outgoing.data, HOME)
    assert roaming.counts == (0, 0, 1)  # nobody had asked, but an answer it was


def test_a_challenge_that_overtakes_finished_does_not_end_the_handshake():
    # The server has finished, the client moves and repeats its flight: the challenge may come before Finished.
    pair = connecting()
    pair.run_until(lambda: len(pair.server) == 1)
    held = pair.network.arrivals()
    challenge = pair.server_connection._layer.write.record(CHECK, b"\x00" + b"saltsalt")
    pair.client_end.events += pair.client.receive_datagram(challenge, now=pair.now, path="server")
    for datagram in held:
        pair.client_end.events += pair.client.receive_datagram(datagram.data, now=pair.now, path="server")
    assert pair.client.state is ConnectionState.CONNECTED
    assert len(pair.client.datagrams_to_send()) == 1  # the answer, as soon as the peer is known
