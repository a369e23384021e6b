"""A search for secrets in all places where a run of Ansible can leave them.

::

    search = Search(fleet, secrets=[Secret("master", master), Secret("key of device-1", key, {"device-1": ["/etc/dtls/psk*"]})])
    with search.watching():
        search.output(fleet.playbook(playbook, "-vvvvv", **search.environment()))
    search.check()

Looked at are what Ansible prints; the arguments and environments of all processes of the controller and the hosts, and
their folders for temporary files, every 20 ms while something runs; journals and consoles; all files that the hosts
have written; the controller's folder with its facts cache.

A process that lives for less than 20 ms may escape one look; a play runs dozens of each kind. What a sampler cannot see at
all, a secret on a descriptor, is where secrets belong.
"""

import base64
import contextlib
import fnmatch
import os
import re
import stat
import threading
import time
from pathlib import Path

import attrs

from tests.secrecy import forms, in_base64

INTERVAL = 0.02
PART = 16
"""Hexadecimal digits of a secret that are no coincidence: 64 bits."""
HEX_RUN = re.compile(rb"[0-9a-f]{%d,}" % PART)
TEMPORARY = ("tmp", "var/tmp", "dev/shm", "root/.ansible")
"""Folders of a host for what goes away again."""
VOLATILE = ("run", "tmp", "dev/shm")
"""Mounted inside a booted host, so not among the files of its overlay."""
MOST = 64 << 20
"""Bytes of a file that are looked at; none that a role writes is larger."""
NO_FILES = ("var/log/journal",)
"""Looked at as text: compressed, nothing would be found in the files."""


def _bytes(value):
    if isinstance(value, str):
        digits = len(value) % 2 == 0 and len(value) >= PART and re.fullmatch(r"[0-9a-fA-F]+", value)
        return bytes.fromhex(value) if digits else value.encode()
    return bytes(value)


