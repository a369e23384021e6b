"""Paths that take less than was sent, with the kernel's own ICMP messages: a router between links of 1500 and 600 bytes; and
hosts with several addresses, of which the one that was asked has to answer."""

import contextlib
import socket

import pytest
import trio

from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore
from endpoint.opening import open_dtls
from endpoint.quotas import QuotaPolicy
from endpoint.sockets import UdpSocket
from sansdtls import (
    CertificateType,
    ClientAuthentication,
    ClientConfig,
    MessageTooLarge,
    RetransmitPolicy,
    ServerConfig,
)
from tests.core.credentials import shown
from tests.endpoint.devices import Recorder
from tests.namespaces import run
from tests.restarts.namespaces import ENDPOINT, Namespaces, in_namespace, require_namespaces

pytestmark = pytest.mark.slow

MTU = 600
PAYLOAD = MTU - 20 - 8
"""What is left of a link's MTU for a datagram of UDP over IPv4."""
OVERHEAD = 13 + 8 + 16
"""Of a record of AES-GCM."""
PATIENCE = 25
"""Seconds until a test that waits for something has failed."""
PATIENT = RetransmitPolicy(initial_timeout=3.0 * PATIENCE, maximum_timeout=3.0 * PATIENCE)
"""The test is over before a timer has run out."""
CREDENTIAL = shown("rsa").certificate()


@pytest.fixture(scope="module")
def _possible():
    require_namespaces()


@pytest.fixture
def networks(_possible):
    with Namespaces() as networks:
        yield networks


def narrow(networks, side):
    """Make the link on one side of the router take less: there it is known at once, on the other side by ICMP."""
    inner, outer = (networks.device, "inside") if side == "device" else (networks.endpoint, "outside")
    for namespace, link in ((inner, "eth0"), (networks.router, outer)):
        run("ip", "-n", namespace, "link", "set", link, "mtu", str(MTU))


@contextlib.asynccontextmanager
async def serving(networks, address, *, discover=True):
    sock = networks.socket(networks.endpoint, socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.bind((address, 5684))
    config = ServerConfig(
        credentials=(CREDENTIAL,),
        client_authentication=ClientAuthentication.REQUIRED,
        retransmit=PATIENT,
    )

    async def anybody(_request):
        return b"meter"

    with UdpSocket(sock) as udp:
        udp.discover_path_mtu(discover)
        engine = Engine(
            config,
            sockets=[udp],
            keystore=DictKeyStore({}),
            quotas=QuotaPolicy(),
            observer=Recorder(echo=True),
            verify=anybody,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            yield engine
            nursery.cancel_scope.cancel()


def device(address=ENDPOINT):
    async def anybody(_request):
        return b"endpoint"

    config = ClientConfig(
        credentials=(CREDENTIAL,), server_certificate_types=(CertificateType.X509,), retransmit=PATIENT
    )
    return open_dtls(address, 5684, config=config, verify=anybody)


@pytest.mark.parametrize("address", [ENDPOINT, "0.0.0.0", "::"])  # noqa: S104 - in a namespace of its own
@pytest.mark.parametrize("side", ["device", "endpoint"])
async def test_a_handshake_with_certificates_over_a_narrow_link_waits_for_no_timer(networks, address, side):
    narrow(networks, side)

    async def talk():
        with trio.fail_after(PATIENCE):
            async with await device() as channel:
                assert channel.max_payload == PAYLOAD - OVERHEAD
                await channel.send(b"x" * channel.max_payload)
                assert await channel.receive() == b"x" * channel.max_payload
                with pytest.raises(MessageTooLarge):
                    await channel.send(b"x" * (channel.max_payload + 1))
                return channel.statistics

    async with serving(networks, address) as engine:
        with trio.fail_after(2 * PATIENCE):
            told = await in_namespace(networks.device, talk)
        figures = engine.statistics()
    # Each side has sent its large flight twice, the second time in what the path takes.
    assert told.connection.retransmissions == 1
    assert figures["server"]["retransmissions"] == 1
    assert figures["sockets"][0]["path_mtu_reports"] >= 1


async def test_what_is_too_large_is_refused_and_counted_once_the_path_is_known(networks):
    narrow(networks, "device")
    sizes = []

    async def talk():
        with trio.fail_after(PATIENCE):
            async with await device() as channel:
                await channel.send(b"hello")
                assert await channel.receive() == b"hello"
                sizes.append(channel.max_payload)

    async with serving(networks, ENDPOINT) as engine:
        observer = engine._observer

        def answer(association, data):
            assert association.connection.max_payload == PAYLOAD - OVERHEAD
            assert not association.send(b"x" * (association.connection.max_payload + 1))
            assert association.dropped == 1
            assert association.send(data)

        observer.received = answer
        with trio.fail_after(2 * PATIENCE):
            await in_namespace(networks.device, talk)
        assert engine.statistics()["observer_failures"] == 0
    assert sizes == [PAYLOAD - OVERHEAD]


async def test_without_discovery_the_network_fragments_what_is_too_large(networks):
    narrow(networks, "device")

    async def talk():
        with trio.fail_after(PATIENCE):
            async with await device() as channel:
                await channel.send(b"hello")
                return await channel.receive()

    async with serving(networks, ENDPOINT, discover=False) as engine:
        with trio.fail_after(2 * PATIENCE):
            assert await in_namespace(networks.device, talk) == b"hello"
        assert engine.statistics()["server"]["retransmissions"] == 0
        assert engine.statistics()["sockets"][0]["path_mtu_reports"] == 0


# --- several addresses ------------------------------------------------------------------------------

ADDRESSES = (ENDPOINT, "192.0.2.77", "fd00::2", "fd00::77")
"""Of one interface. Left alone, the kernel answers from the first of each family."""


@pytest.fixture
def addressed(networks):
    for address in ADDRESSES[1:]:
        length = 64 if ":" in address else 24
        more = ["nodad"] if ":" in address else []
        run("ip", "-n", networks.endpoint, "address", "add", f"{address}/{length}", "dev", "eth0", *more)
    run("ip", "-n", networks.router, "address", "add", "fd00::1/64", "dev", "outside", "nodad")
    return networks


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])  # noqa: S104 - in a namespace of its own
async def test_an_answer_leaves_from_the_address_that_was_asked(addressed, bound):
    # The device's socket is connected: an answer from another address never reaches it.
    asked = [address for address in ADDRESSES if bound == "::" or ":" not in address]

    async def talk():
        with trio.fail_after(PATIENCE):
            for address in asked:
                async with await device(address) as channel:
                    await channel.send(address.encode())
                    assert await channel.receive() == address.encode()

    async with serving(addressed, bound) as engine:
        with trio.fail_after(2 * PATIENCE):
            await in_namespace(addressed.router, talk)
        assert engine.statistics()["server"]["handshakes_completed"] == len(asked)
