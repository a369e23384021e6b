"""The database of keys: what it keeps, what it refuses, and what readers see while it changes."""

import hashlib
import os
import resource
import signal
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endpoint.keystore.database import BATCH, TABLES, KeyDatabase, KeyDatabaseError

OLD, NEW, OTHER = (bytes(range(start, start + 32)) for start in (0, 100, 200))

MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
KEYS = st.binary(min_size=16, max_size=64)
KEY_LISTS = st.lists(KEYS, min_size=1, max_size=2, unique=True)


@pytest.fixture
def path(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path / "psk.db"


@pytest.fixture
def database(path):
    with KeyDatabase(path, create=True) as opened:
        yield opened


def put(database, **keys):
    with database.change() as changes:
        for identity, value in keys.items():
            changes.set(identity.encode(), value)


def refusal(path, **options):
    with pytest.raises(KeyDatabaseError) as refused:
        KeyDatabase(path, **options)
    (problem,) = refused.value.problems
    assert str(path) in problem
    return refused.value.code, problem


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.binary(min_size=1, max_size=40), KEY_LISTS, max_size=8))
def test_identities_of_any_bytes_come_back_with_their_keys_in_order(keys):
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory,
        KeyDatabase(Path(directory, "psk.db"), create=True) as database,
    ):
        with database.change() as changes:
            for identity, value in keys.items():
                changes.set(identity, value)
        assert {identity: list(found) for identity, found in database.items()} == keys
        assert [identity for identity, _ in database.items()] == sorted(keys)
        for identity, value in keys.items():
            assert database.lookup(identity) == tuple(value)
        assert database.lookup(b"unknown" * 10) == ()
        assert database.counts() == (len(keys), sum(len(value) > 1 for value in keys.values()))


def test_keys_are_replaced_and_removed(database):
    put(database, meter=[OLD], other=[OTHER])
    put(database, meter=[OLD, NEW])
    assert database.lookup(b"meter") == (OLD, NEW)
    put(database, meter=[NEW])
    assert database.lookup(b"meter") == (NEW,)
    with database.change() as changes:
        assert changes.remove(b"meter")
        assert not changes.remove(b"meter")
        assert changes.lookup(b"meter") == ()
    assert list(database.items()) == [(b"other", (OTHER,))]


def test_a_change_that_fails_changes_nothing(database):
    put(database, meter=[OLD])
    with pytest.raises(ValueError, match="0 keys"), database.change() as changes:  # noqa: PT012 - what comes before
        changes.set(b"meter", [NEW])
        changes.set(b"another", [NEW])
        changes.set(b"third", [])
    assert dict(database.items()) == {b"meter": (OLD,)}
    put(database, meter=[NEW])


