r"""A datagram as a JSON object, and a reply as one: what ``jsonl``, ``unix`` and others read and write.

::

    {"time": "2025-01-31T23:59:59.123Z", "identity": "meter-17", "path": "192.0.2.7:40000", "data": "21.4 °C"}
    {"identity": "meter-17", "data": "on"}                              a reply
    {"identity": "meter-17", "data_base64": "/wA="}                     one that is not UTF-8

``identity`` is escaped as in the log (``endpoint.text``): ``\x0a`` for a line feed, ``\xff`` for a byte that is no UTF-8.
A reply names its device by the same text, so what was read can be written back as it is.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from endpoint.association import CredentialKind
from endpoint.text import show_bytes

if TYPE_CHECKING:
    from endpoint.association import Association

_ESCAPE = re.compile(rb"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def object_of(association: Association, data: bytes, time: str) -> dict[str, str | None]:
    """What a device sent. ``identity`` is null for one that showed none."""
    nobody = association.kind is CredentialKind.NONE
    return {
        "time": time,
        "identity": None if nobody else show_bytes(association.identity),
        "path": association.remote,
        **payload_of(data),
    }


def payload_of(data: bytes) -> dict[str, str]:
    """``data`` where it is UTF-8, else ``data_base64``: a reader never has to guess."""
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode("ascii")}


def reply_in(content: bytes) -> tuple[bytes, bytes]:
    """Identity and data of a reply; ValueError if it is none."""
    try:
        found: Any = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - for the caller all of it is malformed
    identity, text, binary = found.get("identity"), found.get("data"), found.get("data_base64")
    if not isinstance(identity, str) or (text is None) == (binary is None):
        raise ValueError("a reply has an identity, and data or data_base64")
    if isinstance(text, str):
        return read_identity(identity), text.encode()
    if not isinstance(binary, str):
        raise ValueError("data are text")  # noqa: TRY004 - as above
    return read_identity(identity), base64.b64decode(binary, validate=True)


def read_identity(text: str) -> bytes:
    """The bytes that :func:`endpoint.text.show_bytes` shows as ``text``; ValueError if there are none."""
    identity = _ESCAPE.sub(_unescape, text.encode())
    if show_bytes(identity) != text:
        raise ValueError("not an identity as the log shows it")
    return identity


def _unescape(match: re.Match[bytes]) -> bytes:
    escape = match.group(1)
    if escape == b"\\":
        return escape
    number = int(escape[1:], 16)
    # Below 0x80 a character is its byte; above, \x stands for a byte that is no UTF-8.
    if escape[:1] == b"x":
        return bytes((number,))
    try:
        return chr(number).encode()
    except (ValueError, OverflowError):
        return b""  # no character: the comparison above sees it
