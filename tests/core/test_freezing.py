"""One association turned into bytes and back: it goes on as if nothing had been, and no number repeats."""

from __future__ import annotations

import attrs
import pytest

from sansdtls import (
    CertificateType,
    CipherSuite,
    ClientAuthentication,
    ClientConfig,
    Connection,
    ConnectionIdPolicy,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    DiscardReason,
    KeysExhausted,
    Limits,
    MessageTooLarge,
    PathChangeRequested,
    PathPolicy,
    PeerCertificateReceived,
    PskRequested,
    SnapshotError,
    UsageError,
    WrongState,
)
from sansdtls.snapshot import THAW_JUMP, decode_snapshot
from sansdtls.statistics import ConnectionStatistics
from sansdtls.testing import CounterEntropy, Pair
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import client_config, psk_config, server_config
from tests.core.id_puppets import PUPPETS_ID, IdClient, connection_id_extension
from tests.core.puppet import PuppetClient, ServerRig
from tests.core.resuming import KINDS

ALL = {
    **KINDS,
    **{suite.name: psk_config(cipher_suites=[suite]) for suite in CipherSuite if "PSK" in suite.name},
    **{suite.name: client_config(cipher_suites=[suite]) for suite in CipherSuite if "PSK" not in suite.name},
    "server name": client_config(server_name="meter.example"),
    "ALPN": psk_config(alpn_protocols=[b"coap", b"x"]),
    "record_size_limit": psk_config(record_size_limit=100),
    "max_fragment_length": psk_config(max_fragment_length=512),
    "small MTU": psk_config(mtu=300),
    "raw key": ClientConfig(
        server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,),
        credentials=(shown("p256").raw_public_key(),),
    ),
    "no IDs": psk_config(connection_id=None),
    "our ID": psk_config(connection_id=ConnectionIdPolicy(length=0)),
    "peer's ID": psk_config(connection_id=ConnectionIdPolicy(length=3)),
    "long IDs": psk_config(connection_id=ConnectionIdPolicy(length=20, padding=16)),
}
SERVERS: dict[str, dict] = {
    "peer's ID": {"connection_id": ConnectionIdPolicy(length=0)},
    "long IDs": {"connection_id": ConnectionIdPolicy(length=20)},
    "ALPN": {"alpn_protocols": (b"coap",)},
    "record_size_limit": {"record_size_limit": 80},
}
each = pytest.mark.parametrize("kind", ALL)
SIDES = ("client", "server")
each_side = pytest.mark.parametrize("side", SIDES)


def pair_of(config: ClientConfig | None = None, *, seed: int = 0, **server) -> Pair:
    wanted = {"client_authentication": ClientAuthentication.WANTED, **server}
    pair = Pair(config, server_config(**wanted), seed=seed)
    pair.handshake()
    # Data both ways: nobody may be asked for a flight any more.
    pair.client.send(b"first", now=pair.now)
    pair.server_connection.send(b"first", now=pair.now)
    pair.run_for(0.1)
    assert (pair.server_received(), pair.client_end.received) == ([b"first"], [b"first"])
    return pair


def side_of(pair: Pair, side: str) -> Connection:
    return pair.client if side == "client" else next(iter(pair.server.connections))


def freeze(pair: Pair, side: str) -> bytes:
    if side == "client":
        return pair.client.freeze(now=pair.now)
    return pair.server.freeze(side_of(pair, side), now=pair.now)


def thaw(pair: Pair, side: str, blob: bytes, config=None) -> Connection:
    if side == "server":
        return pair.server.thaw(blob, now=pair.now)
    config = config or pair.client._config
    connection = Connection.thaw(blob, config, entropy=CounterEntropy(5), now=pair.now)
    pair.client_end.connection = connection
    return connection


