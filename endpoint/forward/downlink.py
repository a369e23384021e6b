"""Entries of streams to devices that are awake: the way back of ``endpoint.forward.valkey``, where the guarantees stand.

::

    awake     a device is there: it joins a group of up to 1,000, whose command is ended to take it in
    group     XREAD BLOCK … STREAMS (all of the group) 0 0 0 …      everything that is there, oldest first
              send, delete (XDEL), and again

Always from the beginning of a stream: what was sent is deleted before the next question, so what is there was not sent. Entries
whose deletion is not confirmed are remembered, and deleted before anything else when there is a connection again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from endpoint.valkey import ServerAway, ServerRefused, ValkeyLink
from sansdtls import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from endpoint.association import Association
    from endpoint.forward import Devices
    from endpoint.valkey_access import ValkeyAccess

GROUP = 1000
"""Devices that one command asks about: some 50 KiB of names, and a millisecond of the server's time."""
COUNT = 8
"""Entries of one stream that are taken at once, so that one that is full does not keep the others waiting."""
BLOCK = 10.0
"""Seconds that a command waits at the server; then it is sent anew, which shows whether the server is there."""
PATIENCE = 5.0
"""Seconds beyond, for the answer to come."""
GATHERING = 0.05
"""Seconds in which devices that wake are gathered before a command is ended for them: they come by the hundred after a restart."""
HOLD = 1.0
"""Seconds before another attempt at a device that could not take an entry, and after the server has refused."""


