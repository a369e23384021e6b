"""What a live association keeps in memory, beyond what it needs: nothing. How much that is, ``make bench`` measures."""

from sansdtls import DiscardReason
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
