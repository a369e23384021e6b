"""Noise: whatever arrives raises nothing, ends no live association and delivers nothing that was not sent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sansdtls import (
    ConnectionState,
    DiscardReason,
)
from sansdtls.testing import CounterEntropy, Pair
from tests.core import raw
from tests.core.misbehaviour import Point, Row, puppet_at
from tests.core.puppet import ClientRig, PuppetClient, PuppetServer, ServerRig

READING = b"21.5 degrees"


def recorded_session(seed: int = 4) -> tuple[list[bytes], list[bytes]]:
    """What client and server sent: a whole handshake, data both ways."""
    pair = Pair(seed=seed)
    pair.handshake()
    pair.client.send(READING, now=pair.now)
    pair.server_connection.send(READING, now=pair.now)
    pair.run_for(0.1)
    client, server = ([each.data for each in pair.network.sent_by(who)] for who in ("client", "server"))
    return client, server


def connected_pair(seed: int = 4) -> Pair:
    pair = Pair(seed=seed)
    pair.handshake()
    return pair


def variants(datagram: bytes):
    """Every truncation and every single-bit change."""
    for length in range(len(datagram)):
        yield datagram[:length]
    for bit in range(8 * len(datagram)):
        changed = bytearray(datagram)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


# --- truncations and bit flips ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["client", "server"])
def test_no_truncation_or_bit_flip_of_a_recorded_datagram_disturbs_a_live_association(role):
    from_client, from_server = recorded_session()
    pair = connected_pair()
    connection = pair.client if role == "client" else pair.server_connection
    others = from_server if role == "client" else from_client
    events = []
    for datagram in others:
        for noise in variants(datagram):
            if role == "client":
                events += connection.receive_datagram(noise, now=pair.now, path="server")
            else:
                events += pair.server.receive_datagram(noise, now=pair.now, path="client")
    # A flipped bit may leave one record of two intact; what it carries is genuine then.
    assert {event.data for event in events if hasattr(event, "data")} <= {READING}
    assert not [event for event in events if not hasattr(event, "data")]
    assert connection.state is ConnectionState.CONNECTED
    assert pair.server.statistics.half_open == 0
    # The genuine data still arrive (or were part of a variant that left their record intact).
    (end, received) = (
        (pair.server_connection, lambda: pair.client_end.received)
        if role == "client"
        else (pair.client, pair.server_received)
    )
    end.send(b"still here", now=pair.now)
    end.send(b"and here", now=pair.now)
    pair.run_for(0.1)
    assert b"and here" in received()


@pytest.mark.slow
@pytest.mark.parametrize("role", ["client", "server"])
def test_no_truncation_or_bit_flip_during_a_handshake_raises_or_delivers_anything(role):
    """One variant replaces each datagram in turn; the receiver may fail the handshake, no more."""
    from_client, from_server = recorded_session()
    ours, theirs = (from_client, from_server) if role == "client" else (from_server, from_client)
    peer = "server" if role == "client" else "client"
    replayed = b"".join(_receiver_after(role, theirs)[1])
    assert len(replayed) > 200
    assert b"".join(ours).startswith(replayed), "the recording is replayed byte for byte"
    for position, datagram in enumerate(theirs):
        for noise in variants(datagram):
            rig, _ = _receiver_after(role, theirs[:position])
            rig.give(noise, peer)
            assert set(rig.received) <= {READING}
            for follow_up in theirs[position + 1 :]:
                rig.give(follow_up, peer)
            assert set(rig.received) <= {READING}


def _receiver_after(role: str, datagrams: list[bytes]):
    """The receiver of the recording, with the entropy it had, and what it sent."""
    if role == "server":
        rig: ServerRig | ClientRig = ServerRig(seed=9)
        sent = []
    else:
        rig = ClientRig(seed=int.from_bytes(CounterEntropy(8)(8), "big"), path="server")
        sent = rig.sent()
    for datagram in datagrams:
        sent += rig.give(datagram, "server" if role == "client" else "client")
    return rig, sent


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=200), max_size=10))
def test_random_bytes_change_counters_only(datagrams):
    pair = connected_pair()
    for data in datagrams:
        assert pair.client.receive_datagram(data, now=pair.now, path="server") == []
        assert pair.server.receive_datagram(data, now=pair.now, path="client") == []
        assert pair.server.receive_datagram(data, now=pair.now, path="stranger") == []
    assert pair.client.datagrams_to_send() == []
    assert pair.client.statistics.datagrams_received == 3 + len(datagrams)
    assert pair.connected


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([20, 21, 22, 23]), st.integers(0, 3), st.integers(0, 100), st.binary(max_size=80)
        ),
        max_size=10,
    )
)
def test_well_formed_records_of_random_content_change_counters_only(records):
    pair = connected_pair()
    for kind, epoch, seq, payload in records:
        data = raw.record(kind, payload, epoch=epoch, seq=seq)
        assert pair.client.receive_datagram(data, now=pair.now, path="server") == []
        events = pair.server.receive_datagram(data, now=pair.now, path="client")
        assert events == []
    assert pair.connected
    pair.client.send(READING, now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [READING]


def test_every_short_protected_record_of_every_length_is_counted_and_harmless():
    # CVE-2026-75806 OpenSSL: one too short protected record killed a live association.
    for suite in raw.ALL_SUITES:
        puppet = PuppetClient(suite=suite).handshake()
        for length in range(40):
            assert puppet.give(raw.record(23, bytes(length), epoch=1, seq=100 + length)) == []
        (connection,) = puppet.rig.server.connections
        assert connection.statistics.mac_failures == 40
        puppet.give(puppet.data(READING))
        assert puppet.rig.received == [READING]


def test_a_bad_record_does_not_drop_the_good_ones_beside_it():
    puppet = PuppetClient().handshake()
    forged = raw.record(23, bytes(40), epoch=1, seq=50)
    puppet.give(puppet.data(b"one"), forged, puppet.data(b"two"))
    assert puppet.rig.received == [b"one", b"two"]


# --- replays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_repeated_record_is_delivered_once(role):
    puppet = (PuppetServer if role == "client" else PuppetClient)().handshake()
    record = puppet.data(READING)
    for _ in range(5):
        puppet.give(record)
    assert puppet.rig.received == [READING]
    assert puppet.rig.connection.statistics.records_discarded[DiscardReason.REPLAY] == 4


def test_a_forged_record_far_ahead_does_not_move_the_replay_window():
    # CVE-2016-2181 OpenSSL
    puppet = PuppetClient().handshake()
    puppet.give(raw.record(23, bytes(40), epoch=1, seq=2**48 - 1))
    puppet.give(puppet.data(READING))
    assert puppet.rig.received == [READING]


def test_a_forged_early_record_of_the_next_epoch_does_not_move_the_replay_window():
    # CVE-2016-2181, CVE-2021-42142: the same, before the keys exist.
    for point in range(3):
        puppet = PuppetClient()
        if point == 0:
            puppet.get_cookie()
        puppet.give(raw.record(22, bytes(60), epoch=1, seq=2**48 - 1))
        if point:
            puppet.hello()
        puppet.give(raw.record(23, bytes(60), epoch=1, seq=2**48 - 2))
        if not point:
            puppet.read_server_flight(puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body())))
        puppet.give(puppet.key_exchange())
        puppet.give(raw.record(22, bytes(60), epoch=1, seq=2**48 - 3))
        puppet.read_finished(puppet.give(puppet.change_cipher_spec(), puppet.finished()))
        puppet.give(puppet.data(READING))
        assert puppet.rig.received == [READING]


def test_records_of_another_epoch_or_version_are_dropped_and_counted():
    puppet = PuppetClient().handshake()
    (connection,) = puppet.rig.server.connections
    puppet.give(raw.record(23, bytes(40), epoch=2))
    puppet.give(raw.record(23, bytes(40), epoch=0))
    puppet.give(b"\x17\xfe")
    discarded = connection.statistics.records_discarded
    assert discarded[DiscardReason.UNKNOWN_EPOCH] == 1
    assert discarded[DiscardReason.BAD_RECORD_HEADER] == 1
    assert sum(discarded.values()) == 3
    assert puppet.rig.causes == []


# --- garbage of an authenticated peer, and well-formed messages at any point --------------------------

handshake_bodies = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            raw.client_hello(),
            raw.server_hello(),
            raw.hello_verify_request(b"c"),
            raw.vector(b"dev1", 2),
            bytes(12),
        ]
    ),
)


@given(
    st.sampled_from(Point),
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 3, 4, 11, 12, 13, 14, 15, 16, 20, 99]),
            handshake_bodies,
            st.integers(-2, 3),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_message_at_any_point_raises_nothing_and_ends_a_connection_at_most_once(point, messages):
    puppet = puppet_at(Row("", point, lambda _: None, None))
    before = len(puppet.answers)
    for kind, body, ahead, sealed in messages:
        protect = sealed and puppet.keys is not None
        encoded = raw.fragment(kind, body, message_seq=max(0, puppet.message_seq + ahead))
        puppet.give(puppet.record(raw.HANDSHAKE, encoded, epoch=int(protect)))
    puppet.wait(0)
    fatal = [alert for alert in puppet.alerts(puppet.answers[before:]) if alert[0] == 2]
    assert len(fatal) == len(puppet.rig.causes) <= 1 or point is Point.SERVER_HELLO_DUE
    assert puppet.rig.received == []


@given(
    st.sampled_from([point for point in Point if point.name.endswith(("FINISHED", "CONNECTED"))]),
    st.lists(st.tuples(st.integers(20, 23), st.binary(max_size=80)), min_size=1, max_size=6),
)
def test_authentic_garbage_raises_nothing_and_ends_a_connection_at_most_once(point, records):
    puppet = puppet_at(Row("", point, lambda _: None, None))
    for kind, payload in records:
        puppet.give(puppet.record(kind, payload, epoch=1))
    puppet.wait(0)
    assert len(puppet.rig.causes) <= 1
    if point.name.endswith("FINISHED"):
        assert puppet.rig.received == []
