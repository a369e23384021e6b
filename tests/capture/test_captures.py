"""Captures of one identity, with real devices on loopback: what is in the file, and what is not."""

import os
import re
import stat
import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.admin import CommandError
from endpoint.capture import capture as capture_module
from endpoint.capture.files import Outputs
from endpoint.capture.limits import HELD_PATHS, LINGER, MAX_CAPTURES
from endpoint.verification import reject_all
from sansdtls import (
    CipherSuite,
    ClientConfig,
    ConnectionIdPolicy,
    Limits,
    PeerClose,
    SecretDerived,
    ServerConfig,
)
from sansdtls.recorded import HandshakeType, Verdict
from tests.capture.capturing import capturing
from tests.endpoint.devices import IDENTITY, KEY
from tests.endpoint.test_verification import METER, client_config, own, server_config, verifier

OTHER = b"meter-2"
SLEEPY = ServerConfig(freeze_after=300.0)
LONG = 301.0 + 240.0


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "captures"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def virtual_time(autojump_clock, monkeypatch):
    """Time jumps when nobody has anything to do. It would not wait for threads, so there are none."""

    async def run_sync(function, *arguments, **_options):
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return autojump_clock  # pytest-trio takes the clock that a test is given


async def said(device, text):
    await device.send(text)
    assert await device.receive() == text


