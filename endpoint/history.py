"""What happened to whom last: the memory behind ``dtls-endpoint doctor``.

Attacker
    Anybody with a real address, who may claim any identity and be refused as often as he likes; and the fleet
    itself on the day when everything fails at once.

Properties
    1. Bounded: so many identities, so many names that are nobody's, so many addresses, and of each the last few
       events. Least recently heard goes first. All sizes are in ``[metrics]``.
    2. A flood of invented names pushes out no device: a name is kept among the devices only if a device has
       proved it (or has shown to be known: the wrong key for an identity that there is). All others share a small
       table of their own. Addresses are kept apart in the same way.
    3. A name that is nobody's is cut off at :data:`MAX_NAME` bytes. A stranger chooses it, and may choose 65,535.
    4. Nothing secret is here: of keys the fingerprint, of certificates what the log says as well.

Left out: what happened before the process started. Which key a device used last outlives it (``endpoint.usage``);
failures are in the log.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

from endpoint.addresses import path_text
from endpoint.causes import cause_text
from endpoint.observer import Quiet
from endpoint.remedies import remedy_text
from sansdtls import AuthenticationFailed, AuthenticationProblem, cause_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from endpoint.addresses import Path
    from endpoint.association import Association
    from endpoint.verification import PeerRejected
    from sansdtls import Cause

KEPT = 4
"""Failures, and refusals, that are kept for each name and each address."""
MAX_NAME = 256
"""Bytes of a name that is nobody's."""
MAX_REASON = 400
"""Characters of a reason: those about certificates have names in them."""


@attrs.frozen
class Success:
    """A handshake that succeeded."""

    when: float
    """Seconds since the epoch, as of all events here."""
    path: str
    credential: str
    cipher_suite: str | None
    resumed: bool
    key_used: str | None
    """``current`` or ``next``; ``None`` without a pre-shared key."""
    fingerprint: str | None
    """Of that key, where it is known."""


@attrs.frozen
class Failure:
    """A handshake that failed."""

    when: float
    path: str
    identity: bytes | None
    """As claimed, perhaps cut off; ``None`` where it did not get so far."""
    cause: str
    """The label of the counters."""
    reason: str
    problem: str | None
    """Why a certificate or raw public key was not accepted."""
    remedy: str | None


@attrs.frozen
class Refusal:
    """A quota said no, some ``count`` of times."""

    when: float
    """The last time."""
    reason: str
    count: int


@attrs.frozen
class Ended:
    """An association that is over."""

    when: float
    path: str
    cause: str
    reason: str


@attrs.define(eq=False)
class Record:
    """What is remembered of a name or an address."""

    failures: tuple[Failure, ...] = ()
    """The last ones, oldest first."""
    failed: int = 0
    """All there were since it is remembered."""
    succeeded: int = 0
    success: Success | None = None
    ended: Ended | None = None
    refusals: tuple[Refusal, ...] = ()
    identity: bytes | None = None
    """Of an address: who was there last."""

    def failure(self, failure: Failure) -> None:
        """One more."""
        self.failed += 1
        self.failures = (*self.failures, failure)[-KEPT:]

    def refusal(self, when: float, reason: str) -> None:
        """One more."""
        count = next((one.count for one in self.refusals if one.reason == reason), 0)
        others = tuple(one for one in self.refusals if one.reason != reason)
        self.refusals = (*others, Refusal(when, reason, count + 1))[-KEPT:]


