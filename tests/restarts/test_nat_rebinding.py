"""A meter behind a real NAT, nftables in network namespaces, that forgets it in the middle of everything."""

import contextlib
from functools import partial

import pytest

from sansdtls import ConnectionIdPolicy, ReturnRoutability
from tests.interop.identified import IDENTIFIED, said
from tests.interop.process import running, wait_until
from tests.interop.stacks import CCM_8
from tests.namespaces import within
from tests.restarts.device import Device
from tests.restarts.meters import identity, key
from tests.restarts.namespaces import ENDPOINT, Namespaces, require_namespaces
from tests.restarts.service import in_namespace

pytestmark = pytest.mark.slow

PORT = 5684
PROBE_TIMEOUT = 0.2
"""Seconds for which the enhanced flow waits for an old path that is gone, so the test waits too."""


@pytest.fixture(scope="module")
def _possible():
    require_namespaces()


@pytest.fixture
def networks(_possible):
    with Namespaces() as networks:
        yield networks


@contextlib.contextmanager
def endpoint(networks, directory, table=""):
    """A real endpoint in its namespace, listening. ``table`` is further configuration."""
    with in_namespace(directory, networks.endpoint, ENDPOINT, PORT, table) as service:
        service.start()
        service.fact("listening")
        yield service


def device(networks, way=None, *, number=0):
    """A meter behind the router, with connection IDs where ``way`` says how a path is proven."""
    policy = None if way is None else ConnectionIdPolicy(length=0, return_routability=way)
    sock = networks.socket(networks.device)
    return Device(sock, (ENDPOINT, PORT), number=number, connection_id=policy)


def test_without_a_connection_id_a_rebinding_ends_the_association(networks, tmp_path):
    with (
        endpoint(networks, tmp_path) as service,
        device(networks) as old,
        device(networks, number=1) as other,
    ):
        old.connect()
        old.exchange_once()
        networks.rebind()
        unheard = old.send()
        # By the time another is answered, the first has been read and thrown away.
        other.connect()
        other.exchange_once()
        assert unheard not in old.data
        assert service.stop() == 0
        discarded = service.facts("stopped")[-1]["statistics"]["server"]["records_discarded"]
        # And nothing else, but what a device may have repeated while the endpoint was slow.
        discarded.pop("duplicate_handshake_message", None)
        assert discarded == {"unknown_association": 1}


@pytest.mark.parametrize("way", list(ReturnRoutability))
def test_a_rebinding_costs_no_handshake_with_a_connection_id(networks, tmp_path, way):
    table = f'[dtls.connection_id]\nreturn_routability = "{way.value}"\nprobe_timeout = {PROBE_TIMEOUT}\n'
    with endpoint(networks, tmp_path, table) as service, device(networks, way) as meter:
        meter.connect()
        meter.exchange_once()
        for _ in range(3):
            networks.rebind()
            meter.exchange()
            # Both ways, and without another attempt: the new path is in use.
            meter.exchange_once()
        assert meter.connection.negotiated.return_routability is (way is not ReturnRoutability.OFF)
        assert service.stop() == 0
        assert len(service.facts("connected")) == 1
        statistics = service.facts("stopped")[-1]["statistics"]["server"]
        assert statistics["handshakes_started"] == 1
        assert statistics["path_changes"] == 3


def hears(client, messages):
    return len(said(client, "received")) == messages


@pytest.mark.interop
@pytest.mark.parametrize("stack", IDENTIFIED, ids=str)
def test_a_rebinding_costs_other_stacks_no_handshake_either(networks, tmp_path, stack):
    # Neither knows RFC 9853, so the path follows their newer records.
    stack.require()
    networks.lead_home(PORT)
    command = [*within(networks.device), *stack.command("client", PORT, suite=CCM_8, cid="")]
    environment = {**stack.environment, "PSK_IDENTITY": identity(0).decode(), "PSK_KEY": key(0).hex()}
    with (
        endpoint(networks, tmp_path) as service,
        running(command, directory=tmp_path, name="client", environment=environment) as client,
    ):
        service.fact("connected")
        for number in range(1, 5):
            client.say(f"send message {number}")
            wait_until(partial(hears, client, number), client.__str__)
            networks.rebind()
        assert service.stop() == 0
        assert len(service.facts("connected")) == 1
        statistics = service.facts("stopped")[-1]["statistics"]["server"]
        assert (statistics["handshakes_started"], statistics["path_changes"]) == (1, 3)
