"""Counts of what becomes of devices, for as long as the process lives and for the last minutes.

The engine counts what its core and its quotas do. What nobody else counts is counted here, from what an observer hears:
with which credential, cipher suite and key devices come, why certificates are refused, why associations end; and
how many handshakes succeeded, failed and were refused lately, which is what somebody who looks wants to know first.

Every table has a bound. Most words in them are this program's own; the labels of a verifier or key store that
somebody has written himself are cut off at :data:`MAX_LABELS`.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from endpoint.observer import Quiet
from sansdtls import cause_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.addresses import Path
    from endpoint.association import Association
    from endpoint.verification import PeerRejected
    from sansdtls import Cause

MAX_LABELS = 64
"""Different words that one counter keeps apart; what comes later is ``other``."""
OTHER = "other"

SLOT = 10.0
"""Seconds that one figure of the last minutes stands for."""
SLOTS = 30
"""Of them: five minutes."""
WINDOW = SLOT * SLOTS
"""Seconds."""


def bounded(counter: Counter[str], label: str) -> None:
    """One more of ``label``, or of ``other`` where there are too many already."""
    counter[label if label in counter or len(counter) < MAX_LABELS else OTHER] += 1


class Tally(Quiet):
    """An observer that counts. ``clock`` gives monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._recent = Recent(clock)
        self._by_credential: Counter[str] = Counter()
        self._by_suite: Counter[str] = Counter()
        self._by_key: Counter[str] = Counter()
        self._resumed = 0
        self._ended: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()

    def completed(self, association: Association) -> None:
        """A device came."""
        self._recent.count("completed", "")
        self._by_credential[association.kind.value] += 1
        negotiated = association.connection.negotiated
        if negotiated is not None:
            self._by_suite[negotiated.cipher_suite.name] += 1
            self._resumed += negotiated.resumed
        if association.key_index is not None:
            self._by_key["next" if association.key_index else "current"] += 1

    def terminated(self, association: Association, cause: Cause) -> None:
        """A device went."""
        self._ended[cause_name(cause)] += 1

    def handshake_failed(
        self, path: Path, identity: bytes | None, cause: Cause, rejection: PeerRejected | None
    ) -> None:
        """A device, or a stranger, did not get in."""
        self._recent.count("failed", cause_name(cause))
        if rejection is not None:
            bounded(self._rejected, rejection.problem)

    def refused(self, path: Path, reason: str) -> None:
        """A quota said no."""
        self._recent.count("refused", reason)

    def recent(self) -> dict[str, Any]:
        """What happened in the last ``seconds``: ``completed``, and by cause and quota ``failed`` and ``refused``."""
        return self._recent.figures()

    def statistics(self) -> dict[str, Any]:
        """Counters since the process started."""
        return {
            "associations_made": dict(self._by_credential),
            "cipher_suites_used": dict(self._by_suite),
            "psk_keys_used": dict(self._by_key),
            "sessions_resumed": self._resumed,
            "associations_ended": dict(self._ended),
            "peers_rejected": dict(self._rejected),
        }


class Recent:
    """Counts of the last :data:`WINDOW` seconds, in slots that are forgotten one by one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._slots: deque[tuple[int, Counter[tuple[str, str]]]] = deque(maxlen=SLOTS)

    def count(self, result: str, reason: str) -> None:
        """One more."""
        number = int(self._clock() // SLOT)
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append((number, Counter()))
        counter = self._slots[-1][1]
        key = (result, reason)
        counter[key if key in counter or len(counter) < MAX_LABELS else (result, OTHER)] += 1

    def figures(self) -> dict[str, Any]:
        """See :meth:`Tally.recent`."""
        now = self._clock()
        total: Counter[tuple[str, str]] = Counter()
        for number, counter in self._slots:
            if number > now // SLOT - SLOTS:
                total.update(counter)
        failed = {reason: count for (result, reason), count in sorted(total.items()) if result == "failed"}
        refused = {reason: count for (result, reason), count in sorted(total.items()) if result == "refused"}
        return {
            "seconds": round(min(WINDOW, now - self._since), 3),
            "completed": total["completed", ""],
            "failed": failed,
            "refused": refused,
        }
