"""What a record from another path does where nobody checks return routability: RFC 9146 §6 and the policies."""

import pytest

from sansdtls import (
    ConnectionIdPolicy,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    DiscardReason,
    Limits,
    MessageTooLarge,
    PathChanged,
    PathChangeRequested,
    PathProof,
    PeerClose,
    ServerConfig,
    UsageError,
    WrongState,
)
from sansdtls.testing import Fleet
from tests.core.fleets import KEYS, client_config
from tests.core.roaming import (
    APPLICATION,
    AWAY,
    BASIC,
    DATA,
    ENHANCED,
    HOME,
    MOVE,
    NEVER,
    THIRD,
    Roaming,
    data_in,
    device_config,
    moves_in,
    pair_of,
)

NEWER, CONFIRMED = PathProof.NEWER_RECORD, PathProof.APPLICATION
POLICIES = [MOVE, APPLICATION, NEVER, BASIC, ENHANCED]
NAMES = ["move", "application", "never", "basic", "enhanced"]


def where_data_go(roaming: Roaming) -> object:
    roaming.connection.send(b"where are you", now=roaming.now)
    (sent,) = roaming.sent()
    return sent.path


# --- what holds whatever the policy -------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_data_are_delivered_from_whatever_path_they_come(policy):
    roaming = Roaming(policy)
    for number, path in enumerate((AWAY, HOME, THIRD, AWAY, AWAY, HOME)):
        assert data_in(roaming.say(b"%d" % number, path)) == [b"%d" % number]


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_an_older_record_from_a_new_path_delivers_its_data_and_moves_nothing(policy):
    # What wolfSSL did until its issue 10609: any authentic record moved the path.
    roaming = Roaming(policy)
    old, new = roaming.data(b"old"), roaming.data(b"new")
    roaming.give(new, HOME)
    events = roaming.give(old, AWAY)
    assert data_in(events) == [b"old"]
    assert len(events) == 1
    assert roaming.connection.path == HOME
    assert roaming.sent() == []
    assert roaming.counts == (0, 0, 0)
    assert where_data_go(roaming) == HOME


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_replay_from_another_address_does_nothing_at_all(policy):
    roaming = Roaming(policy)
    datagrams = [roaming.data(b"%d" % number) for number in range(3)]
    for datagram in datagrams:
        roaming.give(datagram, HOME)
    for datagram in datagrams:
        assert roaming.give(datagram, AWAY) == []
    assert roaming.connection.path == HOME
    assert roaming.sent() == []
    assert roaming.connection.statistics.records_discarded == {DiscardReason.REPLAY: 3}


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_forged_record_from_another_address_does_nothing_at_all(policy):
    roaming = Roaming(policy)
    genuine = roaming.data()
    for position in range(len(genuine)):
        forged = bytearray(genuine)
        forged[position] ^= 1
        assert roaming.give(bytes(forged), AWAY) == []
    assert roaming.connection.path == HOME
    assert roaming.sent() == []
    assert data_in(roaming.give(genuine, HOME)) == [b"x"]


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_nothing_of_it_is_remembered_once_the_peer_is_heard_where_it_was(policy):
    roaming = Roaming(policy)
    roaming.say(b"1", AWAY)
    roaming.say(b"2", HOME)
    assert roaming.connection._layer.path_check is None
    assert roaming.connection.path == HOME


# --- move ---------------------------------------------------------------------------------------------


def test_a_newer_record_moves_the_path_at_once_and_says_so_before_its_data():
    roaming = Roaming(MOVE)
    changed, received = roaming.say(b"here", AWAY)
    assert isinstance(changed, PathChanged)
    assert (changed.connection, changed.old, changed.new, changed.proof) == (
        roaming.connection,
        HOME,
        AWAY,
        NEWER,
    )
    assert isinstance(received, DataReceived)
    assert roaming.connection.path == AWAY
    assert where_data_go(roaming) == AWAY
    assert roaming.counts == (1, 0, 0)


