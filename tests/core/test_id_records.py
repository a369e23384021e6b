"""Records with connection IDs, RFC 9146 §4 and §5: layout, protection, sizes, padding, nonces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import ConnectionIdPolicy, MessageTooLarge, ServerConfig
from sansdtls.crypto.suites import SUITES
from sansdtls.iana import CipherSuite, ContentType
from sansdtls.record.epochs import WriteEpoch
from sansdtls.record.protection import make_protection
from sansdtls.testing import Network, Pair
from sansdtls.wire.record import Record, read_record_untrusted
from tests.core import key_schedule, raw
from tests.core.id_puppets import IdClient, IdProtection, IdServer, offering
from tests.core.puppet import ServerRig

SUITE_NAMES = {
    raw.AES_128_CCM_8: "CCM_8",
    raw.AES_128_CCM: "CCM",
    raw.AES_256_CCM: "CCM-256",
    raw.AES_128_GCM: "GCM",
    raw.AES_256_GCM: "GCM-256",
    raw.CHACHA20: "ChaCha20",
}
each_suite = pytest.mark.parametrize("suite", SUITE_NAMES, ids=SUITE_NAMES.get)


def overhead(suite: int, id_length: int) -> int:
    """Of a record around its content: header, explicit nonce, tag; with an ID also the ID and the type."""
    explicit = 0 if suite == raw.CHACHA20 else 8
    plain = 13 + explicit + key_schedule.SUITES[suite].tag_length
    return plain + (id_length + 1 if id_length else 0)


def protections(suite: int, connection_id: bytes, padding: int = 1, most: int = 2**14):
    """Ours and the tests' own, with the same key."""
    row = SUITES[CipherSuite(suite)]
    key, iv = bytes(range(row.key_length)), bytes(range(50, 50 + row.fixed_iv_length))
    plain = key_schedule.Protection(suite, key, iv)
    return make_protection(row, key, iv, connection_id, padding, most), IdProtection(plain, connection_id)


def parsed(encoded: bytes, id_length: int) -> Record:
    record = read_record_untrusted(encoded, 0, id_length)
    assert record is not None
    assert record.length == len(encoded)
    return record


# --- two implementations --------------------------------------------------------------------------------


@each_suite
@pytest.mark.parametrize("number", [(1, 0), (1, 1), (1, 2**48 - 1), (2, 77)], ids=str)
@pytest.mark.parametrize("kind", [raw.ALERT, raw.HANDSHAKE, raw.APPLICATION_DATA, 27])
def test_we_seal_and_open_what_the_second_implementation_does(suite, number, kind):
    epoch, seq = number
    for id_length in (1, 8, 20, 255):
        ours, theirs = protections(suite, bytes(range(id_length)))
        for length in (0, 1, 15, 16, 500):
            content = bytes(length)  # of zeros, which the padding must not swallow
            sealed = ours.seal(kind, epoch << 48 | seq, content)
            assert sealed == theirs.seal(kind, content, epoch=epoch, seq=seq)
            assert len(sealed) == length + overhead(suite, id_length)
            assert ours.open(parsed(sealed, id_length)) == (kind, content)
            ((record,)) = raw.records(sealed, id_length)
            assert theirs.open(record) == (kind, content)


@given(
    st.sampled_from(list(SUITE_NAMES)),
    st.binary(min_size=1, max_size=255),
    st.integers(1, 255),
    st.binary(max_size=300),
    st.integers(0, 50),
    st.integers(0, 2**48 - 1),
)
def test_any_padding_of_the_peer_is_taken_off_and_nothing_else(
    suite, connection_id, kind, content, zeros, seq
):
    ours, theirs = protections(suite, connection_id)
    sealed = theirs.seal(kind, content, epoch=1, seq=seq, zeros=zeros)
    assert ours.open(parsed(sealed, len(connection_id))) == (kind, content)


