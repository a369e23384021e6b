"""The plugins once more with the newest ansible-core, on a Debian 13 and on a device without Python."""

import pytest

from tests.lab.leaks import Search, Secret
from tests.roles.guarded import CUT, GOOD, RULES, lets_in, ruleset
from tests.roles.plays import Plays, task

FLEET = {"endpoints": 1, "devices": 1, "suite": "trixie", "controller": "newest"}
MASTER = "e91b5a07c64d2f83b17a90e5d3c8462fa6057d1be4923c8f0d6ab1573ce8f294"
PUT = {
    "dest": "/etc/dtls/psk",
    "content": "{{ name }}:{{ master | dtls_psk_derive(name, 3) }}\n",
    "previous": "/etc/dtls/psk.previous",
}
TASKS = [
    task("dtls_facts", name="facts"),
    task("dtls_file", name="folder", dest="/etc/dtls", state="directory"),
    task("dtls_file", name="key", unreachable="result", **PUT),
]


@pytest.fixture(scope="module")
def plays(fleet):
    return Plays(fleet)


def test_files_and_filters_are_as_with_the_oldest_and_as_silent(fleet, plays):
    master = fleet.folder / "master.yml"
    master.write_text(f"master: {MASTER}\n")
    search = Search(fleet, secrets=[Secret("master", MASTER, {"controller": ["/master.yml"]})])
    given = {"variables": {"name": "{{ inventory_hostname }}"}, "environment": search.environment()}

    def run():
        told = plays.run(*TASKS, arguments=["-vvvvv", "--diff", "-e", f"@{master}"], **given)
        search.output(told.output)
        return told

    with search.watching():
        assert run().states("key") == dict.fromkeys(fleet.hosts, "changed")
        told = run()
        assert told.states("key") == dict.fromkeys(fleet.hosts, "ok")
    search.check()
    assert told.of("device-1", "facts")["python"] == ""
    assert told.of("endpoint-1", "facts")["distribution_version"] == "13"
    for name, host in fleet.hosts.items():
        identity, _, key = (host.root / "etc/dtls/psk").read_text().strip().partition(":")
        assert (identity, len(key)) == (name, 64)
        assert key not in told.output


def test_rules_that_cut_ssh_are_taken_back(fleet, plays):
    told = plays.run(
        ruleset(GOOD, name="good"),
        ruleset(CUT, name="cut", minds=False, check_session=False, rollback_after=5),
        ruleset(GOOD, name="after"),
    )
    for name, host in fleet.hosts.items():
        assert [told.of(name, step).state for step in ("good", "cut", "after")] == ["changed", "failed", "ok"]
        assert told.of(name, "cut")["rolled_back"]
        # By its own nft: this machine's may be older.
        assert f'comment "sansdtls {RULES.fingerprint(GOOD)}"' in host.ssh("nft list table inet guard")
        assert lets_in(host)
        assert (host.root / "etc/dtls-guard/guard.nft").read_text() == RULES.for_nft("guard", GOOD)
