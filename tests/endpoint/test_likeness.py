"""Names that are nearly the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.answers.likeness import LONGEST, likeness, similar


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        (b"meter-17", b"meter-17\0", "a NUL at the end"),
        (b"meter-17", b" meter-17\n", "blanks"),
        (b"meter-17", b"Meter-17", "case"),
        (b"meter-17", b"METER_17", "case, blanks or punctuation"),
        (b"00:1A:2B", b"001a2b", "case, blanks or punctuation"),
        (b"meter-17", b"meter-17".hex().encode(), "one being the other in hexadecimal"),
        (b"meter-17", b"meter-17".hex().upper().encode(), "one being the other in hexadecimal"),
        (b"meter-17", b"meter-71", "one character"),
        (b"meter-17", b"metr-17", "one character"),
        (b"meter-17", b"meter-17x", "one character"),
        (b"meter-17", b"meter-1", None),
        (b"meter-17", b"meter-178", None),
        (b"meter-17", b"meter-18", None),
        (b"meter-17", b"peter-17", "one character"),
        (b"meter-17", b"meter-28", None),
        (b"meter-17", b"meter-17", None),
        (b"m1", b"m2", None),
        (b"", b"x", None),
    ],
)
def test_likeness_in_words(one, other, how):
    assert likeness(one, other) == how
    assert likeness(other, one) == how


def test_those_that_are_alike_are_found_and_likely_slips_come_first():
    known = [b"meter-18", b"METER-17", b"pump", b"mater-17"]
    assert similar(b"meter-17", known, limit=2) == [(b"METER-17", "case"), (b"mater-17", "one character")]


def test_long_names_are_not_looked_at():
    assert likeness(b"x" * (LONGEST + 1), b"X" * (LONGEST + 1)) is None


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_two_names_can_be_compared_from_either_side(one, other):
    assert likeness(one, other) == likeness(other, one)
