"""``dtls-endpoint keys`` on files and on SQLite, as an operator or a playbook calls it."""

import io
import json
import os
import pty
import random
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from endpoint.cli import main
from endpoint.commands.keys import telling
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.file import load_psk
from endpoint.keystore.fingerprint import fingerprint
from endpoint.usage_file import KeyUse, UsageFile

DRAW = random.Random(5)
OLD, NEW, OTHER = (DRAW.randbytes(32) for _ in range(3))
WEAK = bytes.fromhex("00112233445566778899aabbccddeeff")


class Home:
    """A directory with a configuration, and keys in files or a database."""

    def __init__(self, path, kind, capfd):
        self.path, self.kind, self._capfd = path, kind, capfd
        path.chmod(0o700)
        self.config = path / "endpoint.toml"
        self.usage = path / "usage.db"
        self.configure()

    @property
    def store(self):
        return self.path / ("psk.txt" if self.kind == "file" else "psk.db")

    def configure(self, more=""):
        self.config.write_text(
            f'[credentials]\npsk_file = "psk.txt"\n[state]\nusage_file = "usage.db"\n{more}'
        )

    def fill(self, **keys):
        if self.kind == "file":
            lines = [f"{identity}:{key.hex()}\n" for identity, value in keys.items() for key in value]
            self.private("psk.txt", "".join(["# the fleet\n", *lines]).encode())
            return
        with KeyDatabase(self.store, create=True) as database, database.change() as changes:
            for identity, value in keys.items():
                changes.set(identity.encode(), value)

    def private(self, name, content):
        path = self.path / name
        path.touch(0o600)
        path.write_bytes(content)
        return path

    def use(self, **used):
        """What devices have used, as a service wrote it down: identity = key."""
        with UsageFile(self.usage, create=True) as file:
            file.write(
                (identity.encode(), KeyUse(fingerprint(key), "next", 1_700_000_000.0))
                for identity, key in used.items()
            )

    @property
    def keys(self):
        if self.kind == "file":
            return {identity.decode(): value for identity, value in load_psk(self.store).keys.items()}
        with KeyDatabase(self.store) as database:
            return {identity.decode(): value for identity, value in database.items()}

    def run(self, what, *arguments, status=0):
        """Standard output and standard error."""
        names = ["--psk-file" if self.kind == "file" else "--psk-database", self.store]
        given = [what, *names, *arguments]
        if what not in ("import", "export") or self.usage.exists():
            given += ["--usage-file", self.usage]
        self._capfd.readouterr()
        code: object
        try:
            code = main(["keys", *map(str, given)])
        except SystemExit as exit_:  # argparse's
            code = exit_.code
        out, error = self._capfd.readouterr()
        assert code == status, (out, error)
        assert "Traceback" not in error
        return out, error

    def json(self, what, *arguments, status=0):
        return json.loads(self.run(what, *arguments, "--json", status=status)[0])


@pytest.fixture(params=["file", "sqlite"])
def home(request, tmp_path, capfd):
    return Home(tmp_path, request.param, capfd)


@pytest.fixture
def files(tmp_path, capfd):
    return Home(tmp_path, "file", capfd)


def no_secret(text, *keys):
    return not any(key.hex() in text.lower() for key in (OLD, NEW, OTHER, *keys))


# --- add --------------------------------------------------------------------------------------------


def test_new_identities_get_random_keys_that_nobody_sees(home):
    out, error = home.run("add", "meter-1", "meter-2")
    one, two = home.keys["meter-1"], home.keys["meter-2"]
    assert (len(one), len(one[0]), len(two[0])) == (1, 32, 32)
    assert one != two
    assert out == f"meter-1: added, key {fingerprint(one[0])}\nmeter-2: added, key {fingerprint(two[0])}\n"
    assert no_secret(out + error, one[0], two[0])
    assert home.store.stat().st_mode & 0o777 == 0o600


def test_keys_are_shown_when_asked_for_as_lines_of_a_psk_file(home):
    out, _ = home.run("add", "meter-1", "--show")
    assert out == f"meter-1:{home.keys['meter-1'][0].hex()}\n"


