"""Sessions in themselves: what is in a ticket and who can read it, how long they live, how they are saved."""

from functools import partial

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import (
    CipherSuite,
    ConfigError,
    ConnectionState,
    ConnectionTerminated,
    ResumptionPolicy,
    SecretDerived,
    Session,
)
from sansdtls.handshake.resumption import Sessions
from sansdtls.testing import Client, CounterEntropy, Fleet, Network, Pair
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import EcdheClient, asking_config, client_config, server_config
from tests.core.puppet import ServerRig
from tests.core.resuming import KINDS, WANTED, WAYS, connect, made, new_fleet, resumed, session_of

each_way = pytest.mark.parametrize("way", WAYS)

# --- tickets that are not ours, or not ours any more ----------------------------------------------------


def psk_ticket(rig: ServerRig) -> bytes:
    return EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_GCM, more_extensions=((35, b""),)).handshake().ticket


def leads_to_a_full_handshake(rig: ServerRig, ticket: bytes, number: int) -> bool:
    """Whether the server answers the ticket with a new key exchange; with an alert would be wrong."""
    random = number.to_bytes(32, "big")
    client = EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_GCM, random=random, path=f"path {number}")
    answers = client.offer(ticket=ticket, session_id=b"any")
    answers += client.wait(0)  # the question whether the identity is still known, and its answer
    assert client.alerts() == []
    kinds = [kind for kind, _ in raw.plaintext_messages(answers).values()]
    assert kinds in ([raw.SERVER_HELLO, raw.SERVER_KEY_EXCHANGE, raw.SERVER_HELLO_DONE], [raw.SERVER_HELLO])
    return len(kinds) > 1


