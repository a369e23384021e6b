"""What is measured, on whom, against which aim; and the taking of turns."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import attrs

from benchmarks import core, endpoint_peer, forwarding, keeping, ours, trio_peer
from benchmarks.control import Measured
from benchmarks.harness import PAYLOAD, WARM_UP, Contender, Running, Scale, Series
from sansdtls import CipherSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CCM_8 = CipherSuite.TLS_PSK_WITH_AES_128_CCM_8
GCM = CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256
ECDSA = CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
CCM_8_NAME = "PSK-AES128-CCM8"
GCM_NAME = "PSK-AES128-GCM"
GROUP = ours.GROUP.name.lower()
ECDSA_NAME = f"ECDHE-ECDSA {GROUP}, P-256, AES128-GCM"

ENGINE_CCM_8 = Contender(
    "endpoint.Engine", CCM_8_NAME, endpoint_peer.serve_engine, CCM_8, ours.client_factory(CCM_8)
)
ENGINE_GCM = Contender("endpoint.Engine", GCM_NAME, endpoint_peer.serve_engine, GCM, ours.client_factory(GCM))
ENGINE_ECDSA = Contender(
    "endpoint.Engine", ECDSA_NAME, endpoint_peer.serve_engine, ECDSA, ours.client_factory(ECDSA), GROUP
)
CHANNELS = Contender(
    "endpoint.serve_dtls", CCM_8_NAME, endpoint_peer.serve_channels, CCM_8, ours.client_factory(CCM_8)
)
FORWARDED = Contender(
    "endpoint, udp sink", CCM_8_NAME, forwarding.serve_udp, CCM_8, ours.client_factory(CCM_8)
)
TRIO = Contender(
    "trio.DTLSEndpoint",
    f"ECDHE-ECDSA {GROUP}, P-256, AES256-GCM",
    trio_peer.serve,
    None,
    trio_peer.client_factory(None),
    GROUP,
)
_TRIO_PSK_CIPHERS = "PSK-AES128-CCM8@SECLEVEL=0"
TRIO_PSK = Contender(
    "trio.DTLSEndpoint",
    CCM_8_NAME,
    trio_peer.serve,
    _TRIO_PSK_CIPHERS,
    trio_peer.client_factory(_TRIO_PSK_CIPHERS),
)
CONTENDERS = (ENGINE_CCM_8, TRIO, ENGINE_ECDSA, ENGINE_GCM, CHANNELS, FORWARDED, TRIO_PSK)
YARDSTICK = TRIO

ALONE_ECHOES = 400
"""Datagrams in one run of the measurement that sends them one at a time."""

NOTE = f"""\
ECDHE-ECDSA: key exchange over {GROUP}, signature with the server's P-256 key, no client certificate; what
trio's DTLSEndpoint does by default. The aim there is also a ratio above 1. PSK does neither, so compare
it with trio's PSK rows. "endpoint, udp sink": each datagram goes through a plain UDP server that answers it; what
forwarding costs is the difference to endpoint.Engine, which answers by itself."""


def _alone(scale: Scale) -> Scale:
    return attrs.evolve(scale, window=1, echo_bursts=ALONE_ECHOES)


@attrs.frozen
class Measurement:
    """One kind of measurement of servers behind a socket."""

    what: str
    unit: str
    take: Callable[[Running, Scale], float]
    aims: tuple[tuple[Contender, float | None], ...]
    """Who is measured, each with the aim of DESIGN.md, if it has one."""


REPEATED = (
    Measurement(
        "echo of 64 bytes, in bursts",
        "us/datagram",
        lambda running, scale: running.echo(scale),
        (
            (ENGINE_CCM_8, 20),
            (ENGINE_GCM, None),
            (CHANNELS, None),
            (FORWARDED, None),
            (TRIO, None),
            (TRIO_PSK, None),
        ),
    ),
    Measurement(
        "echo of 64 bytes, one at a time",
        "us/datagram",
        lambda running, scale: running.echo(_alone(scale)),
        ((ENGINE_CCM_8, None), (CHANNELS, None), (TRIO, None)),
    ),
    Measurement(
        "full handshake with cookie exchange",
        "us/handshake",
        lambda running, scale: running.handshake(scale),
        (
            (ENGINE_CCM_8, 500),
            (ENGINE_GCM, 500),
            (CHANNELS, 500),
            (ENGINE_ECDSA, 900),
            (TRIO, None),
            (TRIO_PSK, None),
        ),
    ),
    Measurement(
        "handshake resumed by ticket, with cookie exchange",
        "us/handshake",
        lambda running, scale: running.resumed(scale),
        ((ENGINE_CCM_8, None), (ENGINE_ECDSA, None), (TRIO, None)),
    ),
    Measurement(
        "hello without cookie, answered",
        "us/hello",
        lambda running, scale: running.pre_cookie(scale),
        ((ENGINE_CCM_8, 60), (TRIO, None)),
    ),
)
MEMORY = Measurement(
    "memory of a live association",
    "KiB",
    lambda running, scale: running.memory(scale),
    ((CHANNELS, None), (TRIO, None)),
)
KEPT = ((ENGINE_CCM_8, CCM_8), (ENGINE_GCM, GCM))
LIVE_AIM = 4.0
"""KiB, of an association that is live, whether it has said anything or not."""
FROZEN_AIM = 400.0
"""Bytes."""
KEEPING_TIMEOUT = 1_800.0
"""Seconds in which 100,000 handshakes have to be done; they take about 75 s of CPU for each suite."""


@attrs.frozen
class CoreMeasurement:
    """One kind of measurement of the core alone; ``name`` is what :mod:`benchmarks.core` calls it."""

    what: str
    unit: str
    name: str
    aims: tuple[tuple[CipherSuite, float | None], ...]
    """Suites it is taken with, each with the aim of DESIGN.md, if it has one."""


CORE_REPEATED = (
    CoreMeasurement("core alone: echo of 64 bytes", "us/datagram", "echo", ((CCM_8, None), (GCM, None))),
    CoreMeasurement(
        "core alone: echo of 64 bytes, with connection ID",
        "us/datagram",
        "echo_with_id",
        ((CCM_8, None), (GCM, None)),
    ),
    CoreMeasurement("core alone: a silent association is frozen", "us", "freeze", ((CCM_8, None),)),
    CoreMeasurement("core alone: one is thawed by a datagram, and answers", "us", "thaw", ((CCM_8, None),)),
    CoreMeasurement("core alone: junk for a frozen association", "us/datagram", "junk", ((CCM_8, None),)),
    CoreMeasurement(
        "core alone: full handshake", "us/handshake", "handshake", ((CCM_8, None), (GCM, None), (ECDSA, None))
    ),
    CoreMeasurement(
        "core alone: handshake resumed", "us/handshake", "resumed", ((CCM_8, None), (ECDSA, None))
    ),
    CoreMeasurement("core alone: hello without cookie", "us/hello", "pre_cookie", ((CCM_8, None),)),
)
CORE_ONCE = (
    CoreMeasurement(
        "core alone: memory kept after a hello without cookie", "bytes", "pre_cookie_memory", ((CCM_8, 1),)
    ),
)
CORE_SUITES = {CCM_8: CCM_8_NAME, GCM: GCM_NAME, ECDSA: ECDSA_NAME}
CORE_NAME = "sansdtls.Server"


def run(scale: Scale, progress: Callable[[str], None]) -> list[Series]:
    """Everything, in the order of the report."""
    repeated = _behind_sockets(scale, progress)
    core_repeated, core_once = _core(scale, progress)
    others = _memory(scale, progress)
    return [*repeated, *core_repeated, *_keeping(scale, progress, others), *core_once]


def _behind_sockets(scale: Scale, progress: Callable[[str], None]) -> list[Series]:
    table = {
        (measurement, contender): Series(
            measurement.what, measurement.unit, contender.name, contender.suite, aim
        )
        for measurement in REPEATED
        for contender, aim in measurement.aims
    }
    with ExitStack() as stack:
        running = {contender: contender.start() for contender in CONTENDERS}
        for one in running.values():
            stack.enter_context(one)
        for measurement, contender in table:
            measurement.take(running[contender], attrs.evolve(WARM_UP, window=scale.window))
        for number in range(scale.repeat):
            progress(f"run {number + 1} of {scale.repeat}")
            for measurement in REPEATED:
                values = {
                    contender: measurement.take(running[contender], scale)
                    for contender, _ in measurement.aims
                }
                for contender, value in values.items():
                    table[measurement, contender].add(value, values[YARDSTICK])
    return list(table.values())


def _core_series(measurement: CoreMeasurement, suite: CipherSuite, aim: float | None) -> Series:
    return Series(measurement.what, measurement.unit, CORE_NAME, CORE_SUITES[suite], aim)


def _core(scale: Scale, progress: Callable[[str], None]) -> tuple[list[Series], list[Series]]:
    progress("core alone")
    repeated: dict[tuple[CoreMeasurement, CipherSuite], Series] = {
        (measurement, suite): _core_series(measurement, suite, aim)
        for measurement in CORE_REPEATED
        for suite, aim in measurement.aims
    }
    once: list[Series] = []
    with ExitStack() as stack:
        process, *fresh = [
            stack.enter_context(Measured(core.serve))
            for _ in range(1 + sum(len(measurement.aims) for measurement in CORE_ONCE))
        ]
        for _ in range(scale.repeat):
            for (measurement, each), series in repeated.items():
                series.add(process.ask((measurement.name, each, scale)))
        for measurement in CORE_ONCE:
            for suite, aim in measurement.aims:
                series = _core_series(measurement, suite, aim)
                # Each in a process of its own: no free memory from before.
                series.add(fresh.pop().ask((measurement.name, suite, scale)))
                once.append(series)
    return list(repeated.values()), once


def _keeping(scale: Scale, progress: Callable[[str], None], others: Sequence[Series]) -> list[Series]:
    """Memory of live and frozen associations of this project's endpoint, beside the ``others`` of the first kind."""
    progress(f"memory of {scale.kept:,} associations")
    yardstick = next(series.values[0] for series in others if series.name == YARDSTICK.name)
    asked = [(MEMORY.what, contender, suite, scale.kept, PAYLOAD) for contender, suite in KEPT]
    asked.append((f"{MEMORY.what} that has said nothing yet", *KEPT[0], scale.silent, b""))
    live: list[Series] = []
    with ExitStack() as stack:
        processes = [
            stack.enter_context(Measured(keeping.serve_live, suite, associations, words))
            for _, _, suite, associations, words in asked
        ]
        for process, (what, contender, _, _, _) in zip(processes, asked, strict=True):
            live.append(Series(what, MEMORY.unit, contender.name, contender.suite, LIVE_AIM))
            live[-1].add(process.hear(KEEPING_TIMEOUT) / 1024, yardstick)
        progress(f"memory of {scale.kept:,} frozen associations")
        contender, suite = KEPT[0]
        successor = stack.enter_context(Measured(keeping.serve_frozen, suite))
        processes[0].tell("hand over")
        while blobs := processes[0].hear():
            successor.tell(blobs)
        frozen = Series(
            "memory of a frozen association", "bytes", contender.name, contender.suite, FROZEN_AIM
        )
        successor.tell([])
        frozen.add(successor.hear(KEEPING_TIMEOUT))
    return [*live[:-1], *others, live[-1], frozen]


def _memory(scale: Scale, progress: Callable[[str], None]) -> Sequence[Series]:
    progress("memory")
    values: dict[Contender, float] = {}
    with ExitStack() as stack:
        started = [contender.start() for contender, _ in MEMORY.aims]
        for running in started:
            stack.enter_context(running)
            values[running.contender] = MEMORY.take(running, scale)
    result = []
    for contender, aim in MEMORY.aims:
        series = Series(MEMORY.what, MEMORY.unit, contender.name, contender.suite, aim)
        series.add(values[contender], values[YARDSTICK])
        result.append(series)
    return result
