"""What the role makes of the endpoints' answers: phases, what is to do, and what the operator is told."""

import functools
import itertools
import secrets
import sys
import types
from pathlib import Path

import pytest

from tests.lab.fleet import REPOSITORY

sys.path.append(str(REPOSITORY / "roles/dtls_common/module_utils"))
import dtls_rotation as rotation
import dtls_wanted

MASTER = secrets.token_hex(32)
DEFAULTS = {"dtls_psk_source": "derived", "dtls_psk_master": "", "dtls_psk_keys": {}, "dtls_psk_length": 32}


def inventory(generation=2, **hosts):
    common = {"dtls_psk_generation": generation, "dtls_psk_master": MASTER}
    return {host: common | own for host, own in (hosts or {"meter": {}}).items()}


@functools.cache
def wants(generation=2):
    told = inventory(generation)
    return dtls_wanted.wanted(told, list(told), DEFAULTS, [])


@functools.cache
def name(generation, identity="meter"):
    """The fingerprint of a generation's key."""
    told = inventory(generation, **{identity: {}})
    return dtls_wanted.wanted(told, [identity], DEFAULTS, [])[identity]["fingerprint"]


def answer(
    endpoint, stored=(), accepted=None, used=None, when="2026-01-01T00:00:00.000Z", live=0, identity="meter"
):
    """What ``keys list --running`` says of one identity, generations for keys."""
    stored = [name(one) for one in stored]
    accepted = stored if accepted is None else [name(one) for one in accepted]
    entry = {
        "identity": identity,
        "current": stored[0] if stored else None,
        "next": stored[1] if len(stored) > 1 else None,
        "accepted": accepted,
        "used": {"fingerprint": name(used), "when": when} if used is not None else None,
        "live": live,
        "frozen": 0,
    }
    return {"item": endpoint, "reached": True, "answer": {"identities": [entry]}}


def nothing(endpoint):
    return {"item": endpoint, "reached": True, "answer": {"identities": []}}


def phase(*answers, generation=2, **more):
    plan = rotation.plan(wants(generation), answers, **more)
    return plan["devices"]["meter"]["phase"], plan


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([nothing("a"), nothing("b")], "unstaged"),
        ([answer("a", [1]), answer("b", [1])], "unstaged"),
        ([answer("a", [1, 2], used=2), answer("b", [1])], "unstaged"),
        # Stored, and not read by the service yet:
        ([answer("a", [1, 2], accepted=[1]), answer("b", [1, 2])], "unstaged"),
        ([answer("a", [1, 2]), answer("b", [1, 2])], "overlap"),
        ([answer("a", [1, 2], used=1), answer("b", [1, 2])], "overlap"),
        ([answer("a", [1, 2], used=2), answer("b", [1, 2])], "confirmed"),
        # Retired at one of them only, then killed:
        ([answer("a", [2], used=2), answer("b", [1, 2])], "confirmed"),
        ([answer("a", [2], used=2), answer("b", [2], accepted=[1, 2])], "confirmed"),
        ([answer("a", [2], used=2), answer("b", [2])], "steady"),
        ([answer("a", [2]), answer("b", [2])], "unheard"),
        ([answer("a", [2], used=1), answer("b", [2])], "unheard"),
        # An endpoint that was started anew has forgotten, but the device is there:
        ([answer("a", [2], live=1), answer("b", [2])], "steady"),
        ([answer("a", [2], used=1, live=1), answer("b", [2])], "unheard"),
        # An endpoint that was added:
        ([answer("a", [2], used=2), nothing("b")], "unstaged"),
    ],
)
def test_the_phase_of_a_device_is_what_the_endpoints_say(answers, expected):
    assert phase(*answers)[0] == expected


def test_the_last_use_of_all_endpoints_counts():
    early, late = "2026-01-01T10:00:00.000Z", "2026-01-01T10:00:00.001Z"
    assert (
        phase(answer("a", [1, 2], used=2, when=late), answer("b", [1, 2], used=1, when=early))[0]
        == "confirmed"
    )
    assert (
        phase(answer("a", [1, 2], used=2, when=early), answer("b", [1, 2], used=1, when=late))[0] == "overlap"
    )


