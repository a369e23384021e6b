"""One client against one server: what most tests need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls import ClientConfig, ConnectionState
from sansdtls.testing.fleet import Fleet, NotReached

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from sansdtls import Connection, Event, ServerConfig
    from sansdtls.testing.network import Network


class Pair(Fleet):
    """One client and one server.

    Without arguments: default configurations, identity ``dev1`` and one key of 16 bytes.
    """

    IDENTITY = b"dev1"
    KEY = bytes.fromhex("00112233445566778899aabbccddeeff")

    def __init__(
        self,
        client_config: ClientConfig | None = None,
        server_config: ServerConfig | None = None,
        *,
        keys: Mapping[bytes, Sequence[bytes]] | None = None,
        network: Network | None = None,
        seed: int = 0,
        client_path: Hashable = "client",
        server_path: Hashable = "server",
    ):
        super().__init__(
            server_config,
            keys=keys if keys is not None else {self.IDENTITY: [self.KEY]},
            network=network,
            seed=seed,
            server_path=server_path,
        )
        if client_config is None:
            client_config = ClientConfig(psk_identity=self.IDENTITY, psk_key=self.KEY)
        self.client_end = self.connect(client_config, client_path)

    @property
    def client(self) -> Connection:
        """The client's connection."""
        return self.client_end.connection

    @property
    def client_events(self) -> list[Event]:
        """What the client's connection has told."""
        return self.client_end.events

    @property
    def server_connection(self) -> Connection:
        """The server's newest connection; :class:`NotReached` if there has been none."""
        connections = self.server_connections()
        if not connections:
            raise NotReached(f"the server has accepted no connection; {self.describe()}")
        return connections[-1]

    @property
    def connected(self) -> bool:
        """Whether both sides have completed the handshake and neither has ended."""
        path = self.network.seen_as(self.client_end.path)
        return self.client.state is ConnectionState.CONNECTED and any(
            connection.path == path for connection in self.server.connections
        )

    def handshake(self, deadline: float = 300.0) -> None:
        """Run until both sides are connected; :class:`NotReached` if they are not within ``deadline``."""
        self.run_until(lambda: self.connected, deadline)
