"""Hosts of a lab: a Debian that boots systemd, one that boots busybox's init, and a device that has a shell and no Python.

A host's root is an overlay over an image, in a folder of the lab; what it has written can be looked at from outside
(:attr:`Host.written`), which is how a search for secrets on its disk is made.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.lab import clean, images
from tests.lab.network import PREFIX4, PREFIX6
from tests.namespaces import run, within

CONNECT_TIME = 15
"""Seconds until a host has greeted: its sshd makes a process first, on a machine that may stand still for some of them."""
BOOT_TIME = 60.0
"""Seconds; two hosts take 1.5 on an idle machine."""

NODES = {"null": "1 3", "zero": "1 5", "full": "1 7", "random": "1 8", "urandom": "1 9", "tty": "5 0"}
"""What a shell, sshd and Python ask for."""
INITTAB = """\
::sysinit:/etc/init.d/rcS
::respawn:/usr/sbin/sshd -D -e
::shutdown:/etc/init.d/rcK
"""
START = f"""\
#!/bin/sh
export PATH=/usr/local/bin:$PATH
hostname -F /etc/hostname
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /dev
{"".join(f"mknod -m 666 /dev/{name} c {numbers}; " for name, numbers in NODES.items())}
mkdir /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
syslogd
for script in /etc/init.d/S*; do [ ! -x "$script" ] || "$script" start; done
"""
STOP = """\
#!/bin/sh
export PATH=/usr/local/bin:$PATH
for script in $(ls -r /etc/init.d/S*); do [ ! -x "$script" ] || "$script" stop; done
"""
SYSTEMD = ("systemctl", "journalctl", "systemd-analyze", "systemd-run")


class Host:
    """What both kinds have."""

    kind = ""

    def __init__(self, name, number, *, network, folder, image):
        self.name, self.number = name, number
        self.address, self.address6 = f"{PREFIX4}.{number}", f"{PREFIX6}{number}"
        self.network = network
        self.namespace = network.add(name, number)
        self.folder = folder / name
        self.image = image
        self.root = self.folder / "root"
        self.written = self.folder / "up"
        """The files that this host has made or changed."""
        self._process = None
        self._root_number = None
        self._undo = contextlib.ExitStack()
        for below in ("root", "up", "wk"):
            (self.folder / below).mkdir(parents=True, exist_ok=True)
        run(
            "mount", "-t", "overlay", "overlay",
            "-o", f"lowerdir={image},upperdir={self.written},workdir={self.folder / 'wk'}", str(self.root),
        )  # fmt: skip
        self._undo.callback(run, "umount", str(self.root))
        keys = self.root / "root/.ssh"
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(images.ssh_key().with_suffix(".pub"), keys / "authorized_keys")
        (keys / "authorized_keys").chmod(0o600)
        # An image has the name of the machine that made it.
        (self.root / "etc/hostname").write_text(f"{name}\n")

    def boot(self):
        """Start it; :meth:`wait_until_up` waits until it answers."""
        raise NotImplementedError

    def shut_down(self):
        """End it; its files stay, and it may be booted again."""
        raise NotImplementedError

    def ssh_command(self, command):
        """The words that run ``command`` on the host, from the controller's namespace."""
        return [
            *within(self.network.controller),
            "ssh", "-i", str(images.ssh_key()), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", f"ConnectTimeout={CONNECT_TIME}",
            f"root@{self.address}", command,
        ]  # fmt: skip

    def ssh(self, command, *, check=True, text_input=None, timeout=60):
        """Run ``command`` there; what it printed."""
        done = subprocess.run(
            self.ssh_command(command),
            input=text_input,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            timeout=timeout,
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {command}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def wait_until_up(self, seconds=BOOT_TIME):
        """Return once a command can be run there."""
        self._wait("true", seconds)

    def _wait(self, command, seconds):
        end = time.monotonic() + seconds
        while not self._succeeds(command, end - time.monotonic()):
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended while it booted: {self.log()[-2000:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} does not answer after {seconds:g} s: {self.log()[-2000:]}")
            time.sleep(0.05)

    def _succeeds(self, command, seconds):
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = self.ssh_command(command)
            return not subprocess.run(
                asked, capture_output=True, check=False, timeout=max(seconds, 0)
            ).returncode
        return False

    def log(self):
        """What its console said."""
        try:
            return (self.folder / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def unplug(self):
        """Cut it off from the network."""
        self.network.unplug(self.number)

    def plug(self):
        """Undo :meth:`unplug`."""
        self.network.unplug(self.number, plugged=True)

    @property
    def root_number(self):
        """Device and inode of its root: all of its processes have it, whatever they are confined to."""
        if self._root_number is None:
            about = self.root.stat()
            self._root_number = about.st_dev, about.st_ino
        return self._root_number

    def inside(self):
        """Its root as it sees it, with what is mounted there; its files alone while it is off."""
        for number in self.processes():
            # Its first process: others may have folders of their own in place of the host's.
            with contextlib.suppress(OSError):
                if re.search(r"^NSpid:.*\s1$", Path(f"/proc/{number}/status").read_text(), re.MULTILINE):
                    return Path(f"/proc/{number}/root")
        return self.root

    def processes(self):
        """The numbers, in this machine's count, of all processes of the host."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if self._is_ours(entry)]

    def _is_ours(self, entry):
        try:
            # By number: what the link says is the host's own view.
            about = (entry / "root").stat()
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self.root_number

    def close(self):
        """End it and remove its files."""
        with contextlib.suppress(Exception):
            self.shut_down()
        self._undo.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class SystemdHost(Host):
    """Debian, booted by systemd-nspawn: units, sandboxing, journal and nftables are real; limits of memory are not."""

    kind = "systemd"

    def boot(self):
        groups = [hierarchy / self.namespace for hierarchy in clean.HIERARCHIES]
        for group in groups:
            group.mkdir(exist_ok=True)
        joins = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        command = [
            "systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot", f"--machine={self.namespace}",
            f"--hostname={self.name}", "--register=no", "--keep-unit", f"--network-namespace-path=/run/netns/{self.namespace}",
            "--capability=CAP_NET_ADMIN", "--console=pipe",
        ]  # fmt: skip
        with (self.folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", f'{joins}exec "$@"', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._groups = groups

    def wait_until_up(self, seconds=BOOT_TIME):
        """Return once systemd says that it is running."""
        self._wait(
            "systemctl is-system-running --wait >/dev/null || systemctl is-system-running | grep -q degraded",
            seconds,
        )

    def shut_down(self):
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            clean.kill(lambda: set(self.processes()))
        self._process = None
        for group in self._groups:
            clean.remove_groups(group)


class Confined(Host):
    """One whose first process is no systemd: a root, a network and numbers of processes of its own."""

    def _begin(self, *command):
        with (self.folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [
                    *within(self.namespace),
                    "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child",
                    "chroot", str(self.root), *command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
            )  # fmt: skip

    def shut_down(self):
        if self._process is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


class BusyboxHost(Confined):
    """Debian without systemd, booted by busybox's init: Python, OpenSSH, and busybox's programs before all others."""

    kind = "busybox"

    def __init__(self, name, number, **where):
        super().__init__(name, number, **where)
        for program in SYSTEMD:
            (self.root / "usr/bin" / program).unlink(missing_ok=True)
        busybox = self.root / "usr/bin/busybox"
        shutil.copy(str(shutil.which("busybox")), busybox)
        (self.root / "usr/sbin/init").unlink(missing_ok=True)
        (self.root / "usr/sbin/init").symlink_to("/usr/bin/busybox")
        for applet in run(str(busybox), "--list").split():
            (self.root / "usr/local/bin" / applet).symlink_to("/usr/bin/busybox")
        for file, text in (("inittab", INITTAB), ("init.d/rcS", START), ("init.d/rcK", STOP)):
            place = self.root / "etc" / file
            place.write_text(text)
            place.chmod(0o755)

    def boot(self):
        self._begin("/sbin/init")

    def shut_down(self):
        """As `poweroff` does: busybox's init is told by a signal."""
        if self._process is None:
            return
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        for number in map(int, children.split()):
            os.kill(number, signal.SIGUSR2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        super().shut_down()


class Device(Confined):
    """busybox and dropbear. What a device runs beside, a DTLS client, is a process of the lab in its namespace."""

    kind = "device"

    def boot(self):
        nodes = "".join(
            f"[ -c /dev/{name} ] || mknod -m 666 /dev/{name} c {numbers}; " for name, numbers in NODES.items()
        )
        start = (
            f"hostname {self.name}; mount -t proc proc /proc; "
            # A terminal is what Ansible asks for with `raw`.
            "mkdir -p /dev/pts; mount -t devpts -o ptmxmode=666 devpts /dev/pts; ln -sf pts/ptmx /dev/ptmx; "
            f"{nodes}for script in /etc/rc.local /etc/init.d/S*; do [ -x $script ] && $script start; done; "
            "exec dropbear -F -E -R -s -p 22"
        )
        self._begin("/bin/sh", "-c", start)
