"""``dtls_file`` on a host with systemd and on a device without Python, over ssh."""

import base64
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.leaks import Search, Secret
from tests.namespaces import run
from tests.roles.plays import Plays, task

KEY = "8f1c2a77d3e94b0596aa31f0cc5de21b7d40e6f38a95bc2210fe6bd9471385ac"
OTHER = "5be0cd19137e2179a1f0d04c3c6ef372fe94f82b510e527f9b05688c1f83d9ab"
# Of their own: parts of the others stand in plays.
SILENT = "d4a1f27be8035c69b21e9f7a64c8d0133b5e82f7960c4da1f8b7352e1cd06a49"
MUTE = "17c3e95a2d8f40b6f0a85d3c791e64b2ce07a9f15b38d24e6f1a8c90d573be82"
BOTH = ("endpoint-1", "device-1")
LARGE = os.urandom(1 << 20)


@pytest.fixture(scope="module")
def plays(fleet):
    return Plays(fleet)


def b64(content):
    return f"{{{{ '{base64.b64encode(content).decode()}' | b64decode }}}}"


def files(host, folder):
    """All names below a folder of a host."""
    return sorted(path.name for path in (host.root / folder).iterdir())


def modes(host, path):
    return (host.root / path).stat().st_mode & 0o7777


CONTENTS = {
    "every byte": bytes(range(256)),
    "NUL": b"a\0b\0",
    "no end": b"no final newline",
    "line ends": b"\n\r\n\n",
    "nothing": b"",
    'it\'s "quoted" $(x) `y`': b"a name for a shell",
    "-n": b"a name like an option",
    "ümläut": "gemütlich".encode(),
}


def test_content_and_names_of_every_kind_arrive_on_both_kinds_of_host(fleet, plays):
    tasks = [task("dtls_file", dest="/etc/kinds", state="directory", mode="0755")]
    tasks += [
        task("dtls_file", name=name, dest=f"/etc/kinds/{name}", content=b64(content))
        for name, content in CONTENTS.items()
    ]
    first, second = plays.run(*tasks), plays.run(*tasks)
    for host in fleet.hosts.values():
        for name, content in CONTENTS.items():
            assert (host.root / "etc/kinds" / name).read_bytes() == content, name
            assert modes(host, f"etc/kinds/{name}") == 0o600
        assert files(host, "etc/kinds") == sorted(CONTENTS)
    assert {answer.state for answer in first.answers if answer.task in CONTENTS} == {"changed"}
    assert {answer.state for answer in second.answers} == {"ok"}


def test_a_mebibyte_arrives(fleet, plays):
    place = fleet.folder / "large"
    place.write_text(base64.b64encode(LARGE).decode())
    content = f"{{{{ lookup('ansible.builtin.file', '{place}') | b64decode }}}}"
    told = plays.run(task("dtls_file", dest="/etc/large", content=content, previous="/etc/large.previous"))
    for host in fleet.hosts.values():
        assert (host.root / "etc/large").read_bytes() == LARGE
        assert told.of(host.name)["size"] == 1 << 20
    place.unlink()


def test_lines_become_a_file_of_lines(fleet, plays):
    plays.run(task("dtls_file", dest="/etc/lines", content_from=["a:b", "", "c"]))
    for host in fleet.hosts.values():
        assert (host.root / "etc/lines").read_bytes() == b"a:b\n\nc\n"


def test_check_mode_tells_what_would_change_and_changes_nothing(fleet, plays):
    tasks = [
        task("dtls_file", name="folder", dest="/etc/bare", state="directory", mode="0755"),
        task(
            "dtls_file",
            name="file",
            dest="/etc/bare/psk",
            content=f"a:{KEY}\n",
            owner="nobody-yet",
            group="nor-this",
        ),
        task("dtls_file", name="link", dest="/etc/bare/link", state="link", target="psk"),
        task("dtls_file", name="gone", dest="/etc/bare/gone", state="absent"),
    ]
    told = plays.run(*tasks, arguments=["--check", "--diff"])
    for host in fleet.hosts.values():
        states = {name: told.of(host.name, name).state for name in ("folder", "file", "link", "gone")}
        assert states == {"folder": "changed", "file": "changed", "link": "changed", "gone": "ok"}
        assert not (host.root / "etc/bare").exists()
    assert KEY not in told.output


