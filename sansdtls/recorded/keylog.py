"""Key logs in the NSS format, as ``key_log_line`` writes them and Wireshark reads them."""

from __future__ import annotations

import re

_LINE = re.compile(rb"CLIENT_RANDOM ([0-9A-Fa-f]{64}) ([0-9A-Fa-f]{96})")


def parse_key_log(content: bytes) -> dict[bytes, bytes]:
    """The master secrets in a key log, by client random. Lines of other kinds, comments and junk are passed over."""
    found = (_LINE.fullmatch(line.strip()) for line in content.splitlines())
    return {bytes.fromhex(match[1].decode()): bytes.fromhex(match[2].decode()) for match in found if match}
