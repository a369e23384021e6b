"""The file systems that hosts of the lab start from, made once and kept in ``var/lab``.

``debian``
    A minimal Debian with systemd, sshd and Python, by mmdebstrap, from the mirror that this machine takes Debian from.
``device``
    busybox, dropbear, nft and iptables with their libraries, copied from this machine: some 11 MB.

Hosts never change them: each has an overlay of its own. What an image is made from is part of its folder's name, so
a changed recipe makes a new one beside it, and nobody who uses the old one, such as another pytest, loses it.

``python -m tests.lab.images`` makes all of them, in parallel; .ci/run does so while it fetches other things.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BUILD = Path(__file__).parents[2] / "var" / "lab"
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables-legacy": "iptables",
    "dropbear": "dropbear-bin",
    "busybox": "busybox-static",
    "ssh": "openssh-client",
    "conntrack": "conntrack",
}
"""What the lab needs of this machine: each program, and the package of Debian that has it."""
DEBIAN = (
    "ca-certificates,conntrack,dbus,iproute2,iptables,nftables,openssh-server,procps,python3,python3-venv,"
    "sudo,systemd,systemd-sysv"
)
"""What a host has before any role comes: python3-minimal would not be enough for Ansible's modules."""
TRIAL = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
    [ -w "$procs" ] && exit 0
done
echo "no cgroup can be written" >&2
exit 1
"""
"""What every host does, in namespaces that are gone at once."""
REMEDY = (
    "remedy: see whether `apt-get update` reaches the mirror of Debian that this machine is configured for"
)
DEVICE = ("dropbear", "nft", "xtables-legacy-multi", "conntrack")
SUITES = ("bookworm", "trixie")
MAKING_TIME = 420.0
"""Seconds for one image, and for waiting until another process has made it; 40 on an idle machine with a near mirror."""
MIRROR_TIME = 20
"""Seconds that apt waits for an answer of the mirror, twice."""
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34")
"""What both Debians can run."""


class Impossible(Exception):
    """This machine cannot have a lab; says why, and what to install."""


def missing() -> list[str]:
    """The packages that this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return sorted(package for program, package in PROGRAMS.items() if not shutil.which(program, path=path))


def require() -> None:
    """:class:`Impossible` unless a lab can be started here."""
    if os.geteuid() != 0:
        raise Impossible("the lab makes namespaces and mounts and so needs root; remedy: sudo")
    if lacking := missing():
        raise Impossible(f"the lab needs programs; remedy: apt-get install {' '.join(lacking)}")
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "sh", "-ec", TRIAL],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        raise Impossible(
            f"this machine does not let root do what hosts need, as in a container without privileges: {tried.stderr.strip()}; "
            "remedy: a machine of its own, or a container with all privileges"
        )


def debian(suite: str) -> Path:
    """The root of a Debian of ``suite``, made if it is not there yet (40 s and the network)."""
    return made(suite, DEBIAN, lambda folder: _bootstrap(suite, folder))


def pip(*words: str) -> None:
    """Run pip; :class:`Impossible` with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=MAKING_TIME,
    )
    if done.returncode:
        raise Impossible(
            f"pip {' '.join(words)}: {done.stderr[-2000:]}; remedy: see whether pip reaches its index"
        )


def fetch_wheels(folder: Path, python: str, *wanted: str) -> None:
    """Wheels for that Python on a Debian of this machine's kind, whatever Python this is."""
    platforms = [f"--platform={name}_{platform.machine()}" for name in PLATFORMS]
    abis = (f"--abi={name}" for name in (f"cp{python.replace('.', '')}", "abi3", "none"))
    pip(
        "download", "--dest", str(folder), "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
        *abis, *platforms, *wanted,
    )  # fmt: skip


def device() -> Path:
    """The root of a device without Python."""
    # This file says how it is made, and this machine's programs are what is in it.
    found = [Path(_program(name)).resolve() for name in ("busybox", *DEVICE)]
    stamps = "".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in found)
    return made("device", Path(__file__).read_text() + stamps, _assemble)


