"""Connection IDs are unique while they are in use, and given back with every end."""

from __future__ import annotations

import gc
import weakref

import pytest

from sansdtls import (
    ConfigError,
    Connection,
    ConnectionIdPolicy,
    DiscardReason,
    Limits,
    Server,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy
from tests.core import raw
from tests.core.crowds import Crowd, assert_nothing_is_left
from tests.core.ecdhe_puppets import EcdheClient, server_config
from tests.core.failures import FAILURES, fail_by_local_close
from tests.core.id_puppets import IdClient, connection_id_extension
from tests.core.puppet import ServerRig

# --- IDs that run out -----------------------------------------------------------------------------------


def test_with_ids_of_one_byte_the_257th_association_gets_none_and_works():
    rig = Crowd(ConnectionIdPolicy(length=1, generator=CountingIds()))
    puppets = [rig.client(number) for number in range(258)]
    assert {puppet.peers_id for puppet in puppets[:256]} == {bytes([number]) for number in range(256)}
    assert [puppet.peers_id for puppet in puppets[256:]] == [b"", b""]
    for puppet in (*puppets, *puppets[250:]):
        assert rig.hears(puppet)
    assert rig.hears(puppets[5], "elsewhere")
    assert not rig.hears(puppets[257], "elsewhere")
    rig.server_give(puppets[7].alert(1, 0, epoch=1), puppets[7].path)
    rig.wait(0)
    again = rig.client(258)
    assert again.peers_id == puppets[7].peers_id, "given back, and used again"
    assert rig.hears(again, "anywhere")
    assert len(rig.server) == 258


class CountingIds:
    """IDs of one byte in order, over and over; of the same 16 at a time, as ``_ID_ATTEMPTS`` asks for."""

    def __init__(self) -> None:
        self.next = 0
        self.asked = 0

    def __call__(self, entropy) -> bytes:
        self.asked += 1
        made = bytes([self.next % 256])
        self.next += 1
        if self.next == 256 + 16 * 2:  # two that found nothing; then the one that was given back
            self.next = 7
        return made


def test_an_id_in_use_is_asked_for_again():
    given = iter([b"aaaa", b"aaaa", b"aaaa", b"bbbb", b"aaaa", b"cccc"])
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: next(given)))
    assert [rig.client(number).peers_id for number in range(3)] == [b"aaaa", b"bbbb", b"cccc"]


def test_a_generator_that_always_makes_the_same_leaves_the_second_without_an_id():
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: b"same"))
    first, second = rig.client(0), rig.client(1)
    assert (first.peers_id, second.peers_id) == (b"same", b"")
    for puppet in (first, second):
        assert rig.hears(puppet)


def test_no_id_is_the_beginning_of_another():
    rig = Crowd(ConnectionIdPolicy(length=1, generator=lambda _: b"a"))
    rig.client(0)
    made = iter([b"ab", b"ac", b"bc"])
    policy = ConnectionIdPolicy(length=2, generator=lambda _: next(made))
    rig.server.replace_config(ServerConfig(connection_id=policy), now=rig.now)
    assert rig.client(1).peers_id == b"bc"


def test_an_id_is_free_again_after_a_handshake_that_failed():
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: b"same"))
    for _ in range(3):
        beginner = rig.beginner(0)
        beginner.hello()
        assert beginner.peers_id == b"same"
        rig.wait(200)
        assert_nothing_is_left(rig)


def test_a_generator_that_raises_leaves_no_half_open_handshake_behind():
    made = iter([b"too long", b"good", b"fine"])
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: next(made)))
    beginner = rig.beginner(0)
    beginner.get_cookie()
    hello = beginner.message(raw.CLIENT_HELLO, beginner.hello_body())
    with pytest.raises(ConfigError, match="generator"):
        beginner.give(hello)
    assert rig.server.statistics.half_open == 0
    rig.server_give(b"\x14\xfe\xfd" + bytes(11), beginner.path)
    rig.wait(200)
    assert_nothing_is_left(rig)
    assert rig.client(0).peers_id == b"good"