class _Table:
    """Records, least recently used first out."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._records: OrderedDict[bytes, Record] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[tuple[bytes, Record]]:
        return iter(self._records.items())

    def get(self, name: bytes) -> Record | None:
        return self._records.get(name)

    def at(self, name: bytes) -> Record:
        """Its record, which is now the last to be forgotten."""
        record = self._records.get(name)
        if record is None:
            return self.put(name, Record())
        self._records.move_to_end(name)
        return record

    def put(self, name: bytes, record: Record) -> Record:
        if len(self._records) >= self._size:
            self._records.popitem(last=False)
            self.forgotten += 1
        self._records[name] = record
        return record

    def take(self, name: bytes) -> Record | None:
        return self._records.pop(name, None)


class _Parted:
    """Two tables: those who have proved something, and the others."""

    def __init__(self, proved: int, others: int) -> None:
        self.proved = _Table(proved)
        self.others = _Table(others)

    def get(self, name: bytes) -> Record | None:
        return self.proved.get(name) or self.others.get(name[:MAX_NAME])

    def at(self, name: bytes, *, proved: bool) -> Record:
        """The record of a name; with ``proved`` it is moved to where it belongs."""
        if self.proved.get(name) is not None:
            return self.proved.at(name)
        if not proved:
            return self.others.at(name[:MAX_NAME])
        before = self.others.take(name) if len(name) <= MAX_NAME else None
        return self.proved.put(name, before or Record())


class History(Quiet):
    """An observer that remembers. ``wall`` gives seconds since the epoch."""

    def __init__(self, *, identities: int, strangers: int, addresses: int, wall: Callable[[], float]) -> None:
        """How many devices, how many names that are nobody's, and how many addresses (of either) are remembered."""
        self._wall = wall
        self._names = _Parted(identities, strangers)
        self._places = _Parted(addresses, addresses)

    # --- what an observer hears ---------------------------------------------------------------------

    def completed(self, association: Association) -> None:
        """A device came."""
        if not association.identified:
            return
        negotiated = association.connection.negotiated
        index = association.key_index
        success = Success(
            when=self._wall(),
            path=association.remote,
            credential=association.kind.value,
            cipher_suite=negotiated.cipher_suite.name if negotiated else None,
            resumed=bool(negotiated and negotiated.resumed),
            key_used=None if index is None else ("current", "next")[index],
            fingerprint=getattr(association, "fingerprint", None),
        )
        for record in (
            self._names.at(association.identity, proved=True),
            self._places.at(_host(association.path), proved=True),
        ):
            record.success = success
            record.succeeded += 1
            record.identity = association.identity

    def terminated(self, association: Association, cause: Cause) -> None:
        """A device went."""
        if not association.identified:
            return
        record = self._names.at(association.identity, proved=True)
        record.ended = Ended(self._wall(), association.remote, cause_name(cause), cause_text(cause))

    def handshake_failed(
        self, path: Path, identity: bytes | None, cause: Cause, rejection: PeerRejected | None
    ) -> None:
        """A device, or a stranger, did not get in."""
        problem = None if rejection is None else rejection.problem
        reason = cause_text(cause) if rejection is None else rejection.detail
        failure = Failure(
            when=self._wall(),
            path=path_text(path),
            identity=None if identity is None else identity[:MAX_NAME],
            cause=cause_name(cause),
            reason=reason[:MAX_REASON],
            problem=problem,
            remedy=remedy_text(cause, problem),
        )
        self._places.at(_host(path), proved=False).failure(failure)
        if identity is not None:
            self._names.at(identity, proved=_shows_that_it_is_known(cause)).failure(failure)

    def refused(self, path: Path, reason: str) -> None:
        """A quota said no. Whose handshake it would have been is not known then."""
        self._places.at(_host(path), proved=False).refusal(self._wall(), reason)

    # --- what is asked ------------------------------------------------------------------------------

    def of(self, identity: bytes) -> Record | None:
        """What is remembered of a name."""
        return self._names.get(identity)

    def near(self, host: str) -> Record | None:
        """What is remembered of an address, without a port."""
        return self._places.get(host.encode())

    def strangers(self) -> Iterator[tuple[bytes, Record]]:
        """The names that are nobody's, each with what is remembered of it."""
        return iter(self._names.others)

    def identities(self) -> Iterator[bytes]:
        """The names that somebody has proved."""
        return (name for name, _ in self._names.proved)

    def rejections_naming(self, text: str) -> list[Failure]:
        """Failures of certificates and raw keys, which have no identity, whose reason has ``text`` in it, as a whole name."""
        if not text:
            return []
        wanted = text.casefold()
        # As a whole: what is said of meter-17 is not about meter-1.
        whole = re.compile(rf"(?<![\w.-]){re.escape(wanted)}(?![\w-]|\.\w)")
        return [
            failure
            for table in (self._places.proved, self._places.others)
            for _, record in table
            for failure in record.failures
            if failure.problem is not None
            and wanted in (reason := failure.reason.casefold())
            and whole.search(reason)
        ]

    def statistics(self) -> dict[str, int]:
        """Gauges: how many are remembered. Counter: how many were forgotten for lack of room."""
        return {
            "identities": len(self._names.proved),
            "strangers": len(self._names.others),
            "addresses": len(self._places.proved) + len(self._places.others),
            "forgotten": self._names.proved.forgotten + self._places.proved.forgotten,
        }


def _host(path: Path) -> bytes:
    host: str = path[1][0]
    return host.removeprefix("::ffff:").encode() if "." in host else host.encode()


def _shows_that_it_is_known(cause: Cause) -> bool:
    """Whether the failure itself says that there is such an identity."""
    return isinstance(cause, AuthenticationFailed) and cause.problem is AuthenticationProblem.WRONG_KEY
