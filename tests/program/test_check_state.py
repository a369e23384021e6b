"""``check``: what it says of associations that move, sleep and outlive the process, and of where they are kept."""

import pytest

from endpoint.cli import main


@pytest.fixture
def home(tmp_path):
    for name, content in (
        ("psk.txt", "meter-1:00112233445566778899aabbccddeeff\n"),
        ("state.key", "5a" * 32),
    ):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture
def check(home, monkeypatch, capsys):
    """Its exit status, and the lines that it writes to standard output and standard error."""

    def checked():
        monkeypatch.chdir(home)
        status = main(["check", "--config", "endpoint.toml"])
        output, errors = capsys.readouterr()
        return status, output.splitlines(), errors.splitlines()

    return checked


def configure(home, more):
    (home / "endpoint.toml").write_text(f'[credentials]\npsk_file = "psk.txt"\n{more}')


@pytest.mark.parametrize(
    ("state", "lines"),
    [
        (
            "",
            [
                "freezes an association after 300 s of silence",
                (
                    "a restart keeps associations if the service manager keeps descriptors (FileDescriptorStoreMax= in the "
                    "unit); else a stop tells every device, and they handshake again"
                ),
            ],
        ),
        (
            '[state]\nfreeze_after = "never"\nhandoff_file = "x/h"\nkey_file = "state.key"\nhandoff_max_age = 43200',
            [
                "never freezes an association",
                (
                    "a restart keeps all associations, a crash none: SIGTERM writes them to x/h, sealed under the first of "
                    "1 key, and the next start takes them back if that is within 0.5 days"
                ),
                "note: x/h: its directory is not there",
            ],
        ),
        (
            '[state]\nstore = "sqlite"\nfile = "a.db"\nkey_file = "state.key"',
            [
                (
                    "a restart, and a crash too, keeps all associations: written to a.db every 1 s, sealed under the first "
                    "of 1 key"
                )
            ],
        ),
    ],
)
def test_it_says_what_a_restart_keeps_and_why(home, check, state, lines):
    configure(home, state)
    status, output, errors = check()
    assert (status, errors) == (0, [])
    for line in lines:
        assert line in output


@pytest.mark.parametrize(
    ("state", "made", "mistake"),
    [
        (
            'file = "a.db"',
            "a.db",
            "file: a.db: is no SQLite database; remedy: name another file, or remove it",
        ),
        ('file = "x"', "x/", "file: x: is not a regular file; remedy: name another"),
        (
            'file = "x/a.db"',
            None,
            "file: x/a.db: cannot be used: no such file or directory; remedy: make its directory, for the service only",
        ),
        (
            'file = "a.db"\nadmin_socket = "psk.txt"',
            None,
            "admin_socket: psk.txt: is there already, and no socket; remedy: name another",
        ),
        (
            'file = "a.db"\nadmin_socket = "x/admin"',
            None,
            "admin_socket: x/admin: its directory is not there; remedy: make it, for the service only",
        ),
    ],
)
def test_it_finds_what_would_keep_a_service_from_starting_and_changes_nothing(
    home, check, state, made, mistake
):
    configure(home, f'[state]\nstore = "sqlite"\nkey_file = "state.key"\n{state}')
    if made and made.endswith("/"):
        (home / made).mkdir()
    elif made:
        (home / made).touch(mode=0o600)
        (home / made).write_text("something else")
    before = sorted(home.iterdir())
    assert check() == (2, [], [f"endpoint.toml: state.{mistake}"])
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize(
    ("dtls", "lines"),
    [
        (
            "",
            [
                (
                    "gives a connection ID of 8 bytes to devices that offer it; asks at a new address first (basic); of "
                    "devices that do not know that, a new address is believed at once"
                ),
                "ends an association after 1 day of silence, one with a connection ID after 90 days of silence",
            ],
        ),
        (
            (
                '[dtls.connection_id]\nprefix = "07"\nreturn_routability = "off"\npath_policy = "never"\n'
                '[dtls.limits]\nidle_timeout = "never"\nidle_timeout_with_connection_id = 60'
            ),
            [
                (
                    "gives a connection ID of 8 bytes, which begins with 07, to devices that offer it; a new address is "
                    "never used"
                ),
                "ends an association never, one with a connection ID after 60 s of silence",
            ],
        ),
        (
            '[dtls]\nconnection_id = "off"',
            ["gives no connection IDs: a device whose address changes has to handshake again"],
        ),
    ],
)
def test_it_says_what_becomes_of_devices_that_move_and_of_silent_ones(home, check, dtls, lines):
    configure(home, dtls)
    status, output, errors = check()
    assert (status, errors) == (0, [])
    for line in lines:
        assert line in output


def test_it_says_what_is_wrong_with_what_was_handed_over(home, check):
    (home / "handoff").touch(mode=0o600)
    (home / "handoff").write_text("something else")
    configure(home, '[state]\nkey_file = "state.key"\nhandoff_file = "handoff"')
    assert check()[1][-1] == (
        "note: handoff: holds no associations; remedy: name another file, or remove it; the next start goes on without"
    )
