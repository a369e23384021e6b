"""Whether rules let in the session over which they come, as far as can be read from them.

Three packets of the session go through the rules: the first one of a new connection, one that follows, and an answer. A
rule that is not understood decides nothing: of a rate limit before ``accept`` nobody can say whether it holds. So a "no"
means that no rule that is understood lets the packet pass, and a "yes" is still to be proven by connecting.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ACCEPT, DROP, RETURN, NEXT = "accept", "drop", "return", "next"
MAX_DEPTH = 16
"""Jumps; rules in a circle would have more."""

_SIGN = re.compile(r'"[^"\n]*"|[{};,\n]|!=|[^\s{};,"]+')
_COMMENT = re.compile(r'("[^"\n]*")|#[^\n]*')
_IGNORED = {"counter": 0, "comment": 1}
_OF_LOG = {"prefix", "level", "group", "flags", "snaplen", "queue-threshold"}
SERVICES = {"ssh": 22}


class Session(NamedTuple):
    """A connection of TCP to the host."""

    client: str
    client_port: int
    server: str
    server_port: int


class Packet(NamedTuple):
    """What is looked at of a packet."""

    name: str
    path: tuple[str, ...]
    source: str
    source_port: int
    destination: str
    destination_port: int
    state: str


def packets(session: Session) -> list[Packet]:
    """The packets that have to pass."""
    arriving = ("ingress", "prerouting", "input")
    there = (session.client, session.client_port, session.server, session.server_port)
    back = (session.server, session.server_port, session.client, session.client_port)
    return [
        Packet("a new connection", arriving, *there, "new"),
        Packet("a packet that follows it", arriving, *there, "established"),
        Packet("its answer", ("output", "postrouting"), *back, "established"),
    ]


class Rules:
    """Chains of rules, and a packet's way through them."""

    def __init__(self) -> None:
        self.hooks: dict[str, list[str]] = {}
        """The chains that a packet meets at each."""
        self.chains: dict[str, list[list[str]]] = {}
        self.policies: dict[str, str] = {}
        """What becomes of a packet at a chain's end. Where there is none, it is left to chains of others."""

    def refuses(self, packet: Packet) -> str | None:
        """The chain in which the packet ends; ``None`` if it passes."""
        for hook in packet.path:
            for chain in self.hooks.get(hook, []):
                verdict = self._walk(chain, packet, 0)
                if verdict == RETURN:
                    verdict = self.policies.get(chain, ACCEPT)
                if verdict != ACCEPT:
                    return chain
        return None

    def _walk(self, chain: str, packet: Packet, depth: int) -> str:
        if depth > MAX_DEPTH:
            return DROP
        for rule in self.chains.get(chain, []):
            verdict = self._judge(rule, packet, depth)
            if verdict != NEXT:
                return verdict
        return RETURN

    def _visit(self, chain: str, packet: Packet, depth: int, *, comes_back: bool) -> str:
        """A jump, which comes back to the next rule, or a goto, which does not."""
        verdict = self._walk(chain, packet, depth + 1)
        if verdict != RETURN:
            return verdict
        return NEXT if comes_back else RETURN

    def _judge(self, rule: list[str], packet: Packet, depth: int) -> str:
        raise NotImplementedError


# --- nft --------------------------------------------------------------------------------------------