def test_only_what_is_missing_is_staged_and_only_what_is_over_is_retired():
    _, plan = phase(answer("a", [1, 2]), answer("b", [1]), nothing("c"))
    assert plan["stage"] == {"a": [], "b": ["meter"], "c": ["meter"]}
    assert not any(plan["retire"].values())
    _, plan = phase(answer("a", [2], used=2), answer("b", [1, 2]))
    assert plan["retire"] == {"a": [], "b": [f"meter:{name(2)}"]}
    assert not any(plan["stage"].values())
    _, plan = phase(answer("a", [1, 2], accepted=[1]), answer("b", [1, 2]))
    assert plan["stale"] == ["a"]


def test_what_an_earlier_rotation_has_left_is_settled_where_its_next_key_is_in_use():
    found, plan = phase(answer("a", [1, 2], used=2), answer("b", [1, 2]), generation=3)
    assert found == "settling"
    assert plan["settle"] == {"a": [f"meter:{name(2)}"], "b": [f"meter:{name(2)}"]}
    assert plan["stage"] == {"a": ["meter"], "b": ["meter"]}
    found, plan = phase(answer("a", [2], used=2), answer("b", [1, 2]), generation=3)
    assert found == "settling"
    assert plan["settle"] == {"a": [], "b": [f"meter:{name(2)}"]}


@pytest.mark.parametrize("used", [None, 1])
def test_two_keys_in_the_way_block_a_third_and_the_operator_is_told_what_to_do(used):
    found, plan = phase(answer("a", [1, 2], used=used), answer("b", [1, 2]), generation=3)
    assert found == "blocked"
    assert not any(plan["stage"].values())
    assert not any(plan["settle"].values())
    assert not plan["devices"]["meter"]["staged"]
    why = plan["devices"]["meter"]["why"]
    assert "a accepts generation 1 and generation 2 for it" in why
    assert "remedy: finish that rotation first (dtls_psk_generation: 2 until it has used it)" in why


def test_a_key_that_is_not_accepted_everywhere_is_not_settled():
    # The device has used generation 2 at a; b would lock it out of nothing, but knows other keys than anybody thinks.
    found, plan = phase(answer("a", [1, 2], used=2), answer("b", [0, 1]), generation=3)
    assert found == "blocked"
    assert not any(plan["settle"].values())


@pytest.mark.parametrize("generation", [2, 3])
def test_an_endpoint_that_was_restored_from_a_backup_is_caught_up_with_or_the_operator_is_told_how(
    generation,
):
    # Of a time when the device had generation 1, while it uses 2 elsewhere:
    elsewhere = answer("a", [2], used=2, when="2026-02-01T00:00:00.000Z")
    found, plan = phase(elsewhere, answer("b", [1], used=1), generation=generation)
    assert (found, plan["stage"]["b"]) == ("unstaged", ["meter"])
    # Of a time in the middle of a rotation, both keys of which are of the past:
    found, plan = phase(elsewhere, answer("b", [0, 1], used=0), generation=generation)
    assert found == "blocked"
    why = plan["devices"]["meter"]["why"]
    assert "b accepts generation 0 and generation 1 for it, and not generation 2, which it used last" in why
    assert "remedy: forget them there (dtls-endpoint keys remove), and run it again" in why
    assert phase(elsewhere, nothing("b"), generation=generation)[0] == "unstaged"


def test_a_clock_that_is_ahead_delays_the_confirmation_and_is_told():
    answers = [answer("a", [1, 2], used=1, when="2036-01-01T00:00:00.000Z"), answer("b", [1, 2], used=2)]
    found, plan = phase(*answers, now="2026-01-02T00:00:00.000Z")
    assert found == "overlap"
    why = plan["devices"]["meter"]["why"]
    assert "it used generation 1 last, at 2036-01-01T00:00:00.000Z (a)" in why
    assert "when the clock there was ahead; remedy: set it, and have the device connect there once" in why


