"""The retransmission timer of RFC 6347 §4.2.4.1 and the deadline of the whole handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sansdtls.config import RetransmitPolicy


class RetransmitTimer:
    """Doubles with each retransmission of a flight; starts over with the next flight."""

    __slots__ = ("_policy", "_timeout", "deadline", "last_sent", "overall_deadline", "retransmissions")

    def __init__(self, policy: RetransmitPolicy, now: float) -> None:
        self._policy = policy
        self._timeout = policy.initial_timeout
        self.deadline: float | None = None
        """When the current flight is due again; ``None`` while nothing waits for the peer."""
        self.last_sent = now
        self.overall_deadline = now + policy.handshake_timeout
        self.retransmissions = 0
        """How often the current flight was sent again because the timer ran out."""

    @property
    def next(self) -> float:
        """The nearer of the two deadlines."""
        return self.overall_deadline if self.deadline is None else min(self.deadline, self.overall_deadline)

    @property
    def given_up(self) -> bool:
        """Whether the policy allows no further retransmission."""
        return self.retransmissions >= self._policy.max_retransmissions

    @property
    def shrink_due(self) -> bool:
        """Whether so many transmissions went unanswered that smaller datagrams should be tried."""
        return self.retransmissions > 0 and self.retransmissions % self._policy.shrink_after == 0

    def start(self, now: float) -> None:
        """A new flight was sent."""
        self._timeout = self._policy.initial_timeout
        self.retransmissions = 0
        self.restart(now)

    def restart(self, now: float) -> None:
        """The same flight was sent, or waiting goes on after a pause: wait as long as before."""
        self.last_sent = now
        self.deadline = now + self._timeout

    def back_off(self, now: float) -> None:
        """The timer ran out and the flight is sent again: wait twice as long."""
        self.retransmissions += 1
        self._timeout = min(self._timeout * 2, self._policy.maximum_timeout)
        self.restart(now)

    def pause(self) -> None:
        """Nothing is awaited from the peer; only the overall deadline counts."""
        self.deadline = None

    def hasten(self, now: float) -> None:
        """Something speaks for an early end: wait no longer than the initial timeout for it to be disproved.

        Paused it stays paused: while this side has yet to answer, the peer has nothing to disprove it with.
        """
        if self.deadline is not None:
            self.deadline = min(self.deadline, now + self._policy.initial_timeout)

    def may_answer_repeat(self, now: float) -> bool:
        """Whether a repeated flight of the peer may be answered with ours already.

        Half an initial timeout apart: two peers that answer repeats with repeats would otherwise play
        ping-pong, and a stranger replaying one datagram would buy a flight with each.
        """
        return now - self.last_sent >= self._policy.initial_timeout / 2
