"""What the admin socket answers about the service and its devices, with a real engine and real handshakes."""

import contextlib
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from endpoint.admin import MAX_ANSWER, CommandError
from endpoint.answers.doctor import doctor
from endpoint.answers.identities import MAX_LIMIT, MAX_PAGE, identities
from endpoint.answers.names import Names, smallest
from endpoint.answers.parts import Keys, Parts, keys_of, stamp
from endpoint.answers.status import OFFENDERS, status
from endpoint.commands.views import doctor_lines, duration, identity_lines, status_lines
from endpoint.history import History
from endpoint.keystore import DictKeyStore, StoreUnavailable
from endpoint.keystore.fingerprint import fingerprint
from endpoint.observer import Observers
from endpoint.tally import Tally
from endpoint.text import json_line, show_bytes
from endpoint.usage_file import KeyUse
from endpoint.verification import PeerRejected
from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    CipherSuite,
    ClientConfig,
    RetransmitPolicy,
    ServerConfig,
)
from tests.endpoint.devices import KEY, Recorder, serving

OTHER_KEY = bytes(range(100, 116))
START = 1_700_000_000.0
FAST = RetransmitPolicy(initial_timeout=0.5)


class FakeUsage:
    """Which keys were used, as a test says."""

    def __init__(self, uses=None):
        self.uses = uses or {}

    def last(self, identity):
        return self.uses.get(identity)

    def page(self, after, limit):
        return sorted((name, use) for name, use in self.uses.items() if name > after)[:limit]


class Bench:
    """An engine with its parts."""

    def __init__(self, served, keystore, tally, history):
        self.served = served
        self.keystore = keystore
        self.history = history
        self.usage = FakeUsage()
        self.extra: dict[str, object] = {}
        self.reasons: dict[str, str] = {}
        self.parts = Parts(
            engine=served.engine,
            keystore=keystore,
            names=Names(keystore, lambda: list(getattr(keystore, "_keys", ()))),
            statistics=lambda: served.engine.statistics() | self.extra,
            tally=tally,
            history=history,
            usage=cast("Any", self.usage),
            not_ready=self.not_ready,
            state=lambda: "serving",
            version="1.2.3",
            started=START,
            uptime=lambda: 61.0,
        )

    async def not_ready(self):
        return self.reasons

    async def about(self, identity, **more):
        shown = show_bytes(identity)
        answer = await doctor(self.parts, {"identity": shown, **more})
        json.dumps(answer)
        assert list(doctor_lines(answer))
        return answer

    async def listed(self, **request):
        answer = await identities(self.parts, request)
        assert len(json_line(answer).encode()) < MAX_ANSWER
        return answer


@contextlib.asynccontextmanager
async def observed(keystore=None, **options):
    keystore = keystore or DictKeyStore({b"meter-1": KEY, b"Meter-17": OTHER_KEY})
    tally = Tally(clock=trio.current_time)
    history = History(identities=10, strangers=10, addresses=10, wall=lambda: START + trio.current_time())
    recorder = Recorder(echo=True)
    observer = Observers(recorder, tally, history, data=recorder)
    async with serving(keystore=keystore, observer=observer, **options) as served:
        yield Bench(served, keystore, tally, history)


async def in_vain(served, identity, key=KEY, **more):
    """A handshake that fails."""
    config = ClientConfig(psk_identity=identity, psk_key=key, retransmit=FAST, **more)
    device = await served.device(config=config).connect()
    assert device.cause is not None


# --- the doctor -------------------------------------------------------------------------------------


async def test_a_device_that_is_fine_is_called_so(autojump_clock):
    async with observed() as bench:
        await bench.served.device(identity=b"meter-1").connect()
        bench.usage.uses[b"meter-1"] = KeyUse(fingerprint(KEY), "current", START)
        answer = await bench.about(b"meter-1")
    assert (answer["known"], answer["keys"], answer["live_count"]) == (True, [fingerprint(KEY)], 1)
    assert answer["used"] == {"fingerprint": fingerprint(KEY), "which": "current", "when": stamp(START)}
    assert answer["last_success"]["key_used"] == "current"
    assert answer["findings"] == ["it is connected: 1 live, 0 frozen"]


