"""A device that lost its state comes back from the same address; strangers come from there too.

It works within one handshake at any moment of the old association's life, the old keys stop at the new Finished, and
nobody else's hello disturbs anything.
"""

from __future__ import annotations

import itertools

import pytest

from sansdtls import ConnectionIdPolicy, ConnectionState, ServerConfig
from sansdtls.testing import Client, Fleet, Network
from tests.core import raw
from tests.core.id_puppets import IdClient, offering
from tests.core.puppet import IDENTITY, KEY, ServerRig

PATH, ELSEWHERE = "device", "elsewhere"
ONE_WAY = 0.01
ONE_HANDSHAKE = 6 * ONE_WAY
"""Three round trips: cookie, key exchange, Finished."""
STRANGER, STRANGERS_KEY = b"stranger", b"strangers key"


def new_fleet(seed: int = 0) -> Fleet:
    return Fleet(keys={IDENTITY: [KEY]}, network=Network(seed, delay=ONE_WAY), seed=seed)


class Life:
    """The old association: a handshake, data in both directions, the end. One arrival after the other."""

    def __init__(self, fleet: Fleet):
        self.fleet = fleet
        self.client = fleet.connect(offering(), PATH)
        self.sent: list[bytes] = []
        self._actions = iter((
            self._server_sends, self._client_sends, self._client_sends, self._both_send, self._client_sends,
            self._client_closes,
        ))  # fmt: skip

    def _client_sends(self) -> None:
        self.sent.append(b"%d" % len(self.sent))
        self.client.connection.send(self.sent[-1], now=self.fleet.now)

    def _server_sends(self) -> None:
        (connection,) = self.fleet.server.connections
        connection.send(b"to the device", now=self.fleet.now)

    def _both_send(self) -> None:
        self._client_sends()
        self._server_sends()

    def _client_closes(self) -> None:
        self.client.connection.close(now=self.fleet.now)

    def go_on(self) -> bool:
        """Until the next arrival; False = it is over."""
        self.fleet.flush()
        if self.fleet.network.next_arrival() is None:
            action = next(self._actions, None)
            if action is None:
                return False
            action()
        self.fleet.step()
        return True


def restart(fleet: Fleet) -> Client:
    """The device comes back with nothing but its configuration."""
    return fleet.connect(offering(), PATH)


def wait_until_connected(fleet: Fleet, client: Client, deadline: float) -> None:
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED, deadline)


def assert_new_and_not_old(fleet: Fleet, new: Client, old: Client) -> None:
    """Data pass in both directions with the new keys, and with the old ones from nowhere."""
    fleet.run_for(0.1)
    (connection,) = fleet.server.connections
    assert connection.peer_connection_id == new.connection.connection_id
    assert connection.path == PATH
    before = fleet.server_received()
    if old.connection.state is ConnectionState.CONNECTED:
        for path in (PATH, ELSEWHERE):
            old.connection.send(b"with the old keys", now=fleet.now)
            for outgoing in old.connection.datagrams_to_send():
                fleet.network.inject(path, "server", outgoing.data)
    fleet.run_for(0.1)
    assert fleet.server_received() == before
    new.connection.send(b"with the new keys", now=fleet.now)
    connection.send(b"for the new keys", now=fleet.now)
    fleet.run_for(0.1)
    assert fleet.server_received() == [*before, b"with the new keys"]
    assert new.received[-1:] == [b"for the new keys"]
    assert connection.path == PATH
    fleet.run_for(300)
    assert list(fleet.server.connections) == [connection]
    assert fleet.server.statistics.half_open == 0
    assert len(fleet.server._routes._by_connection_id) == len(fleet.server._routes) == 1


# --- the device comes back ------------------------------------------------------------------------------


def test_a_device_that_lost_its_state_comes_back_within_one_handshake_at_any_moment():
    for moment in itertools.count():
        fleet = new_fleet()
        life = Life(fleet)
        over = not all(life.go_on() for _ in range(moment))
        again, since = restart(fleet), fleet.now
        wait_until_connected(fleet, again, deadline=0.9)
        # What was still under way to the old client may cost a round trip: a HelloVerifyRequest of its own.
        assert fleet.now - since <= ONE_HANDSHAKE + 2 * ONE_WAY + 1e-9, moment
        assert again.connection.statistics.retransmissions == 0
        assert_new_and_not_old(fleet, again, life.client)
        if over:
            break
    assert moment > 14