def test_whatever_key_a_device_has_it_goes_through_the_overlap():
    """Also one of two generations ago, or of nobody knows where."""
    _, plan = phase(answer("a", [1], used=1), answer("b", [1]), generation=3)
    assert plan["stage"] == {"a": ["meter"], "b": ["meter"]}
    assert "generation 3 is not accepted yet at a, b" in plan["devices"]["meter"]["why"]


def test_going_back_needs_the_device_itself_and_not_what_it_used_once():
    answers = [answer("a", [1, 2], used=1), answer("b", [1, 2])]
    found, plan = phase(*answers, generation=1)
    assert found == "overlap"
    assert plan["devices"]["meter"]["staged"]
    found, plan = phase(*answers, generation=1, holding=["meter"])
    assert found == "confirmed"
    assert plan["retire"] == {"a": [f"meter:{name(1)}"], "b": [f"meter:{name(1)}"]}
    assert (
        phase(answer("a", [1, 2], used=2), answer("b", [1, 2]), generation=1, holding=["meter"])[0]
        == "overlap"
    )


def test_an_endpoint_that_says_nothing_is_told_with_its_reason():
    answers = [
        answer("a", [1, 2], used=2),
        {"item": "b", "reached": False, "msg": "b cannot be reached"},
        {"item": "c", "reached": True, "failed": False, "msg": "c: keys list: status 1: nobody answers"},
    ]
    plan = rotation.plan(wants(), answers)
    assert plan["silent"] == {"b": "b cannot be reached", "c": "c: keys list: status 1: nobody answers"}
    assert plan["heard"] == ["a"]


def test_a_revoked_identity_is_left_alone_and_told_where_it_is_still_accepted():
    told = inventory(meter={}, thief={"dtls_psk_device_id": "x"})
    found = dtls_wanted.wanted(told, list(told), DEFAULTS, ["x"])
    assert list(found) == ["meter"]
    plan = rotation.plan(found, [answer("a", [2], used=2, identity="meter")], revoked=["x", "meter"])
    assert plan["still"] == {"meter": ["a"]}
    lines = rotation.report(plan, {"unreached": {}, "troubled": {}})["pending"]
    assert lines == ["meter: revoked: a still has a key of it; remedy: playbooks/revoke.yml"]


def test_the_report_says_why_each_one_is_not_done():
    _, plan = phase(answer("a", [1, 2], used=1), answer("b", [1, 2]))
    met = rotation.seen(
        {"meter": {"__dtls_psk_looked": {"reached": False, "msg": "no route", "changed": False}}}, ["meter"]
    )
    assert met == {"holding": [], "unreached": {"meter": "its key file cannot be looked at"}, "troubled": {}}
    told = rotation.report(plan, met)
    assert (told["devices"], told["steady"]) == (1, 0)
    assert told["pending"] == [
        (
            "meter: overlap: generation 2 is accepted beside another key, and it used generation 1 last, at "
            "2026-01-01T00:00:00.000Z (a); it could not be reached in this run: its key file cannot be looked at"
        )
    ]