@attrs.frozen
class Secret:
    """Something that may be in few places only: ``allowed`` are patterns of files, by host."""

    name: str
    value: bytes = attrs.field(repr=False, converter=_bytes)
    allowed: dict[str, list[str]] = attrs.Factory(dict)

    def may_be(self, host, path):
        """Whether this file of this host may hold it."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.allowed.get(host, ()))


class Needles:
    """The forms of one secret, ready to be looked for."""

    def __init__(self, secret):
        raw = secret.value
        assert len(raw) >= PART // 2, f"{secret.name} is too short to be looked for"
        digits = raw.hex()
        self._exact = {
            "raw": [raw],
            "base64": [form.encode() for form in in_base64(raw)],
            "reversed": [raw[::-1], base64.b64encode(raw[::-1]).rstrip(b"=")[:-2]],
        }
        self._folded = {
            "written out": [form.encode() for form in forms(raw)],
            "reversed": [digits[::-1].encode(), raw[::-1].hex().encode(), raw.lower()[::-1]],
        }
        # Every beginning, or a part that begins at an odd byte would not be seen.
        windows = range(len(digits) - PART + 1)
        self._parts = {digits[at : at + PART].encode() for at in windows}
        self._parts |= {digits[::-1][at : at + PART].encode() for at in windows}

    def found(self, data, lower, runs):
        """In which form it is there, or None."""
        for haystack, table in ((data, self._exact), (lower, self._folded)):
            for name, needles in table.items():
                if any(needle in haystack for needle in needles):
                    return name
        return "a part in hexadecimal" if self._parts & runs else None


def _runs(lower):
    found: set[bytes] = set()
    for match in HEX_RUN.finditer(lower):
        run = match[0]
        found.update(run[at : at + PART] for at in range(len(run) - PART + 1))
    return found


@attrs.frozen
class Leak:
    """One place where a secret was found."""

    secret: str
    kind: str
    """``output``, ``process``, ``temporary``, ``journal``, ``file`` or ``controller``."""
    where: str
    form: str

    def __str__(self):
        return f"{self.secret} ({self.form}): {self.kind}: {self.where}"


class Search:
    """What was seen of a fleet while something ran, and which secrets are in it."""

    def __init__(self, fleet, *, secrets=()):
        self._fleet = fleet
        self._secrets = []
        self._texts = []
        self._seen = {}
        self._errors = []
        for secret in secrets:
            self.add(secret)

    def add(self, secret):
        """One more to be looked for, also in what was seen before."""
        self._secrets.append((secret, Needles(secret)))

    def environment(self):
        """For a playbook: facts are cached on disk, so that a secret among them is found there."""
        facts = self._fleet.folder / "facts"
        return {
            "ANSIBLE_CACHE_PLUGIN": "jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(facts),
            "ANSIBLE_GATHERING": "smart",
        }

    def output(self, text):
        """What a run printed."""
        self._texts.append(("output", f"run {len(self._texts) + 1}", text.encode("utf-8", "surrogateescape")))

    # --- while it runs ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self):
        """Sample processes and temporary files inside of the ``with``."""
        stop = threading.Event()
        sampler = _Sampler(self._fleet, self._seen)
        thread = threading.Thread(target=self._sample, args=(sampler, stop), name="leaks", daemon=True)
        thread.start()
        try:
            yield sampler
        finally:
            stop.set()
            thread.join()
        assert not self._errors, self._errors
        assert sampler.rounds, "nothing was sampled"

    def _sample(self, sampler, stop):
        try:
            while not stop.is_set():
                began = time.monotonic()
                sampler.look()
                stop.wait(max(0.0, INTERVAL - (time.monotonic() - began)))
        except Exception as error:
            self._errors.append(error)

    # --- afterwards ---------------------------------------------------------------------------------

    def leaks(self):
        """All that is found now."""
        found = []
        for (kind, where, data), host in [(text, None) for text in self._texts] + [
            ((kind, where, data), host)
            for (kind, host, where), contents in self._seen.items()
            for data in contents
        ]:
            found += self._of(kind, f"{host}: {where}" if host else where, data, host, where)
        for host in self._fleet.hosts.values():
            for kind, where, data in _left_on(host):
                found += self._of(kind, f"{host.name}: {where}", data, host.name, where)
        for path in _files(self._fleet.folder, without={host.folder for host in self._fleet.hosts.values()}):
            found += self._of(
                "controller",
                str(path),
                _content(path),
                "controller",
                f"/{path.relative_to(self._fleet.folder)}",
            )
        return list(dict.fromkeys(found))

    def check(self):
        """Fail if a secret is where it must not be."""
        found = self.leaks()
        assert not found, "secrets were found:\n" + "\n".join(map(str, found))

    def _of(self, kind, told, data, host, path):
        lower = data.lower()
        runs = _runs(lower)
        for secret, needles in self._secrets:
            may_be = kind in {"file", "temporary", "controller"} and secret.may_be(host, path)
            if not may_be and (form := needles.found(data, lower, runs)):
                yield Leak(secret.name, kind, told, form)


class _Sampler:
    """Reads /proc, which has the processes of this machine and of all hosts, and temporary folders."""

    def __init__(self, fleet, seen):
        self._fleet = fleet
        self._seen = seen
        self.rounds = 0
        # What runs already and is no part of the fleet stays outside: other labs, this program, the machine's own.
        self._outside = {number for number in _numbers() if self._owner(number) is None}
        self._read = {}

    def look(self):
        """Look once."""
        self.rounds += 1
        numbers = _numbers()
        self._outside &= numbers
        for number in numbers - self._outside:
            owner = self._owner(number)
            if owner is None:
                continue
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    data = Path(f"/proc/{number}/{name}").read_bytes()
                    if data:
                        self._keep("process", owner, name, data)
        for owner, folder, path in self._temporary():
            self._file(owner, folder, path)

    def _keep(self, kind, owner, where, data):
        self._seen.setdefault((kind, owner, where), set()).add(data)

    def _owner(self, number):
        """Whose process it is: a host's name, ``controller``, or None."""
        try:
            namespace = Path(f"/proc/{number}/ns/net").stat().st_ino
            root = Path(f"/proc/{number}/root").stat()
        except OSError:
            return None
        for host in self._fleet.hosts.values():
            if root.st_ino == host.root_number[1] and root.st_dev == host.root_number[0]:
                return host.name
        return self._namespaces().get(namespace)

    def _namespaces(self):
        if not hasattr(self, "_known"):
            names = {self._fleet.network.controller: "controller"}
            names |= {host.namespace: host.name for host in self._fleet.hosts.values()}
            self._known = {Path(f"/run/netns/{name}").stat().st_ino: owner for name, owner in names.items()}
        return self._known

    def _temporary(self):
        folder = self._fleet.folder
        for name in ("ansible", ".ansible", "tmp"):
            for path in _files(folder / name):
                yield "controller", folder, path
        for host in self._fleet.hosts.values():
            root = host.inside()
            for name in TEMPORARY:
                for path in _files(root / name):
                    yield host.name, root, path

    def _file(self, owner, folder, path):
        with contextlib.suppress(OSError):
            about = path.stat()
            stamp = about.st_ino, about.st_size, about.st_mtime_ns
            if self._read.get(path) != stamp:
                self._read[path] = stamp
                self._keep("temporary", owner, f"/{path.relative_to(folder)}", _content(path))


def _numbers():
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 - fifty times a second


def _left_on(host):
    for path in _files(host.written, without={host.written / name for name in NO_FILES}):
        yield "file", f"/{path.relative_to(host.written)}", _content(path)
    if host.kind != "device":
        root = host.inside()
        for name in VOLATILE:
            for path in _files(root / name, without={root / "run/log/journal"}):
                yield "file", f"/{path.relative_to(root)}", _content(path)
    if host.kind == "systemd":
        # All fields of an entry, not only what it says.
        yield (
            "journal",
            "all entries",
            host.ssh("journalctl --quiet --no-pager --all --output=export").encode(
                "utf-8", "surrogateescape"
            ),
        )
    yield "journal", "console", host.log().encode()


def _files(folder, *, without=()):
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if here / name not in without]
        for name in names:
            path = here / name
            with contextlib.suppress(OSError):
                # Sockets, pipes and devices hold nothing.
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def _content(path):
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(MOST)
    return b""
