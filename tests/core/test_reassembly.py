"""Reassembly against a naive model, and its limits."""

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.config import Limits
from sansdtls.events import DiscardReason, ProtocolViolation
from sansdtls.handshake.failure import HandshakeFailure
from sansdtls.handshake.reassembly import FRAGMENT_COST, Reassembler
from sansdtls.holders import Holders
from sansdtls.iana import AlertDescription
from sansdtls.statistics import ServerStatistics
from sansdtls.wire.handshake import Fragment, HandshakeMessage

LIMITS = Limits()


def pieces_of(message_seq, body, cuts, message_type=1):
    """``body`` as fragments, cut at ``cuts``."""
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    if not body:
        return [Fragment(message_type, 0, message_seq, 0, b"")]
    return [
        Fragment(message_type, len(body), message_seq, start, body[start:end])
        for start, end in itertools.pairwise(edges)
    ]


def drain(reassembler):
    found = []
    while (popped := reassembler.pop()) is not None:
        found.append(popped)
    return found


class Model:
    """Each message as a dictionary from offset to byte; the first copy of a byte wins."""

    def __init__(self):
        self.next_seq = 0
        self.messages = {}

    def add(self, fragment):
        _, length, message_seq, offset, body = fragment
        if length and not body:
            return
        known_length, known = self.messages.setdefault(message_seq, (length, {}))
        assert known_length == length
        for position, byte in enumerate(body, offset):
            known.setdefault(position, byte)

    def drain(self):
        found = []
        while self.next_seq in self.messages:
            length, known = self.messages[self.next_seq]
            if len(known) < length:
                break
            found.append((self.next_seq, bytes(known[position] for position in range(length))))
            self.next_seq += 1
        return found


