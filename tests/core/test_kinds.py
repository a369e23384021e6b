"""What a server tells of a datagram before it takes it in, and what it takes only if it is a live association's."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import (
    ClientConfig,
    Connection,
    ConnectionIdPolicy,
    ConnectionOffered,
    ConnectionState,
    DatagramKind,
    DataReceived,
    PskRequested,
    Server,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy
from tests.core import raw

PATH = (0, ("192.0.2.1", 5684))
ELSEWHERE = (0, ("192.0.2.2", 5684))
FREEZE_AFTER = 300.0
ID = ConnectionIdPolicy()
NO_ID = None
HEADER_AND_FINISHED = 13 + 8 + 12 + 12 + 16
"""Bytes of the last record of a handshake with AES-GCM: header, nonce, handshake header, verify_data, tag."""
either = pytest.mark.parametrize("policy", [NO_ID, ID], ids=["no ID", "with ID"])


class Talk:
    """A client and a server, and every datagram in hand."""

    def __init__(self, policy=NO_ID):
        self.now = 0.0
        self.entropy = CounterEntropy(1)
        self.server = Server(
            ServerConfig(connection_id=policy, freeze_after=FREEZE_AFTER), entropy=self.entropy, now=0.0
        )
        self.policy = policy
        self.client = self.begin()
        self.events = []

    def begin(self):
        self.client = Connection.client(
            ClientConfig(psk_identity=b"meter", psk_key=bytes(16), connection_id=self.policy),
            entropy=self.entropy,
            now=self.now,
        )
        return self.client

    def says(self):
        return [outgoing.data for outgoing in self.client.datagrams_to_send()]

    def give(self, data, path=PATH):
        self.take(self.server.receive_datagram(data, path=path, now=self.now))
        return [outgoing.data for outgoing in self.server.datagrams_to_send()]

    def take(self, events):
        self.events += events
        for event in events:
            if isinstance(event, ConnectionOffered):
                self.server.accept(event, now=self.now)
            elif isinstance(event, PskRequested):
                self.take(event.connection.provide_psk(event, [bytes(16)], now=self.now))

    def answer(self, datagrams):
        for data in datagrams:
            self.client.receive_datagram(data, now=self.now)
        return self.says()

    def kind(self, data, path=PATH):
        return self.server.kind_of(data, path)

    def connect(self):
        said = self.says()
        while said:
            said = self.answer([answer for data in said for answer in self.give(data)])
        assert self.client.state is ConnectionState.CONNECTED
        return self

    def reading(self, data=b"21.5"):
        self.client.send(data, now=self.now)
        (datagram,) = self.says()
        return datagram

    def freeze(self):
        while not self.server.frozen:
            self.now += FREEZE_AFTER + 1
            self.take(self.server.handle_timeout(now=self.now))
        return self


def test_the_kinds_of_a_handshake_are_told_in_order():
    talk = Talk()
    (hello,) = talk.says()
    assert talk.kind(hello) is DatagramKind.HELLO
    (with_cookie,) = talk.answer(talk.give(hello))
    assert talk.kind(with_cookie) is DatagramKind.HELLO_WITH_COOKIE
    flight = talk.answer(talk.give(with_cookie))
    for data in flight:
        assert talk.kind(data) is DatagramKind.HANDSHAKE
    assert talk.kind(with_cookie) is DatagramKind.HANDSHAKE  # repeated, as our flight may have been lost
    assert talk.kind(with_cookie, ELSEWHERE) is DatagramKind.HELLO_WITH_COOKIE


def test_a_flight_that_is_repeated_when_all_is_done_is_still_of_the_handshake():
    talk = Talk()
    flight = talk.answer(talk.give(*talk.answer(talk.give(*talk.says()))))
    assert [answer for data in flight for answer in talk.give(data)]  # and these are lost
    talk.now = 1.0
    talk.client.handle_timeout(now=talk.now)
    finished = b"".join(talk.says())[-HEADER_AND_FINISHED:]
    assert talk.server.receive_live(finished, path=PATH, now=0.0) is None
    assert talk.kind(finished) is DatagramKind.HANDSHAKE
    assert talk.give(finished) != []  # our end of the handshake, again


@either
def test_a_live_association_takes_its_records_and_nothing_else_is_taken(policy):
    talk = Talk(policy).connect()
    reading = talk.reading()
    events = talk.server.receive_live(reading, path=PATH, now=0.0)
    assert [event.data for event in events] == [b"21.5"]
    assert isinstance(events[0], DataReceived)
    before = attrs.asdict(talk.server.statistics)
    talk.begin()
    (hello,) = talk.says()
    for data, path in [
        (hello, PATH),
        (b"", ELSEWHERE),
        (b"\x17junk", ELSEWHERE),
        (b"\x19" + bytes(60), PATH),
    ]:
        assert talk.server.receive_live(data, path=path, now=0.0) is None
    assert attrs.asdict(talk.server.statistics) == before
    assert talk.server.datagrams_to_send() == []


def test_with_a_handshake_beside_it_an_association_takes_nothing_directly_so_that_the_order_is_the_callers():
    talk = Talk().connect()
    reading, old = talk.reading(), talk.client
    talk.begin()
    talk.give(*talk.answer(talk.give(*talk.says())))
    assert talk.server.receive_live(reading, path=PATH, now=0.0) is None
    assert talk.kind(reading) is DatagramKind.HANDSHAKE
    talk.give(reading)
    assert talk.events[-1].data == b"21.5"
    assert old.state is ConnectionState.CONNECTED


@either
def test_a_record_for_one_that_is_frozen_is_told_from_noise(policy):
    talk = Talk(policy).connect().freeze()
    reading = talk.reading()
    path = ELSEWHERE if policy else PATH
    assert talk.server.receive_live(reading, path=path, now=talk.now) is None
    assert talk.kind(reading, path) is DatagramKind.FROZEN
    (handle,) = talk.server._freezer.store.handles()
    assert talk.server.frozen_handle(reading, path) == handle
    other = bytes([reading[0]]) + reading[1:11] + bytes(30)
    assert talk.kind(other, ELSEWHERE) is DatagramKind.NOISE
    assert talk.server.frozen_handle(other, ELSEWHERE) is None
    assert talk.server.frozen == 1
    talk.give(reading, path)
    assert talk.events[-1].data == b"21.5"


def hello(**fields):
    return raw.record(raw.HANDSHAKE, raw.fragment(raw.CLIENT_HELLO, raw.client_hello(**fields)))


@pytest.mark.parametrize("session_id", [b"", bytes(32)])
def test_a_cookie_is_found_behind_every_session_id(session_id):
    server = Talk().server
    assert server.kind_of(hello(session_id=session_id), PATH) is DatagramKind.HELLO
    assert server.kind_of(hello(session_id=session_id, cookie=b"c"), PATH) is DatagramKind.HELLO_WITH_COOKIE


def test_what_is_cut_short_later_in_its_message_or_no_beginning_is_noise():
    whole = hello()
    body = raw.client_hello()
    kind_of = Talk().server.kind_of
    assert kind_of(whole[:60], PATH) is DatagramKind.NOISE
    assert kind_of(whole[:61], PATH) is DatagramKind.HELLO  # what is wrong with it the core will see
    assert kind_of(b"", PATH) is DatagramKind.NOISE
    later = raw.record(raw.HANDSHAKE, raw.fragment(raw.CLIENT_HELLO, body, offset=1))
    assert kind_of(later, PATH) is DatagramKind.NOISE
    fragment = raw.fragment(raw.CLIENT_HELLO, body)
    assert kind_of(raw.record(raw.HANDSHAKE, fragment, epoch=1), PATH) is DatagramKind.NOISE
    assert kind_of(raw.record(raw.HANDSHAKE, fragment), PATH) is DatagramKind.HELLO
    assert kind_of(raw.record(raw.ALERT, b"\x02\x28") + whole, PATH) is DatagramKind.NOISE


@given(data=st.binary(max_size=90), first=st.sampled_from([b"", b"\x16", b"\x17", b"\x19"]))
def test_any_bytes_have_a_kind_and_telling_it_changes_nothing(data, first):
    talk = TALK
    before = attrs.asdict(talk.server.statistics), len(talk.server._routes), talk.server.next_timeout()
    for path in (PATH, ELSEWHERE):
        talk.kind(first + data, path)
    after = attrs.asdict(talk.server.statistics), len(talk.server._routes), talk.server.next_timeout()
    assert after == before


TALK = Talk().connect()
"""Shared by all examples: nothing may change it."""
