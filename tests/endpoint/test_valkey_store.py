"""Keys in a real Redis server: what is read, what is refused, outages and recovery, logging in, TLS."""

import re
import socket
import ssl
import struct
from functools import partial
from unittest.mock import ANY

import pytest
import trio
import trustme

from endpoint.keystore import KeyDataError, ManagedStore, StoreUnavailable
from endpoint.keystore.guard import GuardedStore
from endpoint.keystore.valkey import ValkeyKeyStore
from endpoint.tables.lookup import LookupPolicy
from endpoint.tables.valkey import ValkeyAddress, ValkeyKeys
from endpoint.valkey import ServerAway, ValkeyLink
from endpoint.valkey_access import ValkeyAccess, load_access
from sansdtls import AlertDescription, PeerAlert
from tests.endpoint.devices import IDENTITY, KEY, Recorder, serving
from tests.endpoint.test_valkey_access import private
from tests.ports import free_port
from tests.valkey_server import ValkeyServer

K1 = "00112233445566778899aabbccddeeff"
K2 = "ffeeddccbbaa99887766554433221100"
PATIENCE = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that is not stopped."""
    with ValkeyServer(tmp_path_factory.mktemp("v")) as server:
        yield server


@pytest.fixture
def mortal(tmp_path):
    """One for outages."""
    with ValkeyServer(tmp_path) as server:
        yield server


class Opened:
    """A store that runs, and what it said of itself."""

    def __init__(self, store):
        self.store = store
        self.changes = []
        self.changed = trio.Event()
        store.on_change = self._note

    def _note(self, reason):
        self.changes.append(reason)
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition):
        with trio.fail_after(PATIENCE):
            while not condition():
                await self.changed.wait()

    async def up(self):
        with trio.fail_after(PATIENCE):
            await self.store._link.wait_connected()


@pytest.fixture
def open_store(nursery):
    async def open_store(server, *, prefix="psk:", connected=True, **login):
        access = ValkeyAccess(address=ValkeyAddress.parse(server.address), **login)
        opened = Opened(ValkeyKeyStore(access, prefix=prefix))
        await nursery.start(opened.store.run)
        if connected:
            await opened.up()
        return opened

    return open_store


# --- what is read ---------------------------------------------------------------------------------------


async def test_the_current_key_and_the_next_are_read_and_a_name_that_is_not_there_is_unknown(
    server, open_store
):
    opened = await open_store(server)
    server.keys(b"one", current=K1)
    server.keys(b"two", current=K1, next=K2.upper(), note="changed by Ann")
    server.keys(b"same", current=K1, next=K1)
    k1, k2 = bytes.fromhex(K1), bytes.fromhex(K2)
    assert await opened.store.lookup(b"one") == (k1,)
    assert await opened.store.lookup(b"two") == (k1, k2)
    assert await opened.store.lookup(b"same") == (k1,)
    assert await opened.store.lookup(b"none") == ()
    assert await opened.store.lookup(b"") == ()


async def test_an_identity_is_any_bytes_and_the_prefix_is_configurable(server, open_store):
    identity = bytes(range(256)) + b"\r\n*1\r\n$8\r\nFLUSHALL\r\n"
    server.keys(identity, prefix="geräte/".encode(), current=K1)
    opened = await open_store(server, prefix="geräte/")
    assert await opened.store.lookup(identity) == (bytes.fromhex(K1),)
    assert await opened.store.lookup(identity[:-1]) == ()


async def test_rotation_and_removal_take_effect_with_the_next_lookup(server, open_store):
    opened = await open_store(server)
    server.keys(b"m", current=K1)
    assert len(await opened.store.lookup(b"m")) == 1
    server.do("HSET", "psk:m", "next", K2)
    assert len(await opened.store.lookup(b"m")) == 2
    server.do("DEL", "psk:m")
    assert await opened.store.lookup(b"m") == ()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"current": "zz" * 16}, "the current key is not an even number of hex digits"),
        ({"current": K1[1:]}, "the current key is not an even number of hex digits"),
        ({"current": ""}, "the current key is not an even number of hex digits"),
        ({"current": K1 + "\n"}, "the current key is not an even number of hex digits"),
        ({"current": K1, "next": K2[2:]}, "the next key has 15 bytes, not 16 to 64"),
        ({"current": "ab" * 65}, "the current key has 65 bytes, not 16 to 64"),
        ({"next": K2}, "has next and no current key; remedy: HSET current, or HDEL next"),
    ],
)
async def test_what_cannot_be_a_key_is_told_with_its_identity_and_never_shown(
    server, open_store, fields, what
):
    opened = await open_store(server)
    server.keys(b"m\x1b", **fields)
    with pytest.raises(KeyDataError) as caught:
        await opened.store.lookup(b"m\x1b")
    assert str(caught.value) == f'{server.address}: psk: and "m\\x1b": {what}'
    assert not any(value and value in str(caught.value) for value in fields.values())


async def test_something_that_is_no_hash_is_told_too(server, open_store):
    opened = await open_store(server)
    server.do("SET", "psk:s", K1)
    with pytest.raises(KeyDataError, match="is no hash; remedy: HSET it"):
        await opened.store.lookup(b"s")


async def test_two_hundred_questions_at_once_each_get_their_own_answer(server, open_store):
    opened = await open_store(server)
    for number in range(50):
        server.keys(b"%d" % number, current=f"{number:032x}")
    answers = {}

    async def ask(number):
        answers[number] = await opened.store.lookup(b"%d" % (number % 60))

    async with trio.open_nursery() as asking:
        for number in range(200):
            asking.start_soon(ask, number)
    assert len(answers) == 200
    assert all(
        keys == ((number % 60).to_bytes(16),) if number % 60 < 50 else keys == ()
        for number, keys in answers.items()
    )


async def test_one_who_does_not_wait_for_an_answer_does_not_mix_up_the_others(server, open_store):
    opened = await open_store(server)
    server.keys(b"a", current=K1)
    server.keys(b"b", current=K2)
    for _ in range(20):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as asking:
                asking.start_soon(opened.store.lookup, b"a")
                await trio.lowlevel.checkpoint()
                scope.cancel()
        assert await opened.store.lookup(b"b") == (bytes.fromhex(K2),)


# --- outages --------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_at_the_start_is_found_when_it_comes(tmp_path, open_store):
    server = ValkeyServer(tmp_path)
    opened = await open_store(server, connected=False)
    await opened.until(lambda: opened.changes)
    away = f"{server.address}: no such file or directory"
    assert opened.changes == [away]
    assert await opened.store.check() == away
    with pytest.raises(StoreUnavailable, match="no such file"):
        await opened.store.lookup(b"m")
    with server:
        await opened.up()
        assert await opened.store.check() is None
        assert await opened.store.lookup(b"m") == ()
        assert opened.changes == [away, None]
        figures = opened.store.statistics()
        assert (figures["kind"], figures["connected"], figures["connects"]) == ("valkey", 1, 1)
        assert figures["attempts"] > 1


async def test_when_the_server_dies_whoever_waits_hears_of_it_and_it_is_found_again(mortal, open_store):
    opened = await open_store(mortal)
    mortal.keys(b"m", current=K1)
    assert await opened.store.lookup(b"m")
    mortal.freeze()
    heard = []

    async def ask():
        with pytest.raises(StoreUnavailable) as caught:
            await opened.store.lookup(b"m")
        heard.append(str(caught.value))

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mortal.stop()
    assert heard[0].startswith(mortal.address)
    await opened.until(lambda: len(opened.changes) == 1)
    mortal.start()
    mortal.keys(b"m", current=K2)
    await opened.up()
    assert await opened.store.lookup(b"m") == (bytes.fromhex(K2),)
    assert opened.changes[1] is None


async def test_it_is_a_managed_store_whose_name_shows_no_secret():
    access = ValkeyAccess(address=ValkeyAddress.parse("valkey://h"), password="hunter2")
    store = ValkeyKeyStore(access)
    assert isinstance(store, ManagedStore)
    assert repr(store) == "<ValkeyKeyStore valkey://h:6379>"


async def test_a_server_that_hangs_is_noticed_by_its_silence(mortal, open_store, monkeypatch):
    monkeypatch.setattr("endpoint.valkey.SIGN_OF_LIFE", 0.5)
    opened = await open_store(mortal)
    mortal.freeze()
    # Only now: a server that lives may take its time.
    monkeypatch.setattr("endpoint.valkey.SIGN_OF_LIFE", 0.05)
    monkeypatch.setattr("endpoint.valkey.CONNECT_TIMEOUT", 0.1)
    await opened.until(lambda: opened.changes)
    assert opened.changes == [f"{mortal.address}: no sign of life within 0.05 seconds"]
    # It still takes connections, as the kernel does that; it does not answer.
    with trio.fail_after(PATIENCE):
        while "no answer within 0.1 seconds" not in (opened.store._link.reason or ""):  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
    monkeypatch.undo()
    mortal.thaw()
    await opened.until(lambda: opened.changes[-1] is None)
    assert await opened.store.lookup(b"m") == ()


async def test_a_batch_of_which_any_answer_is_missing_is_lost_as_a_whole(mortal, nursery):
    link = ValkeyLink(ValkeyAccess(address=ValkeyAddress.parse(mortal.address)))
    nursery.start_soon(link.run)
    with trio.fail_after(PATIENCE):
        await link.wait_connected()
        assert await link.batch([("SET", "a", 1), ("HGET", "a", "b"), ("GET", "a")]) == [b"OK", ANY, b"1"]
        mortal.freeze()
        async with trio.open_nursery() as asking:

            async def ask():
                with pytest.raises(ServerAway):
                    await link.batch([("SET", "a", 2), ("SET", "a", 3)])

            asking.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            mortal.stop()
    with pytest.raises(ServerAway):
        await link.batch([("GET", "a")])


# --- a service's whole way ------------------------------------------------------------------------------


@pytest.mark.slow
async def test_devices_stay_while_the_server_is_away_and_new_ones_come_back_when_it_does(mortal, nursery):
    mortal.keys(IDENTITY, current=KEY.hex())
    mortal.keys(b"meter-2", current=K1, next=KEY.hex())
    observer = Recorder(echo=True)
    store = ValkeyKeyStore(ValkeyAccess(address=ValkeyAddress.parse(mortal.address)))
    guard = GuardedStore(store, LookupPolicy(), trouble=observer.trouble)
    await nursery.start(guard.run)
    with trio.fail_after(PATIENCE):
        await store._link.wait_connected()
    async with serving(keystore=guard, observer=observer) as served:
        first = await served.device().connect()
        assert first.connected
        mortal.stop()
        with trio.fail_after(PATIENCE):
            await guard._went_down.wait()
        assert re.fullmatch(
            r"the key store has been unavailable for \d+ s: unix:.*", await guard.check() or ""
        )
        second = await served.device(identity=b"meter-2").connect()
        assert second.cause == PeerAlert(AlertDescription.INTERNAL_ERROR, authenticated=False)
        assert served.engine.statistics()["lookups_unavailable"] == 1
        await first.send(b"still here")
        assert await first.receive() == b"still here"
        mortal.start()
        mortal.keys(b"meter-2", current=K1, next=KEY.hex())
        with trio.fail_after(PATIENCE):
            await store._link.wait_connected()
        assert (await second.connect()).connected
        (association,) = served.engine.associations(b"meter-2")
        assert association.key_index == 1
        told = [what for what, _ in observer.troubles]
        # Once by the store itself, once for the device; and once that it is over.
        assert told == ["key store unavailable", "key store unavailable", "key store recovered"]
        assert await guard.check() is None
        assert guard.statistics()["store"]["connects"] == 2


# --- logging in -----------------------------------------------------------------------------------------

RIGHTS = ["on", ">correct horse", "resetchannels", "-@all", "+hmget", "+ping", "~psk:*"]
"""As the module's text tells operators."""


