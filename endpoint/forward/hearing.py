"""The part of the engine's observer that tells a sink what becomes of associations; data come by ``Reporter``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.observer import Quiet

if TYPE_CHECKING:
    from endpoint.addresses import Path
    from endpoint.association import Association
    from endpoint.forward import Sink
    from sansdtls import Cause, PathProof


class Hearing(Quiet):
    """Passes on what :class:`~endpoint.forward.Sink` has a method for."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def completed(self, association: Association) -> None:
        """A device is there."""
        self._sink.connected(association)

    def moved(self, association: Association, old: Path, proof: PathProof) -> None:
        """Its address is another one now."""
        self._sink.moved(association)

    def frozen(self, association: Association) -> None:
        """It sleeps."""
        self._sink.frozen(association)

    def thawed(self, association: Association) -> None:
        """It is awake."""
        self._sink.thawed(association)

    def terminated(self, association: Association, cause: Cause) -> None:
        """It is gone."""
        self._sink.disconnected(association)
