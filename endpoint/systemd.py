"""The service manager's side of a service: descriptors that are handed down, and notifications.

Three protocols, all of environment variables and one datagram socket, documented in sd_listen_fds(3), sd_notify(3)
and "File Descriptor Store"; systemd speaks them, and so do s6, runit helpers and test supervisors::

    LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES    descriptors 3, 4, … are ours, with these names: sockets that
                                              the manager has bound, and what it keeps for us
    NOTIFY_SOCKET                             where to say READY=1, STOPPING=1, …
    WATCHDOG_USEC, WATCHDOG_PID               how often to say WATCHDOG=1 there at least; see ``endpoint.supervised``
    FDSTORE=1, FDNAME=, FDSTOREREMOVE=1       said there, with descriptors: keep these for the next process

The variables are removed when they are read: they are for this process alone.

A manager does not say whether it keeps descriptors (``FileDescriptorStoreMax=`` is 0 by default, and what comes beyond is
dropped without a word). So :meth:`Notifier.keeps_descriptors` finds out: it stores one end of a pipe, and looks at the other.
"""

from __future__ import annotations

import array
import fcntl
import os
import re
import select
import socket
import time
from typing import TYPE_CHECKING

import attrs

from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

FIRST_DESCRIPTOR = 3
"""After the three standard ones."""
MAX_DESCRIPTORS = 1024
"""More are a mistake in LISTEN_FDS: a service has a handful."""
MAX_SENT = 253
"""Descriptors in one datagram; the kernel's SCM_MAX_FD."""
SEND_TIMEOUT = 1.0
"""Seconds that a notification may wait for room in the manager's queue; it is then given up."""
BARRIER_TIMEOUT = 5.0
"""Seconds to wait until the manager has done what it was told; what systemd's own tools wait."""

UNNAMED = "unknown"
"""The name of a descriptor that was handed down without one."""
PROBE = "sansdtls-probe"
"""What :meth:`Notifier.keeps_descriptors` stores, for a moment."""


class SupervisionError(Exception):
    """What the service manager has handed down cannot be used. The text names the variable and the remedy."""


