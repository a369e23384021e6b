"""``dtls_ruleset`` on both kinds of host: rules that cut ssh are taken back, whatever else happens meanwhile."""

import contextlib
import hashlib
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.namespaces import inside, within
from tests.roles.packets import opens
from tests.roles.plays import COMMON, Plays, load

RULES = load("module_utils/dtls_rules")
BOTH = {"endpoint-1", "device-1"}
GOOD = """\
set operators { type ipv4_addr; elements = { 10.77.0.1, 192.0.2.1 } }
chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iif "lo" accept
    ip saddr @operators tcp dport 22 accept
    udp dport 5684 counter accept
}
"""
BETTER = GOOD.replace("5684", "5685")
CUT = GOOD.replace("dport 22 ", "dport 23 ")
GOOD4 = """\
# for both families
-A guard-IN -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-4 -A guard-IN -s 10.77.0.1 -p tcp --dport 22 -j ACCEPT
-6 -A guard-IN -s fd77::1 -p tcp --dport 22 -j ACCEPT
-A guard-IN -p udp --dport 5684 -j guard-DTLS
-A guard-IN -j DROP
-A guard-OUT -p tcp --dport 25 -j REJECT
-A guard-DTLS -j ACCEPT
"""
BETTER4 = GOOD4.replace("-A guard-OUT -p tcp --dport 25 -j REJECT\n", "").replace("5684", "5685")
CUT4 = GOOD4.replace("--dport 22 ", "--dport 23 ")
SOON = 5
"""Seconds until a dead-man acts, the fewest that there can be."""
SEEN = 12
"""The same where it is looked meanwhile what the rules do, on a machine that may stand still for some of them."""


@pytest.fixture(scope="module")
def plays(fleet):
    return Plays(fleet)


@pytest.fixture(autouse=True)
def bare(fleet):
    """Every host without rules."""
    for host in fleet.hosts.values():
        on(host, "nft flush ruleset")
        clear = "${ip}tables-legacy -P INPUT ACCEPT; ${ip}tables-legacy -F; ${ip}tables-legacy -X"
        on(host, f"for ip in ip ip6; do {clear}; done", check=False)
        shutil.rmtree(host.root / "etc/dtls-guard", ignore_errors=True)
        host.ssh("rm -rf /run/dtls-guard")


