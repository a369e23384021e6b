"""``dtls_ruleset`` where another backend holds rules of the same name, and where two runs change them at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.roles.guarded import (
    ACTION,
    BETTER,
    CHAINS,
    CUT4,
    GOOD,
    GOOD4,
    KINDS,
    RULES,
    SCRIPT,
    SOON,
    chains,
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
from tests.roles.plays import Plays


@pytest.fixture(scope="module")
def plays(fleet):
    return Plays(fleet)


@pytest.fixture(autouse=True)
def bare(fleet):
    """Every host without rules."""
    strip(fleet)


def test_rules_of_another_backend_go_with_the_new_ones_and_come_back_with_the_dead_man(fleet, plays):
    variables = {"kinds": KINDS}
    plays.run(ruleset(GOOD))
    told = plays.run(
        cutting(CUT4, name="cut", minds=False, **CHAINS),
        ruleset(GOOD, name="back", check_mode=True),
        ruleset(GOOD4, name="first", **CHAINS),
        ruleset(GOOD4, name="again", **CHAINS),
        variables=variables,
    )
    for host in fleet.hosts.values():
        assert told.of(host.name, "cut")["rolled_back"]
        states = [told.of(host.name, step).state for step in ("back", "first", "again")]
        assert states == ["ok", "changed", "ok"]
        assert "table inet guard" not in on(host, "nft list ruleset")
        assert chains(host)
        # So it is where a boot has loaded what an older run had written.
        on(host, f"nft -f - <<'END'\n{RULES.for_nft('guard', GOOD)}END")
    told = plays.run(
        ruleset(GOOD4, name="first", check_mode=True, **CHAINS),
        ruleset(GOOD4, name="second", **CHAINS),
        ruleset(GOOD, name="other"),
        ruleset(GOOD, name="again"),
        variables=variables,
        arguments=["--diff"],
    )
    assert "# rules by nft" in told.output
    for host in fleet.hosts.values():
        states = [told.of(host.name, step).state for step in ("first", "second", "other", "again")]
        assert states == ["changed", "changed", "changed", "ok"]
        assert in_force(host, GOOD)
        assert not chains(host)
    told = plays.run(ruleset("", name="absent", state="absent", **CHAINS), variables=variables)
    for host in fleet.hosts.values():
        assert told.of(host.name, "absent").state == "changed"
        assert "guard" not in on(host, "nft list ruleset")


def test_where_ours_let_the_controller_in_past_the_rules_of_others_they_do_not_go(fleet, plays):
    device = fleet["device-1"]
    plays.run(ruleset(GOOD4, backend="iptables-legacy"), hosts="device-1")
    own = (
        "iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; iptables-legacy -P INPUT DROP"
    )
    on(device, own)
    soon = {"rollback_after": SOON, "minds": False}
    told = plays.run(
        ruleset(GOOD, name="another backend", backend="nft", **soon),
        ruleset("", name="absent", backend="iptables-legacy", state="absent", **soon),
        hosts="device-1",
    )
    for name in ("another backend", "absent"):
        assert told.of("device-1", name).state == "failed"
        assert told.of("device-1", name)["rolled_back"]
    assert lets_in(device)
    assert chains(device)
    assert written(device, "guard.iptables") == RULES.for_iptables("guard", GOOD4)


def test_what_is_undone_is_what_was_before_an_apply_by_another_backend_that_waits(fleet, plays, tmp_path):
    plays.run(ruleset(GOOD))
    kill_before_the_confirmation(fleet, plays, tmp_path, BETTER, after=120)
    told = plays.run(cutting(CUT4, minds=False, **CHAINS), variables={"kinds": KINDS})
    for host in fleet.hosts.values():
        assert told.of(host.name, "rules")["rolled_back"], told.output
        assert in_force(host, GOOD), on(host, "nft list ruleset")
        assert not chains(host)


def test_a_table_of_somebody_else_is_not_taken_away_with_rules_by_another_backend(fleet, plays):
    device = fleet["device-1"]
    plays.run(ruleset(GOOD4, backend="iptables-legacy"), hosts="device-1")
    on(device, "nft add table inet guard")
    absent = {"state": "absent", "backend": "nft", "minds": False}
    told = plays.run(
        ruleset("", name="rehearsed", check_mode=True, **absent), ruleset("", **absent), hosts="device-1"
    )
    for name in ("rehearsed", "rules"):
        assert "and it is not ours" in told.of("device-1", name)["msg"]
    assert "table inet guard" in on(device, "nft list ruleset")
    assert chains(device)


def test_what_never_arrived_is_not_confirmed_because_nothing_is_in_force(fleet, plays, tmp_path):
    plays.run(ruleset(GOOD4, backend="iptables-legacy"), hosts="device-1")
    sent = '            port = self._ask("apply", data=self._text.encode()).report.get("port", "")\n'
    told = plays.run(
        ruleset("", state="absent", backend="nft", minds=False),
        hosts="device-1",
        environment=patched(tmp_path, (ACTION, sent, '            port = ""\n')),
    )
    assert "the apply is gone" in told.of("device-1", "rules")["msg"]
    assert chains(fleet["device-1"])


# --- two runs at once --------------------------------------------------------------------------------


def beside(fleet, plays, tmp_path, change, task, meanwhile):
    """Run a task whose protocol is changed so that it waits, and another one meanwhile; what became of both."""
    reached = fleet["device-1"].root / "run/reached"
    with ThreadPoolExecutor() as other:
        run = other.submit(plays.run, task, hosts="device-1", environment=patched(tmp_path, change))
        until(reached.exists, "it does not get there")
        second = plays.run(meanwhile, hosts="device-1", environment=fleet.colleague("b"))
        fleet["device-1"].ssh("touch /run/further")
    reached.unlink()
    fleet["device-1"].ssh("rm /run/further")
    return run.result().of("device-1", "rules"), second.of("device-1", "rules")


WAITS = ": >/run/reached; until [ -e /run/further ]; do sleep 0.1; done"


def test_what_another_backend_loads_while_an_apply_looks_around_is_not_taken_away(fleet, plays, tmp_path):
    change = (SCRIPT, "rehearse() {\n", f"rehearse() {{\n    {WAITS}\n")
    first, second = beside(
        fleet, plays, tmp_path, change, ruleset(GOOD, minds=False), ruleset(GOOD4, backend="iptables-legacy")
    )
    assert second["confirmed"]
    assert "another run changes rules here at this very moment" in first["msg"]
    assert chains(fleet["device-1"])
    assert "guard" not in on(fleet["device-1"], "nft list ruleset")


def test_rules_that_come_when_others_are_gone_and_not_their_files_yet_stay(fleet, plays, tmp_path):
    plays.run(ruleset(GOOD), hosts="device-1")
    change = (SCRIPT, "remove() {\n", f"remove() {{\n    {WAITS}\n")
    first, second = beside(
        fleet, plays, tmp_path, change, ruleset("", state="absent", minds=False), ruleset(BETTER)
    )
    assert second["confirmed"]
    assert "another run changes rules here at this very moment" in first["msg"]
    assert in_force(fleet["device-1"], BETTER)
    assert written(fleet["device-1"]) == RULES.for_nft("guard", BETTER)


@pytest.mark.parametrize("later", ["before the others go", "at the end"])
def test_rules_that_are_loaded_after_their_own_dead_man_has_acted_are_undone(fleet, plays, tmp_path, later):
    device = fleet["device-1"]
    plays.run(ruleset(GOOD4, backend="iptables-legacy"), hosts="device-1")
    place = {
        "before the others go": '    for kind in $(others); do\n        (use "$kind" && take_away)',
        "at the end": "load() {\n",
    }[later]
    until_rolled = '    until [ -d "$dir.rolled" ]; do sleep 0.1; done\n'
    text = place + until_rolled if place.endswith("\n") else until_rolled + place
    told = plays.run(
        ruleset(GOOD, backend="nft", rollback_after=SOON, minds=False),
        hosts="device-1",
        environment=patched(tmp_path, (SCRIPT, place, text)),
    )
    assert "too slow, so what was before is in force" in told.of("device-1", "rules")["msg"]
    assert chains(device)
    assert "table inet guard" not in on(device, "nft list ruleset")
