"""What a killed lab leaves behind, and how it is found: ``python -m tests.lab.clean``, and each fleet when it starts.

A fleet holds a lock on a file in /run that names its folder. The kernel drops the lock when the process ends, however
it ends; so a file that can be locked belongs to nobody, and what carries its name may go: processes, mounts, network
namespaces, cgroups, files. Fleets of other running processes are never touched.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import images

CLAIMS = Path("/run/sansdtls-lab")
CGROUPS = Path("/sys/fs/cgroup")
HIERARCHIES = [
    folder
    for folder in (CGROUPS / "systemd", CGROUPS / "unified", CGROUPS)
    if (folder / "cgroup.procs").exists()
]
"""Of cgroups, those in which a host gets a group of its own, else two share one; the last where there is but one."""
PROPAGATED = Path("/run/systemd/nspawn/propagate")
"""Where systemd-nspawn has a folder for each host, also after a host that was killed."""
PATIENCE = 5.0
"""Seconds for killed processes to be gone."""


@contextlib.contextmanager
def claim(stem, folder):
    """Hold the name ``stem``, for a fleet whose files are in ``folder``."""
    CLAIMS.mkdir(parents=True, exist_ok=True)
    place = CLAIMS / stem
    with place.open("w") as held:
        # Locked before it says anything: a cleaner that comes in between finds no folder, and leaves it.
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(str(folder))
        held.flush()
        yield
        # Not after an error: what could not be undone then, the next fleet removes.
        place.unlink()


def leftovers():
    """Remove what fleets of dead processes left; their names."""
    return [stem for stem in sorted(_dead()) if _remove(stem)]


def _dead():
    with contextlib.suppress(FileNotFoundError):
        for place in CLAIMS.iterdir():
            with (
                contextlib.suppress(FileNotFoundError),
                place.open() as held,
                contextlib.suppress(BlockingIOError),
            ):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if held.read():
                    yield place.name


def _remove(stem):
    place = CLAIMS / stem
    try:
        held = place.open()
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    with held:
        folder = Path(held.read())
        kill(lambda: _processes(stem))
        for name in namespaces(stem):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        for group in groups(stem):
            remove_groups(group)
        for of_host in propagated(stem):
            shutil.rmtree(of_host, ignore_errors=True)
        # The name of a folder that no fleet made is not believed.
        if folder.name.startswith("lab-"):
            for mount in mounts(folder):
                subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)
        place.unlink(missing_ok=True)
    return True


def namespaces(stem):
    """The network namespaces of a fleet."""
    return sorted(path.name for path in Path("/run/netns").glob(f"{stem}-*"))


def groups(stem):
    """The cgroups of a fleet's hosts."""
    return [group for hierarchy in HIERARCHIES for group in hierarchy.glob(f"{stem}-*")]


def propagated(stem):
    """What systemd-nspawn has of a fleet's hosts."""
    return list(PROPAGATED.glob(f"{stem}-*"))


def mounts(folder):
    """What is mounted in a folder, the innermost first."""
    lines = Path("/proc/mounts").read_text().splitlines()
    points = [line.split()[1] for line in lines]
    return sorted((point for point in points if point.startswith(f"{folder}/")), key=len, reverse=True)


def _processes(stem):
    found = set()
    for name in namespaces(stem):
        found |= inside(name)
    for group in groups(stem):
        for members in group.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found |= set(map(int, members.read_text().split()))
    return found


def inside(namespace):
    """The processes in a network namespace, but not this one, whose threads may be there."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return {int(number) for number in listed.stdout.split()} - {os.getpid()}


def kill(find):
    """Kill the processes that ``find`` finds until it finds none."""
    end = time.monotonic() + PATIENCE
    while (numbers := find()) and time.monotonic() < end:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.02)


def remove_groups(group):
    """Remove a cgroup and those below it, which the kernel lets go a moment after their last process."""
    end = time.monotonic() + PATIENCE
    while group.exists() and time.monotonic() < end:
        for below in sorted(group.rglob("*"), key=lambda path: -len(path.parts)):
            if below.is_dir():
                with contextlib.suppress(OSError):
                    below.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)


def unused_images():
    """Remove what is kept in ``var/lab`` and no host uses at the moment; the next lab makes what it needs anew."""
    used = Path("/proc/mounts").read_text()
    gone = []
    for folder in sorted(images.BUILD.glob("*-*")) if images.BUILD.is_dir() else []:
        if folder.is_dir() and str(folder.resolve()) not in used and str(folder) not in used:
            shutil.rmtree(folder)
            gone.append(folder.name)
    return gone


def main():
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.clean", description=__doc__.partition("\n")[0])
    parser.add_argument("--images", action="store_true", help="also images and wheels, unless hosts use them")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("what a lab leaves belongs to root; remedy: sudo", file=sys.stderr)
        return 2
    for stem in leftovers():
        print(f"removed {stem}")
    if options.images:
        for name in unused_images():
            print(f"removed the image {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
