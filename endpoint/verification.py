"""Who a peer with a certificate or a raw public key is: asked of a verifier, now or later.

A verifier is any callable that takes the core's request and returns the identity, or an awaitable of it, or raises
:class:`PeerRejected`. :class:`PeerVerifier` is the usual one: path validation by ``sansdtls.pki`` in worker threads,
raw public keys from a table. Without a verifier nobody is accepted.

No bound of its own is needed on verifications under way: there is one per handshake, it is cancelled when the
handshake ends, and ``Limits.max_half_open`` and ``RetransmitPolicy.handshake_timeout`` bound those. Threads are
bounded by a limiter. A thread cannot be stopped: one that is left behind by its handshake keeps its place in
the limiter until it is done, so there are never more than the limiter allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import trio

from sansdtls import AlertDescription, ConfigError, PeerCertificateReceived, PeerRawKeyReceived
from sansdtls.pki import CertificateRejected, Purpose, TrustPolicy, Verifier

if TYPE_CHECKING:
    from sansdtls import Event

VERIFY_THREADS = 4
"""Certificate chains examined at once. A chain takes about a millisecond; more threads than cores are there for a
chain that takes long, so that it holds up nobody."""

MAX_IDENTITY = 1024
"""Bytes of an identity that a verifier gives: what the core keeps with a frozen association. Cut off, one would be
another device's."""

PeerRequest: TypeAlias = PeerCertificateReceived | PeerRawKeyReceived
Verify: TypeAlias = Callable[[PeerRequest], bytes | Awaitable[bytes]]
"""Gives the identity of the peer, 1 to 1024 bytes, or raises :class:`PeerRejected`. What it returns at once must not
take long to compute; an awaitable runs in a task of its own and is cancelled when its handshake ends first. Called with
``request.resumption`` it is asked whether a peer seen before is still welcome; refusing then means a full handshake."""


class PeerRejected(Exception):
    """The peer is not let in.

    ``problem`` is a short label for counters and ``detail`` a sentence for the operator; neither is told
    to the peer, who gets ``alert``.
    """

    def __init__(
        self, problem: str, detail: str, alert: AlertDescription = AlertDescription.CERTIFICATE_UNKNOWN
    ) -> None:
        super().__init__(f"{problem}: {detail}")
        self.problem = problem
        self.detail = detail
        self.alert = alert


def reject_all(_request: PeerRequest) -> bytes:
    """The verifier of those who gave none: nobody is accepted."""
    raise PeerRejected("no_verifier", "no verifier was given, so nobody is accepted")


def wall_clock() -> datetime:
    """The time that certificates are valid at."""
    return datetime.now(UTC)


class PeerVerifier:
    """Certificates by a trust policy, raw public keys by a table."""

    def __init__(
        self,
        certificates: Verifier | TrustPolicy | None = None,
        raw_keys: Mapping[bytes, bytes] | None = None,
        *,
        server_name: str | None = None,
        wall_clock: Callable[[], datetime] = wall_clock,
        limiter: trio.CapacityLimiter | None = None,
    ) -> None:
        """``raw_keys`` maps a SubjectPublicKeyInfo in DER to an identity.

        ``server_name`` is whom a client wants to reach, where that is another name than the one it sends
        (``ClientConfig.server_name``). ``limiter`` bounds the threads; by default :data:`VERIFY_THREADS`.
        """
        self._verifier = Verifier(certificates) if isinstance(certificates, TrustPolicy) else certificates
        self._raw_keys = {} if raw_keys is None else raw_keys
        self._server_name = server_name
        self._wall_clock = wall_clock
        self._limiter = limiter or trio.CapacityLimiter(VERIFY_THREADS)

    def __call__(self, request: PeerRequest) -> bytes | Awaitable[bytes]:
        """See :data:`Verify`."""
        if isinstance(request, PeerCertificateReceived):
            return self._certificate(request)
        identity = self._raw_keys.get(request.spki)
        if identity is None:
            shown = hashlib.sha256(request.spki).hexdigest()
            raise PeerRejected("unknown_key", f"the raw public key with SHA-256 {shown} is not a known one")
        return identity

    async def _certificate(self, request: PeerCertificateReceived) -> bytes:
        if self._verifier is None:
            raise PeerRejected("no_trust_anchor", "no CA is trusted here, so no certificate is accepted")
        # On a server the request has the name that the client asked for, which says nothing about the client.
        wanted = None
        if self._verifier.policy.purpose is Purpose.SERVER:
            wanted = self._server_name or request.server_name
        verify = partial(self._verifier.verify, request.chain, at=self._wall_clock(), server_name=wanted)
        try:
            # In a thread: a chain with large keys takes milliseconds, in which others would wait.
            peer = await trio.to_thread.run_sync(verify, limiter=self._limiter, abandon_on_cancel=True)
        except CertificateRejected as rejected:
            raise PeerRejected(rejected.problem.value, rejected.detail, rejected.description) from None
        return peer.identity.encode()