def test_after_a_move_a_datagram_that_was_overtaken_moves_nothing_back():
    roaming = Roaming(MOVE)
    late = roaming.data(b"late")
    roaming.say(b"here", AWAY)
    assert data_in(roaming.give(late, HOME)) == [b"late"]
    assert roaming.connection.path == AWAY


def test_only_the_first_record_of_a_datagram_moves():
    roaming = Roaming(MOVE)
    events = roaming.give(roaming.data(b"1") + roaming.data(b"2"), AWAY)
    assert [type(event) for event in events] == [PathChanged, DataReceived, DataReceived]


def test_the_answer_to_a_close_goes_to_where_it_came_from():
    roaming = Roaming(MOVE)
    roaming.device.close(now=roaming.now)
    (outgoing,) = roaming.device.datagrams_to_send()
    events = roaming.give(outgoing.data, AWAY)
    assert isinstance(events[0], PathChanged)
    assert isinstance(events[-1], ConnectionTerminated)
    assert [(sent.kind, sent.path) for sent in roaming.sent()] == [("alert", AWAY)]
    assert len(roaming.server) == 0


def test_an_association_is_found_by_its_new_path_and_leaves_the_old_to_others():
    fleet = Fleet(ServerConfig(connection_id=ConnectionIdPolicy(**MOVE)), keys=KEYS)
    with_id = {"connection_id": ConnectionIdPolicy(length=0)}
    first = fleet.connect(client_config(1, **with_id), path=HOME)
    fleet.run_for(1)
    fleet.move(first, AWAY)
    first.connection.send(b"moved", now=fleet.now)
    fleet.run_for(1)
    second = fleet.connect(client_config(2, **with_id), path=HOME)
    fleet.run_for(1)
    for client in (first, second):
        client.connection.send(b"both live", now=fleet.now)
    fleet.run_for(1)
    for connection in fleet.server.connections:
        connection.send(b"for " + str(connection.path).encode(), now=fleet.now)
    fleet.run_for(1)
    assert first.received == [b"for away"]
    assert second.received == [b"for client"]


# --- never --------------------------------------------------------------------------------------------


def test_with_never_answers_go_on_to_the_old_path():
    roaming = Roaming(NEVER)
    for _ in range(5):
        assert data_in(roaming.say(b"x", AWAY)) == [b"x"]
    assert roaming.connection.path == HOME
    assert where_data_go(roaming) == HOME
    assert roaming.connection._layer.path_check is None


# --- the application decides --------------------------------------------------------------------------


def requests_in(events) -> list[PathChangeRequested]:
    return [event for event in events if isinstance(event, PathChangeRequested)]


def asked(roaming: Roaming, path=AWAY, content: bytes = b"here") -> PathChangeRequested:
    events = roaming.say(content, path)
    request = events[0]
    assert isinstance(request, PathChangeRequested)
    assert (request.connection, request.old, request.new) == (roaming.connection, HOME, path)
    assert data_in(events) == [content]
    return request


def test_the_caller_is_asked_once_for_each_new_path_and_nothing_moves_without_an_answer():
    roaming = Roaming(APPLICATION)
    asked(roaming)
    assert [requests_in(roaming.say(b"more", AWAY)) for _ in range(3)] == [[], [], []]
    roaming.wait(1000)
    assert roaming.connection.path == HOME
    assert where_data_go(roaming) == HOME
    assert roaming.counts == (0, 0, 0)


def test_a_confirmed_path_is_used_from_then_on():
    roaming = Roaming(APPLICATION)
    events = roaming.connection.confirm_path(asked(roaming), now=roaming.now)
    assert moves_in(events) == [(HOME, AWAY, CONFIRMED)]
    assert len(events) == 1
    assert roaming.connection.path == AWAY
    assert where_data_go(roaming) == AWAY
    assert roaming.counts == (1, 0, 0)


def test_a_request_is_out_of_date_once_the_peer_was_heard_on_the_old_path():
    roaming = Roaming(APPLICATION)
    request = asked(roaming)
    roaming.say(b"still here", HOME)
    assert roaming.connection.confirm_path(request, now=roaming.now) == []
    assert roaming.connection.path == HOME
    assert roaming.counts == (0, 0, 0)  # nobody was challenged, so no check has failed
    again = asked(roaming)
    assert again is not request
    assert moves_in(roaming.connection.confirm_path(again, now=roaming.now)) == [(HOME, AWAY, CONFIRMED)]


