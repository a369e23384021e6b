"""What an engine tells its program: the :class:`Observer` protocol.

Each method is called synchronously from the engine's receive loop, so it must neither block nor
await. What one raises is reported as ``trouble`` and goes no further, because one device's odd
reading must not end the service for all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from endpoint.addresses import Path
    from endpoint.association import Association
    from endpoint.verification import PeerRejected
    from sansdtls import Cause, PathChangeRequested, PathProof


class Observer(Protocol):
    """Told of facts, in the order in which they happen."""

    def completed(self, association: Association) -> None:
        """A handshake succeeded; the association is live."""
        ...

    def received(self, association: Association, data: bytes) -> None:
        """One datagram's worth of application data, within the association's quota."""
        ...

    def moved(self, association: Association, old: Path, proof: PathProof) -> None:
        """The peer's address has changed; ``association.path`` is the new one."""
        ...

    def move_requested(self, association: Association, request: PathChangeRequested) -> None:
        """The peer was heard at ``request.new``, and nothing proves that it is there. With ``PathPolicy.APPLICATION`` only.

        Answer with ``association.confirm_path(request)``, now or later, or not at all.
        """
        ...

    def frozen(self, association: Association) -> None:
        """It has been silent for long, and goes on as bytes: this object is over, the association is not."""
        ...

    def thawed(self, association: Association) -> None:
        """A frozen association is back, as a new object."""
        ...

    def terminated(self, association: Association, cause: Cause) -> None:
        """An association ended, with the object that was last ``completed`` or ``thawed`` for it. Exactly once."""
        ...

    def handshake_failed(
        self, path: Path, identity: bytes | None, cause: Cause, rejection: PeerRejected | None
    ) -> None:
        """A handshake that had proved its address ended without success.

        ``identity`` is what the peer claimed, unauthenticated, or ``None`` where it did not get so far.
        ``rejection`` says why its certificate or raw public key was not accepted, if that was the reason.
        """
        ...

    def refused(self, path: Path, reason: str) -> None:
        """A quota said no; ``reason`` is the name of the field of :class:`~endpoint.quotas.QuotaPolicy`, or of ``sansdtls.Limits``.

        Called for every refused handshake, and once each time an association begins to exceed its
        data quota. Anybody can provoke it: rate-limit what you do here.
        """
        ...

    def trouble(self, what: str, **facts: object) -> None:
        """Something for the operator: ``what`` is a short stable phrase, ``facts`` are plain values."""
        ...


class Quiet:
    """An observer that does nothing: subclass it to hear of some facts only."""

    def completed(self, association: Association) -> None:
        """See :class:`Observer`, as of all others."""

    def received(self, association: Association, data: bytes) -> None:
        """Nothing."""

    def moved(self, association: Association, old: Path, proof: PathProof) -> None:
        """Nothing."""

    def move_requested(self, association: Association, request: PathChangeRequested) -> None:
        """Nothing."""

    def frozen(self, association: Association) -> None:
        """Nothing."""

    def thawed(self, association: Association) -> None:
        """Nothing."""

    def terminated(self, association: Association, cause: Cause) -> None:
        """Nothing."""

    def handshake_failed(
        self, path: Path, identity: bytes | None, cause: Cause, rejection: PeerRejected | None
    ) -> None:
        """Nothing."""

    def refused(self, path: Path, reason: str) -> None:
        """Nothing."""

    def trouble(self, what: str, **facts: object) -> None:
        """Nothing."""


class Observers:
    """Tells several observers of the same facts, in their order; data go to one of them only, as they are many.

    One that raises keeps none of the others from hearing; the engine hears of the first that did.
    """

    def __init__(self, *parts: Observer, data: Observer) -> None:
        """``data`` gets what devices send, and nothing else unless it is one of ``parts`` as well."""
        self._parts = parts
        self.received = data.received

    def completed(self, association: Association) -> None:
        """Tell all; see :class:`Observer`, as of all others."""
        self._tell("completed", association)

    def moved(self, association: Association, old: Path, proof: PathProof) -> None:
        """Tell all."""
        self._tell("moved", association, old, proof)

    def move_requested(self, association: Association, request: PathChangeRequested) -> None:
        """Tell all."""
        self._tell("move_requested", association, request)

    def frozen(self, association: Association) -> None:
        """Tell all."""
        self._tell("frozen", association)

    def thawed(self, association: Association) -> None:
        """Tell all."""
        self._tell("thawed", association)

    def terminated(self, association: Association, cause: Cause) -> None:
        """Tell all."""
        self._tell("terminated", association, cause)

    def handshake_failed(
        self, path: Path, identity: bytes | None, cause: Cause, rejection: PeerRejected | None
    ) -> None:
        """Tell all."""
        self._tell("handshake_failed", path, identity, cause, rejection)

    def refused(self, path: Path, reason: str) -> None:
        """Tell all."""
        self._tell("refused", path, reason)

    def trouble(self, what: str, **facts: object) -> None:
        """Tell all."""
        self._tell("trouble", what, **facts)

    def _tell(self, method: str, /, *arguments: object, **facts: object) -> None:
        first: Exception | None = None
        for part in self._parts:
            try:
                getattr(part, method)(*arguments, **facts)
            except Exception as error:  # noqa: BLE001 - see Observer: contained, and told once
                first = first or error
        if first is not None:
            raise first