each_loss = pytest.mark.parametrize(
    "lost", [(who, number) for who in (PATH, "server") for number in range(3)], ids=str
)


def lose(fleet: Fleet, who: str, number: int) -> None:
    """Drop the ``number``-th datagram from now on that ``who`` sends."""
    fleet.flush()
    other = "server" if who == PATH else PATH
    fleet.network.drop(who, len(fleet.network.sent_by(who, to=other)) + number)


@each_loss
def test_it_comes_back_at_any_moment_of_the_association_although_a_datagram_is_lost(lost):
    for moment in itertools.count():
        fleet = new_fleet()
        life = Life(fleet)
        wait_until_connected(fleet, life.client, 1)
        over = not all(life.go_on() for _ in range(moment))
        lose(fleet, *lost)
        again, since = restart(fleet), fleet.now
        wait_until_connected(fleet, again, deadline=10)
        assert fleet.now - since <= 1 + 2 * ONE_HANDSHAKE + 1e-9, "one repetition of a flight"
        assert_new_and_not_old(fleet, again, life.client)
        if over:
            break
    assert moment > 8


@each_loss
@pytest.mark.parametrize("moment", range(7))
def test_it_comes_back_during_its_own_first_handshake_although_a_datagram_is_lost(moment, lost):
    # A repeated ServerHello of the old handshake says nothing of which hello it answers: if the new hello is
    # lost meanwhile, the device may take it for its own, and has to begin once more.
    fleet = new_fleet()
    life = Life(fleet)
    assert all(life.go_on() for _ in range(moment))
    lose(fleet, *lost)
    again = life.client
    for _ in range(2):
        again = restart(fleet)
        fleet.run_until(lambda: again.connection.state is not ConnectionState.HANDSHAKING, deadline=150)  # noqa: B023
        if again.connection.state is ConnectionState.CONNECTED:
            break
    assert again.connection.state is ConnectionState.CONNECTED
    assert_new_and_not_old(fleet, again, life.client)


@pytest.mark.parametrize("seed", range(8))
def test_it_comes_back_at_any_moment_on_a_path_that_loses_and_repeats_much(seed):
    for moment in range(0, 12, 3):
        fleet = new_fleet(seed=seed)
        life = Life(fleet)
        wait_until_connected(fleet, life.client, 1)
        for _ in range(moment):
            life.go_on()
        network = fleet.network
        network.loss, network.duplicate, network.reorder = 0.2, 0.2, 0.2
        again = restart(fleet)
        wait_until_connected(fleet, again, deadline=120)
        network.loss = network.duplicate = network.reorder = 0
        fleet.run_for(5)
        assert_new_and_not_old(fleet, again, life.client)


def test_the_old_keys_work_until_the_new_finished_and_not_a_record_longer():
    old = IdClient().handshake()
    rig, new = old.rig, IdClient(old.rig, random=b"n" * 32)
    delivered: list[bytes] = []

    def old_is_heard() -> None:
        delivered.append(b"%d" % len(delivered))
        old.give(old.data(delivered[-1]))
        assert rig.received == delivered
        rig.connection.send(b"to the old", now=0)
        assert old.opened(rig.sent())[-1] == (raw.APPLICATION_DATA, b"to the old")

    new.get_cookie()
    old_is_heard()
    new.read_server_flight(new.give(new.message(raw.CLIENT_HELLO, new.hello_body())))
    old_is_heard()
    assert new.peers_id != old.peers_id
    new.give(new.key_exchange())
    old_is_heard()
    new.give(new.change_cipher_spec())
    old_is_heard()
    new.read_finished(new.give(new.finished()))
    for path in (old.path, ELSEWHERE):
        rig.give(old.data(b"too late"), path)
    assert rig.received == delivered
    new.give(new.data(b"new"))
    assert rig.received == [*delivered, b"new"]
    assert len(rig.server) == 1


