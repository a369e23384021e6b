"""``[quotas]`` in the configuration file: what each key does, and what is said of a value that cannot be."""

import datetime as dt
from pathlib import Path

import attrs
import pytest

from endpoint.check import describe
from endpoint.config import NOT_IN_QUOTAS, ConfigFileError, EndpointConfig, parse_config
from endpoint.keystore.loading import LoadedCredentials
from endpoint.quotas import NetworkQuota, QuotaPolicy, Quotas
from sansdtls import Limits

BEGINNING = '[credentials]\npsk_file = "psk.txt"\n[quotas]\n'
HOST = "192.0.2.1"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def parsed(text: str) -> EndpointConfig:
    return parse_config((BEGINNING + text).encode(), name="endpoint.toml", directory=Path("/etc"))


def quotas(text: str) -> Quotas:
    return Quotas(parsed(text).quotas, Limits(max_half_open=100))


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigFileError) as caught:
        parsed(text)
    return caught.value.problems


# --- what each key does: how many of many are let through, and why no more are ------------------------------


def handshakes(under, *, times=200, hosts=(HOST,), now=0.0, ends=True):
    """Of each host so many handshakes."""
    outcomes = []
    for _ in range(times):
        for host in hosts:
            prefix = under.prefix_of((host, 1))
            outcomes.append(under.admit_handshake(prefix, replaces=False, now=now))
            if ends and outcomes[-1] is None:
                under.release(prefix)
    return outcomes


def under_way(under, **more):
    return handshakes(under, ends=False, **more)


def live(under):
    outcomes = []
    for _ in range(200):
        prefix = under.prefix_of((HOST, 1))
        outcomes.append(under.admit_handshake(prefix, replaces=False, now=0.0))
        if outcomes[-1] is None:
            under.completed(prefix)
    return outcomes


def proofs(under, now=0.0):
    return [under.admit_identity(b"meter-1", now) for _ in range(200)]


def siblings(under):
    return [
        under.count_identity_overflow(b"meter-1", 0.0) if under.identity_is_full(held) else None
        for held in range(200)
    ]


def datagrams(under, size=1, *, associations=1, now=0.0, again=None):
    prefix = under.prefix_of((HOST, 1))
    budgets = []
    for _ in range(associations):
        under.hold(prefix)
        budgets.append(under.data_budget(now, prefix=prefix, identity=b"meter-1"))
    outcomes = [under.admit_data(budget, size, now) for _ in range(200) for budget in budgets]
    if again is not None:
        outcomes = [under.admit_data(budgets[0], size, again) for _ in range(200)]
    return outcomes


def many(under):
    return datagrams(under, associations=2)


def large(under):
    return datagrams(under, 4_096, associations=2)


NEIGHBOURS = ("192.0.2.1", "192.0.2.2")
UNLIMITED_DATA = "datagrams_per_second = 'unlimited'\nbytes_per_second = 'unlimited'\n"
FULL_PIECES = 16_384 // 4_096