@st.composite
def shuffled_fragments(draw):
    """Fragments of a few messages: overlapping, repeated, out of order, sometimes with other bytes."""
    bodies = draw(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
    fragments = []
    for message_seq, body in enumerate(bodies):
        for _ in range(draw(st.integers(1, 3))):
            cuts = draw(st.lists(st.integers(0, 40), max_size=6))
            fragments += pieces_of(message_seq, body, cuts)
        for _ in range(draw(st.integers(0, 4))):
            start = draw(st.integers(0, len(body)))
            other = draw(st.binary(max_size=len(body) - start))
            fragments.append(Fragment(1, len(body), message_seq, start, other))
    return draw(st.permutations(fragments))


@given(shuffled_fragments())
def test_messages_come_out_as_a_naive_model_says_whatever_the_order_overlap_and_repetition(fragments):
    totals = ServerStatistics()
    reassembler, model = Reassembler(LIMITS, totals), Model()
    for fragment in fragments:
        if fragment.message_seq < reassembler.next_seq:
            continue  # the caller counts it as a duplicate
        reassembler.add(fragment)
        model.add(fragment)
        assert [(message.message_seq, message.body) for message in drain(reassembler)] == model.drain()
        assert reassembler.next_seq == model.next_seq
        assert totals.reassembly_size >= 0
    assert totals.reassembly_size == 0
    assert reassembler.pop() is None


@given(st.binary(min_size=1, max_size=100), st.data())
def test_nothing_comes_out_while_one_byte_is_missing(body, data):
    missing = data.draw(st.integers(0, len(body) - 1))
    reassembler = Reassembler(LIMITS, None)
    reassembler.add(Fragment(1, len(body), 0, 0, body[:missing]))
    reassembler.add(Fragment(1, len(body), 0, missing + 1, body[missing + 1 :]))
    assert reassembler.pop() is None
    reassembler.add(Fragment(1, len(body), 0, missing, body[missing : missing + 1]))
    assert drain(reassembler)[0].body == body


@given(st.integers(0, 255), st.integers(1, 16_384), st.integers(1, 16_384), st.integers(0, 255))
def test_fragments_that_disagree_about_type_or_length_are_an_illegal_parameter(
    kind, length, other, other_kind
):
    reassembler = Reassembler(LIMITS, None)
    reassembler.add(Fragment(kind, length, 0, 0, b"x"))
    size_before = reassembler._size
    if (kind, length) == (other_kind, other):
        return
    with pytest.raises(HandshakeFailure) as caught:
        reassembler.add(Fragment(other_kind, other, 0, 0, b"x"))
    assert caught.value.description is AlertDescription.ILLEGAL_PARAMETER
    assert isinstance(caught.value.cause, ProtocolViolation)
    assert reassembler._size == size_before


@pytest.mark.parametrize(("length", "offset"), [(1, 0), (1, 1), (100, 50), (16_384, 0), (16_384, 16_384)])
def test_an_empty_fragment_of_a_message_that_is_not_empty_holds_no_memory(length, offset):
    totals = ServerStatistics()
    reassembler = Reassembler(LIMITS, totals)
    assert reassembler.add(Fragment(1, length, 0, offset, b"")) is DiscardReason.HANDSHAKE_FRAGMENT
    assert totals.reassembly_size == 0
    assert reassembler.pop() is None


def test_an_empty_message_is_complete_at_once():
    reassembler = Reassembler(LIMITS, None)
    assert reassembler.add(Fragment(14, 0, 0, 0, b"")) is None
    assert drain(reassembler)[0].body == b""


def test_a_header_that_announces_16_mib_allocates_nothing():
    reassembler = Reassembler(LIMITS, None)
    tracemalloc.start()
    with pytest.raises(HandshakeFailure) as caught:
        reassembler.add(Fragment(1, 0xFFFFFF, 0, 0, b"x"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.description is AlertDescription.ILLEGAL_PARAMETER
    assert peak < 10_000


def test_a_header_of_legal_length_allocates_only_what_arrived():
    reassembler = Reassembler(Limits(max_handshake_message_size=131_072), None)
    tracemalloc.start()
    reassembler.add(Fragment(1, 131_072, 0, 131_071, b"x"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000


@pytest.mark.parametrize("size", [256, 1000])
def test_the_limit_per_message_is_exact(size):
    limits = Limits(max_handshake_message_size=size)
    reassembler = Reassembler(limits, None)
    assert reassembler.add(Fragment(1, size, 0, 0, bytes(size))) is None
    with pytest.raises(HandshakeFailure, match="max_handshake_message_size"):
        reassembler.add(Fragment(1, size + 1, 1, 0, b"x"))


def test_the_limit_per_connection_holds_and_makes_room_again():
    limits = Limits(max_reassembly_size=1000)
    reassembler = Reassembler(limits, None)
    assert reassembler.add(Fragment(1, 1000, 0, 100, bytes(700))) is None
    assert reassembler.add(Fragment(1, 900, 1, 100, bytes(700))) is DiscardReason.REASSEMBLY_LIMIT
    assert reassembler.add(Fragment(1, 1000, 0, 0, bytes(100))) is None
    assert reassembler.add(Fragment(1, 1000, 0, 800, bytes(200))) is DiscardReason.REASSEMBLY_LIMIT
    reassembler.clear()
    assert reassembler.add(Fragment(1, 1000, 0, 100, bytes(700))) is None


def test_the_limit_in_total_holds_across_connections():
    totals, limits = ServerStatistics(), Limits(max_total_reassembly_size=1000)
    first, second = Reassembler(limits, totals), Reassembler(limits, totals)
    assert first.add(Fragment(1, 700, 0, 0, bytes(600))) is None
    assert second.add(Fragment(1, 700, 0, 0, bytes(600))) is DiscardReason.REASSEMBLY_LIMIT
    first.clear()
    assert totals.reassembly_size == 0
    assert second.add(Fragment(1, 700, 0, 0, bytes(600))) is None


def test_where_there_is_no_room_whoever_holds_most_gives_way_to_one_that_holds_less_than_half():
    totals, limits = ServerStatistics(), Limits(max_total_reassembly_size=4000)
    hog, other, newcomer = (Reassembler(limits, totals) for _ in range(3))
    assert hog.add(Fragment(1, 3000, 0, 0, bytes(2900))) is None
    assert other.add(Fragment(1, 700, 0, 0, bytes(600))) is None
    assert newcomer.add(Fragment(1, 900, 0, 0, bytes(800))) is None
    assert totals.reassembly_size == 600 + 800 + 4 * FRAGMENT_COST  # the hog's is gone
    assert (
        hog.add(Fragment(1, 3000, 0, 0, bytes(2900))) is DiscardReason.REASSEMBLY_LIMIT
    )  # it is the largest
    for one in (hog, other, newcomer):
        one.clear()
    assert totals.reassembly_size == 0
    assert totals.holders.larger_than(0) is None


def test_a_message_that_is_whole_and_next_needs_no_room():
    totals, limits = ServerStatistics(), Limits(max_total_reassembly_size=256)
    others, honest = Reassembler(limits, totals), Reassembler(limits, totals)
    assert others.add(Fragment(1, 200, 0, 0, bytes(120))) is None
    whole = Fragment(1, 100, 0, 0, bytes(100))
    assert honest.add(whole) is DiscardReason.REASSEMBLY_LIMIT  # unless somebody takes it out at once
    assert honest.add(whole._replace(message_seq=1), at_once=True) is DiscardReason.REASSEMBLY_LIMIT
    assert honest.add(whole, at_once=True) is None
    assert honest.pop() == HandshakeMessage(1, 0, bytes(100))
    assert totals.reassembly_size == 120 + 2 * FRAGMENT_COST


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5000)), max_size=80), st.integers(0, 6000))
def test_the_largest_holder_is_found_but_for_a_factor_of_two(changes, size):
    class Hand:
        def clear(self):
            """Nothing is asked of it here."""

    holders, hands, held = Holders(), [Hand() for _ in range(6)], [0] * 6
    for which, after in changes:
        holders.changed(hands[which], held[which], after)
        held[which] = after
    found = holders.larger_than(size)
    if found is None:
        assert max(held) < 2 * max(size, 1)
    else:
        most = held[next(n for n, hand in enumerate(hands) if hand is found)]
        assert most > size
        assert 2 * most > max(held)


def test_each_range_is_charged_so_that_tiny_fragments_cannot_cheat_the_limit():
    limits = Limits(max_reassembly_size=10_000)
    reassembler = Reassembler(limits, None)
    kept = [reassembler.add(Fragment(1, 16_000, 0, 2 * i, b"x")) for i in range(8000)].count(None)
    assert kept <= 10_000 // (FRAGMENT_COST + 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 299), st.integers(1, 300)), max_size=60))
def test_what_is_held_never_exceeds_the_limit_and_is_what_is_charged(spans):
    limits = Limits(max_reassembly_size=2000)
    totals = ServerStatistics()
    reassembler = Reassembler(limits, totals)
    for message_seq, start, length in spans:
        body = bytes(min(length, 300 - start))
        reassembler.add(Fragment(1, 301, message_seq, start, body))  # the last byte never comes
        held = sum(len(piece) for partial in reassembler._partial.values() for piece in partial._pieces)
        assert held <= totals.reassembly_size <= 2000
    reassembler.clear()
    assert totals.reassembly_size == 0


@pytest.mark.parametrize("ahead", [1, 8, 64])
def test_a_message_further_ahead_than_the_limit_is_of_no_use(ahead):
    reassembler = Reassembler(Limits(max_messages_ahead=ahead), None, next_seq=3)
    assert reassembler.add(Fragment(1, 5, 3 + ahead, 0, b"x")) is None
    assert reassembler.add(Fragment(1, 5, 4 + ahead, 0, b"x")) is DiscardReason.HANDSHAKE_FRAGMENT


def test_a_fragment_that_fills_many_gaps_at_once_stays_within_the_limit():
    totals = ServerStatistics()
    reassembler = Reassembler(Limits(max_reassembly_size=2000), totals)
    for offset in range(0, 50, 2):
        reassembler.add(Fragment(1, 301, 0, offset, b"x"))
    reassembler.add(Fragment(1, 301, 0, 0, bytes(50)))
    assert totals.reassembly_size <= 2000
