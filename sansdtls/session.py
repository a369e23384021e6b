"""What both sides keep of a handshake to resume it, RFC 5246 §7.3 and RFC 5077.

Sessions exist only with extended_master_secret: without it a man in the middle can make two sessions share
a master secret, and resuming one of them would pass for the other (RFC 7627 §1).
"""

from __future__ import annotations

import enum

import attrs

from sansdtls.crypto.prf import MASTER_SECRET_LENGTH
from sansdtls.errors import ConfigError, DecodeError
from sansdtls.iana import CipherSuite
from sansdtls.wire.codec import Reader, vector

_FORMAT = 1
"""First byte of the encoding. Another meaning of any field takes another number."""


@enum.unique
class _Field(enum.IntEnum):
    """Optional fields of the encoding."""

    SERVER_NAME = 1
    PSK_IDENTITY = 2
    PSK_FINGERPRINT = 3
    CERTIFICATE = 4
    RAW_PUBLIC_KEY = 5
    SERVER_KEY = 6
    SESSION_ID = 7
    TICKET = 8


def _master_secret(_: object, __: object, value: bytes) -> None:
    if len(value) != MASTER_SECRET_LENGTH:
        raise ConfigError(f"Session.master_secret: {len(value)} bytes instead of {MASTER_SECRET_LENGTH}")


@attrs.frozen(kw_only=True)
class Session:
    """A finished handshake, as far as another one can go on from it. Holds a secret: treat it like a key.

    A client gets it as ``connection.session`` and offers it again as ``ClientConfig.session``. A server seals
    it into a ticket, or keeps it under a session ID.
    """

    cipher_suite: CipherSuite
    master_secret: bytes = attrs.field(repr=False, validator=_master_secret)
    server_name: str | None = None
    """The name that was asked for; a session is resumed under no other."""
    psk_identity: bytes | None = None
    psk_fingerprint: bytes | None = attrs.field(default=None, repr=False)
    """Server: tells whether the PSK is still among the identity's keys."""
    certificate_chain: tuple[bytes, ...] | None = attrs.field(default=None, repr=False)
    """What the peer showed."""
    raw_public_key: bytes | None = attrs.field(default=None, repr=False)
    """As above."""
    server_key: bytes | None = attrs.field(default=None, repr=False)
    """Server: digest of the public key that it showed; the session ends with that credential."""
    session_id: bytes = attrs.field(default=b"", repr=False)
    """Client: under which the server keeps it, if it gave no ticket."""
    ticket: bytes = attrs.field(default=b"", repr=False)
    """Client: the server's sealed copy."""
    lifetime: int = 0
    """Seconds that the server expects the ticket to be good for; 0 = it does not say."""
    created_at: int = 0
    """Server: seconds on its own clock."""

    def to_bytes(self) -> bytes:
        """For a file or a ticket. Not encrypted."""
        fields: list[tuple[_Field, bytes]] = []
        if self.server_name is not None:
            fields.append((_Field.SERVER_NAME, self.server_name.encode()))
        for kind, value in (
            (_Field.PSK_IDENTITY, self.psk_identity),
            (_Field.PSK_FINGERPRINT, self.psk_fingerprint),
            (_Field.RAW_PUBLIC_KEY, self.raw_public_key),
            (_Field.SERVER_KEY, self.server_key),
            (_Field.SESSION_ID, self.session_id or None),
            (_Field.TICKET, self.ticket or None),
        ):
            if value is not None:
                fields.append((kind, value))
        fields += [(_Field.CERTIFICATE, certificate) for certificate in self.certificate_chain or ()]
        return (
            bytes([_FORMAT])
            + self.cipher_suite.to_bytes(2)
            + vector(1, self.master_secret)
            + self.lifetime.to_bytes(4)
            + self.created_at.to_bytes(8)
            + vector(4, b"".join(bytes([kind]) + vector(3, value) for kind, value in fields))
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Session:
        """The opposite of :meth:`to_bytes`. Raises ConfigError for anything else."""
        try:
            return cls._decode(data)
        except (DecodeError, ValueError) as error:
            raise ConfigError(f"this is no saved session: {error}") from None

    @classmethod
    def _decode(cls, data: bytes) -> Session:
        reader = Reader(data, "session")
        version = reader.integer(1)
        if version != _FORMAT:
            raise DecodeError(f"format {version} is not known")
        suite = CipherSuite(reader.integer(2))
        master_secret = reader.vector(1)
        lifetime, created_at = reader.integer(4), reader.integer(8)
        fields: dict[_Field, bytes] = {}
        chain = []
        entries = Reader(reader.vector(4), "session")
        reader.end()
        while entries.remaining:
            kind, value = _Field(entries.integer(1)), entries.vector(3)
            if kind is _Field.CERTIFICATE:
                chain.append(value)
            elif kind in fields:
                raise DecodeError(f"{kind.name} stands there twice")
            else:
                fields[kind] = value
        name = fields.get(_Field.SERVER_NAME)
        return cls(
            cipher_suite=suite,
            master_secret=master_secret,
            server_name=None if name is None else name.decode(),
            psk_identity=fields.get(_Field.PSK_IDENTITY),
            psk_fingerprint=fields.get(_Field.PSK_FINGERPRINT),
            certificate_chain=tuple(chain) or None,
            raw_public_key=fields.get(_Field.RAW_PUBLIC_KEY),
            server_key=fields.get(_Field.SERVER_KEY),
            session_id=fields.get(_Field.SESSION_ID, b""),
            ticket=fields.get(_Field.TICKET, b""),
            lifetime=lifetime,
            created_at=created_at,
        )
