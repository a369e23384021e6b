"""What `dtls-endpoint check` says of files that are broken: exit status 2, and for each mistake a line with file, place and remedy."""

import errno
import os
import socket
import sqlite3
from collections.abc import Callable

import pytest

from endpoint.advice import with_remedy
from endpoint.cli import main
from tests.fleet_files import DAY, EXPIRED, NOW, Files

KEY = "00112233445566778899aabbccddeeff"
PSK = '[credentials]\npsk_file = "psk.txt"\n'
CERTIFIED = '[credentials]\ncertificate = "server.pem"\nprivate_key = "server.key"\nclient_ca = "ca.pem"\n'
RAW = '[credentials]\nraw_public_key = "raw.key"\nraw_public_keys = "devices.txt"\n'
SAVED = '[state]\nkey_file = "state.key"\n'


class Home(Files):
    """A directory in which everything is right, to be broken."""

    def __init__(self, path):
        super().__init__(path)
        self.config(PSK)
        self.write("psk.txt", f"dev1:{KEY}\n", 0o600)
        self.write("state.key", f"{bytes(range(32)).hex()}\n", 0o600)

    def config(self, text):
        self.write("endpoint.toml", text)

    def certificates(self, more=""):
        self.ca()
        self.server()
        self.config(CERTIFIED + more)

    def raw_keys(self):
        self.raw_key("raw")
        self.write("devices.txt", "meter-1:MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n", 0o644)
        self.config(RAW)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path)


# --- the ways to break things -------------------------------------------------------------------------


def configuration_is_a_directory(home):
    (home.path / "endpoint.toml").unlink()
    (home.path / "endpoint.toml").mkdir()


def configuration_is_empty(home):
    home.config("")


def configuration_is_no_toml(home):
    home.config(PSK + "[listen\n")


def configuration_is_no_utf8(home):
    home.write("endpoint.toml", PSK.encode() + b'[log]\nlevel = "\xff"\n')


def key_is_there_twice(home):
    home.config(PSK + "[listen]\nport = 1\nport = 2\n")


def key_is_unknown(home):
    home.config(PSK + "[listen]\nprot = 1\n")


def table_is_unknown(home):
    home.config(PSK + "[listne]\nport = 1\n")


def value_is_of_the_wrong_kind(home):
    home.config(PSK + '[listen]\nport = "5684"\n')


def value_is_out_of_range(home):
    home.config(PSK + "[dtls]\nmtu = 100\n")


def value_is_a_typing_mistake(home):
    home.config(PSK + '[forward]\nkind = "jsnol"\n')


def places_contradict(home):
    home.config(PSK + '[listen]\naddress = "::"\nalso = ["127.0.0.1:5684"]\n')


def address_has_its_port(home):
    home.config(PSK + '[listen]\naddress = "127.0.0.1:5684"\n')


def no_credentials(home):
    home.config("[listen]\nport = 1\n")


def psk_file_is_missing(home):
    (home.path / "psk.txt").unlink()


def psk_file_is_readable_by_others(home):
    (home.path / "psk.txt").chmod(0o644)


def psk_line_has_no_key(home):
    home.write("psk.txt", f"dev1:{KEY}\ndev2\n", 0o600)


def psk_key_is_no_hex(home):
    home.write("psk.txt", "dev1:secret\n", 0o600)


def psk_identity_has_three_keys(home):
    home.write("psk.txt", "".join(f"dev1:{digit * 32}\n" for digit in "123"), 0o600)


def psk_directory_has_an_identity_twice(home):
    (home.path / "psk.txt").unlink()
    (home.path / "psk.txt").mkdir(mode=0o700)
    home.write("psk.txt/a.psk", f"dev1:{KEY}\n", 0o600)
    home.write("psk.txt/b.psk", f"dev1:{KEY[::-1]}\n", 0o600)


def certificate_is_missing(home):
    home.certificates()
    (home.path / "server.pem").unlink()


def certificate_is_no_pem(home):
    home.certificates()
    home.write("server.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")


def certificate_has_expired(home):
    home.certificates()
    home.server(**EXPIRED)


