"""The file of associations: what is kept, what is refused, and that only one process has it."""

import os
import random
import shutil
import sqlite3
import stat

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from endpoint.state import exclusive
from endpoint.state.exclusive import StateFileError
from endpoint.state.sqlite import APPLICATION_ID, FORMAT, TABLES, AssociationFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "associations.db"


def content(path):
    with AssociationFile(path) as file:
        return dict(file.rows())


def filled(path, rows=3):
    with AssociationFile(path) as file:
        file.apply([(b"c%06d" % n, b"blob %d" % n) for n in range(rows)], anchor=b"anchor")


def refusal(path):
    with pytest.raises(StateFileError) as caught:
        AssociationFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


# --- what is kept ---


def test_a_new_file_is_the_first_generation_and_is_empty(path):
    with AssociationFile(path) as file:
        assert (file.generation, file.anchor, list(file.rows())) == (1, b"", [])


def test_what_was_applied_is_there_in_the_next_generation(path):
    with AssociationFile(path) as file:
        file.apply([(b"c1", b"one"), (b"p2", b"two"), (b"c\x00", b"")], anchor=b"then")
        assert file.anchor == b"then"
    with AssociationFile(path) as file:
        assert (file.generation, file.anchor) == (2, b"then")
        assert list(file.rows()) == [(b"c\x00", b""), (b"c1", b"one"), (b"p2", b"two")]


def test_later_rows_win_and_removed_ones_are_gone(path):
    with AssociationFile(path) as file:
        file.apply([(b"c1", b"one"), (b"c2", b"two"), (b"c3", b"three")], anchor=b"")
        file.apply([(b"c2", b"newer")], [b"c1", b"never there"], anchor=b"")
        # A newcomer may have the handle of one that left in the same second.
        file.apply([(b"c3", b"newcomer")], [b"c3"], anchor=b"")
    assert content(path) == {b"c2": b"newer", b"c3": b"newcomer"}


def test_the_generation_counts_openings_even_when_nothing_was_written(path):
    for expected in (1, 2, 3):
        with AssociationFile(path) as file:
            assert file.generation == expected


def test_the_generation_is_on_the_disk_before_a_row_can_be_read(path, tmp_path):
    filled(path)
    with AssociationFile(path) as file:
        rows = file.rows()
        # A copy of the files as they are now is what a power cut would leave.
        copy = tmp_path / "copy.db"
        shutil.copy(path, copy)
        shutil.copy(f"{path}-journal", f"{copy}-journal")
        assert next(rows)
    with AssociationFile(copy) as file:
        assert file.generation == 3


def test_a_hundred_thousand_rows_come_back(path):
    draw = random.Random(1)
    rows = {b"c" + draw.randbytes(8): draw.randbytes(190) for _ in range(100_000)}
    with AssociationFile(path) as file:
        file.apply(rows.items(), anchor=b"")
    assert content(path) == rows


def test_rows_may_be_read_while_others_are_written(path):
    filled(path, 2500)
    with AssociationFile(path) as file:
        seen: list[bytes] = []
        for handle, _ in file.rows():
            if len(seen) == 1500:
                file.apply([(b"z", b"last")], [b"c%06d" % n for n in range(2000, 2500)], anchor=b"")
            seen.append(handle)
    assert seen[:2000] == [b"c%06d" % n for n in range(2000)]
    assert seen[-1] == b"z"


def test_the_name_of_the_file_may_be_any(tmp_path):
    for name in ("with blank", "100%", "a?mode=memory", "#x", "ä.db"):
        filled(tmp_path / name)
        assert len(content(tmp_path / name)) == 3


def test_after_close_nothing_is_read_or_written(path):
    file = AssociationFile(path)
    file.close()
    file.close()
    with pytest.raises(StateFileError, match="closed"):
        next(file.rows())
    with pytest.raises(StateFileError, match="closed"):
        file.apply([(b"c1", b"one")], anchor=b"")


