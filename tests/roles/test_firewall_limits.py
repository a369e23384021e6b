"""What the filter lets through follows from the endpoint's own quotas."""

import heapq
import ipaddress
import itertools
import random
from typing import Any

import attrs
import pytest

from endpoint.quotas.buckets import TokenBucket
from endpoint.quotas.networks import NetworkQuota
from endpoint.quotas.policy import QuotaPolicy
from endpoint.quotas.prefixes import Networks
from endpoint.quotas.quotas import Quotas
from tests.roles.plays import load

packets: Any = load("module_utils/dtls_packets")
HELLOS = packets.HELLOS_PER_HANDSHAKE


def of(quotas=None, **given):
    """The limits, by the network that they hold for."""
    found = packets.limits(quotas, given)
    return found, {source["network"] or source["name"]: source for source in found["sources"]}


def test_defaults_are_those_of_the_endpoint():
    for name, value in packets.DEFAULTS.items():
        assert getattr(QuotaPolicy(), name) == value, name
    assert attrs.fields(NetworkQuota).handshake_burst.default == packets.DEFAULTS["handshake_burst"]


def test_sixteen_hellos_are_let_through_for_each_handshake_that_the_endpoint_would_begin():
    found, sources = of(
        {"handshakes_per_second": 20, "handshake_burst": 50, "total_handshakes_per_second": 200}
    )
    assert sources["ipv4"]["hello"] | {"table": ""} == {"rate": "320/second", "burst": 800, "table": ""}
    assert sources["ipv4"]["in_clear"] | {"table": ""} == {"rate": "960/second", "burst": 2_400, "table": ""}
    assert sources["ipv6"]["hello"]["rate"] == "320/second"
    assert found["total"] | {"table": ""} == {"rate": "3200/second", "burst": 32_000, "table": ""}


@pytest.mark.parametrize(
    ("quota", "rate"),
    [
        (0.001, "1383/day"),
        (0.01, "576/hour"),
        (0.1, "96/minute"),
        (1 / 16, "1/second"),
        (33.5, "536/second"),
        (33.51, "537/second"),
        (400_000, "1000000/second"),
    ],
)
def test_rates_below_one_and_beyond_what_the_kernel_counts_are_written_so_that_nobody_gets_less(quota, rate):
    _, sources = of({"handshakes_per_second": quota})
    assert sources["ipv4"]["hello"]["rate"] == rate


def test_a_source_is_what_the_endpoint_takes_for_one():
    _, sources = of({"ipv4_prefix_length": 24, "ipv6_prefix_length": 48})
    assert (sources["ipv4"]["mask"], sources["ipv6"]["mask"]) == ("255.255.255.0", "ffff:ffff:ffff::")
    _, sources = of({})
    assert (sources["ipv4"]["mask"], sources["ipv6"]["mask"]) == ("", "ffff:ffff:ffff:ff00::")


def test_networks_have_limits_of_their_own_or_none():
    quotas = {
        "networks": [
            "100.64.0.0/10",
            {
                "network": "2001:db8::/32",
                "handshakes_per_second": 5,
                "handshake_burst": 7,
                "prefix_length": 64,
            },
            {"network": "::ffff:192.0.2.0/120", "handshakes_per_second": 9},
        ]
    }
    _, sources = of(quotas, exempt=["198.51.100.7"])
    assert sources["100.64.0.0/10"]["hello"] == {}
    assert sources["198.51.100.7/32"]["hello"] == {}
    assert sources["2001:db8::/32"]["mask"] == "ffff:ffff:ffff:ffff::"
    assert sources["2001:db8::/32"]["hello"]["burst"] == 7 * HELLOS
    assert sources["192.0.2.0/24"]["hello"]["rate"] == "144/second"


@pytest.mark.parametrize("seed", range(20))
def test_the_network_that_counts_is_the_one_that_counts_for_the_endpoint(seed):
    draw = random.Random(seed)
    bases = {
        ipaddress.ip_network((draw.getrandbits(32), draw.randint(0, 32)), strict=False) for _ in range(6)
    }
    bases |= {
        ipaddress.ip_network((draw.getrandbits(128), draw.randint(0, 64)), strict=False) for _ in range(3)
    }
    told: list[dict[str, Any]] = [
        {"network": str(base), "handshakes_per_second": float(number + 1), "handshake_burst": 5}
        for number, base in enumerate(sorted(bases, key=str))
    ]
    networks = Networks(QuotaPolicy(networks=[NetworkQuota(**one) for one in told]))
    found, _ = of({"networks": told})
    for _ in range(50):
        base = draw.choice(sorted(bases, key=str))
        address = base[draw.randrange(min(base.num_addresses, 2**40))]
        if draw.random() < 0.3:
            address = ipaddress.ip_address(draw.getrandbits(32))
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            continue
        first = next(
            source
            for source in found["sources"]
            if source["version"] == address.version
            and (not source["network"] or address in ipaddress.ip_network(source["network"]))
        )
        theirs = networks.limits_of(networks.prefix_of((str(address), 0)))
        assert theirs.handshakes_per_second is not None
        assert first["hello"]["rate"] == f"{int(theirs.handshakes_per_second * HELLOS)}/second", (
            address,
            first,
        )
        assert first["length"] == theirs.length


