"""Exceptions.

The tree, and whose mistake each one is::

    DtlsError
    └── UsageError              the caller's: the call was wrong, and nothing was done
        ├── ConfigError         a configuration value is out of range or contradicts another
        ├── WrongState          the call is not possible in this state (closed, not yet connected, answered twice)
        ├── MessageTooLarge     the data do not fit one record and one datagram
        └── SnapshotError       a frozen association cannot be used

Bytes from the network never make a public method raise. ``DecodeError`` and ``FatalAlert`` carry
such mistakes inside the package and stop at its edge; they are no ``DtlsError`` on purpose, so
that ``except DtlsError`` around a public call can never hide one that escaped.
"""

from sansdtls.iana import AlertDescription


class DtlsError(Exception):
    """Base of every exception that a public method raises."""


class UsageError(DtlsError):
    """The caller used the API wrongly. Never caused by network data; nothing has changed."""


class ConfigError(UsageError):
    """A configuration value is out of range or contradicts another one."""


class WrongState(UsageError):
    """The call is not possible in the connection's present state."""


class MessageTooLarge(UsageError):
    """Application data larger than :attr:`Connection.max_payload`; DTLS does not fragment them."""


class SnapshotError(UsageError):
    """A frozen association cannot be used: damaged, of another version, under another key, loaded before.

    Also where one cannot be frozen, because its path is of a kind that cannot be saved.
    """


class DecodeError(Exception):
    """Network bytes that do not follow the syntax. Internal: ``sansdtls.wire`` raises it and nothing else.

    ``description`` is the alert that RFC 5246 §7.2.2 assigns to this kind of mistake; ``rule``
    is a short sentence for the operator. The peer is told the description only.
    """

    def __init__(self, rule: str, description: AlertDescription = AlertDescription.DECODE_ERROR):
        super().__init__(rule)
        self.rule = rule
        self.description = description