def test_an_older_record_from_the_old_path_does_not_put_a_request_out_of_date():
    roaming = Roaming(APPLICATION)
    late = roaming.data(b"late")
    request = asked(roaming)
    roaming.give(late, HOME)
    assert moves_in(roaming.connection.confirm_path(request, now=roaming.now)) == [(HOME, AWAY, CONFIRMED)]


def test_a_request_is_out_of_date_once_the_peer_was_heard_on_a_third_path():
    roaming = Roaming(APPLICATION)
    request = asked(roaming)
    third = asked(roaming, THIRD)
    assert roaming.connection.confirm_path(request, now=roaming.now) == []
    assert moves_in(roaming.connection.confirm_path(third, now=roaming.now)) == [(HOME, THIRD, CONFIRMED)]


def test_confirming_twice_or_after_the_end_does_nothing():
    roaming = Roaming(APPLICATION)
    request = asked(roaming)
    roaming.connection.confirm_path(request, now=roaming.now)
    assert roaming.connection.confirm_path(request, now=roaming.now) == []
    roaming.say(b"back", HOME)
    request = requests_in(roaming.events)[-1]
    roaming.connection.close(now=roaming.now)
    (ended,) = roaming.connection.confirm_path(request, now=roaming.now)
    assert isinstance(ended, ConnectionTerminated)
    assert roaming.connection.path == AWAY


def test_a_request_of_another_connection_is_refused():
    one, other = Roaming(APPLICATION), Roaming(APPLICATION)
    with pytest.raises(UsageError, match="another connection"):
        other.connection.confirm_path(asked(one), now=other.now)
    with pytest.raises(UsageError, match="DataReceived"):
        one.connection.confirm_path(one.events[-1], now=one.now)  # type: ignore[arg-type]


def test_what_the_caller_sends_to_a_path_in_question_is_bounded_by_three_times_what_came_from_there():
    roaming = Roaming(APPLICATION)
    datagram = roaming.data(b"question")
    roaming.give(datagram, AWAY)
    overhead = roaming.connection._layer.write.overhead
    budget = 3 * len(datagram)
    fits = bytes(budget - overhead)
    with pytest.raises(WrongState, match="before it is confirmed"):
        roaming.connection.send(fits + b"!", now=roaming.now, path=AWAY)
    assert roaming.sent() == []
    roaming.connection.send(fits[overhead + 1 :], now=roaming.now, path=AWAY)
    roaming.connection.send(b"!", now=roaming.now, path=AWAY)
    sent = roaming.sent()
    assert [each.path for each in sent] == [AWAY, AWAY]
    assert sum(len(each.datagram) for each in sent) == budget
    with pytest.raises(WrongState):
        roaming.connection.send(b"", now=roaming.now, path=AWAY)
    more = roaming.data(b"more")
    roaming.give(more, AWAY)
    roaming.connection.send(bytes(3 * len(more) - overhead), now=roaming.now, path=AWAY)
    assert len(roaming.sent()) == 1


def test_padding_counts_too():
    roaming = Roaming(APPLICATION, {"length": 4}, seed=5)
    padded = Roaming({**APPLICATION, "padding": 200}, {"length": 4})
    for each in (roaming, padded):
        asked(each, content=b"x" * 20)
    roaming.connection.send(b"y", now=roaming.now, path=AWAY)
    with pytest.raises(WrongState):
        padded.connection.send(b"y", now=padded.now, path=AWAY)
    assert padded.sent() == []


