"""How large records may be: record_size_limit and max_fragment_length, both ways and all the time."""

import pytest

from sansdtls import (
    AlertDescription,
    MessageTooLarge,
    ProtocolViolation,
)
from sansdtls.testing import Network, Pair
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import (
    EcdheClient,
    EcdheServer,
    asking_config,
    client_config,
    psk_config,
    server_config,
)
from tests.core.puppet import ClientRig, ServerRig

OVERHEAD = 13 + 8 + 16
"""Of a record of AES-GCM: header, explicit nonce, tag."""
RECORD_SIZE_LIMIT, MAX_FRAGMENT_LENGTH, SERVER_NAME = 28, 1, 0


def plaintext_lengths(pair: Pair, who: str) -> list[int]:
    """Of every record that ``who`` has sent, but for the hellos; protected ones with AES-GCM."""
    return [
        len(record.payload) - (8 + 16 if record.epoch else 0)
        for datagram in pair.network.sent_by(who)
        for record in raw.records(datagram.data)
        if (record.type, record.epoch, record.payload[0]) != (raw.HANDSHAKE, 0, raw.CLIENT_HELLO)
    ]


def exchange(pair: Pair) -> None:
    """As much as fits a record, both ways."""
    pair.handshake()
    pair.run_for(0.1)
    for end in (pair.client, pair.server_connection):
        end.send(b"x" * end.max_payload, now=pair.now)
        with pytest.raises(MessageTooLarge):
            end.send(b"x" * (end.max_payload + 1), now=pair.now)
    pair.run_for(1)
    assert pair.server_received() == [b"x" * pair.client.max_payload]
    assert pair.client_end.received == [b"x" * pair.server_connection.max_payload]


@pytest.mark.parametrize("mine", [None, 64, 200, 1000, 16_384])
@pytest.mark.parametrize("theirs", [None, 64, 333])
def test_record_size_limit_bounds_every_record_in_both_directions(mine, theirs):
    # RFC 8449 §4: each side's limit is for what it receives. The server answers only if it was offered.
    pair = Pair(
        client_config(credentials=(shown("p256").certificate(),), record_size_limit=mine),
        asking_config(record_size_limit=theirs),
    )
    exchange(pair)
    mtu = 1232 - OVERHEAD
    assert pair.server_connection.max_payload == min(mine or mtu, mtu)
    assert pair.client.max_payload == (mtu if mine is None else min(theirs or mtu, mtu))
    assert max(plaintext_lengths(pair, "server")) <= (mine or 1232)
    assert max(plaintext_lengths(pair, "client")) <= (theirs if mine and theirs else 1232)


