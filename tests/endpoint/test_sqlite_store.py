"""Keys from an SQLite database without waiting for its disk; the file changed, replaced, damaged and away."""

import threading

import pytest
import trio

from endpoint.keystore import ManagedStore, StoreUnavailable
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.guard import GuardedStore
from endpoint.keystore.sqlite import SqliteKeyStore
from endpoint.tables.lookup import LookupPolicy
from tests.endpoint.devices import IDENTITY, KEY, serving

K1, K2 = bytes(range(16)), bytes(range(100, 132))


@pytest.fixture
def path(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path / "keys.db"


def put(path, **identities):
    with KeyDatabase(path, create=True) as database, database.change() as changes:
        for identity, keys in identities.items():
            changes.set(identity.encode(), keys)


class SlowDatabase(KeyDatabase):
    """Its disk answers when ``go`` is set."""

    go = threading.Event()
    waiting = threading.Event()

    def lookup(self, identity):
        if identity.startswith(b"slow"):
            self.waiting.set()
            assert self.go.wait(20)
        return super().lookup(identity)


async def test_the_current_and_the_next_key_come_from_the_database(path):
    put(path, one=[K1], two=[K1, K2])
    store = SqliteKeyStore(path)
    assert await store.lookup(b"one") == (K1,)
    assert await store.lookup(b"two") == (K1, K2)
    assert await store.lookup(b"who") == ()
    assert await store.check() is None
    store.close()


async def test_identities_are_listed_page_by_page(path):
    put(path, b=[K1], a=[K1], c=[K2])
    store = SqliteKeyStore(path)
    assert await store.page(None, 2) == [b"a", b"b"]
    assert await store.page(b"b", 2) == [b"c"]
    assert await store.page(b"c", 2) == []
    store.close()
    path.unlink()
    with pytest.raises(StoreUnavailable, match=r"keys\.db"):
        await store.page(None, 2)


async def test_a_change_and_another_file_in_its_place_are_seen_by_the_next_lookup(path, tmp_path):
    put(path, m=[K1])
    store = SqliteKeyStore(path)
    assert await store.lookup(b"m") == (K1,)
    put(path, m=[K1, K2])
    assert await store.lookup(b"m") == (K1, K2)
    put(tmp_path / "new.db", m=[K2])
    (tmp_path / "new.db").replace(path)
    assert await store.lookup(b"m") == (K2,)
    store.close()


async def test_what_is_wrong_with_the_file_is_an_outage_that_ends_when_it_is_put_right(path):
    store = SqliteKeyStore(path)
    with pytest.raises(StoreUnavailable, match=r"keys\.db: is not there; remedy: "):
        await store.lookup(b"m")
    put(path, m=[K1])
    assert await store.lookup(b"m") == (K1,)
    path.chmod(0o644)
    path.rename(path.with_suffix(".away"))
    assert "is not there" in (await store.check() or "")
    path.with_suffix(".away").rename(path)
    path.chmod(0o600)
    assert await store.lookup(b"m") == (K1,)
    store.close()


@pytest.mark.slow
async def test_a_disk_that_stalls_keeps_no_device_from_talking_and_costs_one_thread(path, nursery):
    put(path, **{IDENTITY.decode(): [KEY], "slow": [KEY]})
    SlowDatabase.go.clear()
    store = SqliteKeyStore(path, open_database=SlowDatabase)
    assert isinstance(store, ManagedStore)
    # Long enough for a thread that only has to be given its turn.
    policy = LookupPolicy(timeout=1, failures=2)
    guard = GuardedStore(store, policy, trouble=lambda *_, **__: None)
    await nursery.start(guard.run)
    async with serving(keystore=guard) as served:
        first = await served.device().connect()
        while not first.connected:
            await first.step()
        async with trio.open_nursery() as waiting:
            for _ in range(3):
                waiting.start_soon(served.device(identity=b"slow").connect)
            await trio.to_thread.run_sync(SlowDatabase.waiting.wait)
            await first.send(b"meanwhile")
            assert await first.receive() == b"meanwhile"
        # They were told to come back; the thread is still in there, and is the only one.
        assert guard.statistics()["store"] == {"kind": "sqlite", "thread_busy": 1}
        with pytest.raises(StoreUnavailable, match="no answer within"):
            await guard.lookup(IDENTITY)  # type: ignore[misc]
        SlowDatabase.go.set()
        with trio.fail_after(20):
            while guard.statistics()["down"]:  # noqa: ASYNC110 - it is told to the log only
                await trio.sleep(0.01)
        assert list(await guard.lookup(IDENTITY)) == [KEY]  # type: ignore[misc]


async def test_the_file_is_closed_with_the_store(path):
    put(path, m=[K1])
    async with trio.open_nursery() as nursery:
        store = SqliteKeyStore(path)
        await nursery.start(store.run)
        await store.lookup(b"m")
        assert store._database is not None
        nursery.cancel_scope.cancel()
    assert vars(store)["_database"] is None
