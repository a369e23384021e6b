"""What a live association keeps in memory, beyond what it needs: nothing. How much that is, ``make bench`` measures."""

import gc
import tracemalloc

import pytest

from sansdtls import DiscardReason, Server, ServerConfig
from sansdtls.crypto.suites import SUITES
from sansdtls.iana import ContentType
from sansdtls.record.ciphers import MAX_CIPHERS, Ciphers
from sansdtls.record.protection import make_protection
from sansdtls.testing import Client, CounterEntropy, Fleet
from sansdtls.wire.record import read_record_untrusted
from tests.core.fleets import client_config, connect, fleet_with


def test_what_handshakes_leave_among_the_deadlines_is_a_small_part_of_them():
    fleet = fleet_with()
    for number in range(300):
        fleet.connect(client_config(number), path=number)
    fleet.run_until(lambda: len(fleet.server) == 300)
    assert len(fleet.server._deadlines) <= 300 + 65, "one each, and few that are dead"


def test_equal_agreements_are_one_object():
    fleet = fleet_with()
    first, second = connect(fleet, 1), connect(fleet, 2)
    agreed = [connection.negotiated for connection in fleet.server.connections]
    assert agreed[0] is agreed[1]
    assert first.connection.negotiated == second.connection.negotiated == agreed[0]


def test_the_counters_of_what_was_discarded_are_there_as_soon_as_somebody_looks():
    fleet = fleet_with()
    client = connect(fleet, 1)
    (connection,) = fleet.server.connections
    discarded = connection.statistics.records_discarded
    assert discarded == {}
    fleet.server.receive_datagram(b"\x17junk", path=client.path, now=fleet.now)
    assert discarded == {DiscardReason.BAD_RECORD_HEADER: 1}
    assert discarded is connection.statistics.records_discarded


# --- cipher objects -----------------------------------------------------------------------------------


def fleet_with_room_for_ciphers(limit: int) -> Fleet:
    fleet = fleet_with()
    fleet.server._members.ciphers = Ciphers(limit)
    return fleet


def protections(connection):
    return connection._layer.read.protection, connection._layer.write.protection


def with_cipher_object(fleet: Fleet):
    connections = fleet.server.connections
    return [each for connection in connections for each in protections(connection) if each._aead is not None]


def converse(fleet: Fleet, client: Client, number: int) -> None:
    """One datagram each way."""
    question, answer = b"question %d" % number, b"answer %d" % number
    client.connection.send(question, now=fleet.now)
    fleet.run_until(lambda: fleet.server_received(client.path)[-1:] == [question])
    (connection,) = fleet.server_connections(client.path)
    connection.send(answer, now=fleet.now)
    fleet.run_until(lambda: client.received[-1:] == [answer])


def test_a_server_keeps_the_cipher_objects_of_its_associations_within_the_limit():
    fleet = fleet_with_room_for_ciphers(6)
    clients = [connect(fleet, number) for number in range(8)]
    assert len(with_cipher_object(fleet)) == 6
    for number in range(3):
        for client in clients:
            converse(fleet, client, number)
            assert len(with_cipher_object(fleet)) == 6


def test_an_association_whose_cipher_objects_were_dropped_goes_on_where_it_was():
    fleet = fleet_with_room_for_ciphers(2)
    sleeper, busy = connect(fleet, 1), connect(fleet, 2)
    (connection,) = fleet.server_connections(sleeper.path)
    for number in range(3):
        converse(fleet, sleeper, number)
        converse(fleet, busy, number)
        assert [each._aead for each in protections(connection)] == [None, None]
    assert fleet.server_received(sleeper.path) == [b"question %d" % number for number in range(3)]
    assert connection.statistics.records_discarded == {}


def test_whoever_is_in_use_keeps_its_cipher_objects():
    fleet = fleet_with_room_for_ciphers(4)
    clients = [connect(fleet, number) for number in range(2)]
    for number in range(2):
        for client in clients:
            converse(fleet, client, number)
    before = with_cipher_object(fleet)
    ciphers = [each._aead for each in before]
    for client in clients:
        converse(fleet, client, 2)
    assert [each._aead for each in before] == ciphers


def test_an_association_that_has_ended_leaves_neither_key_nor_cipher_object():
    fleet = fleet_with_room_for_ciphers(4)
    connect(fleet, 1)
    (connection,) = fleet.server.connections
    kept = protections(connection)
    assert len(fleet.server._members.ciphers) == 2
    connection.close(now=fleet.now)
    assert len(fleet.server._members.ciphers) == 0
    assert [(each._aead, each._secret) for each in kept] == [(None, b"")] * 2


def test_thawed_associations_stay_within_the_limit_too():
    fleet = fleet_with_room_for_ciphers(2)
    clients = [connect(fleet, number) for number in range(3)]
    for client in clients:
        (connection,) = [each for each in fleet.server.connections if each.path == client.path]
        fleet.server.thaw(fleet.server.freeze(connection, now=fleet.now), now=fleet.now)
        client.connection.send(b"awake", now=fleet.now)
        fleet.run_for(0.1)
    assert len(with_cipher_object(fleet)) == 2 == len(fleet.server._members.ciphers)
    assert len({id(connection.negotiated) for connection in fleet.server.connections}) == 1


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_cipher_object_that_was_dropped_is_made_again_just_the_same(suite):
    row = SUITES[suite]
    key, iv = bytes(range(row.key_length)), bytes(range(row.fixed_iv_length))
    for connection_id in (b"", b"id"):
        protection = make_protection(row, key, iv, connection_id)
        sealed = protection.seal(ContentType.APPLICATION_DATA, 1 << 48, b"content")
        record = read_record_untrusted(sealed, 0, len(connection_id))
        assert record is not None
        protection.drop_cipher()
        assert protection.open(record) == (ContentType.APPLICATION_DATA, b"content")
        protection.drop_cipher()
        assert protection.seal(ContentType.APPLICATION_DATA, 1 << 48, b"content") == sealed


def test_the_limit_is_both_directions_of_two_thousand_associations():
    assert MAX_CIPHERS == 2 * 2_048
    assert Ciphers()._limit == MAX_CIPHERS


# --- in all -------------------------------------------------------------------------------------------
# What `make bench` measures with 100,000 in a process, here with Python's own count and without OpenSSL's objects.


@pytest.fixture(scope="module")
def blobs():
    fleet = fleet_with()
    for number in range(120):
        converse(fleet, connect(fleet, number), number)
    return list(fleet.server.freeze_all(now=fleet.now))


def bytes_for_each(blobs, take):
    server = Server(ServerConfig(), entropy=CounterEntropy(1), now=0)
    take(server, blobs[0])  # what is made once, is made now
    gc.collect()
    tracemalloc.start()
    try:
        for blob in blobs[1:]:
            take(server, blob)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / (len(blobs) - 1)
    finally:
        tracemalloc.stop()


def test_a_live_association_takes_about_two_kilobytes(blobs):
    assert bytes_for_each(blobs, lambda server, blob: server.thaw(blob, now=10)) < 2_300


def test_a_frozen_association_takes_less_than_400_bytes(blobs):
    assert bytes_for_each(blobs, lambda server, blob: server.restore(blob, now=10)) < 400