class Table(Rules):
    """The chains and sets of what stands inside a table of nft."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._signs = _SIGN.findall(_COMMENT.sub(r"\1", text))
        self._at = 0
        self.sets: dict[str, list[str]] = {}
        while self._at < len(self._signs):
            kind = self._next()
            if kind == "chain":
                self._chain(self._next())
            elif kind in {"set", "map"}:
                name, statements = self._next(), self._block()
                self.sets[name] = _elements(statements) if kind == "set" else []
            elif kind == "{":
                self._skip()

    def _next(self) -> str:
        sign = self._signs[self._at] if self._at < len(self._signs) else "}"
        self._at += 1
        return sign

    def _skip(self) -> None:
        depth = 1
        while depth and self._at < len(self._signs):
            depth += {"{": 1, "}": -1}.get(self._next(), 0)

    def _block(self) -> list[list[str]]:
        """The statements between two braces."""
        while self._next() != "{":
            pass
        statements: list[list[str]] = [[]]
        depth = 1
        while self._at <= len(self._signs):
            sign = self._next()
            depth += {"{": 1, "}": -1}.get(sign, 0)
            if depth == 0:
                break
            if sign in ";\n":
                if depth == 1:
                    statements.append([])
            else:
                statements[-1].append(sign)
        return [statement for statement in statements if statement]

    def _chain(self, name: str) -> None:
        rules = []
        for statement in self._block():
            if statement[0] == "type" and "hook" in statement:
                hook = statement[statement.index("hook") + 1]
                self.hooks.setdefault(hook, []).append(name)
            elif statement[0] == "policy":
                self.policies[name] = statement[1]
            else:
                rules.append(statement)
        self.chains[name] = rules

    def _judge(self, rule: list[str], packet: Packet, depth: int) -> str:
        words = list(rule)
        while words:
            word = words.pop(0)
            if word in {ACCEPT, DROP, RETURN}:
                return word
            if word == "reject":
                return DROP
            if word == "continue":
                return NEXT
            if word in {"jump", "goto"}:
                return self._visit(words.pop(0), packet, depth, comes_back=word == "jump")
            if word in _IGNORED:
                del words[: _IGNORED[word]]
                while words and word == "counter" and words[0] in {"packets", "bytes"}:
                    del words[:2]
                continue
            if word == "log":
                while words and words[0] in _OF_LOG:
                    del words[:2]
                continue
            # What cannot be told decides nothing; neither does what does not match.
            if not self._matches(word, words, packet):
                return NEXT
        return NEXT

    def _matches(self, word: str, words: list[str], packet: Packet) -> bool | None:
        version = ipaddress.ip_address(packet.source).version
        if word in {"iif", "iifname", "oif", "oifname"}:
            same = packet.source == packet.destination
            return _listed(words, self.sets, lambda value: same if value.strip('"') == "lo" else None)
        if word == "meta" and words[:1] in (["nfproto"], ["l4proto"]):
            kind = words.pop(0)
            mine = {f"ipv{version}"} if kind == "nfproto" else {"tcp", "6"}
            return _listed(words, self.sets, lambda value: value in mine)
        if word == "ct" and words[:1] == ["state"]:
            words.pop(0)
            if words[:1] == ["vmap"]:
                return None
            return _listed(words, self.sets, lambda value: value == packet.state)
        if word in {"ip", "ip6"} and words[:1] in (["saddr"], ["daddr"]):
            address = packet.source if words.pop(0) == "saddr" else packet.destination
            result = _listed(words, self.sets, lambda value: _holds(value, address))
            return result if (word == "ip") == (version == 4) else False
        if (word, *words[:1]) in {("ip", "protocol"), ("ip6", "nexthdr")}:
            words.pop(0)
            result = _listed(words, self.sets, lambda value: value in {"tcp", "6"})
            return result if (word == "ip") == (version == 4) else False
        if word in {"tcp", "th", "udp", "sctp", "dccp"} and words[:1] in (["dport"], ["sport"]):
            port = packet.destination_port if words.pop(0) == "dport" else packet.source_port
            result = _listed(words, self.sets, lambda value: _spans(value, port))
            return result if word in {"tcp", "th"} else False
        if word in {"udp", "icmp", "icmpv6", "sctp", "dccp"}:
            return False
        return None


def _elements(statements: list[list[str]]) -> list[str]:
    for statement in statements:
        if statement[:2] == ["elements", "="]:
            return [sign for sign in statement[2:] if sign not in "{},"]
    return []


def _listed(
    words: list[str], sets: Mapping[str, list[str]], holds: Callable[[str], bool | None]
) -> bool | None:
    """Take one value, or several, from ``words``: whether one of them ``holds``; the other way round after ``!=``."""
    negated = words[:1] == ["!="]
    if negated or words[:1] == ["=="]:
        words.pop(0)
    if words[:1] == ["{"]:
        end = words.index("}")
        values = [sign for sign in words[1:end] if sign != ","]
        del words[: end + 1]
    else:
        values = [words.pop(0)] if words else []
        while words[:1] == [","]:
            values.append(words[1])
            del words[:2]
    known = [
        value for word in values for value in (sets.get(word[1:], []) if word.startswith("@") else [word])
    ]
    results = [holds(value) for value in known]
    found = True if True in results else None if None in results else False
    return found if found is None else found != negated


def _holds(network: str, address: str) -> bool | None:
    try:
        if "-" in network:
            first, last = map(ipaddress.ip_address, network.split("-"))
            one = ipaddress.ip_address(address)
            return first.version == one.version and int(first) <= int(one) <= int(last)
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return None


def _spans(ports: str, port: int) -> bool | None:
    first, _, last = ports.partition("-")
    try:
        bounds = [int(SERVICES.get(name, name)) for name in (first, last or first)]
        return bounds[0] <= port <= bounds[1]
    except ValueError:
        return None


# --- iptables ---------------------------------------------------------------------------------------


_TARGETS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": DROP, "RETURN": RETURN}


class Chains(Rules):
    """The chains of iptables-restore's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        for line in text.splitlines():
            words = shlex.split(line)
            family = words.pop(0) if words[:1] in (["-4"], ["-6"]) else ""
            if words[:1] == ["-A"]:
                self.chains.setdefault(words[1], []).append([family, *words[2:]])
            elif words[:1] == ["-I"]:
                self.hooks.setdefault(words[1].lower(), []).append(words[3])

    def _judge(self, rule: list[str], packet: Packet, depth: int) -> str:
        if not _rule_matches(rule, packet):
            return NEXT
        kind, target = _target(rule)
        if target in _TARGETS:
            return _TARGETS[target]
        # What is no chain of ours, such as LOG, is come back from.
        return self._visit(target, packet, depth, comes_back=kind in {"-j", "--jump"})