def key_is_of_another_certificate(home):
    home.certificates()
    home.server("other")
    home.write("server.key", (home.path / "other.key").read_bytes(), 0o600)


def key_is_readable_by_others(home):
    home.certificates()
    (home.path / "server.key").chmod(0o640)


def key_is_a_certificate(home):
    home.certificates()
    home.write("server.key", (home.path / "server.pem").read_bytes(), 0o600)


def ca_is_empty(home):
    home.certificates()
    home.write("ca.pem", "")


def ca_can_be_written_by_others(home):
    home.certificates()
    (home.path / "ca.pem").chmod(0o666)


def revocation_list_has_expired(home):
    home.certificates('client_crl = "crl.pem"\n')
    home.crl(start=NOW - 3 * DAY, end=NOW - DAY)


def revocation_list_is_a_certificate(home):
    home.certificates('client_crl = "crl.pem"\n')
    home.write("crl.pem", (home.path / "ca.pem").read_bytes())


def raw_key_is_cut_off(home):
    home.raw_keys()


def state_key_is_too_short(home):
    home.config(PSK + SAVED + 'handoff_file = "handoff"\n')
    home.write("state.key", "00112233\n", 0o600)


def state_has_no_key(home):
    home.config(PSK + '[state]\nstore = "sqlite"\nfile = "a.db"\n')


def state_file_is_none(home):
    (home.path / "state").mkdir(mode=0o700)
    home.config(PSK + SAVED + 'store = "sqlite"\nfile = "state/a.db"\n')
    home.write("state/a.db", "something else", 0o600)


def state_file_is_of_another_program(home):
    (home.path / "state").mkdir(mode=0o700)
    home.config(PSK + SAVED + 'store = "sqlite"\nfile = "state/a.db"\n')
    with sqlite3.connect(home.path / "state" / "a.db") as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    (home.path / "state" / "a.db").chmod(0o600)


def admin_socket_is_a_file(home):
    home.config(PSK + '[state]\nadmin_socket = "psk.txt"\n')


def admin_socket_is_nowhere(home):
    home.config(PSK + '[state]\nadmin_socket = "run/admin.sock"\n')


def admin_socket_has_too_long_a_name(home):
    home.config(PSK + f'[state]\nadmin_socket = "{"x" * 120}"\n')


def two_stores_of_keys(home):
    home.config(PSK + 'psk_database = "keys.db"\n')


def hand_over_file_has_no_directory_key(home):
    home.config(PSK + '[state]\nhandoff_file = "handoff"\n')


def psk_file_is_a_socket(home):
    (home.path / "psk.txt").unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("psk.txt")
        (home.path / "psk.txt").chmod(0o600)


def forward_has_no_target(home):
    home.config(PSK + '[forward]\nkind = "udp"\n')


def metrics_port_is_none(home):
    home.config(PSK + '[metrics]\nport = "on"\n')


def network_is_none(home):
    home.config(PSK + '[quotas]\nnetworks = ["10.0.0.0/33"]\n')


def url_has_a_password(home):
    home.config(f'[credentials]\npsk_valkey = "redis://u:{KEY}@localhost/0"\n')


def two_sinks_have_one_name(home):
    sink = '[[forward.sinks]]\nkind = "echo"\nname = "a"\n'
    home.config(PSK + sink + sink)


def lookups_have_no_time(home):
    home.config(PSK + "[credentials.lookup]\ntimeout = 0\n")


def module_is_not_there(home):
    home.config('[credentials]\npsk_module = "no.such:thing"\n')


def directory_of_usage_is_not_there(home):
    home.config(PSK + '[state]\nusage_file = "nowhere/usage"\n')


def captures_cannot_be_switched(home):
    home.config(PSK + '[state]\ncapture_directory = "captures"\n')


def policy_is_a_typing_mistake(home):
    home.config(PSK + 'when_removed = "kill"\n')


def place_has_no_port(home):
    home.config(PSK + '[listen]\nalso = ["192.0.2.1"]\n')