async def test_the_wrong_key_is_named_with_the_remedy(autojump_clock):
    async with observed() as bench:
        await in_vain(bench.served, b"meter-1", OTHER_KEY)
        answer = await bench.about(b"meter-1")
    assert answer["known"] is True
    (failure,) = answer["last_failures"]
    assert failure["cause"] == "AuthenticationFailed.wrong_key"
    assert "the key is wrong; remedy: give the device one of the keys" in answer["findings"][0]


async def test_an_unknown_identity_is_answered_with_the_one_that_was_meant(autojump_clock):
    async with observed() as bench:
        await in_vain(bench.served, b"meter-17", OTHER_KEY)
        unknown = await bench.about(b"meter-17")
        known = await bench.about(b"Meter-17")
    assert unknown["known"] is False
    assert unknown["similar"] == [{"identity": "Meter-17", "differs_in": "case"}]
    assert unknown["findings"][1] == "did you mean Meter-17? It is the same but for case"
    # From the other side: the operator asks for the name that is right.
    assert known["known"] is True
    assert known["findings"][0].startswith(
        "somebody tried once as meter-17, which is unknown and the same but for case"
    )


async def test_of_an_address_it_is_told_who_was_claimed_there(autojump_clock):
    async with observed() as bench:
        await in_vain(bench.served, b"meter-\x00\n", OTHER_KEY)
        answer = await doctor(bench.parts, {"address": "127.0.0.1"})
    assert answer["last_failures"][0]["identity"] == "meter-\\x00\\x0a"
    (line,) = [line for line in doctor_lines(answer) if line.startswith("  failure: ")]
    assert line.endswith(", AuthenticationFailed.unknown_identity, as meter-\\x00\\x0a")


async def test_a_nul_at_the_end_is_seen(autojump_clock):
    async with observed() as bench:
        await in_vain(bench.served, b"Meter-17\0", OTHER_KEY)
        answer = await bench.about(b"Meter-17")
    assert answer["tried_as"][0]["identity"] == "Meter-17\\x00"
    assert answer["tried_as"][0]["differs_in"] == "a NUL at the end"


async def test_invented_names_make_the_answer_neither_long_nor_unreadable():
    async with observed() as bench:
        bench.parts.history._names.others._size = 1_024
        cause = AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY)
        for number in range(200):
            name = b"Meter-17" + bytes(number + 1)
            bench.parts.history.handshake_failed((0, ("192.0.2.7", 1)), name, cause, None)
        answer = await bench.about(b"Meter-17")
    assert len(answer["tried_as"]) == 5
    assert answer["tried_as_count"] == 200
    # The newest, as those are what an operator has just seen.
    assert answer["tried_as"][0]["identity"] == "Meter-17" + "\\x00" * 200
    assert sum("somebody tried" in one for one in answer["findings"]) == 5
    assert "195 more such names were tried" in answer["findings"][-1]


async def test_a_certificate_that_names_another_device_is_not_told_of_this_one():
    def rejected(detail):
        problem = AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)
        bench.parts.history.handshake_failed(
            (0, ("192.0.2.7", 1)), None, problem, PeerRejected("expired", detail)
        )

    async with observed() as bench:
        rejected("the certificate of CN=pump-17 has expired")
        rejected("the certificate of CN=pump-1.example has expired")
        answer = await bench.about(b"pump-1")
        assert (answer["rejections"], (await bench.about(b""))["rejections"]) == ([], [])
        rejected("the certificate of CN=PUMP-1 has expired")
        answer = await bench.about(b"pump-1")
    assert [one["reason"] for one in answer["rejections"]] == ["the certificate of CN=PUMP-1 has expired"]


