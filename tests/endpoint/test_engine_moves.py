"""Devices whose address changes, on real sockets: who is answered where, and what moves along."""

import errno
import json
import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from endpoint.engine import Engine
from endpoint.forward.jsonl import JsonLines
from endpoint.keystore import DictKeyStore
from endpoint.logs import Throttle, make_log
from endpoint.quotas import QuotaPolicy
from endpoint.reporter import Reporter
from endpoint.roster import Roster
from endpoint.udp import bind_udp, path_text
from sansdtls import (
    ConnectionIdPolicy,
    PathPolicy,
    PathProof,
    PeerClose,
    ReturnRoutability,
    ServerConfig,
    UsageError,
)
from tests.endpoint.devices import KEYS, Device, Recorder, serving
from tests.endpoint.test_engine_quotas import asks_in_vain

PROVES = ConnectionIdPolicy(length=0)
"""Of a client that answers challenges (RFC 9853)."""


def with_policy(**options):
    return ServerConfig(connection_id=ConnectionIdPolicy(**options))


# --- where the answer comes from ---


@pytest.mark.parametrize("proof", PathProof)
@pytest.mark.parametrize(
    ("listen", "first", "second"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("::1", "::1", "::1"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.2"),  # noqa: S104 - loopback has many addresses
        (None, "127.0.0.1", "127.0.0.2"),
        (None, "::1", "::1"),
        (None, "::1", "127.0.0.2"),
        (None, "127.0.0.2", "::1"),
    ],
)
async def test_the_answer_goes_to_where_the_device_is_now_and_comes_from_the_address_that_it_asked(
    listen, first, second, proof
):
    # The device's sockets are connected: an answer from another address never reaches it.
    policies = {
        PathProof.NEWER_RECORD: (None, None),
        PathProof.RETURN_ROUTABILITY: (None, PROVES),
        PathProof.APPLICATION: (with_policy(path_policy=PathPolicy.APPLICATION), None),
    }
    config, policy = policies[proof]
    async with serving(address=listen, config=config) as served:
        device = await served.roamer(host=first, policy=policy).connect()
        (association,) = served.observer.live
        before = device.path
        assert association.remote == before
        await device.move(host=second)
        await device.send(b"I have moved")
        if proof is PathProof.APPLICATION:
            ((asked, request),) = served.observer.requests
            assert asked is association
            assert association.remote == before
            association.confirm_path(request)
            assert association.send(b"I have moved")
        assert await device.receive() == b"I have moved"
        await wait_all_tasks_blocked()
        await device.send(b"and now?")
        assert await device.receive() == b"and now?"
        assert served.observer.moves == [(before, device.path, proof)]
        assert association.remote == path_text(association.path) == device.path
        assert association.local == device.server_path
        assert served.gauges["paths"] == 1
        assert served.engine._roster.at(association.path) is association
        assert served.observer.live == [association]
        await device.close()
        assert served.idle


async def test_a_device_moves_from_one_socket_to_another_and_is_answered_through_that():
    (first,) = await bind_udp("127.0.0.1", 0)
    (second,) = await bind_udp("::1", 0)
    observer = Recorder(echo=True)
    with first, second:
        engine = Engine(
            ServerConfig(),
            sockets=[first, second],
            keystore=DictKeyStore(KEYS),
            quotas=QuotaPolicy(),
            observer=observer,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            with Device(first.port, policy=PROVES) as device:
                await device.connect()
                (association,) = observer.live
                assert association.local == first.local_text
                device.server = ("::1", second.port)
                await device.move()
                await device.send(b"x")
                assert await device.receive() == b"x"
                await device.send(b"y")
                assert await device.receive() == b"y"
                assert association.path[0] == 1
                assert association.local == second.local_text
                assert association.remote == device.path
                assert [proof for _, _, proof in observer.moves] == [PathProof.RETURN_ROUTABILITY]
            nursery.cancel_scope.cancel()


# --- what moves it, and what does not ---


async def test_with_the_policy_never_data_are_delivered_and_answers_go_where_they_always_went():
    async with serving(config=with_policy(path_policy=PathPolicy.NEVER)) as served:
        device = await served.roamer().connect()
        before = device.path
        old = await device.move(keep=True)
        await device.send(b"from elsewhere")
        assert served.observer.data == [b"from elsewhere"]
        assert served.observer.live[0].remote == before
        device.socket, new = old, device.socket
        with new:
            assert await device.receive() == b"from elsewhere"
        assert served.observer.moves == served.observer.requests == []


async def test_until_the_program_confirms_it_a_new_path_gets_what_is_meant_for_it_and_little_of_that():
    async with serving(config=with_policy(path_policy=PathPolicy.APPLICATION), observer=Recorder()) as served:
        device = await served.roamer().connect()
        other = await served.roamer(identity=b"meter-2").connect()
        await device.move()
        await device.send(b"from elsewhere")
        ((association, request),) = served.observer.requests
        assert path_text(request.new) == device.path
        assert association.send(b"are you there?", path=request.new)
        assert await device.receive() == b"are you there?"
        assert not association.send(bytes(1000), path=request.new)
        assert association.dropped == 1
        stranger = next(live for live in served.observer.live if live is not association)
        with pytest.raises(UsageError):
            stranger.confirm_path(request)
        association.confirm_path(request)
        association.confirm_path(request)
        assert [proof for _, _, proof in served.observer.moves] == [PathProof.APPLICATION]
        assert association.send(bytes(1000))
        assert await device.receive() == bytes(1000)
        assert stranger.remote == other.path


async def test_where_the_old_path_is_asked_first_the_move_is_made_when_its_time_is_over(autojump_clock):
    # The challenges are timers that begin within a turn of the receive loop: they have to be armed at its end.
    config = with_policy(return_routability=ReturnRoutability.ENHANCED, probe_timeout=2.0)
    async with serving(config=config) as served:
        device = await served.roamer(policy=PROVES).connect()
        (association,) = served.observer.live
        before = device.path
        old = await device.move(keep=True)
        start = trio.current_time()
        await device.send(b"x")
        with old:
            await trio.sleep(1.9)
            assert association.remote == before
            await device.until_told(lambda: served.observer.moves)
        assert served.observer.moves == [(before, device.path, PathProof.RETURN_ROUTABILITY)]
        assert trio.current_time() - start == pytest.approx(2.0)
        assert association.remote == device.path


async def test_a_path_that_never_answers_is_given_up_in_time_and_nothing_moves(autojump_clock):
    config = with_policy(probe_timeout=1.0, max_probes=3)
    async with serving(config=config) as served:
        device = await served.roamer(policy=PROVES).connect()
        before = device.path
        await device.move()
        await device.send(b"x")
        await trio.sleep(2.9)
        assert served.engine.statistics()["server"]["path_checks_failed"] == 0
        await trio.sleep(0.2)
        assert served.engine.statistics()["server"]["path_checks_failed"] == 1
        assert served.observer.moves == []
        assert served.observer.live[0].remote == before


# --- quotas ---


async def test_an_association_takes_its_slot_along_and_is_never_refused_for_it(autojump_clock):
    quotas = QuotaPolicy(associations_per_prefix=1)
    async with serving(address="0.0.0.0", quotas=quotas) as served:  # noqa: S104 - loopback has many addresses
        settled = served.roamer()
        await settled.socket.bind(("127.0.0.21", 0))
        await settled.connect()
        guest = served.roamer(identity=b"meter-2")
        await guest.socket.bind(("127.0.0.22", 0))
        await guest.connect()
        held = served.engine._quotas.associations_of
        prefixes = [served.engine._quotas.prefix_of((f"127.0.0.{number}", 1)) for number in (21, 22)]
        assert [held(prefix) for prefix in prefixes] == [1, 1]
        await guest.move(at="127.0.0.21")
        await guest.send(b"x")
        assert await guest.receive() == b"x"
        assert [held(prefix) for prefix in prefixes] == [2, 0]
        assert served.observer.refusals == []
        third = served.device(identity=b"meter-3")
        await third.socket.bind(("127.0.0.21", 0))
        assert await asks_in_vain(third)
        successor = served.device(identity=b"meter-4")
        await successor.socket.bind(("127.0.0.22", 0))
        await successor.connect()
        assert successor.connected
        assert [held(prefix) for prefix in prefixes] == [2, 1]
        for device in (guest, settled, successor):
            await device.close()
        assert served.idle


async def test_a_device_that_begins_anew_is_not_held_up_by_one_that_moves_in_meanwhile():
    quotas = QuotaPolicy(associations_per_prefix=1)
    async with serving(address="0.0.0.0", quotas=quotas) as served:  # noqa: S104 - loopback has many addresses
        device = served.device()
        await device.socket.bind(("127.0.0.21", 0))
        await device.connect()
        guest = served.roamer(identity=b"meter-2")
        await guest.socket.bind(("127.0.0.22", 0))
        await guest.connect()
        await device.knock()
        await guest.move(at="127.0.0.21")
        await guest.send(b"x")
        assert served.gauges["slots"] == 3
        await device.flush()
        await device.until_told(lambda: device.connected)
        assert [cause for _, cause in served.observer.ended] == [PeerClose(replaced=True)]
        assert served.observer.refusals == []
        assert served.gauges["slots"] == 2


# --- several associations on one path ---


async def share_a_path(served):
    """Two devices behind a NAT that has given the port of the first to the second."""
    first = await served.roamer().connect()
    second = served.roamer(identity=b"meter-2")
    second.socket.close()
    second.socket = first.socket
    await second.connect()
    return first, second


async def test_two_associations_on_one_path_are_both_served_and_the_one_that_stays_keeps_the_path():
    async with serving(quotas=QuotaPolicy(associations_per_prefix=2)) as served:
        first, second = await share_a_path(served)
        one, two = served.observer.live
        assert one.path == two.path
        assert served.gauges["paths"] == 1
        path = one.path
        await second.move(keep=True)
        await second.send(b"2")
        assert await second.receive() == b"2"
        await first.send(b"1")
        assert await first.receive() == b"1"
        assert one.path == path != two.path
        assert served.engine._roster.at(path) is one
        assert served.engine._roster.at(two.path) is two
        # The prefix is full; but a device may always replace its own association.
        await first.connect()
        assert first.connected
        assert served.observer.ended == [(one, PeerClose(replaced=True))]
        await first.close()
        await second.close()
        assert served.idle


async def test_a_path_in_use_is_no_way_around_the_limit_of_its_prefix():
    # A handshake there is let through because it will replace what is there; which another device's does not.
    async with serving(quotas=QuotaPolicy(associations_per_prefix=1)) as served:
        first, second = await share_a_path(served)
        (one,) = served.observer.live
        assert one.identity == b"meter-1"
        assert served.observer.refusals == [(first.path, "associations_per_prefix")]
        await second.until(lambda: second.cause)
        assert second.cause == PeerClose()
        await wait_all_tasks_blocked()
        assert served.observer.failed == served.observer.ended == []
        assert served.gauges["slots"] == served.gauges["paths"] == 1
        await first.send(b"x")
        assert await first.receive() == b"x"
        await first.connect()
        assert first.connected
        assert [cause for _, cause in served.observer.ended] == [PeerClose(replaced=True)]


async def test_the_first_on_a_path_may_leave_it_and_the_second_keeps_it():
    async with serving() as served:
        first, _ = await share_a_path(served)
        one, two = served.observer.live
        path = one.path
        await first.move(keep=True)
        await first.send(b"x")
        assert await first.receive() == b"x"
        assert served.engine._roster.at(path) is two
        assert served.engine._roster.at(one.path) is one
        two.close()
        one.close()
        await wait_all_tasks_blocked()
        assert served.idle


class Here:
    """Stands in for an association."""

    identified = False
    identity = b""

    def __init__(self, path):
        self.connection = object()
        self.path = path


steps = st.lists(st.tuples(st.sampled_from("amr"), st.integers(0, 5), st.integers(0, 2)), max_size=30)


@given(steps)
def test_a_path_is_held_by_whoever_came_last_of_those_that_are_there(steps):
    roster: Roster = Roster()
    there: list[Here] = []  # in the order of their coming
    for action, who, where in steps:
        if action == "a":
            here = Here((0, where))
            roster.add(here)  # type: ignore[arg-type]
            there.append(here)
        elif there:
            here = there.pop(who % len(there))
            if action == "m":
                roster.move(here, (0, where))  # type: ignore[arg-type]
                there.append(here)
            else:
                assert roster.remove(here.connection) is here  # type: ignore[arg-type,comparison-overlap]
        last: dict[object, object] = {here.path: here for here in there}
        assert {path: roster.at(path) for path in ((0, 0), (0, 1), (0, 2)) if roster.at(path)} == last  # type: ignore[arg-type]
        assert roster.paths == len(last)
    for here in there:
        roster.remove(here.connection)  # type: ignore[arg-type]
    assert roster.paths == len(roster) == len(roster._below) == 0


# --- errors ---


async def test_errors_are_put_down_to_whoever_is_at_that_path_now():
    async with serving(observer=Recorder()) as served:
        mover = await served.roamer().connect()
        await served.roamer(identity=b"meter-2").connect()
        one, two = served.observer.live
        old = one.path
        before = await mover.move(keep=True)
        await mover.send(b"x")
        bound = served.engine.sockets[0]
        real = bound._socket

        class Unreachable:
            def __getattr__(self, name):
                return getattr(real, name)

            def sendto(self, data, address):
                raise OSError(errno.EHOSTUNREACH, "No route to host")

        bound._socket = Unreachable()
        one.send(b"1")
        assert (one.send_errors, two.send_errors) == (1, 0)
        assert served.observer.troubles[0][1]["path"] == mover.path
        bound.on_send_failed(old[1], errno.EHOSTUNREACH)
        assert (one.send_errors, two.send_errors) == (1, 0)  # nobody is there any more
        bound._socket = real
        before.close()


# --- what people and programs see ---


async def test_log_and_forwarded_lines_name_the_new_path(tmp_path, capfd):
    reading, writing = os.pipe()
    told = (tmp_path / "log").open("wb")
    with os.fdopen(reading, "rb") as lines, told:
        forwarder = JsonLines(writing, limit=10_000, tell=lambda *_, **__: None)
        throttle = Throttle(rate=1, burst=10, clock=trio.current_time)
        reporter = Reporter(make_log(told), throttle, forwarder)
        async with serving(observer=reporter) as served:
            served.nursery.start_soon(forwarder.run)
            device = await served.roamer().connect()
            before = device.path
            await device.send(b"first")
            await device.move()
            await device.send(b"second")
            await device.send(b"")
            await device.send(b"third")
            await forwarder.flush()
            assert served.engine.statistics()["keep_alives"] == 1
        os.close(writing)
        seen = [json.loads(line) for line in lines]
    assert [(line["path"], line["data"]) for line in seen] == [
        (before, "first"),
        (device_path := seen[1]["path"], "second"),
        (device_path, "third"),
    ]
    assert device_path != before
    facts = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    moved = [fact for fact in facts if fact["event"] == "moved"]
    assert [(fact["before"], fact["path"], fact["proof"], fact["identity"]) for fact in moved] == [
        (before, device_path, "newer_record", "meter-1")
    ]