def test_what_is_given_counts_instead():
    found, sources = of(
        {"handshakes_per_second": 20},
        hello_rate=7,
        hello_burst="11",
        total_hello_rate="unlimited",
        sources_max=99,
    )
    assert (sources["ipv6"]["hello"]["rate"], sources["ipv6"]["hello"]["burst"]) == ("7/second", 11)
    assert (found["total"], found["sources_max"]) == ({}, 99)


@pytest.mark.parametrize("word", ["unlimited", "never"])
def test_no_limit_of_the_endpoint_is_no_limit_here(word):
    found, sources = of({"handshakes_per_second": word, "total_handshakes_per_second": word})
    assert (found["total"], sources["ipv4"]["hello"], sources["ipv6"]["hello"]) == ({}, {}, {})


def test_null_leaves_the_default_as_it_does_in_the_configuration():
    assert of({"handshakes_per_second": None, "total_handshake_burst": None}) == of({})
    entry = {"network": "192.0.2.0/24", "handshakes_per_second": 5}
    told = of({"networks": [entry | {"handshake_burst": None, "prefix_length": None}]})
    assert told == of({"networks": [entry]})


def test_a_forgotten_source_has_a_full_bucket_anyway():
    _, sources = of({"handshakes_per_second": 1, "handshake_burst": 600})
    assert sources["ipv4"]["timeout"] == 601
    _, sources = of({"handshakes_per_second": 100, "handshake_burst": 10})
    assert sources["ipv4"]["timeout"] == 10


# --- a fleet behind one address -----------------------------------------------------------------------

ROUND_TRIP, HANDSHAKE, PATIENCE = 0.05, 0.3, 30.0
"""Seconds: to the endpoint and back, all of a handshake, and until a device begins anew."""


def seconds_until_all_are_in(devices, quotas, *, away=0.0, filtered=True):
    """Of a fleet behind one address that wants in at once, at an endpoint that is back after ``away`` seconds with fresh quotas."""
    theirs = Quotas(QuotaPolicy(**quotas))
    prefix = theirs.prefix_of(("10.0.0.1", 5684))
    hellos = of(quotas)[1]["ipv4"]["hello"]
    number, _, unit = hellos["rate"].partition("/")
    rate, burst = int(number) / {"second": 1, "minute": 60}[unit], hellos["burst"]
    bucket = TokenBucket(burst, 0.0)
    draw, order = random.Random(7), itertools.count()
    # When, and what: a device's hello, which number it is of the handshake, when it is repeated, when the device began.
    coming = [(draw.random(), next(order), 1, 1.0, 0.0) for _ in range(devices)]
    now = last = 0.0

    def then(after, *what):
        heapq.heappush(coming, (now + after, next(order), *what))

    while coming:
        now, _, hello, repeated, began = heapq.heappop(coming)
        if hello == 0:
            theirs.release(prefix)
            continue
        if now - began > PATIENCE:
            hello, repeated, began = 1, 1.0, now
        passes = not filtered or bucket.take(1, rate=rate, burst=burst, now=now)
        if passes and now >= away and hello == 1:
            then(ROUND_TRIP, 2, 1.0, began)
        elif passes and now >= away and theirs.admit_handshake(prefix, replaces=False, now=now) is None:
            last = now
            then(HANDSHAKE, 0, 0.0, 0.0)
        else:
            then(repeated, hello, repeated * 2, began)
    return last


@pytest.mark.parametrize(
    ("devices", "rate", "burst", "away"),
    [
        (1_000, 100, 1_000, 0),
        (2_000, 100, 500, 0),
        (2_000, 100, 500, 60),
        # Of each device ten hellos have come to nothing when the endpoint is back, which would serve all at once.
        (200, 0.2, 200, 60),
        (200, 10, 200, 600),
    ],
)
def test_a_fleet_behind_one_address_is_in_no_later_than_without_a_filter(devices, rate, burst, away):
    quotas = {"handshakes_per_second": rate, "handshake_burst": burst}
    without = seconds_until_all_are_in(devices, quotas, away=away, filtered=False)
    assert seconds_until_all_are_in(devices, quotas, away=away) <= without * 1.05