def test_a_ticket_with_any_bit_changed_leads_to_a_full_handshake():
    rig = ServerRig()
    ticket = psk_ticket(rig)
    assert not leads_to_a_full_handshake(rig, ticket, 10_000)
    for bit in range(0, 8 * len(ticket), 5):  # every byte
        changed = bytearray(ticket)
        changed[bit // 8] ^= 1 << bit % 8
        assert leads_to_a_full_handshake(rig, bytes(changed), bit), bit
    assert rig.causes == []


def test_a_ticket_cut_short_or_made_longer_leads_to_a_full_handshake():
    rig = ServerRig()
    ticket = psk_ticket(rig)
    for length in range(1, len(ticket)):
        assert leads_to_a_full_handshake(rig, ticket[:length], length)
    for number, more in enumerate((b"\0", ticket, bytes(1000))):
        assert leads_to_a_full_handshake(rig, ticket + more, 10_000 + number)
    assert rig.causes == []


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_as_a_ticket_lead_to_a_full_handshake(ticket):
    assert leads_to_a_full_handshake(ServerRig(), ticket, 1)


@each_way
def test_a_session_of_another_server_leads_to_a_full_handshake(way):
    config = made(new_fleet(seed=1), "certificate", way)
    client = connect(new_fleet(seed=2), config)
    assert not resumed(client)


@each_way
def test_a_session_is_not_resumed_after_its_lifetime(way):
    fleet = new_fleet(resumption=ResumptionPolicy(lifetime=1000))
    config = made(fleet, "ECDHE_PSK", way)
    fleet.run_for(990)
    client = connect(fleet, config, path="in time")
    assert resumed(client)
    # Resuming does not make it younger.
    later = attrs.evolve(config, session=session_of(client))
    fleet.run_for(15)
    for again in (config, later):
        assert not resumed(connect(fleet, again, path="too late"))
    assert fleet.server.statistics.handshakes_failed == {}


def test_a_ticket_says_how_long_it_is_good():
    config = made(new_fleet(resumption=ResumptionPolicy(lifetime=1000)))
    assert config.session is not None
    assert config.session.lifetime == 1000


def name_of_key(session: Session) -> bytes:
    return session.ticket[:16]


def test_ticket_keys_seal_for_one_lifetime_and_open_for_two():
    fleet = new_fleet(resumption=ResumptionPolicy(lifetime=1000))
    fleet.run_for(900)
    old = made(fleet)
    fleet.run_for(200)  # the key is replaced; the session is 200 seconds old
    assert resumed(connect(fleet, old, path="again"))
    new = made(fleet)
    assert old.session is not None
    assert new.session is not None
    assert name_of_key(old.session) != name_of_key(new.session)
    fleet.run_for(790)
    assert resumed(connect(fleet, new, path="again"))
    for _ in range(3):
        fleet.run_for(2500)
        again = made(fleet)
        assert again.session is not None
        assert name_of_key(again.session) not in (name_of_key(old.session), name_of_key(new.session))
        assert resumed(connect(fleet, again, path="again"))


def test_a_key_that_sealed_nothing_for_two_lifetimes_is_gone():
    policy = ResumptionPolicy(lifetime=100)
    for idle in (199.0, 201.0, 1050.0):
        sessions = Sessions(policy, CounterEntropy(1), 0.0)
        ticket = sessions.seal(A_SESSION, 99.0)
        younger = attrs.evolve(A_SESSION, created_at=10_000)
        alive = sessions.seal(younger, 99.5)
        assert sessions.open_untrusted(ticket, idle) is None  # its session is too old in any case
        assert (sessions.open_untrusted(alive, idle) is not None) is (idle < 200)


@each_way
def test_replacing_the_configuration_keeps_sessions_unless_it_changes_how_they_are_kept(way):
    fleet = new_fleet()
    config = made(fleet, "certificate", way)
    fleet.server.replace_config(server_config(**WANTED), now=fleet.now)
    assert resumed(connect(fleet, config, path="again"))
    shorter = server_config(**WANTED, resumption=ResumptionPolicy(lifetime=50))
    fleet.server.replace_config(shorter, now=fleet.now)
    assert not resumed(connect(fleet, config, path="and again"))
    fleet.server.replace_config(server_config(**WANTED, resumption=None), now=fleet.now)
    client = connect(fleet, config, path="the last time")
    assert not resumed(client)
    assert client.connection.session is None


# --- the cache ------------------------------------------------------------------------------------------


def test_the_cache_is_bounded_and_the_session_used_least_recently_makes_room():
    fleet = new_fleet(resumption=ResumptionPolicy(cache_size=3))
    one, two, three = (made(fleet, "ECDHE_PSK", "session ID") for _ in range(3))
    assert resumed(connect(fleet, one, path="again"))  # and so used more recently than two
    four = made(fleet, "ECDHE_PSK", "session ID")
    for config, kept in ((one, True), (three, True), (four, True)):
        assert resumed(connect(fleet, config, path="again")) is kept
    assert not resumed(connect(fleet, two, path="again"))


def test_a_thousand_sessions_take_the_room_of_a_hundred():
    sessions = Sessions(ResumptionPolicy(cache_size=100), CounterEntropy(1), 0.0)
    for number in range(1000):
        sessions.keep(number.to_bytes(32, "big"), A_SESSION)
        assert len(sessions) == min(number + 1, 100)
    assert sessions.find((0).to_bytes(32, "big"), 1.0) is None
    assert sessions.find((999).to_bytes(32, "big"), 1.0) == A_SESSION


def test_tickets_take_no_room():
    fleet = new_fleet(resumption=ResumptionPolicy(cache_size=1))
    kept = made(fleet, "ECDHE_PSK", "session ID")
    tickets = [made(fleet) for _ in range(5)]
    for config in [*tickets, kept]:
        assert resumed(connect(fleet, config, path="again"))


def test_a_session_too_large_for_a_ticket_is_not_resumed_but_completes():
    chain = (*shown("p256").chain, *[shown("rsa").chain[0]] * 8)
    credential = attrs.evolve(shown("p256").certificate(), chain=chain)
    fleet = Fleet(asking_config())
    client = connect(fleet, client_config(credentials=(credential,)))
    assert client.connection.state is ConnectionState.CONNECTED
    assert client.connection.session is None


# --- before the cookie ----------------------------------------------------------------------------------


def test_nothing_is_looked_up_for_a_hello_without_a_valid_cookie():
    # CVE-2022-2576 Californium: the cookie was skipped for resumption.
    rig = ServerRig()
    ticket = psk_ticket(rig)
    events = len(rig.events)
    for cookie in (b"", b"c" * 32):
        client = EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_GCM, random=b"2" * 32, path="spoofed")
        client.more_extensions = ((35, ticket),)
        hello = client.message(raw.CLIENT_HELLO, client.hello_body(session_id=b"any", cookie=cookie))
        (answer,) = client.give(hello)
        assert len(answer) <= len(hello)
        assert [kind for kind, _ in raw.plaintext_messages([answer]).values()] == [raw.HELLO_VERIFY_REQUEST]
    assert len(rig.events) == events
    assert rig.server.statistics.half_open == 0