async def until(condition):
    """For what a thread brings about."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - files have no events
            await trio.sleep(0.001)


# --- whose datagrams and secrets ---


async def test_what_an_identity_says_can_be_read_and_of_another_one_there_is_nothing(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        wanted, other = endpoint.device(), endpoint.device(identity=OTHER)
        await wanted.connect()
        await other.connect()
        await said(other, b"not this")
        await said(wanted, b"21.5")
        (facts,) = await endpoint.stop()
        assert captured.data == [(True, b"21.5"), (False, b"21.5")]
        assert list(captured.secrets) == [wanted.connection.client_random]
        assert {wanted.path, wanted.server_path} == {end for *ends, _ in captured.datagrams for end in ends}
        assert (facts["datagrams"], facts["readable_handshakes"]) == (6, 1)
        content = captured.path.read_bytes()
        assert other.connection.client_random not in content
        assert other.connection.client_random.hex().encode() not in content


async def test_a_capture_is_whole_from_the_hello_with_the_cookie_on(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        await endpoint.device().connect()
        await endpoint.stop()
        assert [datagram.flight for datagram in captured.seen] == ["3", "4", "5", "6"]
        (association,) = {datagram.association for datagram in captured.seen}
        assert association.finished == {True: Verdict.PROVED, False: Verdict.PROVED}


async def test_the_secret_stands_before_the_first_packet_that_needs_it(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.device().connect()
        await endpoint.stop()
        content = captured.path.read_bytes()
        line = content.index(device.connection.client_random.hex().encode())
        assert line < content.index(device.connection.client_random)


async def test_a_live_association_is_recorded_and_cannot_be_read(directory):
    async with capturing(directory) as endpoint:
        device = await endpoint.device().connect()
        captured = await endpoint.start(IDENTITY)
        assert endpoint.live == 1
        await said(device, b"21.5")
        await endpoint.stop()
        assert [len(payload) for *_, payload in captured.datagrams] == [41, 41]
        assert captured.secrets == {}
        assert captured.data == []


async def test_associations_that_cannot_be_read_are_ended_if_asked_for(directory):
    async with capturing(directory) as endpoint:
        device = await endpoint.device().connect()
        bystander = await endpoint.device(identity=OTHER).connect()
        captured = await endpoint.start(IDENTITY, rehandshake=True)
        await device.until(lambda: device.cause is not None)
        assert device.cause == PeerClose()
        await device.connect()
        await said(device, b"21.5")
        await said(bystander, b"untouched")
        await endpoint.stop()
        assert captured.data == [(True, b"21.5"), (False, b"21.5")]


async def test_a_device_with_a_wrong_key_is_recorded_with_the_alert_that_it_gets_and_no_secret(
    directory, virtual_time
):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.device(key=b"not the key").connect()
        assert device.cause is not None
        (facts,) = await endpoint.stop()
        assert captured.secrets == {}
        assert facts["readable_handshakes"] == 0
        assert captured.seen[0].flight == "3"
        assert [record.alert for seen in captured.seen for record in seen.records if record.alert is not None]
        # With the key that it really has, all of it can be read: that is how it is found.
        source = captured.source()
        source._keys = {IDENTITY: [b"not the key"]}
        association = [seen.association for _, _, seen in source.datagrams()][-1]
        assert association.suite is not None


async def test_one_path_is_recorded_from_its_first_hello_and_without_any_secret(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(paths=["127.0.0.1"])
        assert not endpoint.served.engine._server._config.log_secrets
        device = await endpoint.device().connect()
        await said(device, b"21.5")
        await endpoint.stop()
        assert [datagram.flight for datagram in captured.seen] == ["1", "2", "3", "4", "5", "6", "", ""]
        assert captured.secrets == {}
        assert captured.data == []


async def test_a_path_with_a_port_is_that_one_only_and_dual_stack_is_no_obstacle(directory):
    async with capturing(directory, address=None) as endpoint:
        first, second = endpoint.device(), endpoint.device(identity=OTHER)
        await first.connect()
        await second.connect()
        captured = await endpoint.start(paths=[first.path])
        await said(first, b"21.5")
        await said(second, b"21.6")
        await endpoint.stop()
        assert [ends[:2] for ends in captured.datagrams] == [
            (first.path, first.server_path),
            (first.server_path, first.path),
        ]


async def test_ipv6_addresses_are_those_of_device_and_listener(directory):
    async with capturing(directory, address="::1") as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.device(host="::1").connect()
        await endpoint.stop()
        assert captured.datagrams[0][:2] == (device.path, device.server_path)


async def test_a_resumed_session_has_a_secret_of_its_own_and_can_be_read(directory):
    async with capturing(directory) as endpoint:
        first = await endpoint.device().connect()
        session = first.connection.session
        captured = await endpoint.start(IDENTITY)
        config = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, session=session)
        again = await endpoint.device(config=config).connect()
        assert again.connection.negotiated.resumed
        await said(again, b"21.6")
        await endpoint.stop()
        assert list(captured.secrets) == [again.connection.client_random]
        assert captured.data == [(True, b"21.6"), (False, b"21.6")]


async def test_a_device_with_a_certificate_is_known_by_what_the_verifier_says(directory):
    async with capturing(directory, config=server_config(), verify=verifier()) as endpoint:
        captured = await endpoint.start(b"meter-7")
        await endpoint.device().connect()
        certified = await endpoint.device(config=client_config(own(METER))).connect()
        await said(certified, b"21.7")
        await endpoint.stop()
        assert list(captured.secrets) == [certified.connection.client_random]
        assert captured.data == [(True, b"21.7"), (False, b"21.7")]
        assert captured.seen[0].flight == "3"


async def test_a_certificate_that_is_refused_has_no_identity_and_its_handshake_is_found_by_path_only(
    directory,
):
    async with capturing(directory, config=server_config(), verify=reject_all) as endpoint:
        by_name = await endpoint.start(b"meter-7")
        by_path = await endpoint.start(paths=["127.0.0.1"])
        device = await endpoint.device(config=client_config(own(METER))).connect()
        assert device.cause is not None
        await endpoint.stop()
        assert by_name.datagrams == []
        kinds = [
            message.message_type
            for seen in by_path.seen
            for record in seen.records
            for message in record.messages
        ]
        assert HandshakeType.CERTIFICATE_VERIFY in kinds
        assert by_path.secrets == {}


async def test_a_device_that_begins_anew_on_its_path_is_recorded_twice_and_each_datagram_once(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY, paths=["127.0.0.1"])
        device = await endpoint.device().connect()
        await device.connect()
        await said(device, b"again")
        await endpoint.stop()
        assert len(captured.secrets) == 2
        payloads = [payload for *_, payload in captured.datagrams]
        assert len(payloads) == len(set(payloads))
        flights = [seen.flight for seen in captured.seen]
        assert flights == [
            "1",
            "2",
            "3",
            "4",
            "5",
            "6",
            "1",
            "2",
            "3",
            "4",
            "5",
            "6",
            *[""] * (len(flights) - 12),
        ]
        assert captured.data == [(True, b"again"), (False, b"again")]


async def test_a_hello_in_fragments_is_put_together_and_says_so(directory):
    suites = tuple(suite for suite in CipherSuite if "PSK" in suite.name)
    config = ClientConfig(
        psk_identity=IDENTITY,
        psk_key=KEY,
        cipher_suites=suites,
        mtu=256,
        alpn_protocols=tuple(b"protocol-%d" % number for number in range(20)),
    )
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.device(config=config).connect()
        assert device.connected
        await said(device, b"21.5")
        await endpoint.stop()
        assert captured.data == [(True, b"21.5"), (False, b"21.5")]
        assert b"put it together" in captured.path.read_bytes()


# --- devices that move and sleep ---


@pytest.mark.parametrize("policy", [None, ConnectionIdPolicy(length=0)], ids=["moves", "is asked first"])
async def test_a_device_is_followed_to_its_new_address(directory, policy):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.served.roamer(policy=policy).connect()
        before = device.path
        await device.move()
        await said(device, b"here")
        await said(device, b"still here")
        await device.until_told(lambda: endpoint.observer.moves)
        await said(device, b"moved")
        await endpoint.stop()
        assert {device.path, before} <= {source for source, *_ in captured.datagrams}
        assert [text for of_client, text in captured.data if of_client] == [b"here", b"still here", b"moved"]
        payloads = [payload for *_, payload in captured.datagrams]
        assert len(payloads) == len(set(payloads))


async def test_a_device_that_wakes_is_recorded_from_the_datagram_that_wakes_it(directory, virtual_time):
    async with capturing(directory, config=SLEEPY) as endpoint:
        captured = await endpoint.start(IDENTITY, duration=10_000.0)
        device = await endpoint.served.roamer().connect()
        await trio.sleep(LONG)
        assert len(endpoint.observer.asleep) == 1
        await said(device, b"good morning")
        await endpoint.stop()
        assert captured.data == [(True, b"good morning"), (False, b"good morning")]


async def test_one_that_slept_before_is_ended_when_it_wakes_if_asked_for(directory, virtual_time):
    async with capturing(directory, config=SLEEPY) as endpoint:
        device = await endpoint.served.roamer().connect()
        await trio.sleep(LONG)
        captured = await endpoint.start(IDENTITY, rehandshake=True, duration=10_000.0)
        assert endpoint.live == 0
        endpoint.observer.echo = False
        await device.send(b"good morning")
        await device.until(lambda: device.cause is not None)
        assert device.cause == PeerClose()
        endpoint.observer.echo = True
        await device.connect()
        await trio.sleep(LONG)
        await said(device, b"and now")  # its secret is there: no reason to end it again
        await endpoint.stop()
        assert (True, b"and now") in captured.data


async def test_the_last_alerts_are_recorded_and_the_next_device_on_that_path_is_not(directory, virtual_time):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.device().connect()
        await device.close()
        await device.socket.send(b"late")
        await wait_all_tasks_blocked()
        await trio.sleep(LINGER + 0.1)
        await device.socket.send(b"too late")
        await wait_all_tasks_blocked()
        device.config = ClientConfig(psk_identity=OTHER, psk_key=KEY)
        await device.connect()
        await said(device, b"not this")
        await endpoint.stop()
        payloads = [payload for *_, payload in captured.datagrams]
        assert [record.alert is not None for seen in captured.seen[4:6] for record in seen.records] == [
            True,
            True,
        ]
        assert payloads[6:] == [b"late"]


# --- floods ---


async def test_of_hellos_without_a_cookie_nothing_is_kept(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        for _ in range(200):
            await endpoint.device().start()
        await wait_all_tasks_blocked()
        assert endpoint.captures.recorder.held == 0
        await endpoint.stop()
        assert captured.datagrams == []


async def test_handshakes_that_go_nowhere_do_not_push_out_one_that_goes_on(directory):
    config = ServerConfig(limits=Limits(max_half_open=1000))
    async with capturing(directory, config=config) as endpoint:
        captured = await endpoint.start(IDENTITY)
        honest = endpoint.device()
        await honest.start()
        await honest.step()
        for number in range(HELD_PATHS + 20):
            await endpoint.device(identity=OTHER).knock()
            if number % 100 == 0:
                await honest.socket.send(b"\x16junk that keeps it from being the one silent longest")
                await wait_all_tasks_blocked()
        assert endpoint.captures.recorder.held == HELD_PATHS
        await honest.until(lambda: honest.connected)
        await said(honest, b"21.5")
        await endpoint.stop()
        assert captured.data == [(True, b"21.5"), (False, b"21.5")]


async def test_what_is_kept_of_one_handshake_is_bounded(directory):
    async with capturing(directory) as endpoint:
        await endpoint.start(b"somebody else")
        device = await endpoint.device().knock()
        for _ in range(100):
            await device.socket.send(bytes(5_000))
        await wait_all_tasks_blocked()
        ((_, held),) = endpoint.captures.recorder._handshakes.items()
        assert held.size <= 49_152
        assert len(held.datagrams) <= 48


async def test_junk_behind_a_wanted_handshake_does_not_hide_its_beginning(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = endpoint.device()
        await device.start()
        await device.step()
        for _ in range(60):
            await device.socket.send(b"\x16junk")
        await wait_all_tasks_blocked()
        await device.until(lambda: device.connected)
        await said(device, b"21.5")
        await endpoint.stop()
        assert captured.seen[0].flight == "3"
        assert (True, b"21.5") in captured.data or captured.secrets


# --- it ends ---


async def test_a_capture_ends_when_its_time_is_over(directory, virtual_time):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY, duration=60.0)
        device = await endpoint.device().connect()
        await trio.sleep(61)
        await endpoint.over()
        assert await endpoint.listed() == []
        assert not endpoint.armed
        await said(device, b"after")
        (ended,) = endpoint.facts("capture_ended")
        assert (ended["reason"], ended["readable_handshakes"]) == ("its time is over", 1)
        assert len(captured.datagrams) == 4


async def test_a_capture_ends_before_its_file_is_larger_than_asked_for(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY, size=8_192)
        device = await endpoint.device().connect()
        for _ in range(20):
            await said(device, bytes(1_000))
        await endpoint.over()
        assert not endpoint.armed
        assert 6_000 < captured.path.stat().st_size <= 8_192
        assert endpoint.facts("capture_ended")[0]["reason"] == "it has reached its size"
        assert captured.data


async def test_a_handshake_that_is_under_way_when_a_capture_ends_is_in_it(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = endpoint.device()
        await device.start()
        await device.step()
        await device.step(answer=False)
        identity_only = device.connection.datagrams_to_send()
        await device.socket.send(identity_only[0].data[: identity_only[0].data.index(b"\x14\xfe\xfd")])
        await wait_all_tasks_blocked()
        await endpoint.stop()
        assert [seen.flight for seen in captured.seen] == ["3", "4", "5"]


async def test_after_the_last_capture_nothing_listens_and_no_secret_is_made(directory):
    async with capturing(directory) as endpoint:
        assert not endpoint.armed
        await endpoint.start(IDENTITY)
        assert endpoint.armed
        endpoint.served.engine.use_config(ServerConfig(), reject_all)  # a reload meanwhile changes nothing
        assert endpoint.armed
        await endpoint.stop()
        assert not endpoint.armed
        made, handle = [], endpoint.served.engine._handle

        def note(event, now):
            made.append(event)
            handle(event, now)

        endpoint.served.engine._handle = note
        device = await endpoint.device().connect()
        assert device.connected
        assert made
        assert not [event for event in made if isinstance(event, SecretDerived)]


async def test_a_disk_that_is_full_ends_the_capture_alone(directory, monkeypatch):
    def full(_descriptor, _data):
        raise OSError(28, "No space left on device")

    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        other = await endpoint.start(OTHER)
        await endpoint.device(identity=OTHER).connect()
        await until(lambda: other.path.stat().st_size > 500)
        monkeypatch.setattr("endpoint.capture.files.os.write", full)
        device = await endpoint.device().connect()
        await said(device, b"21.5")
        await until(lambda: endpoint.facts("capture_ended"))
        monkeypatch.undo()
        await said(device, b"21.6")
        (ended,) = endpoint.facts("capture_ended")
        assert ended["reason"] == "it cannot be written: no space left on device"
        assert ended["identities"] == ["meter-1"]
        assert captured.datagrams == []  # and it is a whole file, not half a block
        await endpoint.stop()
        assert len(other.datagrams) == 4


async def test_a_slow_disk_costs_the_capture_and_no_device(directory, monkeypatch):
    go_on = threading.Event()
    write = Outputs.write

    def slow(self, kind, data):
        go_on.wait()
        write(self, kind, data)

    monkeypatch.setattr(Outputs, "write", slow)
    monkeypatch.setattr(capture_module, "BUFFER", 20_000)
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.device().connect()
        for _ in range(20):
            await said(device, bytes(1_000))
        (listed,) = await endpoint.listed()
        assert listed["lost"] > 0
        assert listed["datagrams"] + listed["lost"] == 44
        go_on.set()
        await endpoint.stop()
        assert len(captured.datagrams) == listed["datagrams"]
        assert len(captured.secrets) == 1


async def test_a_disk_that_hangs_makes_no_capture_longer(directory, monkeypatch, autojump_clock):
    go_on = threading.Event()
    monkeypatch.setattr(Outputs, "write", lambda *_: go_on.wait())
    async with capturing(directory) as endpoint:
        await endpoint.start(IDENTITY, duration=5.0)
        await trio.sleep(6)
        assert not endpoint.armed
        assert len(await endpoint.listed()) == 1  # its file is not whole yet
        go_on.set()


async def test_the_service_ends_with_whole_files(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        await endpoint.device().connect()
        await endpoint.captures.finish()
        assert endpoint.facts("capture_ended")[0]["reason"] == "the service ends"
        assert len(captured.datagrams) == 4


async def test_a_tap_that_fails_is_taken_off_and_nobody_notices(directory, monkeypatch):
    async with capturing(directory) as endpoint:
        await endpoint.start(IDENTITY)
        monkeypatch.setattr(endpoint.captures.recorder, "_note", lambda *_: 1 / 0)
        device = await endpoint.device().connect()
        await said(device, b"21.5")
        assert endpoint.served.engine.tap is None
        ((what, facts),) = endpoint.observer.troubles
        assert (what, facts["reason"]) == ("tap failed", "ZeroDivisionError")
        await endpoint.stop()


# --- who may, where, and what is told ---


async def test_files_are_new_and_for_their_owner_whatever_the_umask(directory):
    before = os.umask(0)
    try:
        async with capturing(directory) as endpoint:
            captured = await endpoint.start(IDENTITY, kinds=["pcapng", "keylog"])
            names = sorted(path.name for path in directory.iterdir())
            assert [name.rpartition(".")[2] for name in names] == ["keylog", "pcapng"]
            for path in directory.iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
            device = await endpoint.device().connect()
            await endpoint.stop()
            (line,) = (directory / names[0]).read_text().splitlines()
            assert line.startswith(f"CLIENT_RANDOM {device.connection.client_random.hex()} ")
            assert len(captured.secrets) == 1
    finally:
        os.umask(before)


async def test_a_key_log_alone_has_no_packets(directory):
    async with capturing(directory) as endpoint:
        await endpoint.start(IDENTITY, kinds=["keylog"])
        await endpoint.device().connect()
        (facts,) = await endpoint.stop()
        (file,) = directory.iterdir()
        assert file.suffix == ".keylog"
        assert len(file.read_text().splitlines()) == 1
        assert facts["datagrams"] == 0


async def test_without_a_directory_nothing_can_be_captured():
    async with capturing(None) as endpoint:
        with pytest.raises(CommandError, match=r"switched off; remedy: state\.capture_directory"):
            await endpoint.start(IDENTITY)
        assert not endpoint.armed


async def test_there_are_few_captures_at_once(directory):
    async with capturing(directory) as endpoint:
        for _ in range(MAX_CAPTURES):
            await endpoint.start(IDENTITY)
        with pytest.raises(CommandError, match=f"{MAX_CAPTURES} captures are under way"):
            await endpoint.start(IDENTITY)
        (first, *others) = await endpoint.listed()
        await endpoint.ask("stop", number=first["number"])
        assert await endpoint.listed() == others
        await endpoint.start(IDENTITY)
        with pytest.raises(CommandError, match="there is no capture 99"):
            await endpoint.ask("stop", number=99)
        wrong: object
        for wrong in ([1], {}, True, "1"):
            with pytest.raises(CommandError, match="there is no capture "):
                await endpoint.ask("stop", number=wrong)
        assert len(await endpoint.stop()) == MAX_CAPTURES


async def test_two_captures_of_one_identity_have_the_same(directory):
    async with capturing(directory) as endpoint:
        one, two = await endpoint.start(IDENTITY), await endpoint.start(IDENTITY, OTHER)
        device = await endpoint.device().connect()
        await said(device, b"21.5")
        await endpoint.stop()
        assert one.data == two.data == [(True, b"21.5"), (False, b"21.5")]
        assert one.datagrams == two.datagrams


async def test_start_and_end_are_warnings_that_name_everything_but_a_secret(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(b"meter-1", b"evil\n\x1b[31m", kinds=["pcapng", "keylog"])
        await endpoint.device().connect()
        await endpoint.stop()
        (started,) = endpoint.facts("capture_started")
        assert started["identities"] == ["evil\\x0a\\x1b[31m", "meter-1"]
        assert (started["level"], started["asked_by"]) == ("warning", 1000)
        assert str(captured.path) in started["files"]
        (ended,) = endpoint.facts("capture_ended")
        assert (ended["level"], ended["reason"]) == ("warning", "stopped by user 1000")
        (secret,) = captured.secrets.values()
        shown = endpoint.log + repr(endpoint.captures.statistics()) + repr(await endpoint.listed())
        assert secret.hex() not in shown
        assert KEY.hex() not in shown
        assert repr(secret) not in shown


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        ({}, "needs an identity or a path"),
        ({"identities": "meter-1"}, "identities: a list of texts"),
        ({"identities": ["zz"]}, "identities: bytes in hexadecimal"),
        ({"identities": [7]}, "identities: a list of texts"),
        ({"identities": ["00"] * 17}, "identities: at most 16"),
        ({"paths": ["example.org"]}, "paths: "),
        ({"paths": ["192.0.2.7:0"]}, "paths: "),
        ({"paths": ["192.0.2.7:99999"]}, "paths: "),
        ({"paths": ["[::1"]}, "paths: "),
        ({"paths": ["[::1]x"]}, "paths: "),
        ({"paths": ["192.0.2.7\n"]}, 'paths: "192.0.2.7\\x0a" is none'),
        ({"paths": ["192.0.2.7"], "kinds": ["keylog"]}, "a path has no key log"),
        ({"identities": ["00"], "kinds": ["pcap"]}, "kinds: one or both of pcapng, keylog"),
        ({"identities": ["00"], "duration": 0}, "duration: 0 is not within 0.1 to 604800"),
        ({"identities": ["00"], "duration": float("inf")}, "duration: a number is needed"),
        ({"identities": ["00"], "duration": True}, "duration: a number is needed"),
        ({"identities": ["00"], "size": 4095}, "size: 4095 is not within"),
        ({"identities": ["00"], "size": 2**31}, "size: "),
        ({"identities": ["00"], "size": "16M"}, "size: a number is needed"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_with_the_reason(directory, request_, what):
    async with capturing(directory) as endpoint:
        with pytest.raises(CommandError, match=re.escape(what)):
            await endpoint.ask("start", **request_)
        assert list(directory.iterdir()) == []
        assert not endpoint.armed


async def test_a_hello_that_had_to_wait_is_in_its_capture_and_not_the_datagram_before_it(directory):
    # In a turn in which everything of newcomers waits, what is looked at last is somebody else's.
    async with capturing(directory) as endpoint:
        other = await endpoint.device(identity=OTHER).connect()
        captured = await endpoint.start(IDENTITY)
        engine = endpoint.served.engine
        take, waiting = engine._intake.take, []
        engine._intake.take = lambda *datagram: waiting.append(datagram)
        device = endpoint.device()
        await device.start()
        await wait_all_tasks_blocked()
        while not device.connected:
            await said(other, b"not this")
            now_waiting, waiting = waiting, []
            engine._intake.take = lambda *datagram, waiting=waiting: waiting.append(datagram)
            for datagram in now_waiting:
                take(*datagram)
            engine.settle()
            await device.step()
            await wait_all_tasks_blocked()
        engine._intake.take = take
        await said(device, b"21.5")
        await endpoint.stop()
        assert [seen.flight for seen in captured.seen] == ["3", "4", "5", "6", "", ""]
        assert captured.data == [(True, b"21.5"), (False, b"21.5")]


async def test_whoever_handshakes_where_the_device_was_a_moment_ago_is_not_recorded(directory):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        device = await endpoint.device().connect()
        await device.close()
        device.config = ClientConfig(psk_identity=OTHER, psk_key=KEY)
        await device.connect()
        await said(device, b"not this")
        await endpoint.stop()
        # Until its cookie is back nobody knows that somebody else is there.
        assert [seen.flight for seen in captured.seen] == ["3", "4", "5", "6", "", "", "1", "2", "3"]


async def test_of_a_handshake_that_nobody_wants_nothing_is_kept_once_it_is_over(directory, virtual_time):
    async with capturing(directory) as endpoint:
        captured = await endpoint.start(IDENTITY)
        await endpoint.device(identity=OTHER).connect()
        assert endpoint.captures.recorder.held == 0
        await endpoint.device(identity=OTHER, key=b"not the key").connect()
        assert endpoint.captures.recorder.held == 0
        await endpoint.stop()
        assert captured.datagrams == []
