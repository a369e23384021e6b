"""A path that takes less than the configured datagram size, and says so: RFC 6347 §4.1.1.1."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sansdtls import (
    ConnectionIdPolicy,
    ConnectionState,
    ConnectionTerminated,
    KeysExhausted,
    MessageTooLarge,
    PathPolicy,
    PeerCertificateReceived,
    ReturnRoutability,
    ServerConfig,
    UsageError,
)
from sansdtls.handshake.flight import MAX_RESIZED, MINIMUM_DATAGRAM_SIZE
from sansdtls.testing import Network, Pair
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import asking_config, client_config, psk_config

OVERHEAD = 13 + 8 + 16
"""Of a record of AES-GCM."""
NARROW = 572
"""What an IPv4 path with an MTU of 600 takes."""


def certified(**more):
    """Both sides show a certificate, so both have a flight that takes more than one datagram of 1232 bytes."""
    credential = shown("rsa").certificate()
    return Pair(
        client_config(credentials=(credential,), **more), asking_config(credentials=(credential,), **more)
    )


class Narrow:
    """A router on the path of a pair that drops what is too large, and tells the sender, as ICMP does."""

    def __init__(self, pair, mtu):
        self.pair, self.mtu = pair, mtu
        self.told = []
        self._to_tell = []
        pair.network.add_tap(self.carry)

    def carry(self, sent):
        if len(sent.data) <= self.mtu:
            return [sent.data]
        self._to_tell.append(sent)
        return []

    def until_quiet(self):
        """Let everything happen that takes no time."""
        pair = self.pair
        pair.run_for(0)
        while self._to_tell:
            sent = self._to_tell.pop(0)
            self.told.append(sent.source)
            if sent.source == pair.server_path:
                assert pair.server.limit_datagram_size(self.mtu, path=sent.destination, now=pair.now) == []
            else:
                assert pair.client.limit_datagram_size(self.mtu, now=pair.now) == []
            pair.run_for(0)


@pytest.mark.parametrize("mtu", [256, 300, NARROW, 1000])
def test_a_handshake_over_a_narrow_path_that_says_so_waits_for_no_timer(mtu):
    pair = certified()
    router = Narrow(pair, mtu)
    router.until_quiet()
    assert pair.connected
    assert pair.now == 0.0
    assert set(router.told) == {"client", "server"}
    for end in (pair.client, pair.server_connection):
        assert end.max_payload == mtu - OVERHEAD
        end.send(b"x" * end.max_payload, now=pair.now)
        with pytest.raises(MessageTooLarge):
            end.send(b"x" * (end.max_payload + 1), now=pair.now)
    pair.run_for(1)
    assert [len(data) for data in pair.server_received()] == [mtu - OVERHEAD]


def test_where_nothing_says_so_the_timer_has_to():
    pair = certified()
    pair.network.mtu = NARROW
    pair.handshake()
    assert pair.now > 1.0


def test_an_established_connection_is_told_by_max_payload():
    pair = Pair()
    pair.handshake()
    before = pair.client.max_payload
    for end in (pair.client, pair.server_connection):
        assert end.limit_datagram_size(NARROW, now=pair.now) == []
        assert end.max_payload < before
    assert pair.client.max_payload == pair.server_connection.max_payload
    pair.client.send(b"x" * pair.client.max_payload, now=pair.now)
    pair.run_for(1)
    assert len(pair.network.sent_by("client")[-1].data) == NARROW
    assert pair.server_received() == [b"x" * pair.client.max_payload]


@pytest.mark.parametrize(("size", "counts_as"), [(1, 256), (255, 256), (256, 256), (300, 300)])
def test_no_message_makes_datagrams_smaller_than_what_every_flight_fits(size, counts_as):
    pair = Pair()
    pair.handshake()
    pair.client.limit_datagram_size(size, now=pair.now)
    assert pair.client.max_payload == counts_as - (1232 - pair.server_connection.max_payload)
    assert MINIMUM_DATAGRAM_SIZE == 256


def test_what_is_no_less_than_known_changes_nothing():
    pair = certified()
    pair.run_until(lambda: bool(pair.network.sent_by("server")), 1)
    pair.client.limit_datagram_size(400, now=pair.now)
    pair.handshake()
    for size in (400, 401, 1232, 65_507):
        assert pair.client.limit_datagram_size(size, now=pair.now) == []
        assert pair.client.max_payload == 400 - OVERHEAD
    assert pair.client.statistics.retransmissions == 0


@pytest.mark.parametrize("size", [0, -1, 1.5, "600", None])
def test_a_size_that_is_none_is_the_callers_mistake(size):
    pair = Pair()
    with pytest.raises(UsageError, match="is not a number of bytes"):
        pair.client.limit_datagram_size(size, now=pair.now)


def test_a_connection_that_has_ended_is_not_disturbed():
    pair = Pair()
    pair.handshake()
    pair.client.close(now=pair.now)
    events = pair.client.limit_datagram_size(300, now=pair.now)
    assert [type(event).__name__ for event in events] == ["ConnectionTerminated"]
    assert pair.client.state is ConnectionState.CLOSED
    assert pair.client.max_payload == 0


def flights_sent(pair):
    return pair.server.statistics.retransmissions


def waiting_server():
    """A server whose flight is under way, with certificates in it."""
    pair = certified()
    pair.network.add_tap(lambda sent: [] if sent.source == "server" and len(sent.data) > 200 else [sent.data])
    pair.run_until(lambda: any(len(sent.data) > 1000 for sent in pair.network.sent_by("server")), 1)
    return pair


def test_forged_messages_get_a_flight_repeated_three_times_and_no_more():
    # Attacker: anybody, from anywhere, who knows both addresses. Each message names a smaller size.
    pair = waiting_server()
    sent = len(pair.network.sent_by("server"))
    for size in range(1200, 300, -1):
        assert pair.server.limit_datagram_size(size, path="client", now=pair.now) == []
    assert flights_sent(pair) == MAX_RESIZED == 3
    assert pair.server.datagrams_to_send()
    assert len(pair.network.sent_by("server")) == sent
    # The timer goes on as before; the next repetition is in the smallest size of all.
    pair.run_until(lambda: len(pair.network.sent_by("server")) > sent, 2)
    assert max(len(one.data) for one in pair.network.sent_by("server")[sent:]) <= 301


def test_forged_messages_do_not_repeat_a_flight_of_small_datagrams():
    pair = Pair(psk_config(), ServerConfig())
    pair.network.drop("server", *range(1, 9))
    pair.run_until(lambda: pair.server.statistics.handshakes_started == 1, 1)
    pair.run_for(0.1)
    for size in range(1200, 255, -1):
        pair.server.limit_datagram_size(size, path="client", now=pair.now)
    assert flights_sent(pair) == 0


def test_a_path_that_nobody_is_on_and_one_that_only_knocks_are_nothing_to_the_server():
    pair = Pair()
    assert pair.server.limit_datagram_size(300, path="nobody", now=0.0) == []
    pair.accept_after = None
    pair.run_for(0.5)  # an offer waits
    assert pair.server.limit_datagram_size(300, path="client", now=pair.now) == []


def test_while_the_caller_is_asked_nothing_is_repeated_and_what_follows_is_small():
    pair = certified()
    pair.judge_after = 5.0
    asked = (PeerCertificateReceived,)
    pair.run_until(lambda: any(isinstance(event, asked) for event in pair.server_events), 20)
    before = flights_sent(pair)
    assert pair.server.limit_datagram_size(NARROW, path="client", now=pair.now) == []
    assert flights_sent(pair) == before  # the client has answered the flight, so it has it
    sent = len(pair.network.sent_by("server"))
    pair.handshake()
    assert max(len(one.data) for one in pair.network.sent_by("server")[sent:]) <= NARROW


def test_a_flight_that_is_repeated_in_smaller_datagrams_has_its_whole_time_to_be_answered():
    pair = waiting_server()
    pair.run_for(0.4)
    pair.power_off(pair.client_end)
    assert pair.server.next_timeout() == 1.0
    pair.server.limit_datagram_size(NARROW, path="client", now=pair.now)
    pair.run_for(0)
    repeated = len(pair.network.sent_by("server"))
    pair.run_until(lambda: len(pair.network.sent_by("server")) > repeated, 2)
    assert pair.now == 1.4


def test_the_last_flight_is_cut_too_where_it_was_too_large():
    # A ticket that carries the client's chain takes more than one small datagram, and nobody awaits its answer.
    pair = certified()
    pair.network.add_tap(
        lambda sent: (
            [] if sent.source == "server" and len(pair.server) and len(sent.data) > 300 else [sent.data]
        )
    )
    pair.run_until(lambda: len(pair.server) == 1, 1)
    pair.run_for(0)
    assert not pair.connected or not pair.client.session
    pair.server.limit_datagram_size(300, path="client", now=pair.now)
    pair.run_for(0)
    assert pair.connected
    assert pair.now == 0.0
    again = flights_sent(pair)
    for size in range(299, 255, -1):
        pair.server.limit_datagram_size(size, path="client", now=pair.now)
    assert flights_sent(pair) <= again + MAX_RESIZED


def test_padding_keeps_within_the_new_size():
    policy = ConnectionIdPolicy(padding=1024)
    pair = Pair(psk_config(connection_id=policy), ServerConfig(connection_id=policy))
    pair.handshake()
    for end, name in ((pair.client, "client"), (pair.server_connection, "server")):
        end.limit_datagram_size(NARROW, now=pair.now)
        end.send(b"short", now=pair.now)
        end.send(b"x" * end.max_payload, now=pair.now)
        pair.run_for(1)
        assert [len(one.data) for one in pair.network.sent_by(name)[-2:]] == [NARROW, NARROW]
    assert pair.client_end.received[0] == pair.server_received()[0] == b"short"


def test_a_new_path_is_tried_with_full_datagrams_again():
    policy = ConnectionIdPolicy(path_policy=PathPolicy.MOVE, return_routability=ReturnRoutability.OFF)
    pair = Pair(psk_config(connection_id=policy), ServerConfig(connection_id=policy))
    pair.handshake()
    full = pair.server_connection.max_payload
    pair.server.limit_datagram_size(NARROW, path="client", now=pair.now)
    assert pair.server_connection.max_payload < full
    pair.move(pair.client_end, "elsewhere")
    pair.client.send(b"here", now=pair.now)
    pair.run_for(1)
    assert pair.server_connection.path == "elsewhere"
    assert pair.server_connection.max_payload == full
    assert pair.server.limit_datagram_size(NARROW, path="client", now=pair.now) == []
    assert pair.server_connection.max_payload == full


def test_everybody_on_a_path_is_told():
    # A device that begins anew: its old association is still there beside its handshake.
    policy = ConnectionIdPolicy()
    pair = Pair(psk_config(connection_id=policy), ServerConfig(connection_id=policy))
    pair.handshake()
    first = pair.server_connection
    pair.connect(psk_config(connection_id=policy))
    pair.psk_after = 10.0
    pair.run_for(1)
    assert pair.server.statistics.half_open == 1
    pair.server.limit_datagram_size(NARROW, path="client", now=pair.now)
    assert first.max_payload < NARROW
    pair.run_for(20)
    second = pair.server_connection
    assert second is not first
    assert second.max_payload < NARROW


def test_a_flight_for_which_no_record_numbers_are_left_ends_the_handshake():
    pair = waiting_server()
    (route,) = pair.server._routes._by_path.values()
    route.half_open.connection._handshake._epoch_0.next_sequence_number = 2**48 - 2
    (event,) = pair.server.limit_datagram_size(NARROW, path="client", now=pair.now)
    assert isinstance(event, ConnectionTerminated)
    assert event.cause == KeysExhausted("seal")
    assert pair.server.statistics.half_open == 0


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 1500), max_size=8),
    at=st.lists(st.sampled_from(["client", "server"]), min_size=8, max_size=8),
    seed=st.integers(0, 1000),
)
def test_whatever_is_told_and_whenever_the_handshake_completes_and_data_fit(sizes, at, seed):
    pair = Pair(
        client_config(credentials=(shown("p256").certificate(),)),
        asking_config(credentials=(shown("p256").certificate(),)),
        network=Network(seed, delay=0.01, loss=0.1),
        seed=seed,
    )
    for size, who in zip(sizes, at, strict=False):
        pair.run_for(0.02)
        if who == "client":
            pair.client.limit_datagram_size(size, now=pair.now)
        else:
            pair.server.limit_datagram_size(size, path="client", now=pair.now)
    pair.handshake()
    known = {"client": [1232], "server": [1232]}
    for size, who in zip(sizes, at, strict=False):
        known[who].append(max(size, 256))
    assert pair.client.max_payload >= min(known["client"]) - OVERHEAD
    pair.network.loss = 0.0
    pair.client.send(b"x" * pair.client.max_payload, now=pair.now)
    pair.run_for(1)
    assert pair.server_received()[-1:] == [b"x" * pair.client.max_payload]