@pytest.mark.parametrize("asked", ["2001:DB8:0::7", "[2001:db8::7]:40000", "2001:db8:0:0:0:0:0:7"])
async def test_an_address_is_found_however_it_is_written(asked):
    async with observed() as bench:
        bench.parts.history.refused((0, ("2001:db8::7", 1)), "max_half_open")
        answer = await doctor(bench.parts, {"address": asked})
    assert (answer["address"], answer["refusals"][0]["count"]) == ("2001:db8::7", 1)


async def test_an_address_of_ipv4_is_found_as_a_mapped_one_too():
    async with observed() as bench:
        bench.parts.history.refused((0, ("::ffff:192.0.2.7", 1)), "max_half_open")
        for asked in ("192.0.2.7", "::ffff:192.0.2.7", "[::ffff:c000:207]:9"):
            answer = await doctor(bench.parts, {"address": asked})
            assert (answer["address"], answer["refusals"][0]["count"]) == ("192.0.2.7", 1)


async def test_no_common_cipher_suite_is_told_with_what_was_offered(autojump_clock):
    suites = (CipherSuite.TLS_PSK_WITH_AES_128_CCM,)
    async with observed(config=ServerConfig(cipher_suites=suites)) as bench:
        offered = (CipherSuite.TLS_PSK_WITH_AES_128_CCM_8, CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256)
        await in_vain(bench.served, b"meter-1", cipher_suites=offered)
        answer = await doctor(bench.parts, {"address": bench.served.devices[0].path})
    (failure,) = answer["last_failures"]
    assert failure["cause"] == "PeerIncompatible"
    assert failure["reason"].endswith(
        "no cipher suite in common; it offered TLS_PSK_WITH_AES_128_CCM_8, TLS_PSK_WITH_AES_128_GCM_SHA256"
    )
    assert "remedy: add one of the offered cipher suites to dtls.cipher_suites" in answer["findings"][0]


async def test_a_device_that_falls_silent_points_to_the_path(autojump_clock):
    async with observed() as bench:
        await bench.served.device(identity=b"meter-1").knock()
        await trio.sleep(200)
        answer = await doctor(bench.parts, {"address": "127.0.0.1"})
    assert answer["last_failures"][0]["cause"] == "HandshakeTimeout"
    assert "firewall or NAT" in answer["findings"][0]


async def test_an_identity_never_heard_of_says_where_to_look(autojump_clock):
    async with observed() as bench:
        answer = await bench.about(b"meter-1")
        nowhere = await doctor(bench.parts, {"address": "192.0.2.1:5684"})
    (finding,) = answer["findings"]
    assert f"tcpdump udp port {bench.served.port}" in finding
    assert nowhere["address"] == "192.0.2.1"
    assert "tcpdump" in nowhere["findings"][0]


async def test_refusals_of_its_address_are_told_with_the_key_to_turn(autojump_clock):
    async with observed() as bench:
        await bench.served.device(identity=b"meter-1").connect()
        for _ in range(3):
            bench.history.refused((0, ("127.0.0.1", 1)), "handshakes_per_second")
        answer = await bench.about(b"meter-1")
    assert answer["refusals"][0]["count"] == 3
    assert "refused 3 times by the quota handshakes_per_second" in answer["findings"][-1]
    assert "raise quotas.handshakes_per_second" in answer["findings"][-1]


async def test_an_identity_that_quotas_refuse_is_told_so():
    async with observed() as bench:
        late = {"who": "meter-1", "reason": "identity_handshakes_per_second", "count": 7}
        bench.extra = {"quotas": {"top": [late, {**late, "who": "meter-2"}]}}
        answer = await bench.about(b"meter-1")
    assert answer["refusals"] == [
        {"address": None, "quota": "identity_handshakes_per_second", "count": 7, "when": None}
    ]
    assert answer["findings"][0].startswith(
        "it was refused 7 times by the quota identity_handshakes_per_second of late; if devices are meant to do that, raise quotas."
    )