@pytest.mark.parametrize(("length", "status"), [(16, 0), (64, 0), (15, 2), (65, 2), ("many", 2)])
def test_the_length_of_a_key_can_be_chosen_within_what_is_safe(home, length, status):
    home.run("add", "meter-1", "--length", length, status=status)
    if not status:
        assert len(home.keys["meter-1"][0]) == length


def test_a_key_can_be_given_in_a_file_for_its_owner_only(home):
    file = home.private("key", NEW.hex().upper().encode() + b"\n")
    out, error = home.run("add", "meter-1", "--key-file", file)
    assert home.keys == {"meter-1": (NEW,)}
    assert no_secret(out + error)
    # Once more is nothing to do, so that a playbook may be run again.
    assert home.json("add", "meter-1", "--key-file", file)["changed"] is False
    file.chmod(0o644)
    assert "chmod 600" in home.run("add", "meter-2", "--key-file", file, status=2)[1]


def test_a_key_can_be_given_on_standard_input(files):
    arguments = ["add", "meter-1", "--key-file", "-", "--psk-file", files.store]
    done = subprocess.run(
        [sys.executable, "-m", "endpoint", "keys", *arguments],
        input=NEW.hex().encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert files.keys == {"meter-1": (NEW,)}
    assert NEW.hex().encode() not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not a key"),
        (b"xyz" * 20, "not a key"),
        (b"00" * 8, "8 bytes"),
        (NEW.hex().encode() * 3, "96 bytes"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(home, content, what):
    file = home.private("key", content)
    out, error = home.run("add", "meter-1", "--key-file", file, status=2)
    assert what in error
    assert not content or content.decode() not in out + error


def test_weak_keys_are_refused_unless_forced(home):
    file = home.private("key", WEAK.hex().encode())
    error = home.run("add", "meter-1", "--key-file", file, status=1)[1]
    assert error == '"meter-1": the key counts up or down; remedy: another key, or --force\n'
    home.run("add", "meter-1", "--key-file", file, "--force")
    assert home.keys == {"meter-1": (WEAK,)}


def test_a_known_identity_is_not_given_another_key_by_mistake(home):
    home.fill(m=(OLD,))
    error = home.run("add", "new", "m", status=1)[1]
    assert error == '"m": is known already, with another key; remedy: keys rotate, or keys add --next\n'
    assert home.keys == {"m": (OLD,)}


def test_a_next_key_is_staged_beside_the_current_one(home):
    home.fill(m=(OLD,))
    file = home.private("key", NEW.hex().encode())
    assert home.json("add", "--next", "m", "--key-file", file)["identities"] == [
        {"identity": "m", "what": "given a next key", "fingerprint": fingerprint(NEW)}
    ]
    assert home.keys == {"m": (OLD, NEW)}
    assert home.json("add", "--next", "m", "--key-file", file)["changed"] is False
    assert "another next key" in home.run("add", "--next", "m", status=1)[1]
    assert "is not known" in home.run("add", "--next", "nobody", status=1)[1]
    other = home.private("other", OLD.hex().encode())
    assert "current key already" in home.run("add", "--next", "m", "--key-file", other, status=1)[1]


def test_identities_may_be_any_bytes(home):
    home.run("add", "--hex", b"\xff\x01:x".hex())
    assert home.json("list")["identities"][0]["identity_hex"] == b"\xff\x01:x".hex()
    assert "not hexadecimal" in home.run("add", "--hex", "meter", status=2)[1]
    assert "empty" in home.run("add", "", status=2)[1]
    status = 0 if home.kind == "sqlite" else 1  # a line cannot hold it
    home.run("add", "--hex", b"two\nlines".hex(), status=status)


# --- rotate, retire ---------------------------------------------------------------------------------


def test_a_rotation_from_beginning_to_end(home):
    home.fill(m=(OLD,), n=(OTHER,))
    out, error = home.run("rotate", "m")
    current, following = home.keys["m"]
    assert current == OLD
    assert (out, len(following)) == (f"m: given a next key, key {fingerprint(following)}\n", 32)
    assert no_secret(out + error, following)
    entry = home.json("list", "m")["identities"][0]
    assert (entry["current"], entry["next"]) == (fingerprint(OLD), fingerprint(following))
    # Nothing says that the device has it.
    assert "it is not known which keys devices use" in home.run("retire", "m", status=1)[1]
    home.use(m=OLD)
    error = home.run("retire", "m", status=1)[1]
    assert (
        f"has not used its next key: it used key {fingerprint(OLD)} last, at 2023-11-14T22:13:20.000Z"
        in error
    )
    assert home.keys["m"] == (OLD, following)
    assert home.json("list", "m")["identities"][0]["confirmed"] is False
    home.use(m=following)
    assert home.json("list", "m")["identities"][0]["confirmed"] is True
    assert home.run("retire", "m")[0] == f"m: left with its next key, key {fingerprint(following)}\n"
    assert home.keys == {"m": (following,), "n": (OTHER,)}
    # Once more is nothing to do.
    assert home.json("retire", "m")["changed"] is False


def test_retiring_can_be_forced(home):
    home.fill(m=(OLD, NEW))
    home.run("retire", "--force", "m")
    assert home.keys == {"m": (NEW,)}


def test_retiring_several_is_all_or_nothing(home):
    home.fill(a=(OLD, NEW), b=(OLD, NEW))
    home.use(a=NEW)
    error = home.run("retire", "a", "b", status=1)[1]
    assert error.count("\n") == 1
    assert '"b": has not used its next key: it was not heard of since that is noted' in error
    assert home.keys == {"a": (OLD, NEW), "b": (OLD, NEW)}


def test_all_that_are_confirmed_are_retired_and_the_others_told(home):
    home.fill(a=(OLD, NEW), b=(OLD, NEW), c=(OTHER,))
    home.use(a=NEW, b=OLD)
    out, error = home.run("retire", "--all-confirmed")
    assert out == f"a: left with its next key, key {fingerprint(NEW)}\n"
    assert error == f"b: not confirmed: it used key {fingerprint(OLD)} last, at 2023-11-14T22:13:20.000Z\n"
    assert home.keys == {"a": (NEW,), "b": (OLD, NEW), "c": (OTHER,)}
    told = home.json("retire", "--all-confirmed")
    assert (told["changed"], [one["identity"] for one in told["left"]]) == (False, ["b"])


def test_rotating_all_passes_over_those_in_rotation(home):
    home.fill(a=(OLD,), b=(OLD, NEW))
    out, error = home.run("rotate", "--all")
    assert (out.count("\n"), error) == (1, "b: has a next key already\n")
    assert home.keys["b"] == (OLD, NEW)
    assert len(home.keys["a"]) == 2
    assert home.json("rotate", "--all")["changed"] is False


def test_a_next_key_is_replaced_only_when_asked_for_and_not_in_use(home):
    home.fill(m=(OLD, NEW))
    assert "has a next key already" in home.run("rotate", "m", status=1)[1]
    assert "not known which keys" in home.run("rotate", "--replace", "m", status=1)[1]
    home.use(m=NEW)
    assert "has used its next key" in home.run("rotate", "--replace", "m", status=1)[1]
    assert home.keys == {"m": (OLD, NEW)}
    home.use(m=OLD)
    home.run("rotate", "--replace", "m")
    assert home.keys["m"][0] == OLD
    assert home.keys["m"][1] != NEW


@pytest.mark.parametrize("what", ["rotate", "retire"])
def test_nobody_is_rotated_or_retired_without_being_meant(home, what):
    home.fill(m=(OLD, NEW))
    everybody = {"rotate": "--all", "retire": "--all-confirmed"}[what]
    for arguments in ((), ("m", everybody)):
        assert "name identities, or give" in home.run(what, *arguments, status=2)[1]
    home.use(m=NEW)
    assert '"x": is not known' in home.run(what, "x", status=1)[1]


def test_a_key_of_a_use_file_that_cannot_be_read_confirms_nothing(home):
    home.fill(m=(OLD, NEW))
    home.use(m=NEW)
    home.usage.chmod(0o644)
    assert "chmod 600" in home.run("retire", "m", status=1)[1]
    assert home.keys == {"m": (OLD, NEW)}


# --- remove -----------------------------------------------------------------------------------------


def test_identities_are_removed_all_or_nothing(home):
    home.fill(a=(OLD,), b=(OLD, NEW))
    assert '"x": is not known' in home.run("remove", "a", "x", status=1)[1]
    assert set(home.keys) == {"a", "b"}
    assert home.run("remove", "b", "x", "--missing-ok")[0] == "b: removed\n"
    assert home.keys == {"a": (OLD,)}
    assert home.json("remove", "b", "--missing-ok")["changed"] is False


def test_an_operator_who_removes_the_last_one_from_a_file_hears_what_a_reload_does(files):
    files.fill(a=(OLD,))
    assert "a reload refuses that" in files.run("remove", "a")[1]


# --- import, export ---------------------------------------------------------------------------------


def test_export_and_import_carry_everything_from_one_kind_to_the_other(home, tmp_path, capfd):
    home.fill(a=(OLD,), b=(OLD, NEW))
    output = tmp_path / "out.txt"
    out, error = home.run("export", "--output", output)
    assert (out, error) == ("", f"2 identities written to {output}\n")
    assert output.stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").mkdir(0o700)
    other = Home(tmp_path / "other", "sqlite" if home.kind == "file" else "file", capfd)
    assert other.run("import", output)[0] == "2 identities added\n"
    assert other.keys == home.keys
    assert other.run("import", output)[0] == "2 identities unchanged\n"


def test_some_are_exported_or_only_what_is_new_for_the_devices(home):
    home.fill(a=(OLD,), b=(OLD, NEW))
    assert home.run("export", "--next", "--show")[0] == f"b:{NEW.hex()}\n"
    assert home.run("export", "a", "--show")[0] == f"a:{OLD.hex()}\n"
    assert "is not known" in home.run("export", "x", "--show", status=1)[1]


def test_import_is_all_or_nothing(home):
    home.fill(a=(OLD,))
    before = home.keys
    source = home.private("in.txt", f"b:{NEW.hex()}\na:{NEW.hex()}\n".encode())
    error = home.run("import", source, status=1)[1]
    assert error == '"a": is known already, with other keys; remedy: --replace\n'
    assert home.keys == before
    out = home.run("import", "--replace", source)[0]
    assert sorted(out.splitlines()) == ["1 identity added", "1 identity replaced"]
    assert home.keys == {"a": (NEW,), "b": (NEW,)}
    home.private("in.txt", b"c:12\nd\n")
    error = home.run("import", source, status=2)[1]
    assert [line.split(": ")[0] for line in error.splitlines()] == [f"{source}:1", f"{source}:2"]


def test_weak_keys_are_not_imported_unless_forced(home):
    source = home.private("in.txt", f"b:{NEW.hex()}\na:{OLD.hex()}\na:{WEAK.hex()}\n".encode())
    error = home.run("import", source, status=1)[1]
    assert error.splitlines()[0] == '"a": its next key counts up or down'
    home.run("import", "--force", source)
    assert home.keys["a"] == (OLD, WEAK)


def test_a_pipe_leads_from_export_to_import(files, tmp_path):
    files.fill(a=(OLD,), b=(OLD, NEW))
    base = f"{sys.executable} -m endpoint keys"
    target = tmp_path / "copy.db"
    subprocess.run(  # noqa: S602 - a pipe is what is tried
        f"{base} export --psk-file {files.store} | {base} import --psk-database {target} -",
        shell=True,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    with KeyDatabase(target) as database:
        assert database.counts() == (2, 1)


def test_keys_are_not_written_where_others_can_read_them(files):
    files.fill(a=(OLD,))
    output = files.path / "out.txt"
    output.touch(0o644)
    assert "is there already" in files.run("export", "--output", output, status=1)[1]
    assert "chmod 600" in files.run("export", "--output", output, "--replace", status=1)[1]
    output.chmod(0o600)
    files.run("export", "--output", output, "--replace")
    assert output.read_text() == f"a:{OLD.hex()}\n"
    with (files.path / "redirected").open("wb") as public:
        os.fchmod(public.fileno(), 0o644)
        done = process(files, "export", stdout=public)
    assert done.returncode == 2
    assert b"which others can read" in done.stderr
    assert (files.path / "redirected").read_bytes() == b""


def test_keys_are_not_written_to_a_terminal_unless_asked_for(files):
    files.fill(a=(OLD,))
    controller, terminal = pty.openpty()
    with closing(os.fdopen(terminal, "wb", buffering=0)) as screen:
        done = process(files, "export", stdout=screen)
        assert (done.returncode, b"not written to a terminal" in done.stderr) == (2, True)
        assert process(files, "export", "--show", stdout=screen).returncode == 0
        assert OLD.hex().encode() in os.read(controller, 4096)
    os.close(controller)


def process(home, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE):
    return subprocess.run(
        [sys.executable, "-m", "endpoint", "keys", *arguments, "--psk-file", home.store],
        stdout=stdout,
        stderr=stderr,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "TERM": "xterm"},
    )


def test_a_large_import_shows_a_bar_on_a_terminal_only(files):
    draw = random.Random(1)
    lines = b"".join(
        b"m%d:%s\n" % (number, draw.randbytes(32).hex().encode()) for number in range(telling.PROGRESS_FROM)
    )
    source = files.private("in.txt", lines)
    controller, terminal = pty.openpty()
    seen = bytearray()
    with closing(os.fdopen(terminal, "wb", buffering=0)) as screen:
        done = process(files, "import", source, stderr=screen)
        while b"importing" not in seen:
            seen += os.read(controller, 65_536)
    os.close(controller)
    assert done.stdout == b"%d identities added\n" % telling.PROGRESS_FROM


# --- list -------------------------------------------------------------------------------------------


def test_the_list_says_who_has_what_and_used_what(home):
    home.fill(a=(OLD,), b=(OLD, NEW), c=(OTHER, NEW))
    home.use(a=OTHER, b=NEW)
    out, error = home.run("list")
    a, b, c = (re.split(r" {2,}", line) for line in out.splitlines()[1:])
    assert a == ["a", fingerprint(OLD), "-", "another key, 2023-11-14T22:13:20.000Z"]
    assert b == ["b", fingerprint(OLD), fingerprint(NEW), "next, 2023-11-14T22:13:20.000Z"]
    assert c == ["c", fingerprint(OTHER), fingerprint(NEW), "-"]
    assert no_secret(out + error)
    entries = {entry["identity"]: entry for entry in home.json("list", "--in-rotation")["identities"]}
    assert {name: entry["confirmed"] for name, entry in entries.items()} == {"b": True, "c": False}
    assert entries["b"]["used"] == {
        "fingerprint": fingerprint(NEW),
        "which": "next",
        "when": "2023-11-14T22:13:20.000Z",
    }


# --- rehearsals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "new"],
        ["add", "--next", "a"],
        ["rotate", "--all", "--show"],
        ["retire", "--force", "b"],
        ["remove", "a"],
        ["import", "in.txt", "--replace"],
    ],
)
def test_a_dry_run_says_what_would_be_done_and_changes_nothing(home, arguments, monkeypatch):
    home.fill(a=(OLD,), b=(OLD, NEW))
    home.private("in.txt", f"a:{NEW.hex()}\n".encode())
    monkeypatch.chdir(home.path)
    before = {path.name: path.read_bytes() for path in home.path.iterdir()}
    out, error = home.run(*arguments, "--dry-run")
    assert "would be" in out
    assert not re.search(r"[0-9a-f]{16}", out + error)
    assert {path.name: path.read_bytes() for path in home.path.iterdir()} == before


