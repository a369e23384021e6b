"""Where captures are written: only there, only new, only for their owner."""

import os
import stat
import time

import pytest

from endpoint.capture import files
from endpoint.capture.files import CaptureFileError, Outputs, look_at_directory

KINDS = ("pcapng", "keylog")


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "captures"
    made.mkdir(mode=0o700)
    return made


def test_files_have_a_name_in_common_and_are_new(directory):
    one, two = Outputs.made(directory, KINDS), Outputs.made(directory, KINDS)
    assert len(list(directory.iterdir())) == 4
    assert {path.stem for path in one.paths.values()} != {path.stem for path in two.paths.values()}
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    one.close()
    two.close()
    one.close()


def test_a_name_that_is_taken_is_left_alone_also_where_it_is_a_link(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (directory / "now-1.pcapng").symlink_to(victim)
    (directory / "now-2.keylog").symlink_to(tmp_path / "dangling")
    outputs = Outputs.made(directory, KINDS)
    outputs.write("pcapng", b"x")
    outputs.close()
    assert [path.name for path in outputs.paths.values()] == ["now-3.pcapng", "now-3.keylog"]
    assert victim.read_text() == "precious"
    assert not (tmp_path / "dangling").exists()
    assert not (directory / "now-2.pcapng").exists()  # what was made for it is gone again


def test_of_too_many_in_one_second_the_last_is_refused(directory, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    monkeypatch.setattr(files, "_ATTEMPTS", 2)
    for _ in range(2):
        Outputs.made(directory, KINDS).close()
    with pytest.raises(CaptureFileError, match="too many captures in one second"):
        Outputs.made(directory, KINDS)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_directory_that_others_can_write_is_refused(directory, mode):
    directory.chmod(mode)
    for look in (look_at_directory, lambda path: Outputs.made(path, KINDS)):
        with pytest.raises(
            CaptureFileError, match=f"mode {mode:04o} lets others put files there; remedy: chmod"
        ):
            look(directory)
    assert list(directory.iterdir()) == []


def test_what_is_no_directory_is_refused_with_the_remedy(directory, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(directory)
    for name, what in (("none", "no such file"), ("file", "is no directory"), ("link", "or a link to one")):
        with pytest.raises(CaptureFileError, match=rf"{name}: .*{what}.*; remedy: mkdir -m 700"):
            look_at_directory(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory_is_refused_for_writing_and_not_for_checking(directory):
    os.chown(directory, 12_345, -1)
    look_at_directory(directory)
    with pytest.raises(CaptureFileError, match="belongs to user 12345; remedy: chown"):
        Outputs.made(directory, KINDS)


def test_a_write_that_fails_leaves_the_file_as_it_was(directory, monkeypatch):
    outputs = Outputs.made(directory, KINDS)
    outputs.write("pcapng", b"whole")
    write, calls = os.write, []

    def half(descriptor, data):
        calls.append(data)
        if len(calls) == 1:
            return write(descriptor, bytes(data[:3]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        outputs.write("pcapng", b"block two")
    monkeypatch.undo()
    outputs.write("pcapng", b" and more")
    outputs.close()
    assert outputs.paths["pcapng"].read_bytes() == b"whole and more"


def test_a_file_that_is_being_written_is_closed_by_who_writes_it(directory, monkeypatch):
    outputs = Outputs.made(directory, KINDS)
    (descriptor,) = {outputs._descriptors["pcapng"]}
    write = os.write

    def closed_meanwhile(number, data):
        outputs.close()
        os.fstat(descriptor)  # still ours: another file could have its number by now
        return write(number, data)

    monkeypatch.setattr(os, "write", closed_meanwhile)
    outputs.write("pcapng", b"x")
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    outputs.write("pcapng", b"nothing more")
    assert outputs.paths["pcapng"].read_bytes() == b"x"
