"""What an authentic record with a connection ID may hold, and what comes before Finished."""

from __future__ import annotations

import pytest

from sansdtls import AlertDescription, DataReceived, DiscardReason, HandshakeCompleted
from tests.core import raw
from tests.core.id_noise import READING, assert_untouched, counters, each_role, give_from, make
from tests.core.id_puppets import IdClient, IdServer

# --- what an authentic record may hold ------------------------------------------------------------------


@each_role
@pytest.mark.parametrize("zeros", [1, 2, 17, 1000, 2**14])
def test_an_inner_plaintext_of_zeros_ends_the_association(role, zeros):
    # RFC 8446 §5.4: "... terminate the connection with an "unexpected_message" alert."
    puppet = make(role)
    puppet.give(puppet.inner(bytes(zeros)))
    puppet.wait(0)
    assert puppet.alerts() == [(2, AlertDescription.UNEXPECTED_MESSAGE)]
    assert len(puppet.rig.causes) == 1
    assert puppet.rig.received == []


@each_role
@pytest.mark.parametrize("kind", [1, 19, raw.HEARTBEAT, raw.TLS12_CID, 26, 28, 255])
def test_an_unknown_inner_type_ends_the_association(role, kind):
    puppet = make(role)
    puppet.give(puppet.inner(READING + bytes([kind]) + bytes(4)))
    puppet.wait(0)
    assert puppet.alerts() == [(2, AlertDescription.UNEXPECTED_MESSAGE)]
    assert len(puppet.rig.causes) == 1
    assert puppet.rig.received == []


@each_role
def test_a_change_cipher_spec_inside_is_counted(role):
    puppet = make(role)
    give_from(puppet, puppet.record(raw.CHANGE_CIPHER_SPEC, b"\x01", epoch=1), puppet.path)
    assert counters(puppet)[DiscardReason.UNEXPECTED_CHANGE_CIPHER_SPEC] == 1
    assert_untouched(puppet)


@each_role
def test_an_alert_inside_is_an_alert(role):
    puppet = make(role)
    puppet.give(puppet.record(raw.ALERT, b"\x01\x64", epoch=1, zeros=20))
    assert_untouched(puppet)
    puppet.give(puppet.record(raw.ALERT, b"\x01\x00", epoch=1, zeros=20))
    puppet.wait(0)
    assert puppet.alerts() == [(1, AlertDescription.CLOSE_NOTIFY)]
    assert len(puppet.rig.causes) == 1


@each_role
def test_a_handshake_message_inside_is_one(role):
    puppet = make(role)
    ask = (raw.HELLO_REQUEST, b"") if role == "client" else (raw.CLIENT_HELLO, raw.client_hello())
    before = len(puppet.answers)
    puppet.give(puppet.message(*ask, epoch=1, in_transcript=False))
    assert puppet.alerts(puppet.answers[before:]) == [(1, AlertDescription.NO_RENEGOTIATION)]
    assert_untouched(puppet)


@each_role
@pytest.mark.parametrize(("content", "zeros", "taken"), [
    (2**14 - 1, 0, True),
    (1, 2**14 - 2, True),
    (2**14, 0, False),
    (2**14 - 1, 1, False),
    (1, 2**14 - 1, False),
    (0, 2**14, False),
])  # fmt: skip
def test_an_inner_plaintext_above_2_14_bytes_is_record_overflow(role, content, zeros, taken):
    # RFC 9146 §5: "The length MUST NOT exceed 2^14." It is content, type and padding.
    puppet = make(role)
    puppet.give(puppet.record(raw.APPLICATION_DATA, b"x" * content, epoch=1, zeros=zeros))
    if taken:
        assert puppet.rig.received == [b"x" * content]
        assert_untouched(puppet)
    else:
        puppet.wait(0)
        assert puppet.alerts() == [(2, AlertDescription.RECORD_OVERFLOW)]
        assert puppet.rig.received == []


# --- early data -----------------------------------------------------------------------------------------


