"""The core path of dtls_endpoint on Debian 13, with its newer systemd and Python."""

import pytest

from tests.lab.fleet import Fleet
from tests.lab.traffic import Streams
from tests.roles.endpoints import counts, give_keys, play, release

SUITE = "trixie"

pytestmark = pytest.mark.slow


def test_debian_13_is_deployed_to_and_upgraded_under_traffic(lab):
    with Fleet(endpoints=1, devices=1, suite=SUITE) as fleet:
        host = fleet["endpoint-1"]
        assert counts(play(fleet, "deploy", "--check", "--diff", suite=SUITE))["failed"] == 0
        play(fleet, suite=SUITE)
        assert counts(play(fleet, suite=SUITE))["changed"] == 0
        give_keys(fleet)
        before = release(host)
        with Streams(fleet) as streams:
            host.ssh("systemctl restart dtls-endpoint.service")
            play(fleet, "upgrade", suite=SUITE, version="0.2.0")
        streams.check()
        assert len({*release(host), *before}) == 2
        assert "0.2.0" in play(fleet, "status", suite=SUITE)
