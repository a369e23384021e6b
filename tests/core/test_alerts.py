"""Walks the table of everything that can be wrong with a message, and holds each row to its alert."""

import pytest

from sansdtls import AlertDescription, AlertLevel, ConnectionState, ConnectionTerminated
from tests.core import raw
from tests.core.alert_table import TABLE as PSK_TABLE
from tests.core.certificate_alert_table import CERTIFICATE_TABLE
from tests.core.misbehaviour import ECDHE_CLIENTS, ECDHE_SERVERS, Point, puppet_at

TABLE = [*PSK_TABLE, *CERTIFICATE_TABLE]


def _id(row):
    return f"{row.point.name}: {row.name}"


@pytest.mark.parametrize("row", TABLE, ids=_id)
def test_each_mistake_is_answered_by_its_alert(row):
    puppet = puppet_at(row)
    before = len(puppet.answers)
    row.send(puppet)
    puppet.wait(0)  # an end that comes of a call on the connection is told by the next timeout, due at once
    alerts = puppet.alerts(puppet.answers[before:])
    causes = puppet.rig.causes
    assert [body for body in puppet.rig.received if body] == []
    if row.alert is None:
        assert alerts == []
        assert causes == []
        return
    level = AlertLevel.FATAL if row.ends else AlertLevel.WARNING
    assert alerts == [(level, row.alert)]
    if not row.ends:
        assert causes == []
        return
    if row.point.name.startswith("SERVER") and row.point is not Point.SERVER_CONNECTED:
        (counted,) = puppet.rig.server.statistics.handshakes_failed
        assert counted.split(".")[0] == row.cause.__name__
    if row.point is Point.SERVER_HELLO_DUE and not puppet.rig.events:
        assert row.alert in (AlertDescription.DECODE_ERROR, AlertDescription.ILLEGAL_PARAMETER)
        # Malformed: never offered to the caller, so there is no connection whose end could be told.
    else:
        (cause,) = causes
        assert isinstance(cause, row.cause)
        assert getattr(cause, "description", row.alert) is row.alert
        if hasattr(cause, "rule"):
            assert len(cause.rule) > 10
    if row.point.name.startswith("SERVER"):
        assert len(puppet.rig.server) == 0
        assert puppet.rig.server.statistics.half_open == 0


@pytest.mark.parametrize("row", [row for row in TABLE if row.alert is not None and row.ends], ids=_id)
def test_after_a_fatal_alert_nothing_more_is_said_or_heard(row):
    puppet = puppet_at(row)
    row.send(puppet)
    puppet.wait(0)
    before = len(puppet.answers), len(puppet.rig.events)
    if row.point.name.startswith("CLIENT") and puppet.keys is not None:
        puppet.give(puppet.data(b"more"))
    puppet.give(puppet.alert(2, 40))
    puppet.give(puppet.change_cipher_spec())
    puppet.wait(300)
    terminations = [event for event in puppet.rig.events if isinstance(event, ConnectionTerminated)]
    assert (len(puppet.answers), len(puppet.rig.events)) == before
    assert len(terminations) <= 1
    for event in terminations:
        assert event.connection.state is ConnectionState.CLOSED
        assert event.connection.next_timeout() is None


def test_no_row_of_the_table_stands_there_twice():
    names = [_id(row) for row in TABLE]
    assert len(names) == len(set(names))
    assert {row.point for row in TABLE} == set(Point)


def test_the_puppets_speak_correctly_when_they_want_to():
    # Without this the table could be green because the puppet never got anywhere.
    for point in Point:
        row = next(row for row in TABLE if row.point is point and not row.config)
        puppet = puppet_at(row)
        assert puppet.alerts() == []
        if point is Point.SERVER_HELLO_DUE:
            puppet.handshake()
        elif point is Point.SERVER_KEY_EXCHANGE:
            puppet.finish()
        elif point is Point.SERVER_FINISHED:
            puppet.read_finished(puppet.give(puppet.finished()))
        elif point is Point.CLIENT_HELLO_SENT:
            puppet.answer_hello()
            puppet.finish()
        elif point is Point.CLIENT_SERVER_HELLO:
            puppet.read_flight_5(puppet.give(puppet.message(raw.SERVER_HELLO_DONE, b"")))
            puppet.finish()
        elif point is Point.CLIENT_FINISHED:
            puppet.give(puppet.finished())
        elif point in ECDHE_CLIENTS:
            go_on_as_client(puppet, point)
        elif point in ECDHE_SERVERS:
            go_on_as_server(puppet, point)
        puppet.give(puppet.data(b"21.5"))
        assert puppet.rig.received == [b"21.5"]


def go_on_as_client(puppet, point):
    """The rest of flight 5, and flight 6."""
    sent = ECDHE_CLIENTS[point]
    rest = (
        [puppet.key_exchange]
        if puppet.with_psk
        else [puppet.certificate, puppet.key_exchange, puppet.certificate_verify]
    )
    records = [send() for send in rest[sent:]]
    puppet.read_flight_6(puppet.give(*records, puppet.change_cipher_spec(), puppet.finished()))


def go_on_as_server(puppet, point):
    """The rest of flight 4, and flight 6."""
    sent = ECDHE_SERVERS[point]
    if sent < 2 and not puppet.with_psk:
        puppet.give(puppet.message(raw.CERTIFICATE, puppet.certificate_body()))
    if sent < 3:
        puppet.give(puppet.message(raw.SERVER_KEY_EXCHANGE, puppet.key_exchange_body()))
    if sent < 4:
        puppet.read_flight_5(puppet.give(puppet.message(raw.SERVER_HELLO_DONE, b"")))
    else:
        puppet.give(puppet.message(raw.NEW_SESSION_TICKET, bytes(6)))
    puppet.finish()
