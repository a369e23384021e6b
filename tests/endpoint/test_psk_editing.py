"""Editing PSK files: the right keys, every other byte as before, and whole after a crash at any step."""

import fcntl
import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endpoint.keystore.editing import PskFiles, cannot_be_written, line_for
from endpoint.keystore.file import KeyFileError, load_psk
from endpoint.replacing import LOCK_NAME, ReplaceError, locked

OLD, NEW, OTHER = (bytes([start]) * 15 + bytes([start + 1]) * 17 for start in (10, 60, 170))
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it


def write(path, content, mode=0o600):
    path.touch(0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path):
    return write(
        tmp_path / "psk.txt",
        b"# the fleet\r\n"
        b"meter-1:" + OLD.hex().upper().encode() + b"  \r\n"
        b"\r\n"
        b"#meter-9:" + OTHER.hex().encode() + b"\r\n"
        b"a:b:" + OTHER.hex().encode() + b"\r\n"
        b"meter-2: " + OTHER.hex().encode(),
    )


def edit(path, **changes):
    with PskFiles(path).change() as edited:
        for identity, keys in changes.items():
            if keys:
                edited.set(identity.encode(), keys)
            else:
                edited.remove(identity.encode())


def keys_in(path):
    return dict(load_psk(path).keys)


# --- the lines --------------------------------------------------------------------------------------


def test_a_next_key_is_a_line_after_the_current_one_in_the_same_style(file):
    before = file.read_bytes().split(b"\n")
    edit(file, **{"meter-1": (OLD, NEW)})
    after = file.read_bytes().split(b"\n")
    assert after[2] == b"meter-1:" + NEW.hex().encode() + b"  \r"
    assert after[:2] + after[3:] == before


def test_retiring_takes_the_old_line_away_and_leaves_the_next_one_where_it_is(file):
    rest = b"# since spring\nm: " + NEW.hex().upper().encode() + b" \n"
    write(file, b"m:" + OLD.hex().encode() + b"\n" + rest)
    edit(file, m=(NEW,))
    assert file.read_bytes() == rest


def test_a_key_is_changed_within_its_line(file):
    before = file.read_bytes()
    edit(file, **{"meter-2": (NEW,)})
    assert file.read_bytes() == before.replace(
        b"meter-2: " + OTHER.hex().encode(), b"meter-2: " + NEW.hex().encode()
    )


def test_a_last_line_without_an_end_gets_one_only_when_another_follows(file):
    before = file.read_bytes()
    edit(file, **{"meter-2": (OTHER, NEW)})
    assert file.read_bytes() == before + b"\r\nmeter-2: " + NEW.hex().encode()
    edit(file, **{"meter-3": (NEW,)})
    assert file.read_bytes().endswith(b"\r\nmeter-3:" + NEW.hex().encode() + b"\r\n")
    assert keys_in(file)[b"meter-2"] == (OTHER, NEW)


def test_removing_takes_both_lines_and_no_comment(file):
    before = file.read_bytes()
    edit(file, **{"meter-1": (OLD, NEW)})
    edit(file, **{"meter-1": None})
    assert file.read_bytes() == before.replace(b"meter-1:" + OLD.hex().upper().encode() + b"  \r\n", b"")


def test_a_change_that_changes_nothing_leaves_the_very_file(file):
    number = file.stat().st_ino
    with PskFiles(file).change() as changes:
        assert not changes.remove(b"nobody")
    assert file.stat().st_ino == number


# Whatever a line of a file may hold.
names = st.binary(min_size=1, max_size=6).filter(lambda name: not cannot_be_written(name))
odd_names = st.sampled_from([b"a:b", b"::", b"x#", "zähler".encode(), b"a\rb", b"a\x00b", b"\xff\xfe"])
identities = st.one_of(st.sampled_from([b"a", b"b", b"c"]), odd_names, names)
keys = st.sampled_from([bytes([number]) * 16 + bytes(range(number)) for number in range(1, 9)])
key_lists = st.lists(keys, min_size=1, max_size=2, unique=True)
noise = st.sampled_from([b"", b"  ", b"# remark", b"  # a:00", b"#6d31:" + OLD.hex().encode(), b"\t"])


