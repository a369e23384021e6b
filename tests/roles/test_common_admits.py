"""Rules are read before they are loaded: whether the session over which they come would get in."""

import pytest

from tests.roles.plays import load

ADMITS = load("module_utils/dtls_admits")
RULES = load("module_utils/dtls_rules")
SHELL = load("module_utils/dtls_shell")
FACTS = load("action_plugins/dtls_facts")
FOUR = ADMITS.Session("10.77.0.1", 40000, "10.77.0.21", 22)
SIX = ADMITS.Session("fd77::1", 40000, "fd77::21", 2222)
ITSELF = ADMITS.Session("127.0.0.1", 40000, "127.0.0.1", 22)


def chain(*rules, policy="drop", hook="input", name="c"):
    body = "\n".join(f"    {rule}" for rule in rules)
    return f"chain {name} {{\n    type filter hook {hook} priority 0; policy {policy};\n{body}\n}}\n"


OPEN = "ct state established,related accept"


def admits(content, session=FOUR):
    return ADMITS.refusal(ADMITS.Table(content), session) is None


@pytest.mark.parametrize(
    "content",
    [
        chain(OPEN, "tcp dport 22 accept"),
        chain(OPEN, "tcp dport ssh accept"),
        chain(OPEN, "tcp dport { 80, 22 } counter accept"),
        chain(OPEN, "tcp dport 20-23 accept"),
        chain(OPEN, "tcp dport != 23 accept"),
        chain(OPEN, "ip saddr 10.77.0.0/24 accept # everything"),
        chain(OPEN, "ip saddr { 192.0.2.1, 10.77.0.1-10.77.0.9 } ip daddr 10.77.0.21 tcp dport 22 ct state new accept"),
        chain(OPEN, 'ip saddr 10.77.0.1 tcp dport 22 counter packets 0 bytes 0 log prefix "in: " accept comment "drop"'),
        chain(OPEN, "ip6 saddr fd77::1 drop", "udp dport 22 drop", "tcp dport 22 accept"),
        chain(OPEN, "meta l4proto tcp th dport 22 accept"),
        chain(OPEN, "meta nfproto ipv4 ip protocol tcp tcp sport 40000 accept"),
        chain(OPEN, 'iifname "lo" drop', "tcp dport 22 accept"),
        chain(OPEN, "ip saddr 10.77.0.1 jump ours") + "chain ours {\n tcp dport 22 accept\n drop\n}\n",
        chain(OPEN, "goto ours") + "chain ours {\n tcp dport 23 drop\n tcp dport 22 accept\n}\n",
        "set ops {\n type ipv4_addr\n flags interval\n elements = { 10.77.0.0/24,\n 192.0.2.1 }\n}\n" + chain(OPEN, "ip saddr @ops accept"),
        chain(policy="accept"),
        chain(policy="accept", hook="forward") + chain("drop", hook="forward", name="d"),
        chain(OPEN, "tcp dport 22 accept") + chain(OPEN, hook="output", name="d"),
        chain("tcp dport 22 accept"),
        chain(OPEN, "limit rate 5/second drop", "tcp dport 22 accept"),
        "",
    ],
)  # fmt: skip
def test_a_session_that_gets_in_is_admitted(content):
    assert ADMITS.refusal(ADMITS.Table(content), FOUR) is None
    RULES.for_nft("guard", content)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (chain(OPEN), "a new connection"),
        (chain(OPEN, "tcp dport 23 accept"), "a new connection"),
        (chain(OPEN, "tcp dport { 80, 443 } accept"), "a new connection"),
        (chain(OPEN, "tcp dport != 22 accept"), "a new connection"),
        (chain(OPEN, "ip saddr 192.0.2.1 tcp dport 22 accept"), "a new connection"),
        (chain(OPEN, "ip6 saddr fd77::/64 accept"), "a new connection"),
        (chain(OPEN, "udp dport 22 accept"), "a new connection"),
        (chain(OPEN, "# tcp dport 22 accept"), "a new connection"),
        (chain(OPEN, 'log prefix "tcp dport 22 accept"'), "a new connection"),
        (chain(OPEN, "tcp dport 22 limit rate 3/minute accept"), "a new connection"),
        (chain(OPEN, "tcp dport 22 reject", "tcp dport 22 accept"), "a new connection"),
        (chain(OPEN, "drop", "tcp dport 22 accept"), "a new connection"),
        (
            chain(OPEN, "tcp dport 22 jump ours") + "chain ours {\n reject with tcp reset\n}\n",
            "a new connection",
        ),
        (chain(OPEN, "jump c"), "a new connection"),
        (chain("ct state new tcp dport 22 accept"), "a packet that follows"),
        (
            chain(OPEN, "tcp dport 22 accept") + chain("udp dport 53 accept", hook="output", name="d"),
            "its answer",
        ),
        (
            chain(OPEN, "tcp dport 22 accept") + chain("drop", hook="prerouting", policy="accept", name="d"),
            "a new",
        ),
    ],
)
def test_a_session_that_does_not_get_in_is_refused(content, why):
    assert why in ADMITS.refusal(ADMITS.Table(content), FOUR)