@pytest.mark.parametrize(
    ("identity", "keys", "what"),
    [
        (b"", [OLD], "0 bytes"),
        (bytes(65_536), [OLD], "65536 bytes"),
        (b"m", [], "0 keys"),
        (b"m", [OLD, NEW, OTHER], "3 keys"),
        (b"m", [OLD[:15]], "15 bytes"),
        (b"m", [OLD, bytes(65)], "65 bytes"),
        (b"m", [OLD, OLD], "the same"),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_showing_it(database, identity, keys, what):
    with pytest.raises(ValueError, match=what) as refused, database.change() as changes:
        changes.set(identity, keys)
    assert not any(key.hex() in str(refused.value) or repr(key) in str(refused.value) for key in keys)
    assert database.counts() == (0, 0)


def test_the_table_itself_refuses_what_another_program_would_write(database, path):
    with closing(sqlite3.connect(path)) as connection:
        for row in [
            ("text", OLD, None),
            (b"m", OLD, OLD),
            (b"m", OLD[:15], None),
            (b"m", OLD, bytes(65)),
            (b"", OLD, None),
        ]:
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute("INSERT INTO psk VALUES (?, ?, ?)", row)


def test_the_file_is_for_its_owner_only_whatever_the_umask(path):
    before = os.umask(0)
    try:
        with KeyDatabase(path, create=True) as database:
            assert path.stat().st_mode & 0o777 == 0o600
            with database.change() as changes:
                changes.set(b"m", [OLD])
                journal = path.with_name("psk.db-journal")
                assert journal.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert not journal.exists()


def test_a_removed_key_is_not_left_in_the_file(database, path):
    put(database, meter=[OLD, NEW])
    assert OLD in path.read_bytes()
    put(database, meter=[NEW])
    with database.change() as changes:
        changes.remove(b"meter")
    assert OLD not in path.read_bytes()
    assert NEW not in path.read_bytes()


def test_nothing_shows_a_key(database):
    put(database, meter=[OLD])
    assert repr(database) == f"KeyDatabase({str(database.path)!r})"


# --- several at once --------------------------------------------------------------------------------


def test_a_reader_goes_on_while_a_large_change_is_made_and_sees_it_whole(database, path):
    put(database, meter=[OLD])
    with KeyDatabase(path, patience=0.0) as reader:
        with database.change() as changes:
            for number in range(60_000):  # more than SQLite's cache holds
                changes.set(b"m%d" % number, [number.to_bytes(32)])
            changes.set(b"meter", [NEW])
            assert reader.lookup(b"meter") == (OLD,)
            assert reader.counts() == (1, 0)
        assert reader.lookup(b"meter") == (NEW,)
        assert reader.counts() == (60_001, 0)


def test_a_reader_that_has_begun_sees_what_was_there_then(database, path):
    put(database, a=[OLD], b=[OLD], **{f"more{number}": [OLD] for number in range(2 * BATCH)})
    with KeyDatabase(path, patience=0.0) as writer:
        rows = database.items()
        assert next(rows) == (b"a", (OLD,))
        with pytest.raises(KeyDatabaseError, match="being changed by another program"):
            put(writer, b=[NEW])
        # The same object answers meanwhile: lookups do not depend on who reads all.
        assert database.lookup(b"b") == (OLD,)
        assert {keys for _, keys in rows} == {(OLD,)}
        put(writer, b=[NEW])
    assert database.lookup(b"b") == (NEW,)


def test_two_writers_take_turns(database, path):
    def add(number):
        with KeyDatabase(path) as mine, mine.change() as changes:
            first = changes.lookup(b"count") or (bytes(32),)
            changes.set(b"count", [(int.from_bytes(first[0]) + 1).to_bytes(32)])
            changes.set(b"w%d" % number, [OLD])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.lookup(b"count") == ((8).to_bytes(32),)
    assert database.counts() == (9, 0)


def test_threads_share_one_object(database):
    put(database, **{f"m{number}": [number.to_bytes(32)] for number in range(50)})
    wrong: list[object] = []

    def read(number):
        found = {database.lookup(b"m%d" % number) for _ in range(20)}
        wrong.extend(found - {(number.to_bytes(32),)})

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_database_that_takes_its_place_is_used_at_once(database, path, tmp_path):
    put(database, meter=[OLD])
    with KeyDatabase(tmp_path / "new.db", create=True) as other:
        put(other, meter=[NEW])
    os.replace(tmp_path / "new.db", path)  # noqa: PTH105
    assert database.lookup(b"meter") == (NEW,)
    path.unlink()
    with pytest.raises(KeyDatabaseError, match="is not there"):
        database.lookup(b"meter")
    with KeyDatabase(path, create=True) as other:
        put(other, meter=[OTHER])
    assert database.lookup(b"meter") == (OTHER,)


def test_a_link_that_is_swapped_is_followed(tmp_path, path):
    for name, key in (("one", OLD), ("two", NEW)):
        (tmp_path / name).mkdir(mode=0o700)
        with KeyDatabase(tmp_path / name / "psk.db", create=True) as database:
            put(database, meter=[key])
    path.symlink_to(tmp_path / "one" / "psk.db")
    with KeyDatabase(path) as database:
        assert database.lookup(b"meter") == (OLD,)
        path.unlink()
        path.symlink_to(tmp_path / "two" / "psk.db")
        assert database.lookup(b"meter") == (NEW,)


# --- what is refused --------------------------------------------------------------------------------


def test_what_is_not_there_is_not_made_by_reading(path):
    assert refusal(path)[0] == "ENOENT"
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(database, path, mode):
    database.close()
    path.chmod(mode)
    code, problem = refusal(path)
    assert code == "MODE"
    assert f"chmod 600 {path}" in problem
    with pytest.raises(KeyDatabaseError):
        database.lookup(b"meter")


def test_a_directory_that_others_can_write_is_refused(database, path):
    for options in ({}, {"create": True}):
        path.parent.chmod(0o777)
        assert refusal(path, **options)[0] == "MODE"
    path.parent.chmod(0o755)
    KeyDatabase(path).close()


def test_a_second_name_is_refused(database, path, tmp_path):
    os.link(path, tmp_path / "other.db")
    assert refusal(path)[0] == "LINKS"


@pytest.mark.parametrize("content", [b"meter-17:00112233445566778899aabbccddeeff\n" * 20, b"x"])
def test_a_file_of_another_kind_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    for options in ({}, {"create": True}):
        code, problem = refusal(path, **options)
        assert code == "SQLITE_NOTADB"
        assert "psk_file" in problem
    assert path.read_bytes() == content


def test_an_empty_file_is_refused_but_may_become_a_database(path):
    path.touch(0o600)
    assert "is empty" in refusal(path)[1]
    with KeyDatabase(path, create=True) as database:
        put(database, meter=[OLD])
        assert database.lookup(b"meter") == (OLD,)


def test_a_database_of_another_program_is_refused_and_left_alone(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE psk (identity, current, next)")
        connection.commit()
    path.chmod(0o600)
    before = path.read_bytes()
    for options in ({}, {"create": True}):
        assert refusal(path, **options)[0] == "FOREIGN"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("PRAGMA user_version = 2", "FORMAT"),
        ("CREATE TRIGGER t AFTER UPDATE ON psk BEGIN DELETE FROM psk; END", "FOREIGN"),
        ("CREATE VIEW v AS SELECT * FROM psk", "FOREIGN"),
        ("ALTER TABLE psk ADD COLUMN more", "FOREIGN"),
        ("PRAGMA journal_mode = WAL", "JOURNAL"),
    ],
)
def test_other_tables_or_another_version_are_refused(database, path, statement, code):
    database.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
    assert refusal(path)[0] == code


def test_damage_is_found_where_it_is_looked_for(database, path):
    put(database, **{f"m{number}": [number.to_bytes(32)] for number in range(2000)})
    database.verify()
    database.close()
    content = bytearray(path.read_bytes())
    content[8192:12_288] = os.urandom(4096)
    path.write_bytes(content)
    with KeyDatabase(path) as damaged, pytest.raises(KeyDatabaseError, match="damaged"):
        damaged.verify()


def test_the_tables_are_those_of_version_1():
    # A database that is in use has these very words in it; another wording is another FORMAT.
    assert hashlib.sha256(TABLES["psk"].encode()).hexdigest()[:16] == "c91a48e19f5e22aa"


# --- accidents --------------------------------------------------------------------------------------


def dying(change, *, prepare):
    """Run ``change`` in a process that ``prepare`` has made to die in the midst of it; whether it did."""
    child = os.fork()
    if not child:
        try:
            prepare()
            change()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, 77, -signal.SIGXFSZ}
    return code != 0