def test_a_device_whose_file_was_seen_with_the_key_holds_it():
    written = {"reached": True, "differing": ["content"], "changed": True}
    met = rotation.seen(
        {"a": {"__dtls_psk_pushed": written}, "b": {"__dtls_psk_pushed": {"skipped": True}}}, ["a", "b"]
    )
    assert met["holding"] == ["a"]
    failed = {"reached": None, "msg": "meter: /etc/dtls/psk: is full"}
    met = rotation.seen({"a": {"__dtls_psk_pushed": failed}}, ["a"])
    assert met["troubled"] == {"a": "its key file is not written: meter: /etc/dtls/psk: is full"}


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"dtls_psk_generation": None}, "meter: dtls_psk_generation: None is no number from 0 on"),
        ({"dtls_psk_generation": "two"}, "meter: dtls_psk_generation: 'two' is no number from 0 on"),
        ({"dtls_psk_generation": True}, "meter: dtls_psk_generation: True is no number"),
        ({"dtls_psk_master": ""}, "meter: dtls_psk_master: is missing"),
        ({"dtls_psk_master": "geheim"}, "meter: dtls_psk_master: is not hexadecimal"),
        ({"dtls_psk_master": "00" * 32}, "meter: dtls_psk_master: is a pattern"),
        ({"dtls_psk_length": 8}, "meter: the length: 8 is not a number of bytes"),
        ({"dtls_psk_length": "x"}, "meter: dtls_psk_length: 'x'"),
        ({"dtls_psk_source": "file"}, "meter: dtls_psk_source: 'file' is neither derived nor vault"),
        ({"dtls_psk_source": "vault"}, "meter: dtls_psk_keys: has no key of generation 2, but: none"),
        ({"dtls_psk_source": "vault", "dtls_psk_keys": "geheim"}, "meter: dtls_psk_keys: is no dictionary"),
        (
            {"dtls_psk_source": "vault", "dtls_psk_keys": {2: "geheim"}},
            "meter: dtls_psk_keys: generation 2: is not",
        ),
        (
            {"dtls_psk_source": "vault", "dtls_psk_keys": {2: "11" * 16}},
            "meter: dtls_psk_keys: the key of generation 2",
        ),
        ({"dtls_psk_device_id": "a\nb"}, "meter: dtls_psk_device_id: 'a\\nb'"),
        ({"dtls_psk_device_id": "#a"}, "meter: dtls_psk_device_id: begins with #"),
    ],
)
def test_a_mistake_in_the_inventory_names_host_variable_and_remedy_and_no_key(variables, what):
    told = inventory(meter=variables)
    with pytest.raises(dtls_wanted.Mistake) as caught:
        dtls_wanted.wanted(told, ["meter"], DEFAULTS, [])
    assert str(caught.value).startswith(what)
    assert "geheim" not in str(caught.value)


def test_two_devices_do_not_share_an_identity():
    told = inventory(a={"dtls_psk_device_id": "x"}, b={"dtls_psk_device_id": "x"})
    with pytest.raises(dtls_wanted.Mistake, match="b: dtls_psk_device_id: 'x' is also a's"):
        dtls_wanted.wanted(told, ["a", "b"], DEFAULTS, [])


def test_a_key_is_of_one_device_and_of_one_generation():
    """Copied and pasted in a vault: a rotation to the same key would be none, and who has one device has two."""
    one, two = secrets.token_hex(32), secrets.token_hex(32)

    def told(a, b):
        return inventory(
            a={"dtls_psk_source": "vault", "dtls_psk_keys": a},
            b={"dtls_psk_source": "vault", "dtls_psk_keys": b},
        )

    with pytest.raises(
        dtls_wanted.Mistake, match=r"^b: dtls_psk_keys: the key of generation 2 is also a's; remedy: "
    ):
        dtls_wanted.wanted(told({2: one}, {2: one}), ["a", "b"], DEFAULTS, [])
    with pytest.raises(
        dtls_wanted.Mistake, match=r"^a: dtls_psk_keys: generations 1 and 2 are the same key; remedy: "
    ):
        dtls_wanted.wanted(told({1: one, 2: one}, {2: two}), ["a", "b"], DEFAULTS, [])


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("dtls_psk_revoked", ["meter"], []),
        ("dtls_psk_endpoints", "east", "dtls_endpoints"),
        ("dtls_psk_mode", "emergency", "rotate"),
    ],
)
def test_what_counts_for_all_devices_is_not_taken_from_one_of_them(name, one, other):
    """A device that is revoked in its own host_vars would have been given keys: only those of the first were read."""
    told = inventory(first={}, meter={name: one})
    defaults = {**DEFAULTS, name: other}
    with pytest.raises(dtls_wanted.Mistake) as caught:
        dtls_wanted.wanted(told, list(told), defaults, [])
    assert str(caught.value).startswith(
        f"meter: {name}: is {one!r} here and {other!r} for first, and counts for all devices of a run; remedy: "
    )
    dtls_wanted.wanted(inventory(first={name: one}, meter={name: one}), ["first", "meter"], defaults, [])


