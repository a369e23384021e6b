"""What a datagram is, as far as its first headers tell: for a caller who has more of them than time.

Attacker: sends many datagrams that are dear to receive, so that the dear ones of others find no time. Property: telling
what one is costs about a microsecond, reads a few bytes, changes and keeps nothing. Left out: whether it is genuine. Who
wants a hello to look like one with a cookie writes any 32 bytes there, and who knows a path can send what looks like the
next flight on it. So a kind says what a datagram may be worth, and a caller who serves some kinds first still has to leave
time for the others. Nor are records behind the first one looked at: a hello behind junk is junk here.
"""

from __future__ import annotations

import enum

from sansdtls.iana import ContentType, HandshakeType

_HANDSHAKE_BYTE = bytes([ContentType.HANDSHAKE])
_CLIENT_HELLO = int(HandshakeType.CLIENT_HELLO)
_EPOCH = slice(3, 5)
_EPOCH_0 = bytes(2)
_MESSAGE_TYPE = 13
"""Behind the record header."""
_FRAGMENT_OFFSET = slice(19, 22)
_NO_OFFSET = bytes(3)
_SESSION_ID_LENGTH = 59
"""Behind the handshake header, version and random of a ClientHello."""


@enum.unique
class DatagramKind(enum.Enum):
    """What :meth:`Server.kind_of` tells of a datagram; what most has been spent on comes first."""

    HANDSHAKE = "handshake"
    """From where a handshake is under way, or has been completed: then it repeats its end."""
    FROZEN = "frozen"
    """For an association that is frozen, and wakes if the record is authentic."""
    HELLO_WITH_COOKIE = "hello_with_cookie"
    """Its sender has perhaps proved the address; a handshake may begin."""
    HELLO = "hello"
    """Anybody's: to be answered with a cookie and forgotten."""
    NOISE = "noise"
    """Of nobody that anything is known of, and no beginning."""


def is_in_clear_untrusted(datagram: bytes) -> bool:
    """Whether the first record is in clear."""
    return datagram[_EPOCH] == _EPOCH_0


def kind_in_clear_untrusted(datagram: bytes) -> DatagramKind:
    """The kind of a datagram of which the first record is in clear, from where no handshake is under way."""
    if (
        datagram[:1] != _HANDSHAKE_BYTE
        or len(datagram) <= _SESSION_ID_LENGTH
        or datagram[_MESSAGE_TYPE] != _CLIENT_HELLO
        or datagram[_FRAGMENT_OFFSET] != _NO_OFFSET  # only a beginning makes a path known
    ):
        return DatagramKind.NOISE
    cookie_length = _SESSION_ID_LENGTH + 1 + datagram[_SESSION_ID_LENGTH]
    if cookie_length >= len(datagram):
        return DatagramKind.NOISE
    return DatagramKind.HELLO_WITH_COOKIE if datagram[cookie_length] else DatagramKind.HELLO
