"""What one process hands to the next: once, all or nothing, for nobody else."""

import errno
import json
import os
import stat
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint import handoff
from endpoint.handoff import MAGIC, MAX_BLOB, VERSION, Facts, Handoff, HandoffError, write_handoff
from endpoint.handoff_places import TYPICAL_BLOB, HandoffFile, HandoffMemory

KEY, OTHER = bytes(range(32)), bytes(range(32, 64))
FACTS = Facts(anchor=b'{"clock":1}', listeners=("192.0.2.1:5684", "[2001:db8::1]:5684"))
BLOBS = [b"one", b"\0" * 300, b"three"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "handoff"


def written(path, blobs=BLOBS, keys=(KEY,), facts=FACTS):
    """A file as a process leaves it."""
    draft = HandoffFile(path, keys).begin(len(blobs))
    try:
        assert draft.write(facts, iter(blobs)) == len(blobs)
    finally:
        draft.close()
    return path


def find(carrier) -> Handoff:
    found: Handoff | None = carrier.find()
    assert found is not None
    return found


def take(carrier):
    """All that is there, as a process takes it."""
    with find(carrier) as found:
        found.use_up()
        return list(found.blobs())


def refused(carrier):
    with pytest.raises(HandoffError) as caught:
        carrier.find()
    return str(caught.value)


@pytest.fixture
def memory():
    one = HandoffMemory.create(())
    yield one
    one.close()


def filled(memory, blobs=BLOBS):
    draft = memory.begin(len(blobs))
    draft.write(FACTS, iter(blobs))
    draft.close()
    return memory


# --- a file ----------------------------------------------------------------------------------------


def test_everything_that_is_handed_over_is_taken_in_its_order(path):
    found = find(HandoffFile(written(path), [KEY]))
    with found:
        assert (found.facts, found.count) == (FACTS, 3)
        found.use_up()
        assert list(found.blobs()) == BLOBS


def test_nothing_is_there_before_and_afterwards(path):
    assert HandoffFile(path, [KEY]).find() is None
    assert take(HandoffFile(written(path), [KEY])) == BLOBS
    assert HandoffFile(path, [KEY]).find() is None
    assert list(path.parent.iterdir()) == []


def test_an_empty_file_is_as_good_as_none(path):
    path.touch(mode=0o600)
    assert HandoffFile(path, [KEY]).find() is None
    assert take(HandoffFile(written(path), [KEY])) == BLOBS


def test_no_associations_can_be_handed_over_too(path):
    assert take(HandoffFile(written(path, []), [KEY])) == []


def test_a_look_changes_nothing_and_hands_nothing_out(path):
    written(path)
    with find(HandoffFile(path, [KEY])) as found, pytest.raises(RuntimeError, match="use it up first"):
        next(found.blobs())
    assert take(HandoffFile(path, [KEY])) == BLOBS


def test_of_two_processes_one_gets_it(path):
    written(path)
    first, second = find(HandoffFile(path, [KEY])), find(HandoffFile(path, [KEY]))
    with first, second:
        first.use_up()
        with pytest.raises(HandoffError, match="cannot be used up: no such file or directory"):
            second.use_up()
        with pytest.raises(RuntimeError):
            next(second.blobs())
        assert list(first.blobs()) == BLOBS


def test_a_crash_after_it_was_used_up_leaves_nothing_to_take_twice(path):
    written(path)
    another_name = path.with_name("copy")
    another_name.hardlink_to(path)
    found = find(HandoffFile(path, [KEY]))
    found.use_up()
    # The process ends here, without a single association taken and without closing anything in order.
    os.close(found._descriptor)
    assert HandoffFile(path, [KEY]).find() is None
    assert refused(HandoffFile(another_name, [KEY])) == (
        f"{another_name}: was used up before; remedy: remove it, the devices handshake again"
    )


def test_nothing_is_handed_out_where_it_cannot_be_used_up(path, monkeypatch):
    written(path)

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(path), "unlink", read_only)
    with find(HandoffFile(path, [KEY])) as found:
        with pytest.raises(HandoffError) as caught:
            found.use_up()
        assert str(caught.value) == (
            f"{path}: cannot be used up: read-only file system; remedy: the service must be allowed to remove it"
        )
        with pytest.raises(RuntimeError):
            next(found.blobs())


def test_a_file_is_for_its_owner_from_its_first_moment(path):
    old = os.umask(0)
    try:
        draft = HandoffFile(path, [KEY]).begin(1)
        (beside,) = path.parent.iterdir()
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600
        draft.write(FACTS, BLOBS)
        draft.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_appears_as_a_whole_or_not_at_all(path):
    written(path, [b"from before"])

    def blobs():
        yield b"new"
        # The process ends here.
        raise KeyboardInterrupt

    draft = HandoffFile(path, [KEY]).begin(2)
    with pytest.raises(KeyboardInterrupt):
        draft.write(FACTS, blobs())
    draft.close()
    assert list(path.parent.iterdir()) == [path]
    assert take(HandoffFile(path, [KEY])) == [b"from before"]


