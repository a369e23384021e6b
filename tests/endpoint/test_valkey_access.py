"""How a Valkey server is named, and the files that are needed to get in."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from endpoint.tables.valkey import ValkeyAddress, ValkeyKeys
from endpoint.valkey_access import AccessError, load_access

# --- files of the access --------------------------------------------------------------------------------


def private(path, content):
    path.touch(mode=0o600)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_password_is_the_one_line_of_its_file(tmp_path):
    for content in ("s3cret", "s3cret\n", "s3cret\r\n"):
        login = ValkeyKeys(username="u", password_file=private(tmp_path / "pw", content))
        access = load_access("unix:/s", login)
        assert access.password == "s3cret"
        assert "s3cret" not in repr(access)


@pytest.mark.parametrize(
    ("content", "mode", "what"),
    [
        ("s3cret", 0o640, "mode 0640 gives group or others access to the password; remedy: chmod 600 {path}"),
        ("", 0o600, "holds no password"),
        ("\n", 0o600, "holds no password"),
        (b"\xff", 0o600, "is not UTF-8"),
        ("a\nb\n", 0o600, "should hold one line of at most 1024 bytes: the password"),
        ("x" * 1025, 0o600, "should hold one line of at most 1024 bytes: the password"),
        (None, 0o600, "cannot be read: no such file or directory"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_told_with_the_remedy(tmp_path, content, mode, what):
    path = tmp_path / "pw"
    if content is not None:
        private(path, content).chmod(mode)
    with pytest.raises(AccessError) as caught:
        load_access("unix:/s", ValkeyKeys(password_file=path))
    assert caught.value.problems == (f"{path}: {what.format(path=path)}",)


def test_files_for_tls_that_cannot_be_used_are_told(tmp_path):
    ca = trustme.CA()
    one, other = ca.issue_cert("one"), ca.issue_cert("other")
    private(tmp_path / "pem", one.cert_chain_pems[0].bytes())
    private(tmp_path / "key", one.private_key_pem.bytes())
    private(tmp_path / "wrong.key", other.private_key_pem.bytes())
    private(tmp_path / "junk", "-----BEGIN CERTIFICATE-----")
    private(tmp_path / "open.key", one.private_key_pem.bytes()).chmod(0o644)

    def problems(**files):
        with pytest.raises(AccessError) as caught:
            load_access("valkeys://v", ValkeyKeys(**{name: tmp_path / file for name, file in files.items()}))
        return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]

    assert problems(ca_file="junk") == ["junk: holds no certificate that can be used"]
    assert problems(certificate="pem", private_key="wrong.key") == [
        f"pem: with the key in {tmp_path}/wrong.key: key values mismatch"
    ]
    assert problems(ca_file="none", certificate="none", private_key="open.key") == [
        "none: cannot be read: no such file or directory",
        "none: cannot be read: no such file or directory",
        f"open.key: mode 0644 gives group or others access to the key; remedy: chmod 600 {tmp_path}/open.key",
    ]
    access = load_access(
        "valkeys://v", ValkeyKeys(certificate=tmp_path / "pem", private_key=tmp_path / "key")
    )
    assert access.tls is not None
    assert access.tls.verify_mode is ssl.CERT_REQUIRED
    assert access.tls.check_hostname


# --- addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown", "clear"),
    [
        ("unix:/run/v.sock", "unix:/run/v.sock", False),
        ("unix:///run/v.sock", "unix:/run/v.sock", False),
        ("/run/v.sock", "unix:/run/v.sock", False),
        ("valkey://keys.example", "valkey://keys.example:6379", True),
        ("redis://keys.example:7000/", "valkey://keys.example:7000", True),
        ("rediss://[2001:db8::1]:7000", "valkeys://[2001:db8::1]:7000", False),
        ("valkey://127.0.0.1", "valkey://127.0.0.1:6379", False),
        ("valkey://[::1]", "valkey://[::1]:6379", False),
    ],
)
def test_addresses_that_are_possible(text, shown, clear):
    address = ValkeyAddress.parse(text)
    assert str(address) == shown
    assert address.crosses_network_in_clear is clear
    assert ValkeyAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "keys.example",
        "keys.example:6379",
        "http://x",
        "valkey://",
        "valkey://h:99999",
        "valkey://[::1",
        "valkey://user@h",
        "valkey://:hunter2@h",
        "valkey://h/2",
        "valkey://h?db=2",
        "unix:v.sock",
        "unix:",
        "/" * 108 + "x" * 108,
    ],
)
def test_addresses_that_are_not_possible_are_refused_and_no_password_is_repeated(text):
    with pytest.raises(ValueError, match=r".") as caught:
        ValkeyAddress.parse(text)
    assert "hunter2" not in str(caught.value)


def test_coredis_is_imported_by_those_only_who_need_it():
    program = "import sys, endpoint.cli; sys.exit('coredis' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", program], check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
        ).returncode
        == 0
    )
