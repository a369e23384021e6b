"""``dtls_ruleset`` on both kinds of host: rules that cut ssh are taken back, whatever else happens meanwhile."""

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.roles.guarded import (
    ACTION,
    BETTER,
    BETTER4,
    BLIND,
    BOTH,
    CUT,
    CUT4,
    GOOD,
    GOOD4,
    RULES,
    SAME,
    SCRIPT,
    SEEN,
    SOON,
    cutting,
    in_force,
    kill_before_the_confirmation,
    lets_in,
    on,
    patched,
    ruleset,
    strip,
    until,
    written,
)
from tests.roles.packets import opens
from tests.roles.plays import Plays


@pytest.fixture(scope="module")
def plays(fleet):
    return Plays(fleet)


@pytest.fixture(autouse=True)
def bare(fleet):
    """Every host without rules."""
    strip(fleet)


# --- good rules, and rules that lock out ------------------------------------------------------------


def test_rules_are_loaded_once_and_what_locks_out_is_taken_back(fleet, plays):
    with ThreadPoolExecutor() as other:
        run = other.submit(
            plays.run,
            ruleset(GOOD, name="good"),
            ruleset(GOOD, name="again"),
            cutting(CUT, name="cut", minds=False, rollback_after=SEEN),
            ruleset(GOOD, name="after"),
        )
        for host in fleet.hosts.values():
            until(lambda host=host: in_force(host, CUT), "the rules do not come")
        for host in fleet.hosts.values():
            assert not opens(fleet.network.controller, host, port=22), "ssh is really cut"
            assert written(host) == RULES.for_nft("guard", GOOD)
        told = run.result()
    for host in fleet.hosts.values():
        good, cut = told.of(host.name, "good"), told.of(host.name, "cut")
        assert (good.state, good["confirmed"], good["rolled_back"], good["backend"]) == (
            "changed",
            True,
            False,
            "nft",
        )
        assert good["sha256"] == RULES.fingerprint(GOOD)
        for name in ("again", "after"):
            assert (told.of(host.name, name).state, told.of(host.name, name)["confirmed"]) == ("ok", True)
        assert (cut.state, cut["confirmed"], cut["rolled_back"], cut["changed"]) == (
            "failed",
            False,
            True,
            False,
        )
        assert f"{host.name}: guard: nobody got in by a new connection" in cut["msg"]
        assert "remedy" in cut["msg"]
        assert in_force(host, GOOD)
        assert written(host) == RULES.for_nft("guard", GOOD)
        assert lets_in(host)
    gone = plays.run(ruleset("", name="absent", state="absent"), ruleset("", name="nothing", state="absent"))
    for host in fleet.hosts.values():
        assert [gone.of(host.name, name).state for name in ("absent", "nothing")] == ["changed", "ok"]
        assert "guard" not in on(host, "nft list ruleset")
        assert written(host) is None