@st.composite
def files(draw):
    """The content of a file, and what it means."""
    meaning = draw(st.dictionaries(identities, key_lists, max_size=5))
    lines = [
        [
            identity
            + b":"
            + draw(st.sampled_from([b"", b" "]))
            + draw(st.sampled_from([key.hex(), key.hex().upper()])).encode()
            + draw(st.sampled_from([b"", b" ", b"\t "]))
            for key in value
        ]
        for identity, value in meaning.items()
    ]
    flat = []
    while lines:  # in any order, but of one identity the current one first; with other lines between them
        chosen = draw(st.sampled_from(lines))
        flat += draw(st.lists(noise, max_size=1))
        flat.append(chosen.pop(0))
        lines = [rest for rest in lines if rest]
    flat += draw(st.lists(noise, max_size=2))
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    content = end.join(flat)
    if flat and draw(st.booleans()):
        content += end
    if draw(st.booleans()) and not content.startswith(b"\xef\xbb\xbf"):
        content = b"\xef\xbb\xbf" + content
    return content, {identity: tuple(value) for identity, value in meaning.items()}


edits = st.lists(st.tuples(identities, st.one_of(st.none(), key_lists)), max_size=6)


def others(content, touched):
    """The lines that belong to nobody who was touched, as they are, without their ends."""
    kept = []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        identity = line.rpartition(b":")[0]
        if line.strip() and (line.lstrip().startswith(b"#") or identity not in touched):
            kept.append(line.rstrip(b"\r"))
    return kept


@pytest.fixture(scope="module")
def scratch():
    # In memory where there is such a place: what is tried here is text, not the disk.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        yield Path(directory)


@settings(max_examples=150, deadline=None)
@given(files(), edits)
def test_any_edits_of_any_file_mean_what_was_asked_for_and_touch_nothing_else(scratch, made, wanted):
    content, meaning = made
    path = write(scratch / "psk.txt", content)
    assert keys_in(path) == meaning
    with PskFiles(path).change() as changes:
        for identity, value in wanted:
            if value is None:
                assert changes.remove(identity) == (identity in meaning)
                meaning.pop(identity, None)
            else:
                changes.set(identity, value)
                meaning[identity] = tuple(value)
            assert changes.lookup(identity) == meaning.get(identity, ())
        assert dict(changes.items()) == meaning
    assert keys_in(path) == meaning
    touched = {identity for identity, _ in wanted}
    after = path.read_bytes()
    assert others(after, touched) == others(content, touched)
    assert after.startswith(b"\xef\xbb\xbf") == content.startswith(b"\xef\xbb\xbf")
    if not wanted:
        assert after == content


@given(st.binary(max_size=40))
def test_it_is_known_which_identities_no_line_can_hold(scratch, identity):
    line = b"x:" + OLD.hex().encode() + b"\n" + line_for(identity, NEW) + b"\n"
    try:
        means_it = keys_in(write(scratch / "line.txt", line)).get(identity) == (NEW,)
    except KeyFileError:
        means_it = False
    if cannot_be_written(identity) is None:
        assert means_it or identity == b"x"
    elif not identity.startswith(b"\xef\xbb\xbf"):  # which is taken for a mark on the first line only
        assert not means_it


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [b"", b"a\nb", b"#a", b" a", b"a ", b"\xef\xbb\xbfa"])
def test_identities_that_no_line_can_hold_are_refused(file, identity):
    before = file.read_bytes()
    with pytest.raises(ValueError, match="no PSK file can hold it"), PskFiles(file).change() as changes:
        changes.set(identity, [NEW])
    assert file.read_bytes() == before


@pytest.mark.parametrize("value", [[], [OLD, NEW, OTHER], [b"short"], [bytes(65)], [OLD, OLD]])
def test_keys_that_cannot_be_kept_are_refused_without_showing_them(file, value):
    with pytest.raises(ValueError, match="key") as refused, PskFiles(file).change() as changes:
        changes.set(b"meter-1", value)
    assert OLD.hex() not in str(refused.value)