async def test_the_rights_that_are_documented_are_enough(server, open_store):
    server.do("ACL", "SETUSER", "dtls-endpoint", *RIGHTS)
    server.keys(b"m", current=K1)
    opened = await open_store(server, username="dtls-endpoint", password="correct horse")
    assert await opened.store.lookup(b"m") == (bytes.fromhex(K1),)
    assert await opened.store.check() is None


async def test_missing_rights_are_told_and_are_no_unknown_identity(server, open_store):
    server.do("ACL", "SETUSER", "weak", *RIGHTS[:-1], "~other:*")
    opened = await open_store(server, username="weak", password="correct horse")
    with pytest.raises(StoreUnavailable, match=r"says: .*permission"):
        await opened.store.lookup(b"m")
    assert "permission" in (await opened.store.check() or "")


async def test_a_wrong_password_is_told_without_it_and_a_new_one_is_used(server, open_store):
    server.do("ACL", "SETUSER", "late", *RIGHTS)
    opened = await open_store(server, connected=False, username="late", password="hunter2")
    await opened.until(lambda: opened.changes)
    (reason,) = opened.changes
    assert "password" in reason
    assert "hunter2" not in reason + repr(opened.store) + repr(opened.store._link.access)
    opened.store.use(
        ValkeyAccess(address=ValkeyAddress.parse(server.address), username="late", password="correct horse")
    )
    await opened.up()
    assert await opened.store.check() is None