def test_a_diff_of_a_secret_shows_that_it_is_another_and_nothing_of_it(fleet, plays):
    plays.run(task("dtls_file", dest="/etc/psk", content=f"a:{KEY}\n", mode="0644"))
    told = plays.run(task("dtls_file", dest="/etc/psk", content=f"a:{OTHER}\n"), arguments=["--diff"])
    (diff,) = told.of("device-1")["diff"]
    for side, mode in (("before", "0644"), ("after", "0600")):
        assert f"mode {mode}\na secret of 67 bytes, " in diff[side], diff
    assert diff["before"].split()[-7] != diff["after"].split()[-7]
    for secret in (KEY, OTHER):
        assert secret not in told.output
    again = plays.run(task("dtls_file", dest="/etc/psk", content=f"a:{OTHER}\n"), arguments=["--diff"])
    assert again.of("device-1").state == "ok"
    assert again.of("device-1")["sha256"] != told.of("device-1")["sha256"], "each run has a key of its own"


def test_a_diff_of_what_is_no_secret_shows_it(fleet, plays):
    def put(content):
        task_of_it = task("dtls_file", dest="/etc/open", content=content, secret=False)
        return plays.run(task_of_it, arguments=["--diff"])

    put("one\ndtls: failed\ntwo")
    told = put("one\nthree\n")
    assert "-dtls: failed" in told.output
    assert "+three" in told.output
    binary = put(b64(bytes(range(256))))
    assert "+256 bytes, sha256 40aff2e9d2d8922e" in binary.output


def test_owner_and_group_are_set_by_name_and_by_number_and_kept(fleet, plays):
    for host in fleet.hosts.values():
        for file, line in (("etc/passwd", "dtls:x:731:732::/:/bin/sh"), ("etc/group", "dtls:x:732:")):
            with (host.root / file).open("a") as lines:
                lines.write(f"{line}\n")
    for owner, group, state in (("dtls", "dtls", "changed"), ("731", "732", "ok"), (None, None, "ok")):
        given = {"owner": owner, "group": group} if owner else {}
        told = plays.run(task("dtls_file", dest="/etc/owned", content="x", **given))
        assert told.states("dtls_file") == dict.fromkeys(BOTH, state)
    told = plays.run(task("dtls_file", dest="/etc/owned", content="y", owner="nobody-yet"), status=2)
    for host in fleet.hosts.values():
        status = (host.root / "etc/owned").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (731, 732, 0o600)
        assert (host.root / "etc/owned").read_text() == "x"
        said = told.of(host.name)["msg"]
        assert all(
            word in said for word in (host.name, "/etc/owned", "there is no user nobody-yet", "remedy")
        )


MISTAKES: dict[str, dict[str, Any]] = {
    "dest: 'relative' is no absolute path": {"dest": "relative", "content": "x"},
    "either content or content_from": {"dest": "/etc/x"},
    "either content or content_from is": {"dest": "/etc/x", "content": "x", "content_from": ["y"]},
    "content: is no text": {"dest": "/etc/x", "content": {"psk": "{{ key }}"}},
    "content_from: is no list of lines": {"dest": "/etc/x", "content_from": "{{ key }}"},
    "mode: 600 is no mode as text": {"dest": "/etc/x", "content": "{{ key }}", "mode": 600},
    "owner: '-r' is no name": {"dest": "/etc/x", "content": "{{ key }}", "owner": "-r"},
    "validate: the command has no %s": {"dest": "/etc/x", "content": "x", "validate": "true"},
    "target is needed": {"dest": "/etc/x", "state": "link"},
    "device-1: /etc/not/there: the directory /etc/not is not there": {
        "dest": "/etc/not/there",
        "content": "{{ key }}",
    },
    "device-1: /etc: is there as a directory": {"dest": "/etc", "content": "{{ key }}"},
    "value of state must be one of": {"dest": "/etc/x", "content": "{{ key }}", "state": "there"},
}


def test_a_mistake_is_told_and_no_secret_with_it(fleet, plays):
    tasks = [
        task("dtls_file", name=name, keywords={"ignore_errors": True}, **given)
        for name, given in MISTAKES.items()
    ]
    variables = {"key": "{{ first }}{{ second }}", "first": KEY[:31], "second": KEY[31:]}
    told = plays.run(*tasks, hosts="device-1", arguments=["-vvv"], variables=variables)
    for name in MISTAKES:
        assert told.of("device-1", name).state == "failed"
        assert name in told.of("device-1", name)["msg"]
    assert KEY not in told.output
    assert not (fleet["device-1"].root / "etc/x").exists()


