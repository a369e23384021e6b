"""What ``check`` says of keys in use, of their rotation, and of what becomes of associations."""

import random

import pytest

from endpoint.cli import main
from endpoint.config import ConfigFileError, parse_config
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.strength import MAX_NOTES
from endpoint.usage_file import UsageFile

DRAW = random.Random(3)
GOOD, NEXT = DRAW.randbytes(32), DRAW.randbytes(32)
WEAK = bytes.fromhex("00112233445566778899aabbccddeeff")


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Its exit status, and the lines that it writes to standard output and standard error."""
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)

    def checked(more="", *, status=0, keys="psk_file"):
        name = "psk.txt" if keys == "psk_file" else "psk.db"
        (tmp_path / "endpoint.toml").write_text(f'[credentials]\n{keys} = "{name}"\n{more}')
        assert main(["check", "--config", "endpoint.toml"]) == status
        output, errors = capsys.readouterr()
        return (errors if status else output).splitlines()

    return checked


def config_text(more):
    return f'[credentials]\npsk_file = "psk.txt"\n{more}'.encode()


def write(tmp_path, *lines):
    (tmp_path / "psk.txt").touch(0o600)
    (tmp_path / "psk.txt").write_text("".join(f"{identity}:{key.hex()}\n" for identity, key in lines))


def notes(lines):
    return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


def test_weak_keys_are_loaded_and_told(tmp_path, check):
    write(tmp_path, ("a", GOOD), ("b", WEAK), ("b", NEXT), ("c", GOOD), ("c", bytes(16)))
    told = [note for note in notes(check('[state]\nusage_file = "u.db"')) if "key of" in note]
    assert told == [
        'psk.txt: the current key of "b" counts up or down; remedy: dtls-endpoint keys rotate',
        'psk.txt: the next key of "c" repeats one byte; remedy: dtls-endpoint keys rotate',
    ]


def test_weak_keys_of_a_database_are_told_too(tmp_path, check):
    with KeyDatabase(tmp_path / "psk.db", create=True) as database, database.change() as changes:
        for number in range(MAX_NOTES + 5):
            changes.set(b"m%02d" % number, [WEAK])
        changes.set(b"good", [GOOD])
    told = notes(check(keys="psk_database"))
    assert told[0] == 'psk.db: the current key of "m00" counts up or down; remedy: dtls-endpoint keys rotate'
    assert told[MAX_NOTES : MAX_NOTES + 1] == ["psk.db: and 5 more weak keys"]


def test_a_rotation_whose_end_nobody_could_see_is_told(tmp_path, check):
    write(tmp_path, ("a", GOOD), ("a", NEXT))
    assert any("nothing will say who has used the next key" in note for note in notes(check()))
    for more in ('usage_file = "u.db"', 'admin_socket = "a.sock"'):
        assert not any("nothing will say" in note for note in notes(check(f"[state]\n{more}")))


def test_it_says_what_becomes_of_associations_where_that_was_chosen(tmp_path, check):
    write(tmp_path, ("a", GOOD))
    assert not [line for line in check() if line.startswith("associations of")]
    lines = check('when_removed = "drop"\nwhen_rotated = "rehandshake"\nrehandshake_spread = 60')
    assert [line for line in lines if line.startswith("associations of")] == [
        "associations of removed identities are ended by a reload, frozen ones too",
        (
            "associations of keys that were taken away get close_notify within 60 s of a reload, "
            "frozen ones when they wake"
        ),
    ]


def test_the_file_of_key_use_is_looked_at_and_left_alone(tmp_path, check):
    write(tmp_path, ("a", GOOD))
    more = '[state]\nusage_file = "usage.db"'
    assert "writes to usage.db which key each device used last" in check(more)
    assert not (tmp_path / "usage.db").exists()
    UsageFile(tmp_path / "usage.db", create=True).close()
    check(more)
    (tmp_path / "usage.db").chmod(0o640)
    (line,) = check(more, status=2)
    assert line.startswith("endpoint.toml: state.usage_file: ")
    assert line.endswith("remedy: chmod 600 usage.db")
    (line,) = check('[state]\nusage_file = "missing/usage.db"', status=2)
    assert "its directory is not there" in line


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            'when_removed = "kill"',
            "credentials.when_removed: the value is not one of keep, rehandshake, drop",
        ),
        (
            'when_rotated = "restart"',
            "credentials.when_rotated: the value is not one of keep, rehandshake, drop",
        ),
        ("rehandshake_spread = -1", "credentials.rehandshake_spread: "),
        ("rehandshake_spread = 100000", "credentials.rehandshake_spread: "),
        ("[state]\nusage_file = 7", "state.usage_file: "),
        (
            '[state]\nusage_file = "same"\nadmin_socket = "same"',
            "state.admin_socket: is the same file as usage_file; remedy: name another",
        ),
    ],
)
def test_wrong_values_are_told_with_their_keys(tmp_path, more, problem):
    with pytest.raises(ConfigFileError) as caught:
        parse_config(config_text(more), name="endpoint.toml", directory=tmp_path)
    (told,) = caught.value.problems
    assert told.startswith(f"endpoint.toml: {problem}")
