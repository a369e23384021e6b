"""Several sinks: who gets whose data, and that the trouble of one is not the others'."""

import itertools

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.association import CredentialKind
from endpoint.forward import ForwardError
from endpoint.forward.devices import LiveDevices
from endpoint.forward.hearing import Hearing
from endpoint.forward.reach import Reach
from endpoint.forward.router import LONGEST_PAUSE, Route, Router
from endpoint.observer import Observers, Quiet
from sansdtls import ConnectionState, LocalClose, PathProof
from tests.program.sinks import Collector, FakeEngine, Told, device, devices_of


def routed(*routes):
    """A router, and what it tells."""
    told = Told()
    return Router(routes, tell=told), told


def given(sink):
    return [data for _, data in sink.delivered]


# --- who gets whose data ---


def test_the_first_sink_that_is_meant_to_have_them_gets_an_associations_data():
    meters, pumps, rest = Collector(), Collector(), Collector()
    router, _ = routed(
        Route(name="meters", sink=meters, identities=["meter-*"]),
        Route(name="pumps", sink=pumps, identities=["pump-?", "valve-[ab]", "meter-17"]),
        Route(name="rest", sink=rest),
    )
    for identity in (b"meter-17", b"pump-1", b"pump-10", b"valve-b", b"valve-c", b"METER-1", b"my-meter-1"):
        router.deliver(device(identity), identity)
    assert given(meters) == [b"meter-17"]
    assert given(pumps) == [b"pump-1", b"valve-b"]
    assert given(rest) == [b"pump-10", b"valve-c", b"METER-1", b"my-meter-1"]


def test_also_lets_those_behind_it_have_a_look():
    archive, meters, rest = Collector(), Collector(), Collector()
    router, _ = routed(
        Route(name="archive", sink=archive, also=True),
        Route(name="meters", sink=meters, identities=["meter-*"]),
        Route(name="rest", sink=rest),
    )
    router.deliver(device(b"meter-1"), b"1")
    router.deliver(device(b"pump-1"), b"2")
    assert (given(archive), given(meters), given(rest)) == ([b"1", b"2"], [b"1"], [b"2"])


def test_a_protocol_that_was_negotiated_chooses_too_and_both_have_to_fit():
    coap, lwm2m, rest = Collector(), Collector(), Collector()
    router, _ = routed(
        Route(name="coap", sink=coap, alpn=[b"coap", b"co"], identities=["meter-*"]),
        Route(name="lwm2m", sink=lwm2m, alpn=[b"lwm2m"]),
        Route(name="rest", sink=rest),
    )
    router.deliver(device(b"meter-1", alpn=b"co"), b"1")
    router.deliver(device(b"pump-1", alpn=b"coap"), b"2")
    router.deliver(device(b"pump-1", alpn=b"lwm2m"), b"3")
    router.deliver(device(b"meter-1"), b"4")
    assert (given(coap), given(lwm2m), given(rest)) == ([b"1"], [b"3"], [b"2", b"4"])


def test_patterns_are_for_identities_as_the_log_shows_them():
    odd, rest = Collector(), Collector()
    router, _ = routed(
        Route(name="odd", sink=odd, identities=[r"a\x0a*", r"*\xff"]), Route(name="rest", sink=rest)
    )
    for identity in (b"a\nb", b"c\xff", b"a", "ÿ".encode()):
        router.deliver(device(identity), identity)
    assert given(odd) == [b"a\nb", b"c\xff"]
    assert given(rest) == [b"a", "ÿ".encode()]


def test_who_showed_no_identity_matches_no_pattern_not_even_a_star():
    named, rest = Collector(), Collector()
    router, _ = routed(Route(name="named", sink=named, identities=["*"]), Route(name="rest", sink=rest))
    router.deliver(device(b"", kind=CredentialKind.NONE), b"?")
    assert (given(named), given(rest)) == ([], [b"?"])


async def test_what_no_sink_is_for_is_counted_and_told_once():
    sink = Collector()
    router, told = routed(Route(name="meters", sink=sink, identities=["meter-*"]))
    for _ in range(3):
        router.deliver(device(b"pump\n1"), b"x")
    assert told.facts == [("forward_unmatched", {"identity": "pump\\x0a1", "path": "192.0.2.7:40000"})]
    figures = router.statistics()
    assert (figures["unmatched"], figures["forward_dropped"], figures["forwarded"]) == (3, 3, 0)


