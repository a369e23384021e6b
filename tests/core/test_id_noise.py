"""Noise around connection IDs: it changes counters, and neither the association nor its path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import (
    ConnectionIdPolicy,
    DataReceived,
    DiscardReason,
    PathPolicy,
    ServerConfig,
)
from sansdtls.testing import Network, Pair
from tests.core import raw
from tests.core.id_noise import ELSEWHERE, READING, assert_untouched, counters, each_role, give_from, make
from tests.core.id_puppets import IdClient, IdServer, offering
from tests.core.puppet import ClientRig, PuppetClient, ServerRig

# --- truncated and altered ------------------------------------------------------------------------------


@each_role
@pytest.mark.parametrize("suite", [raw.AES_128_CCM_8, raw.AES_128_GCM, raw.CHACHA20], ids=hex)
def test_a_truncated_record_with_an_id_changes_counters_only(role, suite):
    puppet = make(role, suite=suite)
    record = puppet.record(raw.APPLICATION_DATA, READING, epoch=1, zeros=3)
    for path in (puppet.path, ELSEWHERE):
        for length in range(len(record)):
            give_from(puppet, record[:length], path)
            if 11 + len(puppet.peers_id or b"") + 2 <= length:  # the length field says what is really there
                start = 11 + len(puppet.peers_id or b"")
                shorter = (
                    record[:start] + (length - start - 2).to_bytes(2, "big") + record[start + 2 : length]
                )
                give_from(puppet, shorter, path)
    assert puppet.rig.connection.statistics.mac_failures > 20
    assert_untouched(puppet)


@each_role
def test_a_flip_of_any_bit_changes_counters_only(role):
    puppet = make(role)
    assert puppet.peers_id is not None
    record = puppet.record(raw.APPLICATION_DATA, READING, epoch=1, zeros=5)
    for path in (puppet.path, ELSEWHERE):
        for bit in range(8 * len(record)):
            changed = bytearray(record)
            changed[bit // 8] ^= 1 << bit % 8
            give_from(puppet, bytes(changed), path)
    assert counters(puppet)[DiscardReason.BAD_MAC] >= 2 * 8 * (len(READING) + 1 + 5 + 16)
    assert_untouched(puppet)
    puppet.give(record)
    assert puppet.rig.received[-1] == READING, "the record itself is good"


@each_role
def test_an_id_that_is_not_the_one_agreed_on_is_counted_whoever_sealed_the_record(role):
    puppet = make(role)
    own = puppet.peers_id
    assert own is not None
    others = [bytes(len(own)), own[:-1] + bytes([own[-1] ^ 1]), own[::-1]]
    for number, other in enumerate(others, 1):
        puppet.peers_id = other  # sealed with the right key, over the wrong ID
        give_from(puppet, puppet.data(READING), puppet.path)
        give_from(puppet, puppet.data(READING), ELSEWHERE)
        if role == "server":
            assert counters(puppet)[DiscardReason.UNKNOWN_CONNECTION_ID] == 2 * number
    assert counters(puppet)[DiscardReason.UNKNOWN_CONNECTION_ID] >= 3
    puppet.peers_id = own
    assert_untouched(puppet)


@each_role
def test_an_id_that_is_too_short_or_too_long_is_noise(role):
    puppet = make(role)
    own = puppet.peers_id
    assert own is not None
    for other in (own[:1], own[:-1], own + b"x", own + own, bytes(200)):
        puppet.peers_id = other
        give_from(puppet, puppet.data(READING), puppet.path)
        give_from(puppet, puppet.data(READING), ELSEWHERE)
    puppet.peers_id = own
    assert_untouched(puppet)


# --- the other format -----------------------------------------------------------------------------------


@each_role
def test_a_record_without_an_id_where_one_is_agreed_on_is_dropped(role):
    # RFC 9146 §3: "... to determine whether the expected CID value is indeed zero length. If the check fails,
    # then the datagram MUST be dropped." It is sealed with the right key.
    puppet = make(role)
    for content_type in (raw.APPLICATION_DATA, raw.ALERT, raw.HANDSHAKE):
        plain = puppet.protection(puppet.role)
        record = plain.seal(content_type, b"\x01\x00", epoch=1, seq=puppet.take_seq())
        give_from(puppet, record, puppet.path)
    assert counters(puppet)[DiscardReason.UNKNOWN_CONNECTION_ID] == 3
    assert_untouched(puppet)


@each_role
def test_a_record_with_an_id_where_none_is_agreed_on_is_dropped(role):
    if role == "server":
        puppet: IdClient | IdServer = make(role, rig=ServerRig(ServerConfig(connection_id=None)))
    else:
        puppet = make(role, own_id=None)
        assert puppet.peers_id, "offered, but not answered"
    assert puppet.rig.connection.connection_id == b""
    for path in (puppet.path, ELSEWHERE):
        for connection_id in (b"x", b"puppet", puppet.peers_id or b"12345678"):
            record = raw.record(25, bytes(60), epoch=1, seq=puppet.take_seq(), connection_id=connection_id)
            give_from(puppet, record, path)
    assert sum(counters(puppet).values()) == 6
    assert counters(puppet)[DiscardReason.UNKNOWN_CONNECTION_ID] >= 3
    assert_untouched(puppet)


def test_only_the_direction_that_has_an_id_takes_records_with_one():
    puppet = IdClient(ServerRig(ServerConfig(connection_id=ConnectionIdPolicy(length=0)))).handshake()
    assert puppet.peers_id == b""
    assert puppet.rig.connection.peer_connection_id == puppet.own_id
    give_from(puppet, raw.record(25, bytes(60), epoch=1, connection_id=b"puppet"), puppet.path)
    assert_untouched(puppet)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_type_tls12_cid_in_another_epoch_is_noise(epoch):
    # RFC 9146 §3: "Plaintext payloads never use the new record type".
    for step in range(3):
        puppet = IdClient()
        puppet.get_cookie()
        if step:
            puppet.read_server_flight(puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body())))
        if step == 2:
            puppet.finish()
        if epoch == 1 and step == 2:
            continue
        for connection_id in (puppet.peers_id or b"x" * 8, b"y" * 8):
            for length in (1, 40, 2**14):
                record = raw.record(25, bytes(length), epoch=epoch, connection_id=connection_id)
                give_from(puppet, record, puppet.path)
        if step == 0:
            puppet.read_server_flight(puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body())))
        if step < 2:
            puppet.finish()
        assert_untouched(puppet)


@each_role
def test_an_authentic_record_of_another_version_is_dropped(role):
    puppet = make(role)
    sealing = puppet.sealing(puppet.role)
    assert sealing is not None
    inner = READING + bytes([raw.APPLICATION_DATA])
    for path in (puppet.path, ELSEWHERE):
        record = sealing.seal_inner(inner, epoch=1, seq=puppet.take_seq(), version=raw.DTLS_1_0)
        give_from(puppet, record, path)
    assert counters(puppet) == {DiscardReason.BAD_RECORD_HEADER: 2}
    assert_untouched(puppet)


# --- several records in a datagram ----------------------------------------------------------------------


@each_role
def test_records_of_several_kinds_in_a_datagram_are_each_judged_by_themselves(role):
    puppet = make(role)
    plain = puppet.protection(puppet.role).seal(raw.APPLICATION_DATA, b"no ID", epoch=1, seq=90)
    forged = raw.record(25, bytes(50), epoch=1, seq=91, connection_id=puppet.peers_id or b"")
    old = raw.record(raw.HANDSHAKE, bytes(20), seq=3)
    puppet.give(
        puppet.data(b"one"), plain, puppet.data(b"two"), forged, old, puppet.data(b"three"), b"\x19\xfe"
    )
    assert puppet.rig.received == [b"one", b"two", b"three"]
    puppet.give(old, puppet.data(b"four"), plain, puppet.data(b"five"))
    assert puppet.rig.received[3:] == [b"four", b"five"]
    assert_untouched(puppet)


def test_a_record_for_another_association_in_the_same_datagram_goes_to_nobody_else():
    rig = ServerRig()
    one, other = IdClient(rig), IdClient(rig, random=b"o" * 32, path="other", psk=b"other key", identity=b"o")
    rig.keys[b"o"] = [b"other key"]
    one.handshake()
    other.handshake()
    first, second = one.data(b"of one"), other.data(b"of other")
    rig.give(first + second, "peer")
    assert set(rig.received) <= {b"of one", b"of other"}
    for event in rig.events:
        if isinstance(event, DataReceived):
            assert event.connection.connection_id == (
                one.peers_id if event.data == b"of one" else other.peers_id
            )
    other.give(second)  # if it was lost, it comes again
    assert sorted(rig.received) == [b"of one", b"of other"]


# --- other paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path_policy", PathPolicy)
def test_junk_with_a_live_id_from_any_path_moves_nothing(path_policy):
    policy = ConnectionIdPolicy(path_policy=path_policy)
    puppet = IdClient(ServerRig(ServerConfig(connection_id=policy))).handshake()
    genuine = puppet.data(READING)
    puppet.give(genuine)
    for number in range(50):
        for junk in (
            raw.record(25, bytes(40), epoch=1, seq=100 + number, connection_id=puppet.peers_id or b""),
            raw.record(25, b"", epoch=1, seq=2**48 - 1, connection_id=puppet.peers_id or b""),
            genuine,
            b"\x19\xfe\xfd\x00\x01" + bytes(6) + (puppet.peers_id or b""),
        ):
            give_from(puppet, junk, ("stranger", number))
    assert puppet.rig.connection.statistics.records_discarded[DiscardReason.REPLAY] == 50
    assert len(puppet.rig.server._routes) == 1
    assert_untouched(puppet)


def test_records_of_a_half_open_handshake_from_another_path_are_not_taken():
    puppet = IdClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    finished = puppet.finished()
    puppet.rig.give(finished, ELSEWHERE)
    assert puppet.rig.causes == []
    assert len(puppet.rig.server) == 0
    assert puppet.rig.server.statistics.records_discarded == {DiscardReason.WRONG_PATH: 1}
    puppet.read_finished(puppet.give(finished))
    assert len(puppet.rig.server) == 1
    assert puppet.rig.connection.path == puppet.path


def test_the_id_of_another_association_does_not_open_its_records_on_the_right_path():
    rig = ServerRig()
    rig.keys[b"o"] = [b"other key"]
    one = IdClient(rig).handshake()
    other = IdClient(rig, random=b"o" * 32, path="other", psk=b"other key", identity=b"o").handshake()
    own, one.peers_id = one.peers_id, other.peers_id
    for path in ("peer", "other", ELSEWHERE):
        before = len(rig.events)
        rig.give(one.data(READING), path)
        assert rig.events[before:] == []
    one.peers_id = own
    for puppet in (one, other):
        assert_untouched(puppet)


def test_two_associations_on_one_path_are_told_apart_by_their_ids():
    rig = ServerRig(keys={b"dev%d" % number: [b"key %d" % number] for number in range(2)})
    puppets = [
        IdClient(rig, random=bytes([number]) * 32, identity=b"dev%d" % number, psk=b"key %d" % number)
        for number in range(2)
    ]
    for puppet in puppets:
        puppet.handshake()
    assert len(rig.server) == 2
    for number in range(4):
        puppet = puppets[number % 2]
        puppet.give(puppet.data(b"%d" % number))
        event = rig.events[-1]
        assert isinstance(event, DataReceived)
        assert event.connection.connection_id == puppet.peers_id
    assert rig.received == [b"0", b"1", b"2", b"3"]
    assert len(rig.server) == 2
    assert rig.server.statistics.mac_failures == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 100), st.sampled_from([b"", b"own", b"other"]), st.binary(max_size=80)
        ),
        max_size=10,
    )
)  # fmt: skip
def test_records_with_ids_of_random_content_change_counters_only(records):
    pair = Pair(offering(), network=Network())
    pair.handshake()
    for epoch, seq, whose, payload in records:
        for end, path in ((pair.client, "server"), (pair.server, "client"), (pair.server, "stranger")):
            connection = pair.client if end is pair.client else pair.server_connection
            connection_id = {b"own": connection.connection_id, b"other": b"o" * 8}.get(whose, b"")
            data = raw.record(25, payload, epoch=epoch, seq=seq, connection_id=connection_id)
            assert end.receive_datagram(data, now=pair.now, path=path) == []
    assert pair.connected
    assert pair.server_connection.path == "client"
    pair.client.send(READING, now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [READING]


def test_a_client_stays_with_the_servers_address_until_the_handshake_is_complete():
    server = IdServer()
    server.verify_request()
    flight_4 = b"".join(server.flight_4())
    give_from(server, flight_4, ELSEWHERE)
    server.read_flight_5(server.give(flight_4))
    last = server.change_cipher_spec() + server.finished()
    give_from(server, last, ELSEWHERE)
    assert counters(server) == {DiscardReason.WRONG_PATH: 2}
    server.give(last)
    assert_untouched(server)


def test_a_client_without_an_id_of_its_own_keeps_to_its_path():
    server = IdServer(ClientRig(offering(ConnectionIdPolicy(length=0)))).handshake()
    give_from(server, server.data(READING), ELSEWHERE)
    assert counters(server) == {DiscardReason.WRONG_PATH: 1}
    assert_untouched(server)


def test_a_puppet_without_ids_is_disturbed_by_none():
    puppet = PuppetClient().handshake()
    for length in range(40):
        puppet.give(raw.record(25, bytes(length), epoch=1, seq=100 + length, connection_id=bytes(8)))
    puppet.give(puppet.data(READING))
    assert puppet.rig.received == [READING]
