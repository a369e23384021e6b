"""The stateless cookie of HelloVerifyRequest, RFC 6347 §4.2.1.

Attacker: sends ClientHellos with addresses that are not its own, to make the server hold memory, do work
or send larger datagrams to a victim; may collect cookies at its own addresses.

Properties wanted: (1) until a cookie has come back nothing is remembered, and the answer is a function of
the datagram, the path, the time and a key alone; (2) a cookie is good for the path it was sent to and for
the very ClientHello it answered; (3) it is good for a minute or two, not for ever; (4) the answer is never
larger than the question; (5) comparing leaks nothing.

Construction: HMAC-SHA-256 over the path and every byte of the ClientHello but the cookie, truncated. Each
part goes in behind its length, so no two inputs run together. Two keys exist: the current one signs,
and the one before verifies as well; each ``CookiePolicy.rotation`` seconds the current one becomes the one
before and fresh bytes from ``entropy`` take its place. That happens when a key is next used, so nothing
needs a timer.

Fragmented hellos. Of a ClientHello that comes in several fragments only the first is looked at before the
cookie, and only up to the cookie: that is all one datagram can show. Its cookie covers the path, those
leading fields (version, random, session_id) and the length of the message without the cookie. Other
fragments are dropped and counted until a first fragment has brought a valid cookie; only then does a
bounded reassembly begin. So an attacker without the victim's datagrams gets no memory from fragments
either. Left out: such a cookie does not cover the cipher suites and extensions, which the server has never
seen in one piece. Nothing hangs on them before Finished, and Finished covers them.

Paths enter through their ``repr``; two paths that print alike share a cookie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.crypto.prf import HmacSha256, equal

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sansdtls.config import CookiePolicy

_WHOLE = b"\0\0\0\5whole"
_FIRST_FRAGMENT = b"\0\0\0\16first fragment"


def whole_hello(path: Hashable, before: bytes, after: bytes) -> bytes:
    """What the cookie of an unfragmented hello covers; ``before`` and ``after`` surround the cookie."""
    return _joined(_WHOLE, path, before, after)


def first_fragment(path: Hashable, before: bytes, length_without_cookie: int) -> bytes:
    """What the cookie of a fragmented hello covers."""
    return _joined(_FIRST_FRAGMENT, path, before, length_without_cookie.to_bytes(4))


def _joined(kind: bytes, path: Hashable, before: bytes, after: bytes) -> bytes:
    # Spelled out: a flood calls this more often than anything else.
    where = repr(path).encode()
    return b"".join(
        (kind, len(where).to_bytes(4), where, len(before).to_bytes(4), before, len(after).to_bytes(4), after)
    )


class CookieKeys:
    """The current key and the one before."""

    __slots__ = ("_current", "_entropy", "_policy", "_previous", "_replace_at")

    def __init__(self, policy: CookiePolicy, entropy: Callable[[int], bytes], now: float) -> None:
        self._policy = policy
        self._entropy = entropy
        self._current = self._new_key()
        self._previous = self._new_key()
        self._replace_at = now + policy.rotation

    def cookie(self, covered: bytes, now: float) -> bytes:
        """A cookie under the current key."""
        self._rotate(now)
        return self._current.of(covered)[: self._policy.cookie_length]

    def verifies(self, cookie: bytes, covered: bytes, now: float) -> bool:
        """Whether ``cookie`` was made for ``covered`` under the current key or the one before."""
        self._rotate(now)
        if len(cookie) != self._policy.cookie_length:
            return False
        length = self._policy.cookie_length
        return equal(cookie, self._current.of(covered)[:length]) or equal(
            cookie, self._previous.of(covered)[:length]
        )

    def _rotate(self, now: float) -> None:
        if now < self._replace_at:
            return
        missed = int((now - self._replace_at) // self._policy.rotation)
        # After a long silence the current key is too old even to be the previous one.
        self._previous = self._new_key() if missed else self._current
        self._current = self._new_key()
        self._replace_at += (missed + 1) * self._policy.rotation

    def _new_key(self) -> HmacSha256:
        return HmacSha256(self._entropy(self._policy.key_length))
