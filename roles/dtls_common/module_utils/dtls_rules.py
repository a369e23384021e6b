"""Rules as text: what goes to nft or iptables-restore, made of what a task says; and what no task may say.

Either text is one transaction, holds the SHA-256 of what it was made of, so that a host can be asked what is in force,
and names nothing but our own table, or our own chains and the jumps to them.
"""

from __future__ import annotations

import hashlib
import re

HOOKS = {"IN": "INPUT", "OUT": "OUTPUT", "FWD": "FORWARD"}
"""By the end of the name of one of our chains: the chain of iptables that jumps to it."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,15}")
_OTHERS = re.compile(
    r"\b(?:flush\s+ruleset|include\s|(?:add|delete|flush|create|destroy|insert|table)\s+(?:ip6?|inet|arp|bridge|netdev)\b)"
)


class RulesError(Exception):
    """What a task says cannot be made rules of; what, and a remedy."""


def checked_name(name: str) -> str:
    """The name of our table; of our chains, the beginning."""
    if not _NAME.fullmatch(name):
        raise RulesError(f"name: {name!r} is not up to 16 small letters, digits and _, with a letter first")
    return name


def fingerprint(content: str) -> str:
    """The SHA-256 of rules; blanks at the ends of lines and empty lines mean nothing."""
    lines = [line.rstrip() for line in content.splitlines()]
    return hashlib.sha256("".join(f"{line}\n" for line in lines if line).encode()).hexdigest()


def for_nft(name: str, content: str) -> str:
    """``content``, the inside of a table, as a file for nft that replaces the table."""
    _inside(content)
    return (
        f"table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n"
        f'\tcomment "sansdtls {fingerprint(content)}"\n{content.rstrip()}\n}}\n'
    )


def nothing(name: str, *, nft: bool) -> str:
    """What takes everything of that name away."""
    return f"table inet {name}\ndelete table inet {name}\n" if nft else "*filter\nCOMMIT\n"


def without_comments(content: str) -> str:
    """``content`` of nft with comments gone, and quoted text emptied: neither holds rules."""
    return re.sub(r'"[^"\n]*"|#[^\n]*', lambda match: '""' if match[0].startswith('"') else "", content)


def _inside(content: str) -> None:
    plain = without_comments(content)
    depth = 0
    for number, line in enumerate(plain.splitlines(), 1):
        for letter in line:
            depth += {"{": 1, "}": -1}.get(letter, 0)
            if depth < 0:
                raise RulesError(
                    f"content: line {number} closes the table; remedy: only what is inside of it"
                )
        if match := _OTHERS.search(line):
            raise RulesError(
                f"content: line {number}: {match[0].strip()!r} is not for one table; remedy: only what is inside of it"
            )
    if depth:
        raise RulesError("content: a brace is not closed")


def for_iptables(name: str, content: str) -> str:
    """``content``, ``-A`` lines for our chains, as a file for iptables-restore on a host that has none of them."""
    chains: dict[str, None] = {}
    rules = []
    for number, line in enumerate(content.splitlines(), 1):
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        match = re.match(rf"(?:-[46] )?-A ({name}-[A-Z0-9]{{1,8}})( |$)", rule)
        if match is None:
            raise RulesError(
                f"content: line {number} is not for a chain of ours; remedy: -A {name}-IN …, {name}-OUT, {name}-FWD or another"
            )
        if match[1] == f"{name}-ID":
            raise RulesError(f"content: line {number}: {name}-ID is taken; remedy: another name")
        chains[match[1]] = None
        rules.append(rule)
    hooked = [(hook, f"{name}-{end}") for end, hook in HOOKS.items() if f"{name}-{end}" in chains]
    jumped = {
        word for rule in rules for word in re.findall(r"-[jg] (\S+)", rule) if word.startswith(f"{name}-")
    }
    lines = [
        "*filter",
        *(f":{chain} - [0:0]" for chain in [f"{name}-ID", *chains, *sorted(jumped - set(chains))]),
        f"-A {name}-ID -m comment --comment sansdtls-{fingerprint(content)}",
        *rules,
        *(f"-I {hook} -j {chain}" for hook, chain in hooked),
        "COMMIT",
    ]
    return "".join(f"{line}\n" for line in lines)
