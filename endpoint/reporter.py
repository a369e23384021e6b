"""The service's observer: puts the engine's facts into the log and gives data to the forwarder.

The facts, by the name of their ``event``::

    connected          info     identity (null for a peer that showed nothing), path, credential ("psk",
                                "certificate", "raw_public_key" or "none"), cipher_suite, resumed,
                                and with a PSK key_used ("current" or "next")
    moved              info     identity, path, before (the path until now), proof ("newer_record",
                                "return_routability" or "application")
    frozen, thawed     debug    identity, path: it sleeps, it is awake
    move_not_proven    debug    identity, path, heard_at: with path_policy "application" only, as nobody here can say
    disconnected       info     identity, path, cause, reason
    handshake_failed   warning  cause, reason, identity (null where none was named), path, and problem where a
                                certificate or raw public key was not accepted; reason then says exactly why
    refused            warning  quota, path
    …                  warning  what else the engine reports, e.g. send_failed, key_store_failed

``cause`` is the label that counters have too, such as ``AuthenticationFailed.wrong_key`` or
``HandshakeTimeout``; ``reason`` says it in words. Warnings are throttled by cause; ``held_back`` then
says how many lines of that cause were left out since the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from endpoint.association import CredentialKind
from endpoint.causes import cause_text
from endpoint.text import show_bytes
from endpoint.udp import path_text
from sansdtls import cause_name

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from endpoint.association import Association
    from endpoint.forward import Forwarder
    from endpoint.logs import Throttle
    from endpoint.udp import Path
    from endpoint.verification import PeerRejected
    from sansdtls import Cause, PathChangeRequested, PathProof

_KEY_NAMES = ("current", "next")
_RESERVED = frozenset({"event", "level", "time", "held_back"})


def identity_text(association: Association) -> str | None:
    """Who it is, printable; ``None`` for a peer that showed nothing."""
    return None if association.kind is CredentialKind.NONE else show_bytes(association.identity)


class Reporter:
    """See the module's text; the methods are those of :class:`endpoint.observer.Observer`."""

    def __init__(self, log: FilteringBoundLogger, throttle: Throttle, forwarder: Forwarder):
        self._log = log
        self._throttle = throttle
        self._forwarder = forwarder

    def completed(self, association: Association) -> None:
        """A device is connected."""
        negotiated = association.connection.negotiated
        facts: dict[str, object] = {
            "identity": identity_text(association),
            "path": association.remote,
            "credential": association.kind.value,
            "cipher_suite": negotiated.cipher_suite.name if negotiated else None,
            "resumed": bool(negotiated and negotiated.resumed),
        }
        if association.key_index is not None:
            facts["key_used"] = _KEY_NAMES[association.key_index]
        self._log.info("connected", **facts)

    def received(self, association: Association, data: bytes) -> None:
        """A device sent something. An empty datagram only keeps its NAT's mapping alive: the engine counts it, nobody gets it."""
        if data:
            self._forwarder.deliver(association, data)

    def moved(self, association: Association, old: Path, proof: PathProof) -> None:
        """A device has another address."""
        self._log.info(
            "moved",
            identity=identity_text(association),
            path=association.remote,
            before=path_text(old),
            proof=proof.value,
        )

    def move_requested(self, association: Association, request: PathChangeRequested) -> None:
        """A device may have another address; this program has no way to find out, so nothing moves."""
        self._log.debug(
            "move_not_proven",
            identity=identity_text(association),
            path=association.remote,
            heard_at=path_text(cast("Path", request.new)),
        )

    def frozen(self, association: Association) -> None:
        """A device sleeps: no news, unless somebody looks closely."""
        self._log.debug("frozen", identity=identity_text(association), path=association.remote)

    def thawed(self, association: Association) -> None:
        """A device is awake."""
        self._log.debug("thawed", identity=identity_text(association), path=association.remote)

    def terminated(self, association: Association, cause: Cause) -> None:
        """A device is gone."""
        self._log.info(
            "disconnected",
            identity=identity_text(association),
            path=association.remote,
            cause=cause_name(cause),
            reason=cause_text(cause),
        )

    def handshake_failed(
        self, path: Path, identity: bytes | None, cause: Cause, rejection: PeerRejected | None
    ) -> None:
        """A device, or a stranger, did not get in."""
        label = cause_name(cause)
        facts: dict[str, object] = {"cause": label, "reason": cause_text(cause)}
        if rejection is not None:
            facts |= {"reason": rejection.detail, "problem": rejection.problem}
        self._warn(
            "handshake_failed",
            # By problem, so that a fleet of expired certificates does not hide the one that was revoked.
            label if rejection is None else f"{label}.{rejection.problem}",
            **facts,
            identity=None if identity is None else show_bytes(identity),
            path=path_text(path),
        )

    def refused(self, path: Path, reason: str) -> None:
        """A quota said no."""
        self._warn("refused", reason, quota=reason, path=path_text(path))

    def trouble(self, what: str, **facts: object) -> None:
        """Something else for the operator."""
        plain = {
            name: show_bytes(value) if name == "identity" and isinstance(value, bytes) else value
            for name, value in facts.items()
            if name not in _RESERVED
        }
        self._warn(what.replace(" ", "_"), "", **plain)

    def _warn(self, event: str, kind: str, /, **facts: object) -> None:
        held_back = self._throttle.admits((event, kind))
        if held_back is None:
            return
        if held_back:
            facts["held_back"] = held_back
        self._log.warning(event, **facts)