def test_an_id_is_free_again_where_the_source_of_randomness_fails_behind_it():
    working = CounterEntropy(1)
    broken = False

    def entropy(length: int) -> bytes:
        if broken:
            raise OSError("no randomness")
        return working(length)

    def generate(_) -> bytes:
        nonlocal broken
        broken = True
        return b"same"

    rig = Crowd()
    policy = ConnectionIdPolicy(length=4, generator=generate)
    rig.server = Server(server_config(connection_id=policy), entropy=entropy, now=rig.now)
    asks = (connection_id_extension(b"own"),)
    client = EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_GCM, more_extensions=asks)
    client.get_cookie()
    with pytest.raises(OSError, match="no randomness"):  # for the ephemeral key
        client.give(client.message(raw.CLIENT_HELLO, client.hello_body()))
    rig.wait(200)
    assert_nothing_is_left(rig)


# --- nothing is left ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", FAILURES, ids=FAILURES.get)
def test_a_handshake_that_fails_gives_back_its_id_and_its_path(fail):
    for _ in range(2):
        puppet = IdClient(ServerRig())
        if fail is fail_by_local_close:
            puppet.rig.events.clear()
        fail(puppet)
        puppet.rig.wait(0)
        assert_nothing_is_left(puppet.rig)


def ends():
    """Every way in which an association ends, as a function of the rig and a connected client."""

    def by_close_notify(rig, puppet):
        rig.server_give(puppet.alert(1, 0, epoch=1), puppet.path)

    def by_close_notify_from_elsewhere(rig, puppet):
        rig.server_give(puppet.alert(1, 0, epoch=1), "elsewhere")

    def by_a_fatal_alert(rig, puppet):
        rig.server_give(puppet.alert(2, 40, epoch=1), puppet.path)

    def by_a_violation(rig, puppet):
        rig.server_give(puppet.inner(bytes(5)), puppet.path)

    def by_us(rig, puppet):
        (connection,) = [each for each in rig.server.connections if each.connection_id == puppet.peers_id]
        connection.close(now=rig.now)

    def by_idleness(rig, puppet):
        rig.wait(100 * 86_400)

    def after_moving(rig, puppet):
        assert rig.hears(puppet, "elsewhere")
        by_close_notify(rig, puppet)

    def after_a_stranger_took_its_path(rig, puppet):
        other = rig.client(1, puppet.path)
        by_close_notify(rig, puppet)
        rig.wait(0)
        by_us(rig, other)

    def before_the_stranger_that_took_its_path(rig, puppet):
        other = rig.client(1, puppet.path)
        by_us(rig, other)
        rig.wait(0)
        assert rig.hears(puppet)
        by_close_notify(rig, puppet)

    def by_a_restart(rig, puppet):
        again = rig.client(0, puppet.path)
        by_us(rig, again)

    def by_forgeries(rig, puppet):
        while len(rig.server):
            forged = raw.record(25, bytes(40), epoch=1, seq=9, connection_id=puppet.peers_id)
            rig.server_give(forged, "stranger")

    return [value for value in locals().values() if callable(value)]


@pytest.mark.parametrize("end", ends(), ids=lambda end: end.__name__)
def test_an_association_that_ends_gives_back_its_id_and_its_paths(end):
    rig = Crowd(limits=Limits(max_failed_opens=50))

    def live_and_die() -> tuple[IdClient, weakref.ref[Connection]]:
        puppet = rig.client(0)
        connection = weakref.ref(rig.connection)
        end(rig, puppet)
        rig.wait(0)
        assert_nothing_is_left(rig)
        return puppet, connection

    live_and_die()
    puppet, connection = live_and_die()
    before = rig.server.statistics.records_discarded.get(DiscardReason.UNKNOWN_CONNECTION_ID, 0)
    assert not rig.hears(puppet)
    assert rig.server.statistics.records_discarded[DiscardReason.UNKNOWN_CONNECTION_ID] == before + 1
    rig.events.clear()
    gc.collect()
    assert connection() is None, "nobody holds it any more"


def test_evicted_associations_give_back_their_ids():
    rig = Crowd(limits=Limits(max_associations=3, stale_after=0))
    for number in range(20):
        rig.client(number)
    assert len(rig.server) == len(rig.server._routes._by_connection_id) == 3
    assert rig.server.statistics.evictions == 17


def test_an_idle_association_with_an_id_lives_longer_than_one_without():
    limits = Limits(idle_timeout=100, idle_timeout_with_connection_id=1000)
    rig = Crowd(limits=limits)
    rig.client(0)
    rig.client(1, with_id=False)
    rig.wait(101)
    assert [connection.connection_id != b"" for connection in rig.server.connections] == [True]
    rig.wait(898)
    assert len(rig.server) == 1
    rig.wait(2)
    assert_nothing_is_left(rig)
