"""Tools for tests of programs that use :mod:`sansdtls`, and of the package itself.

Time, entropy and the network are virtual and come from a seed: what failed once fails again.
::

    from sansdtls.testing import Pair

    pair = Pair()                                   # a client and a server, default configuration
    pair.handshake()                                # virtual time passes, no real time does
    pair.client.send(b"21.5", now=pair.now)
    pair.run_for(1)
    assert pair.server_received() == [b"21.5"]

:class:`Fleet` is the same for many clients, :class:`Network` and :class:`VirtualClock` stand alone, and
:class:`CounterEntropy` replaces ``os.urandom``. A :class:`Nat` puts clients behind a router that may forget
them.
"""

from sansdtls.testing.entropy import CounterEntropy
from sansdtls.testing.fleet import Client, Fleet, NotReached
from sansdtls.testing.nat import Nat
from sansdtls.testing.network import Carried, Datagram, Fate, Network, VirtualClock
from sansdtls.testing.pair import Pair

__all__ = [
    "Carried",
    "Client",
    "CounterEntropy",
    "Datagram",
    "Fate",
    "Fleet",
    "Nat",
    "Network",
    "NotReached",
    "Pair",
    "VirtualClock",
]
