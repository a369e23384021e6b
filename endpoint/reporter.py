"""The service's observer: puts the engine's facts into the log and gives data to the forwarder.

The facts, by the name of their ``event``::

    connected          info     identity, path, cipher_suite, key_used ("current" or "next")
    disconnected       info     identity, path, cause
    handshake_failed   warning  cause, identity (if it was named), path
    refused            warning  reason (the quota), path
    …                  warning  what else the engine reports, e.g. send_failed, key_store_failed

A cause is one word, such as ``wrong_key``, ``unknown_identity`` or ``handshake_timeout``; its details
stand beside it. Warnings are throttled by cause; ``held_back`` then says how many were left out
since the last line of that cause.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

import attrs

from endpoint.text import show_bytes
from endpoint.udp import path_text
from sansdtls import AuthenticationFailed, PeerClose

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from endpoint.association import Association
    from endpoint.forward import Forwarder
    from endpoint.logs import Throttle
    from endpoint.udp import Path
    from sansdtls import Cause

_KEY_NAMES = ("current", "next")
_RESERVED = frozenset({"event", "level", "time", "held_back"})


def cause_facts(cause: Cause) -> dict[str, object]:
    """``{"cause": word, ...}`` for the log: ``{"cause": "peer_alert", "description": "decrypt_error", ...}``."""
    if isinstance(cause, AuthenticationFailed):
        return {"cause": cause.problem.value}
    if isinstance(cause, PeerClose):
        return {"cause": "replaced" if cause.replaced else "peer_close"}
    word = re.sub(r"(?<!^)(?=[A-Z])", "_", type(cause).__name__).lower()
    return {"cause": word, **{name: _plain(value) for name, value in attrs.asdict(cause).items()}}


def _plain(value: object) -> object:
    return value.name.lower() if isinstance(value, enum.Enum) else value


class Reporter:
    """See the module's text; the methods are those of :class:`endpoint.observer.Observer`."""

    def __init__(self, log: FilteringBoundLogger, throttle: Throttle, forwarder: Forwarder):
        self._log = log
        self._throttle = throttle
        self._forwarder = forwarder

    def completed(self, association: Association) -> None:
        """A device is connected."""
        negotiated = association.connection.negotiated
        self._log.info(
            "connected",
            identity=show_bytes(association.identity),
            path=association.remote,
            cipher_suite=negotiated.cipher_suite.name if negotiated else None,
            key_used=_KEY_NAMES[association.key_index],
        )

    def received(self, association: Association, data: bytes) -> None:
        """A device sent something."""
        self._forwarder.deliver(association, data)

    def terminated(self, association: Association, cause: Cause) -> None:
        """A device is gone."""
        self._log.info(
            "disconnected",
            identity=show_bytes(association.identity),
            path=association.remote,
            **cause_facts(cause),
        )

    def handshake_failed(self, path: Path, identity: bytes | None, cause: Cause) -> None:
        """A device, or a stranger, did not get in."""
        facts = cause_facts(cause)
        if identity is not None:
            facts["identity"] = show_bytes(identity)
        self._warn("handshake_failed", str(facts["cause"]), **facts, path=path_text(path))

    def refused(self, path: Path, reason: str) -> None:
        """A quota said no."""
        self._warn("refused", reason, reason=reason, path=path_text(path))

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