@pytest.mark.parametrize("pipelining", ["True", "False"])
def test_secrets_are_nowhere_but_in_their_files(fleet, plays, pipelining):
    allowed = {host: ["/etc/dtls/psk*", "/etc/dtls/.psk*"] for host in BOTH} | {
        "controller": ["/secrets.json"]
    }
    search = Search(fleet, secrets=[Secret("key", SILENT, allowed), Secret("other", MUTE, allowed)])
    secrets = fleet.folder / "secrets.json"
    secrets.write_text(f'{{"key": "{SILENT}", "other": "{MUTE}"}}')
    put = {"dest": "/etc/dtls/psk", "previous": "/etc/dtls/psk.previous"}
    tasks = [
        task("dtls_file", name="folder", dest="/etc/dtls", state="directory"),
        task("dtls_file", name="key", content="a:{{ key }}\n", **put),
        task("dtls_file", name="other", content="a:{{ other }}\n", mode="0640", validate="sleep 0.3; cat %s", **put),
        task("dtls_file", name="weak", content="a:{{ key }}\n", validate="cat %s; false #", keywords={"ignore_errors": True}, **put),
        task("dtls_file", name="back", content="a:{{ key }}\n", **put),
    ]  # fmt: skip

    def run(*arguments):
        told = plays.run(
            *tasks, arguments=[*arguments, "-vvvvv", "-e", f"@{secrets}"],
            environment={"ANSIBLE_PIPELINING": pipelining, **search.environment()},
        )  # fmt: skip
        search.output(told.output)
        return told

    try:
        with search.watching():
            run("--check", "--diff")
            told = run("--diff")
    finally:
        secrets.unlink()
    search.check()
    for host in fleet.hosts.values():
        assert told.of(host.name, "weak").state == "failed"
        assert (host.root / "etc/dtls/psk").read_text() == f"a:{SILENT}\n"
        assert (host.root / "etc/dtls/psk.previous").read_text() == f"a:{MUTE}\n"
        assert files(host, "etc/dtls") == ["psk", "psk.previous"]


def test_the_search_would_find_a_secret_on_a_command_line(fleet, plays):
    """What is looked for above can be seen: the same with the content among the words of a command."""
    search = Search(fleet, secrets=[Secret("key", SILENT)])
    with search.watching():
        told = plays.run(
            task("ansible.builtin.raw", name="leak", cmd="{{ line }}", keywords={"no_log": True}) | {"ansible.builtin.raw": "{{ line }}"},
            hosts="endpoint-1", variables={"line": "sleep 0.5; : {{ half }}{{ rest }}", "half": SILENT[:31], "rest": SILENT[31:]},
            arguments=["-vvv"],
        )  # fmt: skip
        search.output(told.output)
    assert {leak.kind for leak in search.leaks()} >= {"process", "output"}


# --- other users ------------------------------------------------------------------------------------


def test_root_is_reached_by_sudo_with_a_password_and_without(fleet, plays, admin):
    host = fleet["endpoint-1"]
    put = task("dtls_file", dest="/etc/by-sudo", content=f"{KEY}\n", owner="root", group="root")
    facts = task("dtls_facts")
    first = plays.run(put, facts, hosts="endpoint-1", inventory=fleet.inventory(**admin))
    assert first.of("endpoint-1", "dtls_file").state == "changed"
    assert (host.root / "etc/by-sudo").read_text() == f"{KEY}\n"
    assert (host.root / "etc/by-sudo").stat().st_uid == 0
    # sudo keeps no SSH_CONNECTION.
    assert first.of("endpoint-1", "dtls_facts")["ssh"]["client"] == "10.77.0.1"
    assert first.of("endpoint-1", "dtls_facts")["uid"] == 0
    (host.root / "etc/sudoers.d/admin").write_text("admin ALL=(ALL) NOPASSWD: ALL\n")
    (host.root / "etc/sudoers.d/admin").chmod(0o440)
    second = plays.run(
        put, hosts="endpoint-1", inventory=fleet.inventory(ansible_user="admin", ansible_become=True)
    )
    assert second.of("endpoint-1").state == "ok"


def test_who_may_not_is_told_to_become_root(fleet, plays, admin):
    told = plays.run(
        task("dtls_file", dest="/etc/by-sudo", content="x"),
        hosts="endpoint-1", status=2, inventory=fleet.inventory(**admin | {"ansible_become": False}),
    )  # fmt: skip
    assert "remedy: become" in told.of("endpoint-1")["msg"]


# --- when something breaks --------------------------------------------------------------------------


def test_a_host_out_of_reach_is_a_result_where_the_task_says_so(fleet, plays):
    tasks = [
        task("dtls_file", name="put", dest="/etc/reached", content="x", unreachable="result"),
        task("dtls_facts", name="facts", unreachable="result"),
        task("ansible.builtin.debug", name="after", msg="still in the play"),
    ]
    # No connection that is open already.
    fresh = fleet.folder / "fresh"
    fresh.mkdir()
    own = {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(fresh)}
    # Soon, but for one that can be reached and takes its time.
    soon = fleet.inventory(ansible_ssh_timeout="{{ 1 if inventory_hostname == 'device-1' else 20 }}")
    fleet["device-1"].unplug()
    try:
        told = plays.run(*tasks, inventory=soon, environment=own)
        without = plays.run(task("dtls_facts"), hosts="device-1", status=4, inventory=soon, environment=own)
    finally:
        fleet["device-1"].plug()
    for name in ("put", "facts"):
        assert told.of("device-1", name)["reached"] is False
        assert told.of("device-1", name).state == "ok"
        assert "device-1 cannot be reached" in told.of("device-1", name)["msg"]
        assert told.of("endpoint-1", name)["reached"] is True
    assert told.of("device-1", "after").state == "ok"
    assert without.of("device-1").state == "unreachable"
    assert plays.run(*tasks).of("device-1", "put").state == "changed"


