"""A meter behind a real NAT, nftables in network namespaces, that forgets it in the middle of everything."""

import pytest

from tests.restarts.device import Device
from tests.restarts.namespaces import ENDPOINT, Namespaces, require_namespaces
from tests.restarts.service import in_namespace

PORT = 5684


@pytest.fixture(scope="module")
def _possible():
    require_namespaces()


@pytest.fixture
def networks(_possible):
    with Namespaces() as networks:
        yield networks


@pytest.fixture
def service(networks, tmp_path):
    with in_namespace(tmp_path, networks.endpoint, ENDPOINT, PORT) as service:
        service.start()
        service.fact("listening")
        yield service


def device(networks, **more):
    return Device(networks.socket(networks.device), (ENDPOINT, PORT), **more)


def test_without_a_connection_id_a_rebinding_ends_the_association(networks, service):
    with device(networks) as old, device(networks, number=1) as other:
        old.connect()
        assert old.exchange() == 1
        networks.rebind()
        unheard = old.send()
        # By the time another is answered, the first has been read and thrown away.
        other.connect()
        assert other.exchange() == 1
        assert unheard not in old.data
        assert service.stop() == 0
        discarded = service.facts("stopped")[-1]["statistics"]["server"]["records_discarded"]
        assert discarded == {"unknown_association": 1}