def on(host, command, *, check=True):
    """Run something in the host's network namespace, past its rules; what it printed."""
    done = subprocess.run(
        [*within(host.namespace), "sh", "-c", command], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def in_force(host, content):
    """Whether these rules for nft are in force."""
    return f'comment "sansdtls {RULES.fingerprint(content)}"' in on(
        host, "nft list table inet guard", check=False
    )


def written(host, name="guard.nft"):
    """What would be loaded when it boots."""
    try:
        return (host.root / "etc/dtls-guard" / name).read_text()
    except FileNotFoundError:
        return None


def lets_in(host):
    """Whether a new connection can be made."""
    return subprocess.run(host.ssh_command("true"), capture_output=True, check=False).returncode == 0


def ruleset(content, *, name="rules", minds=True, check_mode=False, **more):
    keywords = {"ignore_errors": not minds} | ({"check_mode": True} if check_mode else {})
    # What conntrack has to know before has tests of its own; for the others it is time.
    return {
        "name": name,
        "dtls_ruleset": {"name": "guard", "content": content, "learn": 0, **more},
    } | keywords


def cutting(content, **more):
    return ruleset(content, check_session=False, **{"rollback_after": SOON} | more)


def until(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def patched(folder, *changes):
    """A copy of the role with some of its text replaced; an environment that uses it."""
    copy = folder / "dtls_common"
    shutil.copytree(COMMON, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in changes:
        place = copy / file
        text = place.read_text()
        assert before in text, before
        place.write_text(text.replace(before, after))
    return {"ANSIBLE_ROLES_PATH": str(folder)}


ACTION, SCRIPT = "action_plugins/dtls_ruleset.py", "module_utils/dtls_ruleset.sh"
LINGERS = (
    ACTION,
    "        answer = self._confirm(",
    "        time.sleep(600)\n        answer = self._confirm(",
)


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


# --- another backend ---------------------------------------------------------------------------------

KINDS = {"endpoint-1": "iptables-nft", "device-1": "iptables-legacy"}
CHAINS = {"backend": "{{ kinds[inventory_hostname] }}"}


def chains(host):
    """What there is of ours in iptables, for both families."""
    kind = KINDS[host.name]
    return on(
        host, f"{kind}-save | grep guard; {kind.replace('ip', 'ip6', 1)}-save | grep guard", check=False
    )


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
        second = plays.run(meanwhile, hosts="device-1")
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


def test_what_is_written_for_iptables_loads_on_a_host_that_boots(fleet, plays):
    plays.run(ruleset(GOOD4, backend="iptables-legacy"), hosts="device-1")
    device = fleet["device-1"]
    before = on(device, "iptables-legacy-save -t filter | grep guard")
    on(device, "iptables-legacy -F; iptables-legacy -X")
    device.ssh("iptables-legacy-restore --noflush </etc/dtls-guard/guard.iptables")
    assert on(device, "iptables-legacy-save -t filter | grep guard") == before


# --- what is under way when the first rules come ----------------------------------------------------

ROUND_TRIP = 0.4
QUESTIONS = 10
"""Sockets that ask in turn, so that an answer is there before the same one asks again, which would make it an answer to that."""
PACE = 0.05
"""Seconds between two questions: of eight flows there is always something under way."""
LEARNING = 3
"""Seconds: of an answer that is late because this machine stands still, more is not known either."""
LEARNS = (
    "nft list ruleset | grep -e sansdtls_learn -e guard-learn; "
    "for ip in ip ip6; do ${ip}tables-legacy -S | grep guard-learn; done"
)
"""Shows what conntrack learns by."""
ASKS_NOTHING = GOOD.replace("ct state established,related accept", "udp sport 9999 accept").replace(
    "chain input {", 'chain input {\n    comment "ct state established";'
)


class FarAway:
    """Somebody whose answers take a while, and a device's questions to it; use it in a ``with`` statement."""

    def __init__(self, fleet, host):
        self.asked = self.answered = 0
        self._end = threading.Event()
        self._peer = inside(fleet.network.controller, lambda: _udp(("10.77.0.1", 9999)))
        self._own = inside(host.namespace, lambda: [_udp((host.address, 0)) for _ in range(QUESTIONS)])
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._answer, self._ask)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: self.answered > QUESTIONS, "no answer comes")
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()
        for one in (self._peer, *self._own):
            one.close()

    def _answer(self):
        waiting: deque[tuple[float, bytes, tuple[str, int]]] = deque()
        while not self._end.is_set() or waiting:
            if select.select([self._peer], [], [], PACE / 5)[0]:
                waiting.append((time.monotonic() + ROUND_TRIP, *self._peer.recvfrom(100)))
            while waiting and waiting[0][0] <= time.monotonic():
                _, data, source = waiting.popleft()
                self._peer.sendto(data, source)

    def _ask(self):
        for asking in itertools.cycle(self._own):
            asking.sendto(b"?", ("10.77.0.1", 9999))
            self.asked += 1
            self._hear(PACE)
            if self._end.is_set():
                # By the clock, and to the last that has come: this thread may have stood still.
                self._hear(4 * ROUND_TRIP)
                while select.select(self._own, [], [], ROUND_TRIP)[0]:
                    self._hear(0)
                return

    def _hear(self, seconds):
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            for answered in select.select(self._own, [], [], max(0.0, left))[0]:
                answered.recv(100)
                self.answered += 1
            if left <= 0:
                return


def _udp(address):
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(address)
    return made


BACKENDS = pytest.mark.parametrize(
    ("name", "backend", "content"),
    [
        ("device-1", "nft", GOOD),
        ("device-1", "iptables-legacy", GOOD4),
        ("endpoint-1", "iptables-nft", GOOD4),
    ],
    ids=["nft", "iptables-legacy", "iptables-nft"],
)


@BACKENDS
def test_what_is_on_its_way_when_the_first_rules_come_arrives(fleet, plays, name, backend, content):
    with FarAway(fleet, fleet[name]) as far:
        told = plays.run(
            ruleset(content, name="first", backend=backend, learn=LEARNING),
            ruleset(content.replace("5684", "5685"), name="second", backend=backend, learn=LEARNING),
            hosts=name,
        )
    assert [told.of(name, step).state for step in ("first", "second")] == ["changed", "changed"]
    assert far.answered == far.asked
    assert not on(fleet[name], LEARNS, check=False)


@BACKENDS
def test_without_that_it_would_be_lost(fleet, plays, name, backend, content):
    with FarAway(fleet, fleet[name]) as far:
        plays.run(ruleset(content, backend=backend, learn=0), hosts=name)
    assert far.answered < far.asked


def test_only_for_the_first_rules_that_ask_conntrack_is_it_waited(fleet, plays):
    never = {"learn": 60, "rollback_after": 600}
    began = time.monotonic()
    plays.run(
        ruleset(ASKS_NOTHING, name="asks nothing", **never),
        ruleset(GOOD, name="first", learn=0),
        ruleset(BETTER, name="second", **never),
        hosts="device-1",
    )
    assert time.monotonic() - began < never["learn"]


def begin_to_learn(fleet, plays, tmp_path, name, task):
    """Start a run whose host never has enough of learning."""
    run = fleet.start_playbook(
        plays.write([task], hosts=name), **patched(tmp_path, (SCRIPT, 'sleep "$learn"', "sleep 600"))
    )
    until(lambda: on(fleet[name], LEARNS, check=False), "it does not begin to learn")
    return run


def end(run):
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def test_a_run_after_one_that_was_killed_while_conntrack_learned_lets_it_learn_as_well(
    fleet, plays, tmp_path
):
    waits = ruleset(GOOD, learn=LEARNING, rollback_after=600)
    end(begin_to_learn(fleet, plays, tmp_path, "device-1", waits))
    began = time.monotonic()
    told = plays.run(ruleset(GOOD, learn=4), hosts="device-1")
    assert time.monotonic() - began >= 4
    assert told.of("device-1", "rules")["confirmed"]


@BACKENDS
def test_a_connection_that_breaks_while_conntrack_learns_breaks_nothing_else(
    fleet, plays, name, backend, content
):
    with ThreadPoolExecutor() as other:
        run = other.submit(plays.run, ruleset(content, backend=backend, learn=3), hosts=name)
        until(lambda: on(fleet[name], LEARNS, check=False), "it does not begin to learn")
        break_sessions(fleet[name])
        told = run.result()
    assert told.of(name, "rules")["confirmed"]
    assert told.of(name, "rules").state == "changed"


@BACKENDS
def test_a_run_that_comes_to_nothing_while_conntrack_learns_leaves_nothing(
    fleet, plays, tmp_path, name, backend, content
):
    host = fleet[name]
    waits = ruleset(content, backend=backend, learn=LEARNING, rollback_after=SOON)
    run = begin_to_learn(fleet, plays, tmp_path, name, waits)
    try:
        everything = (
            "nft list ruleset | grep guard; for ip in ip ip6; do ${ip}tables-legacy -S | grep guard; done"
        )
        until(lambda: not on(host, everything, check=False), "what it has begun is not undone")
    finally:
        end(run)
    assert written(host) is None


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


def kill_before_the_confirmation(fleet, plays, tmp_path, content, *, after):
    """Load rules, and be gone before anything is confirmed."""
    folder = tmp_path / "lingers"
    folder.mkdir()
    process = fleet.start_playbook(
        plays.write([ruleset(content, rollback_after=after, check_session=False)]), **patched(folder, LINGERS)
    )
    for host in fleet.hosts.values():
        until(lambda host=host: in_force(host, content), "the rules do not come")
    end(process)
    break_connections(fleet)


def break_sessions(host):
    """Kill what serves logins there, and not what listens for new ones."""
    servers = {"sshd", "sshd-session", "dropbear"}
    pids = on(host, f"ip netns pids {host.namespace}").split()
    for pid in pids:
        with contextlib.suppress(OSError):
            told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            names = {told["Name"].strip(), Path(f"/proc/{told['PPid'].strip()}/comm").read_text().strip()}
            if names <= servers:
                os.kill(int(pid), signal.SIGKILL)


def break_connections(fleet):
    """Kill what keeps Ansible's connections."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(fleet.folder / "control").encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def test_of_two_runs_at_once_none_undoes_to_what_the_other_has_not_confirmed(fleet, plays, tmp_path):
    plays.run(ruleset(GOOD))
    shown = '    mv "$dir" "${dir%.new}"'
    # Each has looked at what was before when it finds the other.
    meet = "    : >/tmp/met.$nonce; while [ $(ls /tmp | grep -c ^met) -lt 2 ]; do sleep 1; done\n"
    meeting = patched(tmp_path, (SCRIPT, shown, meet + shown))
    both = [
        fleet.start_playbook(plays.write([ruleset(content)]), **meeting) for content in (BETTER, f"{GOOD}#\n")
    ]
    said = "".join(process.communicate(timeout=60)[0] for process in both)
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


SAME = (
    ACTION,
    "    def _new_connection(self) -> None:\n",
    "    def _new_connection(self) -> None:\n        return\n",
)
BLIND = (SCRIPT, 'if [ -n "$port" ] && [ "$told" = "$port" ]; then', "if false; then")


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