def test_a_device_may_come_back_over_and_over_without_leaving_anything():
    fleet = new_fleet()
    device = restart(fleet)
    for number in range(40):
        device = restart(fleet)
        if number % 3:
            fleet.run_for(ONE_WAY * number)
        else:
            wait_until_connected(fleet, device, 5)
    wait_until_connected(fleet, device, 5)
    fleet.run_for(300)
    routes = fleet.server._routes
    assert len(fleet.server) == len(routes) == len(routes._by_connection_id) == 1
    assert fleet.server.statistics.half_open == 0


def test_a_device_that_comes_back_without_ids_replaces_its_association_that_had_one():
    for old_id, new_id in ((b"old", None), (None, b"new"), (None, None)):
        old = IdClient(own_id=old_id).handshake()
        new = IdClient(old.rig, own_id=new_id, random=b"n" * 32).handshake()
        assert len(old.rig.server) == 1
        old.give(old.data(b"old"))
        new.give(new.data(b"new"))
        assert old.rig.received == [b"new"]


# --- strangers ------------------------------------------------------------------------------------------


def stranger(rig: ServerRig, path=PATH, **more) -> IdClient:
    options = {"identity": STRANGER, "psk": STRANGERS_KEY, "random": rig.entropy(32), "path": path, **more}
    return IdClient(rig, **options)


def says_hello(rig: ServerRig, own_id) -> None:
    other = stranger(rig, own_id=own_id)
    other.give(other.message(raw.CLIENT_HELLO, other.hello_body()))


def says_hello_with_a_bad_cookie(rig: ServerRig, own_id) -> None:
    other = stranger(rig, own_id=own_id)
    other.give(other.message(raw.CLIENT_HELLO, other.hello_body(cookie=b"c" * 32)))


def says_hello_with_a_good_cookie(rig: ServerRig, own_id) -> None:
    stranger(rig, own_id=own_id).hello()


def never_finishes(rig: ServerRig, own_id) -> None:
    other = stranger(rig, own_id=own_id)
    other.hello()
    other.give(other.key_exchange(), other.change_cipher_spec())


def has_no_key(rig: ServerRig, own_id) -> None:
    other = stranger(rig, own_id=own_id, identity=IDENTITY, psk=b"guessed")
    other.hello()
    other.give(other.key_exchange(), other.change_cipher_spec(), other.finished())


def has_another_identity(rig: ServerRig, own_id) -> None:
    stranger(rig, own_id=own_id).handshake()


STRANGERS = [
    says_hello, says_hello_with_a_bad_cookie, says_hello_with_a_good_cookie, never_finishes, has_no_key,
    has_another_identity,
]  # fmt: skip


class Observed:
    """A device's association, whose every record must arrive, whatever strangers do at its path."""

    def __init__(self, **more) -> None:
        self.rig = ServerRig(ServerConfig(**more), {IDENTITY: [KEY], STRANGER: [STRANGERS_KEY]})
        self.device = IdClient(self.rig, path=PATH).handshake()
        self.connection = self.rig.connection
        self.number = 0

    def assert_heard(self) -> bytes:
        self.number += 1
        data = b"%d" % self.number
        self.device.give(self.device.data(data))
        assert self.rig.received[-1] == data
        assert len(self.rig.received) == self.number
        return data

    def assert_undisturbed(self) -> None:
        data = self.assert_heard()
        assert self.connection.state is ConnectionState.CONNECTED
        assert self.connection.path == PATH
        self.connection.send(data, now=self.rig.now)
        assert self.device.opened(self.rig.sent(PATH)) == [(raw.APPLICATION_DATA, data)]


@pytest.mark.parametrize("own_id", [b"old", None], ids=["with ID", "without ID"])
def test_a_device_that_lost_its_state_replaces_its_frozen_association_too(own_id):
    rig = ServerRig(ServerConfig(freeze_after=5, connection_id=ConnectionIdPolicy(length=8)))
    old = IdClient(rig, own_id=own_id).handshake()
    old.give(old.data(b"old"))
    rig.wait(20)
    assert (len(rig.server), rig.server.frozen) == (0, 1)
    new = IdClient(rig, random=b"n" * 32)
    new.hello()
    rig.wait(0)
    assert rig.server.frozen == 1, "not before its Finished"
    new.finish()
    assert (len(rig.server), rig.server.frozen) == (1, 0)
    for path in (old.path, ELSEWHERE):
        rig.give(old.data(b"too late"), path)
    new.give(new.data(b"new"))
    assert rig.received == [b"old", b"new"]
    rig.wait(20)
    assert (len(rig.server), rig.server.frozen) == (0, 1)