def test_so_it_is_with_both_kinds_of_iptables_for_both_families(fleet, plays):
    kinds = {"endpoint-1": "nft", "device-1": "legacy"}
    given = {"backend": "iptables-{{ kinds[inventory_hostname] }}"}
    variables = {"kinds": kinds}
    for name, kind in kinds.items():
        on(fleet[name], f"iptables-{kind} -A INPUT -p tcp --dport 9 -j DROP; ip6tables-{kind} -N others")
    told = plays.run(
        ruleset(GOOD4, name="good", **given),
        ruleset(GOOD4, name="again", **given),
        cutting(CUT4, name="cut", minds=False, **given),
        ruleset(GOOD4, name="after", **given),
        variables=variables,
    )
    for name, kind in kinds.items():
        states = [told.of(name, step).state for step in ("good", "again", "cut", "after")]
        assert states == ["changed", "ok", "failed", "ok"], told.output
        assert told.of(name, "cut")["rolled_back"]
        for version, source in (("", "10.77.0.1/32"), ("6", "fd77::1/128")):
            saved = on(fleet[name], f"ip{version}tables-{kind}-save -t filter")
            assert f"-A guard-IN -s {source} -p tcp -m tcp --dport 22 -j ACCEPT" in saved
            assert f"sansdtls-{RULES.fingerprint(GOOD4)}" in saved
            for jump in ("-A INPUT -j guard-IN", "-A OUTPUT -j guard-OUT"):
                assert saved.splitlines().count(jump) == 1
        assert written(fleet[name], "guard.iptables") == RULES.for_iptables("guard", GOOD4)
    told = plays.run(
        ruleset(BETTER4, name="better", **given),
        ruleset("", name="absent", state="absent", **given),
        ruleset("", name="nothing", state="absent", **given),
        variables=variables,
    )
    for name, kind in kinds.items():
        states = [told.of(name, step).state for step in ("better", "absent", "nothing")]
        assert states == ["changed", "changed", "ok"], told.output
        saved = on(fleet[name], f"iptables-{kind}-save -t filter; ip6tables-{kind}-save -t filter")
        assert "guard" not in saved
        assert "--dport 9 -j DROP" in saved, "what others have there stays"
        assert ":others" in saved
        assert written(fleet[name], "guard.iptables") is None


def test_what_is_written_for_iptables_loads_on_a_host_that_boots(fleet, plays):
    plays.run(ruleset(GOOD4, backend="iptables-legacy"), hosts="device-1")
    device = fleet["device-1"]
    before = on(device, "iptables-legacy-save -t filter | grep guard")
    on(device, "iptables-legacy -F; iptables-legacy -X")
    device.ssh("iptables-legacy-restore --noflush </etc/dtls-guard/guard.iptables")
    assert on(device, "iptables-legacy-save -t filter | grep guard") == before


def test_rules_that_end_what_is_open_are_taken_back_too_and_without_setsid_or_timers(fleet, plays, tmp_path):
    """Without a word of established connections, the answer that they are loaded does not arrive."""
    nothing = "chain input {\n type filter hook input priority 0; policy drop;\n}\n"
    bare = patched(tmp_path, (SCRIPT, "! has setsid", "true"), (SCRIPT, "has systemd-run", "false"))
    told = plays.run(cutting(nothing, minds=False), environment=bare)
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules").state == "failed"
        assert told.of(host.name, "rules")["rolled_back"], told.output
        assert "guard" not in on(host, "nft list ruleset")


def test_rules_of_others_stay(fleet, plays):
    other = (
        'table inet other {\n\tcomment "sansdtls 00"\n\tchain c {\n\t\tcounter packets 0 bytes 0\n\t}\n}\n'
    )
    for host in fleet.hosts.values():
        on(host, f"nft -f - <<'EOF'\n{other}EOF")
    plays.run(ruleset(GOOD), ruleset(BETTER), ruleset("", state="absent"))
    for host in fleet.hosts.values():
        assert on(host, "nft list ruleset") == other
        on(host, "nft add table inet guard")
    told = plays.run(ruleset(GOOD, minds=False), ruleset("", name="absent", state="absent"))
    for host in fleet.hosts.values():
        assert (
            "it is not ours; remedy: nft delete table inet guard, or another name"
            in told.of(host.name, "rules")["msg"]
        )
        assert told.of(host.name, "absent").state == "ok"
        assert "table inet guard" in on(host, "nft list tables")


# --- what is refused, and what is only looked at ----------------------------------------------------


def test_rules_that_do_not_let_this_session_in_are_refused_before_anything_happens(fleet, plays):
    told = plays.run(ruleset(CUT), status=2)
    for host in fleet.hosts.values():
        said = told.of(host.name, "rules")["msg"]
        assert f"{host.name}: guard: content: would lock this very session out" in said
        assert "from 10.77.0.1 to port 22" in said
        assert not (host.inside() / "run/dtls-guard").exists()
        assert on(host, "nft list ruleset") == ""


