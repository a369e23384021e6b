"""Who holds how much of something that all share, so that the largest holder can give way.

Holders are sorted into classes, each for twice the size of the one before. To change class is rare and cheap, and the
largest is found without looking at all; it is the largest but for a factor of two.
"""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    """Holds something, and can be made to let go."""

    def clear(self) -> None:
        """Let go of everything, and say so by :meth:`Holders.changed`."""
        ...


class Holders:
    """Those that hold anything. Within a class who came first is first."""

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: dict[int, dict[Holder, None]] = {}

    def changed(self, holder: Holder, before: int, after: int) -> None:
        """``holder`` held ``before`` and holds ``after``."""
        old, new = before.bit_length(), after.bit_length()
        if old == new:
            return
        if old:
            members = self._classes[old]
            del members[holder]
            if not members:
                del self._classes[old]
        if new:
            self._classes.setdefault(new, {})[holder] = None

    def larger_than(self, size: int) -> Holder | None:
        """One that holds more than ``size``, by a class at least: one of the largest; ``None`` = there is none."""
        largest = max(self._classes, default=0)
        return next(iter(self._classes[largest])) if largest > size.bit_length() else None
