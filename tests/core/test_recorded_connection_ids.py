"""A session of Mbed TLS with itself that uses connection IDs, read twice: with our code, and with the tests' own.

The recording was made by others: where records open and seal again to the very bytes, and Finished is what the
transcript says, our reading of RFC 9146 is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
from cryptography.exceptions import InvalidTag

from sansdtls import DiscardReason
from sansdtls.config import Limits
from sansdtls.crypto.suites import SUITES
from sansdtls.handshake.extensions import (
    read_client_extensions_untrusted,
    read_server_extensions_untrusted,
)
from sansdtls.handshake.keys import HandshakeParameters, derive_epoch_keys, verify_data
from sansdtls.iana import CipherSuite, ContentType, HandshakeType
from sansdtls.wire.handshake import HandshakeMessage, decode_fragments_untrusted, encode_message
from sansdtls.wire.messages import ClientHello, ServerHello
from sansdtls.wire.record import Record, read_record_untrusted
from tests.core import raw
from tests.core.id_puppets import CONNECTION_ID, IdProtection
from tests.core.key_schedule import Keys
from tests.core.puppet import IDENTITY, KEY, ServerRig
from tests.recordings import recorded_datagrams, recorded_secrets

if TYPE_CHECKING:
    from sansdtls.record.epochs import ReadEpoch, WriteEpoch

NAME, PORT = "mbedtls-cid-psk", 22504
CLIENTS_ID, SERVERS_ID = bytes.fromhex("c0ffee"), bytes.fromhex("beef")
"""What each wants to find in records to it."""
GRANULARITY = 16
"""Mbed TLS pads what it seals to a multiple of so many bytes."""
CLOSE_NOTIFY = b"\x01\x00"


@attrs.define
class Session:
    """All records in order, as our codec reads them; True = the client's."""

    client_random: bytes
    master_secret: bytes
    records: list[tuple[bool, Record]]
    raw_records: list[tuple[bool, raw.Record]]

    @property
    def hellos(self) -> tuple[ClientHello, ServerHello]:
        """The hello with the cookie, and its answer."""
        bodies = {
            (of_client, message.message_type): message.body
            for of_client, message in self.messages(0)
            if message.message_seq >= int(of_client)
        }
        return (
            ClientHello.decode_untrusted(bodies[True, HandshakeType.CLIENT_HELLO]),
            ServerHello.decode_untrusted(bodies[False, HandshakeType.SERVER_HELLO]),
        )

    def messages(self, epoch: int) -> list[tuple[bool, HandshakeMessage]]:
        return [
            (of_client, HandshakeMessage(fragment.message_type, fragment.message_seq, fragment.body))
            for of_client, record in self.records
            if record.epoch == epoch and record.content_type == ContentType.HANDSHAKE
            for fragment in decode_fragments_untrusted(record.fragment)
        ]

    @property
    def sealed(self) -> list[tuple[bool, Record]]:
        return [(of_client, record) for of_client, record in self.records if record.epoch]

    def epochs(self, *, of_client: bool) -> tuple[WriteEpoch, ReadEpoch]:
        """How this side seals, and how the other one opens it."""
        client_hello, server_hello = self.hellos
        ids = (CLIENTS_ID, SERVERS_ID)
        parameters = [
            HandshakeParameters(
                SUITES[CipherSuite.TLS_PSK_WITH_AES_128_CCM_8],
                client_hello.random,
                server_hello.random,
                session_hash=None,
                is_client=is_client,
                limits=Limits(),
                connection_id=ids[not is_client],
                peer_connection_id=ids[is_client],
                padding=GRANULARITY,
            )
            for is_client in (of_client, not of_client)
        ]
        ours, theirs = (derive_epoch_keys(each, self.master_secret) for each in parameters)
        return ours.write, theirs.read


def id_length(*, of_client: bool) -> int:
    return len(SERVERS_ID if of_client else CLIENTS_ID)


@pytest.fixture(scope="module")
def session() -> Session:
    ((client_random, master_secret),) = recorded_secrets(NAME).items()
    found = Session(client_random, master_secret, [], [])
    for datagram in recorded_datagrams(NAME):
        of_client = datagram.destination_port == PORT
        length = id_length(of_client=of_client)
        offset = 0
        while offset < len(datagram.payload):
            record = read_record_untrusted(datagram.payload, offset, length)
            assert record is not None
            found.records.append((of_client, record))
            offset += record.length
        assert offset == len(datagram.payload)
        found.raw_records += [(of_client, each) for each in raw.records(datagram.payload, length)]
    return found