def made(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """The folder of an image; ``make`` fills it, once for all processes. ``recipe`` is all that it depends on."""
    folder = BUILD / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    BUILD.mkdir(parents=True, exist_ok=True)
    with _locked(BUILD / f"{folder.name}.lock"):
        if not folder.exists():
            unfinished = BUILD / f"{folder.name}.unfinished"
            # Of a process that was killed.
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    with place.open("w") as lock:
        end = time.monotonic() + MAKING_TIME
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Impossible(
                        f"another process has been making {place.stem} for more than {MAKING_TIME:g} s; "
                        f"remedy: end it (fuser {place})"
                    ) from None
                time.sleep(0.2)
            else:
                break
        yield


def all_of_them() -> list[Path]:
    """Every image, made in parallel: they wait for the mirror more than for the processor."""
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return [*threads.map(debian, SUITES), device()]


def _bootstrap(suite, folder):
    sources = _sources(suite)
    command = [
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={DEBIAN}",
        f"--aptopt=Acquire::http::Timeout {MIRROR_TIME}", f"--aptopt=Acquire::https::Timeout {MIRROR_TIME}",
        "--aptopt=Acquire::Retries 1",
        suite, str(folder), "-",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(sources, timeout=MAKING_TIME)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Impossible(f"a Debian of {suite} was not made within {MAKING_TIME:g} s; {REMEDY}") from None
    if process.returncode:
        last = "\n".join(line for line in said.splitlines() if line.startswith("E:")) or said[-2000:]
        raise Impossible(f"a Debian of {suite} could not be made; {REMEDY}\n{last}")


def _sources(suite):
    """One line for apt: ``suite`` from the mirror that this machine has its Debian from."""
    with _locked(BUILD / "apt.lock"):
        found = _mirrors()
        if not found:
            # Images for containers come without apt's lists.
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)
            found = _mirrors()
    if not found:
        raise Impossible(f"apt knows no mirror of Debian; {REMEDY}")
    site, _, key = found[0].partition(" ")
    key = key.strip() if key.startswith("/") else "/usr/share/keyrings/debian-archive-keyring.gpg"
    return f"deb [signed-by={key}] {site} {suite} main\n"


def _mirrors():
    return subprocess.run(
        [
            "apt-get", "indextargets", "--format", "$(SITE) $(SIGNED_BY)",
            "Created-By: Packages", "Origin: Debian", "Label: Debian",
        ],
        capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip


def _assemble(folder):
    folders = "bin sbin usr/bin usr/sbin etc/dropbear proc dev tmp root/.ssh var/run run lib64"
    for below in folders.split():
        (folder / below).mkdir(parents=True, exist_ok=True)
    busybox = _program("busybox")
    shutil.copy(busybox, folder / "bin/busybox")
    applets = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        place = folder / applet
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            place.symlink_to("/bin/busybox")
    for name in DEVICE:
        _copy_program(Path(_program(name)), folder)
    for alias in (
        f"{version}tables-legacy{end}" for version in ("ip", "ip6") for end in ("", "-save", "-restore")
    ):
        place = folder / "usr/sbin" / alias
        place.unlink(missing_ok=True)
        place.symlink_to("xtables-legacy-multi")
    for xtables in Path("/usr/lib").glob("*-linux-gnu*/xtables"):
        shutil.copytree(xtables, folder / str(xtables)[1:], dirs_exist_ok=True)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\n")
    (folder / "etc/hostname").write_text("device\n")
    (folder / "etc/shells").write_text("/bin/sh\n")
    (folder / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    (folder / "root/.ssh").chmod(0o700)


def _program(name):
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise Impossible(
            f"the program {name} is missing; remedy: apt-get install {' '.join(PROGRAMS.values())}"
        )
    return path


def _copy_program(program, folder):
    place = folder / str(program.resolve())[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, place)
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    # The last is loaded by those before it.
    for library in [*re.findall(r"(/\S+) \(0x", listed), *map(str, Path("/lib").glob("*/libnss_files.so.2"))]:
        at = folder / library[1:]
        if not at.exists():
            at.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, at)


def ssh_key() -> Path:
    """The private key that opens every host of every lab here."""
    BUILD.mkdir(parents=True, exist_ok=True)
    key = BUILD / "key"
    with _locked(BUILD / "key.lock"):
        if not key.exists():
            with tempfile.TemporaryDirectory(dir=BUILD) as folder:
                made = Path(folder) / "key"
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(made)], check=True
                )
                made.with_suffix(".pub").rename(key.with_suffix(".pub"))
                made.rename(key)
    return key


def main() -> int:
    """Make them all; the exit status."""
    try:
        require()
        began = time.monotonic()
        for folder in all_of_them():
            print(folder)
        print(f"{time.monotonic() - began:.0f} s")
    except Impossible as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