def _target(rule: list[str]) -> tuple[str, str]:
    for kind in ("-j", "--jump", "-g", "--goto"):
        if kind in rule:
            return kind, rule[rule.index(kind) + 1]
    return "-j", ""


def _rule_matches(rule: list[str], packet: Packet) -> bool | None:
    version = ipaddress.ip_address(packet.source).version
    if rule[0] and rule[0] != f"-{version}":
        return False
    words, negated = rule[1:], False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        if word in {"-j", "--jump", "-g", "--goto"}:
            return True
        result = _option(word, words, packet)
        if result is None or result == negated:
            return result if result is None else False
        negated = False
    return True


def _option(word: str, words: list[str], packet: Packet) -> bool | None:
    value = words.pop(0) if words else ""
    if word in {"-m", "--match"}:
        # What they match is in options of theirs; without one they match everything.
        return True if value in {"tcp", "udp", "comment", "conntrack", "state", "multiport"} else None
    if word == "--comment":
        return True
    if word in {"-p", "--protocol"}:
        return value in {"tcp", "6", "all"}
    if word in {"-s", "--source", "-d", "--destination"}:
        address = packet.source if word in {"-s", "--source"} else packet.destination
        results = [_holds(network, address) for network in value.split(",")]
        return True if True in results else None if None in results else False
    if word in {"--dport", "--dports", "--destination-port", "--sport", "--sports", "--source-port"}:
        port = packet.destination_port if word.startswith("--d") else packet.source_port
        results = [_spans(ports.replace(":", "-"), port) for ports in value.split(",")]
        return True if True in results else None if None in results else False
    if word in {"--ctstate", "--state"}:
        return packet.state.upper() in value.split(",")
    if word in {"-i", "--in-interface", "-o", "--out-interface"} and value == "lo":
        return packet.source == packet.destination
    return None


def refusal(rules: Rules, session: Session) -> str | None:
    """Why ``rules`` would end ``session``, as far as can be seen; ``None`` if they would not."""
    for packet in packets(session):
        chain = rules.refuses(packet)
        if chain is not None:
            return f"the chain {chain} lets {packet.name} from {packet.source} to port {packet.destination_port} not pass"
    return None
