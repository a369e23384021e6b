"""Networks with limits of their own: which one holds, what counts as a source there, and what is no network."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.quotas import NetworkQuota, QuotaPolicy, Quotas, prefix_text
from sansdtls import ConfigError


def quotas_with(*networks, **options):
    """Each network's number of handshakes at once tells which one holds."""
    return Quotas(
        QuotaPolicy(
            networks=tuple(
                NetworkQuota(network=text, handshakes_per_second=0.001, handshake_burst=burst)
                for text, burst in networks
            ),
            **{"handshakes_per_second": 0.001, "handshake_burst": 1} | options,
        )
    )


def burst_of(quotas, host, now=0.0):
    prefix = quotas.prefix_of((host, 1))
    count = 0
    while quotas.admit_handshake(prefix, replaces=False, now=now) is None:
        quotas.release(prefix)
        count += 1
    return count


def test_the_limits_of_a_prefix_do_not_hold_in_a_network_that_is_only_named():
    quotas = Quotas(
        QuotaPolicy(
            networks=(NetworkQuota(network="100.64.0.0/10"),),
            half_open_per_prefix=1,
            associations_per_prefix=1,
            handshakes_per_second=0.001,
            handshake_burst=1,
            prefix_datagrams_per_second=0.001,
            prefix_datagram_burst=1,
            datagrams_per_second=None,
        )
    )
    prefix = quotas.prefix_of(("100.127.255.255", 1))
    for _ in range(1_000):
        assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
    quotas.completed(prefix)
    budget = quotas.data_budget(0.0, prefix=prefix)
    assert all(quotas.admit_data(budget, 1, 0.0) is None for _ in range(100))
    assert not quotas.prefix_is_over(prefix)
    for outside in ("100.63.255.255", "100.128.0.0"):
        prefix = quotas.prefix_of((outside, 1))
        assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
        assert quotas.admit_handshake(prefix, replaces=False, now=0.0) == "associations_per_prefix"


def test_each_number_of_a_network_holds_there_in_place_of_the_usual_one():
    told = NetworkQuota(
        network="198.51.100.0/24",
        half_open_per_prefix=3,
        associations_per_prefix=5,
        prefix_datagrams_per_second=0.001,
        prefix_datagram_burst=7,
        prefix_bytes_per_second=0.001,
        prefix_byte_burst=16_384,
    )
    quotas = Quotas(QuotaPolicy(networks=(told,), datagrams_per_second=None, bytes_per_second=None))
    prefix = quotas.prefix_of(("198.51.100.9", 1))
    reasons = [quotas.admit_handshake(prefix, replaces=False, now=0.0) for _ in range(4)]
    assert reasons == [None] * 3 + ["half_open_per_prefix"]
    for _ in range(3):
        quotas.completed(prefix)
    reasons = [quotas.admit_handshake(prefix, replaces=False, now=0.0) for _ in range(3)]
    assert reasons == [None] * 2 + ["associations_per_prefix"]
    one, two = (quotas.data_budget(0.0, prefix=prefix) for _ in range(2))
    assert [quotas.admit_data(one, 1, 0.0) for _ in range(6)] == [None] * 6
    assert quotas.admit_data(two, 16_384, 0.0) == "prefix_bytes_per_second"
    assert quotas.admit_data(two, 1, 0.0) is None
    assert quotas.admit_data(two, 1, 0.0) == "prefix_datagrams_per_second"


def test_the_longest_network_that_matches_counts_whatever_the_order():
    networks = [("10.0.0.0/8", 2), ("10.1.0.0/16", 3), ("10.1.2.0/24", 4), ("0.0.0.0/0", 5)]
    for order in (networks, networks[::-1]):
        quotas = quotas_with(*order)
        assert burst_of(quotas, "10.1.2.3") == 4
        assert burst_of(quotas, "10.1.3.3") == 3
        assert burst_of(quotas, "10.2.2.3") == 2
        assert burst_of(quotas, "11.1.2.3") == 5
        assert burst_of(quotas, "2001:db8::1") == 1


def test_networks_of_ipv6_match_and_mapped_addresses_are_ipv4():
    quotas = quotas_with(("2001:db8::/32", 2), ("::ffff:192.0.2.0/120", 3), ("::/0", 4))
    assert burst_of(quotas, "2001:db8:1::1") == 2
    assert burst_of(quotas, "192.0.2.1") == 3
    assert burst_of(quotas, "::ffff:192.0.2.2") == 3
    assert burst_of(quotas, "2001:db9::1") == 4
    assert burst_of(quotas, "::ffff:192.0.3.1") == 1


def test_in_a_network_that_is_longer_than_a_prefix_it_is_the_prefix():
    quotas = quotas_with(("192.0.2.128/25", 3), ("192.0.2.7", 4), ipv4_prefix_length=24)
    assert burst_of(quotas, "192.0.2.1") == 1
    assert burst_of(quotas, "192.0.2.2") == 0
    assert burst_of(quotas, "192.0.2.129") == 3
    assert burst_of(quotas, "192.0.2.130") == 0
    assert burst_of(quotas, "192.0.2.7") == 4
    shown = [prefix_text(quotas.prefix_of((f"192.0.2.{host}", 1))) for host in (1, 129, 7)]
    assert shown == ["192.0.2.0/24", "192.0.2.128/25", "192.0.2.7/32"]


