"""PSK files: what is read, what is refused and how it is said, and reloading."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.keystore.file import MAX_PROBLEMS, Difference, FileKeyStore, KeyFileError, load_psk

K1 = "00112233445566778899aabbccddeeff"
K2 = "ffeeddccbbaa99887766554433221100"
K3 = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.fixture
def psk_file(tmp_path):
    return tmp_path / "psk.txt"


def write(path, content, mode=0o600):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    path.chmod(mode)
    return path


def opened(path):
    return FileKeyStore(path, load_psk(path))


def problems(path):
    with pytest.raises(KeyFileError) as caught:
        load_psk(path)
    return caught.value.problems


def test_identities_comments_and_blank_lines(psk_file):
    write(psk_file, f"# fleet\n\nmeter-1:{K1}\n  # indented\r\nmeter-2:{K2.upper()}  \r\n")
    assert load_psk(psk_file).keys == {b"meter-1": (bytes.fromhex(K1),), b"meter-2": (bytes.fromhex(K2),)}


def test_a_second_line_is_the_next_key(psk_file):
    write(psk_file, f"m:{K1}\nother:{K3}\nm:{K2}\n")
    loaded = load_psk(psk_file)
    assert loaded.keys[b"m"] == (bytes.fromhex(K1), bytes.fromhex(K2))
    assert loaded.in_rotation == 1


def test_the_last_colon_separates(psk_file):
    write(psk_file, f"urn:dev:mac:17:{K1}\n")
    assert list(load_psk(psk_file).keys) == [b"urn:dev:mac:17"]


def test_an_identity_may_be_any_bytes_and_is_compared_bytewise(psk_file):
    write(psk_file, b"caf\xe9:" + K1.encode() + b"\nCAF\xe9:" + K2.encode() + b"\n\x00\x01:" + K3.encode())
    assert set(load_psk(psk_file).keys) == {b"caf\xe9", b"CAF\xe9", b"\x00\x01"}


def test_a_byte_order_mark_is_no_part_of_the_first_identity(psk_file):
    write(psk_file, b"\xef\xbb\xbfm:" + K1.encode())
    assert list(load_psk(psk_file).keys) == [b"m"]


def test_an_empty_file_is_an_empty_set(psk_file):
    write(psk_file, "# none yet\n")
    assert load_psk(psk_file).keys == {}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("meter-1", "not identity:hexkey (there is no colon)"),
        (f":{K1}", "the identity before the colon is empty"),
        (f" m:{K1}", 'blanks around the identity " m"; remedy: leave them out'),
        (f"m :{K1}", 'blanks around the identity "m "; remedy: leave them out'),
        ("m:", 'the key of "m" is missing'),
        ("m:secret", 'the key of "m" is not hexadecimal'),
        ("m:0x" + K1, 'the key of "m" is not hexadecimal'),
        ("m:" + K1[1:], 'the key of "m" has 31 hex digits, an odd number; one is missing or too many'),
        ("m:" + K1[2:], 'the key of "m" has 15 bytes; at least 16 are needed (32 hex digits)'),
        ("m:" + 65 * "aa", 'the key of "m" has 65 bytes; at most 64 are allowed (128 hex digits)'),
        (f"ü\x1b:{K1[2:]}", 'the key of "ü\\x1b" has 15 bytes; at least 16 are needed (32 hex digits)'),
        ("i" * 70_000 + f":{K1}", "the identity has 70000 bytes; at most 65535 fit the protocol"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(psk_file, line, what):
    write(psk_file, f"ok:{K2}\n{line}\n")
    assert problems(psk_file) == (f"{psk_file}:2: {what}",)


def test_the_same_key_twice_is_refused(psk_file):
    write(psk_file, f"m:{K1}\nm:{K1}\n")
    assert problems(psk_file) == (f'{psk_file}:2: identity "m" has this very key already (first on line 1)',)


def test_a_third_key_is_refused(psk_file):
    write(psk_file, f"m:{K1}\nm:{K2}\nm:{K3}\n")
    assert problems(psk_file) == (
        (
            f'{psk_file}:3: a third key for identity "m" (first on line 1); '
            "an identity has a current key and at most one next key"
        ),
    )


@pytest.mark.parametrize(
    "line",
    [
        f"{K1}:meter-1",
        f"meter-1:{K1}:",
        f"meter-1:{K1}:meter-1",
        f"meter-1 {K1}",
        f"meter-1:{K1} # current",
        "meter-1:" + ":".join(K1[at : at + 2] for at in range(0, 32, 2)),
        f" {K1}:meter-1",
        f"{K1}:{K1}\n{K1}:{K1}",
    ],
)
def test_no_message_repeats_what_may_be_a_key(psk_file, line):
    write(psk_file, f"{line}\n")
    shown = "\n".join(problems(psk_file))
    assert K1 not in shown
    assert "aa:bb" not in shown


def test_every_mistake_is_reported(psk_file):
    write(psk_file, "a\nb\nc\n")
    assert [line.split(":")[1] for line in problems(psk_file)] == ["1", "2", "3"]


def test_very_many_mistakes_are_cut_and_counted(psk_file):
    write(psk_file, "bad\n" * (MAX_PROBLEMS + 7))
    found = problems(psk_file)
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == f"{psk_file}: and 7 more mistakes"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_a_file_that_others_may_touch_is_refused_with_the_remedy(psk_file, mode):
    write(psk_file, f"m:{K1}\n", mode)
    assert problems(psk_file) == (
        f"{psk_file}: mode {mode:04o} gives group or others access to the keys; remedy: chmod 600 {psk_file}",
    )


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_its_owner_alone_is_read(psk_file, mode):
    assert load_psk(write(psk_file, f"m:{K1}\n", mode)).keys


def test_a_missing_file_is_said_so(tmp_path):
    assert problems(tmp_path / "none") == (f"{tmp_path}/none: cannot be read: no such file or directory",)


def test_a_fifo_is_refused_and_does_not_hang(psk_file):
    os.mkfifo(psk_file, 0o600)
    assert problems(psk_file) == (f"{psk_file}: is not a regular file",)


def test_a_link_counts_with_the_permission_of_its_file(tmp_path):
    link = tmp_path / "psk.txt"
    target = write(tmp_path / "target", f"m:{K1}\n")
    link.symlink_to(target)
    assert load_psk(link).keys
    target.chmod(0o644)
    assert "mode 0644" in problems(link)[0]


def test_a_directory_is_read_file_by_file(tmp_path):
    write(tmp_path / "north", f"n:{K1}\n")
    write(tmp_path / "south", f"s:{K2}\n")
    write(tmp_path / ".hidden", "not read", 0o644)
    write(tmp_path / "north~", "not read", 0o644)
    loaded = load_psk(tmp_path)
    assert set(loaded.keys) == {b"n", b"s"}
    assert loaded.files == (tmp_path / "north", tmp_path / "south")


def test_an_identity_in_two_files_is_refused(tmp_path):
    write(tmp_path / "a", f"m:{K1}\n")
    write(tmp_path / "b", f"x:{K2}\nm:{K3}\n")
    assert problems(tmp_path) == (
        f'{tmp_path}/b:2: identity "m" is in {tmp_path}/a:1 too; current and next key belong in one file',
    )


def test_a_directory_in_a_directory_is_refused(tmp_path):
    (tmp_path / "more").mkdir(mode=0o700)
    assert problems(tmp_path) == (f"{tmp_path}/more: is not a regular file",)


def test_a_broken_link_in_a_directory_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert problems(tmp_path) == (f"{tmp_path}/link: cannot be read: no such file or directory",)


def test_a_directory_that_others_may_write_is_refused(tmp_path):
    tmp_path.chmod(0o770)
    assert problems(tmp_path) == (
        f"{tmp_path}: mode 0770 lets others add keys; remedy: chmod go-w {tmp_path}",
    )


def test_a_line_that_gnutls_would_read_as_hex_is_a_comment_and_noted(psk_file):
    write(psk_file, f"#6d31:{K1}\n# m1:{K1}\n")
    loaded = load_psk(psk_file)
    assert loaded.keys == {}
    assert loaded.notes == (f"{psk_file}:1: a comment here; GnuTLS would read it as an identity in hex",)


def test_lookup_answers_at_once(psk_file):
    store = opened(write(psk_file, f"m:{K1}\nm:{K2}\n"))
    assert store.lookup(b"m") == (bytes.fromhex(K1), bytes.fromhex(K2))
    assert store.lookup(b"stranger") == ()


def test_a_reload_counts_what_changed(psk_file):
    store = opened(write(psk_file, f"keep:{K1}\nturn:{K1}\ngo:{K1}\n"))
    write(psk_file, f"keep:{K1}\nturn:{K1}\nturn:{K2}\ncome:{K1}\n")
    assert store.replace(load_psk(psk_file)) == Difference(
        added=1, removed=1, changed=1, touched=frozenset({b"turn", b"go"})
    )
    assert store.lookup(b"go") == ()
    assert len(store.lookup(b"turn")) == 2


def test_a_reload_to_nothing_is_refused_because_a_file_looks_so_while_it_is_written(psk_file):
    store = opened(write(psk_file, f"m:{K1}\n"))
    write(psk_file, "")
    with pytest.raises(KeyFileError, match="holds no identity now; the 1 loaded before stay"):
        store.require_some(load_psk(psk_file))


def test_no_repr_shows_a_key(psk_file):
    store = opened(write(psk_file, f"m:{K1}\n"))
    shown = repr(store) + repr(store.loaded)
    assert K1 not in shown
    assert repr(bytes.fromhex(K1)) not in shown


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [b"a", b"b", b"#", b":", b" ", b"\r", b"\n", b"a:", b"\nb:", b"\n#", bytes.fromhex(K1)]
            ),
            st.sampled_from([key.encode() for key in (K1, K2, K3)]),
        ),
        max_size=12,
    )
)
def test_whatever_stands_in_a_file_is_loaded_or_told_and_no_key_with_it(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("keys") / "psk.txt"
    write(path, b"".join(pieces))
    try:
        loaded = load_psk(path)
    except KeyFileError as error:
        assert all(line.startswith(f"{path}:") and line.isprintable() for line in error.problems)
        assert not any(key in str(error) for key in (K1, K2, K3))
    else:
        for identity, keys in loaded.keys.items():
            assert identity
            assert 1 <= len(keys) <= 2
            assert all(16 <= len(key) <= 64 for key in keys)
