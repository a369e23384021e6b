"""The credentials that are in use, and reading them again: all or nothing.

What follows from them is made in a worker thread as well, so that the swap itself is one step without an await: no
handshake sees a part of it, and nothing in it can fail. Live associations are not touched.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio

from endpoint.keystore.choosing import guarded_store
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
    from endpoint.keystore.guard import GuardedStore
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
        self._files = FileKeyStore(config.credentials.psk_file, loaded.psk)
        self._guarded: GuardedStore | None = None
        self.on_reloaded: Callable[[Iterable[bytes] | None], None] = lambda _identities: None
        """Told whose pre-shared keys a reload has changed or removed; ``None`` = only the store knows."""

    async def open_keystore(self, trouble: Callable[..., None]) -> None:
        """Make the store that is not a PSK file, before anybody asks it; raises StoreStartError."""
        self._guarded = await guarded_store(self._config.credentials, self._loaded, trouble=trouble)

    @property
    def keystore(self) -> FileKeyStore | GuardedStore:
        """Answers from what is in use, also after a reload."""
        return self._guarded or self._files

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the key store until cancelled; nothing to do for a PSK file."""
        if self._guarded is None:
            task_status.started()
        else:
            await self._guarded.run(task_status=task_status)

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
            "identities": self._loaded.identities,
            "in_rotation": self._loaded.in_rotation,
            "reloads": dict(self._reloads),
            "expiry": _first_to_run_out(self._loaded),
        }

    def store_statistics(self) -> dict[str, Any]:
        """``key_store``, for the log; nothing for a PSK file."""
        return {} if self._guarded is None else {"key_store": self._guarded.statistics()}

    def log_what_there_is(self) -> None:
        """At the start."""
        told = self._config.credentials
        self._log.info("keys_loaded", **self._facts(self._loaded))
        if self._loaded.identities == 0 and (source := told.psk_file or told.psk_database):
            self._log.warning("no_identities", psk_file=str(source))
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
            failed: dict[str, Any] = {
                "errors": list(error.problems[:MAX_ERRORS_LOGGED]),
                "errors_in_all": len(error.problems),
                "kept": self._loaded.identities,
            }
            self._log.error("reload_failed", **failed)
            return {"reloaded": False, **failed}
        # From here on nothing can fail, and no other task gets a turn: all are replaced, or none.
        self._loaded = fresh
        self._reloads["done"] += 1
        changes = self._files.replace(fresh.psk)
        if engine is not None:
            engine.use_config(config, verify)
        differences = {"added": changes.added, "removed": changes.removed, "changed": changes.changed}
        if self._guarded is not None:
            self._guarded.forget()
            if fresh.valkey is not None:
                store: Any = self._guarded.store
                store.use(fresh.valkey)
            differences = {}
        done = {**self._facts(fresh), **differences}
        self._log.info("reloaded", **done)
        self._warn_of_lapses()
        self.on_reloaded(changes.touched if self._guarded is None else None)
        now = self._wall_clock()
        warnings = [*fresh.lapses(now), *fresh.notes, *fresh.remarks(now)]
        return {"reloaded": True, **done, "warnings": warnings[:MAX_ERRORS_LOGGED]}

    def _read_again(self) -> tuple[LoadedCredentials, ServerConfig, PeerVerifier]:
        """Runs in another thread; changes nothing."""
        # Not the module: its code is exchanged by a restart.
        told = attrs.evolve(self._config.credentials, psk_module=None)
        fresh = attrs.evolve(load_credentials(told), module=self._loaded.module)
        self._files.require_some(fresh.psk)
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

    def _facts(self, loaded: LoadedCredentials) -> dict[str, object]:
        return {
            "identities": loaded.identities,
            "in_rotation": loaded.in_rotation,
            "files": len(loaded.psk.files) + (loaded.counted is not None),
            **_source_facts(loaded),
            **_beside_psk(loaded),
        }

    def _warn_of_lapses(self) -> None:
        for lapse in self._loaded.lapses(self._wall_clock()):
            self._log.warning("credential_lapsed", reason=lapse)


def _source_facts(loaded: LoadedCredentials) -> dict[str, object]:
    """Where pre-shared keys come from, unless it is a file."""
    if loaded.valkey is not None:
        return {"source": str(loaded.valkey.address)}
    return {"source": "module"} if loaded.module is not None else {}


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
