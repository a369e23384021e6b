"""A server's memory of finished handshakes: stateless tickets (RFC 5077) and a bounded cache (RFC 5246 §F.1.4).

Attacker: may hold tickets and session IDs of its own, may have seen those of others, may send changed ones;
may have been a legitimate device whose key or certificate was withdrawn since. Properties: a ticket can be
neither read nor made nor altered without the server's key; a session is resumed only by who holds its master
secret (Finished proves that), under the server name it was made for, with a credential of the server that
is still in use, and after the caller has agreed once more to the client's credential; nothing is looked up
before the client has proved its address; memory is bounded.

Construction: a ticket is a session sealed with AES-256-GCM under a key of the server's own, with a random
nonce; the key's name in front is authenticated with it. Keys live two lifetimes: in the first they seal, in
both they open. Each session carries when it was made and is not resumed after its lifetime, whichever key
opens it.

Left out: forward secrecy of resumed sessions towards somebody who takes the server's memory: ticket keys open
what was resumed within two lifetimes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from sansdtls.crypto.prf import hmac_sha256
from sansdtls.crypto.suites import NotAuthentic, new_ticket_aead
from sansdtls.errors import ConfigError
from sansdtls.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from sansdtls.config import ResumptionPolicy
    from sansdtls.crypto.suites import Aead

_NAME_LENGTH = 16
_NONCE_LENGTH = 12
_KEY_LENGTH = 32
SESSION_ID_LENGTH = 32
"""Bytes; the longest that RFC 5246 §7.4.1.2 allows, so that it cannot be guessed."""
MAX_TICKET_LENGTH = 4096
"""Bytes. A session with a longer certificate chain gets no ticket: it would have to travel in every hello."""


def psk_fingerprint(psk: bytes) -> bytes:
    """Tells keys of one identity apart without being one."""
    return hmac_sha256(psk, b"sansdtls session")[:16]


class _TicketKey:
    __slots__ = ("aead", "name")

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self.name = entropy(_NAME_LENGTH)
        self.aead: Aead = new_ticket_aead(entropy(_KEY_LENGTH))


class Sessions:
    """All that a server can resume."""

    __slots__ = ("_cache", "_current", "_entropy", "_policy", "_previous", "_replace_at")

    def __init__(self, policy: ResumptionPolicy, entropy: Callable[[int], bytes], now: float) -> None:
        self._policy = policy
        self._entropy = entropy
        self._current = _TicketKey(entropy)
        self._previous: _TicketKey | None = None
        self._replace_at = now + policy.lifetime
        self._cache: OrderedDict[bytes, Session] = OrderedDict()

    def __len__(self) -> int:
        """Sessions in the cache."""
        return len(self._cache)

    @property
    def policy(self) -> ResumptionPolicy:
        """The policy they are kept by."""
        return self._policy

    def seal(self, session: Session, now: float) -> bytes:
        """A ticket; empty where it would be too large."""
        self._rotate(now)
        nonce = self._entropy(_NONCE_LENGTH)
        name = self._current.name
        ticket = name + nonce + self._current.aead.encrypt(nonce, session.to_bytes(), name)
        return ticket if len(ticket) <= MAX_TICKET_LENGTH else b""

    def open_untrusted(self, ticket: bytes, now: float) -> Session | None:
        """The session in a ticket of ours that is still good."""
        self._rotate(now)
        name, rest = ticket[:_NAME_LENGTH], ticket[_NAME_LENGTH:]
        for key in (self._current, self._previous):
            if key is not None and key.name == name:  # public: it stands in every ticket
                try:
                    return self._fresh(
                        Session.from_bytes(
                            key.aead.decrypt(rest[:_NONCE_LENGTH], rest[_NONCE_LENGTH:], name)
                        ),
                        now,
                    )
                except (NotAuthentic, ConfigError, ValueError):
                    return None
        return None

    def keep(self, session_id: bytes, session: Session) -> None:
        """Put a session into the cache."""
        self._cache[session_id] = session
        while len(self._cache) > self._policy.cache_size:
            self._cache.popitem(last=False)

    def find(self, session_id: bytes, now: float) -> Session | None:
        """A session of the cache that is still good."""
        session = self._cache.get(session_id)
        if session is None:
            return None
        self._cache.move_to_end(session_id)
        return self._fresh(session, now)

    def _fresh(self, session: Session, now: float) -> Session | None:
        return session if now - session.created_at < self._policy.lifetime else None

    def _rotate(self, now: float) -> None:
        if now < self._replace_at:
            return
        missed = int((now - self._replace_at) // self._policy.lifetime)
        self._previous = None if missed else self._current
        self._current = _TicketKey(self._entropy)
        self._replace_at += (missed + 1) * self._policy.lifetime