@given(
    st.sampled_from(list(SUITE_NAMES)),
    st.binary(min_size=1, max_size=20),
    st.sampled_from([raw.ALERT, raw.APPLICATION_DATA]),
    st.binary(max_size=600),
    st.integers(1, 1024),
    st.integers(601, 1500),
)
def test_padding_fills_the_block_or_what_room_there_is(suite, connection_id, kind, content, padding, most):
    ours, theirs = protections(suite, connection_id, padding, most)
    sealed = ours.seal(kind, 1 << 48, content)
    (record,) = raw.records(sealed, len(connection_id))
    inner = theirs.open_inner(record)
    whole_blocks = -(-(len(content) + 1) // padding) * padding
    assert len(inner) == min(whole_blocks, most)
    assert inner == (content + bytes([kind])).ljust(len(inner), b"\0")
    assert theirs.open(record) == (kind, content)


@pytest.mark.parametrize("kind", [raw.HANDSHAKE, raw.RETURN_ROUTABILITY_CHECK])
def test_handshake_messages_and_path_checks_are_not_padded(kind):
    ours, theirs = protections(raw.AES_128_GCM, b"id", 64)
    assert ours.seal(kind, 1 << 48, b"content") == theirs.seal(kind, b"content", epoch=1, seq=0)


@each_suite
def test_a_record_with_an_id_does_not_open_as_one_without_nor_with_another(suite):
    ours, theirs = protections(suite, b"ab")
    _, of_another = protections(suite, b"ac")
    _, shorter = protections(suite, b"a")
    plain = theirs.plain
    assert ours.open(parsed(of_another.seal(23, b"data", epoch=1, seq=5), 2)) is None
    (record,) = raw.records(of_another.seal(23, b"data", epoch=1, seq=5), 2)
    assert ours.open(parsed(record._replace(connection_id=b"ab").encoded, 2)) is None
    (record,) = raw.records(shorter.seal(23, b"data", epoch=1, seq=5), 1)
    assert ours.open(parsed(record._replace(connection_id=b"ab").encoded, 2)) is None
    (record,) = raw.records(plain.seal(25, b"data", epoch=1, seq=5), 0)
    assert ours.open(parsed(record._replace(connection_id=b"ab").encoded, 2)) is None
    assert ours.open(parsed(theirs.seal(23, b"data", epoch=1, seq=5), 2)) == (23, b"data")


@each_suite
def test_the_version_of_a_record_with_an_id_is_authenticated(suite):
    ours, theirs = protections(suite, b"ab")
    sealed = theirs.seal_inner(b"data\x17", epoch=1, seq=5, version=raw.DTLS_1_0)
    assert ours.open(parsed(sealed, 2)) == (raw.APPLICATION_DATA, b"data")
    (record,) = raw.records(sealed, 2)
    assert ours.open(parsed(record._replace(version=raw.DTLS_1_2).encoded, 2)) is None


def test_the_header_is_laid_out_as_the_rfc_says():
    ours, _ = protections(raw.AES_128_CCM_8, bytes.fromhex("c0ffee"))
    sealed = ours.seal(raw.APPLICATION_DATA, 1 << 48 | 0x0203, b"x" * 5)
    header = "19 fefd 0001 000000000203 c0ffee 0016".replace(" ", "")
    assert sealed[:16].hex() == header
    assert sealed[16:24].hex() == "0001000000000203"  # the explicit nonce is the record number
    assert len(sealed) == 16 + 0x16 == 16 + 8 + 5 + 1 + 8


@pytest.mark.parametrize("id_length", [1, 3, 20, 255])
def test_a_truncated_record_with_an_id_is_none_at_any_length(id_length):
    ours, _ = protections(raw.AES_128_GCM, bytes(id_length))
    sealed = ours.seal(raw.APPLICATION_DATA, 1 << 48, b"data")
    for length in range(len(sealed)):
        assert read_record_untrusted(sealed[:length], 0, id_length) is None
    assert read_record_untrusted(sealed, 0, 0) is None  # nobody expects an ID
    assert read_record_untrusted(b"??" + sealed + b"more", 2, id_length) == parsed(sealed, id_length)


@pytest.mark.parametrize("suite", [raw.AES_128_GCM, raw.CHACHA20])
def test_short_fragments_and_zeros_open_to_nothing(suite):
    ours, theirs = protections(suite, b"id")
    for length in range(40):
        record = raw.record(25, bytes(length), epoch=1, connection_id=b"id")
        assert ours.open(parsed(record, 2)) is None
    for zeros in (1, 2, 100):
        assert ours.open(parsed(theirs.seal_inner(bytes(zeros), epoch=1, seq=0), 2)) == (0, b"")
    assert ours.open(parsed(theirs.seal_inner(b"", epoch=1, seq=0), 2)) == (0, b"")


# --- sizes ----------------------------------------------------------------------------------------------


def id_policy(length: int, **more) -> ConnectionIdPolicy:
    return ConnectionIdPolicy(length=length, **more)


@pytest.mark.parametrize("ours", range(21))
def test_every_pair_of_id_lengths_works_and_every_size_is_exact(ours):
    mtu = 300
    for theirs in range(21):
        pair = Pair(
            offering(id_policy(theirs), mtu=mtu),
            ServerConfig(connection_id=id_policy(ours), mtu=mtu),
            network=Network(mtu=mtu),
        )
        pair.handshake()
        pair.run_for(0.1)
        server = pair.server_connection
        assert (len(server.connection_id), len(pair.client.connection_id)) == (ours, theirs)
        assert server.connection_id == pair.client.peer_connection_id
        assert pair.client.connection_id == server.peer_connection_id
        ends = ((pair.client, "client", ours), (server, "server", theirs))
        for end, who, id_length in ends:
            records = [
                record
                for sent in pair.network.sent_by(who)
                for record in raw.records(sent.data, id_length)
                if record.epoch
            ]
            (finished,) = records
            assert finished.type == (raw.TLS12_CID if id_length else raw.HANDSHAKE)
            assert finished.connection_id == end.peer_connection_id
            assert end.max_payload == mtu - overhead(raw.AES_128_GCM, id_length)
            with pytest.raises(MessageTooLarge):
                end.send(bytes(end.max_payload + 1), now=pair.now)
            for length in (0, 1, end.max_payload):
                end.send(b"x" * length, now=pair.now)
            pair.run_for(0.1)
            datagrams = [sent.data for sent in pair.network.sent_by(who)][-3:]
            sizes = [length + overhead(raw.AES_128_GCM, id_length) for length in (0, 1, end.max_payload)]
            assert [len(data) for data in datagrams] == sizes
            assert sizes[-1] == mtu
            for data in datagrams:
                (record,) = raw.records(data, id_length)
                assert record.type == (raw.TLS12_CID if id_length else raw.APPLICATION_DATA)
                assert record.connection_id == end.peer_connection_id
        assert [len(data) for data in pair.server_received()] == [0, 1, pair.client.max_payload]
        assert [len(data) for data in pair.client_end.received] == [0, 1, server.max_payload]


@pytest.mark.parametrize("first", range(0, 256, 32))
def test_a_client_may_ask_for_an_id_of_any_length(first):
    # CVE-2022-46393: a buffer for the record was too small where the peer's ID was long.
    for length in range(first, first + 32):
        puppet = IdClient(own_id=bytes(length)).handshake()
        connection = puppet.rig.connection
        assert connection.peer_connection_id == puppet.own_id
        assert connection.max_payload == 1232 - overhead(raw.AES_128_GCM, length)
        for data in (b"", b"x" * connection.max_payload):
            connection.send(data, now=0)
            (datagram,) = puppet.rig.sent()
            assert puppet.opened([datagram]) == [(raw.APPLICATION_DATA, data)]
            assert len(datagram) == len(data) + overhead(raw.AES_128_GCM, length) <= 1232
        connection.close(now=0)
        assert puppet.opened(puppet.rig.sent()) == [(raw.ALERT, b"\x01\x00")]


@pytest.mark.parametrize("first", range(0, 256, 32))
def test_a_server_may_ask_for_an_id_of_any_length(first):
    for length in range(first, first + 32):
        puppet = IdServer(own_id=bytes(length)).handshake()
        connection = puppet.rig.connection
        assert connection.peer_connection_id == puppet.own_id
        assert connection.max_payload == 1232 - overhead(raw.AES_128_GCM, length)
        connection.send(b"x" * connection.max_payload, now=0)
        (datagram,) = puppet.rig.sent()
        assert len(datagram) == 1232
        assert puppet.opened([datagram]) == [(raw.APPLICATION_DATA, b"x" * connection.max_payload)]


@pytest.mark.parametrize("id_length", [0, 20, 128, 255])
def test_a_flight_repeated_to_the_smallest_size_still_goes_out_with_a_long_id(id_length):
    # Halved after each second loss down to 256 bytes, less than a header with such an ID and Finished.
    puppet = IdClient(own_id=bytes(id_length))
    puppet.hello()
    answers = puppet.finish()
    flight_5 = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=puppet.message_seq - 1)
    for _ in range(12):
        repeated = puppet.give(puppet.record(raw.HANDSHAKE, flight_5, epoch=1))
        assert puppet.opened(repeated) == puppet.opened(answers) != []
        assert len(repeated) <= 2
        assert max(map(len, repeated)) < 256 + id_length