@pytest.mark.parametrize(
    ("told", "client", "network"),
    [
        ("10.77.0.1 40000 10.77.0.21 22", "10.77.0.1", "10.77.0.1"),
        ("::ffff:10.77.0.1 40000 ::ffff:10.77.0.21 22", "10.77.0.1", "10.77.0.1"),
        ("2001:db8::7 40000 2001:db8::21 22", "2001:db8::7", "2001:db8::/64"),
        ("fe80::7%eth0 40000 fe80::21%eth0 22", "fe80::7", "fe80::/64"),
    ],
)
def test_a_connection_is_told_as_packets_have_it(told, client, network):
    found = SHELL.connection(told)
    assert (found["client"], found["client_port"], found["server_port"]) == (client, 40000, 22)
    assert FACTS.network(client) == network
    ADMITS.Session(**found)


def test_a_session_of_ipv6_and_one_of_the_host_itself_are_looked_at_as_what_they_are():
    assert admits(chain(OPEN, "ip6 saddr fd77::/64 tcp dport 2222 accept"), SIX)
    assert not admits(chain(OPEN, "ip saddr 10.0.0.0/8 tcp dport 2222 accept"), SIX)
    assert admits(chain(OPEN, 'iif "lo" accept'), ITSELF)
    assert not admits(chain(OPEN, 'iif "lo" accept'), FOUR)


IPT = ["-A g-IN -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"]


def refused4(*rules, session=FOUR):
    return ADMITS.refusal(ADMITS.Chains(RULES.for_iptables("g", "\n".join([*IPT, *rules]))), session)


@pytest.mark.parametrize(
    "rules",
    [
        ["-A g-IN -p tcp --dport 22 -j ACCEPT", "-A g-IN -j DROP"],
        ["-A g-IN -s 10.77.0.0/24 -p tcp -m tcp --dport 20:23 -j ACCEPT", "-A g-IN -j DROP"],
        [
            "-A g-IN -p tcp -m multiport --dports 80,22 -m comment --comment 'a b' -j ACCEPT",
            "-A g-IN -j DROP",
        ],
        ["-A g-IN ! -s 192.0.2.1 -j ACCEPT", "-A g-IN -j DROP"],
        ["-6 -A g-IN -j DROP"],
        ["-A g-IN -i lo -j DROP"],
        ["-A g-IN -p tcp -j g-SSH", "-A g-IN -j DROP", "-A g-SSH -s 10.77.0.1 -j ACCEPT"],
        ["-A g-IN -p tcp -g g-SSH", "-A g-IN -j DROP", "-A g-SSH -s 192.0.2.1 -j ACCEPT"],
        ["-A g-OUT -p udp -j DROP"],
        ["-A g-FWD -j DROP"],
        ["-A g-IN -m hashlimit --hashlimit-above 5/sec --hashlimit-name x -j DROP"],
        ["-A g-IN -p udp -j g-UDP", "-A g-UDP -j DROP"],
    ],
)
def test_with_iptables_a_session_that_gets_in_is_admitted(rules):
    assert refused4(*rules) is None


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (["-A g-IN -j DROP"], "a new connection"),
        (["-A g-IN -p tcp --dport 23 -j ACCEPT", "-A g-IN -j REJECT"], "a new connection"),
        (["-6 -A g-IN -p tcp --dport 22 -j ACCEPT", "-A g-IN -j DROP"], "a new connection"),
        (["-A g-IN ! -s 10.77.0.1 -j ACCEPT", "-A g-IN -j DROP"], "a new connection"),
        (["-A g-IN -p tcp -m limit --limit 1/min -j ACCEPT", "-A g-IN -j DROP"], "a new connection"),
        (["-A g-OUT -j DROP"], "its answer"),
        (["-A g-IN -p tcp -j g-SSH", "-A g-SSH -j DROP"], "a new connection"),
    ],
)
def test_with_iptables_a_session_that_does_not_get_in_is_refused(rules, why):
    assert why in refused4(*rules)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("}\ntable inet other {", "line 1 closes the table"),
        ("chain c {", "a brace is not closed"),
        ("flush ruleset", "'flush ruleset' is not for one table"),
        ('include "/etc/x"', "is not for one table"),
        ("add table inet other", "line 1"),
        ("chain c {\n}\ndelete table ip filter", "line 3"),
    ],
)
def test_rules_for_nft_stay_inside_of_their_table(content, why):
    with pytest.raises(RULES.RulesError, match=why):
        RULES.for_nft("guard", content)


def test_braces_in_comments_and_in_quotes_are_no_braces():
    RULES.for_nft("guard", 'chain c {\n  counter comment "}" # } flush ruleset\n}\n')


@pytest.mark.parametrize(
    "line",
    [
        "-A INPUT -j ACCEPT",
        "-F",
        "COMMIT",
        "*nat",
        "-A g-in -j DROP",
        "-A h-IN -j DROP",
        "-A g-ID -j DROP",
        "-P INPUT DROP",
    ],
)
def test_rules_for_iptables_stay_in_our_chains(line):
    with pytest.raises(RULES.RulesError, match="line 2"):
        RULES.for_iptables("g", f"-A g-IN -j ACCEPT\n{line}\n")


@pytest.mark.parametrize("name", ["", "A", "a-b", "1a", "a b", "a" * 17, "a;b"])
def test_a_name_is_one_for_nft_and_for_iptables(name):
    with pytest.raises(RULES.RulesError, match="small letters"):
        RULES.checked_name(name)
