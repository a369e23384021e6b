"""Sinks through the lives of associations: whatever happens in whatever order, no socket is lost or mixed up."""

import socket

import trio
from hypothesis import given
from hypothesis import strategies as st

from endpoint.forward.hearing import Hearing
from endpoint.forward.router import Route, Router
from endpoint.forward.udp import UdpUpstreams
from endpoint.observer import Observers
from endpoint.tables.sinks import UdpTable
from sansdtls import ClientConfig, ServerConfig
from tests.endpoint.devices import IDENTITY, KEY, Recorder, serving
from tests.program.fronts import LONG, Data
from tests.program.sinks import Collector, Told, device, devices_of

LIMIT = 3
STEPS = st.lists(
    st.tuples(st.sampled_from(["deliver", "freeze", "thaw", "move", "end"]), st.integers(0, 5)), max_size=60
)


class Life:
    """One association's: live as ``now``, or asleep under a handle, or not there."""

    def __init__(self, number):
        self.number = number
        self.now = device(b"shared")
        self.asleep = False
        self.address = None
        """At the server, for as long as it must stay the same."""


def consistent(sink, lives):
    """The sink's tables say the same as each other and as the lives."""
    upstreams = list(sink._upstreams)
    assert len(upstreams) <= LIMIT
    assert len(sink._of) + len(sink._asleep) == len(upstreams)
    for association, upstream in sink._of.items():
        assert (upstream.association, upstream.handle) == (association, None)
    for handle, upstream in sink._asleep.items():
        assert (upstream.association, upstream.handle) == (None, handle)
    live = {id(life.now) for life in lives if life.now is not None and not life.asleep}
    assert {id(association) for association in sink._of} <= live
    assert set(sink._asleep) <= {b"%d" % life.number for life in lives if life.asleep}


def step(sink, server, life, what):
    association = life.now
    if what == "thaw" and life.asleep:
        life.now = device(b"shared")
        life.now.handle = b"%d" % life.number
        life.asleep = False
        sink.thawed(life.now)
        life.now.handle = None
    elif association is None:
        life.now = device(b"shared")
        sink.connected(life.now)
    elif life.asleep:
        return
    elif what == "deliver":
        sink.deliver(association, b"%d" % life.number)
        data, address = server.recvfrom(100)
        assert data == b"%d" % life.number
        assert life.address in (None, address)
        life.address = address
    elif what == "freeze":
        association.handle = b"%d" % life.number
        life.asleep = True
        sink.frozen(association)
    elif what == "move":
        sink.moved(association)
    elif what == "end":
        life.now = life.address = None
        sink.disconnected(association)


@given(STEPS)
def test_in_any_order_each_has_its_own_socket_and_none_is_left(steps):
    async def live():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
            table = UdpTable(upstream=f"127.0.0.1:{server.getsockname()[1]}", max_upstreams=LIMIT)
            sink = UdpUpstreams(table, devices=devices_of(), tell=Told())
            lives = [Life(number) for number in range(6)]
            for what, number in steps:
                step(sink, server, lives[number], what)
                consistent(sink, lives)
                kept = {upstream.socket.getsockname() for upstream in sink._upstreams}
                for life in lives:
                    if life.address not in kept:  # it had to go for another one
                        life.address = None
            for life in lives:
                step(sink, server, life, "thaw")
                if life.now is not None:
                    step(sink, server, life, "end")
            assert len(sink._upstreams) == 0
            sink.close()

    trio.run(live)


async def test_a_protocol_that_was_negotiated_chooses_the_sink_after_a_sleep_too(autojump_clock):
    coap, rest = Collector(), Collector()
    router = Router(
        [Route(name="coap", sink=coap, alpn=[b"coap"]), Route(name="rest", sink=rest)], tell=Told()
    )
    observer = Observers(Recorder(), Hearing(router), data=Data(router))
    config = ServerConfig(freeze_after=300.0, alpn_protocols=(b"coap",))
    async with serving(config=config, observer=observer) as served:
        talker = served.device(
            config=ClientConfig(psk_identity=IDENTITY, psk_key=KEY, alpn_protocols=(b"coap",))
        )
        other = await served.device().connect()
        await talker.connect()
        await talker.send(b"one")
        await other.send(b"two")
        await trio.sleep(LONG)
        await talker.send(b"three")
    assert [data for _, data in coap.delivered] == [b"one", b"three"]
    assert [data for _, data in rest.delivered] == [b"two"]
    assert [what for what, _ in coap.heard] == ["connected", "frozen", "thawed"]
