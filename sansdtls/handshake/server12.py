"""The server's side of a DTLS 1.2 handshake.

RFC 6347 §4.2.4; flights 1 and 2 are the cookie's (``cookie.py``). In brackets: not in every key exchange::

    Client                                  Server

    ClientHello (cookie)        -------->                           flight 3
                                                   ServerHello
                                                 [Certificate]
                                           [ServerKeyExchange]      flight 4
                                          [CertificateRequest]
                                <--------      ServerHelloDone
    [Certificate]
    ClientKeyExchange
    [CertificateVerify]                                             flight 5
    ChangeCipherSpec
    Finished                    -------->
                                            [NewSessionTicket]
                                              ChangeCipherSpec      flight 6
                                <--------             Finished

or, where a session is resumed::

    ClientHello (cookie)        -------->                           flight 3
                                                   ServerHello
                                              ChangeCipherSpec      flight 4b
                                <--------             Finished
    ChangeCipherSpec                                                flight 5b
    Finished                    -------->
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sansdtls.credentials import ClientAuthentication
from sansdtls.crypto.groups import EphemeralKey
from sansdtls.crypto.prf import psk_premaster_secret
from sansdtls.crypto.suites import KeyExchange
from sansdtls.errors import DecodeError
from sansdtls.events import AuthenticationFailed, AuthenticationProblem, PskRequested
from sansdtls.handshake.authentication import (
    certificate_body,
    check_signature,
    read_certificate_untrusted,
    shared_secret,
    signed_parameters,
)
from sansdtls.handshake.failure import HandshakeFailure, violation
from sansdtls.handshake.flight import FlightPart
from sansdtls.handshake.handshake import Handshake
from sansdtls.handshake.keys import DECOY, KeyCandidate
from sansdtls.handshake.negotiation import negotiate, server_extensions
from sansdtls.handshake.outcome import Peer
from sansdtls.handshake.resume12 import Resumption12, new_session
from sansdtls.handshake.states import State
from sansdtls.iana import (
    NULL_COMPRESSION,
    AlertDescription,
    CertificateType,
    ClientCertificateType,
    HandshakeType,
    ProtocolVersion,
)
from sansdtls.wire.certificates import (
    CertificateRequest,
    CertificateVerify,
    EcdhClientKeyExchange,
    EcdheParameters,
    EcdhePskClientKeyExchange,
    EcdhePskServerKeyExchange,
    NewSessionTicket,
    SignedServerKeyExchange,
)
from sansdtls.wire.handshake import encode_message
from sansdtls.wire.messages import RANDOM_LENGTH, PskClientKeyExchange, PskServerKeyExchange, ServerHello

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sansdtls.config import ServerConfig
    from sansdtls.connection import Connection
    from sansdtls.events import ConnectionOffered, Event
    from sansdtls.handshake.authentication import ShownKey
    from sansdtls.handshake.resumption import Sessions
    from sansdtls.record.layer import RecordLayer
    from sansdtls.session import Session
    from sansdtls.wire.handshake import HandshakeMessage

MAX_KEYS = 2
"""Keys per identity: the current one and, during a rotation, the next. As many are always tried."""

_CERTIFICATE_TYPES = bytes((ClientCertificateType.ECDSA_SIGN, ClientCertificateType.RSA_SIGN))
"""Both, because the signature schemes say it more exactly."""


class ServerHandshake12(Handshake):
    """Begins with a ClientHello whose cookie the server has verified."""

    IS_CLIENT = False
    OUR_LABEL = b"server finished"
    PEER_LABEL = b"client finished"
    CHANGE_CIPHER_SPEC_MAY_COME = frozenset(
        (
            State.AWAIT_CLIENT_CERTIFICATE,
            State.AWAIT_CLIENT_KEY_EXCHANGE,
            State.AWAIT_CERTIFICATE_VERIFY,
            State.AWAIT_PSK,
            State.AWAIT_ACCEPTANCE,
        )
    )

    def __init__(
        self,
        owner: Connection,
        config: ServerConfig,
        layer: RecordLayer,
        events: list[Event],
        entropy: Callable[[int], bytes],
        now: float,
        offer: ConnectionOffered,
        sessions: Sessions | None,
        new_connection_id: Callable[[], bytes],
    ) -> None:
        # RFC 6347 erratum 5186: the first message_seq of the server is that of the hello it answers.
        super().__init__(
            owner,
            config,
            layer,
            events,
            entropy,
            now,
            state=State.AWAIT_CLIENT_KEY_EXCHANGE,
            first_seq=offer.message.message_seq,
        )
        self._server_config = config
        self._hello = offer.client_hello
        self._transcript = encode_message(offer.message)
        self._ephemeral: EphemeralKey | None = None
        self._shared: bytes | None = None
        self._identity: bytes | None = None
        self._identity_known = False
        self._shown: ShownKey | None = None
        self._new_ticket = False
        self._new_connection_id = new_connection_id
        self._resumption = Resumption12(config, sessions)
        self._reassembler.next_seq += 1

    # --- the hello ----------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Answer the ClientHello. Raises HandshakeFailure where there is nothing in common."""
        try:
            self._agreement = negotiate(self._server_config, self._hello)
        except DecodeError as error:
            raise violation(error.description, error.rule) from None
        self._max_plaintext = self._agreement.max_plaintext
        session = self._resumption.find_untrusted(self._hello, self._agreement, now)
        if session is None:
            self._send_full_answer(now)
        elif (request := self._resumption.request(self._owner)) is not None:
            self._ask(request)
        else:
            self._send_abbreviated_answer(session, 0, now)

    def _server_hello(self, *, session_id: bytes, new_ticket: bool) -> HandshakeMessage:
        self._server_random = self._entropy(RANDOM_LENGTH)
        with_ids = self._agreement.hello.connection_id is not None
        if with_ids:
            self._layer.connection_id = self._new_connection_id()
        answer = ServerHello(
            version=ProtocolVersion.DTLS_1_2,
            random=self._server_random,
            session_id=session_id,
            cipher_suite=self._agreement.negotiated.cipher_suite,
            compression_method=NULL_COMPRESSION,
            extensions=server_extensions(
                self._server_config,
                self._agreement,
                self._hello,
                new_ticket=new_ticket,
                connection_id=self._layer.connection_id if with_ids else None,
            ),
        )
        return self._message(HandshakeType.SERVER_HELLO, answer.encode())

    def _send_full_answer(self, now: float) -> None:
        """Flight 4."""
        agreement, config = self._agreement, self._server_config
        session_id, self._new_ticket = self._resumption.plan(agreement, self._entropy)
        messages = [self._server_hello(session_id=session_id, new_ticket=self._new_ticket)]
        self.state = State.AWAIT_CLIENT_KEY_EXCHANGE
        if agreement.credential is not None:
            body = certificate_body(agreement.credential)
            messages.append(self._message(HandshakeType.CERTIFICATE, body))
        key_exchange = self._server_key_exchange()
        if key_exchange is not None:
            messages.append(self._message(HandshakeType.SERVER_KEY_EXCHANGE, key_exchange))
        if agreement.client_certificate_type is not None:
            request = CertificateRequest(
                _CERTIFICATE_TYPES, config.signature_schemes, config.client_certificate_authorities
            )
            messages.append(self._message(HandshakeType.CERTIFICATE_REQUEST, request.encode()))
            self.state = State.AWAIT_CLIENT_CERTIFICATE
        messages.append(self._message(HandshakeType.SERVER_HELLO_DONE, b""))
        self._send_flight([FlightPart(self._epoch_0, message) for message in messages], now)

    def _server_key_exchange(self) -> bytes | None:
        agreement, hint = self._agreement, self._server_config.psk_identity_hint
        group = agreement.negotiated.group
        if group is None:
            return None if hint is None else PskServerKeyExchange(hint).encode()
        self._ephemeral = EphemeralKey.generate(group, self._entropy)
        parameters = EcdheParameters(group, self._ephemeral.public)
        if agreement.credential is None or agreement.scheme is None:
            return EcdhePskServerKeyExchange(hint or b"", parameters).encode()
        data = signed_parameters(self._hello.random, self._server_random, parameters)
        signature = agreement.credential.key.sign(agreement.scheme, data)
        return SignedServerKeyExchange(parameters, agreement.scheme, signature).encode()

    # --- flight 5 -----------------------------------------------------------------------------------

    def _on_certificate(self, message: HandshakeMessage, now: float) -> None:
        kind = self._agreement.client_certificate_type or CertificateType.X509
        self._shown = read_certificate_untrusted(message.body, kind)
        required = self._server_config.client_authentication is ClientAuthentication.REQUIRED
        if self._shown is None and required:
            # RFC 5246 §7.4.6: "the server MAY at its discretion [...] respond with a fatal
            # handshake_failure alert"
            raise HandshakeFailure(
                AlertDescription.HANDSHAKE_FAILURE,
                AuthenticationFailed(AuthenticationProblem.NO_CERTIFICATE),
            )
        self._transcript += encode_message(message)
        self.state = State.AWAIT_CLIENT_KEY_EXCHANGE

    def _on_client_key_exchange(self, message: HandshakeMessage, now: float) -> None:
        kind = self._agreement.suite.key_exchange
        if kind is KeyExchange.PSK:
            self._identity = PskClientKeyExchange.decode_untrusted(message.body).identity
        elif kind is KeyExchange.ECDHE_PSK:
            with_psk = EcdhePskClientKeyExchange.decode_untrusted(message.body)
            self._identity, public = with_psk.identity, with_psk.public
            self._shared = self._exchange(public)
        else:
            self._shared = self._exchange(EcdhClientKeyExchange.decode_untrusted(message.body).public)
        self._transcript += encode_message(message)
        self._agree_on_parameters(full=True)
        if self._identity is not None:
            self._ask(PskRequested(self._owner, self._identity))
            return
        self._candidates = [KeyCandidate(0, self._parameters, premaster=self._shared or b"")]
        if self._shown is not None:
            self.state = State.AWAIT_CERTIFICATE_VERIFY
        else:
            self._await_change_cipher_spec(now)

    def _exchange(self, public: bytes) -> bytes:
        ephemeral, self._ephemeral = self._ephemeral, None  # for one use
        if ephemeral is None:
            raise violation(AlertDescription.INTERNAL_ERROR, "no ephemeral key")
        return shared_secret(ephemeral, public)

    def _on_certificate_verify(self, message: HandshakeMessage, now: float) -> None:
        verify = CertificateVerify.decode_untrusted(message.body)
        shown = self._shown
        if shown is None:
            raise violation(AlertDescription.UNEXPECTED_MESSAGE, "CertificateVerify without a certificate")
        check_signature(
            shown, verify.scheme, self._server_config.signature_schemes, self._transcript, verify.signature
        )
        self._transcript += encode_message(message)
        self._ask(shown.request(self._owner, self._agreement.negotiated.server_name))

    # --- the caller's answers -----------------------------------------------------------------------

    def provide_psk(self, keys: Sequence[bytes], now: float) -> None:
        """Go on with the keys; without any, with random ones, so that the peer cannot tell."""
        session = self._resumption.session
        if session is not None:
            index = self._resumption.index_among(keys)
            if index is None:
                self._refuse_resumption(now)
            else:
                self._send_abbreviated_answer(session, index, now)
            return
        self._identity_known = bool(keys)
        length = len(keys[0]) if keys else self._server_config.unknown_identity_key_length
        decoys = [self._entropy(length) for _ in range(MAX_KEYS)]  # always drawn: same work for everybody
        numbered = [*enumerate(keys), *((DECOY, decoy) for decoy in decoys[len(keys) :])]
        self._candidates = [
            KeyCandidate(index, self._parameters, premaster=psk_premaster_secret(psk, self._shared), psk=psk)
            for index, psk in numbered
        ]
        self.timer.restart(now)
        self._await_change_cipher_spec(now)

    def accept_peer(self, now: float) -> None:
        """Go on: with the handshake, or with resuming the session."""
        if self._resumption.session is not None:
            self._send_abbreviated_answer(self._resumption.session, 0, now)
            return
        self.timer.restart(now)
        self._await_change_cipher_spec(now)

    def reject_peer(self, alert: AlertDescription, now: float) -> None:
        """End; or do not resume, but let the peer prove itself anew."""
        if self._resumption.session is None:
            super().reject_peer(alert, now)
        self._refuse_resumption(now)

    def _refuse_resumption(self, now: float) -> None:
        self._resumption.refuse()
        self._send_full_answer(now)

    # --- the last flight ----------------------------------------------------------------------------

    def _send_abbreviated_answer(self, session: Session, index: int, now: float) -> None:
        """Flight 4b. The client keeps its ticket: a session ends with its lifetime, however often resumed."""
        self._identity, self._shown = session.psk_identity, self._resumption.shown
        self._identity_known = True
        self._agreement = self._resumption.agreement(self._agreement, session)
        # RFC 5077 §3.4 and RFC 5246 §7.4.1.3: the client's session_id says that its session is resumed.
        hello = self._server_hello(session_id=self._hello.session_id, new_ticket=False)
        self._agree_on_parameters(full=False)
        candidate = KeyCandidate(index, self._parameters, master_secret=session.master_secret)
        self._candidates = [candidate]
        self._log_secret(candidate.keys)
        self._send_finished([hello], candidate, now)
        self._await_change_cipher_spec(now)

    def _on_finished(self, message: HandshakeMessage, now: float) -> None:
        chosen = self._verify_finished(message)
        self.state = State.DONE
        last_flight: list[FlightPart] = []
        if not self._agreement.negotiated.resumed:
            self._log_secret(chosen.keys)
            last_flight = self._send_finished(self._remember(chosen, now), chosen, now)
        shown = self._shown
        peer = Peer(
            psk_identity=self._identity,
            psk_key_index=None if self._identity is None else chosen.index,
            certificate_chain=None if shown is None else shown.chain,
            raw_public_key=None if shown is None else shown.raw_public_key,
        )
        self._complete(chosen, peer, last_flight)

    def _remember(self, chosen: KeyCandidate, now: float) -> list[HandshakeMessage]:
        """Make it possible to resume; the NewSessionTicket to send, if that is how."""
        session = new_session(
            self._agreement,
            chosen.keys.master_secret,
            now,
            psk_identity=self._identity,
            psk=chosen.psk,
            shown=self._shown,
        )
        self._resumption.keep(session)
        if not self._new_ticket:
            return []
        ticket = NewSessionTicket(self._resumption.lifetime, self._resumption.seal(session, now))
        return [self._message(HandshakeType.NEW_SESSION_TICKET, ticket.encode())]

    def _authentication_failure(self, problem: AuthenticationProblem) -> HandshakeFailure:
        if problem is AuthenticationProblem.WRONG_KEY:
            if self._identity is None:
                problem = AuthenticationProblem.BAD_FINISHED  # there is no key to be wrong
            elif not self._identity_known:
                problem = AuthenticationProblem.UNKNOWN_IDENTITY
        return HandshakeFailure(AlertDescription.DECRYPT_ERROR, AuthenticationFailed(problem, self._identity))

    EXPECTED: ClassVar = {
        State.AWAIT_CLIENT_CERTIFICATE: {HandshakeType.CERTIFICATE: _on_certificate},
        State.AWAIT_CLIENT_KEY_EXCHANGE: {HandshakeType.CLIENT_KEY_EXCHANGE: _on_client_key_exchange},
        State.AWAIT_CERTIFICATE_VERIFY: {HandshakeType.CERTIFICATE_VERIFY: _on_certificate_verify},
        State.AWAIT_FINISHED: {HandshakeType.FINISHED: _on_finished},
    }