BROKEN: list[tuple[Callable[[Home], None], list[tuple[str, str]]]] = [
    # What is broken, and of each line: file and place, and the words that say what to do.
    (configuration_is_a_directory, [("endpoint.toml: cannot be read", "remedy: name a file")]),
    (configuration_is_empty, [("endpoint.toml: credentials: ", "remedy: add  [credentials]  and below it ")]),
    (configuration_is_no_toml, [("endpoint.toml: line 3, column 8: ", "remedy: correct that line; ")]),
    (configuration_is_no_utf8, [("endpoint.toml: line 4: ", "remedy: save the file as UTF-8")]),
    (key_is_there_twice, [("endpoint.toml: line 5, column 9: ", "remedy: it is there twice; leave one out")]),
    (key_is_unknown, [("endpoint.toml: listen.prot: ", 'did you mean "port"?')]),
    (table_is_unknown, [("endpoint.toml: listne: ", 'did you mean "listen"?')]),
    (value_is_of_the_wrong_kind, [("endpoint.toml: listen.port: ", "a whole number is needed, ")]),
    (value_is_out_of_range, [("endpoint.toml: dtls.mtu: ", "is not within 256 to 65507 bytes")]),
    (value_is_a_typing_mistake, [("endpoint.toml: forward.kind: ", 'did you mean "jsonl"?')]),
    (places_contradict, [("endpoint.toml: listen.also: ", "remedy: leave it out, or ")]),
    (place_has_no_port, [("endpoint.toml: listen.also: ", 'remedy: "192.0.2.1:5684" or ')]),
    (address_has_its_port, [("endpoint.toml: listen.address: ", "a port belongs in listen.port")]),
    (no_credentials, [("endpoint.toml: credentials: ", "remedy: add  [credentials]  and below it ")]),
    (psk_file_is_missing, [("psk.txt: ", "remedy: correct the name, or put the file there")]),
    (psk_file_is_readable_by_others, [("psk.txt: ", "remedy: chmod 600 psk.txt")]),
    (psk_line_has_no_key, [("psk.txt:2: ", "not identity:hexkey")]),
    (psk_key_is_no_hex, [("psk.txt:1: ", "remedy: `openssl rand -hex 16` makes a key")]),
    (psk_identity_has_three_keys, [("psk.txt:3: ", "remedy: remove the one that no device has any more")]),
    (
        psk_directory_has_an_identity_twice,
        [("psk.txt/b.psk:1: ", "remedy: put both lines into one of the two")],
    ),
    (certificate_is_missing, [("server.pem: ", "remedy: correct the name, or put the file there")]),
    (certificate_is_no_pem, [("server.pem: ", "remedy: it is damaged; copy it there again")]),
    (certificate_has_expired, [("server.pem: ", "remedy: renew it")]),
    (key_is_of_another_certificate, [("server.pem: ", "remedy: put the two that belong together here")]),
    (key_is_readable_by_others, [("server.key: ", "remedy: chmod 600 server.key")]),
    (key_is_a_certificate, [("server.key: ", "it should have -----BEGIN PRIVATE KEY-----; remedy: ")]),
    (ca_is_empty, [("ca.pem: ", "it should have -----BEGIN CERTIFICATE-----; remedy: ")]),
    (ca_can_be_written_by_others, [("ca.pem: ", "remedy: chmod go-w ca.pem")]),
    (revocation_list_has_expired, [("crl.pem: ", "remedy: ")]),
    (revocation_list_is_a_certificate, [("crl.pem: ", "remedy: ")]),
    (raw_key_is_cut_off, [("devices.txt:1: ", "remedy: it is damaged; copy it from the device again")]),
    (state_key_is_too_short, [("state.key:1: ", "remedy: openssl rand -hex 32")]),
    (state_has_no_key, [("endpoint.toml: state.key_file: ", 'remedy: add  key_file = "state.key"')]),
    (hand_over_file_has_no_directory_key, [("endpoint.toml: state.key_file: ", "remedy: add ")]),
    (
        state_file_is_none,
        [("endpoint.toml: state.file: state/a.db: ", "remedy: name another file, or remove it")],
    ),
    (state_file_is_of_another_program, [("endpoint.toml: state.file: ", "remedy: name another file")]),
    (admin_socket_is_a_file, [("endpoint.toml: state.admin_socket: ", "remedy: name another")]),
    (admin_socket_is_nowhere, [("endpoint.toml: state.admin_socket: ", "remedy: make it, ")]),
    (
        admin_socket_has_too_long_a_name,
        [("endpoint.toml: state.admin_socket: ", "remedy: a shorter directory")],
    ),
    (
        two_stores_of_keys,
        [
            ("endpoint.toml: credentials.psk_database: ", "remedy: remove one"),
            ("keys.db: ", "remedy: make one: dtls-endpoint keys add"),
        ],
    ),
    (forward_has_no_target, [("endpoint.toml: forward", "remedy: ")]),
    (metrics_port_is_none, [("endpoint.toml: metrics.port: ", 'neither a whole number nor "off"')]),
    (
        network_is_none,
        [('endpoint.toml: quotas.networks."10.0.0.0/33": ', 'remedy: write it like "100.64.0.0/10"')],
    ),
    (
        url_has_a_password,
        [("endpoint.toml: credentials.psk_valkey: ", "remedy: put them under username and ")],
    ),
    (two_sinks_have_one_name, [('endpoint.toml: forward.sinks."a".name: ', "remedy: give each its own")]),
    (
        lookups_have_no_time,
        [("endpoint.toml: credentials.lookup.timeout: ", "is not within 0.01 to 60 seconds")],
    ),
    (
        module_is_not_there,
        [("endpoint.toml: credentials.psk_module: no.such:thing: ", "remedy: install it where")],
    ),
    (
        directory_of_usage_is_not_there,
        [("endpoint.toml: state.usage_file: ", "remedy: make it, for the service")],
    ),
    (
        captures_cannot_be_switched,
        [("endpoint.toml: state.capture_directory: ", "remedy: add  admin_socket = ")],
    ),
    (policy_is_a_typing_mistake, [("endpoint.toml: credentials.when_removed: ", "is not one of keep, ")]),
    (psk_file_is_a_socket, [("psk.txt: ", "remedy: name a file, or a directory of files")]),
]