def test_a_dry_run_meets_what_the_run_would_meet(files):
    files.fill(a=(OLD,))
    files.private("other.txt", b"")
    (files.path / "keys").mkdir(0o700)
    for name in ("psk.txt", "other.txt"):
        (files.path / name).rename(files.path / "keys" / name)
    told = ["--psk-file", str(files.path / "keys"), "--dry-run"]
    assert main(["keys", "add", "new", *told]) == 2
    assert main(["keys", "add", "new", *told, "--file", "third.txt"]) == 0
    assert {path.name for path in (files.path / "keys").iterdir()} == {"psk.txt", "other.txt"}


def test_a_dry_run_makes_no_store(home):
    assert home.run("add", "a", "--dry-run")[0] == "a: would be added\n"
    assert not home.store.exists()


# --- what is wrong ----------------------------------------------------------------------------------


def test_a_store_that_is_not_there_is_not_made_by_those_that_need_one(home):
    for arguments in (["list"], ["rotate", "--all"], ["remove", "a"], ["retire", "a", "--force"]):
        assert str(home.store) in home.run(*arguments, status=2)[1]
        assert not home.store.exists()


def test_a_store_that_others_can_read_is_refused(home):
    home.fill(a=(OLD,))
    home.store.chmod(0o644)
    assert "chmod 600" in home.run("rotate", "a", status=2)[1]