def converse(pair: Pair, number: int) -> None:
    question, answer = b"question %d" % number, b"answer %d" % number
    pair.client.send(question, now=pair.now)
    side_of(pair, "server").send(answer, now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received()[-1] == question
    assert pair.client_end.received[-1] == answer


def observed(connection: Connection) -> dict:
    """All that a caller can ask of it."""
    negotiated = connection.negotiated
    assert negotiated is not None
    safe = negotiated.extended_master_secret
    return {
        "negotiated": negotiated,
        "peer": connection.peer,
        "annotation": connection.annotation,
        "session": connection.session,
        "max_payload": connection.max_payload,
        "path": connection.path,
        "connection_id": connection.connection_id,
        "peer_connection_id": connection.peer_connection_id,
        "last_received": connection.last_received,
        "deadline": connection.next_timeout(),
        "state": connection.state,
        "exported": connection.export_keying_material("EXPORTER-test", 32, b"c") if safe else None,
    }


# --- every kind of association ------------------------------------------------------------------------


@each
def test_every_kind_of_association_goes_on_as_if_nothing_had_been(kind):
    pair = pair_of(ALL[kind], **SERVERS.get(kind, {}))
    for side in SIDES:
        side_of(pair, side).annotation = b"note of the " + side.encode()
    before = {side: observed(side_of(pair, side)) for side in SIDES}
    for number in range(2):
        for side in SIDES:
            old = side_of(pair, side)
            thaw(pair, side, freeze(pair, side))
            assert side_of(pair, side) is not old
            assert observed(side_of(pair, side)) == before[side]
            converse(pair, 2 * number + SIDES.index(side))
            before = {side: observed(side_of(pair, side)) for side in SIDES}
    for side in SIDES:
        largest = side_of(pair, side).max_payload
        side_of(pair, side).send(bytes(largest), now=pair.now)
        with pytest.raises(MessageTooLarge):
            side_of(pair, side).send(bytes(largest + 1), now=pair.now)
    pair.run_for(0.1)
    pair.client.close(now=pair.now)
    pair.run_for(1)
    assert len(pair.server) == 0


@pytest.mark.parametrize("own_id", [False, True])
def test_without_extended_master_secret_too(own_id):
    rig = ServerRig()
    device: PuppetClient = IdClient(rig, ems=False) if own_id else PuppetClient(rig, ems=False)
    if own_id:
        offered = (raw.RENEGOTIATION_INFO, connection_id_extension(PUPPETS_ID))
        device.hello_options = {"extensions": offered}
    device.handshake()
    blob = rig.server.freeze(rig.connection, now=1.0)
    connection = rig.server.thaw(blob, now=2.0)
    assert connection.negotiated is not None
    assert not connection.negotiated.extended_master_secret
    with pytest.raises(WrongState, match="extended_master_secret"):
        connection.export_keying_material("EXPORTER-test", 32)
    device.give(device.data(b"again"))
    assert rig.received == [b"again"]


def test_a_resumed_association_freezes_too():
    pair = pair_of(psk_config())
    again = Pair(psk_config(session=pair.client.session), seed=3)
    again.server = pair.server
    again.handshake()
    again.client.send(b"1", now=again.now)
    again.run_for(0.1)
    for side in SIDES:
        before = observed(side_of(again, side))
        assert before["negotiated"].resumed
        thaw(again, side, freeze(again, side))
        assert observed(side_of(again, side)) == before
    converse(again, 1)


@each_side
def test_a_thawed_association_still_refuses_what_is_larger_than_it_said(side):
    pair = pair_of(psk_config(record_size_limit=70), record_size_limit=70)
    thaw(pair, side, freeze(pair, side))
    other = side_of(pair, "server" if side == "client" else "client")
    other._settle_sizes(2**14, 2**14)
    other.send(bytes(71), now=pair.now)
    pair.run_for(0.1)
    causes = [pair.client_end.cause] if side == "client" else pair.server_causes()
    assert "of 71 bytes" in str(causes[0])


def test_counters_begin_anew_and_the_servers_totals_go_on():
    pair = pair_of()
    totals = pair.server.statistics
    before = totals.datagrams_received, totals.datagrams_sent, totals.handshakes_completed
    connection = thaw(pair, "server", freeze(pair, "server"))
    assert attrs.asdict(connection.statistics) == attrs.asdict(ConnectionStatistics())
    converse(pair, 1)
    assert connection.statistics.records_received == connection.statistics.records_sent == 1
    after = totals.datagrams_received, totals.datagrams_sent, totals.handshakes_completed
    assert after == (before[0] + 1, before[1] + 1, before[2])
    assert (totals.associations, totals.thaws, totals.freezes) == (1, 1, 0)


# --- the object that was frozen -----------------------------------------------------------------------


@each_side
def test_a_frozen_object_is_of_no_more_use(side):
    pair = pair_of()
    connection = side_of(pair, side)
    record = _record_for(pair, side)
    blob = freeze(pair, side)
    assert connection.state is ConnectionState.FROZEN
    assert connection.max_payload == 0
    assert connection.next_timeout() is None
    with pytest.raises(WrongState, match="cannot send: the connection is frozen"):
        connection.send(b"x", now=pair.now)
    with pytest.raises(WrongState, match="cannot freeze: the connection"):
        connection.freeze(now=pair.now)
    with pytest.raises(WrongState, match="cannot freeze"):
        pair.server.freeze(connection, now=pair.now)
    with pytest.raises(WrongState, match="only while connected"):
        connection.export_keying_material("EXPORTER-test", 32)
    connection.close(now=pair.now)
    assert connection.handle_timeout(now=1e9) == []
    assert connection.receive_datagram(record, now=pair.now) == []
    assert connection.statistics.records_discarded == {DiscardReason.AFTER_CLOSE: 1}
    assert connection.state is ConnectionState.FROZEN
    assert connection.datagrams_to_send() == []
    assert pair.server.datagrams_to_send() == []
    assert b"master" not in repr(connection).encode()
    thaw(pair, side, blob)
    converse(pair, 1)


def _record_for(pair: Pair, side: str) -> bytes:
    other = side_of(pair, "client" if side == "server" else "server")
    other.send(b"late", now=pair.now)
    outgoing = (pair.server if side == "client" else other).datagrams_to_send()
    return outgoing[-1].data


def test_an_old_question_is_answered_into_the_void():
    pair = pair_of()
    asked = [event for event in pair.server_events if isinstance(event, PskRequested)][-1]
    freeze(pair, "server")
    assert asked.connection.provide_psk(asked, [Pair.KEY], now=pair.now) == []
    pair = pair_of(client_config(credentials=(shown("p256").certificate(),)))
    (shown_to,) = [event for event in pair.server_events if isinstance(event, PeerCertificateReceived)]
    freeze(pair, "server")
    assert shown_to.connection.accept_peer(shown_to, now=pair.now) == []


def test_a_question_about_a_path_is_answered_into_the_void():
    policy = ConnectionIdPolicy(length=0)
    pair = pair_of(
        psk_config(connection_id=policy),
        connection_id=ConnectionIdPolicy(path_policy=PathPolicy.APPLICATION),
        seed=1,
    )
    connection = side_of(pair, "server")
    assert connection.negotiated is not None
    connection._negotiated = attrs.evolve(connection.negotiated, return_routability=False)
    pair.move(pair.client_end, "elsewhere")
    pair.client.send(b"from elsewhere", now=pair.now)
    pair.run_for(0.1)
    (asked,) = [event for event in pair.server_events if isinstance(event, PathChangeRequested)]
    blob = freeze(pair, "server")
    assert connection.confirm_path(asked, now=pair.now) == []
    thawed = pair.server.thaw(blob, now=pair.now)
    assert thawed.path == "client"
    with pytest.raises(UsageError, match="another connection"):
        thawed.confirm_path(asked, now=pair.now)


def test_only_what_is_connected_can_be_frozen():
    pair = Pair()
    with pytest.raises(WrongState, match="cannot freeze: the connection is handshaking"):
        pair.client.freeze(now=0)
    pair.psk_after = None
    pair.run_until(lambda: bool(pair.server_connections()))
    with pytest.raises(WrongState, match="no established association of this server"):
        pair.server.freeze(pair.server_connection, now=pair.now)
    (asked,) = [event for event in pair.server_events if isinstance(event, PskRequested)]
    pair.provide_psk(asked, [Pair.KEY])
    pair.handshake()
    pair.client.close(now=pair.now)
    with pytest.raises(WrongState, match="cannot freeze: events wait"):
        pair.client.freeze(now=pair.now)
    server_side = side_of(pair, "server")
    pair.run_for(1)
    with pytest.raises(WrongState, match="cannot freeze: the connection is closed"):
        pair.client.freeze(now=pair.now)
    with pytest.raises(WrongState, match="no established association of this server"):
        pair.server.freeze(server_side, now=pair.now)


def test_events_that_wait_have_to_be_fetched_before():
    pair = pair_of()
    connection = side_of(pair, "server")
    connection.close(now=pair.now)
    with pytest.raises(WrongState, match="events wait to be fetched"):
        pair.server.freeze(connection, now=pair.now)
    (event,) = pair.server.handle_timeout(now=pair.now)
    assert isinstance(event, ConnectionTerminated)


def test_a_servers_connection_is_frozen_by_its_server_only():
    pair = pair_of()
    with pytest.raises(WrongState, match=r"use server\.freeze"):
        side_of(pair, "server").freeze(now=pair.now)
    converse(pair, 1)
    other = pair_of(seed=9)
    with pytest.raises(WrongState, match="no established association of this server"):
        other.server.freeze(pair.client, now=pair.now)
    foreign = side_of(pair, "server")
    with pytest.raises(WrongState, match="no established association of this server"):
        other.server.freeze(foreign, now=pair.now)


class Place:
    """A path that nobody can write down."""


@each_side
def test_a_path_that_cannot_be_saved_is_named_and_the_association_stays(side):
    place = Place()
    pair = Pair(client_path=place, server_path=place if side == "client" else "server")
    if side == "client":
        pair = Pair(server_path=place)
    pair.handshake()
    with pytest.raises(SnapshotError, match="a path with a Place cannot be saved"):
        freeze(pair, side)
    converse(pair, 1)


# --- the replay window --------------------------------------------------------------------------------


def numbered(device: PuppetClient, *numbers: int) -> None:
    for number in numbers:
        device.give(device.data(b"%d" % number, seq=number))


@pytest.mark.parametrize("widths", [(64, 64), (64, 32), (32, 64), (64, 1024), (1024, 32), (1024, 1024)])
@pytest.mark.parametrize("sent", [(), (1, 2, 3), (1, 3, 5, 90, 92), tuple(range(1, 200, 3)), (1, 1000)])
def test_nothing_is_accepted_twice_whatever_width_the_window_has_then(widths, sent):
    before, after = widths
    rig = ServerRig(server_config(limits=Limits(replay_window=before)))
    device = PuppetClient(rig).handshake()  # Finished had number 0
    numbered(device, *sent)
    assert rig.received == [b"%d" % number for number in sent]
    highest = max(sent, default=0)
    remembered = [number for number in (0, *sent) if highest - number < before]
    other = ServerRig(server_config(limits=Limits(replay_window=after)), seed=5)
    other.server.thaw(rig.server.freeze(rig.connection, now=0), now=0)
    device.rig = other
    numbered(device, *range(highest + 1))
    # What was missing still counts, as far back as the window was sure of something.
    missing = [
        number
        for number in range(min(remembered), highest)
        if number not in sent and number and highest - number < after
    ]
    assert other.received == [b"%d" % number for number in missing]
    numbered(device, *range(highest + 1))
    numbered(device, highest + 1)
    assert other.received == [b"%d" % number for number in (*missing, highest + 1)]


def test_a_window_that_grows_and_shrinks_over_and_over_accepts_each_number_once():
    rig = ServerRig(server_config(limits=Limits(replay_window=32)))
    device = IdClient(rig).handshake()
    delivered: list[bytes] = []
    for round_ in range(12):
        blob = rig.server.freeze(rig.connection, now=0)
        width = (32, 1024, 64, 333)[round_ % 4]
        rig = ServerRig(server_config(limits=Limits(replay_window=width)), seed=100 + round_)
        device.rig = rig
        rig.server.thaw(blob, now=0)
        numbered(device, *range(max(0, round_ * 17 - 90), round_ * 17, 1 + round_ % 3))
        delivered += rig.received
    assert len(delivered) == len(set(delivered)) > 60


# --- limits on the use of keys ------------------------------------------------------------------------


@pytest.mark.parametrize("with_id", [False, True])
def test_forgeries_count_across_freezing_until_the_keys_are_given_up(with_id):
    limits = Limits(max_failed_opens=7)
    rig = ServerRig(server_config(limits=limits))
    device = (IdClient if with_id else PuppetClient)(rig).handshake()
    for number in range(7):
        assert rig.causes == []
        blob = rig.server.freeze(rig.connection, now=0)
        assert decode_snapshot(blob, keys=()).failed_opens == number
        connection = rig.server.thaw(blob, now=0)
        assert connection.failed_opens == number
        device.give(_spoilt(device.data(b"x")))
    assert rig.causes == [KeysExhausted("open")]
    assert len(rig.server) == 0


def _spoilt(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


def test_sealed_records_count_across_freezing():
    # THAW_JUMP numbers are skipped with each thaw after which something is sent.
    pair = pair_of(psk_config(limits=Limits(max_sealed_records=64)))
    used = 2
    while used + 1 + THAW_JUMP < 64:
        thaw(pair, "client", freeze(pair, "client"))
        pair.client.send(b"one more", now=pair.now)
        used += THAW_JUMP + 1
        assert decode_snapshot(_copy(pair.client), keys=()).write_sequence_number == used
    thaw_fails = freeze(pair, "client")
    with pytest.raises(SnapshotError, match="used up its record numbers"):
        thaw(pair, "client", thaw_fails)


def _copy(connection: Connection) -> bytes:
    return connection.snapshot(generation=0, keys=())


def _sequence_numbers(pair: Pair, source: str, since: int = 0) -> list[int]:
    return [
        record.seq
        for sent in pair.network.sent_by(source)[since:]
        for record in raw.records(sent.data)
        if record.epoch == 1
    ]


@each_side
def test_the_number_jumps_ahead_by_exactly_so_much_if_something_was_sent_and_else_not(side):
    pair = pair_of()
    other = "client" if side == "server" else "server"
    numbers = _sequence_numbers(pair, side)
    last = numbers[-1]
    for sends in (False, False, True, False, True, True):
        connection = thaw(pair, side, freeze(pair, side))
        if sends:
            connection.send(b"now", now=pair.now)
            pair.run_for(0.1)
            numbers = _sequence_numbers(pair, side)
            assert numbers[-1] == last + 1 + THAW_JUMP
            last = numbers[-1]
        side_of(pair, other).send(b"what comes in costs nothing", now=pair.now)
        pair.run_for(0.1)
    assert len(numbers) == len(set(numbers))


def test_what_is_sent_of_its_own_accord_counts_as_well():
    # An alert, not data: the next thaw must not go back behind it.
    rig = ServerRig()
    device = PuppetClient(rig).handshake()
    connection = rig.server.thaw(rig.server.freeze(rig.connection, now=0), now=0)
    first = decode_snapshot(_copy(connection), keys=()).write_sequence_number
    answers = device.give(device.message(raw.CLIENT_HELLO, device.hello_body(), epoch=1))
    assert (1, 100) in device.alerts(answers)  # no_renegotiation
    thawed = rig.server.thaw(rig.server.freeze(connection, now=0), now=0)
    number = decode_snapshot(_copy(thawed), keys=()).write_sequence_number
    assert number == first + THAW_JUMP + 1


# --- the last flight ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_id", [False, True])
def test_a_client_whose_handshake_was_nearly_over_completes_it_with_the_thawed_server(with_id):
    config = psk_config(connection_id=ConnectionIdPolicy(length=2) if with_id else None)
    pair = Pair(config, server_config())
    pair.network.drop("server", 2)  # ticket, ChangeCipherSpec, Finished
    pair.run_until(lambda: len(pair.server) == 1)
    assert pair.client.state is ConnectionState.HANDSHAKING
    for _ in range(2):
        pair.server.thaw(pair.server.freeze(side_of(pair, "server"), now=pair.now), now=pair.now)
    pair.run_until(lambda: pair.client.state is ConnectionState.CONNECTED, deadline=2)
    converse(pair, 1)
    numbers = [
        (record.epoch, record.seq)
        for sent in pair.network.sent_by("server")
        for record in raw.records(sent.data, 2 if with_id else 0)
    ]
    assert len(numbers) == len(set(numbers))
    assert sum(epoch == 0 for epoch, _ in numbers) > 6  # flight 4, the last flight twice


def test_numbers_of_epoch_0_never_repeat_however_often_the_last_flight_is_asked_for():
    rig = ServerRig()
    device = PuppetClient(rig)
    device.hello()
    flight_5 = device.key_exchange(), device.change_cipher_spec(), device.finished()
    device.read_finished(device.give(*flight_5))
    repeated = 0
    for _ in range(4):
        rig.server.thaw(rig.server.freeze(rig.connection, now=rig.now), now=rig.now)
        device.message_seq -= 1
        rig.now += 1
        answers = device.give(
            device.message(raw.FINISHED, device.verify_data(), epoch=1, in_transcript=False)
        )
        repeated += len(answers)
    assert repeated == 4
    numbers = [
        (record.epoch, record.seq)
        for sent in device.answers
        for record in raw.records(sent)
        if record.epoch < 2
    ]
    assert len(numbers) - len(set(numbers)) <= 1  # HelloVerifyRequest has the number of its hello, RFC 6347


def test_after_the_last_flight_has_arrived_it_is_not_saved():
    pair = Pair()
    pair.handshake()
    (server_side,) = pair.server.connections
    assert decode_snapshot(_copy(server_side), keys=()).last_flight
    pair.client.send(b"x", now=pair.now)
    pair.run_for(0.1)
    assert not decode_snapshot(_copy(server_side), keys=()).last_flight


def test_a_last_flight_that_nobody_may_ask_for_any_more_is_not_saved():
    for seconds, saved in ((239.0, True), (241.0, False)):
        pair = Pair()
        pair.handshake()
        pair.run_for(seconds)
        blob = freeze(pair, "server")
        assert bool(decode_snapshot(blob, keys=()).last_flight) is saved


# --- what is refused ----------------------------------------------------------------------------------


@each_side
def test_a_blob_of_the_other_role_is_refused(side):
    pair = pair_of()
    blob = freeze(pair, side)
    if side == "client":
        with pytest.raises(SnapshotError, match="the frozen association is a client's, not a server's"):
            pair.server.thaw(blob, now=pair.now)
        with pytest.raises(SnapshotError, match="is a client's, the configuration a server's"):
            Connection.thaw(blob, pair.server._config, entropy=CounterEntropy(1), now=pair.now)
    else:
        with pytest.raises(SnapshotError, match="is a server's, the configuration a client's"):
            Connection.thaw(blob, pair.client._config, entropy=CounterEntropy(1), now=pair.now)


def test_a_clients_blob_is_sealed_under_its_keys():
    old, new = b"o" * 32, b"n" * 32
    pair = pair_of(psk_config(snapshot_keys=[old]))
    blob = freeze(pair, "client")
    config = pair.client._config
    for keys, match in (
        ((), "sealed, and there is no key"),
        ((new,), "sealed under another key, or is damaged"),
    ):
        with pytest.raises(SnapshotError, match=match):
            thaw(pair, "client", blob, attrs.evolve(config, snapshot_keys=keys))
    thaw(pair, "client", blob, attrs.evolve(config, snapshot_keys=[new, old]))
    converse(pair, 1)
    again = freeze(pair, "client")
    decode_snapshot(again, keys=(new,))


def test_thawing_takes_limits_and_sizes_from_the_configuration_of_today():
    pair = pair_of(psk_config())
    config = attrs.evolve(
        pair.client._config, mtu=400, limits=Limits(idle_timeout=50, max_failed_opens=1, replay_window=33)
    )
    before = pair.client.max_payload
    last = pair.client.last_received
    connection = thaw(pair, "client", freeze(pair, "client"), config)
    assert connection.max_payload == before - (1232 - 400)
    assert connection.next_timeout() == last + 50


@each_side
def test_the_idle_timeout_counts_the_time_asleep(side):
    pair = pair_of(psk_config(limits=Limits(idle_timeout=100)), limits=Limits(idle_timeout=100))
    last = side_of(pair, side).last_received
    blob = freeze(pair, side)
    pair.clock.advance_to(last + 99)
    connection = thaw(pair, side, blob)
    assert connection.next_timeout() == last + 100
    driver = pair.server if side == "server" else connection
    assert not any(
        isinstance(event, ConnectionTerminated) for event in driver.handle_timeout(now=last + 99.9)
    )
    assert any(isinstance(event, ConnectionTerminated) for event in driver.handle_timeout(now=last + 100))


def test_data_from_before_are_delivered_once_although_they_come_after_the_thaw():
    pair = pair_of()
    pair.client.send(b"before", now=pair.now)
    (late,) = pair.client.datagrams_to_send()
    thaw(pair, "server", freeze(pair, "server"))
    events = pair.server.receive_datagram(late.data, path="client", now=pair.now)
    assert [event.data for event in events if isinstance(event, DataReceived)] == [b"before"]
    thaw(pair, "server", freeze(pair, "server"))
    events = pair.server.receive_datagram(late.data, path="client", now=pair.now)
    assert not any(isinstance(event, DataReceived) for event in events)
