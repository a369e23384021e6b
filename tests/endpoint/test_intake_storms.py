"""Storms and floods in virtual time, where each kind of work costs what it was measured to cost: see ``rush``."""

import random
import statistics

import pytest

from endpoint.intake import SLICE
from endpoint.quotas import QuotaPolicy
from tests.endpoint.rush import COOKIE, COSTS, FLIGHT, HANDSHAKE, HELLO, READING, ROUND, TURN, Machine

pytestmark = pytest.mark.slow

FLEET = 10_000
LIVE = 50
EVERY = 0.05
"""Seconds between the readings of a live device."""
A_LOOK = TURN * COSTS[READING] + 2 * SLICE + max(COSTS.values()) * 2 + ROUND
"""Seconds that may lie between two looks at the socket."""


def storm(address, *, fleet=FLEET, within=1.0, seed=1):
    """A whole fleet handshakes, and as many live devices as ever go on."""
    machine, chance = Machine(), random.Random(seed)
    for number in range(fleet):
        machine.device((0, (address(number), number)), begins=chance.random() * within)
    with_readings(machine, chance, until=fleet * HANDSHAKE)
    machine.run(120)
    return machine


def with_readings(machine, chance, *, until):
    for number in range(LIVE):
        machine.reads((0, (f"live{number}", 1)), every=EVERY, begins=chance.random() * EVERY, ends=until)


def flood(times, seconds, *, forged=HELLO, address=None, seed=1, quotas=None):
    """Forged datagrams at ``times`` the capacity, from anywhere or one ``address``; half of 100 honest devices handshake."""
    machine, chance = Machine(quotas), random.Random(seed)
    for number in range(50):
        machine.device((0, (f"honest{number}", 1)), begins=0.5 + chance.random() * 1.5)
    with_readings(machine, chance, until=seconds)
    when = 0.0
    while when < seconds:
        when += chance.expovariate(times / HANDSHAKE)
        machine.send(when, forged, (0, (address or chance.getrandbits(32), chance.getrandbits(16))))
    machine.run(seconds)
    return machine


def assert_readings_flow(machine):
    assert machine.lost == {}
    assert machine.longest_gap <= A_LOOK
    assert max(machine.delays) <= 2 * A_LOOK
    assert statistics.mean(machine.delays) <= SLICE


# --- a fleet that comes back ---


@pytest.mark.parametrize(
    "address", [lambda number: number, lambda _: "nat"], ids=["many prefixes", "one NAT"]
)
def test_a_fleet_that_comes_back_is_served_evenly_while_readings_flow(address):
    machine = storm(address)
    assert machine.all_connected
    assert max(machine.waits) <= 2.5 * statistics.mean(machine.waits)
    # Nothing idles: the work was done in little more time than it takes.
    end = max(device.connected for device in machine.devices.values())
    assert end <= 1.3 * FLEET * HANDSHAKE
    assert_readings_flow(machine)


def test_a_nat_with_thousands_of_devices_does_not_hold_up_those_with_an_address_of_their_own():
    machine = storm(lambda number: number if number % 50 == 0 else "nat", fleet=5_000)
    waits: dict[bool, list[float]] = {True: [], False: []}
    for path, device in machine.devices.items():
        waits[path[1][0] == "nat"].append(device.connected - device.begun)
    assert max(waits[False]) < 0.25 * statistics.mean(waits[True])
    assert max(waits[True]) <= 2.5 * statistics.mean(waits[True])


# --- forged hellos ---


def test_a_flood_of_forged_hellos_costs_honest_devices_a_repetition_at_most():
    machine = flood(20, 4.0)
    assert machine.intake.dropped["hello"] > 10_000  # there was no time for all of them
    assert machine.all_connected
    assert max(machine.waits) < 1.5
    assert max(device.sent for device in machine.devices.values()) <= 4  # hello twice, cookie, flight
    assert set(machine.intake.dropped) == {"hello"}
    assert_readings_flow(machine)


def test_a_flood_from_one_address_costs_the_others_nothing():
    machine = flood(20, 3.0, address="flooder")
    assert machine.all_connected
    assert max(machine.waits) < 0.2
    assert max(device.sent for device in machine.devices.values()) == 3
    assert_readings_flow(machine)


def test_invented_cookies_cost_them_no_more_than_that():
    machine = flood(20, 4.0, forged=COOKIE)
    assert machine.intake.dropped["hello_with_cookie"] > 10_000
    assert machine.all_connected
    assert max(machine.waits) < 1.5
    assert_readings_flow(machine)


def test_who_floods_handshakes_under_way_holds_up_himself():
    machine = flood(20, 3.0, forged=FLIGHT, address="flooder")  # who must have begun them from there
    assert machine.all_connected
    assert max(machine.waits) < 0.2
    assert machine.intake.dropped.keys() == {"handshake"}
    assert_readings_flow(machine)


def test_every_datagram_of_a_flood_is_accounted_for():
    machine = flood(20, 1.0)
    intake = machine.intake
    came = sum(device.sent for device in machine.devices.values())
    handed = len(machine.handed)
    forged = handed + intake.dropped.total() + intake.superseded + len(intake) + machine.lost.total() - came
    assert forged == pytest.approx(20 / HANDSHAKE, rel=0.05)
    assert intake.statistics()["seconds_spent"] <= machine.now


# --- too many readings ---


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_when_readings_alone_are_more_than_there_is_time_for_handshakes_still_get_their_share(share):
    machine, chance = Machine(QuotaPolicy(handshake_share=share)), random.Random(1)
    for number in range(60_000):  # 12 s of work
        machine.send(number / 30_000, COOKIE, (0, (number, 1)))
    for number in range(300):  # 60,000 a second, of which each takes 22 us
        machine.reads((0, (f"live{number}", 1)), every=0.005, begins=chance.random() * 0.005, ends=2.0)
    machine.run(2.0)
    assert machine.lost[READING] > 1_000
    assert machine.intake.seconds_spent / machine.now == pytest.approx(share, rel=0.15)
