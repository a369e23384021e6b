"""Clients and one server, driven against each other over a virtual network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls import (
    Connection,
    ConnectionOffered,
    ConnectionTerminated,
    DataReceived,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
    Server,
    ServerConfig,
)
from sansdtls.testing.entropy import CounterEntropy
from sansdtls.testing.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from sansdtls import AlertDescription, Cause, ClientConfig, Event

_PeerShown = (PeerCertificateReceived, PeerRawKeyReceived)
MAX_STEPS_PER_INSTANT = 10_000
"""Steps without the clock moving after which the driver gives up: two sides answer each other for ever,
or a timeout stays due although it was handled."""


class NotReached(AssertionError):
    """The condition did not come true by the deadline, or nothing more would ever happen."""


class Client:
    """A client connection on the network, with the events it has given."""

    def __init__(self, connection: Connection, path: Hashable):
        self.connection = connection
        self.path = path
        """The address it sends from. Changing it is what a NAT does that forgets a mapping."""
        self.events: list[Event] = []

    @property
    def received(self) -> list[bytes]:
        """The application data received so far."""
        return data_received(self.events)

    @property
    def cause(self) -> Cause | None:
        """Why the connection ended; ``None`` while it has not."""
        return cause_of_end(self.events)


class Fleet:
    """Any number of clients against one :class:`sansdtls.Server`.

    Offers are accepted and PSK requests answered from ``keys`` (identity to its keys, current first), the
    server's ``accept_after`` and ``psk_after`` seconds later, a client's ``client_psk_after`` seconds later.
    ``None`` leaves the answer to the test, which then calls ``server.accept`` or :meth:`provide_psk`. A peer's
    certificate or raw public key goes to ``judge``, the alert that it returns rejects the peer, ``None`` accepts;
    answered ``judge_after`` seconds later, on both sides. These are attributes and may be changed at any time.
    ``on_server_event`` and ``on_client_event`` see each event first.

    What the parties want to send leaves with the next step, so that taps set before it see everything. A
    step moves the clock to the next moment at which anything is due.
    """

    def __init__(
        self,
        server_config: ServerConfig | None = None,
        *,
        keys: Mapping[bytes, Sequence[bytes]] | None = None,
        network: Network | None = None,
        seed: int = 0,
        server_path: Hashable = "server",
    ):
        self.network = network if network is not None else Network(seed)
        self.clock = self.network.clock
        self.keys: dict[bytes, Sequence[bytes]] = dict(keys or {})
        self.server_path = server_path
        self.server = Server(
            server_config if server_config is not None else ServerConfig(),
            entropy=CounterEntropy(2 * seed + 1),
            now=self.clock.now,
        )
        self.server_events: list[Event] = []
        self.clients: dict[Hashable, Client] = {}
        """The client at each address that has one. One that was restarted has left its place to the next; one
        that was moved may still be heard at several."""
        self.accept_after: float | None = 0.0
        self.psk_after: float | None = 0.0
        self.client_psk_after: float | None = 0.0
        self.judge_after: float | None = 0.0
        self.judge: Callable[[PeerCertificateReceived | PeerRawKeyReceived], AlertDescription | None] = (
            lambda _: None
        )
        self.on_server_event: Callable[[Event], None] | None = None
        self.on_client_event: Callable[[Client, Event], None] | None = None
        self._client_entropy = CounterEntropy(2 * seed)
        self._answers: list[tuple[float, Callable[[], None]]] = []
        self._steps_in_this_instant = 0

    @property
    def now(self) -> float:
        """The virtual time."""
        return self.clock.now

    # --- the parties ---

    def connect(self, config: ClientConfig, path: Hashable = "client") -> Client:
        """Start a client at ``path``. One already there is gone without a word, as after a power cut."""
        seed = int.from_bytes(self._client_entropy(8), "big")
        connection = Connection.client(
            config, entropy=CounterEntropy(seed), now=self.now, path=self.server_path
        )
        client = Client(connection, path)
        self.clients[path] = client
        return client

    def power_off(self, client: Client) -> None:
        """Take the client away without a word."""
        if self.clients.get(client.path) is client:
            del self.clients[client.path]

    def move(self, client: Client, path: Hashable, *, keep_old: bool = False) -> None:
        """Let the client send from ``path`` from now on. What is sent to its old address is lost, unless ``keep_old``."""
        if not keep_old and self.clients.get(client.path) is client:
            del self.clients[client.path]
        client.path = path
        self.clients[path] = client

    def provide_psk(self, request: PskRequested, keys: Sequence[bytes]) -> None:
        """Answer a request that was left to the test; what comes of it is among the events."""
        asker = next((one for one in self.clients.values() if one.connection is request.connection), None)
        self._psk_answer(request, keys, asker)()

    def server_connections(self, path: Hashable | None = None) -> list[Connection]:
        """Each connection that the server's events have named, oldest first (of ``path``, where given)."""
        found: dict[int, Connection] = {}
        for event in self.server_events:
            connection = event.connection
            if connection is not None and (path is None or connection.path == path):
                found.setdefault(id(connection), connection)
        return list(found.values())

    def server_received(self, path: Hashable | None = None) -> list[bytes]:
        """Application data the server has received (from ``path``, where given)."""
        return data_received(
            event
            for event in self.server_events
            if event.connection is not None and (path is None or event.connection.path == path)
        )

    def server_causes(self) -> list[Cause]:
        """Why connections of the server ended, in order."""
        return [event.cause for event in self.server_events if isinstance(event, ConnectionTerminated)]

    # --- driving ---

    def flush(self) -> None:
        """Put everything that the parties want to send on the network."""
        for client in list(self.clients.values()):
            for outgoing in client.connection.datagrams_to_send():
                self.network.send(client.path, outgoing.path, outgoing.data)
        for outgoing in self.server.datagrams_to_send():
            self.network.send(self.server_path, outgoing.path, outgoing.data)

    def next_wake_up(self) -> float | None:
        """When anything is due next: an arrival, a timeout or a late answer. ``None`` = never."""
        moments = [self.network.next_arrival(), self.server.next_timeout()]
        moments += [client.connection.next_timeout() for client in self.clients.values()]
        moments += [moment for moment, _ in self._answers]
        return min((moment for moment in moments if moment is not None), default=None)

    def step(self) -> bool:
        """Move the clock to the next wake-up and let all that is due happen; False = nothing ever will."""
        self.flush()
        moment = self.next_wake_up()
        if moment is None:
            return False
        if moment > self.now:
            self._steps_in_this_instant = 0
        self._steps_in_this_instant += 1
        if self._steps_in_this_instant > MAX_STEPS_PER_INSTANT:
            raise NotReached(f"the clock stands still at {self.now}; {self.describe()}")
        self.clock.advance_to(moment)
        self._deliver()
        self._answer()
        self._fire_timeouts()
        self.flush()
        return True

    def run_until(self, condition: Callable[[], bool], deadline: float = 300.0) -> None:
        """Step until ``condition()`` is true; :class:`NotReached` if it is not within ``deadline`` seconds."""
        end = self.now + deadline
        self.flush()
        while not condition():
            moment = self.next_wake_up()
            if moment is None or moment > end:
                self.clock.advance_to(end)
                raise NotReached(f"not reached by {end}; {self.describe()}")
            self.step()

    def run_for(self, seconds: float) -> None:
        """Let ``seconds`` pass; the clock ends exactly there."""
        end = self.now + seconds
        self.flush()
        while (moment := self.next_wake_up()) is not None and moment <= end:
            self.step()
        self.clock.advance_to(end)

    def describe(self) -> str:
        """The seed and the last datagrams, for the message of a failed test."""
        last = "\n".join(
            f"  {entry.datagram.time:.6f} {entry.datagram.source!r} -> {entry.datagram.destination!r} "
            f"{len(entry.datagram.data)} bytes {entry.fate.value} {entry.datagram.data[:16].hex()}"
            for entry in self.network.log[-12:]
        )
        return f"{self.network!r}, last datagrams:\n{last}"

    # --- inside ---

    def _deliver(self) -> None:
        for datagram in self.network.arrivals():
            if datagram.destination == self.server_path:
                self._take_server_events(
                    self.server.receive_datagram(datagram.data, path=datagram.source, now=self.now)
                )
            elif (client := self.clients.get(datagram.destination)) is not None:
                self._take_client_events(
                    client,
                    client.connection.receive_datagram(datagram.data, path=datagram.source, now=self.now),
                )

    def _fire_timeouts(self) -> None:
        for client in list(self.clients.values()):
            due = client.connection.next_timeout()
            if due is not None and due <= self.now:
                self._take_client_events(client, client.connection.handle_timeout(now=self.now))
        due = self.server.next_timeout()
        if due is not None and due <= self.now:
            self._take_server_events(self.server.handle_timeout(now=self.now))

    def _take_client_events(self, client: Client, events: list[Event]) -> None:
        for event in events:
            client.events.append(event)
            if self.on_client_event is not None:
                self.on_client_event(client, event)
            if isinstance(event, PskRequested) and self.client_psk_after is not None:
                keys = self.keys.get(event.identity, ())
                self._later(self.client_psk_after, self._psk_answer(event, keys, client))
            elif isinstance(event, _PeerShown) and self.judge_after is not None:
                self._later(self.judge_after, self._verdict(event, client))

    def _take_server_events(self, events: list[Event]) -> None:
        for event in events:
            self.server_events.append(event)
            if self.on_server_event is not None:
                self.on_server_event(event)
            if isinstance(event, ConnectionOffered) and self.accept_after is not None:
                self._later(self.accept_after, self._acceptance(event))
            elif isinstance(event, PskRequested) and self.psk_after is not None:
                keys = self.keys.get(event.identity, ())
                self._later(self.psk_after, self._psk_answer(event, keys, None))
            elif isinstance(event, _PeerShown) and self.judge_after is not None:
                self._later(self.judge_after, self._verdict(event, None))

    def _acceptance(self, offer: ConnectionOffered) -> Callable[[], None]:
        def accept() -> None:
            self.server.accept(offer, now=self.now)

        return accept

    def _psk_answer(
        self, request: PskRequested, keys: Sequence[bytes], asker: Client | None
    ) -> Callable[[], None]:
        def answer() -> None:
            self._take(asker, request.connection.provide_psk(request, list(keys), now=self.now))

        return answer

    def _verdict(
        self, request: PeerCertificateReceived | PeerRawKeyReceived, asker: Client | None
    ) -> Callable[[], None]:
        def answer() -> None:
            alert, connection = self.judge(request), request.connection
            if alert is None:
                events = connection.accept_peer(request, now=self.now)
            else:
                events = connection.reject_peer(request, alert, now=self.now)
            self._take(asker, events)

        return answer

    def _take(self, asker: Client | None, events: list[Event]) -> None:
        if asker is None:
            self._take_server_events(events)
        else:
            self._take_client_events(asker, events)

    def _later(self, seconds: float, answer: Callable[[], None]) -> None:
        if seconds == 0:
            answer()
        else:
            self._answers.append((self.now + seconds, answer))

    def _answer(self) -> None:
        due = [answer for moment, answer in self._answers if moment <= self.now]
        self._answers = [entry for entry in self._answers if entry[0] > self.now]
        for answer in due:
            answer()


def data_received(events: Iterable[Event]) -> list[bytes]:
    """The application data in ``events``."""
    return [event.data for event in events if isinstance(event, DataReceived)]


def cause_of_end(events: Iterable[Event]) -> Cause | None:
    """The cause of the first ``ConnectionTerminated`` in ``events``."""
    for event in events:
        if isinstance(event, ConnectionTerminated):
            return event.cause
    return None
