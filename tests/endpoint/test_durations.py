"""How long handshakes and lookups took, as the engine counts it."""

import trio

from endpoint.keystore import DictKeyStore
from sansdtls import ClientConfig, RetransmitPolicy
from tests.endpoint.devices import IDENTITY, KEY, KEYS, serving

OTHER_KEY = bytes(16)


class Slow:
    """A store that takes its time."""

    def __init__(self, seconds):
        self.seconds = seconds

    async def lookup(self, identity):
        await trio.sleep(self.seconds)
        return DictKeyStore(KEYS).lookup(identity)


async def test_a_handshake_is_measured_from_its_cookie_to_its_end(autojump_clock):
    async with serving(keystore=Slow(0.3)) as served:
        await served.device().connect()
        figures = served.engine.statistics()
    completed = figures["handshake_seconds"]["completed"]
    assert completed["count"] == 1
    assert 0.3 <= completed["sum"] < 0.4
    assert completed["buckets"]["0.25"] == 0
    assert completed["buckets"]["0.5"] == 1
    assert figures["handshake_seconds"]["failed"]["count"] == 0
    lookups = figures["lookup_seconds"]
    assert lookups["count"] == 1
    assert 0.3 <= lookups["sum"] < 0.4


async def test_one_that_fails_is_measured_too_and_told_apart(autojump_clock):
    config = ClientConfig(
        psk_identity=IDENTITY, psk_key=OTHER_KEY, retransmit=RetransmitPolicy(initial_timeout=0.5)
    )
    async with serving() as served:
        await served.device(config=config).connect()
        await served.device(identity=IDENTITY, key=KEY).connect()
        seconds = served.engine.statistics()["handshake_seconds"]
    assert (seconds["completed"]["count"], seconds["failed"]["count"]) == (1, 1)
    assert seconds["failed"]["sum"] > seconds["completed"]["sum"]


async def test_a_store_that_answers_at_once_takes_no_time(autojump_clock):
    async with serving() as served:
        await served.device().connect()
        lookups = served.engine.statistics()["lookup_seconds"]
    assert lookups == {"buckets": dict.fromkeys(lookups["buckets"], 1), "sum": 0.0, "count": 1}
