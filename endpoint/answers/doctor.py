"""One identity, or one address: is it known, is it here, why did its last handshakes fail, and what can be done.

The findings are sentences, the most important first. What they rest on comes with them, for programs.
"""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from endpoint.admin import CommandError
from endpoint.answers.likeness import likeness, similar
from endpoint.answers.parts import keys_of, stamp, used
from endpoint.remedies import STORE_DOWN, quota_remedy
from endpoint.text import read_shown, show_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from endpoint.answers.parts import Keys, Parts
    from endpoint.history import Ended, Failure, Record, Success

SIMILAR = 5
"""Similar names that are told."""
TRIED = 5
"""Of the unknown names like it that were tried, the last ones are told; strangers make them up, as many and as long as they like."""
LIVE = 20
"""Live associations that are told of; the number says how many there are."""
REJECTIONS = 5

_NEVER = (
    "nothing was heard from it since this process started: see whether its datagrams arrive (tcpdump udp port {port}), which "
    "address and port it sends to, what firewalls and NATs do with UDP on the way, and which identity it is configured with"
)


async def doctor(parts: Parts, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer about ``identity`` (as shown), or about ``address`` (with or without a port)."""
    if isinstance(request.get("address"), str):
        return _about_address(parts, request["address"])
    try:
        identity = read_shown(request["identity"])
    except KeyError:
        raise CommandError("an identity or an address is needed") from None
    except (ValueError, TypeError) as error:
        raise CommandError(f"identity: {error}") from None
    return await _about_identity(parts, identity)


# --- an identity ------------------------------------------------------------------------------------


async def _about_identity(parts: Parts, identity: bytes) -> dict[str, Any]:
    keys = await keys_of(parts.keystore, identity)
    live, frozen = parts.engine.associations(identity), parts.engine.frozen_of(identity)
    record = parts.history.of(identity)
    proved = bool(live or frozen or (record is not None and record.success))
    known = True if keys.fingerprints or proved else (None if keys.unavailable else False)
    alike = [] if known else await _similar(parts, identity)
    tried = _tried_as(parts, identity) if known is not False else []
    refusals = [*_refusals(parts, record), *_refused_of_late(parts, identity)]
    rejections = parts.history.rejections_naming(show_bytes(identity)) if not keys.fingerprints else []
    answer: dict[str, Any] = {
        "identity": show_bytes(identity),
        "known": known,
        "keys": list(keys.fingerprints),
        "used": used(parts.usage, identity),
        "live": [{"path": one.remote, "credential": one.kind.value} for one in live[:LIVE]],
        "live_count": len(live),
        "frozen": frozen,
        **_remembered(record),
        "similar": [{"identity": show_bytes(name), "differs_in": how} for name, how in alike],
        "tried_as": [_tried(*one) for one in tried[:TRIED]],
        "tried_as_count": len(tried),
        "refusals": refusals,
        "rejections": [_failure(one) for one in rejections[-REJECTIONS:]],
    }
    if keys.unavailable is not None:
        answer["unavailable"] = keys.unavailable
    answer["findings"] = list(_findings(parts, answer, keys, record))
    return answer


def _findings(parts: Parts, answer: Mapping[str, Any], keys: Keys, record: Record | None) -> Iterator[str]:
    if keys.unavailable is not None:
        yield STORE_DOWN.format(why=keys.unavailable)
    if answer["known"] is False:
        yield "the identity is unknown: no key for it, and nobody has proved it with a certificate"
        for one in answer["similar"]:
            yield f"did you mean {one['identity']}? It is the same but for {one['differs_in']}"
    if answer["live_count"] or answer["frozen"]:
        yield f"it is connected: {answer['live_count']} live, {answer['frozen']} frozen"
    yield from _about_failures(record)
    for one in answer["tried_as"]:
        times = "once" if one["failed"] == 1 else f"{one['failed']} times"
        yield (
            f"somebody tried {times} as {one['identity']}, which is unknown and the same but for {one['differs_in']}; "
            f"last {one['when']} from {one['path']}: correct the name on the device"
        )
    more = answer["tried_as_count"] - len(answer["tried_as"])
    if more:
        yield f"{more} more such names were tried: somebody seems to be guessing"
    for one in answer["rejections"]:
        yield _words(one)
    for refusal in answer["refusals"]:
        who = "it" if refusal["address"] is None else "its address"
        last = f", last {refusal['when']}" if refusal["when"] else " of late"
        yield (
            f"{who} was refused {refusal['count']} times by the quota {refusal['quota']}{last}; "
            f"{quota_remedy(refusal['quota'])}"
        )
    if (
        answer["known"] is True
        and record is None
        and not (answer["live_count"] or answer["frozen"] or answer["tried_as"])
    ):
        port = parts.engine.sockets[0].port
        yield _NEVER.format(port=port)


def _about_failures(record: Record | None) -> Iterator[str]:
    if record is None:
        return
    newest = record.failures[-1] if record.failures else None
    success = record.success
    if newest is not None and (success is None or newest.when >= success.when):
        yield _words(_failure(newest))
    elif newest is not None and success is not None:
        yield f"its last handshake succeeded ({stamp(success.when)}); before that: {_words(_failure(newest))}"
    if record.ended is not None and (success is None or record.ended.when >= success.when):
        yield f"its last association ended {stamp(record.ended.when)}: {record.ended.reason}"


def _words(failure: Mapping[str, Any]) -> str:
    text = f"a handshake from {failure['path']} failed {failure['when']}: {failure['reason']}"
    return f"{text}; remedy: {failure['remedy']}" if failure["remedy"] else text


async def _similar(parts: Parts, identity: bytes) -> list[tuple[bytes, str]]:
    """In a thread: a fleet has 100,000 names, and each takes a few microseconds."""
    known = [await parts.names.all(), list(parts.engine.identities()), list(parts.history.identities())]
    return await trio.to_thread.run_sync(partial(_similar_of, identity, known))


def _similar_of(identity: bytes, known: list[list[bytes]]) -> list[tuple[bytes, str]]:
    return similar(identity, set().union(*known), limit=SIMILAR)


def _tried_as(parts: Parts, identity: bytes) -> list[tuple[bytes, str, Record]]:
    """The names that are nobody's, somebody used and are like this one, the last first; and how they are."""
    found = [
        (name, how, record)
        for name, record in parts.history.strangers()
        if record.failures and (how := likeness(name, identity)) is not None
    ]
    return found[::-1]


def _tried(name: bytes, how: str, record: Record) -> dict[str, Any]:
    last = record.failures[-1]
    return {
        "identity": show_bytes(name),
        "differs_in": how,
        "failed": record.failed,
        "when": stamp(last.when),
        "path": last.path,
        "reason": last.reason,
    }


def _refusals(parts: Parts, record: Record | None) -> list[dict[str, Any]]:
    """What quotas said to the addresses that it was heard from last."""
    if record is None:
        return []
    paths = [one.path for one in (record.success, *record.failures) if one is not None]
    hosts = dict.fromkeys(_host_of(path) for path in paths)
    return [one for host in hosts for one in _refusals_at(host, parts.history.near(host))]


def _refused_of_late(parts: Parts, identity: bytes) -> list[dict[str, Any]]:
    """What quotas said to the identity itself, where it is among those refused most."""
    shown = show_bytes(identity)
    return [
        {"address": None, "quota": one["reason"], "count": one["count"], "when": None}
        for one in parts.statistics().get("quotas", {}).get("top", ())
        if one["who"] == shown
    ]


def _refusals_at(host: str, record: Record | None) -> list[dict[str, Any]]:
    refusals = () if record is None else record.refusals
    return [
        {"address": host, "quota": one.reason, "count": one.count, "when": stamp(one.when)}
        for one in refusals
    ]


# --- an address -------------------------------------------------------------------------------------


def _about_address(parts: Parts, path: str) -> dict[str, Any]:
    host = _host_of(path)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise CommandError(f"address: {host[:80]!r} is no IP address") from None
    # As the kernel writes it, which is how it is remembered.
    host = str(getattr(address, "ipv4_mapped", None) or address)
    record = parts.history.near(host)
    answer = {
        "address": host,
        "identity": None if record is None or record.identity is None else show_bytes(record.identity),
        **_remembered(record),
        "refusals": _refusals_at(host, record),
    }
    findings = list(_about_failures(record))
    findings += [
        f"it was refused {one['count']} times by the quota {one['quota']}, last {one['when']}; {quota_remedy(one['quota'])}"
        for one in answer["refusals"]
    ]
    if record is None:
        port = parts.engine.sockets[0].port
        findings.append(_NEVER.format(port=port))
    answer["findings"] = findings
    return answer


# --- what both have ---------------------------------------------------------------------------------


def _remembered(record: Record | None) -> dict[str, Any]:
    return {
        "succeeded": 0 if record is None else record.succeeded,
        "failed": 0 if record is None else record.failed,
        "last_success": None if record is None else _success(record.success),
        "last_failures": [] if record is None else [_failure(one) for one in reversed(record.failures)],
        "ended": None if record is None else _ended(record.ended),
    }


def _success(success: Success | None) -> dict[str, Any] | None:
    if success is None:
        return None
    return {
        "when": stamp(success.when),
        "path": success.path,
        "credential": success.credential,
        "cipher_suite": success.cipher_suite,
        "resumed": success.resumed,
        "key_used": success.key_used,
        "fingerprint": success.fingerprint,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {
        "when": stamp(failure.when),
        "path": failure.path,
        "identity": None if failure.identity is None else show_bytes(failure.identity),
        "cause": failure.cause,
        "reason": failure.reason,
        "problem": failure.problem,
        "remedy": failure.remedy,
    }


def _ended(ended: Ended | None) -> dict[str, Any] | None:
    if ended is None:
        return None
    return {"when": stamp(ended.when), "path": ended.path, "cause": ended.cause, "reason": ended.reason}


def _host_of(path: str) -> str:
    """``192.0.2.7`` of ``192.0.2.7:40000``; ``2001:db8::1`` of ``[2001:db8::1]:40000``; else as it is."""
    if path.startswith("["):
        return path[1:].partition("]")[0]
    return path.partition(":")[0] if path.count(":") == 1 else path
