"""The credentials that are in use, and reading them again: all or nothing.

What follows from them is made in a worker thread as well, so that the swap itself is one step without an await: no
handshake sees a part of it, and nothing in it can fail. Live associations are not touched.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from endpoint.keystore.file import FileKeyStore, KeyFileError
from endpoint.keystore.loading import load_credentials
from endpoint.text import show_text
from endpoint.verification import VERIFY_THREADS, PeerVerifier
from sansdtls import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from typing import Any

    from structlog.typing import FilteringBoundLogger

    from endpoint.config import EndpointConfig
    from endpoint.engine import Engine
    from endpoint.keystore.loading import LoadedCredentials
    from sansdtls import ServerConfig

MAX_ERRORS_LOGGED = 20
"""Mistakes of one failed reload in its log line; the rest is counted."""


class CredentialsInUse:
    """What was loaded last without a mistake, and what an engine needs of it."""

    def __init__(
        self,
        config: EndpointConfig,
        loaded: LoadedCredentials,
        *,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], datetime],
    ) -> None:
        """Make it inside ``trio.run``."""
        self._config = config
        self._log = log
        self._wall_clock = wall_clock
        self._limiter = trio.CapacityLimiter(VERIFY_THREADS)
        self._loaded = loaded
        self._reloads = {"done": 0, "failed": 0}
        self.keystore = FileKeyStore(config.credentials.psk_file, loaded.psk)
        """Answers from what is in use, also after a reload."""

    def server_config(self) -> ServerConfig:
        """``[dtls]`` with these credentials."""
        return self._loaded.complete(self._config.dtls, self._config.credentials)

    def verifier(self) -> PeerVerifier:
        """Judges the certificates and raw public keys of devices."""
        return self._verifier(self._loaded)

    def names(self) -> Iterable[bytes]:
        """The identities that have keys here."""
        return self._loaded.psk.keys

    def statistics(self) -> dict[str, Any]:
        """``identities`` with keys, how many are ``in_rotation``; ``reloads`` by result; and ``expiry``.

        That is when the first certificate, CA and revocation list runs out, in seconds since the epoch.
        """
        return {
            "identities": len(self.keystore),
            "in_rotation": self._loaded.psk.in_rotation,
            "reloads": dict(self._reloads),
            "expiry": _first_to_run_out(self._loaded),
        }

    def log_what_there_is(self) -> None:
        """At the start."""
        told, psk = self._config.credentials, self._loaded.psk
        self._log.info(
            "keys_loaded",
            identities=len(self.keystore),
            in_rotation=psk.in_rotation,
            files=len(psk.files),
            **_beside_psk(self._loaded),
        )
        if told.psk_file and not psk.keys:
            self._log.warning("no_identities", psk_file=str(told.psk_file))
        self._warn_of_lapses()

    async def reload(self, engine: Engine | None) -> dict[str, Any]:
        """Read all again, and have ``engine`` use it; if anything is wrong, everything stays as it was.

        What came of it, as the log has it: ``reloaded``, and with it the counts and ``warnings``, or else ``errors``.
        """
        try:
            # Large files take a moment to read; devices are served meanwhile.
            fresh, config, verify = await trio.to_thread.run_sync(
                self._read_again,
                abandon_on_cancel=True,  # it changes nothing
            )
        except KeyFileError as error:
            self._reloads["failed"] += 1
            failed = {
                "errors": list(error.problems[:MAX_ERRORS_LOGGED]),
                "errors_in_all": len(error.problems),
                "kept": len(self.keystore),
            }
            self._log.error("reload_failed", **failed)
            return {"reloaded": False, **failed}
        # From here on nothing can fail, and no other task gets a turn: all are replaced, or none.
        self._loaded = fresh
        self._reloads["done"] += 1
        changes = self.keystore.replace(fresh.psk)
        if engine is not None:
            engine.use_config(config, verify)
        done = {
            "identities": len(self.keystore),
            "added": changes.added,
            "removed": changes.removed,
            "changed": changes.changed,
            "in_rotation": fresh.psk.in_rotation,
            **_beside_psk(fresh),
        }
        self._log.info("reloaded", **done)
        self._warn_of_lapses()
        now = self._wall_clock()
        warnings = [*fresh.lapses(now), *fresh.notes, *fresh.remarks(now)]
        return {"reloaded": True, **done, "warnings": warnings[:MAX_ERRORS_LOGGED]}

    def _read_again(self) -> tuple[LoadedCredentials, ServerConfig, PeerVerifier]:
        """Runs in another thread; changes nothing."""
        fresh = load_credentials(self._config.credentials)
        self.keystore.require_some(fresh.psk)
        if self._loaded.raw_keys.names and not fresh.raw_keys.names:
            where = show_text(str(self._config.credentials.raw_public_keys))
            raise KeyFileError([f"{where}: holds no key now; those loaded before stay"])
        lapses = fresh.new_lapses(self._loaded, self._wall_clock())
        if lapses:
            raise KeyFileError(lapses)
        try:
            config = fresh.complete(self._config.dtls, self._config.credentials)
        except ConfigError as error:
            raise KeyFileError([str(error)]) from None
        return fresh, config, self._verifier(fresh)

    def _verifier(self, loaded: LoadedCredentials) -> PeerVerifier:
        return PeerVerifier(
            loaded.policy, loaded.raw_keys.names, wall_clock=self._wall_clock, limiter=self._limiter
        )

    def _warn_of_lapses(self) -> None:
        for lapse in self._loaded.lapses(self._wall_clock()):
            self._log.warning("credential_lapsed", reason=lapse)


def _first_to_run_out(loaded: LoadedCredentials) -> dict[str, float]:
    first: dict[str, float] = {}
    for dated in loaded.dated:
        if dated.validity.ends is not None:
            kind = "crl" if dated.validity.crl else "ca" if dated.anchor else "own"
            first[kind] = min(first.get(kind, math.inf), dated.validity.ends.timestamp())
    return first


def _beside_psk(loaded: LoadedCredentials) -> dict[str, int]:
    """What else was loaded, for the log; nothing for a fleet with pre-shared keys only."""
    facts = {
        "own_credentials": len(loaded.own),
        "client_cas": len(loaded.policy.anchors) if loaded.policy else 0,
        "crls": len(loaded.policy.crls) if loaded.policy else 0,
        "raw_public_keys": len(loaded.raw_keys.names),
    }
    return {name: count for name, count in facts.items() if count}
