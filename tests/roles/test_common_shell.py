"""The scripts by themselves, in several shells of this machine: what Ansible would send is sent to ``/bin/sh -c``."""

import os
import shlex
import shutil
import subprocess
import time
from typing import Any

import pytest

from tests.conftest import require_program
from tests.roles.plays import COMMON, load

SHELL = load("module_utils/dtls_shell")
ShellAction: Any = SHELL.ShellAction
SECRETS = load("module_utils/dtls_secrets")
FILE = load("action_plugins/dtls_file")
SCRIPTS = sorted((COMMON / "module_utils").glob("*.sh"))
EVERY_BYTE = bytes(range(256)) * 3


@pytest.fixture(params=["dash", "bash", "busybox ash"])
def words(request):
    program, *rest = request.param.split()
    return [require_program(program), *rest]


def command_and_input(name, *arguments, data=b""):
    """What :meth:`ShellAction.shell` has a host run."""
    seen: dict[str, Any] = {}

    class Action(ShellAction):
        def __init__(self):
            pass

        def _low_level_execute_command(self, command, *, in_data, encoding_errors):
            seen.update(command=command, sent=in_data)
            return {"rc": 0, "stdout": "", "stderr": ""}

    Action().shell(name, *arguments, data=data)
    return seen["command"], seen["sent"]


def send(words, name, *arguments, data=b"", cut=None):
    """Run a script as a host would; what it answers."""
    command, sent = command_and_input(name, *arguments, data=data)
    done = subprocess.run(
        [*words, "-c", f"{command} && sleep 0"],
        input=sent[:cut],
        capture_output=True,
        check=False,
        timeout=30,
    )
    report, shown = SHELL.reported(done.stdout)
    return SHELL.Answer(
        done.returncode, report, shown, done.stdout.decode(errors="replace"), done.stderr.decode()
    )


def put(words, dest, content, *, key="", cut=None, check="no", mode=0o600, state="present", **more):
    given = {"previous": "", "validate": "", "target": "", "secret": "yes", "show": "0"} | more
    data = f"{key}\n{SECRETS.digest(key, content)}\n".encode() + (b"" if check == "yes" else content)
    return send(
        words, "dtls_file", str(dest), str(dest.parent), dest.name, state, FILE._as_listed(mode), f"{mode:04o}", "", "",
        str(given["previous"]), given["validate"], given["target"], given["secret"], check, given["show"],
        data=data, cut=cut,
    )  # fmt: skip


# --- all scripts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_can_be_read_by_every_shell(words, script):
    subprocess.run([*words, "-n", str(script)], check=True)


def test_no_command_line_names_anything_of_a_task():
    command, sent = command_and_input("dtls_file", "/etc/it's a key", data=b"a secret")
    assert "it's" not in command
    assert "secret" not in command
    assert len(command) < 200, "old dropbears cut long ones"
    assert sent.endswith(b"\n#dtls-end\na secret")


def test_a_script_that_arrives_in_part_does_nothing(words, tmp_path):
    dest = tmp_path / "file"
    _, sent = command_and_input("dtls_file")
    whole = len(sent)
    for cut in [*range(0, whole, 997), *range(whole - 30, whole)]:
        put(words, dest, b"content", cut=cut)
        assert not list(tmp_path.iterdir()), sent[:cut][-200:]


def test_a_name_is_only_a_name(words, tmp_path):
    for name in [
        "it's",
        'a "b" c',
        "$(touch bad)",
        "`touch bad`",
        "-rf",
        "*",
        "a;b",
        "ä\\n",
        "#dtls-end",
        " x ",
    ]:
        dest = tmp_path / name
        answer = put(words, dest, name.encode())
        assert answer.problem() is None, (name, answer)
        assert dest.read_text() == name
    assert sorted(path.name for path in tmp_path.iterdir() if "bad" in path.name) == [
        "$(touch bad)",
        "`touch bad`",
    ]


def test_a_report_is_told_from_what_a_login_says_and_from_what_is_shown():
    output = b"Welcome\r\ndtls: found file\ndtls: shown 13\ndtls: found x\ndtls: done\n"
    assert SHELL.reported(output) == ({"found": "file", "shown": "13", "done": ""}, b"dtls: found x")