def test_a_strangers_handshake_at_the_address_of_a_frozen_association_leaves_it_be():
    observed = Observed(freeze_after=5)
    observed.assert_undisturbed()
    for act in STRANGERS:
        observed.rig.wait(20, PATH)
        assert observed.rig.server.frozen >= 1
        act(observed.rig, b"s")
        observed.assert_heard()


@pytest.mark.parametrize("act", STRANGERS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("own_id", [b"s", None], ids=["with ID", "without ID"])
def test_a_stranger_at_the_devices_address_disturbs_nothing(act, own_id):
    observed = Observed()
    for _ in range(3):
        observed.assert_undisturbed()
        act(observed.rig, own_id)
        observed.assert_undisturbed()
        observed.rig.wait(1, PATH)
        observed.assert_undisturbed()
    observed.rig.wait(200, PATH)
    observed.assert_undisturbed()
    assert observed.rig.server.statistics.half_open == 0
    # A stranger that comes again replaces its own.
    assert len(observed.rig.server) == (2 if act is has_another_identity else 1)


@pytest.mark.parametrize("act", STRANGERS[:-1], ids=lambda act: act.__name__)
def test_after_a_strangers_attempt_the_device_still_replaces_its_own_association(act):
    observed = Observed()
    act(observed.rig, b"s")
    again = IdClient(observed.rig, random=b"n" * 32, path=PATH).handshake()
    assert observed.connection.state is ConnectionState.CLOSED
    observed.device.give(observed.device.data(b"old"))
    again.give(again.data(b"new"))
    assert observed.rig.received == [b"new"]
    observed.rig.wait(200, PATH)
    assert len(observed.rig.server) == 1


@pytest.mark.parametrize("bad_cookie", [False, True])
def test_a_strangers_hello_at_any_moment_costs_the_device_no_association(bad_cookie):
    # From the device's address, so that the answer goes to the device.
    hello = raw.client_hello(random=b"s" * 32, cookie=b"c" * 32 if bad_cookie else b"")
    forged = raw.record(raw.HANDSHAKE, raw.fragment(raw.CLIENT_HELLO, hello))
    for moment in itertools.count():
        fleet = new_fleet()
        life = Life(fleet)
        over = not all(life.go_on() for _ in range(moment))
        fleet.network.inject(PATH, "server", forged)
        while life.go_on():
            pass
        assert life.client.received == [b"to the device"] * 2
        assert fleet.server_received() == life.sent == [b"0", b"1", b"2", b"3"]
        assert len(fleet.server) == 0
        if over:
            break
    assert moment > 14


def test_a_device_comes_back_although_a_stranger_with_another_identity_has_its_address():
    observed = Observed()
    other = stranger(observed.rig).handshake()
    again = IdClient(observed.rig, random=b"n" * 32, path=PATH).handshake()
    again.give(again.data(b"new"))
    other.give(other.data(b"the stranger's"))
    assert observed.rig.received == [b"new", b"the stranger's"]


@pytest.mark.parametrize("freeze_after", [None, 5], ids=["live", "frozen"])
def test_each_of_many_devices_behind_one_address_replaces_its_own_association_and_no_other(freeze_after):
    keys = {b"dev%d" % number: [b"key %d" % number] for number in range(5)}
    rig = ServerRig(ServerConfig(freeze_after=freeze_after), keys)
    devices: dict[bytes, IdClient] = {}
    for round_ in range(4):
        for number in range(5):
            identity = b"dev%d" % ((number * (round_ + 1)) % 5)
            old = devices.get(identity)
            devices[identity] = IdClient(
                rig, identity=identity, psk=keys[identity][0], random=bytes([round_, number] * 16), path="nat"
            ).handshake()
            assert len(rig.server) + rig.server.frozen == len(devices)
            before = len(rig.received)
            if old is not None:
                old.give(old.data(b"old"))
            assert len(rig.received) == before
            for each, device in devices.items():
                device.give(device.data(each))
                assert rig.received[-1] == each
            rig.wait(20, "nat")
    if freeze_after is not None:
        assert rig.server.frozen == 5
    assert len(rig.server) + rig.server.frozen == 5
