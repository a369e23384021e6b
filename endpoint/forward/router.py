"""Which sink gets whose data, and what keeps one sink's trouble from the others.

The first sink that is meant to have an association's data gets them, and those behind it for as long as the one
before says ``also``. What a device is called and which protocol it speaks does not change, so this is found out once per
association and kept in its ``route``; a thawed one is asked about again.

A sink that breaks (raises what it should not) is told at most once a minute; its task is started anew after a while. A sink that is over (:class:`~endpoint.forward.ForwardError`) is told, and gets nothing more: what was meant for it
is dropped and counted, and does not go to whoever comes next in the list. When the last one is over, so is the router.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import trio

from endpoint.forward import ForwardError, Sink
from endpoint.text import show_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from endpoint.association import Association
    from endpoint.forward.devices import LiveDevices

FIRST_PAUSE = 1.0
"""Seconds before the task of a sink that broke is started again; each time twice as long."""
LONGEST_PAUSE = 60.0
"""Seconds; and a task that has run for so long begins with the first pause again."""


@attrs.frozen(kw_only=True)
class Route:
    """A sink and whose data it gets; see ``endpoint.tables.sinks`` for the meaning of the middle three."""

    name: str
    sink: Sink
    identities: Sequence[str] | None = None
    alpn: Sequence[bytes] | None = None
    also: bool = False
    devices: LiveDevices | None = None
    """The way back that the sink was given, for its counters."""


class Router(Sink):
    """Several sinks as one."""

    def __init__(self, routes: Sequence[Route], *, tell: Callable[..., None]) -> None:
        """``tell`` gets the facts, each with ``sink``, the name of the one that it is about."""
        super().__init__()
        self._outlets = tuple(_Outlet(route, tell) for route in routes)
        self._shared: dict[tuple[_Outlet, ...], tuple[_Outlet, ...]] = {}
        self._tell = tell
        self._unmatched_told = False

    def deliver(self, association: Association, data: bytes) -> None:
        """Give it to whom it is meant for."""
        outlets = association.route
        if outlets is None:
            outlets = self._find(association)
        if not outlets:
            self._unmatched(association)
        for outlet in outlets:
            outlet.deliver(association, data)

    def _find(self, association: Association) -> tuple[_Outlet, ...]:
        negotiated = association.connection.negotiated
        alpn = None if negotiated is None else negotiated.alpn_protocol
        identity = show_bytes(association.identity) if association.identified else None
        found = []
        for outlet in self._outlets:
            if outlet.is_for(identity, alpn):
                found.append(outlet)
                if not outlet.route.also:
                    break
        # The same tuple for all that have the same, as there may be 100,000 associations.
        outlets = association.route = self._shared.setdefault(tuple(found), tuple(found))
        return outlets

    def _unmatched(self, association: Association) -> None:
        self.drops["unmatched"] += 1
        if not self._unmatched_told:
            # Once: it is the configuration that lacks something, not the device.
            self._unmatched_told = True
            identity = show_bytes(association.identity) if association.identified else None
            self._tell("forward_unmatched", identity=identity, path=association.remote)

    # --- what becomes of associations: for those sinks that get their data -----------------------------

    def connected(self, association: Association) -> None:
        """A device is there."""
        for outlet in self._find(association):
            outlet.hear("connected", association)

    def thawed(self, association: Association) -> None:
        """It is awake."""
        for outlet in self._find(association):
            outlet.hear("thawed", association)

    def moved(self, association: Association) -> None:
        """Its address is another one now."""
        self._pass_on("moved", association)

    def frozen(self, association: Association) -> None:
        """It sleeps."""
        self._pass_on("frozen", association)

    def disconnected(self, association: Association) -> None:
        """It is gone."""
        self._pass_on("disconnected", association)

    def _pass_on(self, what: str, association: Association) -> None:
        for outlet in association.route or ():
            outlet.hear(what, association)

    # --- tasks -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run all of them until cancelled. ForwardError when none is left."""
        last: ForwardError | None = None
        async with trio.open_nursery() as nursery:

            async def keep(outlet: _Outlet) -> None:
                nonlocal last
                error = await outlet.keep_running()
                if any(not other.over for other in self._outlets):
                    self._tell("forward_failed", sink=outlet.route.name, error=str(error))
                else:
                    # Kept until outside: a nursery would wrap it into a group.
                    last = error
                    nursery.cancel_scope.cancel()

            for outlet in self._outlets:
                nursery.start_soon(keep, outlet)
        if last is not None:
            raise last

    async def flush(self) -> None:
        """Return when all have handed on what they hold; those that are over hold nothing."""
        async with trio.open_nursery() as nursery:
            for outlet in self._outlets:
                nursery.start_soon(outlet.flush)

    def close(self) -> None:
        """Close all."""
        for outlet in self._outlets:
            outlet.close()

    def unusable(self) -> list[str]:
        """The names of the sinks that take nothing now, as far as is known."""
        return [outlet.route.name for outlet in self._outlets if outlet.over or not outlet.route.sink.usable]

    def statistics(self) -> dict[str, Any]:
        """The sums, and ``sinks`` with each one's own; there ``drops`` is by reason."""
        sinks = {outlet.route.name: outlet.statistics() for outlet in self._outlets}
        sums: Counter[str] = Counter(forwarded=0, forward_dropped=self.drops["unmatched"])
        for figures in sinks.values():
            sums.update({name: figures.get(name, 0) for name in ("forwarded", "forward_dropped")})
            if "forward_held" in figures:
                sums["forward_held"] += figures["forward_held"]
        return {**sums, "unmatched": self.drops["unmatched"], "sinks": sinks}