def test_a_host_that_goes_away_while_a_connection_is_open_is_missed_soon(fleet, plays):
    went = fleet.folder / "went"
    away = [
        task("dtls_facts", name="here"),
        task("ansible.builtin.file", name="say so", path=str(went), state="touch", mode="0600", keywords={"delegate_to": "localhost", "vars": {"ansible_connection": "local"}}),
        task("ansible.builtin.wait_for", name="wait", path=str(went), state="absent", sleep=1, keywords={"delegate_to": "localhost", "vars": {"ansible_connection": "local"}}),
        task("dtls_facts", name="gone", unreachable="result"),
    ]  # fmt: skip
    fresh = fleet.folder / "control-fresh"
    fresh.mkdir()
    place = fleet.folder / "went.jsonl"
    # Sooner than by itself.
    sooner = "-o ServerAliveInterval=1 -o ServerAliveCountMax=8"
    environment = {"LAB_RECORD": str(place), "LAB_RESULTS": "1", "ANSIBLE_SSH_CONTROL_PATH_DIR": str(fresh)}
    inventory = fleet.inventory(ansible_ssh_extra_args=sooner)
    process = fleet.start_playbook(plays.write(away, hosts="device-1"), inventory=inventory, **environment)
    until(went.exists, "the play does not begin")
    fleet["device-1"].unplug()
    try:
        went.unlink()
        # Left to TCP it would take a quarter of an hour.
        output, _ = process.communicate(timeout=120)
    finally:
        fleet["device-1"].plug()
    assert process.returncode == 0, output
    assert '"reached": false' in place.read_text()


@contextlib.contextmanager
def slowly(fleet, host):
    """A link on which a mebibyte takes a quarter of a minute."""
    link = ("-n", fleet.network.controller, "qdisc")
    interface = ("dev", f"v{host.number}", "root")
    run("tc", *link, "add", *interface, "tbf", "rate", "512kbit", "burst", "16kb", "latency", "100ms")
    try:
        yield
    finally:
        run("tc", *link, "del", *interface)


def until(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def ssh_processes(fleet):
    """Those of the controller of this fleet."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if b"ssh" in words and str(fleet.folder / "control").encode() in words:
                yield int(entry.name)


def writers(fleet, host):
    """The processes of the host that are putting a file."""
    for number in host.processes():
        with contextlib.suppress(OSError):
            if b"sansdtls" in Path(f"/proc/{number}/cmdline").read_bytes():
                yield number


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("broken", ["the connection", "the host's shell", "the controller"])
def test_a_file_is_whole_or_as_it_was_when_something_is_killed_half_way(fleet, plays, name, broken):
    host = fleet[name]
    folder = host.root / "etc/half"
    folder.mkdir(exist_ok=True)
    dest = folder / "psk"
    dest.write_text("old")
    source = fleet.folder / "half"
    source.write_text(base64.b64encode(LARGE).decode())
    put = task(
        "dtls_file",
        dest="/etc/half/psk",
        content=f"{{{{ lookup('ansible.builtin.file', '{source}') | b64decode }}}}",
    )
    with slowly(fleet, host):
        process = fleet.start_playbook(plays.write([put], hosts=name))
        (temporary,) = until(lambda: list(folder.glob(".psk.dtls.*")), "nothing is put")
        until(lambda: temporary.stat().st_size > 20_000, "nothing arrives")
        assert temporary.stat().st_mode & 0o777 == 0o600
        assert temporary.stat().st_size < len(LARGE)
        if broken == "the host's shell":
            victims = list(writers(fleet, host))
        else:
            victims = list(ssh_processes(fleet))
            if broken == "the controller":
                os.killpg(process.pid, signal.SIGKILL)
        assert victims
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        process.communicate(timeout=60)
    assert dest.read_text() == "old"
    if broken == "the host's shell":
        assert temporary.exists(), "killed, it could not tidy up"
    else:
        until(lambda: not temporary.exists(), "it does not see that the connection is gone")
    told = plays.run(put, hosts=name)
    assert told.of(name).state == "changed"
    assert dest.read_bytes() == LARGE
    assert files(host, "etc/half") == ["psk"]