@pytest.mark.parametrize("length", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("mtu", [600, 9000])
def test_max_fragment_length_bounds_every_record_in_both_directions(length, mtu):
    # RFC 6066 §4: one length for both sides
    pair = Pair(
        client_config(credentials=(shown("rsa").certificate(),) * 3, max_fragment_length=length, mtu=mtu),
        asking_config(mtu=mtu),
    )
    exchange(pair)
    assert pair.client.max_payload == pair.server_connection.max_payload == min(length, mtu - OVERHEAD)
    assert max(plaintext_lengths(pair, "server")) <= length
    assert max(plaintext_lengths(pair, "client")) <= length


@pytest.mark.parametrize(
    "config", [{"record_size_limit": 64}, {"max_fragment_length": 512}], ids=lambda config: next(iter(config))
)
def test_a_repeated_last_flight_keeps_to_the_limit_too(config):
    identity = b"i" * 900  # makes a ticket of as many bytes
    network = Network()
    pair = Pair(psk_config(psk_identity=identity, **config), keys={identity: [Pair.KEY]}, network=network)
    network.add_tap(
        lambda sent: (
            [] if sent.source == "server" and sent.time < 2 and b"\x14\xfe\xfd" in sent.data else [sent.data]
        )
    )
    pair.handshake()
    pair.run_for(1)
    assert pair.server_connection.statistics.retransmissions > 0
    assert max(plaintext_lengths(pair, "server")) <= next(iter(config.values()))


def test_a_repeated_last_flight_becomes_smaller_where_the_path_takes_no_large_datagrams():
    # RFC 6347 §4.1.1.1; the ticket is as large as the identity that it holds.
    identity = b"i" * 900
    network = Network(mtu=700)
    config = psk_config(psk_identity=identity, mtu=600)
    pair = Pair(config, keys={identity: [Pair.KEY]}, network=network)
    pair.handshake()
    assert pair.now < 10
    assert pair.client.session is not None
    assert len(pair.client.session.ticket) > 900


def test_record_size_limit_takes_the_place_of_max_fragment_length():
    # RFC 8449 §5
    extensions = ((MAX_FRAGMENT_LENGTH, b"\x01"), (RECORD_SIZE_LIMIT, b"\x01\x00"))
    client = EcdheClient(ServerRig(server_config(record_size_limit=300)), more_extensions=extensions)
    client.handshake()
    answered = dict(client.server_hello.extensions or ())
    assert answered[RECORD_SIZE_LIMIT] == (300).to_bytes(2, "big")
    assert MAX_FRAGMENT_LENGTH not in answered
    assert client.rig.connection.max_payload == 256


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("extension", [RECORD_SIZE_LIMIT, MAX_FRAGMENT_LENGTH])
@pytest.mark.parametrize("excess", [0, 1])
def test_a_record_above_the_limit_is_answered_with_record_overflow(role, extension, excess):
    puppet: EcdheClient | EcdheServer
    limit = 512
    value = b"\x01" if extension == MAX_FRAGMENT_LENGTH else limit.to_bytes(2, "big")
    if role == "server":
        rig = ServerRig(server_config(record_size_limit=limit))
        puppet = EcdheClient(rig, more_extensions=((extension, value),))
    else:
        names = {RECORD_SIZE_LIMIT: "record_size_limit", MAX_FRAGMENT_LENGTH: "max_fragment_length"}
        client_rig = ClientRig(client_config(**{names[extension]: limit}))
        puppet = EcdheServer(client_rig, more_extensions=((extension, value),))
    puppet.handshake()
    puppet.give(puppet.data(b"x" * (limit + excess)))
    if excess:
        assert puppet.alerts() == [(2, AlertDescription.RECORD_OVERFLOW)]
        (cause,) = puppet.rig.causes
        assert isinstance(cause, ProtocolViolation)
        assert puppet.rig.received == []
    else:
        assert puppet.rig.received == [b"x" * limit]
        assert puppet.rig.causes == []


@pytest.mark.parametrize(
    ("offered", "answered", "alert"),
    [
        ({"max_fragment_length": 512}, [(MAX_FRAGMENT_LENGTH, b"\x02")], AlertDescription.ILLEGAL_PARAMETER),
        ({"max_fragment_length": 512}, [(MAX_FRAGMENT_LENGTH, b"\x05")], AlertDescription.ILLEGAL_PARAMETER),
        ({"max_fragment_length": 512}, [(MAX_FRAGMENT_LENGTH, b"")], AlertDescription.DECODE_ERROR),
        (
            {"max_fragment_length": 512, "record_size_limit": 100},
            [(MAX_FRAGMENT_LENGTH, b"\x01"), (RECORD_SIZE_LIMIT, b"\x02\x00")],
            AlertDescription.ILLEGAL_PARAMETER,
        ),
        ({"record_size_limit": 100}, [(RECORD_SIZE_LIMIT, b"\x00\x3f")], AlertDescription.ILLEGAL_PARAMETER),
        ({"record_size_limit": 100}, [(RECORD_SIZE_LIMIT, b"\x01")], AlertDescription.DECODE_ERROR),
        ({"server_name": "host"}, [(SERVER_NAME, b"\0")], AlertDescription.DECODE_ERROR),
    ],
)
def test_an_answer_that_does_not_fit_the_offer_is_refused(offered, answered, alert):
    server = EcdheServer(ClientRig(client_config(**offered)), more_extensions=tuple(answered))
    server.give(*server.flight_4())
    assert server.alerts() == [(2, alert)]
