"""The terrible network: a thousand seeds of loss, duplication and reordering all at once."""

import pytest

from sansdtls import (
    ClientConfig,
    ConnectionState,
    ConnectionTerminated,
    HandshakeTimeout,
    RetransmitPolicy,
    ServerConfig,
)
from sansdtls.testing import Network, Pair
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import asking_config, client_config

SEEDS_PER_TEST = 100


POLICY = RetransmitPolicy(handshake_timeout=60)
PSK = (
    ClientConfig(psk_identity=Pair.IDENTITY, psk_key=Pair.KEY, mtu=300, retransmit=POLICY),
    ServerConfig(mtu=300, retransmit=POLICY, psk_identity_hint=b"h" * 120),
)


def run(seed: int, configs: tuple[ClientConfig, ServerConfig] = PSK) -> bool:
    """One session; whether its handshake completed. Anything but completion or the deadline fails."""
    network = Network(seed, loss=0.2, duplicate=0.2, reorder=0.2, delay=0.02, hold_back=0.5, mtu=400)
    pair = Pair(*configs, network=network, seed=seed)
    pair.run_until(lambda: pair.connected or pair.client.state is ConnectionState.CLOSED, deadline=61)
    if pair.client.state is ConnectionState.CLOSED:
        assert isinstance(pair.client_end.cause, HandshakeTimeout)
        return False
    for number in range(20):
        pair.client.send(b"%d" % number, now=pair.now)
        pair.server_connection.send(b"%d" % number, now=pair.now)
    pair.run_for(5)
    for received in (pair.server_received(), pair.client_end.received):
        assert len(received) == len(set(received)), "delivered twice"
        assert set(received) <= {b"%d" % number for number in range(20)}
    for cause in pair.server_causes():
        assert isinstance(cause, HandshakeTimeout)
    pair.run_for(61)
    assert pair.server.statistics.half_open == 0
    assert len([event for event in pair.client_events if isinstance(event, ConnectionTerminated)]) == 0
    return True


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, SEEDS_PER_TEST))
def test_a_handshake_over_a_terrible_network_completes_or_ends_by_its_deadline(first):
    completed = 0
    for seed in range(first, first + SEEDS_PER_TEST):
        try:
            completed += run(seed)
        except BaseException:
            print(f"failing seed: {seed}")
            raise
    # With 20 % loss and six repetitions almost every handshake completes.
    assert completed >= 0.97 * SEEDS_PER_TEST


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_mutual_certificates_in_datagrams_of_256_bytes_get_through_a_terrible_network(kind):
    shows = {"credentials": (shown(kind).certificate(),), "mtu": 256, "retransmit": POLICY}
    configs = client_config(**shows), asking_config(**shows)
    completed = 0
    for seed in range(SEEDS_PER_TEST):
        try:
            completed += run(seed, configs)
        except BaseException:
            print(f"failing seed: {seed}")
            raise
    assert completed >= 0.97 * SEEDS_PER_TEST