def all_get_a_next_key(path):
    with KeyDatabase(path) as database, database.change() as changes:
        for identity, keys in list(changes.items()):
            changes.set(identity, (*keys, NEW))


def test_killed_while_it_writes_all_of_a_change_is_there_or_nothing(database, path):
    before = {f"m{number:03}": [number.to_bytes(32)] for number in range(300)}
    put(database, **before)
    database.close()
    old = path.read_bytes()
    hot, finished = 0, False
    # The process dies of the first write that goes beyond so many bytes, in the journal or in the database.
    for limit in range(512, 200_000, 1100):
        path.write_bytes(old)
        journal = path.with_name("psk.db-journal")
        journal.unlink(missing_ok=True)  # one that had not been begun is left for the next change to remove

        def prepare(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        died = dying(lambda: all_get_a_next_key(path), prepare=prepare)
        hot += journal.exists() and path.read_bytes() != old
        with KeyDatabase(path) as after:
            after.verify()
            expected = 1 if died else 2
            assert {len(keys) for _, keys in after.items()} == {expected}
            assert after.counts()[0] == 300
        if not died:
            finished = True
            break
    assert finished
    assert hot > 2  # it was half written, and was taken back


def test_killed_while_it_works_all_of_a_change_is_there_or_nothing(database, path):
    put(database, **{f"m{number}": [number.to_bytes(32)] for number in range(10)})
    database.close()
    old = path.read_bytes()
    step = 0
    while True:
        step += 97
        path.write_bytes(old)
        counter = [0]

        def die(counter=counter, step=step):
            counter[0] += 1
            if counter[0] == step:
                os._exit(77)
            return 0

        def change(die=die):
            with KeyDatabase(path) as mine:
                assert mine._connection is not None
                mine._connection.set_progress_handler(die, 1)
                with mine.change() as changes:
                    for identity, keys in list(changes.items()):
                        changes.set(identity, (*keys, NEW))

        died = dying(change, prepare=lambda: None)
        with KeyDatabase(path) as after:
            assert {len(keys) for _, keys in after.items()} == {1 if died else 2}
        if not died:
            break
    assert step > 300
