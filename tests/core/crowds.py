"""What the tests of a server with connection IDs share: a rig that knows many identities, and its books."""

from __future__ import annotations

from sansdtls import ConnectionIdPolicy, DataReceived, ServerConfig
from tests.core.fleets import KEYS
from tests.core.id_puppets import IdClient
from tests.core.puppet import ServerRig


class Crowd(ServerRig):
    """A server under test that knows many identities."""

    def __init__(self, policy: ConnectionIdPolicy | None = None, **more):
        super().__init__(ServerConfig(connection_id=policy or ConnectionIdPolicy(), **more), dict(KEYS))

    def sent(self, path="peer") -> list[bytes]:
        return [each.data for each in self.server.datagrams_to_send() if each.path == path]

    def client(self, number: int, path=None, *, with_id: bool = True) -> IdClient:
        """Number ``number``, connected; at a path of its own if no other is named."""
        return self.beginner(number, path, with_id=with_id).handshake()

    def beginner(self, number: int, path=None, *, with_id: bool = True) -> IdClient:
        """The same before its first hello."""
        return IdClient(
            self,
            own_id=b"%d" % number if with_id else None,
            identity=b"dev%d" % number,
            psk=KEYS[b"dev%d" % number][0],
            random=self.entropy(32),
            path=("host", number) if path is None else path,
        )

    def hears(self, puppet: IdClient, path=None) -> bool:
        """Whether what the puppet sends from ``path`` is delivered, to its own association."""
        data = self.entropy(8)
        before = len(self.events)
        self.server_give(puppet.data(data), puppet.path if path is None else path)
        heard = [event for event in self.events[before:] if isinstance(event, DataReceived)]
        for event in heard:
            assert event.data == data
            assert event.connection.peer is not None
            assert event.connection.peer.psk_identity == puppet.identity
        return bool(heard)

    def server_give(self, data: bytes, path) -> None:
        self._take(self.server.receive_datagram(data, path=path, now=self.now))
        self.server.datagrams_to_send()

    def path_of(self, puppet: IdClient):
        (found,) = [each for each in self.server.connections if each.connection_id == puppet.peers_id]
        return found.path


def assert_nothing_is_left(rig: ServerRig) -> None:
    server, routes = rig.server, rig.server._routes
    assert len(server) == server.statistics.associations == server.statistics.half_open == 0
    assert len(routes) == len(routes.established) == 0
    assert not routes._by_connection_id
    assert not routes._id_lengths
    assert list(server.connections) == []
    assert server.next_timeout() is None