async def test_a_device_that_came_while_the_store_was_down_is_told_so(autojump_clock):
    class Down:
        async def lookup(self, identity):
            raise StoreUnavailable("no route to host")

    async with observed(Down()) as bench:
        await in_vain(bench.served, b"meter-1")
        answer = await bench.about(b"meter-1")
        assert bench.served.engine.statistics()["observer_failures"] == 0
    (failure,) = answer["last_failures"]
    assert failure["cause"] == "AuthenticationFailed.keys_unavailable"
    assert "comes back by itself" in failure["remedy"]


async def test_a_store_that_is_down_comes_before_all_else():
    class Down:
        async def lookup(self, identity):
            raise RuntimeError("no route to host")

    async with observed(Down()) as bench:
        answer = await bench.about(b"meter-1")
    assert (answer["known"], answer["unavailable"]) == (None, "no route to host")
    assert answer["findings"][0] == (
        "the key store cannot answer, so no new device gets in: no route to host"
    )


async def test_a_store_that_hangs_is_not_waited_for(autojump_clock):
    class Hanging:
        async def lookup(self, identity):
            await trio.sleep_forever()

    assert await keys_of(Hanging(), b"x") == Keys(unavailable="it does not answer within 5 s")


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        ({}, "an identity or an address is needed"),
        ({"identity": "a\\q"}, "identity: a backslash is written"),
        ({"identity": 3}, "identity:"),
        ({"identity": "a\ud800"}, "identity: it holds half a character$"),
        ({"address": "meter-1"}, "address: 'meter-1' is no IP address"),
    ],
)
async def test_a_question_that_cannot_be_understood_is_refused(request_, what):
    async with observed() as bench:
        with pytest.raises(CommandError, match=what):
            await doctor(bench.parts, request_)


# --- identities -------------------------------------------------------------------------------------


async def test_each_identity_has_its_keys_its_last_use_and_its_associations(autojump_clock):
    keystore = DictKeyStore({b"a": [KEY, OTHER_KEY], b"b": OTHER_KEY})
    async with observed(keystore) as bench:
        await bench.served.device(identity=b"a", key=KEY).connect()
        await bench.served.device(identity=b"a", key=OTHER_KEY).connect()
        bench.usage.uses = {
            b"a": KeyUse(fingerprint(OTHER_KEY), "next", START),
            b"gone": KeyUse("00", "current", START),
        }
        answer = await bench.listed()
    assert answer == {
        "identities": [
            {
                "identity": "a",
                "keys": [fingerprint(KEY), fingerprint(OTHER_KEY)],
                "used": {"fingerprint": fingerprint(OTHER_KEY), "which": "next", "when": stamp(START)},
                "live": 2,
                "frozen": 0,
            },
            {"identity": "b", "keys": [fingerprint(OTHER_KEY)], "used": None, "live": 0, "frozen": 0},
            {
                "identity": "gone",
                "keys": [],
                "used": {"fingerprint": "00", "which": "current", "when": stamp(START)},
                "live": 0,
                "frozen": 0,
            },
        ]
    }
    assert [line for entry in answer["identities"] for line in identity_lines(entry)][1] == (
        f"b: {fingerprint(OTHER_KEY)}; 0 live, 0 frozen"
    )


async def test_pages_follow_each_other_and_leave_nobody_out():
    names = sorted({b"m\\%d" % number for number in range(50)} | {b"\xff\n", b"\0"})
    async with observed(DictKeyStore(dict.fromkeys(names, KEY))) as bench:
        found: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = await bench.listed(limit=7, **after)
            assert len(page["identities"]) <= 7
            found += [entry["identity"] for entry in page["identities"]]
            if "next" not in page:
                break
            after = {"after": page["next"]}
    assert found == [show_bytes(name) for name in names]


