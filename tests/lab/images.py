"""The file systems that hosts of the lab start from, made once and kept in ``var/lab``.

``debian``
    A minimal Debian with systemd, sshd and Python, by mmdebstrap, from the mirror that this machine takes Debian from.
``device``
    busybox, dropbear, nft and iptables with their libraries, copied from this machine: some 11 MB.

Hosts never change them: each has an overlay of its own.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
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
DEVICE = ("dropbear", "nft", "xtables-legacy-multi", "conntrack")
LIBRARIES = ("/lib/x86_64-linux-gnu/libnss_files.so.2",)


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


def debian(suite: str) -> Path:
    """The root of a Debian of ``suite``, made if it is not there yet (40 s and the network)."""
    return _made(suite, DEBIAN, lambda folder: _bootstrap(suite, folder))


def device() -> Path:
    """The root of a device without Python."""
    # This file says how it is made, so a change of it makes it anew.
    return _made("device", Path(__file__).read_text(), _assemble)


def _made(name: str, contents: str, make: Callable[[Path], None]) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    folder, stamp = BUILD / name, BUILD / f"{name}.complete"
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != contents:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            stamp.write_text(contents)
    return folder


def _bootstrap(suite, folder):
    sources = _sources(suite)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={DEBIAN}", suite, str(folder), "-"]
    done = subprocess.run(command, input=sources, text=True, capture_output=True, check=False)
    if done.returncode:
        raise Impossible(f"mmdebstrap could not make a Debian of {suite}:\n{done.stderr[-2000:]}")


def _sources(suite):
    """One line for apt: ``suite`` from the mirror that this machine has its Debian from."""
    found = subprocess.run(
        [
            "apt-get", "indextargets", "--format", "$(SITE) $(SIGNED_BY)",
            "Created-By: Packages", "Origin: Debian", "Label: Debian",
        ],
        capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    if not found:
        raise Impossible("apt knows no mirror of Debian; remedy: apt-get update")
    site, _, key = found[0].partition(" ")
    key = key.strip() if key.startswith("/") else "/usr/share/keyrings/debian-archive-keyring.gpg"
    return f"deb [signed-by={key}] {site} {suite} main\n"


def _assemble(folder):
    for below in (
        "bin",
        "sbin",
        "usr/bin",
        "usr/sbin",
        "etc",
        "proc",
        "dev",
        "tmp",
        "root/.ssh",
        "etc/dropbear",
        "var/run",
        "run",
        "lib64",
    ):
        (folder / below).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox") or "busybox"
    shutil.copy(busybox, folder / "bin/busybox")
    applets = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        place = folder / applet
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            place.symlink_to("/bin/busybox")
    for name in DEVICE:
        _copy_program(Path(shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") or name), folder)
    for alias in ("iptables-legacy", "ip6tables-legacy", "iptables-legacy-save", "iptables-legacy-restore"):
        place = folder / "usr/sbin" / alias
        place.unlink(missing_ok=True)
        place.symlink_to("xtables-legacy-multi")
    xtables = Path("/usr/lib/x86_64-linux-gnu/xtables")
    if xtables.is_dir():
        shutil.copytree(xtables, folder / str(xtables)[1:], dirs_exist_ok=True)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\n")
    (folder / "etc/hostname").write_text("device\n")
    (folder / "etc/shells").write_text("/bin/sh\n")
    (folder / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    (folder / "root/.ssh").chmod(0o700)


def _copy_program(program, folder):
    place = folder / str(program.resolve())[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, place)
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    for library in [*re.findall(r"(/\S+) \(0x", listed), *LIBRARIES]:
        at = folder / library[1:]
        if Path(library).exists() and not at.exists():
            at.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, at)


def ssh_key() -> Path:
    """The private key that opens every host of every lab here."""
    BUILD.mkdir(parents=True, exist_ok=True)
    key = BUILD / "key"
    if not key.exists():
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            made = Path(folder) / "key"
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(made)], check=True
            )
            made.with_suffix(".pub").rename(key.with_suffix(".pub"))
            made.rename(key)
    return key