def test_tables_of_iptables_have_other_names_when_their_numbers_change():
    _, before = of({"handshakes_per_second": 1})
    _, after = of({"handshakes_per_second": 2})
    assert before["ipv4"]["hello"]["table"] != after["ipv4"]["hello"]["table"]
    names = [source[kind]["table"] for source in after.values() for kind in ("hello", "in_clear")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hello_rate": "fast"}, "dtls_firewall_hello_rate: 'fast' is no rate; remedy: a number per second"),
        ({"hello_burst": 0}, "dtls_firewall_hello_burst: 0 is no number; remedy: a whole number"),
        ({"sources_max": "many"}, "dtls_firewall_sources_max: 'many' is no number"),
        (
            {"exempt": ["carrier.example"]},
            "dtls_firewall_rate_exempt: 'carrier.example' does not appear.*remedy: an address",
        ),
        ({"exempt": ["10.0.0.1/8"]}, "dtls_firewall_rate_exempt: 10.0.0.1/8 has host bits set; remedy"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_variable_and_a_remedy(given, words):
    with pytest.raises(packets.Wrong, match=words):
        packets.limits({}, given)


@pytest.mark.parametrize(
    ("quotas", "words"),
    [
        ({"handshakes_per_second": "many"}, "dtls_endpoint_config.quotas.handshakes_per_second: 'many' is no rate"),
        ({"total_handshake_burst": "many"}, "dtls_endpoint_config.quotas.total_handshake_burst: 'many' is no number"),
        ({"ipv6_prefix_length": 129}, "dtls_endpoint_config.quotas.ipv6_prefix_length: 129 is no length"),
        ({"ipv4_prefix_length": "/24"}, "dtls_endpoint_config.quotas.ipv4_prefix_length: '/24' is no number"),
        ({"networks": [{"handshakes_per_second": 5}]}, "dtls_endpoint_config.quotas.networks: 'None' does not appear"),
    ],
)  # fmt: skip
def test_quotas_that_make_no_sense_are_refused_too(quotas, words):
    with pytest.raises(packets.Wrong, match=words):
        packets.limits(quotas, {})


def test_ports_are_those_of_the_listeners():
    assert packets.ports(["[::]:5684", "192.0.2.1:5685", "192.0.2.7", "[::1]:5684"]) == [5684, 5685]
    with pytest.raises(
        packets.Wrong, match=r"dtls_endpoint_listen: '\[::\]:70000' is no address with a port"
    ):
        packets.ports(["[::]:70000"])


def test_a_device_may_begin_what_it_is_for():
    found = packets.device_egress(
        ["192.0.2.1", "2001:db8::1"], [5684], ["192.0.2.53"], [], [{"protocol": "tcp", "ports": [443]}]
    )
    assert [(one["why"], one["protocol"], one["ports"]) for one in found] == [
        ("DTLS to its endpoints", "udp", [5684]),
        ("DNS", "udp", [53]),
        ("DNS", "tcp", [53]),
        ("dtls_firewall_egress_extra", "tcp", [443]),
    ]
    assert (found[0]["ipv4"], found[0]["ipv6"], found[1]["ipv6"]) == (["192.0.2.1"], ["2001:db8::1"], [])
    assert (found[3]["ipv4"], found[3]["ipv6"]) == (["0.0.0.0/0"], ["::/0"])


@pytest.mark.parametrize(
    ("endpoints", "extra", "words"),
    [
        ([], [], "dtls_firewall_endpoints: is empty"),
        (["gateway.example"], [], "dtls_firewall_endpoints: .*no name"),
        (["192.0.2.1"], [{"protocol": "sctp", "ports": [1]}], "dtls_firewall_egress_extra: .*protocol"),
        (["192.0.2.1"], [{"port": 1}], "dtls_firewall_egress_extra: .*not understood"),
        (["192.0.2.1"], [{"ports": [0]}], "dtls_firewall_egress_extra: 0 is no port"),
    ],
)
def test_what_a_device_may_begin_is_refused_if_it_makes_no_sense(endpoints, extra, words):
    with pytest.raises(packets.Wrong, match=words):
        packets.device_egress(endpoints, [5684], [], [], extra)


SESSION = {"client": "192.0.2.9", "client_port": 50_000, "server": "192.0.2.1", "server_port": 2222}


@pytest.mark.parametrize(
    ("session", "ports", "sources", "words"),
    [
        (SESSION, [2222], ["192.0.2.0/24"], ""),
        (SESSION, ["22", "2222"], ["192.0.2.9"], ""),
        (SESSION, [22], ["192.0.2.9"], "port 2222, and dtls_firewall_ssh_ports has only 22. Remedy"),
        (SESSION, [2222], ["198.51.100.0/24"], "comes from 192.0.2.9, which dtls_firewall_management_sources does not admit. Remedy"),
        (SESSION, [2222], ["2001:db8::/32"], "comes from 192.0.2.9"),
        (SESSION | {"client": "2001:db8::5"}, [2222], ["2001:db8::/32"], ""),
        ({}, [22], [], "dtls_firewall_management_sources is empty"),
        ({}, [22], ["192.0.2.9"], ""),
    ],
)  # fmt: skip
def test_rules_that_would_end_the_session_are_refused_before_anything_happens(session, ports, sources, words):
    said = packets.refusal(session, ports, sources)
    assert words in said
    assert bool(words) == bool(said)