def test_a_file_with_a_mistake_is_not_edited(file):
    content = file.read_bytes() + b"\nbroken line"
    write(file, content)
    with pytest.raises(KeyFileError) as refused:
        edit(file, **{"meter-1": None})
    assert "there is no colon" in refused.value.problems[0]
    assert file.read_bytes() == content


def test_a_result_that_would_be_read_otherwise_is_not_written(file, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr("endpoint.keystore.editing._with_key", lambda line, _key: line)
    with pytest.raises(KeyFileError, match="cannot be written so that it is read as it is meant"):
        edit(file, **{"meter-1": (NEW,)})
    assert file.read_bytes() == before


def test_a_file_that_others_can_read_is_not_edited(file):
    file.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        edit(file, **{"meter-1": None})


# --- the file itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_the_mode_stays_whatever_the_umask(file, mode):
    file.chmod(mode)
    before = os.umask(0o277)
    try:
        edit(file, **{"meter-1": None})
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays_also_when_root_edits_and_new_files_are_the_directorys(tmp_path):
    os.chown(tmp_path, 4711, 4712)
    file = write(tmp_path / "psk.txt", line_for(b"m", OLD))
    os.chown(file, 4713, 4714)
    edit(file, m=(NEW,))
    assert (file.stat().st_uid, file.stat().st_gid) == (4713, 4714)
    made = tmp_path / "new.txt"
    with PskFiles(made, create=True).change() as changes:
        changes.set(b"n", [NEW])
    assert (made.stat().st_uid, made.stat().st_gid) == (4711, 4712)
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    lock = tmp_path / LOCK_NAME
    assert (lock.stat().st_uid, stat.S_IMODE(lock.stat().st_mode)) == (4711, 0o600)


def test_a_link_stays_a_link_and_the_file_behind_it_is_changed(file, tmp_path):
    (tmp_path / "current").mkdir()
    link = tmp_path / "current" / "psk.txt"
    link.symlink_to(file)
    edit(link, **{"meter-1": (NEW,)})
    assert link.is_symlink()
    assert keys_in(file)[b"meter-1"] == (NEW,)


def test_in_a_directory_the_file_that_holds_an_identity_is_changed(tmp_path):
    one = write(tmp_path / "one.txt", line_for(b"a", OLD) + b"\n")
    two = write(tmp_path / "two.txt", line_for(b"b", OLD) + b"\n")
    edit(tmp_path, b=(OLD, NEW))
    assert one.read_bytes() == line_for(b"a", OLD) + b"\n"
    assert keys_in(two) == {b"b": (OLD, NEW)}
    with pytest.raises(KeyFileError, match=r"--file meters\.txt"):
        edit(tmp_path, c=(NEW,))
    with PskFiles(tmp_path, new_file="three.txt").change() as changes:
        changes.set(b"c", [NEW])
        changes.set(b"a", [NEW])
    assert keys_in(tmp_path / "three.txt") == {b"c": (NEW,)}
    assert keys_in(tmp_path) == {b"a": (NEW,), b"b": (OLD, NEW), b"c": (NEW,)}


@pytest.mark.parametrize("name", ["../x", ".hidden", "x~", "", "a/b"])
def test_names_that_would_not_be_read_are_refused_for_new_files(tmp_path, name):
    with (
        pytest.raises(KeyFileError, match="plain name"),
        PskFiles(tmp_path, new_file=name).change() as changes,
    ):
        changes.set(b"c", [NEW])


def test_what_is_not_there_is_made_only_when_asked_for(tmp_path):
    path = tmp_path / "psk.txt"
    with pytest.raises(KeyFileError, match="no such file"):
        edit(path, a=(NEW,))
    with PskFiles(path, create=True).change() as changes:
        changes.set(b"a", [NEW])
    assert keys_in(path) == {b"a": (NEW,)}


# --- accidents --------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ReplaceError, match="no space left on device; nothing was changed"):
        edit(file, **{"meter-1": None})
    assert file.read_bytes() == before
    assert {path.name for path in file.parent.iterdir()} == {"psk.txt", LOCK_NAME}


def test_it_is_on_the_disk_before_it_has_the_name_and_so_is_the_name(file, monkeypatch):
    done = []

    def noting(name, function):
        def call(*arguments, **options):
            done.append((name, stat.S_ISDIR(os.fstat(arguments[0]).st_mode)) if name == "fsync" else name)
            return function(*arguments, **options)

        return call

    for name in ("write", "fsync", "rename"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    edit(file, **{"meter-1": None})
    assert done == ["write", ("fsync", False), "rename", ("fsync", True)]


STEPS = ("open", "write", "fchmod", "fchown", "fsync", "rename", "unlink", "close")


def killed_at(step, path, *, half=False):
    """Edit in a process that dies before its system call number ``step``; whether it came so far."""
    child = os.fork()
    if not child:
        counter = [0]

        def dying(name, function):
            def call(*arguments, **options):
                counter[0] += 1
                if counter[0] == step:
                    if name == "write" and half:
                        function(arguments[0], bytes(arguments[1][: len(arguments[1]) // 2]))
                    os._exit(77)
                return function(*arguments, **options)

            return call

        try:
            for name in STEPS:
                setattr(os, name, dying(name, getattr(os, name)))
            with PskFiles(path).change() as changes:
                changes.set(b"a", [OLD, NEW])
                changes.set(b"b", [OLD, NEW])
        finally:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 77


@pytest.mark.parametrize("half", [False, True])
def test_killed_at_any_step_the_file_is_the_old_one_or_the_new_one(tmp_path, half):
    path = tmp_path / "psk.txt"
    original = line_for(b"a", OLD) + b"\n" + line_for(b"b", OLD) + b"\n"
    meanings, step = [], 1
    while True:
        write(path, original)
        came_so_far = killed_at(step, path, half=half)
        meaning = keys_in(tmp_path)  # a service that reads the directory finds nothing else in it either
        assert meaning in ({b"a": (OLD,), b"b": (OLD,)}, {b"a": (OLD, NEW), b"b": (OLD, NEW)})
        for left in tmp_path.iterdir():
            assert stat.S_IMODE(left.stat().st_mode) == 0o600
        # Whatever is left of it, the next editor can work.
        edit(path, c=(NEW,))
        assert keys_in(path) == {**meaning, b"c": (NEW,)}
        assert {left.name for left in tmp_path.iterdir()} == {"psk.txt", LOCK_NAME}
        if not came_so_far:
            break
        meanings.append(len(meaning[b"a"]))
        step += 1
    assert step > 8
    assert meanings == sorted(meanings)  # once it is the new one it stays so
    assert set(meanings) == {1, 2}


def test_a_second_editor_waits_and_sees_what_the_first_has_done(tmp_path):
    path = write(tmp_path / "psk.txt", line_for(b"count", (1).to_bytes(16)) + b"\n")

    def increment():
        with PskFiles(path).change() as changes:
            (key,) = changes.lookup(b"count")
            changes.set(b"count", [(int.from_bytes(key) + 1).to_bytes(16)])

    threads = [threading.Thread(target=increment) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys_in(path) == {b"count": ((7).to_bytes(16),)}


def test_an_editor_does_not_wait_for_ever(tmp_path):
    with (tmp_path / LOCK_NAME).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ReplaceError, match="another keys command"), locked([tmp_path], patience=0.0):
            pass
    with locked([tmp_path], patience=0.0):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("linked", [False, True])
def test_what_the_owner_puts_in_the_place_of_the_lock_does_not_become_his(tmp_path, linked):
    os.chown(tmp_path, 4711, 4712)
    roots = tmp_path / "of-root"
    roots.write_bytes(b"" if linked else b"a secret")
    if linked:
        os.link(roots, tmp_path / LOCK_NAME)
    else:
        roots.rename(tmp_path / LOCK_NAME)
    with pytest.raises(ReplaceError, match="is no lock; remedy: remove it"), locked([tmp_path]):
        pass
    assert (tmp_path / LOCK_NAME).stat().st_uid == 0


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReplaceError, match="cannot be made"), locked([tmp_path]):
        pass
    assert not (tmp_path / "elsewhere").exists()