@pytest.fixture(scope="module")
def independent(session: Session) -> dict[bool, IdProtection]:
    """The tests' own record protection, by who seals: True = the client."""
    client_hello, server_hello = session.hellos
    keys = Keys(raw.AES_128_CCM_8, session.master_secret, client_hello.random, server_hello.random)
    return {True: IdProtection(keys.client, SERVERS_ID), False: IdProtection(keys.server, CLIENTS_ID)}


def test_each_datagram_is_whole_records_that_encode_to_the_same_bytes(session: Session):
    payloads = b"".join(datagram.payload for datagram in recorded_datagrams(NAME))
    assert b"".join(each.encoded for _, each in session.raw_records) == payloads
    assert len(session.records) == 16
    for (_, ours), (_, theirs) in zip(session.records, session.raw_records, strict=True):
        assert (ours.content_type, ours.version, ours.epoch, ours.sequence_number) == theirs[:4]
        assert (ours.fragment, ours.connection_id) == (theirs.payload, theirs.connection_id)
        assert ours.length == len(theirs.encoded)


def test_exactly_what_is_protected_carries_the_type_tls12_cid_and_the_id_of_its_receiver(session: Session):
    for of_client, record in session.records:
        expected = (SERVERS_ID if of_client else CLIENTS_ID) if record.epoch else b""
        assert record.connection_id == expected
        assert (record.content_type == ContentType.TLS12_CID) == bool(record.epoch)


def test_the_ids_are_what_the_hellos_agreed_on(session: Session):
    client_hello, server_hello = session.hellos
    assert client_hello.random == session.client_random
    assert dict(client_hello.extensions)[CONNECTION_ID] == b"\x03" + CLIENTS_ID
    assert dict(server_hello.extensions)[CONNECTION_ID] == b"\x02" + SERVERS_ID
    offered = read_client_extensions_untrusted(client_hello.extensions)
    answered = read_server_extensions_untrusted(server_hello.extensions)
    assert (offered.connection_id, answered.connection_id) == (CLIENTS_ID, SERVERS_ID)
    assert not offered.return_routability_check
    # RFC 6347 §4.2.1: the second hello is the first one with the cookie.
    first, second = (
        ClientHello.decode_untrusted(message.body) for of_client, message in session.messages(0)[:3:2]
    )
    assert attrs.evolve(first, cookie=second.cookie) == second == client_hello
    assert first.encode() == session.messages(0)[0][1].body


def test_every_protected_record_opens_with_our_code_and_with_the_second_implementation(
    session: Session, independent: dict[bool, IdProtection]
):
    said = []
    read = {of_client: session.epochs(of_client=of_client)[1] for of_client in (True, False)}
    for (of_client, record), (_, theirs) in zip(session.records, session.raw_records, strict=True):
        if record.epoch:
            opened = read[of_client].open(record)
            assert opened == independent[of_client].open(theirs)
            assert opened is not None
            said.append((of_client, *opened))
    assert [(of_client, kind) for of_client, kind, _ in said] == [
        (True, raw.HANDSHAKE),
        (False, raw.HANDSHAKE),
        (True, raw.APPLICATION_DATA),
        (False, raw.APPLICATION_DATA),
        (False, raw.ALERT),
        (True, raw.APPLICATION_DATA),
        (True, raw.ALERT),
    ]
    for of_client, kind, content in said:
        assert (kind == raw.ALERT) <= (content == CLOSE_NOTIFY)
        if kind == raw.APPLICATION_DATA:
            assert content.startswith(b"GET / HTTP/1.0" if of_client else b"HTTP/1.0 200 OK")
    assert read[True].failed_opens == read[False].failed_opens == 0


def test_what_is_sealed_again_is_what_was_recorded(session: Session, independent: dict[bool, IdProtection]):
    # Mbed TLS takes the record number as explicit nonce, as we do. It pads Finished too, which we never do.
    sealed_by_us = 0
    epochs = {of_client: session.epochs(of_client=of_client) for of_client in (True, False)}
    for (of_client, record), (_, theirs) in zip(session.records, session.raw_records, strict=True):
        if not record.epoch:
            continue
        second, (write, read) = independent[of_client], epochs[of_client]
        inner = second.open_inner(theirs)
        assert len(inner) % GRANULARITY == 0
        assert theirs.payload[:8] == record.number.to_bytes(8, "big")
        assert second.seal_inner(inner, epoch=1, seq=theirs.seq) == theirs.encoded
        opened = read.open(record)
        assert opened is not None
        assert write.next_sequence_number == record.sequence_number
        again = write.record(*opened)
        if opened[0] == raw.HANDSHAKE:
            assert len(again) == len(theirs.encoded) - inner[::-1].index(raw.HANDSHAKE)
        else:
            assert again == theirs.encoded
            sealed_by_us += 1
    assert sealed_by_us == 5


