"""Packing a flight into datagrams."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sansdtls.handshake.flight import FlightPart, pack_flight
from sansdtls.record.epochs import WriteEpoch
from sansdtls.wire.handshake import HandshakeMessage
from tests.core import raw

HEADERS = 13 + 12


def packed(bodies, size, change_at=None):
    epochs = WriteEpoch(0), WriteEpoch(1)
    parts = []
    for message_seq, body in enumerate(bodies):
        if message_seq == change_at:
            parts.append(FlightPart(epochs[0], None))
        after = change_at is not None and message_seq >= change_at
        parts.append(FlightPart(epochs[after], HandshakeMessage(1, message_seq, body)))
    return pack_flight(parts, size)


# Lengths are drawn, not contents: of random bytes most are so few that a flight never fills a datagram.
@given(st.lists(st.integers(0, 600), min_size=1, max_size=5), st.integers(256, 1500), st.booleans())
@example(lengths=[200, 200], size=256, with_change=False)
def test_a_flight_keeps_within_the_size_loses_nothing_and_leaves_no_useful_room(lengths, size, with_change):
    bodies = [bytes((seq + offset) % 256 for offset in range(length)) for seq, length in enumerate(lengths)]
    change_at = len(bodies) - 1 if with_change else None
    datagrams = packed(bodies, size, change_at)
    assert all(0 < len(datagram) <= size for datagram in datagrams)
    found = dict.fromkeys(range(len(bodies)), b"")
    numbers: dict[int, list[int]] = {0: [], 1: []}
    for datagram in datagrams:
        for record in raw.records(datagram):
            numbers[record.epoch].append(record.seq)
            if record.type == raw.HANDSHAKE:
                (piece,) = raw.fragments(record.payload)
                assert piece.offset == len(found[piece.message_seq])
                assert piece.total == len(bodies[piece.message_seq])
                found[piece.message_seq] += piece.data
    assert list(found.values()) == bodies
    for seen in numbers.values():
        assert seen == list(range(len(seen)))
    # Every datagram but the last is full, but for what the smallest useful piece needs, or for the room
    # that keeps ChangeCipherSpec and the message after it together.
    for datagram, following in itertools.pairwise(datagrams):
        first = raw.records(following)[0]
        if first.type != raw.CHANGE_CIPHER_SPEC:
            assert size - len(datagram) < HEADERS + 16


@pytest.mark.parametrize("size", [256, 300])
def test_change_cipher_spec_and_finished_travel_together_where_they_fit(size):
    # Every length, because only a few leave room for ChangeCipherSpec and not for Finished.
    for length in range(2 * size):
        datagrams = packed([bytes(length), bytes(12)], size, change_at=1)
        ends = [[record.type for record in raw.records(datagram)] for datagram in datagrams]
        assert ends[-1][-2:] == [raw.CHANGE_CIPHER_SPEC, raw.HANDSHAKE], length


def test_what_fits_one_datagram_is_one_datagram():
    assert len(packed([bytes(100), bytes(50), b""], HEADERS * 3 + 150)) == 1
    assert len(packed([bytes(100), bytes(50), b""], HEADERS * 3 + 149)) == 2