def test_a_hello_whose_ticket_was_changed_after_the_cookie_gets_a_new_cookie():
    rig = ServerRig()
    ticket = psk_ticket(rig)
    client = EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_GCM, random=b"2" * 32)
    client.more_extensions = ((35, b""),)
    client.get_cookie()
    client.more_extensions = ((35, ticket),)
    answers = client.give(client.message(raw.CLIENT_HELLO, client.hello_body()))
    assert [kind for kind, _ in raw.plaintext_messages(answers).values()] == [raw.HELLO_VERIFY_REQUEST]


# --- loss -----------------------------------------------------------------------------------------------


@each_way
def test_a_resumed_handshake_survives_a_terrible_network(way):
    completed = abbreviated = 0
    for seed in range(40):
        fleet = new_fleet(Network(seed), seed=seed)
        config = made(fleet, "certificate", way, mtu=256)
        network = fleet.network
        network.loss = network.duplicate = network.reorder = 0.2
        network.delay, network.hold_back = 0.02, 0.5
        client = fleet.connect(config, "again")
        fleet.run_until(partial(_is_over, client))
        if client.connection.state is not ConnectionState.CONNECTED:
            continue
        for number in range(10):
            client.connection.send(b"%d" % number, now=fleet.now)
        fleet.run_until(partial(_has, fleet, 2), deadline=120)
        completed += 1
        abbreviated += resumed(client)
        fleet.run_for(5)
        received = fleet.server_received("again")
        assert len(received) == len(set(received))
        assert not [event for event in client.events if isinstance(event, ConnectionTerminated)]
    assert completed >= 38
    assert abbreviated == completed


@pytest.mark.parametrize("lost", [1, 2, 3])
@each_way
def test_the_client_repeats_the_last_flight_of_an_abbreviated_handshake(way, lost):
    fleet = new_fleet(Network(delay=0.01))
    config = made(fleet, "certificate", way)
    client = fleet.connect(config, "again")
    # After the two hellos comes flight 5b; the first copies of it are lost.
    fleet.network.drop("again", *range(2, 2 + lost))
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)
    assert len(fleet.server) == 1
    fleet.run_until(lambda: len(fleet.server) == 2, deadline=20)
    assert client.connection.statistics.retransmissions == lost
    client.connection.send(b"21.5", now=fleet.now)
    fleet.run_for(1)
    assert fleet.server_received("again") == [b"21.5"]


@each_way
def test_data_that_overtakes_the_last_flight_waits_for_it(way):
    fleet = new_fleet()
    config = made(fleet, "certificate", way)
    client = fleet.connect(config, "again")
    held: list[bytes] = []

    def hold_the_third(sent):
        if sent.source == "again" and sent.number == 2:
            held.append(sent.data)
            return []
        return [sent.data]

    fleet.network.add_tap(hold_the_third)
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)
    client.connection.send(b"21.5", now=fleet.now)
    fleet.run_for(0.1)
    assert fleet.server_received("again") == []
    fleet.network.inject("again", "server", held[0])
    fleet.run_for(0.1)
    assert fleet.server_received("again") == [b"21.5"]


# --- nothing to read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_ticket_is_opaque_and_never_the_same_twice(kind):
    fleet = new_fleet()
    one, two = made(fleet, kind), made(fleet, kind)
    assert one.session is not None
    assert two.session is not None
    ticket = one.session.ticket
    for hidden in (
        one.session.master_secret,
        b"dev1",
        shown("p256").chain[0][-40:],
        shown("ed25519").spki[-30:],
    ):
        assert hidden not in ticket
    overlap = {ticket[at : at + 8] for at in range(16, len(ticket) - 8)}
    assert not [
        at for at in range(16, len(two.session.ticket) - 8) if two.session.ticket[at : at + 8] in overlap
    ]


