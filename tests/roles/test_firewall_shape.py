"""What the filter takes for DTLS: all that real stacks send to an endpoint, and next to nothing else; nft and iptables alike."""

import json
import random

import pytest

from tests.recordings import RECORDINGS, recorded_datagrams
from tests.roles.packets import HELLO, admitted

FLEET = {"endpoints": 1, "devices": 2}
SERVER_PORTS = {
    "openssl-psk-ccm8": 22501,
    "gnutls-ecdhe-ecdsa": 22502,
    "gnutls-rpk": 22501,
    "mbedtls-cid-psk": 22504,
}
RECORD = bytes.fromhex("fefd") + bytes(8)
"""Version, epoch 0 and sequence number."""


@pytest.fixture(scope="module")
def everywhere(fleet):
    """The filter of an endpoint, on a host with nft and on one with iptables."""
    play = fleet.folder / "shape.yml"
    variables = {
        "dtls_firewall_backend": "{{ 'nft' if inventory_hostname == 'endpoint-1' else 'iptables-legacy' }}",
        "dtls_firewall_profile": "endpoint",
        "dtls_firewall_hello_rate": "unlimited",
    }
    hosts = "endpoint-1,device-1"
    play.write_text(
        json.dumps([{"hosts": hosts, "gather_facts": False, "vars": variables, "roles": ["dtls_firewall"]}])
    )
    fleet.playbook(play)
    return fleet


@pytest.fixture(params=["nft", "iptables-legacy"])
def filtered(request, everywhere):
    """Who sends, and who has the filter."""
    return everywhere["device-2"], everywhere["endpoint-1" if request.param == "nft" else "device-1"]


def test_every_recording_has_its_port_here():
    assert {place.stem for place in RECORDINGS.glob("*.pcap")} == set(SERVER_PORTS)


@pytest.mark.parametrize("name", sorted(SERVER_PORTS))
def test_what_real_stacks_send_to_a_server_passes(filtered, name):
    port = SERVER_PORTS[name]
    sent = [one.payload for one in recorded_datagrams(name) if one.destination_port == port]
    assert len(sent) > 4
    assert admitted(filtered[0], filtered[1], sent) == sent


def record(kind, body, *, version="fefd", epoch=0, length=None):
    size = len(body) if length is None else length
    return bytes([kind]) + bytes.fromhex(version) + epoch.to_bytes(2) + bytes(6) + size.to_bytes(2) + body


def handshake(kind, size=60):
    return record(22, bytes([kind]) + size.to_bytes(3) + bytes(5) + size.to_bytes(3) + bytes(size))


GOOD = {
    "a hello": HELLO,
    "a hello with a cookie, of 1,200 bytes": handshake(1, 1_200),
    "a certificate": handshake(11, 900),
    "a key exchange": handshake(16),
    "a proof": handshake(15),
    "a change of cipher, then Finished": record(20, b"\x01") + record(22, bytes(40), epoch=1),
    "an alert in clear": record(21, b"\x02\x28"),
    "an alert": record(21, bytes(24), epoch=1),
    "data of a late epoch": record(23, bytes(30), epoch=65_535),
    "a heartbeat of nothing but data": record(23, bytes(1), epoch=1),
    "a record with a connection ID": record(25, bytes(30), epoch=1),
    "the largest datagram that Ethernet takes": record(23, bytes(1_439), epoch=1),
    "a datagram in fragments": record(23, bytes(6_000), epoch=1),
    "Finished": record(22, bytes(40), epoch=1),
    "DTLS 1.0": record(23, bytes(30), epoch=1, version="feff"),
}
JUNK = {
    "nothing": b"",
    "a header alone": record(23, b"", epoch=1),
    "one byte less than a header": record(23, b"", epoch=1)[:-1],
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "DTLS of another world": record(22, bytes(60), version="0100"),
    "heartbeat": record(24, bytes(30), epoch=1),
    "an unknown type": record(99, bytes(30), epoch=1),
    "data in clear": record(23, bytes(30)),
    "a connection ID in clear": record(25, bytes(30)),
    "what a server says first": handshake(2),
    "what a server asks": handshake(3),
    "a hello without end": handshake(1, 4_000),
    "DNS": bytes.fromhex("abcd01000001000000000000") + b"\x07example\x03com\x00\x00\x01\x00\x01",
    "SIP": b"OPTIONS sip:100@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.2\r\n\r\n",
    "STUN": bytes.fromhex("000100002112a442") + bytes(12) + bytes(8),
    "QUIC": bytes.fromhex("c300000001088394c8f03e5157080000449e") + bytes(1_180),
    "CoAP": bytes.fromhex("40014f2abb2e77656c6c2d6b6e6f776e04636f7265"),
}


@pytest.mark.parametrize("what", GOOD)
def test_what_a_client_may_send_passes(filtered, what):
    assert admitted(filtered[0], filtered[1], [GOOD[what]]) == [GOOD[what]]


def test_what_is_no_datagram_of_a_client_does_not_pass(filtered):
    passed = admitted(filtered[0], filtered[1], list(JUNK.values()))
    assert [what for what, datagram in JUNK.items() if datagram in passed] == []


def test_of_random_datagrams_hardly_one_passes(filtered):
    draw = random.Random(22)
    sent = [draw.randbytes(draw.randint(0, 400)) for _ in range(1_000)]
    # And such as begin like one, but go on by chance.
    sent += [b"\x16\xfe\xfd\0\0" + draw.randbytes(60) for _ in range(1_000)]
    assert len(admitted(filtered[0], filtered[1], sent)) <= 30
