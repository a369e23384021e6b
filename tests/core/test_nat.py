"""The virtual NAT does what routers do; and without connection IDs it breaks associations."""

import pytest

from sansdtls import DiscardReason
from sansdtls.testing import Nat, Network, Pair


def arrived(network):
    return [(datagram.source, datagram.destination) for datagram in network.arrivals()]


def test_a_client_is_seen_at_one_public_path_and_reached_there():
    network = Network()
    nat = Nat(network, ["a", "b"])
    assert nat.public("a") is None
    assert network.seen_as("a") is None
    for source, destination in (("a", "server"), ("a", "other"), ("b", "server"), ("outsider", "server")):
        network.send(source, destination, b"x")
    assert arrived(network) == [
        (("nat", 1024), "server"),
        (("nat", 1024), "other"),
        (("nat", 1025), "server"),
        ("outsider", "server"),
    ]
    assert (network.seen_as("b"), network.seen_as("outsider")) == (("nat", 1025), "outsider")
    network.send("server", ("nat", 1025), b"x")
    network.send("server", ("nat", 9), b"x")
    assert arrived(network) == [("server", "b"), ("server", ("nat", 9))]


def test_what_is_under_way_keeps_its_source_and_loses_its_destination_when_the_nat_rebinds():
    network = Network(delay=1)
    nat = Nat(network, ["a"])
    network.send("a", "server", b"before")
    network.send("server", ("nat", 1024), b"answer")
    nat.rebind("a")
    network.send("a", "server", b"after")
    network.clock.advance_to(2)
    assert arrived(network) == [
        (("nat", 1024), "server"),
        ("server", ("nat", 1024)),
        (("nat", 1025), "server"),
    ]


def test_a_path_is_given_up_after_silence_from_the_inside_only():
    network = Network()
    nat = Nat(network, ["a"], timeout=30)
    network.send("a", "server", b"x")
    for moment, path in ((30, 1024), (60, 1024), (60.5, 1024), (91, 1025)):
        network.clock.advance_to(moment)
        network.send("server", ("nat", 1024), b"keeps nothing alive")
        network.send("a", "server", b"x")
        assert nat.public("a") == ("nat", path)
    network.arrivals()
    network.clock.advance_to(122)
    network.send("server", ("nat", 1025), b"too late")
    assert arrived(network) == [("server", ("nat", 1025))]


def test_clients_swap_paths_and_a_path_changes_hands():
    network = Network()
    nat = Nat(network, ["a", "b", "c"])
    for source in "ab":
        network.send(source, "server", b"x")
    nat.swap("a", "b")
    assert (nat.public("a"), nat.public("b")) == (("nat", 1025), ("nat", 1024))
    network.send("a", "server", b"x")
    assert nat.public("a") == ("nat", 1025)
    nat.assign("c", ("nat", 1024))
    assert (nat.public("b"), nat.public("c")) == (None, ("nat", 1024))
    nat.rebind()
    assert {nat.public(client) for client in "abc"} == {None}
    with pytest.raises(ValueError, match="'a' and 'b' need a path each"):
        nat.swap("a", "b")


def test_without_connection_ids_a_rebinding_ends_what_can_be_heard():
    pair = Pair()
    nat = Nat(pair.network, [pair.client_end.path])
    pair.handshake()
    pair.client.send(b"before", now=pair.now)
    pair.run_for(1)
    nat.rebind()
    pair.client.send(b"after", now=pair.now)
    pair.run_for(1)
    assert pair.server_received() == [b"before"]
    assert pair.server.statistics.records_discarded == {DiscardReason.UNKNOWN_ASSOCIATION: 1}