# --- every COMMIT is on the disk ---


def test_sqlite_flushes_each_checkpoint_keeps_its_lock_and_trusts_nothing(path):
    with AssociationFile(path) as file:
        assert file._connection is not None
        pragma = {
            name: file._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "locking_mode", "cell_size_check", "trusted_schema")
        }
    assert pragma == {
        "journal_mode": "persist",
        "synchronous": 3,
        "locking_mode": "exclusive",
        "cell_size_check": 1,
        "trusted_schema": 0,
    }


def nothing(_):
    pass


class Faulty(sqlite3.Connection):
    """Calls ``Faulty.before`` with each statement of a transaction, which may raise."""

    before = staticmethod(nothing)

    def execute(self, statement, *parameters):
        Faulty.before(statement)
        return super().execute(statement, *parameters)

    def executemany(self, statement, *parameters):
        Faulty.before(statement)
        return super().executemany(statement, *parameters)


@pytest.fixture
def faulty(monkeypatch):
    connect = sqlite3.connect

    def connect_faulty(*arguments, **options):
        return connect(*arguments, factory=Faulty, **options)

    monkeypatch.setattr(sqlite3, "connect", connect_faulty)
    yield Faulty
    Faulty.before = staticmethod(nothing)


STATEMENTS = ("BEGIN", "UPDATE meta", "DELETE", "INSERT", "COMMIT")


@pytest.mark.parametrize("where", STATEMENTS)
def test_a_checkpoint_that_fails_anywhere_leaves_all_as_it_was_and_can_be_tried_again(path, faulty, where):
    filled(path)
    with AssociationFile(path) as file:
        before = list(file.rows())

        def fail(statement):
            if statement.startswith(where):
                faulty.before = staticmethod(nothing)
                raise sqlite3.OperationalError("disk I/O error")

        faulty.before = staticmethod(fail)
        with pytest.raises(StateFileError, match="disk I/O error"):
            file.apply([(b"c000001", b"new"), (b"d", b"new")], [b"c000000"], anchor=b"new")
        assert file.anchor == b"anchor"
        assert list(file.rows()) == before
        file.apply([(b"c000001", b"new"), (b"d", b"new")], [b"c000000"], anchor=b"new")
    assert content(path) == {b"c000001": b"new", b"c000002": b"blob 2", b"d": b"new"}


@pytest.mark.parametrize("where", [*STATEMENTS, "after"])
def test_a_crash_between_any_two_statements_leaves_all_of_a_checkpoint_or_nothing(
    path, tmp_path, faulty, where
):
    # Many rows, so that SQLite writes pages into the database before COMMIT.
    rows = {b"c%06d" % n: b"old" * 60 for n in range(30_000)}
    later = {b"c%06d" % n: b"new" * 60 for n in range(0, 30_000, 2)}
    copy = tmp_path / "crashed.db"

    def crash(statement):
        if statement.startswith(where):
            shutil.copy(path, copy)
            shutil.copy(f"{path}-journal", f"{copy}-journal")

    with AssociationFile(path) as file:
        file.apply(rows.items(), anchor=b"old")
        faulty.before = staticmethod(crash)
        file.apply(later.items(), anchor=b"new")
        if where == "after":
            crash("after")
    faulty.before = staticmethod(nothing)
    with AssociationFile(copy) as file:
        assert (file.generation, file.anchor) == (2, b"new" if where == "after" else b"old")
        assert dict(file.rows()) == (rows | later if where == "after" else rows)


CREATION = (
    "BEGIN",
    "PRAGMA application_id",
    "PRAGMA user_version",
    "CREATE TABLE meta",
    "INSERT INTO meta",
    "COMMIT",
)