def test_check_mode_changes_nothing_and_tells_a_mistake(fleet, plays):
    wrong = f"{GOOD}chain x {{\n  bogus words\n}}\n"
    told = plays.run(
        ruleset(GOOD, name="good", check_mode=True),
        ruleset(wrong, name="looked at", minds=False, check_mode=True),
        ruleset(wrong, name="loaded", minds=False),
        arguments=["--diff"],
    )
    assert "+    ip saddr @operators tcp dport 22 accept" in told.output
    for host in fleet.hosts.values():
        assert told.of(host.name, "good").state == "changed"
        for name in ("looked at", "loaded"):
            assert "nft refuses the rules" in told.of(host.name, name)["msg"]
            assert "bogus" in told.of(host.name, name)["msg"]
        assert on(host, "nft list ruleset") == ""
        assert written(host) is None
        assert host.ssh("ls /run/dtls-guard/guard 2>/dev/null; :") == "", "nothing waits"


def test_rules_that_are_in_force_but_not_written_are_written(fleet, plays):
    plays.run(ruleset(GOOD, persist=False))
    assert all(written(host) is None for host in fleet.hosts.values())
    told = plays.run(ruleset(GOOD, name="second"), ruleset(GOOD, name="third"))
    for host in fleet.hosts.values():
        assert [told.of(host.name, name).state for name in ("second", "third")] == ["changed", "ok"]
        assert written(host) == RULES.for_nft("guard", GOOD)


# --- killed in between, and dead-men of before ------------------------------------------------------


def test_of_two_runs_at_once_none_undoes_to_what_the_other_has_not_confirmed(fleet, plays, tmp_path):
    plays.run(ruleset(GOOD))
    shown = '    mv "$dir" "${dir%.new}"'
    # Each has looked at what was before when it finds the other.
    meet = "    : >/tmp/met.$nonce; while [ $(ls /tmp | grep -c ^met) -lt 2 ]; do sleep 1; done\n"
    meeting = patched(tmp_path, (SCRIPT, shown, meet + shown))
    both = [
        fleet.start_playbook(plays.write([ruleset(content)]), **meeting, **fleet.colleague(name))
        for name, content in (("a", BETTER), ("b", f"{GOOD}#\n"))
    ]
    said = "".join(process.communicate(timeout=300)[0] for process in both)
    for host in fleet.hosts.values():
        assert f"{host.name}: guard: another run changes rules here at this very moment; remedy" in said
        assert host.ssh("rm /tmp/met.*; ls /run/dtls-guard/guard") == "confirmed\nconfirmed.by\n", (
            "nothing waits"
        )
        assert written(host) in [RULES.for_nft("guard", one) for one in (GOOD, BETTER, f"{GOOD}#\n")]


def test_a_controller_that_is_killed_before_the_confirmation_leaves_the_old_rules(fleet, plays, tmp_path):
    plays.run(ruleset(GOOD))
    kill_before_the_confirmation(fleet, plays, tmp_path, BETTER, after=SOON)
    for host in fleet.hosts.values():
        assert written(host) == RULES.for_nft("guard", GOOD)
        until(lambda host=host: in_force(host, GOOD), "the dead-man does not act")
    told = plays.run(ruleset(BETTER))
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules").state == "changed"
        assert in_force(host, BETTER)


def deadman_of_before(fleet, plays, tmp_path, *changes):
    """Whether rules that were confirmed are in force after the dead-man of an apply before them."""
    kill_before_the_confirmation(
        fleet, plays, tmp_path, CUT.replace("policy drop", "policy accept"), after=120
    )
    for host in fleet.hosts.values():
        # What its timer would run, when it would be time.
        host.ssh("cp /run/dtls-guard/guard/*/script /tmp/deadman")
    environment = {}
    if changes:
        folder = tmp_path / "patched"
        folder.mkdir()
        environment = patched(folder, *changes)
    told = plays.run(ruleset(BETTER, rollback_after=60), environment=environment)
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules")["confirmed"]
        host.ssh("DTLS_WHAT=undo DTLS_BACKEND=nft sh /tmp/deadman; rm /tmp/deadman")
    return {host.name: in_force(host, BETTER) for host in fleet.hosts.values()}