def test_no_repr_shows_a_secret_of_sessions_or_credentials():
    credential, raw_key = shown("p256").certificate("host"), shown("ed25519").raw_public_key()
    config = client_config(credentials=(credential, raw_key), log_secrets=True, server_name="host")
    pair = Pair(config, asking_config())
    pair.handshake()
    session = pair.client.session
    assert session is not None
    again = Pair(attrs.evolve(config, session=session), asking_config())
    (secret,) = [event.secret for event in pair.client_events if isinstance(event, SecretDerived)]
    assert secret == session.master_secret
    private = shown("p256").private.private_numbers().private_value  # type: ignore[union-attr]
    hidden = [
        secret,
        session.ticket,
        private.to_bytes(32, "big"),
        shown("ed25519").private.private_bytes_raw(),  # type: ignore[union-attr]
    ]
    things = [
        session,
        credential,
        raw_key,
        credential.key,
        raw_key.key,
        config,
        attrs.evolve(config, session=session),
        asking_config(),
        pair.client,
        pair.client.peer,
        pair.server_connection.peer,
        pair.client.negotiated,
        *pair.client_events,
        *pair.server_events,
        again.client,
        pair.server,
    ]
    text = "".join(f"{thing!r} {thing}" for thing in things)
    assert "PRIVATE" not in text
    assert str(private) not in text
    for each in hidden:
        assert each.hex() not in text
        assert repr(each)[2:-1] not in text
        assert repr(each[:12])[2:-1] not in text


# --- saved sessions -------------------------------------------------------------------------------------

A_SESSION = Session(
    cipher_suite=CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256,
    master_secret=bytes(range(48)),
    psk_identity=b"dev1",
    ticket=b"the ticket",
)
optional_bytes = st.none() | st.binary(max_size=60)
sessions = st.builds(
    Session,
    cipher_suite=st.sampled_from(CipherSuite),
    master_secret=st.binary(min_size=48, max_size=48),
    server_name=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=255),
    psk_identity=optional_bytes,
    psk_fingerprint=optional_bytes,
    certificate_chain=st.none() | st.lists(st.binary(max_size=60), min_size=1, max_size=3).map(tuple),
    raw_public_key=optional_bytes,
    server_key=optional_bytes,
    session_id=st.binary(max_size=32),
    ticket=st.binary(max_size=300),
    lifetime=st.integers(0, 2**32 - 1),
    created_at=st.integers(0, 2**60),
)


@given(sessions)
def test_a_saved_session_comes_back_as_it_was(session):
    assert Session.from_bytes(session.to_bytes()) == session


@given(sessions)
def test_a_saved_session_that_is_cut_short_or_made_longer_is_refused(session):
    data = session.to_bytes()
    for changed in (*(data[:length] for length in range(len(data))), data + b"\0"):
        with pytest.raises(ConfigError):
            Session.from_bytes(changed)


@given(sessions, st.data())
def test_a_saved_session_with_bytes_changed_raises_nothing_but_a_config_error(session, data):
    encoded = bytearray(session.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = Session.from_bytes(bytes(encoded))
    except ConfigError as error:
        assert session.master_secret.hex() not in str(error)
    else:
        assert Session.from_bytes(again.to_bytes()) == again


@given(st.binary(max_size=200))
def test_any_bytes_are_no_saved_session(data):
    with pytest.raises(ConfigError):
        Session.from_bytes(data)


@pytest.mark.parametrize("length", [0, 47, 49])
def test_a_session_without_a_whole_master_secret_is_refused(length):
    with pytest.raises(ConfigError) as caught:
        attrs.evolve(A_SESSION, master_secret=b"s" * length)
    assert "sss" not in str(caught.value)


def test_a_saved_session_works_in_another_process():
    fleet = new_fleet()
    config = made(fleet, "certificate")
    assert config.session is not None
    saved = config.session.to_bytes()
    assert resumed(connect(fleet, attrs.evolve(config, session=Session.from_bytes(saved)), path="restarted"))


def _is_over(client: Client) -> bool:
    return client.connection.state is not ConnectionState.HANDSHAKING


def _has(fleet: Fleet, associations: int) -> bool:
    return len(fleet.server) == associations