@pytest.mark.parametrize("where", [*CREATION, "UPDATE meta"])
def test_a_crash_while_the_file_is_made_leaves_one_that_can_be_used(path, tmp_path, faulty, where):
    copy = tmp_path / "crashed.db"

    def crash(statement):
        if statement.startswith(where) and not copy.exists():
            for suffix in ("", "-journal"):
                if path.with_name(path.name + suffix).exists():
                    shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")

    faulty.before = staticmethod(crash)
    AssociationFile(path).close()
    faulty.before = staticmethod(nothing)
    with AssociationFile(copy) as file:
        assert (file.generation, list(file.rows())) == (1, [])


def test_the_crash_at_commit_leaves_a_database_that_only_its_journal_makes_whole(path, tmp_path, faulty):
    """Otherwise the test above would not show that the journal is used."""
    copy = tmp_path / "crashed.db"

    def crash(statement):
        if statement == "COMMIT":
            shutil.copy(path, copy)

    with AssociationFile(path) as file:
        file.apply(((b"c%06d" % n, b"old" * 60) for n in range(30_000)), anchor=b"old")
        faulty.before = staticmethod(crash)
        file.apply(((b"c%06d" % n, b"new" * 60) for n in range(30_000)), anchor=b"new")
    faulty.before = staticmethod(nothing)
    # Half old, half new; which is why each row alone has to be safe.
    assert {b"old" * 60, b"new" * 60} == set(content(copy).values())


def test_a_journal_that_outlived_its_file_is_not_played_into_a_new_one(path, tmp_path, faulty):
    """An operator who removes the file, as we say, may leave the journal."""
    journal = tmp_path / "left"

    def crash(statement):
        if statement == "COMMIT":
            shutil.copy(f"{path}-journal", journal)

    with AssociationFile(path) as file:
        file.apply(((b"c%06d" % n, b"old" * 60) for n in range(30_000)), anchor=b"old")
        faulty.before = staticmethod(crash)
        file.apply(((b"c%06d" % n, b"new" * 60) for n in range(30_000)), anchor=b"new")
    faulty.before = staticmethod(nothing)
    assert any(journal.read_bytes()[:8])
    path.unlink()
    shutil.copy(journal, f"{path}-journal")
    with AssociationFile(path) as file:
        assert (file.generation, list(file.rows())) == (1, [])


# --- one process at a time ---


def test_a_second_opener_is_refused_at_once_and_the_first_goes_on(path):
    with AssociationFile(path) as file:
        for _ in range(2):
            error = refusal(path)
            assert error.code == "IN_USE"
            assert "in use by another process" in str(error)
        file.apply([(b"c1", b"one")], anchor=b"")
        assert file.generation == 1
    assert content(path) == {b"c1": b"one"}


def test_a_program_that_has_the_database_open_is_an_error_at_the_start(path):
    filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    error = refusal(path)
    assert error.code.startswith("SQLITE_BUSY")
    assert "in use by another program" in str(error)
    other.close()
    with AssociationFile(path) as file:
        assert file.generation == 2


def test_other_programs_are_kept_out_of_an_open_file(path):
    with AssociationFile(path) as file:
        file.apply([(b"c1", b"one")], anchor=b"")
        other = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT * FROM association").fetchall()
        other.close()


def test_a_file_that_another_process_took_over_takes_no_checkpoint(path):
    with AssociationFile(path) as file:
        # What two processes look like where locks mean nothing. An error makes it look again.
        assert file._connection is not None
        file._connection.close()
        file._connection = None
        other = sqlite3.connect(path)
        other.execute("UPDATE meta SET generation = generation + 1")
        other.commit()
        other.close()
        with pytest.raises(StateFileError) as caught:
            file.apply([(b"c1", b"one")], anchor=b"")
        assert caught.value.code == "FENCED"
    assert content(path) == {}


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_file_that_is_gone_from_its_place_takes_no_checkpoint(path, tmp_path, replaced):
    filled(path)
    old = tmp_path / "old"
    shutil.copy(path, old)
    with AssociationFile(path) as file:
        path.unlink()
        if replaced:
            old.rename(path)
        with pytest.raises(StateFileError, match="removed or replaced while in use"):
            file.apply([(b"c1", b"one")], anchor=b"")