def test_data_before_finished_are_delivered_behind_it_and_once():
    for split in (False, True):
        puppet = IdClient()
        puppet.hello()
        key_exchange, finished_body = puppet.key_exchange(), puppet.verify_data()
        finished = raw.fragment(raw.FINISHED, finished_body, message_seq=puppet.message_seq)
        early = [puppet.data(b"%d" % number) for number in range(3)]
        for record in (*early, early[1]):
            puppet.give(record)
        puppet.give(key_exchange, early[0], puppet.change_cipher_spec(), early[2])
        assert puppet.rig.received == []
        if split:  # the first piece makes epoch 1 readable, and proves nothing
            puppet.give(puppet.record(raw.HANDSHAKE, raw.fragment(
                raw.FINISHED, finished_body[:5], message_seq=puppet.message_seq, total=12), epoch=1))  # fmt: skip
            puppet.give(early[0])
            assert puppet.rig.received == []
            assert not [event for event in puppet.rig.events if isinstance(event, HandshakeCompleted)]
            finished = raw.fragment(
                raw.FINISHED, finished_body[5:], message_seq=puppet.message_seq, offset=5, total=12
            )
        puppet.give(early[1], puppet.record(raw.HANDSHAKE, finished, epoch=1))
        assert sorted(puppet.rig.received) == [b"0", b"1", b"2"]
        kinds = [type(event) for event in puppet.rig.events[-4:]]
        assert kinds == [HandshakeCompleted, DataReceived, DataReceived, DataReceived]
        for record in early:
            puppet.give(record)
        assert len(puppet.rig.received) == 3


def test_data_before_finished_are_never_delivered_where_finished_is_wrong():
    puppet = IdClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.data(READING))
    puppet.give(puppet.finished(bytes(12)))
    puppet.wait(10)
    assert puppet.rig.received == []
    assert len(puppet.rig.causes) == 1


def test_a_clients_data_before_the_servers_finished_wait_too():
    server = IdServer()
    server.verify_request()
    server.answer_hello()
    server.give(server.data(READING))
    server.give(server.change_cipher_spec(), server.data(b"more"))
    assert server.rig.received == []
    server.give(server.finished())
    assert sorted(server.rig.received) == sorted([READING, b"more"])


def test_handshake_messages_as_early_data_are_no_finished():
    # An alert or another message under the new keys, before Finished.
    for kind, body in ((raw.ALERT, b"\x01\x00"), (raw.HANDSHAKE, raw.fragment(raw.CLIENT_HELLO, b"x"))):
        puppet = IdClient()
        puppet.hello()
        puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.record(kind, body, epoch=1))
        assert not [event for event in puppet.rig.events if isinstance(event, HandshakeCompleted)]


@pytest.mark.parametrize("own_id", [b"puppet", None], ids=["with ID", "without ID"])
def test_a_finished_that_is_replayed_is_a_replay_and_has_nothing_sent_again(own_id):
    puppet = IdClient(own_id=own_id)
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    finished = puppet.finished()
    puppet.read_finished(puppet.give(finished))
    for number in range(1, 4):
        give_from(puppet, finished, puppet.path)
        assert counters(puppet)[DiscardReason.REPLAY] == number
    assert_untouched(puppet)


# --- Finished in the wrong format -----------------------------------------------------------------------


@each_role
@pytest.mark.parametrize("other", [b"", b"\0" * 8, b"x"], ids=["none", "another", "short"])
def test_a_finished_without_the_id_agreed_on_is_noise_and_no_wrong_key(role, other):
    # It is sealed with the right keys. As an undecryptable Finished it would count towards a wrong key.
    puppet: IdClient | IdServer
    if role == "server":
        puppet = IdClient()
        puppet.hello()
        puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    else:
        puppet = IdServer()
        puppet.verify_request()
        puppet.answer_hello()
        puppet.give(puppet.change_cipher_spec())
    own, puppet.peers_id = puppet.peers_id, other
    finished = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=puppet.message_seq)
    for _ in range(3):
        puppet.give(puppet.record(raw.HANDSHAKE, finished, epoch=1))
        puppet.wait(2.1)
    assert counters(puppet)[DiscardReason.UNKNOWN_CONNECTION_ID] == 3
    assert DiscardReason.BAD_MAC not in counters(puppet)
    assert puppet.rig.causes == []
    puppet.peers_id = own
    puppet.give(puppet.finished())
    assert [event for event in puppet.rig.events if isinstance(event, HandshakeCompleted)]
    assert_untouched(puppet)
