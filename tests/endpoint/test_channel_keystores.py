"""``serve_dtls`` with a key store of one's own that answers late, or not."""

import logging

import attrs
import pytest
import trio

from endpoint import GuardedStore, HandshakeFailed, LookupPolicy, StoreUnavailable, open_dtls
from endpoint.keystore import DictKeyStore
from endpoint.serving import LOG_BURST, MAX_LOGGED_IDENTITY
from sansdtls import AlertDescription, PeerAlert
from tests.endpoint.devices import KEYS
from tests.endpoint.test_channel import CLIENT, Keeper, served
from tests.endpoint.test_guarded_store import AsyncStore

ASYNC_KEYS = {identity: [key] for identity, key in KEYS.items()}


async def echo(channel):
    async for data in channel:
        await channel.send(data)


class Living(AsyncStore):
    """One that answers only while its ``run`` runs."""

    running = False

    async def run(self):
        self.running = True
        try:
            await trio.sleep_forever()
        finally:
            self.running = False

    async def lookup(self, identity):
        if not self.running:
            raise StoreUnavailable("not running")
        return await super().lookup(identity)


async def connects(port):
    async with await open_dtls("127.0.0.1", port, config=CLIENT) as channel:
        await channel.send(b"x")
        return await channel.receive() == b"x"


async def test_a_store_with_a_life_of_its_own_is_run_and_many_handshakes_of_one_identity_are_one_question():
    store = Living(ASYNC_KEYS)
    async with served(echo, keystore=store) as port:
        assert await connects(port)
    assert not store.running


async def test_a_store_that_is_down_has_devices_come_back_and_the_log_says_why(caplog, autojump_clock):
    store = AsyncStore(ASYNC_KEYS, failure=OSError("no route"))
    async with served(Keeper(), keystore=store) as port:
        with caplog.at_level(logging.WARNING, logger="endpoint"), pytest.raises(HandshakeFailed) as caught:
            await open_dtls("127.0.0.1", port, config=CLIENT)
        assert caught.value.cause == PeerAlert(AlertDescription.INTERNAL_ERROR, authenticated=False)
        assert "key store unavailable" in caplog.text
        assert "no route" in caplog.text
        store.failure = None
        await trio.sleep(6)
        async with await open_dtls("127.0.0.1", port, config=CLIENT):
            pass


async def test_an_outage_does_not_fill_the_log_however_many_come(caplog, autojump_clock):
    store = AsyncStore(ASYNC_KEYS, failure=OSError("no route"))
    with caplog.at_level(logging.WARNING, logger="endpoint"):
        async with served(Keeper(), keystore=store) as port, trio.open_nursery() as crowd:

            async def knock():
                with pytest.raises(HandshakeFailed):
                    await open_dtls("127.0.0.1", port, config=CLIENT)

            for _ in range(40):
                crowd.start_soon(knock)
    lines = [record for record in caplog.records if "key store unavailable" in record.getMessage()]
    assert LOG_BURST <= len(lines) <= LOG_BURST + 5


async def test_of_an_identity_that_a_stranger_claims_no_more_is_logged_than_fits_a_line(
    caplog, autojump_clock
):
    store = AsyncStore(ASYNC_KEYS, failure=OSError("no route"))
    client = attrs.evolve(CLIENT, psk_identity=b"m" * 1024)
    with caplog.at_level(logging.WARNING, logger="endpoint"):
        async with served(Keeper(), keystore=store) as port:
            with pytest.raises(HandshakeFailed):
                await open_dtls("127.0.0.1", port, config=client)
    lines = [record.getMessage() for record in caplog.records]
    assert any("key store unavailable" in line for line in lines)
    assert any("handshake with" in line for line in lines)
    assert not [line for line in lines if "m" * (MAX_LOGGED_IDENTITY + 1) in line]


async def test_a_guard_of_ones_own_is_used_as_it_is(autojump_clock):
    store = AsyncStore(ASYNC_KEYS, seconds=3)
    guard = GuardedStore(store, LookupPolicy(timeout=1), trouble=lambda *_, **__: None)
    async with served(Keeper(), keystore=guard) as port:
        with pytest.raises(HandshakeFailed):
            await open_dtls("127.0.0.1", port, config=CLIENT)
    assert guard.outcomes["timed_out"] == 1


async def test_what_is_in_memory_gets_no_guard():
    async with served(echo, keystore=DictKeyStore(KEYS)) as port:
        assert await connects(port)
