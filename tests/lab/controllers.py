"""The Ansibles that a fleet can be managed with.

``here``
    ansible-core of the environment that the tests run in, the oldest that the roles support.
``newest``
    the newest ansible-core, which needs a newer Python than Debian 12 has: in the root of a Debian 13, made as an image
    once (:mod:`tests.lab.images`), with this repository and the folder for temporary files at their usual places.

Both run in the controller's network namespace, so a play sees the same hosts from either.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab import images
from tests.namespaces import within

REPOSITORY = Path(__file__).parents[2]
CONSTRAINTS = REPOSITORY / "constraints.txt"
SUITE, PYTHON = "trixie", "3.13"
PLACE = "/opt/ansible"
INSIDE = 'cd "$0" 2>/dev/null || cd /; exec "$@"'


class Here:
    """The programs beside this Python, or in another folder of this machine."""

    def __init__(self, folder=None):
        self.folder = Path(folder or Path(sys.executable).parent)

    def require(self):
        """:class:`images.Impossible` unless it is there."""
        if not (self.folder / "ansible-playbook").exists():
            raise images.Impossible(
                f"{self.folder} has no ansible-playbook; remedy: pip install --group ansible (make does)"
            )

    def words(self, namespace, program, arguments):
        """The command that runs one of Ansible's programs in a network namespace."""
        return [*within(namespace), str(self.folder / program), *map(str, arguments)]

    @property
    def path(self):
        """Where its programs are, as it sees itself."""
        return str(self.folder)


class Newest:
    """In a private mount namespace: whatever it changes of its root is gone with it, and nothing has to be unmounted."""

    path = f"{PLACE}/bin"

    def require(self):
        """Make its image, if it is not there yet."""
        self.layers = [_ansible(), images.debian(SUITE)]

    def words(self, namespace, program, arguments):
        """As :meth:`Here.words`."""
        shared = dict.fromkeys([str(REPOSITORY), tempfile.gettempdir(), str(images.BUILD.resolve())])
        inner = [f"{self.path}/{program}", *map(str, arguments)]
        return [*within(namespace), *_in_root(self.layers, shared, inner)]


def controller(name):
    """The controller of that name, ready."""
    found = {"here": Here, "newest": Newest}[name]() if isinstance(name, str) else name
    found.require()
    return found


def newest_version():
    """The version that constraints.txt pins for Python 3.12 and later."""
    pinned = re.search(
        r'^ansible-core==(\S+) *; *python_version *>= *"3\.12"', CONSTRAINTS.read_text(), re.MULTILINE
    )
    assert pinned, f"{CONSTRAINTS} does not pin ansible-core for Python 3.12 and later"
    return pinned[1]


def _in_root(layers, shared, command, *, upper=None):
    """The words that run ``command`` in a root made of layers; in ``upper``, if given, what it writes stays."""
    lower, own = ":".join(map(str, layers)), upper or "/mnt"
    lines = [
        "set -e",
        "mount -t tmpfs tmpfs /mnt",
        "mkdir /mnt/up /mnt/wk /mnt/root",
        f"mount -t overlay overlay -o lowerdir={lower},upperdir={own}/up,workdir={own}/wk /mnt/root",
    ]
    lines += [f"mount --bind /{name} /mnt/root/{name}" for name in ("proc", "dev")]
    lines.append("mount --bind /dev/pts /mnt/root/dev/pts")
    for folder in shared:
        quoted = shlex.quote(folder)
        lines += [f"mkdir -p /mnt/root{quoted}", f"mount --bind {quoted} /mnt/root{quoted}"]
    lines.append(f'exec chroot /mnt/root sh -c {shlex.quote(INSIDE)} "$PWD" "$@"')
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", *command]


def _ansible():
    return images.made(
        "ansible",
        f"{newest_version()} {images.debian(SUITE).name} {Path(__file__).read_text()}",
        _install,
    ).joinpath("up")


def _install(folder):
    wanted = f"ansible-core=={newest_version()}"
    for below in ("up", "wk"):
        (folder / below).mkdir()
    wheels = folder / "up" / "wheels"
    images.fetch_wheels(wheels, PYTHON, wanted)
    install = (
        f"python3 -m venv {PLACE} && {PLACE}/bin/pip install --quiet --disable-pip-version-check --no-index "
        f"--find-links /wheels {wanted}"
    )
    done = subprocess.run(
        _in_root([images.debian(SUITE)], {}, ["sh", "-c", install], upper=folder),
        capture_output=True, text=True, check=False, timeout=300,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
    )  # fmt: skip
    if done.returncode:
        raise images.Impossible(f"{wanted} could not be installed: {done.stderr[-2000:]}")
    shutil.rmtree(wheels)
    shutil.rmtree(folder / "wk", ignore_errors=True)
