"""Wheelhouses for the lab: the project and what it needs, as an operator would make them, and such with a release that is broken.

Dependencies are fetched once, in the versions of ``constraints.txt``; the project's own wheel is built from the sources
as they are. Both are kept under ``var/lab``, by what they were made of.
"""

import hashlib
import tomllib
import zipfile
from pathlib import Path

from tests.lab import images

REPOSITORY = Path(__file__).parents[2]
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
SOURCES = ("sansdtls", "endpoint", "pyproject.toml", "README.md", "LICENSE")

_SERVE = "def _run(options: argparse.Namespace) -> int:\n"
EXITS = ("endpoint/commands/serve.py", _SERVE, f"{_SERVE}    return 2\n")
"""A release that takes the configuration and ends as soon as it is to serve, so that systemd does not try again."""
HANGS = ("endpoint/commands/serve.py", _SERVE, f"{_SERVE}    import time\n\n    time.sleep(3600)\n")
"""A release that is never ready."""
MUTE = (
    "sansdtls/handshake/server12.py",
    'OUR_LABEL = b"server finished"',
    'OUR_LABEL = b"server finishes"',
)
"""A release that starts and says that it is ready, and whose handshakes fail."""


def wheelhouse(suite="bookworm", *, version=None, patch=None):
    """A folder of wheels for the Python of that Debian.

    ``version``: of ours, another one than it has. ``patch``: (file, old text, new text).
    """
    own, dependencies = _ours(), _dependencies(PYTHONS[suite])

    def make(folder):
        for wheel in dependencies.glob("*.whl"):
            (folder / wheel.name).hardlink_to(wheel)
        _changed(next(own.glob("*.whl")), folder, version, patch)

    return images.made("wheelhouse", f"{own}{dependencies}{version}{patch}", make)


def _dependencies(python):
    told = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*told["dependencies"], *told["optional-dependencies"]["endpoint"], "pip"]
    constraints = REPOSITORY / "constraints.txt"
    return images.made(
        f"wheels-{python}",
        f"{wanted}{constraints.read_text()}",
        lambda folder: images.fetch_wheels(folder, python, "--constraint", str(constraints), *wanted),
    )


def _ours():
    digest = hashlib.sha256()
    for source in SOURCES:
        for path in sorted([REPOSITORY / source, *(REPOSITORY / source).rglob("*")]):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(str(path.relative_to(REPOSITORY)).encode() + path.read_bytes())
    return images.made(
        "own",
        digest.hexdigest(),
        lambda folder: images.pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY)),
    )


def _changed(wheel, folder, version, patch):
    """The wheel, with another version or one file changed: what a build of such sources would give, in no time."""
    _, old, rest = wheel.name.split("-", 2)
    new = version or old
    todo = {patch[0]} if patch else set()
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(folder / f"sansdtls-{new}-{rest}", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("/METADATA"):
                content = content.replace(f"\nVersion: {old}\n".encode(), f"\nVersion: {new}\n".encode())
            if entry.filename.endswith("/RECORD"):
                content = content.replace(
                    f"sansdtls-{old}.dist-info".encode(), f"sansdtls-{new}.dist-info".encode()
                )
            if entry.filename in todo:
                todo.remove(entry.filename)
                assert content.count(patch[1].encode()) == 1, patch
                content = content.replace(patch[1].encode(), patch[2].encode())
            made.writestr(
                entry.filename.replace(f"sansdtls-{old}.dist-info", f"sansdtls-{new}.dist-info"), content
            )
    assert not todo, todo