def test_the_dead_man_of_an_earlier_apply_undoes_nothing_of_a_later_one(fleet, plays, tmp_path):
    assert deadman_of_before(fleet, plays, tmp_path) == dict.fromkeys(BOTH, True)
    for host in fleet.hosts.values():
        assert host.ssh("ls /run/dtls-guard/guard") == "confirmed\nconfirmed.by\n"
        assert "dtls-guard" not in host.ssh("systemctl list-timers --all 2>/dev/null; :")
        assert "DTLS_WHAT" not in host.ssh("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '; :")


def test_without_the_take_over_it_would(fleet, plays, tmp_path):
    """The protection taken out: the test before this one goes red."""
    without = (SCRIPT, "take_over() {\n", "take_over() {\n    return 0\n")
    assert deadman_of_before(fleet, plays, tmp_path, without) == dict.fromkeys(BOTH, False)


def test_what_is_undone_is_what_was_confirmed_last_whatever_other_runs_have_left(fleet, plays, tmp_path):
    plays.run(ruleset(GOOD))
    kill_before_the_confirmation(fleet, plays, tmp_path, BETTER, after=120)
    # Of two it would be the first that is looked at.
    hangs = patched(
        tmp_path,
        (SCRIPT, "    said=$(before 2>&1)", "    sleep 600\n    said=$(before 2>&1)"),
        (ACTION, "secrets.token_hex(8)", "'0' * 16"),
    )
    other = fleet.start_playbook(plays.write([ruleset(BETTER)]), **hangs)
    begun = "[ $(ls -d /run/dtls-guard/guard/*/candidate | wc -l) != 2 ] || echo yes"
    for host in fleet.hosts.values():
        until(lambda host=host: host.ssh(begun), "the other run does not begin")
    told = plays.run(cutting(CUT, minds=False))
    os.killpg(other.pid, signal.SIGKILL)
    other.communicate()
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules")["rolled_back"], told.output
        assert in_force(host, GOOD), on(host, "nft list ruleset")


def test_without_a_new_connection_the_lock_out_would_not_be_seen(fleet, plays, tmp_path):
    """Both protections taken out: the rules are confirmed, and nobody gets in any more."""
    told = plays.run(cutting(CUT), environment=patched(tmp_path, SAME, BLIND))
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules")["confirmed"]
        assert not opens(fleet.network.controller, host, port=22)
        on(host, "nft flush ruleset")


def test_a_connection_that_is_not_new_confirms_nothing(fleet, plays, tmp_path):
    told = plays.run(cutting(GOOD, minds=False), environment=patched(tmp_path, SAME))
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules").state == "failed"
        assert not told.of(host.name, "rules")["confirmed"]
        assert "guard" not in on(host, "nft list ruleset")


TWICE = (
    ACTION,
    'answer = self._ask("confirm", port=port)',
    'self._ask("confirm", port=port); answer = self._ask("confirm", port=port)',
)


def test_a_confirmation_of_which_the_answer_is_lost_is_one(fleet, plays, tmp_path):
    told = plays.run(ruleset(GOOD), environment=patched(tmp_path, TWICE))
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules")["confirmed"]
        assert written(host) == RULES.for_nft("guard", GOOD)


def test_the_fingerprint_of_rules_is_of_their_lines():
    assert RULES.fingerprint("a\n  b  \n\n") == RULES.fingerprint("a\n  b")
    assert RULES.fingerprint("a\n  b") != RULES.fingerprint("a\n b")
    assert RULES.fingerprint("a") == hashlib.sha256(b"a\n").hexdigest()