def test_keys_of_the_vault_are_found_by_number_or_text_and_old_weak_ones_do_not_matter():
    good, better = secrets.token_hex(32), secrets.token_hex(32)
    own = {"dtls_psk_source": "vault", "dtls_psk_keys": {"1": good, 2: better, 0: "11" * 16}}
    told = inventory(meter=own)
    found = dtls_wanted.wanted(told, ["meter"], DEFAULTS, [])["meter"]
    assert list(found["generations"].values()) == [1]
    assert dtls_wanted.lines(told, ["meter"], DEFAULTS) == f"meter:{better}\n"


def test_at_every_point_of_every_rotation_that_is_cut_short_a_working_key_is_left():
    seen, lost = states(rotation)
    assert lost is None
    assert len(seen) > 300


@pytest.mark.parametrize(
    ("protection", "without"),
    [
        # Confirmed without having been heard:
        ("if self.used == key and (self._holding or not back):", "if True:"),
        # Going back on the word of an earlier time:
        ("if self.used == key and (self._holding or not back):", "if self.used == key:"),
        # Pushed before all endpoints accept the key:
        ('"staged": phase in STAGED,', '"staged": True,'),
        # Staged if one endpoint accepts it:
        (
            "all(key in one.stored and key in one.accepted for one in held)",
            "any(key in one.stored for one in held)",
        ),
        # An earlier rotation settled without its next key being in use:
        ("all(one.stored[1] == self.used for one in full.values())", "True"),
    ],
)
def test_without_one_of_the_protections_a_device_would_be_locked_out(protection, without):
    """The negative control."""
    text = Path(rotation.__file__).read_text()
    assert text.count(protection) == 1
    other = types.ModuleType("other")
    sys.modules["other"] = other
    exec(compile(text.replace(protection, without), "other", "exec"), other.__dict__)  # noqa: S102 - our own text
    assert states(other)[1] is not None


def states(module):
    """All states that runs for generations 1 to 3, each cut short after any step, can leave; and one in which no key works.

    With a device that handshakes when it likes, and falls back to its previous key.
    """
    start = ((("1",), ("1",)), "1", "", "1")
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop(0)
        for generation in (1, 2, 3):
            for following in _steps(module, state, generation):
                endpoints, held, previous, _ = following
                if not all(len(one) <= 2 and (held in one or previous in one) for one in endpoints):
                    return seen, (state, generation, following)
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
    return seen, None


def _steps(module, state, generation):
    """What one step of a run for ``generation``, or the device, makes of a state."""
    (first, second), held, previous, used = state
    for key in {held, previous} - {""}:
        # It tries the new one first.
        if key == held or held not in first or held not in second:
            yield (first, second), held, previous, key
    answers = [
        answer("a", [int(one) for one in first], used=int(used)),
        answer("b", [int(one) for one in second]),
    ]
    there = held == str(generation)
    for holding in ([], ["meter"]) if there else ([],):
        plan = module.plan(wants(generation), answers, holding=holding)
        device = plan["devices"]["meter"]
        keys = {"a": first, "b": second}
        for endpoint, what in itertools.product("ab", ("settle", "stage", "retire")):
            if not plan[what][endpoint] or (what == "stage" and plan["settle"][endpoint]):
                continue  # staging comes after settling
            changed = dict(keys)
            if what == "stage":
                changed[endpoint] = (*keys[endpoint], str(generation))
            else:
                wanted = plan[what][endpoint][0].rpartition(":")[2]
                changed[endpoint] = tuple(one for one in keys[endpoint] if name(int(one)) == wanted)
            yield (changed["a"], changed["b"]), held, previous, used
        if device["staged"] and not there:
            yield (first, second), str(generation), held, used
        if device["phase"] == "steady" and there:  # its file was seen in the same run
            yield (first, second), held, "", used