def test_a_changed_byte_anywhere_or_the_other_sides_keys_open_nothing(
    session: Session, independent: dict[bool, IdProtection]
):
    (of_client, record), theirs = (
        session.sealed[2],
        next(each for is_client, each in session.raw_records if is_client and each.seq == 1 and each.epoch),
    )
    _, read = session.epochs(of_client=of_client)
    for position in range(record.length):
        changed = bytearray(theirs.encoded)
        changed[position] ^= 1
        found = read_record_untrusted(bytes(changed), 0, len(SERVERS_ID))
        if found is not None:  # the header may be none any more
            same = found.connection_id == record.connection_id
            assert not same or read.open(found) is None, position
    assert session.epochs(of_client=False)[1].open(record) is None
    with pytest.raises(InvalidTag):
        IdProtection(independent[False].plain, SERVERS_ID).open(theirs)


@pytest.mark.parametrize("of_client", [True, False], ids=["client", "server"])
def test_finished_proves_the_transcript(session: Session, independent, of_client: bool):
    suite = SUITES[CipherSuite.TLS_PSK_WITH_AES_128_CCM_8]
    # Hello without cookie and HelloVerifyRequest are outside.
    transcript = b"".join(encode_message(message) for _, message in session.messages(0)[2:])
    finished = {}
    for is_client, theirs in session.raw_records:
        if theirs.epoch:
            kind, content = independent[is_client].open(theirs)
            if kind == raw.HANDSHAKE:
                finished[is_client] = content
    ticket = [message for _, message in session.messages(0) if message.message_type == raw.NEW_SESSION_TICKET]
    without_ticket = transcript.removesuffix(encode_message(ticket[0]))
    covered = without_ticket if of_client else without_ticket + finished[True] + encode_message(ticket[0])
    label = b"client finished" if of_client else b"server finished"
    assert finished[of_client][:4] == b"\x14\x00\x00\x0c"
    assert finished[of_client][12:] == verify_data(suite, session.master_secret, label, covered)
    assert finished[of_client][12:] == Keys(
        raw.AES_128_CCM_8, session.master_secret, session.client_random, b""
    ).verify_data("client" if of_client else "server", covered)


def test_the_master_secret_follows_from_the_key(session: Session):
    client_hello, server_hello = session.hellos
    up_to_key_exchange = b"".join(encode_message(message) for _, message in session.messages(0)[2:-1])
    keys = Keys.from_psk(raw.AES_128_CCM_8, KEY, client_hello.random, server_hello.random, up_to_key_exchange)
    assert keys.master_secret == session.master_secret


def test_our_server_takes_the_recorded_client_hellos_up_to_the_cookie(session: Session):
    # The cookie is ours, so that the rest of the recording goes nowhere; the hello itself is answered in full.
    rig = ServerRig()
    first, second = [
        datagram.payload for datagram in recorded_datagrams(NAME) if datagram.destination_port == PORT
    ][:2]
    ((_, body),) = raw.plaintext_messages(rig.give(first)).values()
    cookie = raw.parse_cookie(body)
    assert len(cookie) == 32 == len(session.hellos[0].cookie)
    answers = rig.give(second.replace(session.hellos[0].cookie, cookie))
    messages = raw.plaintext_messages(answers)
    hello = raw.parse_server_hello(messages[1][1])
    extensions = dict(hello.extensions or ())
    assert extensions[CONNECTION_ID][0] == 8 == len(extensions[CONNECTION_ID]) - 1
    assert [kind for kind, _ in messages.values()] == [raw.SERVER_HELLO, raw.SERVER_HELLO_DONE]
    third = [each.payload for each in recorded_datagrams(NAME) if each.destination_port == PORT][2]
    assert rig.give(third) == []
    # Its key exchange is good, its Finished carries an ID that is nobody's here.
    assert rig.server.statistics.records_discarded == {DiscardReason.UNKNOWN_CONNECTION_ID: 1}
    assert [event.identity for event in rig.events if hasattr(event, "identity")] == [IDENTITY]