def test_a_shell_that_ends_early_is_a_problem():
    Answer = SHELL.Answer  # noqa: N806 - it is a class
    assert Answer(0, {"done": ""}, b"", "", "").problem() is None
    assert Answer(0, {"failed": "no room"}, b"", "", "").problem() == "no room"
    assert "status 127" in Answer(127, {}, b"", "", "sha256sum: not found").problem()
    assert "not found" in Answer(127, {}, b"", "", "sha256sum: not found").problem()
    assert Answer(0, {"changes": ""}, b"", "", "").problem() is not None


# --- dtls_file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\0", b"\n", b"no end", EVERY_BYTE, os.urandom(1 << 20)], ids=len)
def test_content_arrives_as_it_is(words, tmp_path, content):
    dest = tmp_path / "file"
    assert put(words, dest, content, key="ab" * 32).report["changes"].split() == ["content", "mode"]
    assert dest.read_bytes() == content
    assert dest.stat().st_mode & 0o7777 == 0o600
    assert put(words, dest, content, key="ab" * 32).report["changes"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_content_that_arrives_in_part_changes_nothing(words, tmp_path):
    dest = tmp_path / "file"
    put(words, dest, b"old")
    for missing in (1, 2, 1000, 4096):
        answer = put(words, dest, bytes(5000), cut=-missing)
        assert "remedy" in answer.problem()
        assert dest.read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_the_comparison_half_a_file_would_take_its_place(words, tmp_path, monkeypatch):
    """The protection taken out: the test before this one goes red."""
    script, compared = SHELL._script, '[ "$(digest "$temporary")" = "$want" ]'
    assert compared in script("dtls_file")
    monkeypatch.setattr(SHELL, "_script", lambda name: script(name).replace(compared, "true"))
    put(words, tmp_path / "file", bytes(5000), cut=-1000)
    assert (tmp_path / "file").read_bytes() == bytes(4000)


def test_check_mode_changes_nothing(words, tmp_path):
    dest = tmp_path / "file"
    assert put(words, dest, b"new", check="yes").report["changes"].split() == ["content", "mode"]
    assert not list(tmp_path.iterdir())
    put(words, dest, b"old")
    before = about(dest)
    assert put(words, dest, b"new", check="yes", mode=0o644).report["changes"].split() == ["content", "mode"]
    assert put(words, tmp_path / "not" / "there", b"x", check="yes").report["changes"].split() == [
        "content",
        "mode",
    ]
    assert dest.read_bytes() == b"old"
    assert about(dest) == before


def about(path):
    """What says whether a file was changed; not when it was read."""
    told = path.stat()
    return told.st_ino, told.st_mode, told.st_uid, told.st_gid, told.st_mtime_ns, told.st_ctime_ns


def test_the_old_content_is_kept_before_the_new_one_comes(words, tmp_path):
    dest, previous = tmp_path / "psk", tmp_path / "psk previous"
    assert "kept" not in put(words, dest, b"one", previous=previous).report
    assert not previous.exists()
    for old, new in ((b"one", b"two"), (b"two", b"three")):
        assert put(words, dest, new, previous=previous).report["kept"] == str(previous)
        assert (dest.read_bytes(), previous.read_bytes()) == (new, old)
        assert previous.stat().st_mode & 0o777 == 0o600
    put(words, dest, b"three", previous=previous, mode=0o640)
    assert previous.read_bytes() == b"two", "only another content makes an old one"


def test_a_file_that_does_not_validate_leaves_the_old_one(words, tmp_path):
    dest = tmp_path / "a 'b"
    put(words, dest, b"good")
    answer = put(words, dest, b"bad secret", validate="grep good %s")
    assert "status 1" in answer.problem()
    assert dest.read_bytes() == b"good"
    assert [path.name for path in tmp_path.iterdir()] == [dest.name]
    assert put(words, dest, b"very good", validate="cat %s | grep good").problem() is None
    assert dest.read_bytes() == b"very good"


def test_what_a_validator_says_of_a_secret_is_not_shown(words, tmp_path):
    told = {
        secret: put(words, tmp_path / "file", b"hunter2", validate="cat %s; false", secret=secret)
        for secret in ("yes", "no")
    }
    assert "hunter2" not in told["yes"].output + told["yes"].error
    assert "hunter2" in told["no"].problem()


def test_what_is_another_kind_of_thing_is_not_replaced(words, tmp_path):
    dest = tmp_path / "thing"
    dest.mkdir()
    assert "is there as a directory" in put(words, dest, b"x").problem()
    assert "none is removed" in put(words, dest, b"", state="absent").problem()
    dest.rmdir()
    dest.symlink_to("elsewhere")
    assert "is there as a link" in put(words, dest, b"x").problem()
    assert not (tmp_path / "elsewhere").exists()


def test_directories_and_links_are_made_and_kept(words, tmp_path):
    folder, link = tmp_path / "a" / "b c", tmp_path / "current"
    for changes in (["state", "mode"], []):
        assert put(words, folder, b"", state="directory", mode=0o750).report["changes"].split() == changes
    assert folder.stat().st_mode & 0o777 == 0o750
    for target in ("a/b c", "a"):
        for change in ("content", ""):
            assert put(words, link, b"", state="link", target=target).report["changes"] == change
        assert str(link.readlink()) == target
    for change in ("state", ""):
        assert put(words, link, b"", state="absent").report["changes"] == change
    assert folder.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_what_a_killed_run_left_is_removed_and_a_living_one_is_let_be(words, tmp_path):
    dest = tmp_path / "psk"
    mine = subprocess.Popen(["sleep", "60"])
    writer = subprocess.Popen(["sh", "-c", ": sansdtls; sleep 60; :"])
    try:
        dead, stranger, alive = (
            tmp_path / f".psk.dtls.{number}" for number in (2**22 + 1, mine.pid, writer.pid)
        )
        for leftover in (dead, stranger, alive):
            leftover.write_text("a secret")
        other = tmp_path / ".other.dtls.4194305"
        other.write_text("of another file")
        assert put(words, dest, b"x", check="yes").problem() is None
        assert dead.exists(), "not in check mode"
        put(words, dest, b"x")
        assert not dead.exists()
        assert not stranger.exists(), "another program has got the number"
        assert alive.exists()
        assert other.exists()
        dead.write_text("a secret")
        put(words, dest, b"x")
        assert not dead.exists(), "also where there is nothing else to do"
    finally:
        for process in (mine, writer):
            process.kill()
            process.wait()


def test_nobody_can_have_a_file_put_elsewhere(words, tmp_path):
    """A link with the name of the temporary file is not followed: the shell's own number cannot be known, so all are made."""
    shell = subprocess.run([*words, "-c", "echo $$"], capture_output=True, text=True, check=True)
    begin = int(shell.stdout)
    for number in range(begin, begin + 50):
        (tmp_path / f".psk.dtls.{number}").symlink_to(tmp_path / "victim")
    answer = put(words, tmp_path / "psk", b"secret")
    assert not (tmp_path / "victim").exists(), answer


def test_without_a_tool_that_it_needs_it_says_so(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    for name in ("cat", "cut", "ls", "awk"):
        (empty / name).symlink_to(shutil.which(name))
    command, sent = command_and_input("dtls_file", "/x", "/", "x", "present", "-", "0600", *[""] * 8)
    sent = sent.replace(b"/usr/local/sbin:/usr/sbin:/sbin", b"/nowhere")
    done = subprocess.run(
        [require_program("dash"), "-c", command],
        input=sent,
        capture_output=True,
        check=False,
        env={"PATH": str(empty)},
    )
    assert b"failed there is no sha256sum" in done.stdout, done


# --- dtls_run ---------------------------------------------------------------------------------------


def run(words, command, timeout="9"):
    """What a command is said to have ended with, to have said, and how long it took."""
    began = time.monotonic()
    answer = send(words, "dtls_run", timeout, command)
    assert answer.problem() is None, answer
    said = [line[2:] for line in answer.output.splitlines() if line.startswith("> ") and len(line) > 2]
    return answer.report["status"], "late" in answer.report, said, time.monotonic() - began


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("echo one; echo two >&2; exit 3", "3", ["one", "two"]),
        ("printf 'no newline'", "0", ["no newline"]),
        ("echo 'dtls: failed by nobody'; echo 'dtls: status 0'; false", "1", ["dtls: failed by nobody", "dtls: status 0"]),
        ("exec >&- 2>&-; exit 4", "4", []),
        ("cat", "0", []),
    ],
)  # fmt: skip
def test_of_a_command_the_status_and_all_that_it_says_is_told(words, command, status, said):
    assert run(words, command)[:3] == (status, False, said)