class Downlink:
    """Knows which devices are awake, and brings them what is there for them."""

    def __init__(
        self,
        prefix: bytes,
        access: ValkeyAccess,
        control: ValkeyLink,
        *,
        devices: Devices,
        tell: Callable[..., None],
    ) -> None:
        """``control`` is a connection beside those that block; somebody else runs it."""
        self._prefix = prefix
        self._access = access
        self._control = control
        self._devices = devices
        self._tell = tell
        self._groups: list[_Group] = []
        self._group_of: dict[bytes, _Group] = {}
        self._nursery: trio.Nursery | None = None
        self._woken = trio.Event()
        self._unblock_told = False
        self.sent = 0
        """Entries handed to the kernel."""
        self.deleted_unsent = 0
        """Entries that can be sent to nobody: without data, or too large."""

    # --- who is awake -------------------------------------------------------------------------------------

    def awake(self, association: Association) -> None:
        """A device is there; it may have several associations."""
        group = self._group_of.get(association.identity)
        if group is None:
            group = (
                next((group for group in self._groups if len(group.awake) < GROUP), None) or self._new_group()
            )
            self._group_of[association.identity] = group
            group.awake[association.identity] = []
            group.changed = True
            self._woken.set()
        group.awake[association.identity].append(association)

    def away(self, association: Association) -> None:
        """One of its associations is gone or sleeps."""
        group = self._group_of.get(association.identity)
        if group is None or association not in group.awake[association.identity]:
            return
        group.awake[association.identity].remove(association)
        if not group.awake[association.identity]:
            del group.awake[association.identity], self._group_of[association.identity]

    def _new_group(self) -> _Group:
        group = _Group(ValkeyLink(self._access, blocking=True))
        self._groups.append(group)
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, group)
        return group

    async def run(self) -> None:
        """Bring what is there, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for group in self._groups:
                    nursery.start_soon(self._serve, group)
                while True:
                    await self._woken.wait()
                    await trio.sleep(GATHERING)
                    self._woken = trio.Event()
                    await self._end_outdated_commands()
        finally:
            self._nursery = None

    async def _end_outdated_commands(self) -> None:
        for group in self._groups:
            group.filled.set()
            client = group.link.client_id
            if not group.changed or client is None:
                continue
            try:
                await self._control.request("CLIENT", "UNBLOCK", client)
            except ServerAway:
                return  # then neither are the others, and they ask anew when it is back
            except ServerRefused as refused:
                if not self._unblock_told:
                    self._unblock_told = True
                    reason = f"{refused}; without it what waits for a device comes up to {BLOCK:g} s late"
                    self._tell("forward_unblock_refused", reason=reason)
                return

    # --- one group ----------------------------------------------------------------------------------------

    async def _serve(self, group: _Group) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.link.run)
            while True:
                await group.link.wait_connected()
                try:
                    await self._delete(group)
                    await self._bring(group)
                except ServerAway:
                    await trio.lowlevel.checkpoint()
                except ServerRefused as refused:
                    if not group.refused:
                        group.refused = True
                        self._tell("forward_downlink_refused", reason=str(refused))
                    await trio.sleep(HOLD)

    async def _bring(self, group: _Group) -> None:
        """One question, and what comes of it."""
        group.changed = False
        asked = list(group.to_ask(trio.current_time()))
        if not asked:
            group.filled = trio.Event()
            with trio.move_on_after(HOLD if group.awake else BLOCK):
                await group.filled.wait()
            return
        # Those that could not take theirs are asked about again soon, so the others' command must end soon, too.
        block = HOLD if group.held else BLOCK
        names = [self._prefix + identity for identity in asked]
        with trio.move_on_after(block + PATIENCE) as patience:
            found = await group.link.request(
                "XREAD", "COUNT", COUNT, "BLOCK", round(block * 1000), "STREAMS", *names, *["0"] * len(names)
            )
        if patience.cancelled_caught:
            group.link.drop(f"no answer within {block + PATIENCE:g} seconds")
            return
        group.refused = False
        for name, entries in _streams(found):
            group.undeleted[name] = list(self._send(group, name.removeprefix(self._prefix), entries))
        await self._delete(group)

    def _send(self, group: _Group, identity: bytes, entries: list[Any]) -> Iterator[bytes]:
        """Send them in their order; the numbers of those that need not stay."""
        for number, fields in entries:
            live = [
                one
                for one in group.awake.get(identity, ())
                if one.connection.state is ConnectionState.CONNECTED
            ]
            if not live:
                return  # it fell asleep meanwhile; what is for it waits
            association = max(live, key=_heard)
            data = _data(fields)
            if data is None or len(data) > association.connection.max_payload:
                self._devices.drop("malformed" if data is None else "too_large")
                self.deleted_unsent += 1
            elif self._devices.reply(association, data):
                self.sent += 1
            else:
                group.held[identity] = trio.current_time() + HOLD
                return
            yield number

    async def _delete(self, group: _Group) -> None:
        """Delete what was sent. :class:`ServerAway` = nobody knows whether that was done; it is done again."""
        names = [name for name, numbers in group.undeleted.items() if numbers]
        if names:
            with trio.move_on_after(PATIENCE) as patience:
                answers = await group.link.batch([("XDEL", name, *group.undeleted[name]) for name in names])
            if patience.cancelled_caught:
                group.link.drop(f"no answer within {PATIENCE:g} seconds")
                raise ServerAway
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, ServerRefused):
                    raise answer
                del group.undeleted[name]

    def statistics(self) -> dict[str, int]:
        """``sent`` entries, those ``deleted_unsent``; ``awake`` identities, and in how many ``groups``."""
        return {
            "sent": self.sent,
            "deleted_unsent": self.deleted_unsent,
            "awake": len(self._group_of),
            "groups": len(self._groups),
        }


class _Group:
    """Devices that are asked about together."""

    __slots__ = ("awake", "changed", "filled", "held", "link", "refused", "undeleted")

    def __init__(self, link: ValkeyLink) -> None:
        self.link = link
        self.awake: dict[bytes, list[Association]] = {}
        self.held: dict[bytes, float] = {}
        """Those that could not take an entry, and until when they are left alone."""
        self.undeleted: dict[bytes, list[bytes]] = {}
        """By stream the entries that were sent."""
        self.changed = False
        """Somebody has woken whom the command under way does not ask about."""
        self.filled = trio.Event()
        self.refused = False

    def to_ask(self, now: float) -> Iterator[bytes]:
        """Who can take something now."""
        for identity in [identity for identity, until in self.held.items() if until <= now]:
            del self.held[identity]
        return (identity for identity in self.awake if identity not in self.held)


def _streams(found: Any) -> Iterator[tuple[bytes, list[Any]]]:
    """Name and entries of each stream in an answer to XREAD; there is none if nothing came."""
    yield from (found or {}).items()


def _data(fields: Any) -> bytes | None:
    """What an entry has for the device."""
    if not isinstance(fields, list):
        return None
    found = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"data")
    return found if isinstance(found, bytes) else None


def _heard(association: Association) -> float:
    return association.last_received