@pytest.mark.parametrize(
    ("text", "act", "admitted", "reason"),
    [
        ("handshake_burst = 3", handshakes, 3, "handshakes_per_second"),
        ("half_open_per_prefix = 3", under_way, 3, "half_open_per_prefix"),
        ("associations_per_prefix = 3", live, 3, "associations_per_prefix"),
        ("prefix_datagram_burst = 3", many, 3, "prefix_datagrams_per_second"),
        ("prefix_byte_burst = 16384", large, FULL_PIECES, "prefix_bytes_per_second"),
        ("identity_handshake_burst = 3", proofs, 3, "identity_handshakes_per_second"),
        ("associations_per_identity = 3", siblings, 3, "associations_per_identity"),
        (
            "identity_datagrams_per_second = 1\nidentity_datagram_burst = 3",
            many,
            3,
            "identity_datagrams_per_second",
        ),
        (
            "identity_bytes_per_second = 1\nidentity_byte_burst = 16384",
            large,
            FULL_PIECES,
            "identity_bytes_per_second",
        ),
        ("datagram_burst = 3", datagrams, 3, "datagrams_per_second"),
        ("byte_burst = 16384", large, 2 * FULL_PIECES, "bytes_per_second"),
        ("total_handshake_burst = 3", handshakes, 3, "total_handshakes_per_second"),
        ("fair_reserve = 0\ntotal_handshake_burst = 40", handshakes, 40, "total_handshakes_per_second"),
        ("fair_reserve = 0.5\ntotal_handshake_burst = 40", handshakes, 20, "total_handshakes_per_second"),
        ("fair_reserve = 0.5", under_way, 50, "max_half_open"),
        (
            f"{UNLIMITED_DATA}total_datagrams_per_second = 1\ntotal_datagram_burst = 3",
            many,
            3,
            "total_datagrams_per_second",
        ),
        (
            f"{UNLIMITED_DATA}total_bytes_per_second = 1\ntotal_byte_burst = 16384\nfair_reserve = 0",
            large,
            FULL_PIECES,
            "total_bytes_per_second",
        ),
    ],
)
def test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key(text, act, admitted, reason):
    outcomes = act(quotas(text))
    assert outcomes.count(None) == admitted
    assert set(outcomes) == {None, reason}


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (
            "handshakes_per_second = 2\nhandshake_burst = 9",
            handshakes,
            lambda under: handshakes(under, now=2.0),
        ),
        (
            "identity_handshakes_per_second = 2\nidentity_handshake_burst = 9",
            proofs,
            lambda under: proofs(under, now=2.0),
        ),
        (
            "total_handshakes_per_second = 2\ntotal_handshake_burst = 9\nfair_reserve = 0",
            handshakes,
            lambda under: handshakes(under, now=2.0),
        ),
        ("datagrams_per_second = 2", None, lambda under: datagrams(under, again=2.0)),
        ("prefix_datagrams_per_second = 2", None, lambda under: datagrams(under, again=2.0)),
        ("identity_datagrams_per_second = 2", None, lambda under: datagrams(under, again=2.0)),
        ("total_datagrams_per_second = 2\nfair_reserve = 0", None, lambda under: datagrams(under, again=2.0)),
    ],
)
def test_a_rate_is_what_comes_back_each_second(text, first, second):
    bursts = "\n".join(
        f"{scope}datagram_burst = 9"
        for scope in ("", "prefix_", "identity_", "total_")
        if f"{scope}datagrams" in text
    )
    under = quotas(f"{text}\n{bursts}")
    if first is not None:
        assert first(under).count(None) == 9
    assert second(under).count(None) == 4


@pytest.mark.parametrize("scope", ["", "prefix_", "identity_", "total_"])
def test_a_rate_of_bytes_is_what_comes_back_each_second(scope):
    under = quotas(
        f"datagrams_per_second = 1000\n{scope}bytes_per_second = 4096\n{scope}byte_burst = 16384\nfair_reserve = 0"
    )
    assert datagrams(under, 4_096, again=3.0).count(None) == 3


@pytest.mark.parametrize(
    ("text", "hosts", "admitted"),
    [
        ("ipv4_prefix_length = 32", NEIGHBOURS, 2),
        ("ipv4_prefix_length = 24", NEIGHBOURS, 1),
        ("ipv6_prefix_length = 64", ("2001:db8::1", "2001:db8:0:1::1"), 2),
        ("ipv6_prefix_length = 56", ("2001:db8::1", "2001:db8:0:1::1"), 1),
        ('networks = ["192.0.2.2"]', NEIGHBOURS, 11),
        ('networks = ["192.0.2.0/24"]', NEIGHBOURS, 20),
        ('networks = [{network = "192.0.2.2/32", handshakes_per_second = 1, handshake_burst = 4}]', NEIGHBOURS, 5),
        ('[[quotas.networks]]\nnetwork = "192.0.2.0/24"\nprefix_length = 25\nhandshakes_per_second = 1', NEIGHBOURS, 20),
        ('networks = ["192.0.2.0/24", {network = "192.0.2.1", handshakes_per_second = 1, handshake_burst = 1}]', NEIGHBOURS, 11),
    ],
)  # fmt: skip
def test_what_one_source_is(text, hosts, admitted):
    under = quotas(f"handshake_burst = 1\n{text}")
    assert handshakes(under, times=10, hosts=hosts).count(None) == admitted


def test_a_share_is_for_how_many_a_source_counts():
    text = 'fair_reserve = 1\nhalf_open_per_prefix = "unlimited"\nnetworks = [{network = "192.0.2.1", share = 4}]'
    under = quotas(text)
    assert under_way(under).count(None) == 80
    other = quotas(text)
    assert under_way(other, hosts=("192.0.2.2",)).count(None) == 50