def test_what_a_command_leaves_in_the_background_is_not_waited_for(words):
    """As an init script does: the service has its output open for as long as it runs."""
    status, _, said, seconds = run(
        words, "{ echo begun; sleep 60; } & until test -d /proc/$!; do :; done; echo over"
    )
    assert (status, "over" in said) == ("0", True)
    assert seconds < 30


@pytest.mark.parametrize(
    "command", ["echo begun; sleep 60; true", "trap '' TERM; echo begun; sleep 60; sleep 60"]
)
def test_a_command_that_does_not_end_is_ended(words, command):
    status, late, said, seconds = run(words, command, timeout="1")
    assert status in {"143", "137"}
    assert (late, said) == (True, ["begun"])
    assert seconds < 30


# --- digests ----------------------------------------------------------------------------------------


def test_a_digest_of_a_secret_is_not_its_sha256(words, tmp_path):
    dest = tmp_path / "file"
    dest.write_bytes(EVERY_BYTE)
    told = put(words, dest, EVERY_BYTE, key="ab" * 32, check="yes")
    assert told.report["digest"] == SECRETS.digest("ab" * 32, EVERY_BYTE)
    plain = put(words, dest, EVERY_BYTE, check="yes").report["digest"]
    assert (
        plain
        == subprocess.run(["sha256sum", dest], capture_output=True, text=True, check=True).stdout.split()[0]
    )
    assert plain != told.report["digest"]


