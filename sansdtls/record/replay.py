"""The anti-replay window, RFC 6347 §4.1.2.6.

Looking and moving are two calls: "The receive window is updated only if the MAC verification
succeeds." A window moved by a forged record would make the receiver drop genuine ones.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache
def _mask(width: int) -> int:
    """As many ones. One object of 36 bytes for all windows."""
    return (1 << width) - 1


class ReplayWindow:
    """Which of the last ``width`` sequence numbers of an epoch have been seen."""

    __slots__ = ("_mask", "_width", "highest", "seen")

    def __init__(self, width: int) -> None:
        self._width = width
        self._mask = _mask(width)
        self.highest = -1
        """The newest sequence number seen; -1 before the first."""
        self.seen = 0
        """Bit i is set if ``highest - i`` was seen."""

    def accepts(self, sequence_number: int) -> bool:
        """Whether the number is new and within reach. Changes nothing."""
        age = self.highest - sequence_number
        if age < 0:
            return True
        return age < self._width and not self.seen >> age & 1

    def mark(self, sequence_number: int) -> None:
        """Remember the number of a record that has been authenticated."""
        age = self.highest - sequence_number
        if age < 0:
            self.seen = (self.seen << min(-age, self._width) | 1) & self._mask
            self.highest = sequence_number
        else:
            self.seen |= 1 << age

    def restore(self, highest: int, seen: int) -> None:
        """Go on from the window of an earlier object, which may have been narrower.

        What is older than the oldest number it remembers counts as seen: whether it was is not known.
        """
        self.highest = highest
        if highest >= 0:
            self.seen = (seen | -1 << seen.bit_length()) & self._mask & (2 << highest) - 1
