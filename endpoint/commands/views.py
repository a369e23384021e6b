"""Answers of the admin socket as lines for people. Everything in them is shown as the service has escaped it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FEW = 8
"""Members of a table that are named in a line."""


def status_rows(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What there is to say about a service, as (what, text) pairs."""
    state = answer["state"] if answer["ready"] else f"{answer['state']}, NOT READY"
    yield (
        "state",
        f"{state}; version {answer['version']}, up {duration(answer['uptime'])} (since {answer['started']})",
    )
    for part, reason in answer["not_ready"].items():
        yield f"not ready: {part}", show_text(str(reason))
    for listener in answer["listeners"]:
        facts = [listener["address"]]
        if listener["dropped_by_kernel"]:
            facts.append(f"dropped by the kernel: {listener['dropped_by_kernel']}")
        facts += [f"{error} on sending: {count}" for error, count in listener["send_errors"].items()]
        facts += [f"{error} on receiving: {count}" for error, count in listener["receive_errors"].items()]
        yield "listens on", ", ".join(facts)
    yield (
        "associations",
        f"{answer['associations']} live, {answer['frozen']} frozen, {answer['half_open']} half open",
    )
    recent = answer["recent"]
    yield (
        f"last {duration(recent['seconds'])}",
        _results(recent["completed"], recent["failed"], recent["refused"]),
    )
    yield (
        "since the start",
        _results(answer["handshakes_completed"], answer["handshakes_failed"], answer["refused"]),
    )
    for offender in answer["offenders"]:
        yield "refused most", f"{show_text(offender['what'])}: {offender['count']} by {offender['quota']}"
    if answer["datagrams_dropped"]:
        yield "dropped", _few(answer["datagrams_dropped"])
    credentials = answer["credentials"]
    if credentials:
        # None for a store that cannot count them.
        known = credentials["identities"] is not None
        counts = (
            f"{credentials['identities']} identities, {credentials['in_rotation']} in rotation; "
            if known
            else ""
        )
        yield "keys", f"{counts}reloads: {_few(credentials['reloads'])}"
    yield from _nested("key store", answer["key_store"])
    yield from _nested("forwards", answer["forward"])
    state_rows = {
        name.removeprefix("state_"): value for name, value in answer.items() if name.startswith("state_")
    }
    if state_rows:
        yield "database", _few(state_rows)


def status_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """The same as lines."""
    rows = list(status_rows(answer))
    width = max(len(what) for what, _ in rows)
    return (f"{what:<{width}}  {text}" for what, text in rows)


def identity_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """One identity."""
    keys = ", ".join(entry["keys"]) or entry.get("unavailable") or "no key here"
    used = entry["used"]
    last = f"; used last: {used['which']} {used['fingerprint']} {used['when']}" if used else ""
    yield f"{entry['identity']}: {keys}{last}; {entry['live']} live, {entry['frozen']} frozen"


def doctor_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """What is known of an identity or an address."""
    if "address" in answer:
        yield f"address {answer['address']}"
        if answer["identity"] is not None:
            yield f"  last used by {answer['identity']}"
    else:
        known = {True: "known", False: "UNKNOWN", None: "not known whether it is known"}[answer["known"]]
        yield f"identity {answer['identity']}: {known}"
        if answer["keys"]:
            yield f"  keys accepted: {', '.join(answer['keys'])}"
        if answer["used"]:
            used = answer["used"]
            yield f"  used last: {used['which']} key {used['fingerprint']} at {used['when']}"
        yield f"  associations: {answer['live_count']} live, {answer['frozen']} frozen"
        for one in answer["live"]:
            yield f"    {one['path']} ({one['credential']})"
    yield f"  handshakes remembered: {answer['succeeded']} succeeded, {answer['failed']} failed"
    success = answer["last_success"]
    if success:
        resumed = ", resumed" if success["resumed"] else ""
        key = f", {success['key_used']} key" if success["key_used"] else ""
        yield f"  last success: {success['when']} from {success['path']}, {success['cipher_suite']}{key}{resumed}"
    for failure in answer["last_failures"]:
        problem = f" ({failure['problem']})" if failure["problem"] else ""
        claimed = (
            f", as {failure['identity']}" if "address" in answer and failure["identity"] is not None else ""
        )
        yield f"  failure: {failure['when']} from {failure['path']}, {failure['cause']}{problem}{claimed}"
        yield f"    {failure['reason']}"
    for finding in answer["findings"]:
        yield f"- {finding}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for size, unit in ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def _results(completed: int, failed: Mapping[str, int], refused: Mapping[str, int]) -> str:
    return (
        f"{completed} handshakes completed, {sum(failed.values())} failed{_named(failed)}, "
        f"{sum(refused.values())} refused{_named(refused)}"
    )


def _named(counts: Mapping[str, int]) -> str:
    return f" ({_few(counts)})" if counts else ""


def _few(counts: Mapping[str, Any]) -> str:
    largest = sorted(counts.items(), key=lambda item: -item[1] if isinstance(item[1], (int, float)) else 0)
    shown = ", ".join(f"{name} {value}" for name, value in largest[:FEW])
    return f"{shown} and {len(largest) - FEW} more" if len(largest) > FEW else shown


def _nested(what: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Figures that may have tables of figures below them, each on a line of its own."""
    plain = {
        name: value
        for name, value in figures.items()
        if not isinstance(value, (dict, list)) and value is not False and value is not None
    }
    if plain:
        yield what, _few(plain)
    for name, value in figures.items():
        if isinstance(value, dict) and value:
            if any(isinstance(inner, dict) for inner in value.values()):
                for inner_name, inner in value.items():
                    if isinstance(inner, dict):
                        yield from _nested(f"{what}: {inner_name}", inner)
            elif any(value.values()):
                yield f"{what}: {name}", _few({word: count for word, count in value.items() if count})