def test_what_a_process_with_our_number_left_half_written_is_replaced(path):
    path.with_name(f".{path.name}.{os.getpid()}~").write_bytes(b"half")
    assert take(HandoffFile(written(path), [KEY])) == BLOBS
    assert list(path.parent.iterdir()) == []


def test_room_is_set_aside_before_anything_is_frozen(path, monkeypatch):
    def full(descriptor, offset, length):
        assert length == 101 * TYPICAL_BLOB
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HandoffError) as caught:
        HandoffFile(path, [KEY]).begin(100)
    assert str(caught.value) == (
        f"{path}: cannot be written: no space left on device; remedy: the directory must be there, with room, and be "
        "writable for the service"
    )
    assert list(path.parent.iterdir()) == []


def test_a_file_system_that_cannot_set_room_aside_is_used_all_the_same(path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert take(HandoffFile(written(path), [KEY])) == BLOBS


def test_more_room_than_was_needed_is_given_back(path):
    draft = HandoffFile(path, [KEY]).begin(10_000)
    draft.write(FACTS, BLOBS)
    draft.close()
    assert path.stat().st_size < 1000
    assert take(HandoffFile(path, [KEY])) == BLOBS


def test_a_directory_that_is_not_there_is_told_before_anything_is_frozen(tmp_path):
    where = tmp_path / "none" / "handoff"
    with pytest.raises(
        HandoffError, match="cannot be written: no such file or directory; remedy: the directory"
    ):
        HandoffFile(where, [KEY]).begin(1)


def test_a_file_of_another_kind_is_neither_used_nor_replaced(path):
    path.write_text("dev1:00112233445566778899aabbccddeeff\n")
    path.chmod(0o600)
    assert refused(HandoffFile(path, [KEY])) == (
        f"{path}: holds no associations; remedy: name another file, or remove it"
    )
    with pytest.raises(
        HandoffError, match="holds something else, and is not replaced; remedy: name another file"
    ):
        HandoffFile(path, [KEY]).begin(1)
    assert path.read_text().startswith("dev1")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_file_to_which_others_have_access_is_refused_and_stays(path, mode):
    written(path).chmod(mode)
    assert refused(HandoffFile(path, [KEY])) == (
        f"{path}: mode {mode:04o} gives group or others access to the associations; remedy: chmod 600 {path}"
    )
    path.chmod(0o600)
    assert take(HandoffFile(path, [KEY])) == BLOBS


def test_a_link_is_not_followed(path):
    written(path)
    link = path.with_name("link")
    link.symlink_to(path)
    assert refused(HandoffFile(link, [KEY])) == f"{link}: is a link; remedy: name a file of the service's own"
    with pytest.raises(HandoffError, match="remedy: name a file of the service's own"):
        HandoffFile(link, [KEY]).begin(1)


def test_what_is_no_file_is_refused_and_nothing_hangs(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert refused(HandoffFile(tmp_path / "fifo", [KEY])).endswith(
        "is not a regular file; remedy: name another"
    )
    (tmp_path / "directory").mkdir()
    assert "cannot be opened: is a directory" in refused(HandoffFile(tmp_path / "directory", [KEY]))


# --- damaged, foreign, under another key -----------------------------------------------------------


def test_a_file_that_was_written_under_another_key_is_refused_and_stays(path):
    written(path)
    assert refused(HandoffFile(path, [OTHER])) == (
        f"{path}: was written under another key, or is damaged; remedy: the key that it was written under must "
        "stand in state.key_file"
    )
    assert take(HandoffFile(path, [OTHER, KEY])) == BLOBS


def test_a_key_is_not_left_out(path):
    written(path, keys=())
    assert "was written without a key, so by anybody" in refused(HandoffFile(path, [KEY]))
    written(path, keys=(KEY,))
    assert "was written under a key; remedy: the key" in refused(HandoffFile(path, []))


def test_a_file_of_another_version_is_refused_with_both(path):
    content = bytearray(written(path).read_bytes())
    content[len(MAGIC) : len(MAGIC) + 2] = (VERSION + 1).to_bytes(2)
    path.write_bytes(content)
    assert refused(HandoffFile(path, [KEY])) == (
        f"{path}: is of version 2, and this program knows 1; remedy: start the program that wrote it, or remove it"
    )


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["checksum", "key"])
def test_every_byte_counts_and_nothing_of_what_is_damaged_is_used(path, keys):
    content = written(path, [b"a", b"bb"], keys=keys).read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        assert refused(HandoffFile(path, keys)).startswith(f"{path}: ")
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        assert refused(HandoffFile(path, keys)).startswith(f"{path}: ")
    path.write_bytes(content + b"\0")
    assert "is damaged (wrong number of associations)" in refused(HandoffFile(path, keys))
    path.write_bytes(content)
    assert take(HandoffFile(path, keys)) == [b"a", b"bb"]


def test_a_file_that_is_cut_short_says_so(path):
    content = written(path).read_bytes()
    path.write_bytes(content[:-1])
    assert refused(HandoffFile(path, [KEY])) == (
        f"{path}: is damaged (it is cut short); remedy: remove it, the devices handshake again"
    )


def test_lengths_beyond_reason_are_not_believed(path):
    content = bytearray(written(path).read_bytes())
    content[len(MAGIC) + 3 : len(MAGIC) + 7] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert "is damaged (a piece of 4294967295 bytes)" in refused(HandoffFile(path, [KEY]))


@given(st.binary(max_size=300))
def test_no_content_is_more_than_refused(junk):
    descriptor = os.memfd_create("junk")
    os.write(descriptor, MAGIC + VERSION.to_bytes(2) + junk)
    with pytest.raises(HandoffError):
        Handoff(descriptor, where="junk", keys=(KEY,), path=None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@given(
    st.lists(st.binary(min_size=1, max_size=2000), max_size=20),
    st.text(max_size=50).map(lambda text: json.dumps(text).encode()),
    st.lists(st.text(max_size=20), max_size=4),
    st.booleans(),
    st.integers(1, 5000),
)
def test_what_is_written_is_what_is_read(blobs, anchor, listeners, keyed, chunk):
    keys = (KEY,) if keyed else ()
    facts = Facts(anchor=anchor, listeners=tuple(listeners))
    descriptor = os.memfd_create("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handoff, "CHUNK", chunk)
        assert write_handoff(descriptor, facts, blobs, keys) == len(blobs)
        with Handoff(descriptor, where="x", keys=keys, path=None) as found:
            assert (found.facts, found.count) == (facts, len(blobs))
            found.use_up()
            assert list(found.blobs()) == blobs


@pytest.mark.parametrize("length", [0, MAX_BLOB + 1])
def test_what_is_no_association_is_not_written(path, length):
    draft = HandoffFile(path, [KEY]).begin(1)
    with pytest.raises(HandoffError, match=f"an association of {length} bytes cannot be handed over"):
        draft.write(FACTS, [bytes(length)])
    draft.close()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "facts", [b"{}", b"[]", b'{"clock":1,"listeners":[]}', b'{"clock":"","listeners":[1]}', b"\xff"]
)
def test_facts_of_another_kind_are_damage(facts):
    with pytest.raises(ValueError):
        Facts.from_bytes(facts)


def test_no_key_is_shown(path):
    assert KEY.hex() not in repr(HandoffFile(path, [KEY]))
    assert "00010203" not in repr(HandoffFile(path, [KEY]))


# --- memory ----------------------------------------------------------------------------------------


def test_memory_is_empty_until_something_is_handed_over_and_after_it_was_taken(memory):
    assert memory.find() is None
    assert take(filled(memory)) == BLOBS
    assert os.fstat(memory.descriptor).st_size == 0
    assert memory.find() is None
    assert take(filled(memory, [b"again"])) == [b"again"]


def test_memory_that_was_filled_before_there_was_a_key_is_taken_and_known(memory):
    filled(memory)
    with_key = HandoffMemory(os.dup(memory.descriptor), [KEY])
    with find(with_key) as found:
        assert not found.keyed
        found.use_up()
        assert list(found.blobs()) == BLOBS
    with find(filled(with_key)) as found:
        assert found.keyed
    with_key.close()


def test_memory_without_a_key_is_checked_for_damage_all_the_same(memory):
    filled(memory)
    os.pwrite(memory.descriptor, b"X", 60)
    with_key = HandoffMemory(os.dup(memory.descriptor), [KEY])
    assert "is damaged (the checksum is wrong)" in refused(with_key)
    with_key.close()


def test_a_copy_of_the_descriptor_sees_what_was_handed_over_and_that_it_was_used_up(memory):
    kept = os.dup(memory.descriptor)  # the manager's, given before anything was in it
    next_one = HandoffMemory(kept, ())
    filled(memory)
    found = find(next_one)
    found.use_up()
    os.close(found._descriptor)  # the process ends here
    assert refused(memory) == ("the service manager: was used up before; its devices handshake again")
    assert take(filled(next_one)) == BLOBS
    next_one.close()


def test_what_is_half_written_to_memory_is_refused(memory):
    def blobs():
        yield bytes(MAX_BLOB)
        yield bytes(MAX_BLOB)
        raise KeyboardInterrupt  # or SIGKILL: nothing can be tidied up

    with pytest.raises(KeyboardInterrupt):
        memory.begin(2).write(FACTS, blobs())
    assert os.fstat(memory.descriptor).st_size > MAX_BLOB
    assert refused(memory) == (
        "the service manager: is damaged (it is cut short); its devices handshake again"
    )


def test_memory_that_is_something_else_is_refused(path):
    reading, writing = os.pipe()
    os.close(writing)
    other = HandoffMemory(reading, ())
    assert refused(other).endswith("sansdtls-associations is not what this service keeps there")
    other.close()
    other.close()
    assert "bad file descriptor" in refused(other)


def test_many_are_handed_over_one_at_a_time():
    blob = bytes(1000)
    memory = HandoffMemory.create([KEY])
    tracemalloc.start()
    try:
        memory.begin(20_000).write(FACTS, (blob for _ in range(20_000)))
        with find(memory) as found:
            found.use_up()
            assert sum(map(len, found.blobs())) == 20_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    memory.close()
    assert peak < 8 * handoff.CHUNK