def test_a_database_that_somebody_is_changing_is_refused_for_now(tmp_path, capfd, monkeypatch):
    home = Home(tmp_path, "sqlite", capfd)
    home.fill(a=(OLD,))
    monkeypatch.setattr("endpoint.keystore.database.PATIENCE", 0.0)
    monkeypatch.setattr(KeyDatabase.__init__, "__kwdefaults__", {"create": False, "patience": 0.0})
    with closing(sqlite3.connect(home.store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "being changed by another program" in home.run("rotate", "a", status=1)[1]
    assert home.keys == {"a": (OLD,)}


def test_no_key_is_taken_from_the_command_line(home):
    assert "unrecognized arguments" in home.run("add", "a", "--key", "00112233", status=2)[1]
    error = home.run("add", "a", "--key-file", NEW.hex(), status=2)[1]
    assert "the name of a file is needed, not a key" in error
    assert no_secret(error)


# --- with a configuration ---------------------------------------------------------------------------


def configured(home, what, *arguments, status=0, capfd):
    capfd.readouterr()
    assert main(["keys", what, "--config", str(home.config), *arguments]) == status
    return capfd.readouterr()


def test_the_configuration_says_where_keys_and_their_use_are(files, capfd):
    files.fill(a=(OLD, NEW))
    files.use(a=NEW)
    _, error = configured(files, "retire", "a", capfd=capfd)
    assert files.keys == {"a": (NEW,)}
    assert error == "a running service uses this after a reload (--reload, or SIGHUP)\n"


def test_what_is_missing_for_a_retirement_is_named(files, capfd):
    files.fill(a=(OLD, NEW))
    files.config.write_text('[credentials]\npsk_file = "psk.txt"\n')
    _, error = configured(files, "retire", "a", status=1, capfd=capfd)
    assert "state.admin_socket is missing" in error
    assert "state.usage_file is missing" in error
    assert "--force" in error


def test_a_configuration_that_is_wrong_or_has_its_keys_elsewhere_is_told(files, capfd):
    files.config.write_text('[credentials]\npsk_file = "psk.txt"\nnonsense = 1\n')
    assert "nonsense" in configured(files, "list", status=2, capfd=capfd).err
    files.config.write_text('[credentials]\nraw_public_key = "x"\nclient_authentication = "none"\n')
    assert "names neither psk_file nor psk_database" in configured(files, "list", status=2, capfd=capfd).err


def test_a_database_is_found_through_the_configuration_too(tmp_path, capfd):
    home = Home(tmp_path, "sqlite", capfd)
    home.fill(a=(OLD,))
    home.config.write_text('[credentials]\npsk_database = "psk.db"\n')
    assert configured(home, "rotate", "a", capfd=capfd).err == ""  # no reload is needed
    assert len(home.keys["a"]) == 2


@pytest.mark.parametrize("arguments", [["rotate", "a", "--reload"], ["remove", "a", "--drop"]])
def test_nothing_is_changed_where_a_service_is_to_be_asked_and_cannot(files, capfd, arguments):
    files.fill(a=(OLD,))
    error = configured(files, *arguments, status=2, capfd=capfd).err
    assert "remedy: add state.admin_socket" in error
    assert files.keys == {"a": (OLD,)}


# --- for those who look after several endpoints ---------------------------------------------------------


def given(monkeypatch, text):
    """The name of standard input with this text."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    return "-"


def test_next_keys_of_a_fleet_are_imported_beside_the_current_ones(home, monkeypatch):
    home.fill(a=(OLD,), b=(OLD, NEW), c=(NEW,))
    lines = "".join(f"{identity}:{NEW.hex()}\n" for identity in "abcd")
    out, _ = home.run("import", "--next", "--json", given(monkeypatch, lines))
    assert home.keys == {"a": (OLD, NEW), "b": (OLD, NEW), "c": (NEW,), "d": (NEW,)}
    told = {entry["identity"]: entry["what"] for entry in json.loads(out)["identities"]}
    assert told == {"a": "given a next key", "b": "unchanged", "c": "unchanged", "d": "added"}
    out, _ = home.run("import", "--next", "--json", given(monkeypatch, lines))
    assert json.loads(out)["changed"] is False


def test_a_third_key_is_not_imported_and_nothing_else_either(home, monkeypatch):
    home.fill(a=(OLD, NEW), b=(OLD,))
    lines = f"a:{OTHER.hex()}\nb:{NEW.hex()}\n"
    _, error = home.run("import", "--next", given(monkeypatch, lines), status=1)
    assert '"a": has another next key already; remedy: keys retire' in error
    assert home.keys == {"a": (OLD, NEW), "b": (OLD,)}
    lines = f"b:{NEW.hex()}\nb:{OTHER.hex()}\n"
    _, error = home.run("import", "--next", given(monkeypatch, lines), status=1)
    assert '"b": has two keys in FILE' in error
    home.run("import", "--next", "--replace", given(monkeypatch, lines), status=2)


def test_each_is_left_with_the_key_that_is_named_by_its_fingerprint(home, monkeypatch):
    home.fill(a=(OLD, NEW), b=(OLD, NEW), c=(NEW,), other=(OLD, NEW))
    lines = f"a:{fingerprint(NEW)}\nb:{fingerprint(OLD)}\nc:{fingerprint(NEW)}\n"
    out, _ = home.run("retire", "--left-with", given(monkeypatch, lines), "--json")
    assert home.keys == {"a": (NEW,), "b": (OLD,), "c": (NEW,), "other": (OLD, NEW)}
    assert [entry["what"] for entry in json.loads(out)["identities"]] == [
        "left with one key",
        "left with one key",
        "unchanged",
    ]


@pytest.mark.parametrize(
    ("text", "status", "what"),
    [
        (f"a:{fingerprint(OTHER)}\n", 1, '"a": has no key'),
        (f"b:{fingerprint(OLD)}\nstranger:{fingerprint(OLD)}\n", 1, '"stranger": is not known'),
        (f"a:{OLD.hex()}\n", 2, "standard input:1: is not IDENTITY:FINGERPRINT"),
        (f"a:{fingerprint(OLD)}\na:{fingerprint(NEW)}\n", 2, "standard input:2: an identity comes twice"),
    ],
)
def test_nobody_is_left_with_a_key_that_is_not_its_own(home, monkeypatch, text, status, what):
    home.fill(a=(OLD, NEW), b=(OLD, NEW))
    _, error = home.run("retire", "--left-with", given(monkeypatch, text), status=status)
    assert what in error
    no_secret(error, OLD)
    assert home.keys == {"a": (OLD, NEW), "b": (OLD, NEW)}
    _, error = home.run("retire", "a", "--left-with", "-", status=2)
    assert "--left-with names the identities itself" in error
    home.run("retire", "--left-with", home.path / "nothing", status=2)