@attrs.frozen
class Descriptor:
    """An open descriptor that was handed down. Whoever uses it closes it."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"descriptor {self.number} ({show_text(self.name)})"

    def close(self) -> None:
        """Close it; the manager may have its own copy."""
        os.close(self.number)


def take_descriptors(
    environment: MutableMapping[str, str], *, pid: int | None = None
) -> tuple[Descriptor, ...]:
    """What was handed down to this process, from the environment, whose variables are removed.

    Nothing, if the variables are for another process. The descriptors are closed in programs that this one
    starts. :class:`SupervisionError` for variables or descriptors that make no sense.
    """
    count = environment.pop("LISTEN_FDS", None)
    owner = environment.pop("LISTEN_PID", None)
    names = environment.pop("LISTEN_FDNAMES", None)
    environment.pop("LISTEN_PIDFDID", None)
    if count is None or owner is None:
        return ()
    if not re.fullmatch(r"[0-9]{1,10}", owner):
        raise SupervisionError(f'LISTEN_PID: "{show_text(owner[:80])}" is not a process id')
    if int(owner) != (os.getpid() if pid is None else pid):
        # Inherited through a program that did not remove them: they were for that one.
        return ()
    if not re.fullmatch(r"[0-9]{1,10}", count) or int(count) > MAX_DESCRIPTORS:
        raise SupervisionError(
            f'LISTEN_FDS: "{show_text(count[:80])}" is not a number of descriptors, 0 to {MAX_DESCRIPTORS}'
        )
    told = [UNNAMED] * int(count) if names is None else names.split(":") if names else []
    if len(told) != int(count):
        raise SupervisionError(f"LISTEN_FDNAMES: {len(told)} names for {count} descriptors")
    taken = tuple(Descriptor(number, name) for number, name in enumerate(told, FIRST_DESCRIPTOR))
    for descriptor in taken:
        try:
            fcntl.fcntl(descriptor.number, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError:
            raise SupervisionError(
                f"LISTEN_FDS: {descriptor} is not open; remedy: LISTEN_FDS is set by the service manager only"
            ) from None
    return taken


def take_watchdog(environment: MutableMapping[str, str], *, pid: int | None = None) -> float | None:
    """Seconds within which the manager wants to hear of this process; ``None`` = it does not. The variables are removed."""
    time_left = environment.pop("WATCHDOG_USEC", None)
    owner = environment.pop("WATCHDOG_PID", None)
    if time_left is None:
        return None
    if owner is not None and not re.fullmatch(r"[0-9]{1,10}", owner):
        raise SupervisionError(f'WATCHDOG_PID: "{show_text(owner[:80])}" is not a process id')
    if owner is not None and int(owner) != (os.getpid() if pid is None else pid):
        return None  # as with LISTEN_PID
    if not re.fullmatch(r"[0-9]{1,19}", time_left) or not int(time_left):
        raise SupervisionError(
            f'WATCHDOG_USEC: "{show_text(time_left[:80])}" is not a number of microseconds'
        )
    return int(time_left) / 1_000_000


class Notifier:
    """Tells the service manager how the service is, if there is one; else every method does nothing.

    No method raises: a manager that does not listen is no reason to stop serving devices.
    """

    def __init__(self, address: str | None = None) -> None:
        """``address``: a path, or ``@name`` for an abstract one; ``None`` = nobody listens."""
        self._address: str | bytes | None = address
        if address is not None and address.startswith("@"):
            self._address = b"\0" + os.fsencode(address[1:])
        self.failures = 0
        """Notifications that could not be sent."""

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Notifier:
        """The one that ``NOTIFY_SOCKET`` names; the variable is removed. :class:`SupervisionError` for junk in it."""
        address = environment.pop("NOTIFY_SOCKET", None)
        if address is not None and not re.fullmatch(r"[/@][^\0]{1,106}", address):
            raise SupervisionError(
                f'NOTIFY_SOCKET: "{show_text(address[:120])}" is neither a path nor @ and a name'
            )
        return cls(address)

    def __bool__(self) -> bool:
        """Whether there is a manager to tell."""
        return self._address is not None

    def tell(
        self, *assignments: str, descriptors: Sequence[int] = (), patience: float = SEND_TIMEOUT
    ) -> bool:
        """Send assignments such as ``"READY=1"`` in one datagram; whether it was sent within ``patience`` seconds.

        A line end within one becomes a blank: nobody's text can become an assignment of its own.
        """
        if self._address is None:
            return False
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        text = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
                manager.settimeout(patience)
                manager.connect(self._address)
                manager.sendmsg([text.encode("utf-8", "surrogateescape")], ancillary)
        except OSError:
            self.failures += 1
            return False
        return True

    def ready(self, status: str) -> bool:
        """The service serves; with ``status`` in words, for ``systemctl status``."""
        return self.tell("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> bool:
        """The service is about to end."""
        return self.tell("STOPPING=1", f"STATUS={status}")

    def reloading(self) -> bool:
        """The service reads its configuration again, and will say :meth:`ready` when it has."""
        # sd_notify(3): MONOTONIC_USEC= "must be combined with RELOADING=1" for Type=notify-reload; others ignore it.
        return self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, status: str) -> bool:
        """How the service is, in words. Waits for nothing, as the two below."""
        return self.tell(f"STATUS={status}", patience=0)

    def alive(self) -> bool:
        """The service serves, as the manager's watchdog wants to hear."""
        return self.tell("WATCHDOG=1", patience=0)

    def extend(self, seconds: float) -> bool:
        """What is under way, the start or the stop, may take so many seconds more from now on."""
        return self.tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}", patience=0)

    # --- descriptors that are kept for the next process ---

    def store(self, name: str, *descriptors: int) -> bool:
        """Have the manager keep copies of ``descriptors``; whether it was asked, see :meth:`keeps_descriptors`.

        FDPOLL=0: it keeps them also when one of them reports an error, as a UDP socket may at any time.
        """
        return self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=descriptors[:MAX_SENT])

    def forget(self, name: str) -> bool:
        """Have it close all that it keeps under this name."""
        return self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self, seconds: float = BARRIER_TIMEOUT) -> bool:
        """Wait until the manager has done all that it was told before; ``False`` = not within ``seconds``.

        Blocks; for starts and stops, when nobody is served.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            told = self.tell("BARRIER=1", descriptors=[writing])
        finally:
            os.close(writing)
        try:
            return told and _hung_up(reading, seconds)
        finally:
            os.close(reading)

    def keeps_descriptors(self) -> bool:
        """Whether the manager keeps (at least) one more descriptor. Blocks as :meth:`barrier`.

        It is given the writing end of a pipe. What it does not keep it closes, and then the reading end hangs up.
        """
        if self._address is None:
            return False
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            # Without FDPOLL=0, so that it is not kept for ever if this process ends here.
            told = self.tell("FDSTORE=1", f"FDNAME={PROBE}", descriptors=[writing])
        finally:
            os.close(writing)
        try:
            return told and self.barrier() and not _hung_up(reading, 0.0)
        finally:
            self.forget(PROBE)
            os.close(reading)


def _hung_up(reading: int, seconds: float) -> bool:
    """Whether the last writer of a pipe has gone, now or within ``seconds``."""
    poll = select.poll()
    poll.register(reading, 0)
    return bool(poll.poll(seconds * 1000))


@attrs.frozen(kw_only=True)
class Supervision:
    """All that a service manager has handed down, and how it is told."""

    descriptors: tuple[Descriptor, ...] = ()
    notifier: Notifier = attrs.field(factory=Notifier)
    watchdog: float | None = None
    """Seconds within which the manager wants to hear of the service, again and again."""

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Supervision:
        """From the environment, whose variables are removed. :class:`SupervisionError` for junk in them."""
        return cls(
            descriptors=take_descriptors(environment),
            notifier=Notifier.taken_from(environment),
            watchdog=take_watchdog(environment),
        )