# --- what is refused ---


def test_file_and_journal_are_for_their_owner_only_whatever_the_umask(path):
    before = os.umask(0)
    try:
        filled(path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(path.parent)} == {0o600}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_use_is_refused(path, mode):
    filled(path)
    path.chmod(mode)
    assert f"mode 0{mode:o}" in str(refusal(path))
    assert f"remedy: chmod 600 {path}" in str(refusal(path))
    path.chmod(0o600)
    assert len(content(path)) == 3


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_directory_in_which_others_may_write_is_refused(path, mode):
    path.parent.chmod(mode)
    assert refusal(path).code == "MODE"
    assert f"remedy: chmod go-w {path.parent}" in str(refusal(path))
    assert not path.exists()
    path.parent.chmod(0o755)
    assert content(path) == {}


def test_a_file_of_another_user_is_refused(path, monkeypatch):
    filled(path)
    monkeypatch.setattr(exclusive, "_require_safe_directory", nothing)
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    assert refusal(path).code == "OWNER"
    assert "belongs to user" in str(refusal(path))


def test_a_directory_of_another_user_is_refused_unless_it_is_roots(path, monkeypatch):
    if os.geteuid() == 0:
        os.chown(path.parent, 12_345, -1)
    else:
        stranger = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
    assert refusal(path).code == "OWNER"
    assert "its directory belongs to user" in str(refusal(path))
    assert not path.exists()