async def test_long_names_make_shorter_pages():
    names = [bytes([number]) + b"\xff" * 1000 for number in range(100, 250)]
    async with observed(DictKeyStore(dict.fromkeys(names, KEY))) as bench:
        page = await bench.listed(limit=MAX_LIMIT)
    assert 0 < len(page["identities"]) < len(names)
    assert len(json_line(page).encode()) <= MAX_PAGE + 10_000


@pytest.mark.parametrize(
    "wrong",
    [{"limit": 0}, {"limit": MAX_LIMIT + 1}, {"limit": "5"}, {"limit": True}, {"after": 3}, {"after": "\\"}],
)
async def test_a_page_that_cannot_be_is_refused(wrong):
    async with observed() as bench:
        with pytest.raises(CommandError, match=next(iter(wrong))):
            await bench.listed(**wrong)


async def test_a_store_that_hangs_holds_up_a_page_once(autojump_clock):
    class Hanging:
        _keys = [b"%d" % number for number in range(100)]

        async def lookup(self, identity):
            await trio.sleep_forever()

    async with observed(Hanging()) as bench:
        began = trio.current_time()
        page = await bench.listed()
        assert trio.current_time() - began < 6
    assert {entry["unavailable"] for entry in page["identities"]} == {"it does not answer within 5 s"}


async def test_a_store_that_lists_page_by_page_is_asked_so_also_behind_a_guard():
    class Paged:
        def __init__(self):
            self.asked = []

        async def page(self, after, limit):
            self.asked.append((after, limit))
            if after == b"c":
                raise RuntimeError("down")
            return [name for name in (b"a", b"b", b"c") if after is None or name > after][:limit]

    paged = Paged()
    names = Names(SimpleNamespace(store=SimpleNamespace(store=paged)), lambda: [b"not asked"])
    assert await names.page(None, 2) == [b"a", b"b"]
    assert await names.page(b"b", 2) == [b"c"]
    assert await names.page(b"c", 2) == []
    assert await names.all() == [b"a", b"b", b"c"]


async def test_the_smallest_of_many_are_found_in_portions():
    many = [b"%06d" % (number * 7919 % 20_011) for number in range(20_011)]
    assert await smallest(many, b"000004", 3, [b"000006x"]) == [b"000005", b"000006", b"000006x"]


# --- the service ------------------------------------------------------------------------------------


async def test_the_status_counts_what_happened(autojump_clock):
    async with observed() as bench:
        await bench.served.device(identity=b"meter-1").connect()
        await in_vain(bench.served, b"meter-1", OTHER_KEY)
        bench.extra = {
            "quotas": {"top": [{"who": f"192.0.2.{n}", "reason": "x", "count": n} for n in range(20)]},
            "state_failing": False,
        }
        answer = await status(bench.parts)
    assert (answer["associations"], answer["identities"], answer["ready"]) == (1, 1, True)
    assert answer["recent"]["completed"] == 1
    assert answer["recent"]["failed"] == {"AuthenticationFailed.wrong_key": 1}
    assert answer["listeners"][0]["address"].startswith("127.0.0.1:")
    assert len(answer["offenders"]) == OFFENDERS
    assert answer["offenders"][1] == {"what": "192.0.2.1", "quota": "x", "count": 1}
    assert (answer["version"], answer["state"], answer["started"]) == ("1.2.3", "serving", stamp(START))
    assert answer["state_failing"] is False
    text = "\n".join(status_lines(answer))
    assert "1 live, 0 frozen" in text
    assert "1 failed (AuthenticationFailed.wrong_key 1)" in text


async def test_what_is_not_ready_is_said_first():
    async with observed() as bench:
        bench.reasons = {"key_store": "no route\nto host"}
        answer = await status(bench.parts)
    assert (answer["ready"], answer["not_ready"]) == (False, bench.reasons)
    first, second, *_ = status_lines(answer)
    assert "NOT READY" in first
    assert "no route\\x0ato host" in second


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 days")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text
