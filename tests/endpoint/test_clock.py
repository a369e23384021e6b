"""The clock that outlives its process: exact within a boot, careful across boots, never backwards."""

import contextlib
import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from endpoint.clock import MAX_GAP, PLAUSIBLE, AnchorError, ClockSources, LastingClock, read_boot_id

TODAY = PLAUSIBLE + 40_000_000.0
BOOTED = 1_000.0


class Machine:
    """A machine whose clocks a test turns. ``after`` makes the next process."""

    def __init__(self, *, boot="b1", boottime=BOOTED, wall=TODAY, progress=500.0):
        self.boot, self.boottime, self.wall, self.progress = boot, boottime, wall, progress

    def pass_time(self, seconds):
        self.boottime += seconds
        self.wall += seconds
        self.progress += seconds

    @property
    def sources(self):
        return ClockSources(
            progress=lambda: self.progress,
            boottime=lambda: self.boottime,
            wall=lambda: self.wall,
            boot_id=lambda: self.boot,
        )

    def clock(self, *anchors):
        return LastingClock.resume(*anchors, sources=self.sources)


def after(anchor, **machine):
    """What the clock says that goes on from ``anchor`` on a machine like this; trio's begins anywhere."""
    return Machine(**{"progress": 77_000.0, **machine}).clock(anchor)()


@pytest.fixture
def stopped():
    """A machine whose service has run for a minute, the clock's last reading and what was kept."""
    machine = Machine()
    clock = machine.clock()
    machine.pass_time(60)
    return machine, clock(), clock.anchor()


def test_without_an_anchor_it_is_trios_clock():
    machine = Machine()
    clock = machine.clock()
    assert (clock(), clock.ahead) == (500.0, 0.0)
    machine.pass_time(2.5)
    assert clock() == 502.5


async def test_by_default_it_moves_with_trios_mock_clock(autojump_clock):
    clock = LastingClock()
    assert clock() == trio.current_time()
    again = LastingClock.resume(clock.anchor())
    before = again()
    await trio.sleep(3600)
    assert again() - before == pytest.approx(3600)
    assert again() == pytest.approx(trio.current_time() + again.ahead)


def test_within_a_boot_the_time_between_is_exact_whatever_the_wall_clock_does(stopped):
    machine, last, anchor = stopped
    assert after(anchor, boottime=machine.boottime + 7.25, wall=0.0) == last + 7.25


def test_the_next_process_goes_on_and_so_does_the_one_after_it(stopped):
    machine, last, anchor = stopped
    machine.pass_time(10)
    second = machine.clock(anchor)
    machine.pass_time(5)
    kept = second.anchor()
    machine.progress = 3.0  # a third process; its own clock has begun anew
    assert machine.clock(kept)() == last + 15


def test_after_a_boot_the_wall_clock_tells_the_time_between(stopped):
    machine, last, anchor = stopped
    assert after(anchor, boot="b2", boottime=20.0, wall=machine.wall + 3600) == last + 3600


@pytest.mark.parametrize("wall", [0.0, 86_400.0, TODAY - 5], ids=["1970", "the day after", "set back"])
def test_a_wall_clock_that_is_behind_counts_as_the_time_since_the_boot(stopped, wall):
    _, last, anchor = stopped
    assert after(anchor, boot="b2", boottime=20.0, wall=wall) == last + 20


@pytest.mark.parametrize("wall", [300.0, PLAUSIBLE - 1.0], ids=["1970", "when its firmware was made"])
def test_an_anchor_from_before_the_network_told_the_time_ends_nothing(wall):
    machine = Machine(wall=wall)
    clock = machine.clock()
    # The gateway's clock was never set until it stopped, and is right when it starts: no years have passed.
    assert after(clock.anchor(), boot="b2", boottime=20.0, wall=TODAY) == clock() + 20


def test_a_wall_clock_beyond_all_reason_is_not_believed(stopped):
    machine, last, anchor = stopped
    assert after(anchor, boot="b2", boottime=20.0, wall=machine.wall + MAX_GAP) == last + MAX_GAP
    assert after(anchor, boot="b2", boottime=20.0, wall=machine.wall + MAX_GAP + 1) == last + 20


def test_where_boots_have_no_names_it_may_be_the_same_one_and_its_length_counts_for_nothing():
    machine = Machine(boot="")
    clock = machine.clock()
    far = machine.boottime + 9_000_000
    assert after(clock.anchor(), boot="", boottime=far, wall=TODAY + 60) == clock() + 60
    assert after(clock.anchor(), boot="", boottime=far, wall=0.0) == clock()


def test_in_another_time_namespace_it_stands_still_rather_than_go_back(stopped):
    _, last, anchor = stopped
    assert after(anchor, boottime=3.0) == last


def test_a_jump_of_the_wall_clock_moves_nothing_within_a_process(stopped):
    machine, _, anchor = stopped
    clock = machine.clock(anchor)
    before = clock()
    machine.wall += 1e9
    assert clock() == before


def test_of_several_anchors_the_furthest_counts():
    machine = Machine()
    near, far = machine.clock(), LastingClock(machine.sources, ahead=1000.0)
    assert machine.clock(near.anchor(), far.anchor(), near.anchor())() == far()


CHANGES = st.tuples(
    st.sampled_from(["b1", "b2", ""]),
    st.floats(0, 4e9, allow_nan=False),
    st.floats(-1e6, 5e9, allow_nan=False),
    st.floats(0, 1e7, allow_nan=False),
)


@given(st.lists(CHANGES, min_size=1, max_size=6))
def test_it_never_goes_back_and_never_far_ahead(processes):
    machine = Machine()
    clock = machine.clock()
    for boot, boottime, wall, ran in processes:
        machine.pass_time(ran)
        before, anchor = clock(), clock.anchor()
        machine.boot, machine.boottime, machine.wall, machine.progress = boot, boottime, wall, 5.0
        clock = machine.clock(anchor)
        assert before - 1e-3 <= clock() <= before + max(MAX_GAP, boottime) + 1e-3


@pytest.mark.parametrize(
    "anchor",
    [
        b"",
        b"7",
        b"{}",
        b'{"boot":"b","boottime":1,"wall":2}',
        b'{"boot":"b","boottime":1,"wall":2,"clock":NaN}',
        b'{"boot":"b","boottime":1,"wall":2,"clock":1e300}',
        b'{"boot":"b","boottime":1,"wall":2,"clock":null}',
        b'{"boot":5,"boottime":1,"wall":2,"clock":3}',
        b'{"boot":"b","boottime":1,"wall":2,"clock":3,"more":4}',
        b'{"boot":"' + b"b" * 600 + b'","boottime":1,"wall":2,"clock":3}',
        b"[" * 400,
        b"\xff\xfe",
    ],
    ids=range(12),
)
def test_what_is_no_anchor_is_refused(anchor):
    with pytest.raises(AnchorError, match=r"^the clock's anchor cannot be read$"):
        Machine().clock(anchor)


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_an_anchor_or_an_error(data):
    with contextlib.suppress(AnchorError):
        Machine().clock(data)


def test_an_anchor_is_one_short_line_and_tells_nothing_but_times(stopped):
    *_, anchor = stopped
    assert set(json.loads(anchor)) == {"boot", "boottime", "wall", "clock"}
    assert b"\n" not in anchor


def test_this_machine_names_its_boot():
    assert len(read_boot_id()) == 36
    anchor = json.loads(LastingClock(ClockSources(progress=lambda: 1.0)).anchor())
    assert anchor["boottime"] > 0
    assert anchor["wall"] > PLAUSIBLE
