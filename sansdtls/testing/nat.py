"""A NAT on the virtual network: it gives addresses, and takes them away."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from sansdtls.testing.network import Network

FIRST_PORT = 1024


class Nat:
    """Stands between some addresses of a network and all others, as a router with one public address does.

    What a client behind it sends comes from a public path, ``(address, port)``, the same whomever it is for,
    and what is sent there reaches the client. Both are looked up when a datagram passes the router: one that is
    under way still has the address of the moment it was sent, and what comes for a path that is no longer
    anybody's is lost.
    ::

        nat = Nat(fleet.network, ["meter"], timeout=30)
        nat.rebind("meter")      # from its next datagram on, the meter is seen at another path

    ``timeout``
        Seconds without a datagram from the inside after which a path is given up; ``None`` = never. Datagrams
        from outside keep nothing alive, which RFC 4787 §4.3 allows.
    """

    def __init__(
        self,
        network: Network,
        inside: Iterable[Hashable],
        *,
        timeout: float | None = None,
        address: Hashable = "nat",
    ):
        self.inside = set(inside)
        """The addresses behind it; more may be added."""
        self.timeout = timeout
        self.address = address
        self._clock = network.clock
        self._public: dict[Hashable, tuple[Hashable, float]] = {}  # inside address: path, last used
        self._owner: dict[Hashable, Hashable] = {}
        self._next_port = FIRST_PORT
        network.add_nat(self)

    def public(self, client: Hashable) -> Hashable | None:
        """Where others see ``client`` now; ``None`` = nowhere until it sends something."""
        path, last_used = self._public.get(client, (None, 0.0))
        if self.timeout is not None and self._clock.now - last_used > self.timeout:
            return None
        return path

    def rebind(self, *clients: Hashable) -> None:
        """Forget the paths of ``clients`` (of all, where none is named), as a router that was restarted."""
        for client in clients or tuple(self._public):
            path, _ = self._public.pop(client, (None, 0.0))
            if self._owner.get(path) == client:
                del self._owner[path]

    def assign(self, client: Hashable, path: Hashable) -> None:
        """Give ``client`` this very path, whoever had it before."""
        self.rebind(client)
        if path in self._owner:
            self.rebind(self._owner[path])
        self._public[client] = (path, self._clock.now)
        self._owner[path] = client

    def swap(self, one: Hashable, other: Hashable) -> None:
        """Give each of two clients the path of the other. Both must have one."""
        paths = self.public(one), self.public(other)
        if None in paths:
            raise ValueError(
                f"{one!r} and {other!r} need a path each, and have {paths[0]!r} and {paths[1]!r}"
            )
        self.rebind(one, other)
        self.assign(one, paths[1])
        self.assign(other, paths[0])

    # --- for the network ---

    def outward(self, source: Hashable) -> Hashable:
        """The source address of a datagram that leaves."""
        if source not in self.inside:
            return source
        path = self.public(source)
        if path is None:
            path = (self.address, self._next_port)
            self._next_port += 1
        self.assign(source, path)  # again, because that starts its time anew
        return path

    def inward(self, destination: Hashable) -> Hashable:
        """The destination of a datagram that arrives; unchanged where it is for nobody in here."""
        client = self._owner.get(destination)
        return client if client is not None and self.public(client) == destination else destination
