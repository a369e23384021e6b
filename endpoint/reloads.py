"""Requests to read the credentials again, by SIGHUP or ``dtls-endpoint reload``: served one at a time.

Whoever asks while a reload is under way gets the one after it, which reads what is there by then; several who ask meanwhile
share that one. So a reload that is reported as done has begun after it was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from endpoint.admin import Command
    from endpoint.supervised import Supervised


class Reloads:
    """Make it inside ``trio.run``."""

    def __init__(
        self,
        reload: Callable[[], Awaitable[Mapping[str, Any]]],
        *,
        supervised: Supervised,
        trouble: Callable[..., None],
    ) -> None:
        """``reload`` says what came of it, with ``reloaded`` true or false. What it raises is told as ``trouble``, and counts as false."""
        self._reload = reload
        self._supervised = supervised
        self._trouble = trouble
        self._asked = 0
        self._served = 0
        self._wanted = trio.Event()
        self._finished = trio.Event()
        self.last: Mapping[str, Any] = {}
        """What came of the last one; empty = there was none."""

    def ask(self) -> int:
        """Have the credentials read again; returns the number of the request."""
        self._asked += 1
        self._wanted.set()
        return self._asked

    async def outcome(self) -> Mapping[str, Any]:
        """Ask, and wait for what comes of it."""
        mine = self.ask()
        while self._served < mine:
            await self._finished.wait()
        return self.last

    async def run(self) -> None:
        """Serve requests until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            number = self._asked
            with self._supervised.reloading():
                try:
                    self.last = await self._reload()
                except Exception as error:  # noqa: BLE001 - what is in use still is, and devices are served with it
                    self._trouble("reload failed", reason=repr(error))
                    self.last = {
                        "reloaded": False,
                        "errors": ["it broke; the log says how"],
                        "errors_in_all": 1,
                    }
            self._served = number
            self._finished.set()
            self._finished = trio.Event()

    def commands(self) -> Mapping[str, Command]:
        """For the admin socket."""
        return {"reload": self._command}

    async def _command(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        """``{"command": "reload", "wait": true}``; without ``wait`` the answer is that it was asked for."""
        if request.get("wait"):
            return await self.outcome()
        self.ask()
        return {"asked": True}