def test_links_are_refused(path, tmp_path):
    filled(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert "is a link" in str(refusal(link))
    link.unlink()
    link.hardlink_to(path)
    assert "has 2 names" in str(refusal(link))
    link.unlink()
    assert len(content(path)) == 3


def test_what_is_no_file_is_refused_without_waiting(path):
    os.mkfifo(path)
    path.chmod(0o600)
    assert "not a regular file" in str(refusal(path))
    path.unlink()
    path.mkdir()
    assert "is a directory" in str(refusal(path))


def test_a_directory_that_is_not_there_is_an_error_that_says_so(path):
    assert "no such file or directory" in str(refusal(path / "in" / "nothing"))


def test_an_empty_file_is_a_new_one(path):
    path.touch(0o600)
    assert content(path) == {}


def test_a_file_that_is_no_database_is_refused_and_kept(path):
    path.write_bytes(b"meter-17:0f1e2d3c4b5a69788796a5b4c3d2e1f0\n" * 100)
    path.chmod(0o600)
    before = path.read_bytes()
    assert "is no SQLite database; remedy: name another file" in str(refusal(path))
    assert path.read_bytes() == before


def foreign(path, *statements):
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()
    path.chmod(0o600)
    return path.read_bytes()


def test_a_database_of_another_program_is_refused_and_kept(path):
    before = foreign(path, "PRAGMA journal_mode = WAL", "CREATE TABLE wallet (coins)")
    assert "database of another program; remedy: name another file" in str(refusal(path))
    assert path.read_bytes() == before


def test_another_format_is_refused_and_kept(path):
    filled(path)
    before = foreign(path, f"PRAGMA user_version = {FORMAT + 1}")
    assert "has format 2, and this version knows 1" in str(refusal(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER back AFTER UPDATE ON meta BEGIN UPDATE meta SET generation = 1; END",
        "CREATE VIEW other AS SELECT * FROM meta",
        "CREATE INDEX other ON association (blob)",
        "DROP TABLE meta",
        "ALTER TABLE association ADD COLUMN other",
    ],
)
def test_other_tables_and_triggers_are_refused(path, statement):
    filled(path)
    foreign(path, statement)
    assert "has other tables than it should" in str(refusal(path))


def test_ours_without_its_line_of_meta_is_damaged(path):
    filled(path)
    foreign(path, "DELETE FROM meta")
    assert "is damaged" in str(refusal(path))


def test_a_write_ahead_log_that_somebody_switched_on_is_switched_off(path):
    filled(path)
    foreign(path, "PRAGMA journal_mode = WAL")
    assert len(content(path)) == 3
    assert not (path.parent / f"{path.name}-wal").exists()


def test_rows_that_are_not_in_order_are_refused(path):
    """Of two rows of one association the older might be found."""
    filled(path)
    data = path.read_bytes()
    assert data.count(b"c000002blob 2") == 1
    path.write_bytes(data.replace(b"c000002blob 2", b"c000001blob 2"))
    assert "is damaged" in str(refusal(path))


def test_rows_that_are_no_bytes_are_refused(path):
    filled(path)
    foreign(path, "PRAGMA ignore_check_constraints = ON", "UPDATE association SET blob = 'text'")
    assert "is damaged" in str(refusal(path))


def test_tables_whose_names_are_not_even_text_are_refused(path):
    filled(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE meta", b"CREATE \x80\x80\x80\x80\x80 meta"))
    assert "is damaged" in str(refusal(path))


@pytest.mark.parametrize(
    ("old", "new"), [(b"c000001blob 1", b"c000001blob 7"), (b"c000002blob", b"c999999blob")]
)
def test_a_row_with_other_bytes_is_left_out_and_counted(path, old, new):
    filled(path)
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with AssociationFile(path) as file:
        assert len(list(file.rows())) == 2
        assert file.rows_damaged == 1
        # Repaired by what comes next.
        file.apply([(b"c000001", b"newer")], anchor=b"")
        assert (b"c000001", b"newer") in list(file.rows())


draw = random.Random(2)
ROWS = sorted((b"c" + draw.randbytes(8), draw.randbytes(190)) for _ in range(300))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "associations.db"
    with AssociationFile(path) as file:
        file.apply(ROWS, anchor=b"anchor")
    return path


@settings(max_examples=60)
@example(20 * 4096 - 1)
@given(st.integers(1, 19).map(lambda pages: 4096 * pages) | st.integers(1, 20 * 4096 - 1))
def test_a_truncated_file_is_refused(whole, tmp_path_factory, size):
    assert whole.stat().st_size == 20 * 4096
    path = tmp_path_factory.mktemp("cut") / "associations.db"
    path.write_bytes(whole.read_bytes()[:size])
    path.chmod(0o600)
    assert "remedy: " in str(refusal(path))


@settings(max_examples=100)
@given(st.integers(0, 20 * 4096 - 1), st.sampled_from([1, 8, 512, 4096]), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_refused_or_gives_the_rows_that_are_not_damaged(
    whole, tmp_path_factory, place, size, junk
):
    damaged = bytearray(whole.read_bytes())
    damaged[place : place + size] = (junk * size)[: min(size, len(damaged) - place)]
    path = tmp_path_factory.mktemp("damaged") / "associations.db"
    path.write_bytes(damaged)
    path.chmod(0o600)
    try:
        with AssociationFile(path) as file:
            rows = list(file.rows())
            damaged_rows = file.rows_damaged
    except StateFileError as error:
        assert "remedy: " in str(error) or "cannot be used" in str(error)
        return
    assert rows == [(handle, blob) for handle, blob in ROWS if handle in dict(rows)]
    assert len(rows) + damaged_rows == len(ROWS)


def test_a_disk_without_room_is_a_clear_error_at_the_start(path, faulty):
    def full(statement):
        if statement.startswith("UPDATE meta"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error

    faulty.before = staticmethod(full)
    error = refusal(path)
    assert error.code == "SQLITE_FULL"
    assert "database or disk is full (SQLITE_FULL)" in str(error)
    faulty.before = staticmethod(nothing)
    with AssociationFile(path) as file:
        assert file.generation == 1


def test_the_constants_of_the_format_have_not_changed():
    """A change needs another FORMAT, or files of the version before would be misread."""
    assert (APPLICATION_ID, FORMAT, sorted(TABLES)) == (0x7344544C, 1, ["association", "meta"])
