"""Which key a device last used: heard from handshakes, kept in a file, bounded, and whole after accidents."""

import math
import os
import sqlite3
from contextlib import closing

import attrs
import pytest
import trio

from endpoint.keystore import DictKeyStore
from endpoint.keystore.fingerprint import fingerprint
from endpoint.observer import Observers
from endpoint.usage import WRITE_PAUSE, KeyUsage, KeyUse
from endpoint.usage_file import UsageFile, UsageFileError, look_at_usage_file
from sansdtls import ConnectionIdPolicy, ResumptionPolicy, ServerConfig
from tests.endpoint.devices import Recorder, serving

OLD, NEW = (os.urandom(32) for _ in range(2))
METER = b"meter-1"


class Handshake:
    """What of an association is looked at."""

    def __init__(self, identity, key=OLD, index=0):
        self.identity, self.key_index = identity, index
        self.fingerprint = None if key is None else fingerprint(key)


class Watch:
    """A wall clock that is set by hand."""

    def __init__(self):
        self.time = 1_700_000_000.0

    def __call__(self):
        self.time += 1.0
        return self.time


async def until(condition):
    """Let virtual time pass; a thread takes real time meanwhile."""
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await trio.sleep(0.1)


@pytest.fixture
def path(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path / "usage.db"


@pytest.fixture
def troubles():
    return []


@pytest.fixture
def usage(path, troubles):
    return making(path, troubles)


def making(path, troubles, **options):
    return KeyUsage(
        path, trouble=lambda what, **facts: troubles.append((what, facts)), wall_clock=Watch(), **options
    )


# --- what is heard ----------------------------------------------------------------------------------


async def test_the_key_of_the_last_handshake_is_known_and_which_it_was(autojump_clock):
    store = DictKeyStore({METER: (OLD, NEW)})
    usage, recorder = making(None, []), Recorder()
    async with serving(keystore=store, observer=Observers(recorder, usage, data=recorder)) as served:
        await served.device(key=OLD).connect()
        assert usage.last(METER) == KeyUse(fingerprint(OLD), "current", 1_700_000_001.0)
        await served.device(key=NEW).connect()
        assert usage.last(METER) == KeyUse(fingerprint(NEW), "next", 1_700_000_002.0)
        assert [association.fingerprint for association in recorder.live] == [
            fingerprint(OLD),
            fingerprint(NEW),
        ]
        # A device that goes back to its old key has not confirmed the new one any more.
        await served.device(key=OLD).connect()
        assert usage.last(METER).fingerprint == fingerprint(OLD)
        # And who does not know a key has used none.
        await served.device(key=os.urandom(32), identity=METER).start()
        assert usage.last(b"stranger") is None
        assert list(usage.identities()) == [METER]


async def test_a_resumed_session_tells_of_the_key_that_it_was_made_with(autojump_clock):
    store, usage, recorder = DictKeyStore({METER: (NEW,)}), making(None, []), Recorder()
    config = ServerConfig(resumption=ResumptionPolicy())
    async with serving(
        config=config, keystore=store, observer=Observers(recorder, usage, data=recorder)
    ) as served:
        device = await served.device(key=NEW).connect()
        session = device.connection.session
        store.set(METER, OLD, NEW)  # it is the next one by now
        again = served.device(key=NEW)
        again.config = attrs.evolve(again.config, session=session)
        await again.connect()
        assert again.connection.negotiated.resumed
        assert (usage.last(METER).fingerprint, usage.last(METER).which) == (fingerprint(NEW), "next")
        assert recorder.live[-1].fingerprint == fingerprint(NEW)


async def test_the_fingerprint_of_an_association_survives_its_sleep(autojump_clock):
    store, recorder = DictKeyStore({METER: (OLD, NEW)}), Recorder()
    async with serving(config=ServerConfig(freeze_after=300.0), keystore=store, observer=recorder) as served:
        device = await served.device(key=NEW, policy=ConnectionIdPolicy(length=0)).connect()
        await trio.sleep(600)
        assert recorder.asleep
        store.set(METER, OLD)
        await device.send(b"awake")
        (association,) = recorder.live
        assert association.fingerprint == fingerprint(NEW)


def test_peers_without_a_key_are_passed_over(usage):
    usage.completed(Handshake(b"by certificate", key=None, index=None))
    assert list(usage.identities()) == []


# --- the file ---------------------------------------------------------------------------------------


async def test_what_was_heard_is_in_the_file_after_a_moment(usage, path, autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(usage.run)
        usage.completed(Handshake(METER))
        usage.completed(Handshake(b"meter-2"))
        assert usage.last(METER).fingerprint == fingerprint(OLD)
        began = trio.current_time()
        await until(lambda: not usage.statistics()["key_uses_unwritten"])
        assert trio.current_time() - began >= WRITE_PAUSE  # so that one write has many
        usage.completed(Handshake(METER, NEW, 1))
        with UsageFile(path) as file:  # a second process reads while the first one writes
            assert file.last(METER) == KeyUse(fingerprint(OLD), "current", 1_700_000_001.0)
        assert usage.last(METER) == KeyUse(fingerprint(NEW), "next", 1_700_000_003.0)
        assert dict(usage.page(b"", 10)) == {METER: usage.last(METER), b"meter-2": usage.last(b"meter-2")}
        nursery.cancel_scope.cancel()
    assert await usage.flush(math.inf)
    assert usage.statistics()["key_uses_unwritten"] == 0
    usage.close()
    with UsageFile(path) as file:
        assert dict(file.page(b"", 9))[METER].which == "next"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_the_next_process_knows_what_the_last_one_did(path, troubles):
    first = making(path, troubles)
    first.completed(Handshake(METER))
    assert await first.flush(5)
    first.close()
    second = making(path, troubles)
    assert second.last(METER).fingerprint == fingerprint(OLD)
    assert list(second.identities()) == [METER]
    second.close()
    assert not troubles


async def test_pages_go_through_all_of_them_in_order(usage):
    names = [b"meter-%03d" % number for number in range(100)]
    for name in names[::2]:
        usage.completed(Handshake(name))
    assert await usage.flush(5)
    for name in names[1::2]:
        usage.completed(Handshake(name))
    seen, after = [], b""
    while page := usage.page(after, 7):
        assert len(page) <= 7
        seen += [name for name, _ in page]
        after = page[-1][0]
    assert seen == names == list(usage.identities())


async def test_those_not_heard_of_for_longest_make_room(path):
    with UsageFile(path, create=True, limit=3) as file:
        for number in range(5):
            file.write([(b"m%d" % number, KeyUse(fingerprint(OLD), "current", float(number)))])
        assert [identity for identity, _ in file.page(b"", 10)] == [b"m2", b"m3", b"m4"]


async def test_without_a_file_memory_is_bounded():
    usage = making(None, [], limit=2)
    for name in (b"a", b"b", b"a", b"c"):
        usage.completed(Handshake(name))
    assert list(usage.identities()) == [b"a", b"c"]
    assert usage.statistics()["key_uses_forgotten"] == 1
    assert await usage.flush(1)


@pytest.mark.parametrize("damage", ["in the midst", "another version"])
async def test_a_damaged_file_is_told_and_begun_anew(path, troubles, damage):
    first = making(path, troubles)
    for number in range(2000):
        first.completed(Handshake(b"m%d" % number))
    assert await first.flush(5)
    first.close()
    if damage == "another version":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 9")
    else:
        content = bytearray(path.read_bytes())
        content[12_288:20_480] = os.urandom(8192)
        path.write_bytes(content)
    second = making(path, troubles)
    ((what, facts),) = troubles
    assert what == "key usage lost"
    assert str(path) in facts["reason"]
    assert list(second.identities()) == []
    second.completed(Handshake(METER))
    assert await second.flush(5)
    second.close()
    with UsageFile(path) as file:
        assert file.last(METER) is not None


@pytest.mark.parametrize("content", [b"meter-17:00112233445566778899aabbccddeeff\n" * 20, b"short"])
async def test_a_file_that_was_never_ours_is_left_alone_and_memory_does(path, troubles, content):
    path.write_bytes(content)
    path.chmod(0o600)
    usage = making(path, troubles)
    assert [what for what, _ in troubles] == ["key usage not kept"]
    usage.completed(Handshake(METER))
    assert await usage.flush(5)
    assert usage.last(METER)
    assert path.read_bytes() == content
    with pytest.raises(UsageFileError):
        look_at_usage_file(path)


async def test_a_disk_that_fails_is_told_once_and_nothing_is_lost(usage, path, troubles, autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(usage.run)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # as good as a disk that does not take anything
            usage._file._writer.execute("PRAGMA busy_timeout = 0")
            usage.completed(Handshake(METER))
            await until(lambda: troubles)
            await trio.sleep(100)
            assert [what for what, _ in troubles] == ["key usage not written"]
            assert usage.last(METER)
            assert usage.statistics()["key_usage_failing"]
            usage.completed(Handshake(b"later"))
        await until(lambda: not usage.statistics()["key_uses_unwritten"])
        assert not usage.statistics()["key_usage_failing"]
        nursery.cancel_scope.cancel()
    with UsageFile(path) as file:
        assert {identity for identity, _ in file.page(b"", 9)} == {METER, b"later"}


async def test_what_a_disk_refused_is_written_when_it_takes_it_though_no_device_comes(
    usage, path, troubles, autojump_clock
):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(usage.run)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            usage._file._writer.execute("PRAGMA busy_timeout = 0")
            usage.completed(Handshake(METER))
            await until(lambda: troubles)
        with trio.fail_after(1000):
            await until(lambda: not usage.statistics()["key_uses_unwritten"])
        nursery.cancel_scope.cancel()


def test_looking_at_it_changes_nothing(path):
    look_at_usage_file(path)
    assert not path.exists()
    with pytest.raises(UsageFileError, match="directory"):
        look_at_usage_file(path.parent / "missing" / "usage.db")
    UsageFile(path, create=True).close()
    look_at_usage_file(path)
    path.chmod(0o644)
    with pytest.raises(UsageFileError, match="chmod 600"):
        look_at_usage_file(path)
