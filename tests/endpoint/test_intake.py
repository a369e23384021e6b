"""The intake alone, with time that passes by what work costs: what waits, in which order, and what has to go."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endpoint.intake import MAX_DEBT, MAX_PER_PATH, REMEMBERED_SECONDS, SLICE, Intake, Remembered
from endpoint.quotas import QuotaPolicy
from sansdtls import ConfigError, DatagramKind

KINDS = {
    b"F": DatagramKind.HANDSHAKE,
    b"W": DatagramKind.FROZEN,
    b"C": DatagramKind.HELLO_WITH_COOKIE,
    b"H": DatagramKind.HELLO,
    b"J": DatagramKind.NOISE,
}
COST = 2**-13
"""Seconds, and a number without rounding errors."""
IN_A_SLICE = math.ceil(SLICE / COST)


def path(source, port=0):
    return 0, (source, port)


class Desk:
    """An intake, a timer that a test moves, and what has been handed over."""

    def __init__(self, *, cost=COST, **policy):
        self.time = 0.0
        self.cost = cost
        self.costs = {}
        """By source or letter, where it is not ``cost``."""
        self.handed = []
        self.sorted = 0
        self.intake = Intake(
            QuotaPolicy(**{"queued_datagrams": 64, "queued_bytes": 65_536} | policy),
            receive=self.receive,
            kind_of=self.kind_of,
            frozen_handle=lambda data, _path: data[1:2],
            source_of=lambda path: path[1][0],
            timer=lambda: self.time,
        )

    def receive(self, data, path, now):
        self.handed.append((data, path))
        self.time += self.costs.get(path[1][0], self.costs.get(data[:1], self.cost))

    def kind_of(self, data, path):
        self.sorted += 1
        return KINDS[data[:1]]

    def take(self, *datagrams, now=0.0):
        for data, where in datagrams:
            self.intake.take(data, where, now)

    def press(self):
        """Use up what time there is: from now on everything waits."""
        while self.intake._credit > 0:
            self.intake.take(b"J", path("presser"), 0.0)
        self.intake.end_turn(0, more=True)
        self.handed.clear()
        self.sorted = 0

    def relax(self):
        """The socket is empty."""
        return self.intake.end_turn(0, more=False)

    def serve_all(self, now=0.0):
        """All that waits, in order; the socket is empty all the while."""
        self.relax()
        self.handed.clear()
        while self.intake:
            self.intake.serve(now)
            self.intake.served()
        return [data for data, _ in self.handed]

    @property
    def waiting(self):
        return {name: count for name, count in self.intake.statistics()["waiting"].items() if count}


# --- with time for all ---


def test_what_comes_while_there_is_time_is_handed_on_at_once_and_not_even_sorted():
    desk = Desk()
    for number in range(100):
        desk.take((b"H%d" % number, path("a")), (b"F%d" % number, path("b")))
        assert not desk.intake.end_turn(0, more=False)
    assert len(desk.handed) == 200
    assert desk.sorted == len(desk.intake) == 0
    assert desk.intake.seconds_spent == pytest.approx(200 * COST)


def test_a_turn_hands_on_a_slice_of_work_and_what_is_left_waits_for_another():
    desk = Desk()
    desk.take(*((b"H%d" % number, path(number)) for number in range(50)))
    assert desk.intake.end_turn(0, more=False)
    assert len(desk.handed) == IN_A_SLICE
    desk.intake.serve(0.0)
    desk.intake.served()
    assert len(desk.handed) == 2 * IN_A_SLICE
    desk.serve_all()
    assert desk.intake.statistics()["waited"] == {"hello": 50 - IN_A_SLICE}
    assert desk.intake.seconds_spent == pytest.approx(50 * COST)


def test_idle_time_belongs_to_handshakes_alone():
    desk = Desk(handshake_share=0.05, queued_datagrams=1_000)
    desk.press()
    desk.take(*((b"H", path(number)) for number in range(500)))
    begun = desk.time
    desk.serve_all()
    assert desk.time - begun == pytest.approx(500 * COST)


# --- while there is not ---


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_while_more_is_to_be_read_handshakes_get_their_share_of_the_time(share):
    desk = Desk(handshake_share=share, queued_datagrams=10_000, queued_bytes=10**6)
    desk.press()
    desk.take(*((b"H", path(number)) for number in range(10_000)))
    begun, spent = desk.time, desk.intake.seconds_spent
    for _ in range(1_000):
        desk.time += 50e-6  # readings
        desk.intake.end_turn(0, more=True)
        desk.intake.serve(0.0)
        desk.intake.served()
    assert desk.intake
    assert (desk.intake.seconds_spent - spent) / (desk.time - begun) == pytest.approx(share, abs=0.02)


def test_what_was_earned_by_a_long_turn_is_a_slice_at_most():
    desk = Desk(handshake_share=0.5)
    desk.press()
    desk.take(*((b"H", path(number)) for number in range(60)))
    desk.time += 10.0
    desk.intake.end_turn(0, more=True)
    desk.intake.serve(0.0)
    assert len(desk.handed) == IN_A_SLICE


def test_what_sending_the_answers_takes_is_charged_as_well():
    desk = Desk(handshake_share=0.5)
    desk.press()
    desk.take(*((b"H", path(number)) for number in range(60)))
    desk.relax()
    desk.intake.serve(0.0)
    desk.time += 1.0
    desk.intake.served()
    assert desk.intake.seconds_spent >= 1.0


def test_a_debt_is_bounded_because_another_process_may_have_had_its_turn():
    desk = Desk(handshake_share=0.5)
    desk.costs[b"F"] = 10.0
    desk.take((b"F", path("a")), (b"H", path("b")))
    desk.intake.end_turn(0, more=True)
    desk.time += MAX_DEBT + SLICE
    desk.intake.end_turn(0, more=True)
    desk.intake.serve(0.0)
    assert [data for data, _ in desk.handed] == [b"F", b"H"]


def test_one_socket_that_is_behind_is_enough_to_hold_back_and_only_its_own_emptiness_ends_it():
    desk = Desk(handshake_share=0.05)
    desk.press()
    desk.take((b"H", path("a")))
    desk.intake.end_turn(1, more=False)
    desk.intake.serve(0.0)
    assert desk.handed == []
    desk.relax()
    desk.intake.serve(0.0)
    assert [data for data, _ in desk.handed] == [b"H"]


# --- the order of classes ---


def test_what_most_has_been_spent_on_is_served_first():
    desk = Desk()
    desk.press()
    desk.take(*((letter, path(letter)) for letter in (b"J", b"H", b"C", b"W", b"F")))
    assert desk.serve_all() == [b"F", b"W", b"C", b"H", b"J"]


def test_no_class_silences_the_others_however_much_of_it_comes():
    desk = Desk(queued_datagrams=10_000, queued_bytes=10**6)
    desk.press()
    for letter in (b"F", b"W", b"C"):
        desk.take(*((letter + b"%d" % number, path((letter, number))) for number in range(1_000)))
    desk.take((b"H", path("a")), (b"J", path("b")))
    handed = desk.serve_all()
    assert handed.index(b"H") < 50
    assert handed.index(b"J") < 100


def test_classes_share_time_by_weight_and_not_by_number():
    desk = Desk(queued_datagrams=10_000, queued_bytes=10**6)
    desk.costs[b"C"] = 8 * COST
    desk.press()
    for letter in (b"F", b"C"):
        desk.take(*((letter + b"%d" % number, path((letter, number))) for number in range(1_000)))
    first = Counter(data[:1] for data in desk.serve_all()[:680])
    assert first[b"F"] / first[b"C"] == pytest.approx(16, rel=0.1)  # weights 8 and 4, prices 1 and 8


def test_a_class_does_not_save_up_what_it_did_not_use():
    desk = Desk(queued_datagrams=10_000, queued_bytes=10**6)
    desk.press()
    desk.take(*((b"H", path(number)) for number in range(1_000)))
    desk.serve_all()
    desk.press()
    desk.take(
        *((b"C", path(number)) for number in range(100)), *((b"H", path(number, 1)) for number in range(100))
    )
    assert b"H" in desk.serve_all()[:8]


# --- sources and paths ---


def test_sources_take_turns_however_much_one_of_them_sends():
    desk = Desk(queued_datagrams=1_000)
    desk.press()
    desk.take(*((b"F%d" % number, path("nat", number)) for number in range(500)))
    desk.take((b"Fa", path("a")), (b"Fb", path("b")))
    handed = desk.serve_all()
    assert max(handed.index(b"Fa"), handed.index(b"Fb")) <= 3


def test_the_paths_of_a_source_take_turns_too():
    desk = Desk(queued_datagrams=1_000)
    desk.press()
    desk.take(*((b"F%d" % number, path("nat", 1)) for number in range(20)))
    desk.take((b"Fother", path("nat", 2)))
    assert desk.serve_all().index(b"Fother") == 1


def test_who_was_dear_sits_out_and_who_is_cheap_goes_on():
    desk = Desk(queued_datagrams=1_000)
    desk.costs[b"W"] = 1e-3
    desk.press()
    desk.take(*((b"Wa%d" % number, path("a", number)) for number in range(9)))
    assert desk.serve_all() == [b"Wa%d" % number for number in range(9)]  # alone it need not wait for anybody
    desk.press()
    desk.costs["dear"] = 1e-3
    for number in range(20):
        desk.take((b"Fdear", path("dear", number)), (b"Fcheap", path("cheap", number)))
    first = Counter(desk.serve_all()[:16])
    assert first == {b"Fdear": 4, b"Fcheap": 12}  # two rounds out for each


def test_junk_for_one_that_sleeps_does_not_hold_up_anothers_waking():
    desk = Desk(queued_datagrams=1_000)
    desk.press()
    desk.take(
        *((b"Wx", path(number)) for number in range(300))
    )  # from anywhere, but for the same association
    desk.take((b"Wy", path("y")))
    assert desk.serve_all().index(b"Wy") == 1


def test_a_flight_stays_in_order_also_where_its_end_is_of_another_kind():
    desk = Desk()
    desk.press()
    desk.take(
        (b"C1", path("a")), (b"F2", path("a")), (b"W3", path("a")), (b"J4", path("a")), (b"F5", path("a"))
    )
    assert desk.waiting == {"handshake": 5}
    assert desk.serve_all() == [b"C1", b"F2", b"W3", b"J4", b"F5"]


def test_a_repeated_hello_takes_the_place_of_the_one_that_waits():
    desk = Desk()
    desk.press()
    desk.take((b"H-a1", path("a")), (b"H-b", path("b")), (b"H-a2", path("a")))
    assert desk.intake.superseded == 1
    assert desk.intake.statistics()["waiting_bytes"] == 7
    assert desk.serve_all() == [b"H-a2", b"H-b"]


def test_a_cookie_improves_the_place_of_a_path():
    desk = Desk()
    desk.press()
    desk.take((b"H-a", path("a")), (b"C-b", path("b")), (b"C-a", path("a")), (b"H-a2", path("a")))
    assert desk.waiting == {"hello_with_cookie": 3}
    assert desk.serve_all() == [b"C-b", b"H-a2", b"C-a"]


# --- no room ---


def test_what_waits_is_bounded_in_datagrams():
    desk = Desk(queued_datagrams=64)
    desk.press()
    desk.take(*((b"H", path(number)) for number in range(1_000)))
    assert len(desk.intake) == 64
    assert desk.intake.dropped == {"hello": 936}
    assert desk.intake.drops_by_stage == {"waiting_hello": 936}


def test_what_waits_is_bounded_in_bytes():
    desk = Desk(queued_datagrams=10_000, queued_bytes=65_536)
    desk.press()
    desk.take(*((b"H" + bytes(4_095), path(number)) for number in range(100)))
    assert desk.intake.statistics()["waiting_bytes"] == 65_536
    assert desk.intake.dropped == {"hello": 84}
    desk.take((b"F" + bytes(65_535), path("large")))  # one of any size fits
    assert desk.intake.statistics()["waiting_bytes"] <= 65_536


def test_a_repeated_hello_that_has_grown_does_not_break_the_bound():
    desk = Desk(queued_bytes=65_536)
    desk.press()
    desk.take(*((b"H" + bytes(2_000), path(number)) for number in range(32)), (b"H" + bytes(10_000), path(7)))
    assert desk.intake.statistics()["waiting_bytes"] <= 65_536
    assert desk.intake.superseded == 1
    assert sum(desk.intake.dropped.values()) + len(desk.intake) == 32


def test_a_path_may_not_have_more_waiting_than_a_flight_and_its_repetition():
    desk = Desk(queued_datagrams=1_000)
    desk.press()
    desk.take(*((b"F%d" % number, path("a")) for number in range(MAX_PER_PATH + 5)))
    assert desk.intake.dropped == {"handshake": 5}
    assert desk.serve_all() == [b"F%d" % number for number in range(MAX_PER_PATH)]


def test_what_waits_for_a_sleeper_goes_with_the_record_that_wakes_it():
    desk = Desk(queued_datagrams=1_000)
    # Of a live association it would be another kind.
    desk.intake._kind_of = lambda data, _: KINDS[
        b"F" if any(one == b"W0" for one, _ in desk.handed) else data[:1]
    ]
    desk.press()
    desk.take(*((b"W%d" % number, path("a")) for number in range(100)))
    desk.relax()
    desk.intake.serve(0.0)
    assert [data for data, _ in desk.handed] == [b"W%d" % number for number in range(100)]
    assert len(desk.intake) == desk.intake.statistics()["waiting_bytes"] == 0
    assert desk.intake.statistics()["waited"]["frozen"] == 100
    assert not desk.intake.dropped


def test_junk_for_a_sleeper_opens_the_way_for_nothing_else():
    desk = Desk(queued_datagrams=1_000)
    desk.press()
    desk.take(*((b"W%d" % number, path("a")) for number in range(100)))
    desk.take(*((b"H%d" % number, path("b")) for number in range(100)))
    desk.relax()
    desk.intake.serve(0.0)
    assert len(desk.handed) <= IN_A_SLICE + 1


def test_a_flood_of_one_class_takes_no_room_from_what_others_have_within_their_part():
    desk = Desk(queued_datagrams=230, queued_bytes=10**6)
    desk.press()
    for letter, weight in ((b"F", 8), (b"W", 4), (b"C", 4)):
        desk.take(*((letter + b"%d" % number, path((letter, number))) for number in range(10 * weight)))
    desk.take(
        *((b"J", path(number)) for number in range(1_000)),
        *((b"H", path(number, 1)) for number in range(1_000)),
    )
    assert desk.waiting == {"handshake": 80, "frozen": 40, "hello_with_cookie": 40, "hello": 47, "noise": 23}
    assert set(desk.intake.dropped) == {"hello", "noise"}


def test_large_datagrams_of_one_class_take_no_room_from_small_ones_of_another():
    desk = Desk(queued_datagrams=10_000, queued_bytes=230_000)
    desk.press()
    for letter, count in ((b"F", 79), (b"W", 39), (b"C", 39)):  # just within 8, 4 and 4 of 23 parts
        desk.take(*((letter + bytes(1_000), path((letter, number))) for number in range(count)))
    desk.take(*((b"H" + bytes(5_000), path(number)) for number in range(100)))
    assert desk.intake.dropped.keys() == {"hello"}
    assert desk.waiting == {"handshake": 79, "frozen": 39, "hello_with_cookie": 39, "hello": 14}


def test_who_has_most_waiting_loses_whoever_came_first():
    desk = Desk(queued_datagrams=100)
    desk.press()
    desk.take(*((b"Hhonest%d" % number, path(number)) for number in range(40)))
    desk.take(*((b"H", path("flood", number)) for number in range(60)))
    desk.take(*((b"Hlater%d" % number, path("later", number)) for number in range(5)))
    handed = desk.serve_all()
    assert sum(data.startswith(b"Hhonest") for data in handed) == 40
    assert sum(data.startswith(b"Hlater") for data in handed) == 5


def test_a_source_that_fills_the_queue_gives_way_to_those_that_have_little():
    desk = Desk(queued_datagrams=100)
    desk.press()
    desk.take(*((b"H", path("flood", number)) for number in range(1_000)))
    desk.take(*((b"Hhonest%d" % number, path(number)) for number in range(40)))
    handed = desk.serve_all()
    assert sum(data.startswith(b"Hhonest") for data in handed) == 40
    assert len(handed) == 100


def test_who_has_waited_longest_keeps_the_place_when_somebody_worthier_needs_room():
    desk = Desk(queued_datagrams=100)
    desk.press()
    desk.take(*((b"H%d" % number, path(number)) for number in range(100)))
    desk.take(*((b"F", path(("F", number))) for number in range(30)))
    assert desk.waiting == {"hello": 70, "handshake": 30}
    assert [data for data in desk.serve_all() if data != b"F"] == [b"H%d" % number for number in range(70)]


def test_the_next_hello_of_one_that_was_dropped_is_in_a_better_class():
    desk = Desk()
    desk.press()
    desk.take(*((b"H", path(number)) for number in range(64)), (b"H-a", path("a")))
    assert desk.intake.dropped == {"hello": 1}
    desk.take(*((b"H", path(number, 1)) for number in range(100)), now=1.0)
    desk.take((b"H-a", path("a")), now=1.0)
    assert desk.waiting == {"hello": 63, "hello_again": 1}
    assert desk.serve_all()[0] == b"H-a"


def test_a_cookie_that_was_dropped_is_remembered_as_well():
    desk = Desk()
    desk.press()
    desk.take(*((b"C", path(number)) for number in range(64)), (b"C-a", path("a")), (b"C-a", path("a")))
    assert desk.waiting == {"hello_with_cookie": 63, "hello_again": 1}


def test_dropped_hellos_are_remembered_for_one_to_two_periods():
    remembered = Remembered()
    assert not remembered.has("a", 0.0)
    assert not remembered.has("a", REMEMBERED_SECONDS)
    for begin in (0.0, 100 * REMEMBERED_SECONDS, 254 * REMEMBERED_SECONDS, 1e6 * REMEMBERED_SECONDS):
        remembered.add("a", begin + 0.5)
        assert remembered.has("a", begin + 0.5)
        assert remembered.has("a", begin + 2 * REMEMBERED_SECONDS - 0.1)
        assert not remembered.has("a", begin + 2 * REMEMBERED_SECONDS + 0.1)
        assert not remembered.has("a", begin + 100 * REMEMBERED_SECONDS)


def test_a_crowd_of_strangers_is_seldom_taken_for_those_that_were_dropped():
    remembered = Remembered()
    for number in range(100_000):
        remembered.add((0, (number * 2_654_435_761 % 2**32, 1)), 0.0)
    strangers = sum(remembered.has((1, (number * 40_503 % 2**32, 2)), 0.0) for number in range(10_000))
    assert strangers < 500


def test_data_for_those_that_sleep_are_handed_over_when_the_engine_stops():
    desk = Desk()
    desk.press()
    desk.take((b"H", path("a")), (b"Wx", path("x")), (b"Wy", path("y")), (b"F", path("b")))
    desk.intake.flush_frozen(0.0)
    assert [data for data, _ in desk.handed] == [b"Wx", b"Wy"]
    assert desk.waiting == {"handshake": 1, "hello": 1}


def test_how_long_it_waited_is_summed_up():
    desk = Desk()
    desk.press()
    desk.take((b"H", path("a")), now=10.0)
    desk.take((b"H", path("b")), now=11.0)
    desk.serve_all(now=12.0)
    assert desk.intake.statistics()["seconds_waited"] == 3.0


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("handshake_share", 0.04, "0.05 to 0.95 of the time"),
        ("handshake_share", 1, "0.05 to 0.95 of the time"),
        ("queued_datagrams", 63, "64 to 10000000 datagrams"),
        ("queued_datagrams", 64.5, "whole number"),
        ("queued_bytes", 65_535, "65536 to 10000000000 bytes"),
    ],
)
def test_limits_outside_their_range_are_refused(field, value, expected):
    with pytest.raises(ConfigError, match=expected):
        QuotaPolicy(**{field: value})


# --- whatever happens ---

arrivals = st.tuples(
    st.just("take"),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 40),
    st.integers(0, 3_000),
)
turns = st.tuples(st.just("turn"), st.integers(0, 1), st.booleans(), st.floats(0, 3e-3))
services = st.tuples(st.just("serve"))
steps = st.lists(st.one_of(arrivals, arrivals, arrivals, turns, services), max_size=300)


@settings(deadline=None, max_examples=150)
@given(steps=steps, press=st.booleans())
def test_whatever_comes_is_within_bounds_in_order_and_counted_exactly(steps, press):
    desk = Desk(cost=3e-4, queued_datagrams=64, queued_bytes=65_536)
    intake, now = desk.intake, 0.0
    if press:
        desk.press()
    given_: Counter[bytes] = Counter()
    order: dict[tuple, list[bytes]] = {}
    serial = 0
    for step in steps:
        now += 0.01
        if step[0] == "take":
            _, letter, source, port, size = step
            serial += 1
            data = letter + b"%06d" % serial + bytes(size)
            where = path(source, port)
            order.setdefault(where, []).append(data)
            given_[letter] += 1
            intake.take(data, where, now)
        elif step[0] == "turn":
            _, socket, more, seconds = step
            desk.time += seconds
            assert intake.end_turn(socket, more=more) == bool(intake)
        else:
            before = desk.time
            intake.serve(now)
            intake.served()
            assert desk.time - before <= SLICE + desk.cost
        figures = intake.statistics()
        assert len(intake) == sum(figures["waiting"].values()) <= 64
        assert 0 <= figures["waiting_bytes"] <= 65_536
        assert (figures["waiting_bytes"] == 0) == (len(intake) == 0)
        assert (
            len(desk.handed) + sum(intake.dropped.values()) + intake.superseded + len(intake)
            == given_.total()
        )
    for socket in (0, 1):
        intake.end_turn(socket, more=False)
    while intake:
        intake.serve(now)
        intake.served()
    assert intake._paths == {}
    assert all(queue.sources == queue.size == queue.longest == 0 for queue in intake._queues)
    for where, sent in order.items():
        got = [data for data, at in desk.handed if at == where and data[:1] not in (b"H", b"C")]
        assert got == [data for data in sent if data in got]  # none twice, none before an earlier one