def test_a_server_passes_over_an_id_that_would_fill_its_datagrams():
    for length, taken in ((128, True), (129, False)):
        puppet = IdClient(ServerRig(ServerConfig(mtu=256)), own_id=bytes(length)).handshake()
        assert puppet.with_ids == taken
        assert len(puppet.rig.connection.peer_connection_id) == length * taken
        assert len(puppet.rig.connection.connection_id) == 8 * taken
        assert puppet.rig.connection.max_payload == 256 - overhead(raw.AES_128_GCM, length * taken)


# --- padding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [1, 2, 7, 16, 64, 255, 600, 1023, 1024])
@pytest.mark.parametrize("limit", [None, 64, 400])
def test_padding_hides_lengths_as_documented_and_keeps_to_every_limit(padding, limit):
    mtu = 700
    pair = Pair(
        offering(id_policy(8, padding=padding), record_size_limit=limit, mtu=mtu),
        ServerConfig(connection_id=id_policy(5, padding=padding), mtu=mtu, record_size_limit=limit),
        network=Network(mtu=mtu),
    )
    pair.handshake()
    for end, who, id_length in ((pair.client, "client", 5), (pair.server_connection, "server", 8)):
        most = min(limit or mtu, mtu - (overhead(raw.AES_128_GCM, id_length) - 1))
        assert end.max_payload == most - 1
        lengths = {0, 1, padding - 1, padding, 2 * padding - 1, end.max_payload - 1, end.max_payload}
        for length in sorted(length for length in lengths if 0 <= length <= end.max_payload):
            end.send(b"x" * length, now=pair.now)
            pair.run_for(0.1)
            datagram = pair.network.sent_by(who)[-1].data
            inner = min(-(-(length + 1) // padding) * padding, most)
            assert len(datagram) == inner + overhead(raw.AES_128_GCM, id_length) - 1 <= mtu
            received = pair.server_received() if who == "client" else pair.client_end.received
            assert received[-1] == b"x" * length
    pair.client.close(now=pair.now)
    pair.run_for(0.1)
    notify = [sent.data for who in ("client", "server") for sent in pair.network.sent_by(who)[-1:]]
    for data, id_length in zip(notify, (5, 8), strict=True):
        most = min(limit or mtu, mtu - (overhead(raw.AES_128_GCM, id_length) - 1))
        assert len(data) == min(-(-3 // padding) * padding, most) + overhead(raw.AES_128_GCM, id_length) - 1


def test_records_without_an_id_are_never_padded():
    pair = Pair(offering(id_policy(0, padding=64)), ServerConfig(connection_id=id_policy(8, padding=64)))
    pair.handshake()
    pair.server_connection.send(b"x", now=pair.now)
    pair.run_for(0.1)
    assert len(pair.network.sent_by("server")[-1].data) == 1 + overhead(raw.AES_128_GCM, 0)


def test_padding_does_not_keep_a_handshake_from_passing_a_narrow_path():
    policy = id_policy(20, padding=1024)
    pair = Pair(offering(policy), ServerConfig(connection_id=policy), network=Network(mtu=300))
    pair.handshake()
    assert max(len(sent.data) for who in ("client", "server") for sent in pair.network.sent_by(who)) <= 300


# --- nonces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [raw.AES_128_GCM, raw.AES_128_CCM_8])
def test_the_explicit_nonce_is_the_record_number_and_none_repeats(suite):
    puppet = IdClient(suite=suite)
    puppet.hello()
    flight = [puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished()]
    puppet.read_finished(puppet.give(*flight))
    finished = raw.fragment(raw.FINISHED, b"?" * 12, message_seq=puppet.message_seq - 1)
    for _ in range(4):  # the last flight again and again
        puppet.give(puppet.record(raw.HANDSHAKE, finished, epoch=1))
    connection = puppet.rig.connection
    for _ in range(20):
        connection.send(b"the same", now=0)
    connection.close(now=0)
    puppet.answers += puppet.rig.sent()
    sealed = [
        record
        for datagram in puppet.answers
        for record in raw.records(datagram, puppet.id_length)
        if record.epoch == 1
    ]
    assert len(sealed) == 1 + 4 + 20 + 1
    assert [record.seq for record in sealed] == list(range(len(sealed)))
    for record in sealed:
        assert record.payload[:8] == b"\x00\x01" + record.seq.to_bytes(6, "big")
    assert len({record.payload for record in sealed}) == len(sealed)


def test_one_counter_numbers_all_records_of_an_epoch_whatever_their_type():
    row = SUITES[CipherSuite(raw.AES_128_GCM)]
    key, iv = bytes(row.key_length), bytes(row.fixed_iv_length)
    epoch = WriteEpoch(1, make_protection(row, key, iv, b"id"), connection_id=b"id")
    kinds = [ContentType.HANDSHAKE, ContentType.APPLICATION_DATA, ContentType.ALERT] * 5
    numbers = [raw.records(epoch.record(kind, b"x"), 2)[0].seq for kind in kinds]
    assert numbers == list(range(15))
    assert epoch.overhead == overhead(raw.AES_128_GCM, 2)
