"""What tests of the valkey sink share: a sink that runs, and looking into the server's streams."""

import contextlib
import re

import trio

from endpoint.forward.valkey import ValkeyStream
from endpoint.tables.sinks import ValkeyTable
from tests.program.sinks import PATIENCE, Told, devices_of


def table(server, **keys):
    return ValkeyTable(server=server.address, **keys)


def added(server, stream="dtls:data"):
    """The fields of each entry."""
    found = server.do("XRANGE", stream, "-", "+")
    return [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in found]


@contextlib.asynccontextmanager
async def running(sink):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run)
        try:
            yield sink
        finally:
            nursery.cancel_scope.cancel()
            sink.close()


async def until(condition):
    """What happens at the server, or follows from it, nobody tells."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


def stream(server, *devices, told=None, wall=lambda: 1738367999.123, **keys):
    return ValkeyStream(table(server, **keys), devices=devices_of(*devices), tell=told or Told(), wall=wall)


def say(server, identity, data, prefix=b"to:", **fields):
    more = [part for name, value in fields.items() for part in (name, value)]
    return server.do("XADD", prefix + identity, "*", "data", data, *more)


def asking(server):
    """How many commands wait for something to come."""
    (number,) = re.findall(rb"blocked_clients:(\d+)", server.do("INFO", "clients"))
    return int(number)


def left(server, identity, prefix=b"to:"):
    return server.do("XLEN", prefix + identity)