async def test_another_database_is_another_fleet(server, open_store):
    server.keys(b"only in 0", current=K1)
    opened = await open_store(server, database=3)
    assert await opened.store.lookup(b"only in 0") == ()
    opened = await open_store(server, connected=False, database=3000)
    await opened.until(lambda: opened.changes)
    assert "DB index is out of range" in opened.changes[0]


# --- TLS -------------------------------------------------------------------------------------------------


async def test_tls_with_certificates_on_both_sides_and_what_is_said_if_one_is_wrong(tmp_path, nursery):
    ca, stranger = trustme.CA(), trustme.CA()
    cert, ours = ca.issue_cert("127.0.0.1"), ca.issue_cert("endpoint")
    for name, blob in (
        ("ca", ca.cert_pem),
        ("other", stranger.cert_pem),
        ("server", cert.cert_chain_pems[0]),
        ("server.key", cert.private_key_pem),
        ("ours", ours.cert_chain_pems[0]),
        ("ours.key", ours.private_key_pem),
    ):
        private(tmp_path / name, blob.bytes())
    port = free_port(kind=socket.SOCK_STREAM)
    tls = ["--tls-port", str(port), "--bind", "127.0.0.1", "--tls-ca-cert-file", "ca"]
    tls += ["--tls-cert-file", "server", "--tls-key-file", "server.key"]
    with ValkeyServer(tmp_path, *tls) as server:
        server.keys(b"m", current=K1)

        def opened(ca_file, **more):
            login = ValkeyKeys(ca_file=tmp_path / ca_file, **more)
            return Opened(ValkeyKeyStore(load_access(f"valkeys://127.0.0.1:{port}", login)))

        pair = {"certificate": tmp_path / "ours", "private_key": tmp_path / "ours.key"}
        good = opened("ca", **pair)
        await nursery.start(good.store.run)
        await good.up()
        assert await good.store.lookup(b"m") == (bytes.fromhex(K1),)
        wrong = opened("other", **pair)
        await nursery.start(wrong.store.run)
        await wrong.until(lambda: wrong.changes)
        assert "certificate verify failed" in wrong.changes[0].lower()


@pytest.mark.parametrize("reset", [False, True])
async def test_who_hangs_up_before_tls_is_agreed_on_is_away_like_any_other(nursery, reset):
    async def hang_up(stream):
        await stream.receive_some(1)
        if reset:  # with what was sent unread, and no farewell
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()

    listeners = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    address = ValkeyAddress.parse(f"valkeys://127.0.0.1:{port}")
    opened = Opened(ValkeyKeyStore(ValkeyAccess(address=address, tls=ssl.create_default_context())))
    await nursery.start(opened.store.run)
    await opened.until(lambda: opened.changes)
    assert opened.changes == [f"{address}: the connection was closed before TLS was agreed on"]
