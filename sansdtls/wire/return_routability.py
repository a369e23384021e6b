"""Messages of the return routability check, RFC 9853 §4: a type and a cookie of eight bytes."""

from __future__ import annotations

from typing import NamedTuple

from sansdtls.errors import DecodeError
from sansdtls.iana import PathMessageType

COOKIE_LENGTH = 8
"""Bytes, RFC 9853 §4."""
PATH_MESSAGE_LENGTH = 1 + COOKIE_LENGTH
"""Bytes of each message that is defined."""

_TYPES = {int(message_type): message_type for message_type in PathMessageType}


class PathMessage(NamedTuple):
    """One path_challenge, path_response or path_drop."""

    message_type: PathMessageType
    cookie: bytes


def encode_path_message(message_type: PathMessageType, cookie: bytes) -> bytes:
    """The body of a record of type ``RETURN_ROUTABILITY_CHECK``."""
    return bytes([message_type]) + cookie


def decode_path_message_untrusted(fragment: bytes) -> PathMessage | None:
    """The message; ``None`` for a type that is not known, whatever follows it.

    Raises :class:`DecodeError` for an empty record and for a known type with anything but one cookie.
    """
    if not fragment:
        raise DecodeError("return_routability_check: empty")
    # RFC 9853 §4: "implementations MUST be able to parse and gracefully ignore messages with an unknown
    # msg_type."
    message_type = _TYPES.get(fragment[0])
    if message_type is None:
        return None
    if len(fragment) != PATH_MESSAGE_LENGTH:
        raise DecodeError(
            f"{message_type.name.lower()}: {len(fragment)} bytes instead of {PATH_MESSAGE_LENGTH}"
        )
    return PathMessage(message_type, fragment[1:])
