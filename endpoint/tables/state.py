"""``[state]``: associations that are put to sleep, and those that outlive the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import attrs

from endpoint.tables.names import MAX_SOCKET_NAME, file_name, seconds
from endpoint.values import within


@attrs.frozen(kw_only=True)
class State:
    """``[state]``: associations that are put to sleep, and those that outlive the process.

    What a stop keeps: see ``endpoint.handoff`` for the file and the service manager's store, and
    ``endpoint.state`` for SQLite, which keeps associations also when the process is killed.
    """

    freeze_after: float | None = attrs.field(default=300.0, validator=seconds)
    """Seconds of silence after which an association is frozen to a few hundred bytes, and woken by its next
    datagram; ``"never"`` = not at all. Five minutes: most devices speak in bursts, hours apart."""
    store: Literal["memory", "sqlite"] = "memory"
    """Where frozen associations are kept. ``sqlite`` also keeps all that are live, every
    ``checkpoint_interval``, so that they survive a crash."""
    file: Path | None = attrs.field(default=None, validator=file_name)
    """The SQLite database, on a local disk, in a directory that nobody else can write."""
    checkpoint_interval: float = attrs.field(default=1.0, validator=within(0.01, 3600, "seconds"))
    """Seconds. For ``sqlite``: how often what has changed is written; what a device sent within that time before a
    crash can be replayed once."""
    handoff_file: Path | None = attrs.field(default=None, validator=file_name)
    """For ``memory``: SIGTERM writes all associations there, and the next start takes them back. Without it a service
    manager that keeps descriptors is used, if there is one, which lasts for restarts but not for a stop and a start."""
    handoff_max_age: float | None = attrs.field(default=7_776_000.0, validator=seconds)
    """Seconds after which what was handed over is not taken back; ``"never"`` = always. 90 days is when associations
    with a connection ID expire."""
    key_file: Path | None = attrs.field(default=None, validator=file_name)
    """Keys that seal what is saved: see ``endpoint.keystore.sealing`` for the file. Mode 0600."""
    usage_file: Path | None = attrs.field(default=None, validator=file_name)
    """Which pre-shared key each device last used, so that a rotation knows after a restart, too, who has the new one: an SQLite
    file, made if it is not there, in a directory that nobody else can write. By default it is known while the process
    lives."""
    admin_socket: Path | None = attrs.field(default=None, validator=file_name)
    """A UNIX socket for ``dtls-endpoint handoff``; its owner only (0600) may use it. By default there is none."""
    capture_directory: Path | None = attrs.field(default=None, validator=file_name)
    """Where ``dtls-endpoint capture start`` has the service write what it captures, secrets included; nobody but its user
    may write there. Needs ``admin_socket``. By default nothing can be captured."""

    def below(self, directory: Path) -> State:
        """The same with every file name completed by ``directory``."""
        files: dict[str, Any] = {
            field.name: directory / value
            for field in attrs.fields(State)
            if isinstance(value := getattr(self, field.name), Path)
        }
        return attrs.evolve(self, **files)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        durable = self.store == "sqlite"
        if durable and not self.file:
            yield "file", 'missing; remedy: add  file = "associations.db"'
        if self.file and not durable:
            yield "file", 'is of no use with store = "memory"; remedy: store = "sqlite"'
        if self.handoff_file and durable:
            yield (
                "handoff_file",
                'is of no use with store = "sqlite", which keeps everything; remedy: remove it',
            )
        if (durable or self.handoff_file) and not self.key_file:
            what = 'store = "sqlite"' if durable else "handoff_file"
            yield "key_file", f'missing; {what} needs it; remedy: add  key_file = "state.key"'
        if self.capture_directory and not self.admin_socket:
            yield (
                "capture_directory",
                'is of no use without admin_socket; remedy: add  admin_socket = "admin.sock"',
            )
        seen: dict[Path, str] = {}
        for name in ("key_file", "file", "handoff_file", "usage_file", "admin_socket", "capture_directory"):
            path = getattr(self, name)
            if path is not None and seen.setdefault(path, name) != name:
                yield name, f"is the same file as {seen[path]}; remedy: name another"
        if self.admin_socket and len(os.fsencode(self.admin_socket)) > MAX_SOCKET_NAME:
            yield (
                "admin_socket",
                f"the name has more than {MAX_SOCKET_NAME} bytes; remedy: a shorter directory",
            )