def test_all_processes_of_a_run_have_one_key_and_another_run_another(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(COMMON / "module_utils")!r})
from dtls_secrets import run_key
print(run_key(sys.argv[1]))
"""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    started = [
        subprocess.Popen(["python3", "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
        for name in ("one",) * 8 + ("two",)
    ]
    keys = [process.communicate()[0].strip() for process in started]
    assert len(set(keys[:8])) == 1
    assert keys[8] not in keys[:8]
    assert all(len(key) == 64 for key in keys)
    assert [path.name for path in (tmp_path / "one").iterdir()] == [SECRETS.KEY_FILE]
    assert (tmp_path / "one" / SECRETS.KEY_FILE).stat().st_mode & 0o777 == 0o600


# --- modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 0o600, 0o640, 0o755, 0o1777, 0o2750, 0o4711, 0o4600, 0o7777, 0o1640])
def test_a_mode_is_written_as_ls_writes_it(tmp_path, mode):
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)
    listed = subprocess.run(["ls", "-ld", file], capture_output=True, text=True, check=True).stdout[:10]
    assert FILE._as_listed(mode) == listed
    assert FILE._as_number(listed) == mode


def test_arguments_are_quoted_for_a_shell():
    _, sent = command_and_input("dtls_ctl", "it's", "a b")
    assert sent.startswith(b"set -- " + shlex.quote("it's").encode() + b" 'a b'\n")


@pytest.mark.parametrize(
    ("transport", "given", "told"),
    [
        ("ssh", {}, SHELL.ALIVE),
        ("ssh", {"ssh_extra_args": "-4"}, f"-4 {SHELL.ALIVE}"),
        ("ssh", {"ssh_args": "-o ServerAliveInterval=60"}, None),
        ("local", {}, None),
    ],
)
def test_ssh_is_told_to_miss_a_host_that_goes_away(transport, given, told):
    seen: dict[str, Any] = {}

    class Connection:
        def __init__(self):
            self.transport = transport

        def get_option(self, name):
            return given.get(name)

        def set_option(self, name, value):
            seen[name] = value

    class Action(ShellAction):
        def __init__(self):
            self._connection = Connection()

    Action()._stay_alert()
    assert seen.get("ssh_extra_args") == told