def test_the_match_is_found_once_for_each_association_and_shared():
    class Counting(str):
        __slots__ = ()
        looks = 0

        def __contains__(self, _):
            Counting.looks += 1
            return True

    router, _ = routed(Route(name="a", sink=Collector(), alpn=Counting()))  # type: ignore[arg-type]
    one, other = device(), device()
    for _ in range(5):
        router.deliver(one, b"x")
    assert Counting.looks == 1
    router.deliver(other, b"x")
    assert Counting.looks == 2
    assert one.route is other.route


# --- what becomes of associations ---


def test_a_sink_hears_of_those_whose_data_it_gets_and_of_no_others():
    meters, rest = Collector(), Collector()
    router, _ = routed(
        Route(name="meters", sink=meters, identities=["meter-*"]), Route(name="rest", sink=rest)
    )
    hearing = Hearing(router)
    meter, pump, woken = device(b"meter-1"), device(b"pump-1"), device(b"meter-1")
    for association in (meter, pump):
        hearing.completed(association)
    hearing.moved(meter, (0, ("192.0.2.1", 1)), PathProof.NEWER_RECORD)
    hearing.frozen(meter)
    hearing.thawed(woken)
    hearing.terminated(woken, LocalClose())
    assert meters.heard == [
        ("connected", meter),
        ("moved", meter),
        ("frozen", meter),
        ("thawed", woken),
        ("disconnected", woken),
    ]
    assert rest.heard == [("connected", pump)]


async def test_a_sink_that_raises_keeps_nobody_from_hearing_or_getting():
    broken, good = Collector(raises=("connected", "deliver")), Collector()
    router, told = routed(Route(name="broken", sink=broken, also=True), Route(name="good", sink=good))
    meter = device()
    Observers(Hearing(router), data=Quiet()).completed(meter)
    for _ in range(3):
        router.deliver(meter, b"x")
    assert good.heard == [("connected", meter)]
    assert given(good) == [b"x"] * 3
    assert told.facts == [
        (
            "forward_broken",
            {
                "sink": "broken",
                "method": "connected",
                "reason": "RuntimeError('connected is broken')",
            },
        )
    ]
    figures = router.statistics()["sinks"]["broken"]
    assert (figures["failures"], figures["drops"], figures["forward_dropped"]) == (4, {"broken": 3}, 3)


async def test_a_sink_that_goes_on_being_broken_is_told_once_a_minute(autojump_clock):
    router, told = routed(Route(name="broken", sink=Collector(raises=("deliver",))))
    meter = device()
    for _ in range(130):
        router.deliver(meter, b"x")
        await trio.sleep(1)
    assert told.events == ["forward_broken"] * 3


# --- tasks ---


async def test_a_sink_whose_task_breaks_is_started_again_after_longer_and_longer_pauses(autojump_clock):
    broken, good = Collector(raises=("run",)), Collector()
    router, _ = routed(Route(name="broken", sink=broken), Route(name="good", sink=good))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.run)
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    pauses = [later - earlier for earlier, later in itertools.pairwise(broken.started)]
    assert pauses[:6] == [1, 2, 4, 8, 16, 32]
    assert set(pauses[6:]) <= {LONGEST_PAUSE}
    assert len(good.started) == 1


async def test_a_sink_that_is_over_is_told_gets_nothing_more_and_nobody_gets_it_instead():
    gone = trio.Event()

    async def go():
        await gone.wait()
        raise ForwardError("its reader has gone")

    first, second = Collector(run=go), Collector()
    router, told = routed(Route(name="first", sink=first), Route(name="second", sink=second))
    meter = device()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.run)
        router.deliver(meter, b"1")
        gone.set()
        await wait_all_tasks_blocked()
        assert told.facts == [("forward_failed", {"sink": "first", "error": "its reader has gone"})]
        router.deliver(meter, b"2")
        Hearing(router).terminated(meter, LocalClose())
        await router.flush()
        assert (first.flushed, second.flushed) == (False, True)
        nursery.cancel_scope.cancel()
    assert (given(first), given(second), first.heard) == ([b"1"], [], [])
    figures = router.statistics()
    assert figures["sinks"]["first"]["over"]
    assert figures["sinks"]["first"]["drops"] == {"over": 1}
    assert (figures["forwarded"], figures["forward_dropped"]) == (1, 1)