def test_a_network_may_say_what_counts_as_a_source_there():
    mobile = NetworkQuota(
        network="2001:db8::/32", prefix_length=64, handshakes_per_second=0.001, handshake_burst=2
    )
    pool = NetworkQuota(
        network="203.0.113.0/24", prefix_length=28, handshakes_per_second=0.001, handshake_burst=3
    )
    quotas = Quotas(QuotaPolicy(networks=(mobile, pool)))
    assert [burst_of(quotas, f"2001:db8:0:{number}::1") for number in (1, 2, 1)] == [2, 2, 0]
    assert [burst_of(quotas, f"203.0.113.{host}") for host in (1, 15, 16)] == [3, 0, 3]


def test_many_networks_cost_no_more_to_look_up_than_one():
    networks = [(f"10.{number >> 8}.{number & 255}.0/24", 2) for number in range(20_000)]
    quotas = quotas_with(*networks)
    # One dict for each length, not one comparison for each network.
    assert len(quotas._networks._tables[4]) == 1
    assert burst_of(quotas, "10.78.31.1") == 2
    assert burst_of(quotas, "10.78.32.1") == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
            lambda drawn: IPv4Network((drawn[0] >> 32 - drawn[1] << 32 - drawn[1], drawn[1]))
        ),
        unique=True,
        max_size=12,
    ),
    st.integers(8, 32),
    st.data(),
)
def test_the_network_found_is_the_longest_that_holds_the_address(networks, length, data):
    policy = QuotaPolicy(
        networks=tuple(
            NetworkQuota(network=str(network), associations_per_prefix=number + 1)
            for number, network in enumerate(networks)
        ),
        associations_per_prefix=100,
        ipv4_prefix_length=length,
    )
    quotas = Quotas(policy)
    inside = [
        IPv4Address(int(network.network_address) + data.draw(st.integers(0, network.num_addresses - 1)))
        for network in networks
    ]
    for address in [*inside, data.draw(st.ip_addresses(v=4))]:
        holding = [network for network in networks if address in network]
        longest = max(holding, key=lambda network: network.prefixlen, default=None)
        expected = 100 if longest is None else networks.index(longest) + 1
        prefix = quotas.prefix_of((str(address), 1))
        assert quotas._networks.limits_of(prefix).associations == expected
        expected_length = max(length, 0 if longest is None else longest.prefixlen)
        assert prefix_text(prefix) == str(IPv4Network((int(address), expected_length), strict=False))


@given(st.ip_addresses(v=6), st.integers(16, 128))
def test_a_prefix_of_ipv6_is_shown_as_the_network_that_it_is(address: IPv6Address, length):
    quotas = Quotas(QuotaPolicy(ipv6_prefix_length=length))
    if address.ipv4_mapped is None:
        shown = prefix_text(quotas.prefix_of((str(address), 1, 0, 0)))
        assert shown == str(IPv6Network((int(address), length), strict=False))


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "x", "10.0.0.0/33", "10.0.0/8", "2001:db8::/129", "fe80::%1/64", "/8"])
def test_what_is_no_network_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"NetworkQuota\.network: .*not a network; remedy: write it like"):
        NetworkQuota(network=text)


@pytest.mark.parametrize(
    ("text", "network", "host"),
    [("192.0.2.1/24", "192.0.2.0/24", "192.0.2.1"), ("2001:db8::1/32", "2001:db8::/32", "2001:db8::1")],
)
def test_bits_beyond_the_length_are_refused_with_both_that_may_be_meant(text, network, host):
    with pytest.raises(ConfigError, match=f'remedy: "{network}" for the network, "{host}" for the one'):
        NetworkQuota(network=text)


def test_a_network_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"NetworkQuota\.network: 5 is not the text of a network"):
        NetworkQuota(network=5)  # type: ignore[arg-type]


def test_a_network_is_named_once():
    told = NetworkQuota(network="10.0.0.0/8"), NetworkQuota(network="::ffff:10.0.0.0/104")
    with pytest.raises(ConfigError, match=r"QuotaPolicy\.networks: .*is there twice; remedy: keep one"):
        QuotaPolicy(networks=told)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prefix_length", 7),
        ("prefix_length", 33),
        ("handshakes_per_second", 0),
        ("handshake_burst", 0),
        ("half_open_per_prefix", 0),
        ("associations_per_prefix", 1.5),
        ("prefix_datagrams_per_second", "1"),
        ("prefix_datagram_burst", None),
        ("prefix_bytes_per_second", -1),
        ("prefix_byte_burst", 100),
        ("share", 0),
    ],
)
def test_a_number_of_a_network_out_of_range_is_refused_with_the_name_of_its_field(field, value):
    with pytest.raises(ConfigError, match=rf"NetworkQuota\.{field}: "):
        NetworkQuota(**{"network": "10.0.0.0/8", field: value})
