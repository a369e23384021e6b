"""What ``make lab`` shows: every step, what it changed, and what it cost; and what it says where it cannot run."""

import os
import subprocess
import sys

import pytest
from rich.console import Console

from tests.lab import demonstration, images
from tests.lab.by_hand import HandMadeEndpoint
from tests.lab.demonstration import Demonstration, Step
from tests.lab.fleet import REPOSITORY, Fleet
from tests.lab.traffic import KEY_FILE

CHANGES = """
- hosts: dtls_endpoints
  gather_facts: false
  tasks:
    - name: Show what an operator has in a vault
      ansible.builtin.debug:
        msg: "length {{ dtls_psk_master | length }}, generation {{ dtls_psk_generation | default('none') }}"
    - name: Change something
      ansible.builtin.raw: "true"
      changed_when: true
"""
FAILS = "- {hosts: dtls_devices, gather_facts: false, tasks: [{name: Refuse, ansible.builtin.fail: {msg: not today}}]}"


@pytest.fixture(scope="module")
def fleet():
    with Fleet(endpoints=1, devices=1) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def logs(monkeypatch, tmp_path):
    monkeypatch.setattr(demonstration, "LOGS", tmp_path / "last")
    (tmp_path / "changes.yml").write_text(CHANGES)
    (tmp_path / "fails.yml").write_text(FAILS)
    return tmp_path / "last"


def shown(fleet, playbooks, *steps):
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with Demonstration(fleet, playbooks=playbooks, steps=steps, console=console) as one, console.file:
        good = one.run()
        one.show()
        return good, one, console.export_text()


def test_steps_run_under_traffic_and_what_they_did_is_shown(fleet, tmp_path, logs):
    steps = [
        Step("first", "changes.yml"),
        Step("second", "changes.yml", lambda _fleet: {"dtls_psk_generation": 2}),
        Step("third", "not-there.yml"),
    ]
    with HandMadeEndpoint(fleet["endpoint-1"], fleet.devices) as endpoint:
        endpoint.provision(fleet["device-1"])
        good, one, text = shown(fleet, tmp_path, *steps)
    assert not good
    assert [outcome.result for outcome in one.outcomes] == ["done", "done", "missing"]
    assert "there is no not-there.yml" in text
    assert "first (1), second (1)" in text
    assert "length 64, generation 2" in (logs / "second.log").read_text()
    assert one.outcomes[1].traffic["sent"] > 0
    assert one.lost() == ""
    assert endpoint.keys["device-1"][0] not in text


def test_what_a_step_breaks_is_charged_to_it(fleet, tmp_path):
    with HandMadeEndpoint(fleet["endpoint-1"], fleet.devices) as endpoint:
        endpoint.provision(fleet["device-1"])

        def say_goodbye(_fleet):
            endpoint.restart("SIGINT")
            return {}

        good, one, _ = shown(
            fleet, tmp_path, Step("first", "changes.yml"), Step("rude", "changes.yml", say_goodbye)
        )
    assert not good
    assert one.outcomes[1].traffic["ended"] == 1
    assert "1 associations" in one.lost()


def test_the_first_step_that_fails_is_the_last_and_its_output_is_kept(fleet, tmp_path, logs):
    (fleet["device-1"].root / KEY_FILE).unlink(missing_ok=True)
    good, one, text = shown(fleet, tmp_path, Step("bad", "fails.yml"), Step("next", "changes.yml"))
    assert not good
    assert len(one.outcomes) == 1
    assert "not today" in (logs / "bad.log").read_text()
    assert "No traffic" in text


def test_what_is_missing_is_told_with_status_2_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setitem(images.PROGRAMS, "no-such-program", "some-package")
    assert demonstration.main([]) == 2
    assert "apt-get install some-package" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert demonstration.main([]) == 2
    assert "needs root; remedy: sudo" in capsys.readouterr().err


def test_it_has_help():
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert "--stay" in done.stdout