async def test_when_the_last_one_is_over_so_is_the_router():
    async def fail_first():
        raise ForwardError("one")

    async def fail_later():
        await wait_all_tasks_blocked()
        raise ForwardError("two")

    router, told = routed(
        Route(name="a", sink=Collector(run=fail_first)), Route(name="b", sink=Collector(run=fail_later))
    )
    with pytest.raises(ForwardError, match="two"):
        await router.run()
    assert told.events == ["forward_failed"]


async def test_flush_and_close_reach_all_though_one_is_broken():
    broken, good = Collector(raises=("flush", "close")), Collector()
    router, told = routed(Route(name="broken", sink=broken), Route(name="good", sink=good))
    await router.flush()
    router.close()
    assert (good.flushed, good.closed) == (True, 1)
    assert told.events == ["forward_broken"]


# --- the way back ---


@pytest.mark.parametrize("heard", [(1.0, 2.0, 1.5), (2.0, 1.0, 0.5), (0.5, 1.0, 2.0)])
def test_a_reply_goes_to_the_association_that_was_heard_last(heard):
    found, other = [device(b"a", heard=when) for when in heard], device(b"b", heard=3.0)
    assert devices_of(*found, other).send(b"a", b"on")
    assert [one.last_received for one in found if one.sent] == [2.0]
    assert other.sent == []


def test_a_reply_that_cannot_be_sent_is_counted_by_its_reason():
    meter, closed = device(b"a", room=3), device(b"closed")
    closed.connection.state = ConnectionState.CLOSED
    devices = devices_of(meter, closed)
    assert not devices.send(b"a", b"long")
    assert not devices.send(b"nobody", b"x")
    assert not devices.send(b"closed", b"x")
    devices.drop("malformed")
    assert devices.send(b"a", b"fit")
    router, _ = routed(Route(name="a", sink=Collector(), devices=devices))
    figures = router.statistics()["sinks"]["a"]
    assert figures["replies"] == 1
    assert figures["replies_dropped"] == {"too_large": 1, "not_awake": 2, "malformed": 1}


@pytest.mark.parametrize("wake", [True, False])
def test_of_those_that_sleep_the_one_heard_last_is_woken_if_that_is_wanted(wake):
    long_ago, lately, awake = device(b"a"), device(b"a"), device(b"b")
    long_ago.handle, lately.handle = b"1", b"2"
    engine = FakeEngine([awake], [long_ago, lately])
    devices = LiveDevices(lambda: engine, wake=wake)
    assert devices.send(b"a", b"on") == wake
    assert (long_ago.sent, lately.sent) == ([], [b"on"] * wake)
    assert devices.wake(b"1") == (long_ago if wake else None)
    assert devices.send(b"b", b"on")
    assert awake.sent == [b"on"]
    assert devices.drops.total() == (not wake)


def test_before_there_is_an_engine_nobody_can_be_sent_to():
    devices = LiveDevices(lambda: None, wake=True)
    assert not devices.send(b"a", b"on")
    assert devices.wake(b"1") is None


# --- telling ---


async def test_that_the_other_side_is_away_is_told_at_most_once_a_minute(autojump_clock):
    told = Told()
    reach = Reach(told, output="there")
    states = []
    for _ in range(130):
        reach.lost("refused")
        reach.lost("refused")
        states.append(reach.down)
        reach.found()
        states.append(reach.down)
        await trio.sleep(1)
    down = ("forward_down", {"output": "there", "reason": "refused"})
    assert told.facts == [down, ("forward_up", {"output": "there"})] * 3
    assert states == [True, False] * 130


async def test_one_that_stays_away_is_told_of_though_it_was_away_a_moment_before(autojump_clock):
    told = Told()
    reach = Reach(told)
    reach.lost("refused")
    reach.found()
    await trio.sleep(10)
    for _ in range(60):
        reach.lost("refused again")
        await trio.sleep(1)
    assert told.events == ["forward_down", "forward_up", "forward_down"]


async def test_the_router_names_the_sinks_that_take_nothing():
    class Away(Collector):
        usable = False

    router = Router([Route(name="a", sink=Collector()), Route(name="b", sink=Away())], tell=Told())
    assert router.unusable() == ["b"]