def as_verify(given: Verify | Verifier | TrustPolicy | None, purpose: Purpose) -> Verify:
    """What ``serve_dtls`` and ``open_dtls`` are given, as a verifier; ``purpose`` is what the peers are."""
    if given is None:
        return reject_all
    if not isinstance(given, Verifier | TrustPolicy):
        return given
    policy = given.policy if isinstance(given, Verifier) else given
    if policy.purpose is not purpose:
        raise ConfigError(
            f"verify: a policy with Purpose.{purpose.name} is needed, not with Purpose.{policy.purpose.name}"
        )
    return PeerVerifier(given)


class Verifications:
    """Answers peer requests. Whatever a verifier does wrong becomes a refusal and a report."""

    def __init__(
        self,
        verify: Verify,
        *,
        clock: Callable[[], float],
        decided: Callable[[PeerRequest, bytes | PeerRejected], None],
        deliver: Callable[[list[Event], float], None],
        report: Callable[[str], None],
    ) -> None:
        """Tell a verdict to ``decided`` before the core hears of it, and what a late one brings about to ``deliver``.

        ``report(reason)`` gets each failure of the verifier itself.
        """
        self.verify = verify
        """May be replaced at any time; verifications under way finish with the one before."""
        self.pending = 0
        """Verifications under way (a gauge)."""
        self.failures = 0
        """Verifications that failed for a reason that is not the peer's."""
        self._clock = clock
        self._decided = decided
        self._deliver = deliver
        self._report = report

    def answer(
        self, request: PeerRequest, nursery: trio.Nursery, *, now: float
    ) -> tuple[list[Event], trio.CancelScope | None]:
        """Answer at once: what came of it; or start a task: the scope that ends it with its handshake."""
        try:
            answer: object = self.verify(request)
        except Exception as error:  # noqa: BLE001 - one peer's verification must not end the service for all
            answer = self._refusal(error)
        if not isinstance(answer, Awaitable):
            return self._tell(request, answer, now), None
        scope = trio.CancelScope()
        nursery.start_soon(self._verify, request, answer, scope)
        return [], scope

    async def _verify(
        self, request: PeerRequest, awaitable: Awaitable[object], scope: trio.CancelScope
    ) -> None:
        answer: object = None
        self.pending += 1
        try:
            with scope:
                try:
                    answer = await awaitable
                except Exception as error:  # noqa: BLE001 - as above
                    answer = self._refusal(error)
        finally:
            self.pending -= 1
        if not scope.cancel_called:  # nor was it too late to be cancelled, as the verdict had come already
            now = self._clock()
            self._deliver(self._tell(request, answer, now), now)

    def _refusal(self, error: Exception) -> PeerRejected:
        if isinstance(error, PeerRejected):
            return error
        return self._failed(repr(error))

    def _failed(self, reason: str) -> PeerRejected:
        self.failures += 1
        self._report(reason)
        return PeerRejected("verifier_failed", "the verifier failed; a line of its own says why")

    def _tell(self, request: PeerRequest, answer: object, now: float) -> list[Event]:
        if not isinstance(answer, bytes | PeerRejected):
            answer = self._failed(f"an identity in bytes is needed, not {type(answer).__name__}")
        elif not answer:
            answer = self._failed("an identity of at least one byte is needed")
        elif isinstance(answer, bytes) and len(answer) > MAX_IDENTITY:
            answer = self._failed(
                f"an identity of at most {MAX_IDENTITY} bytes is needed, not of {len(answer)}"
            )
        self._decided(request, answer)
        connection = request.connection
        if isinstance(answer, PeerRejected):
            return connection.reject_peer(request, answer.alert, now=now)
        return connection.accept_peer(request, now=now)