def test_older_records_from_the_path_in_question_count_for_its_budget_and_those_of_other_paths_do_not():
    roaming = Roaming(APPLICATION)
    late = [roaming.data(b"late"), roaming.data(b"late")]
    first = roaming.data(b"here")
    roaming.give(first, AWAY)
    roaming.give(late[0], AWAY)
    roaming.give(late[1], THIRD)
    overhead = roaming.connection._layer.write.overhead
    room = 3 * (len(first) + len(late[0])) - overhead
    with pytest.raises(WrongState):
        roaming.connection.send(bytes(room + 1), now=roaming.now, path=AWAY)
    roaming.connection.send(bytes(room), now=roaming.now, path=AWAY)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_caller_can_send_to_no_other_path(policy):
    roaming = Roaming(policy)
    roaming.say(b"x" * 100, AWAY)
    roaming.sent()
    with pytest.raises(WrongState, match="neither in use nor waits"):
        roaming.connection.send(b"x", now=roaming.now, path=THIRD)
    if policy is not APPLICATION:
        with pytest.raises(WrongState):
            roaming.connection.send(b"x", now=roaming.now, path=HOME if policy is MOVE else AWAY)
    assert roaming.sent() == []
    roaming.connection.send(b"x", now=roaming.now, path=roaming.connection.path)
    assert len(roaming.sent()) == 1


def test_a_message_that_is_too_large_is_refused_as_such_on_any_path():
    roaming = Roaming(APPLICATION)
    roaming.say(b"x" * 1000, AWAY)
    with pytest.raises(MessageTooLarge):
        roaming.connection.send(bytes(roaming.connection.max_payload + 1), now=roaming.now, path=AWAY)


# --- a server that moves ------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "moves"), [(MOVE, True), (NEVER, False), (BASIC, True), (ENHANCED, True)])
def test_a_client_with_an_id_of_its_own_follows_its_server(policy, moves):
    pair = pair_of(client=policy, delay=0.01)
    pair.server_path = "server 2"
    pair.server_connection.send(b"from elsewhere", now=pair.now)
    pair.run_for(5)
    assert pair.client_end.received == [b"from elsewhere"]
    assert pair.client.path == ("server 2" if moves else "server")
    assert len(moves_in(pair.client_events)) == moves
    assert pair.client.statistics.path_changes == moves
    pair.client.send(b"answer", now=pair.now)
    pair.run_for(1)
    assert pair.server_received() == ([b"answer"] if moves else [])


def test_a_client_without_one_takes_nothing_from_another_address():
    pair = pair_of(MOVE, {"length": 0, **MOVE})
    pair.server_path = "server 2"
    pair.server_connection.send(b"from elsewhere", now=pair.now)
    pair.run_for(1)
    assert pair.client_end.received == []
    assert pair.client.statistics.records_discarded == {DiscardReason.WRONG_PATH: 1}


def test_a_client_that_names_no_path_has_none_that_could_change():
    roaming = Roaming(client=MOVE)
    roaming.device._layer.path = None
    datagram = roaming.connection._layer.write.record(DATA, b"x")
    (event,) = roaming.device.receive_datagram(datagram, now=roaming.now, path="anywhere")
    assert isinstance(event, DataReceived)
    assert roaming.device.path is None


# --- the rest of life goes on -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_record_from_any_path_keeps_an_association_alive_to_the_second(policy):
    roaming = Roaming(policy, both={"limits": Limits(idle_timeout_with_connection_id=100)})
    roaming.wait(99)
    roaming.say(b"x", AWAY)
    roaming.wait(99.9)
    assert len(roaming.server) == 1
    roaming.wait(0.1)
    assert len(roaming.server) == 0
    assert roaming.server.next_timeout() is None


def confirm(pair) -> None:
    for request in requests_in(pair.server_events):
        pair.server_events += request.connection.confirm_path(request, now=pair.now)


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_device_that_comes_back_at_its_new_address_replaces_its_association(policy):
    pair = pair_of(policy, delay=0.01)
    pair.move(pair.client_end, AWAY)
    pair.client.send(b"x", now=pair.now)
    pair.run_for(10)
    confirm(pair)
    again = pair.connect(device_config(), AWAY)
    pair.run_until(lambda: again.connection.state is ConnectionState.CONNECTED)
    pair.run_for(1)
    again.connection.send(b"y", now=pair.now)
    pair.run_for(1)
    assert pair.server_received()[-1] == b"y"
    if policy is not NEVER:  # there the server believes the first one to be elsewhere
        assert pair.server_causes() == [PeerClose(replaced=True)]
