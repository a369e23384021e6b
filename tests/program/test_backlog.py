"""The bounded buffer that sinks share: what is kept, what is dropped, and when the operator hears of it."""

from collections import deque

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.testing import wait_all_tasks_blocked

from endpoint.forward.backlog import Backlog
from tests.program.sinks import Told


def filled(*sizes, limit=100, overflow="newest"):
    told = Told()
    backlog: Backlog[int] = Backlog(limit, tell=told, overflow=overflow, output="there")
    for number, size in enumerate(sizes):
        backlog.put(number, size)
    return backlog, told


async def test_newest_keeps_what_it_has_and_in_order():
    backlog, told = filled(40, 40, 30, 10)
    assert await backlog.take(1000) == [0, 1, 3]
    assert (backlog.held, backlog.drops) == (90, {"overflow": 1})
    assert told.facts == [("forward_overflow", {"output": "there", "buffer": 100})]


async def test_oldest_makes_room_for_the_last():
    backlog, told = filled(40, 40, 30, 60, overflow="oldest")
    assert await backlog.take(1000) == [2, 3]
    assert (backlog.held, backlog.drops) == (90, {"overflow": 2})
    assert told.events == ["forward_overflow"]


async def test_what_can_never_fit_pushes_nothing_out():
    backlog, _ = filled(40, 101, overflow="oldest")
    assert await backlog.take(1000) == [0]
    assert backlog.drops == {"overflow": 1}


async def test_oldest_does_not_touch_what_was_taken():
    backlog, _ = filled(60, 30, overflow="oldest")
    assert await backlog.take(60) == [0]
    assert backlog.put(2, 40)
    assert not backlog.put(3, 50)
    backlog.put_back()
    assert await backlog.take(1000) == [0, 2]


async def test_one_is_taken_even_if_it_is_larger_than_asked_for_and_no_more_than_counted():
    backlog, _ = filled(60, 10, 10, 10)
    assert await backlog.take(5) == [0]
    backlog.done(1)
    assert await backlog.take(1000, 2) == [1, 2]


async def test_the_end_of_dropping_is_told_when_half_is_free():
    backlog, told = filled(*[10] * 13)
    await backlog.take(1000)
    backlog.done(4)
    assert told.events == ["forward_overflow"]
    backlog.done(1)
    assert told.facts[1:] == [("forward_resumed", {"dropped": 3})]
    backlog.done(5)
    assert (backlog.handed_on, backlog.held) == (10, 0)
    assert len(told.facts) == 2


async def test_what_is_lost_on_the_way_is_counted_by_its_reason_and_told_once():
    backlog, told = filled(10, 10, 10)
    await backlog.take(1000)
    backlog.lose(1, "too_large", "forward_too_large", size=10)
    backlog.lose(1, "write_failed", "forward_write_failed", reason="no space")
    assert told.facts == [("forward_too_large", {"size": 10})]
    backlog.done(1)
    assert told.facts[1:] == [("forward_resumed", {"dropped": 2})]
    assert backlog.drops == {"too_large": 1, "write_failed": 1}


async def test_flushed_waits_until_nothing_is_held():
    backlog, _ = filled(10)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backlog.flushed)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            await backlog.take(100)
            backlog.done(1)


async def test_take_waits_for_something():
    backlog, _ = filled()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backlog.take, 100)
            await wait_all_tasks_blocked()
            backlog.put(1, 1)


class Buffered(RuleBasedStateMachine):
    """Any order of calls, against a plain list."""

    overflow = "newest"

    def __init__(self):
        super().__init__()
        self.told: list[str] = []
        self.backlog: Backlog[int] = Backlog(
            100,
            tell=lambda event, **_: self.told.append(event),
            overflow=self.overflow,  # type: ignore[arg-type]
        )
        self.waiting: deque[tuple[int, int]] = deque()
        self.taken: deque[tuple[int, int]] = deque()
        self.number = self.kept = self.gone = self.lost = 0

    @property
    def size(self):
        return sum(size for size, _ in [*self.waiting, *self.taken])

    @rule(size=st.integers(0, 130))
    def put(self, size):
        self.number += 1
        if self.overflow == "oldest" and size + sum(taken for taken, _ in self.taken) <= 100:
            while self.waiting and self.size + size > 100:
                self.waiting.popleft()
                self.lost += 1
        fits = self.size + size <= 100
        assert self.backlog.put(self.number, size) == fits
        if fits:
            self.waiting.append((size, self.number))
        else:
            self.lost += 1

    @precondition(lambda self: self.waiting)
    @rule(size=st.integers(0, 130), count=st.integers(1, 5))
    def take(self, size, count):
        total = 0
        while self.waiting and len(self.taken) < count:
            total += self.waiting[0][0]
            if self.taken and total > size:
                break
            self.taken.append(self.waiting.popleft())
        taking = self.backlog.take(size, count)
        with pytest.raises(StopIteration) as ended:  # it has nothing to wait for
            taking.send(None)
        assert ended.value.value == [number for _, number in self.taken]

    @rule(data=st.data())
    def deal_with_some(self, data):
        count = data.draw(st.integers(0, len(self.taken)))
        for _ in range(count):
            self.taken.popleft()
        if data.draw(st.booleans()):
            self.backlog.done(count)
            self.gone += count
        elif count:
            self.backlog.lose(count, "lost", "forward_lost")
            self.lost += count

    @rule()
    def put_back(self):
        self.backlog.put_back()
        self.waiting.extendleft(reversed(self.taken))
        self.taken.clear()

    @invariant()
    def it_is_all_accounted_for(self):
        assert self.backlog.held == self.size <= 100
        assert (self.backlog.handed_on, self.backlog.drops.total()) == (self.gone, self.lost)
        assert self.number == self.gone + self.lost + len(self.waiting) + len(self.taken)

    @invariant()
    def it_is_told_in_turns(self):
        assert self.told[1::2] == ["forward_resumed"] * (len(self.told) // 2)
        assert "forward_resumed" not in self.told[::2]


class BufferedOldest(Buffered):
    overflow = "oldest"


TestBufferedNewest = Buffered.TestCase
TestBufferedOldest = BufferedOldest.TestCase
