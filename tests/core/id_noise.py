"""What the tests of noise around connection IDs share: puppets across either role, and what must not have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import Connection, ConnectionState, DiscardReason
from tests.core.id_puppets import IdClient, IdServer
from tests.core.puppet import ServerRig

if TYPE_CHECKING:
    from collections.abc import Hashable

READING = b"21.5 degrees"
ELSEWHERE = "elsewhere"


def make(role: str, **more) -> IdClient | IdServer:
    """A puppet across a connected ``role`` under test."""
    return (IdClient if role == "server" else IdServer)(**more).handshake()


def counters(puppet: IdClient | IdServer) -> dict[DiscardReason, int]:
    rig = puppet.rig
    if isinstance(rig, ServerRig):
        return rig.server.statistics.records_discarded
    return rig.connection.statistics.records_discarded


def give_from(puppet: IdClient | IdServer, data: bytes, path: Hashable) -> None:
    """Hand over what came from ``path``; nothing may come of it and nothing may be sent."""
    rig = puppet.rig
    before = len(rig.events)
    if isinstance(rig, ServerRig):
        rig._take(rig.server.receive_datagram(data, path=path, now=rig.now))
        assert rig.server.datagrams_to_send() == []
    else:
        assert rig.give(data, path) == []
    assert rig.events[before:] == []


def association(puppet: IdClient | IdServer) -> Connection:
    """The puppet's, under test."""
    if not isinstance(puppet.rig, ServerRig):
        return puppet.rig.connection
    (found,) = (
        each for each in puppet.rig.server.connections if each.connection_id == (puppet.peers_id or b"")
    )
    return found


def assert_untouched(puppet: IdClient | IdServer) -> None:
    """It lives, its path is what it was, and it still receives."""
    connection = association(puppet)
    assert connection.path == puppet.path
    before = list(puppet.rig.received)
    puppet.give(puppet.data(b"still here"))
    assert puppet.rig.received == [*before, b"still here"]
    assert connection.state is ConnectionState.CONNECTED
    assert puppet.rig.causes == []


each_role = pytest.mark.parametrize("role", ["server", "client"])
