"""What to do about a mistake whose line does not say so by itself: for ``check``, which people read.

Most mistakes name their remedy where they are found, because only there it is known. Here are those of which the cause comes from
elsewhere: the operating system, the TOML parser, a library for certificates.
"""

from __future__ import annotations

import re

_REMEDIES = (
    (r": cannot be read: no such file or directory$", "correct the name, or put the file there"),
    (r": cannot be read: is a directory$", "name a file"),
    (r": cannot be read: no such device or address$", "name a file, or a directory of files"),
    (r": cannot be read: permission denied$", "make the service's user its owner: chown, and chmod 600"),
    (r": line \d+: not UTF-8$", "save the file as UTF-8"),
    (r": line \d+, column \d+: Cannot (overwrite|declare) ", "it is there twice; leave one out"),
    (r": line \d+, column \d+: ", "correct that line; a table begins with [name], text stands in quotes"),
    (r": unknown key$", "leave it out; docs/configuration.md has all keys"),
    (r" is not hexadecimal$", "`openssl rand -hex 16` makes a key"),
    (r": a third key for ", "remove the one that no device has any more"),
    (r" belong in one file$", "put both lines into one of the two"),
    (r": holds a certificate(| revocation list) that cannot be read: ", "it is damaged; copy it there again"),
    (r" is no public key: ", "it is damaged; copy it from the device again"),
    (r": holds -----BEGIN .*, not a ", "name the file that holds what the key is for"),
    (r": holds no .*; it should have -----", "put the file there that has it, in PEM"),
    (r": .* is no IPv6 address \(a port belongs in listen\.port\)$", "the address alone"),
)


def with_remedy(line: str) -> str:
    """``line``, and what to do about it if it does not say so."""
    if "remedy: " in line:
        return line
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, line):
            return f"{line}; remedy: {remedy}"
    return line
