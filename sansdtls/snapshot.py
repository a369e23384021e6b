"""A frozen association as bytes: what is saved of it, how it is written, sealed and read again.

Attackers: (1) one who reads where blobs are kept: a stolen disk, a backup, a file with careless permissions;
(2) one who can also write there, and so may alter blobs, exchange them, plant blobs of its own or put back old
ones; (3) accidents: half a file, another version of this program, another installation's key.

Properties, with an operator's key: (1) a blob tells its length, that it is one of ours, and when it expires,
and nothing else; (2) without a key none can be made or altered, in no bit, the clear header included; a blob that
is not sealed is refused, since anybody could have planted it. Without a key: whoever reads a blob
reads the association's master secret, whoever can write one owns the association, and the checksum tells accidents
only. So blobs without a key belong into the memory of the process that made them. In both forms: (3) each
byte string that is read at all is read in one way, and is what this module writes for that value: there
is nothing to be smuggled between the fields, and all values are possible ones.

Construction. ``version, expires_at, body, checksum`` or ``version, expires_at, salt, sealed body``. Each blob
is sealed under a key of its own: HMAC-SHA-256(operator's key, label ‖ salt), with 24 random bytes of salt.
The AEAD is AES-256-GCM, its nonce constant, as the key is used once; the header and the salt are its
additional data. Why not the operator's key with a random nonce: a nonce has 96 bits, and NIST SP 800-38D §8.3
then allows one key 2**32 messages. A million associations that are checkpointed each second come there in
72 minutes, and what two equal nonces of GCM give away is the authentication key. Two equal salts of 192 bits
do not happen. Of several keys the first seals and each is tried, so a key can be replaced without a
stop; a key that has leaked is to be taken out, not to be moved to the end.

Left out. *Replay*: an old blob is as authentic as it was when it was new. That a blob is used once is the business of
the store, which takes it out before it hands it out, and of ``serial``; that no nonce repeats if it is used
again after all is that of the numbers below. *Forward secrecy*: key and blob together open what has been recorded of the
association, and stay dangerous for as long as both exist. *Secrets in memory*: Python cannot wipe them.

Numbers that never repeat. An AEAD's nonce is the record's number, so a number must never be used twice. A blob
says the next number to write when it was made, and the generation: how often the service that keeps such blobs
had been started. Who thaws it in a later generation begins :data:`RESERVE` numbers further on for each, which is more
than a process may have sent since its last checkpoint; and always :data:`THAW_JUMP` further on.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from sansdtls.crypto.prf import hmac_sha256, sha256
from sansdtls.crypto.suites import NotAuthentic, new_ticket_aead
from sansdtls.errors import DecodeError, SnapshotError
from sansdtls.saved import decode_body, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from sansdtls.crypto.suites import Aead
    from sansdtls.saved import SavedAssociation

RESERVE = 1024
"""Records. What a durable server may send of an association beyond its last confirmed checkpoint, and so what is
left out for each generation that has passed since. Each restart costs so many of a key's 2**23 or more."""
THAW_JUMP = 16
"""Records left out at each thaw, in case somebody has kept a copy of an association that went on a little."""

_FORMAT = 1
"""Version of the encoding. Another meaning of any byte takes another number."""
_SEALED = 0x80
"""Stands in the version's byte."""
_HEADER = struct.Struct("!Bd")
"""version, expires_at: readable without the key, authenticated all the same."""
_CHECKSUM_LENGTH = 8
_SALT_LENGTH = 24
_NONCE = bytes(12)
_LABEL = b"sansdtls snapshot key"


def encode_snapshot(
    saved: SavedAssociation, *, keys: tuple[bytes, ...], entropy: Callable[[int], bytes]
) -> bytes:
    """``saved`` as a blob, sealed under the first of ``keys``; without a key it is open to read.

    Raises SnapshotError for values that :func:`decode_snapshot` would not take, above all for a path that cannot
    be saved.
    """
    body = encode_body(saved)
    if not keys:
        blob = _HEADER.pack(_FORMAT, saved.expires_at) + body
        return blob + _checksum(blob)
    start = _HEADER.pack(_FORMAT | _SEALED, saved.expires_at) + entropy(_SALT_LENGTH)
    return start + _one_time_aead(keys[0], start).encrypt(_NONCE, body, start)


def decode_snapshot(blob: bytes, *, keys: tuple[bytes, ...]) -> SavedAssociation:
    """The association in a blob. Raises SnapshotError if it is not exactly what one of ``keys`` sealed.

    Without keys it has to be an unsealed one, undamaged.
    """
    expires = expires_at(blob)
    if blob[0] & _SEALED:
        body = _open(blob, keys)
    elif keys:
        # Whoever can write to the store could otherwise plant an association of its own.
        raise SnapshotError("this frozen association is not sealed, but there is a key: it is not taken")
    else:
        if _checksum(blob[:-_CHECKSUM_LENGTH]) != blob[-_CHECKSUM_LENGTH:]:
            raise SnapshotError("this frozen association is damaged: its checksum is wrong")
        body = blob[_HEADER.size : -_CHECKSUM_LENGTH]
    try:
        return decode_body(body, expires)
    except (DecodeError, UnicodeDecodeError) as error:
        raise SnapshotError(f"this is no frozen association: {error}") from None


def sealed_anew(blob: bytes, keys: tuple[bytes, ...], entropy: Callable[[int], bytes]) -> bytes:
    """An unsealed blob under the first of ``keys``; a sealed one, or without keys, as it is. Raises SnapshotError."""
    if not keys or not blob or blob[0] & _SEALED:
        return blob
    return encode_snapshot(decode_snapshot(blob, keys=()), keys=keys, entropy=entropy)


def expires_at(blob: bytes) -> float:
    """When the association in a blob is over, in seconds; ``inf``: never. Needs no key, and checks none.

    Raises SnapshotError for what is no blob of this version.
    """
    if not blob:
        raise SnapshotError("this is no frozen association: it is empty")
    version = blob[0] & ~_SEALED
    if version != _FORMAT:
        raise SnapshotError(
            f"this frozen association is of version {version}; version {_FORMAT} is known here"
        )
    rest = _SALT_LENGTH if blob[0] & _SEALED else _CHECKSUM_LENGTH
    if len(blob) < _HEADER.size + rest:
        raise SnapshotError(f"this frozen association is cut short: it has {len(blob)} bytes")
    expires: float = _HEADER.unpack_from(blob)[1]
    if not expires > -math.inf:  # nor is it NaN then
        raise SnapshotError(f"this is no frozen association: expires_at: {expires} is no time")
    return expires


def _checksum(data: bytes) -> bytes:
    return sha256(data)[:_CHECKSUM_LENGTH]


def _one_time_aead(key: bytes, start: bytes) -> Aead:
    return new_ticket_aead(hmac_sha256(key, _LABEL + start[_HEADER.size :]))


def _open(blob: bytes, keys: tuple[bytes, ...]) -> bytes:
    if not keys:
        raise SnapshotError("this frozen association is sealed, and there is no key to open it")
    length = _HEADER.size + _SALT_LENGTH
    start, sealed = blob[:length], blob[length:]
    for key in keys:
        try:
            return _one_time_aead(key, start).decrypt(_NONCE, sealed, start)
        except NotAuthentic:
            continue
    raise SnapshotError("this frozen association was sealed under another key, or is damaged")