@pytest.mark.parametrize(("breaks", "expected"), BROKEN, ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_file_is_named_with_the_place_and_what_to_do(home, capsys, breaks, expected):
    breaks(home)
    assert main(["check", "--config", "endpoint.toml"]) == 2
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == len(expected), told.err
    for line, (where, remedy) in zip(lines, expected, strict=True):
        assert line.startswith(where)
        assert remedy in line
    assert told.out == ""
    assert KEY not in told.err
    assert "Traceback" not in told.err


def test_before_it_is_broken_it_is_right(home, capsys):
    for make in (lambda: None, home.certificates):
        make()
        assert main(["check", "--config", "endpoint.toml"]) == 0
    assert capsys.readouterr().err == ""


def test_several_mistakes_are_told_at_once(home, capsys):
    home.config(PSK + '[listen]\nprot = 1\nport = "x"\n[log]\nlevel = "loud"\n')
    psk_key_is_no_hex(home)
    assert main(["check", "--config", "endpoint.toml"]) == 2
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "listen.prot",
        "listen.port",
        "log.level",
        'the key of "dev1" is not hexadecimal; remedy',
    ]


def test_a_file_that_its_reader_may_not_read_says_whose_it_should_be(home, capsys, monkeypatch):
    # As root every file can be read, so the system's answer is made here.
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("endpoint.files.os.open", refused)
    assert main(["check", "--config", "endpoint.toml"]) == 2
    assert capsys.readouterr().err == (
        "psk.txt: cannot be read: permission denied; remedy: make the service's user its owner: chown, and chmod 600\n"
    )


def test_what_has_its_remedy_keeps_it():
    line = "a: cannot be read: is a directory; remedy: another"
    assert with_remedy(line) == line
    assert with_remedy("a: something new") == "a: something new"
