from tests.recordings import recorded_datagrams, recorded_secrets

SERVER_PORT = 22501
HANDSHAKE = 22
CLIENT_HELLO, HELLO_VERIFY_REQUEST = 1, 3


def test_a_recording_yields_its_datagrams_in_order():
    datagrams = list(recorded_datagrams("openssl-psk-ccm8"))
    assert {SERVER_PORT} < {datagram.source_port for datagram in datagrams}
    assert sorted(datagram.timestamp for datagram in datagrams) == [d.timestamp for d in datagrams]
    first, second = datagrams[:2]
    assert first.destination_port == second.source_port == SERVER_PORT
    assert (first.payload[0], first.payload[13]) == (HANDSHAKE, CLIENT_HELLO)
    assert (second.payload[0], second.payload[13]) == (HANDSHAKE, HELLO_VERIFY_REQUEST)


def test_a_datagram_of_a_recording_holds_whole_records_and_nothing_else():
    for datagram in recorded_datagrams("openssl-psk-ccm8"):
        rest = datagram.payload
        while rest:
            rest = rest[13 + int.from_bytes(rest[11:13], "big") :]
        assert rest == b""


def test_the_key_log_of_a_recording_has_the_secret_for_its_client_random():
    first = next(recorded_datagrams("openssl-psk-ccm8"))
    client_random = first.payload[27:59]
    assert len(recorded_secrets("openssl-psk-ccm8")[client_random]) == 48
