"""Runs a program under what a unit file takes away, as far as that can be done without a service manager.

    python -m tests.program.confined UNIT COMMAND...

PrivateNetwork, RestrictAddressFamilies, SystemCallFilter, CapabilityBoundingSet, NoNewPrivileges, MemoryDenyWriteExecute, LimitNOFILE and
LimitCORE are applied by the kernel's own means, as systemd does it; ``systemd-analyze`` says what groups of system calls stand for.
Needs root, to give up what root may do. The user stays, since Python may be in the home directory of root; without capabilities it may do no more
than any owner of files.
"""

import ctypes
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_SET_MDWE = 38, 24, 65
LAST_CAPABILITY = 40
SCMP_ACT_ALLOW, SCMP_ACT_ERRNO = 0x7FFF0000, 0x00050000
EPERM, EAFNOSUPPORT = 1, 97
SCMP_CMP_NE = 1
FAMILIES = {"AF_UNIX": socket.AF_UNIX, "AF_INET": socket.AF_INET, "AF_INET6": socket.AF_INET6}


def settings(unit):
    """(name, value) of each line of ``[Service]``."""
    lines = Path(unit).read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


def system_calls(unit):
    """The names that SystemCallFilter= leaves."""
    allowed: set[str] = set()
    for name, value in settings(unit):
        if name == "SystemCallFilter":
            called = {call for word in value.lstrip("~").split() for call in members(word)}
            allowed = allowed - called if value.startswith("~") else allowed | called
    return allowed


def members(word):
    """System calls that a word of SystemCallFilter= stands for, groups of groups included."""
    if not word.startswith("@"):
        return {word}
    told = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", word], capture_output=True, text=True, check=True
    ).stdout
    words = [line.strip() for line in told.splitlines() if line.startswith("    ")]
    return {call for one in words if not one.startswith("#") for call in members(one)}


class Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def filter_system_calls(allowed, families):
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(SCMP_ACT_ERRNO | EPERM)))
    for name in allowed - {"socket"}:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert seccomp.seccomp_rule_add(context, ctypes.c_uint32(SCMP_ACT_ALLOW), number, 0) == 0
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        equal = Comparison(0, 4, family, 0)
        assert (
            seccomp.seccomp_rule_add_array(
                context, ctypes.c_uint32(SCMP_ACT_ALLOW), number, 1, ctypes.byref(equal)
            )
            == 0
        )
    assert seccomp.seccomp_load(context) == 0


def confine(unit):
    told = dict(settings(unit))
    libc = ctypes.CDLL(None, use_errno=True)
    calls = system_calls(unit)
    if told.get("PrivateNetwork") == "yes":
        assert libc.unshare(CLONE_NEWNET) == 0, "no namespace"
    files = int(told["LimitNOFILE"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    assert told["CapabilityBoundingSet"] == ""
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    assert told["NoNewPrivileges"] == "yes"
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if told["MemoryDenyWriteExecute"] == "yes":
        libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # from Linux 6.3 on
    filter_system_calls(calls, [FAMILIES[name] for name in told["RestrictAddressFamilies"].split()])


if __name__ == "__main__":
    confine(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - that is what it is for