class _Outlet:
    """A sink behind a wall: nothing that it raises comes out."""

    def __init__(self, route: Route, tell: Callable[..., None]) -> None:
        self.route = route
        self.over = False
        self._tell = tell
        self._told_at = -math.inf
        self._failures = 0
        self._identities = None
        if route.identities is not None:
            patterns = "|".join(fnmatch.translate(pattern) for pattern in route.identities)
            self._identities = re.compile(patterns)

    def is_for(self, identity: str | None, alpn: bytes | None) -> bool:
        if self._identities is not None and (identity is None or not self._identities.match(identity)):
            return False
        return self.route.alpn is None or alpn in self.route.alpn

    def deliver(self, association: Association, data: bytes) -> None:
        if self.over:
            self.route.sink.drops["over"] += 1
            return
        try:
            self.route.sink.deliver(association, data)
        except Exception as error:  # noqa: BLE001 - see the module's text
            self.route.sink.drops["broken"] += 1
            self._broke("deliver", error)

    def hear(self, what: str, association: Association) -> None:
        if self.over:
            return
        try:
            getattr(self.route.sink, what)(association)
        except Exception as error:  # noqa: BLE001 - see the module's text
            self._broke(what, error)

    def _broke(self, method: str, error: Exception) -> None:
        self._failures += 1
        now = trio.current_time()
        if now - self._told_at >= LONGEST_PAUSE:
            self._told_at = now
            self._tell("forward_broken", sink=self.route.name, method=method, reason=repr(error))

    async def keep_running(self) -> ForwardError:
        """Run the sink until it is over, and say why it is."""
        pause = FIRST_PAUSE
        while True:
            started = trio.current_time()
            try:
                await self.route.sink.run()
            except ForwardError as error:
                self.over = True
                return error
            except Exception as error:  # noqa: BLE001 - see the module's text
                self._broke("run", error)
            if trio.current_time() - started >= LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def flush(self) -> None:
        if self.over:
            return
        try:
            await self.route.sink.flush()
        except Exception as error:  # noqa: BLE001 - see the module's text
            self._broke("flush", error)

    def close(self) -> None:
        try:
            self.route.sink.close()
        except Exception as error:  # noqa: BLE001 - see the module's text
            self._broke("close", error)

    def statistics(self) -> dict[str, Any]:
        way_back = {} if self.route.devices is None else self.route.devices.statistics()
        drops = self.route.sink.drops
        return {
            **self.route.sink.statistics(),
            **way_back,
            "drops": dict(drops),
            "over": self.over,
            "failures": self._failures,
        }