@pytest.mark.parametrize(
    ("text", "figure", "expected"),
    [
        ("tracked_prefixes = 7", "tracked_prefixes", 7),
        ("tracked_identities = 7", "tracked_identities", 7),
        ("tracked_offenders = 7", "tracked_offenders", 7),
    ],
)
def test_so_many_are_remembered(text, figure, expected):
    under = quotas(f"handshake_burst = 1\nhandshakes_per_second = 0.001\n{text}")
    for number in range(50):
        handshakes(under, times=2, hosts=(f"192.0.2.{number}",))
        under.admit_identity(b"%d" % number, 0.0)
    assert under.statistics(now=0.0)[figure] == expected


def test_a_refusal_counts_half_after_the_half_life():
    under = quotas("handshake_burst = 1\noffender_half_life = 20")
    handshakes(under, times=101)
    assert under.offenders.top(1, now=0.0) == [("192.0.2.1/32", "handshakes_per_second", 100)]
    assert under.offenders.top(1, now=20.0) == [("192.0.2.1/32", "handshakes_per_second", 50)]


# --- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{field.name} = {bad}", f"endpoint.toml: quotas.{field.name}: ")
        for field in attrs.fields(QuotaPolicy)
        if field.name not in NOT_IN_QUOTAS
        for bad in ("-1", "true", '"some"', "[[1]]")
    ],
)
def test_each_value_that_cannot_be_is_told_with_its_key(text, said):
    (line,) = problems(text)
    assert line.startswith(said)


@pytest.mark.parametrize("name", NOT_IN_QUOTAS)
def test_what_is_for_channels_only_is_no_key_of_the_file(name):
    (line,) = problems(f"{name} = 100000")
    assert line.startswith(f"endpoint.toml: quotas.{name}: unknown key")


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        (
            '"100.64.0.1/10"',
            ('networks."100.64.0.1/10": \'100.64.0.1/10\' has bits set beyond its length;'
            ' remedy: "100.64.0.0/10" for the network, "100.64.0.1" for the one address'),
        ),
        (
            '"ten"',
            ("networks.\"ten\": 'ten' is not a network;"
            ' remedy: write it like "100.64.0.0/10" or "2001:db8::/32"'),
        ),
        ("10", "networks: a table is needed, not a whole number (10)"),
        ('"10.0.0.0/8", "10.0.0.0/8"', 'networks: "10.0.0.0/8" is there twice; remedy: keep one of them'),
        (
            "{share = 2}",
            'networks.network: missing; remedy: add the network, such as  network = "100.64.0.0/10"',
        ),
        (
            '{network = "10.0.0.0/8", handshake_burts = 2}',
            'networks."10.0.0.0/8".handshake_burts: unknown key (did you mean "handshake_burst"?)',
        ),
        (
            '{network = "10.0.0.0/8", prefix_length = 4}',
            'networks."10.0.0.0/8".prefix_length: 4 is not a whole number within 8 to 32 bits',
        ),
        *(
            (f'{{network = "10.0.0.0/8", {field.name} = -1}}', f'networks."10.0.0.0/8".{field.name}: -1 is not a ')
            for field in attrs.fields(NetworkQuota)
            if field.name != "network"
        ),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_is_told_with_its_name_and_the_remedy(networks, said):
    (line,) = problems(f"networks = [{networks}]")
    assert line.startswith(f"endpoint.toml: quotas.{said}")


def test_every_mistake_in_networks_is_told_at_once():
    assert len(problems('networks = ["a", "b", {network = "10.0.0.0/8", x = 1, y = 2}]')) == 4


# --- what check says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "takes an IPv4 /32 and an IPv6 /56 for one source, which may begin 100 handshakes a second"),
        (
            'ipv4_prefix_length = 24\nhandshakes_per_second = "unlimited"\nnetworks = ["10.0.0.0/8"]',
            (
                "takes an IPv4 /24 and an IPv6 /56 for one source, which may begin as many handshakes as come; "
                "1 network has limits of its own"
            ),
        ),
    ],
)
def test_check_says_what_one_source_is_and_that_there_are_other_numbers(text, said):
    told = describe(Path("endpoint.toml"), parsed(text), LoadedCredentials(), NOW)
    assert said in told
