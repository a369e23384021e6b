"""Recorded datagrams, read by a bystander, and given once more to a server.

For captures, tests and puzzled people; nothing here is used by a connection at work. ::

    from sansdtls.recorded import Recording, parse_key_log

    recording = Recording(secrets=parse_key_log(content), is_server=lambda source, _: source == server)
    for source, destination, datagram in datagrams:
        seen = recording.read(datagram, source=source, destination=destination)
        for record in seen.records:
            print(record.verdict.value, record.content)

A recording is what somebody else wrote: whatever its bytes, reading raises nothing.

Who has a key log, or for plain PSK suites the key, reads everything. What a bystander cannot do: open records of a
suite with ephemeral Diffie-Hellman by the PSK alone, follow an association whose hellos were not recorded, or tell
records that never were sent from records that were not recorded.
"""

from sansdtls.crypto.suites import KeyExchange
from sansdtls.iana import ContentType, HandshakeType
from sansdtls.recorded.association import Opener, RecordedAssociation
from sansdtls.recorded.keylog import parse_key_log
from sansdtls.recorded.recording import Recording, SeenDatagram
from sansdtls.recorded.replay import Replay, ReplayStep
from sansdtls.recorded.seen import SeenMessage, SeenRecord, Verdict
from sansdtls.recorded.words import name_of

__all__ = [
    "ContentType",
    "HandshakeType",
    "KeyExchange",
    "Opener",
    "RecordedAssociation",
    "Recording",
    "Replay",
    "ReplayStep",
    "SeenDatagram",
    "SeenMessage",
    "SeenRecord",
    "Verdict",
    "name_of",
    "parse_key_log",
]
