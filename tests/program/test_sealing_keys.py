"""The file of keys that seal saved associations: what is read, what is refused, and that no key is shown."""

import pytest

from endpoint.keystore.file import KeyFileError
from endpoint.keystore.sealing import KEY_BYTES, MAX_KEYS, load_sealing_keys

K1, K2 = ("00112233445566778899aabbccddeeff" * 2, "0f1e2d3c4b5a69788796a5b4c3d2e1f0" * 2)


def written(tmp_path, content, mode=0o600):
    path = tmp_path / "state.key"
    path.write_text(content)
    path.chmod(mode)
    return path


def problems(path):
    with pytest.raises(KeyFileError) as caught:
        load_sealing_keys(path)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


def test_keys_are_read_in_their_order_with_comments_and_blank_lines(tmp_path):
    path = written(tmp_path, f"# made in spring\n\n  {K1.upper()}  \r\n{K2}\n")
    assert load_sealing_keys(path) == (bytes.fromhex(K1), bytes.fromhex(K2))
    assert KEY_BYTES == 32


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", [": holds no key; remedy: openssl rand -hex 32"]),
        ("# nothing\n", [": holds no key; remedy: openssl rand -hex 32"]),
        (K1[1:], [":1: 63 hex digits, not 64; remedy: openssl rand -hex 32"]),
        (
            f"{K1}\nkey: {K2}\n\n{K1}\n",
            [
                ":2: not hexadecimal; remedy: openssl rand -hex 32",
                ":4: the same key as on line 1",
            ],
        ),
        ("\n".join(f"{number:064x}" for number in range(MAX_KEYS + 1)), [f":9: more than {MAX_KEYS} keys"]),
    ],
)
def test_every_mistake_is_named_with_its_line_and_without_the_key(tmp_path, content, expected):
    found = problems(written(tmp_path, content))
    assert found == expected
    assert not any(key[:16] in problem for key in (K1, K2) for problem in found)


def test_a_file_that_others_can_read_is_refused(tmp_path):
    path = written(tmp_path, K1, mode=0o640)
    assert problems(path) == [
        f": mode 0640 gives group or others access to the keys; remedy: chmod 600 {path}"
    ]
    assert problems(tmp_path / "none") == [": cannot be read: no such file or directory"]
