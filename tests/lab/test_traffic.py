"""What the sensors count is exact: nothing is lost where nothing may be, and each loss is seen as what it is."""

import re
import secrets

import pytest

from tests.lab.by_hand import HandMadeEndpoint
from tests.lab.fleet import Fleet
from tests.lab.traffic import Streams
from tests.namespaces import run, within


@pytest.fixture(scope="module")
def fleet():
    with Fleet(endpoints=1, devices=3) as fleet:
        yield fleet


@pytest.fixture
def endpoint(fleet):
    with HandMadeEndpoint(fleet["endpoint-1"], fleet.devices) as endpoint:
        for device in fleet.devices:
            endpoint.provision(device)
            (device.root / "etc/dtls/psk.previous").unlink(missing_ok=True)
        yield endpoint


def test_all_that_three_devices_send_comes_back(fleet, endpoint):
    with Streams(fleet) as streams:
        streams.wait_until_echoed(50)
    streams.check()
    assert streams.totals()["handshakes"] == 3


def test_three_restarts_with_a_hand_over_lose_nothing(fleet, endpoint):
    with Streams(fleet) as streams:
        for _ in range(3):
            endpoint.restart()
            streams.wait_until_echoed()
    streams.check()
    assert streams.totals()["handshakes"] == 3


def test_a_killed_endpoint_loses_each_association_and_that_is_counted(fleet, endpoint):
    with Streams(fleet, patience=5.0) as streams:
        streams.wait_until_echoed()
        endpoint.restart("SIGKILL")
        for sensor in streams.sensors.values():
            sensor.wait_until(lambda figures: figures.handshakes == 2)
        streams.wait_until_echoed()
    totals = streams.totals()
    assert (totals["ended"], totals["failed"]) == (3, 0)
    assert totals["lost"] > 0
    with pytest.raises(AssertionError, match="nothing came back for 5 s"):
        streams.check()


def test_an_endpoint_that_says_goodbye_ends_each_association(fleet, endpoint):
    with Streams(fleet) as streams:
        streams.wait_until_echoed()
        endpoint.restart("SIGINT")
        for sensor in streams.sensors.values():
            sensor.wait_until(lambda figures: figures.handshakes == 2)
    assert streams.totals()["ended"] == 3


def test_keys_changed_under_the_devices_lose_nothing_while_both_are_accepted(fleet, endpoint):
    with Streams(fleet) as streams:
        for device in fleet.devices:
            endpoint.keys[device.name].append(secrets.token_hex(32))
        endpoint.write()
        endpoint.reload()
        for device in fleet.devices:
            endpoint.provision(device, endpoint.keys[device.name][1])
            streams[device.name].wait_until(lambda figures: figures.reloads == 1)
            assert streams[device.name].figures.key == endpoint.keys[device.name][1]
            del endpoint.keys[device.name][0]
        endpoint.write()
        endpoint.reload()
        streams.wait_until_echoed()
    streams.check()
    assert streams.totals()["handshakes"] == 6


def test_a_key_that_the_endpoint_does_not_have_is_a_failed_handshake_and_the_device_goes_back(
    fleet, endpoint
):
    with Streams(fleet) as streams:
        endpoint.provision(fleet["device-1"], secrets.token_hex(32))
        streams["device-1"].wait_until(lambda figures: figures.failed and figures.handshakes == 2)
        streams.wait_until_echoed()
        figures = streams["device-1"].figures
        assert figures.key == endpoint.keys["device-1"][0]
    assert figures.failed == 1
    streams.check(failed=1)
    with pytest.raises(AssertionError, match="etc/dtls/psk: "):
        streams.check()


def test_what_the_network_drops_is_counted_exactly(fleet, endpoint):
    nft = [*within(fleet["endpoint-1"].namespace), "nft"]
    source = fleet["device-2"].address
    with Streams(fleet) as streams:
        run(*nft, "add table inet hole; add chain inet hole in { type filter hook input priority 0; }")
        run(*nft, f"add rule inet hole in ip saddr {source} udp dport 5684 counter drop")
        mark = streams["device-2"].figures.sent
        streams["device-2"].wait_until(lambda figures: figures.sent > mark + 20)
        # Let through by a rule before it, so that the counter stands still when it is read.
        run(*nft, "insert rule inet hole in accept")
        dropped = run(*nft, "list table inet hole")
        streams.wait_until_echoed()
        run(*nft, "delete table inet hole")
    counted = re.search(r"packets (\d+)", dropped)
    assert counted
    assert streams["device-2"].lost == int(counted[1]) > 0
    assert streams["device-1"].lost == streams["device-3"].lost == 0
    assert (streams.totals()["ended"], streams.totals()["failed"]) == (0, 0)


def test_a_device_whose_cable_is_out_for_a_moment_keeps_its_association(fleet, endpoint):
    with Streams(fleet) as streams:
        fleet["device-2"].unplug()
        mark = streams["device-2"].figures.sent
        streams["device-2"].wait_until(lambda figures: figures.sent > mark + 20)
        fleet["device-2"].plug()
        streams.wait_until_echoed()
    assert (streams.totals()["ended"], streams.totals()["failed"]) == (0, 0)


def test_a_sensor_that_breaks_is_not_taken_for_one_that_lost_nothing(fleet, endpoint, monkeypatch):
    with Streams(fleet) as streams:
        streams["device-1"]._stamp = lambda: 1 // 0
        with pytest.raises(AssertionError, match="device-1 has ended: ZeroDivisionError"):
            streams["device-1"].wait_until(lambda _figures: False)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        streams.check()


def test_without_an_endpoint_it_is_told_that_nobody_connects(fleet):
    streams = Streams(fleet, handshake_time=0.5)
    for sensor in streams.sensors.values():
        sensor.start()
    with pytest.raises(AssertionError, match="device-1: not within 1 s"):
        streams["device-1"].wait_until_connected(1)
    for sensor in streams.sensors.values():
        sensor.stop()
        sensor.assert_sound()
