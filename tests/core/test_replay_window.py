"""The replay window against a model that remembers every number it has seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.record.replay import ReplayWindow


class Model:
    """RFC 6347 §4.1.2.6, naively: a set."""

    def __init__(self, width: int):
        self.width = width
        self.seen: set[int] = set()

    def accepts(self, number: int) -> bool:
        highest = max(self.seen, default=-1)
        return number not in self.seen and number > highest - self.width


@given(
    st.integers(32, 1024),
    st.lists(
        st.one_of(st.integers(0, 40), st.integers(0, 3000), st.integers(2**48 - 2000, 2**48 - 1)),
        max_size=150,
    ),
    st.sets(st.integers(0, 149)),
)
def test_the_window_accepts_exactly_what_a_set_of_seen_numbers_would(width, numbers, forged):
    window, model = ReplayWindow(width), Model(width)
    for position, number in enumerate(numbers):
        assert window.accepts(number) == model.accepts(number)
        if position in forged or not window.accepts(number):
            continue  # what does not authenticate, or is not accepted, never reaches mark()
        window.mark(number)
        model.seen.add(number)


@pytest.mark.parametrize("width", [32, 64, 1000, 1024])
def test_the_window_is_exactly_as_wide_as_it_says(width):
    window = ReplayWindow(width)
    window.mark(5000)
    assert window.accepts(5000 - width + 1)
    assert not window.accepts(5000 - width)
    assert not window.accepts(5000)
    assert window.accepts(5001)


def test_looking_does_not_move_the_window():
    window = ReplayWindow(64)
    window.mark(10)
    assert window.accepts(2**48 - 1)
    assert window.accepts(11)
    assert window.accepts(0)


def test_a_leap_over_the_whole_window_forgets_what_was_before():
    window = ReplayWindow(32)
    for number in range(32):
        window.mark(number)
    window.mark(10_000)
    assert all(window.accepts(number) for number in range(9_969, 10_000))
    assert not any(window.accepts(number) for number in range(9_969))
