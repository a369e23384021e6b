"""Labs beside each other, labs that were killed, mirrors that are not there, and both Ansibles."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.lab import clean, controllers, images
from tests.lab.fleet import REPOSITORY, Fleet

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Say something
      ansible.builtin.raw: cat /etc/hostname
      changed_when: false
"""


@pytest.mark.parametrize("controller", ["here", "newest"])
@pytest.mark.parametrize("suite", images.SUITES)
def test_each_debian_boots_and_is_managed_by_each_ansible(controller, suite, tmp_path):
    (tmp_path / "play.yml").write_text(PLAY)
    with Fleet(endpoints=1, devices=1, suite=suite, controller=controller) as fleet:
        record = fleet.playbook(tmp_path / "play.yml", record=True)
        assert {(result.host, result.state) for result in record.results} == {
            ("endpoint-1", "ok"),
            ("device-1", "ok"),
        }
        told, _ = fleet.start("ansible", "--version").communicate()
        assert (f"core {controllers.newest_version()}" in told) == (controller == "newest")
        assert f"VERSION_CODENAME={suite}" in fleet["endpoint-1"].ssh("cat /etc/os-release")
        assert fleet["endpoint-1"].ssh("hostname") == "endpoint-1\n"


def test_two_fleets_do_not_meet():
    with Fleet(endpoints=1, devices=0) as one, Fleet(endpoints=1, devices=0) as other:
        assert one["endpoint-1"].address == other["endpoint-1"].address
        one["endpoint-1"].ssh("touch /etc/mine")
        assert "mine" not in other["endpoint-1"].ssh("ls /etc")
        assert not set(one["endpoint-1"].processes()) & set(other["endpoint-1"].processes())
        # Starting it has looked for leftovers, and has taken neither for one.
        assert {one._stem, other._stem} <= {path.name for path in clean.CLAIMS.iterdir()}


def traces(stem, folder):
    return {
        "namespaces": clean.namespaces(stem),
        "mounts": clean.mounts(folder),
        "cgroups": clean.groups(stem),
        "propagated": clean.propagated(stem),
        "folder": [folder] if folder.exists() else [],
        "processes": sorted(clean._processes(stem)),
    }


KILLED = """
import sys, time
from tests.lab.fleet import Fleet
with Fleet(endpoints=1, devices=1) as fleet:
    fleet.start("ansible", "all", "-i", fleet.inventory(), "-m", "raw", "-a", "sleep 100")
    print(fleet._stem, fleet.folder, flush=True)
    time.sleep(100)
"""


def test_what_a_killed_lab_leaves_is_removed_and_a_living_one_is_not_touched(tmp_path):
    with Fleet(endpoints=0, devices=1) as living:
        killed = subprocess.Popen(
            [sys.executable, "-c", KILLED],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        assert killed.stdout is not None
        stem, folder = killed.stdout.readline().split()
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        killed.stdout.close()
        # Or nothing would be shown.
        assert all(traces(stem, Path(folder)).values()), traces(stem, Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "tests.lab.clean"],
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
        )
        assert f"removed {stem}\n" in done.stdout
        assert living._stem not in done.stdout
        assert not any(traces(stem, Path(folder)).values()), traces(stem, Path(folder))
        assert not (clean.CLAIMS / stem).exists()
        assert living["device-1"].ssh("cat /etc/hostname") == "device-1\n"


def test_a_fleet_that_ends_leaves_nothing():
    with Fleet(endpoints=1, devices=1) as fleet:
        fleet.start("ansible", "all", "-i", fleet.inventory(), "-m", "raw", "-a", "true").communicate()
    assert not any(traces(fleet._stem, fleet.folder).values()), traces(fleet._stem, fleet.folder)


def test_a_host_that_does_not_answer_is_given_up_and_named():
    with Fleet(endpoints=0, devices=1) as fleet:
        for hang in ("false", "sleep 60"):
            with pytest.raises(RuntimeError, match=r"device-1 does not answer after 0\.3 s"):
                fleet["device-1"]._wait(hang, 0.3)


WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
"""As in a container that has root and nothing else."""


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 error"), ("", "1 skipped")])
def test_where_no_host_can_boot_tests_fail_in_ci_and_are_skipped_elsewhere(ci, outcome):
    one = "tests/lab/test_lab.py::test_a_fleet_that_ends_leaves_nothing"
    done = subprocess.run(
        [*WITHOUT_RIGHTS, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", one],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env=os.environ | {"CI": ci, "LAB": "1"},
    )  # fmt: skip
    assert outcome in done.stdout, done.stdout + done.stderr
    assert "does not let root do what hosts need" in done.stdout


def test_without_a_mirror_it_is_told_what_to_look_at(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "BUILD", tmp_path)
    monkeypatch.setattr(
        images, "_sources", lambda suite: f"deb [trusted=yes] http://127.0.0.1:9/debian {suite} main\n"
    )
    with pytest.raises(
        images.Impossible, match=r"Debian of bookworm could not be made; remedy: see whether `apt-get"
    ):
        images.debian("bookworm")
    assert not [path for path in tmp_path.iterdir() if path.suffix not in {".lock", ".unfinished"}]


def test_a_mirror_that_is_silent_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "BUILD", tmp_path)
    monkeypatch.setattr(images, "MAKING_TIME", 0.5)
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(images.Impossible, match=r"was not made within 0.5 s; remedy"):
        images.debian("bookworm")


def test_an_image_is_made_once_however_many_want_it_and_a_half_made_one_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "BUILD", tmp_path)
    made = []

    def make(folder):
        made.append(folder)
        assert not list(folder.iterdir())
        (folder / "file").write_text("x")

    name = images.made("one", "recipe", make).name
    assert images.made("one", "another recipe", make).name != name
    (tmp_path / name / "file").unlink()
    (tmp_path / name).rename(tmp_path / f"{name}.unfinished")
    (tmp_path / f"{name}.unfinished" / "half").write_text("x")
    made.clear()
    threads = [threading.Thread(target=images.made, args=("one", "recipe", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]


def test_an_image_that_another_process_does_not_finish_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "BUILD", tmp_path)
    monkeypatch.setattr(images, "MAKING_TIME", 0.3)

    def make(folder):
        with pytest.raises(images.Impossible, match="another process has been making one-"):
            images.made("one", "recipe", make)

    images.made("one", "recipe", make)


def test_images_in_use_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "BUILD", tmp_path)
    used, unused = (images.made(name, "recipe", lambda _folder: None) for name in ("used", "unused"))
    over, other = tmp_path / "over", tmp_path / "other"
    over.mkdir()
    other.mkdir()
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={used}:{other}", str(over)], check=True
    )
    try:
        assert clean.unused_images() == [unused.name]
    finally:
        subprocess.run(["umount", str(over)], check=True)
    assert used.exists()


def test_the_inventory_of_the_lab_is_what_the_repository_shows(tmp_path):
    with Fleet() as fleet:
        made = json.loads(fleet.inventory().read_text())
        shown = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(REPOSITORY / "inventory/lab"), "--list"],
            capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )  # fmt: skip
    told = json.loads(shown.stdout)
    for group in ("dtls_endpoints", "dtls_devices"):
        assert told[group]["hosts"] == list(made["all"]["children"][group]["hosts"])
        for name, variables in made["all"]["children"][group]["hosts"].items():
            expected = made["all"]["vars"] | made["all"]["children"][group].get("vars", {}) | variables
            own = told["_meta"]["hostvars"][name]
            # Where the key lies depends on the checkout.
            assert own.pop("ansible_ssh_private_key_file").endswith("var/lab/key")
            del expected["ansible_ssh_private_key_file"]
            assert own == expected
