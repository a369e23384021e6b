"""What the tests of ``dtls_ruleset`` share: rules, tasks that load them, looks at hosts, and ways to break things."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.namespaces import within
from tests.roles.plays import COMMON, load

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
KINDS = {"endpoint-1": "iptables-nft", "device-1": "iptables-legacy"}
CHAINS = {"backend": "{{ kinds[inventory_hostname] }}"}


# --- hosts -------------------------------------------------------------------------------------------


def strip(fleet):
    """Take all rules off every host."""
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


def chains(host):
    """What there is of ours in iptables, for both families."""
    kind = KINDS[host.name]
    return on(
        host, f"{kind}-save | grep guard; {kind.replace('ip', 'ip6', 1)}-save | grep guard", check=False
    )


# --- tasks and runs ----------------------------------------------------------------------------------


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


# --- what breaks -------------------------------------------------------------------------------------


def end(run):
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


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


SAME = (
    ACTION,
    "    def _new_connection(self) -> None:\n",
    "    def _new_connection(self) -> None:\n        return\n",
)
BLIND = (SCRIPT, 'if [ -n "$port" ] && [ "$told" = "$port" ]; then', "if false; then")
