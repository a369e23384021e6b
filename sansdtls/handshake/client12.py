"""The client's side of a DTLS 1.2 handshake.

RFC 6347 §4.2.4. In brackets: not in every key exchange::

    Client                                  Server

    ClientHello                 -------->                           flight 1
                                <--------   HelloVerifyRequest      flight 2
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

or, where the server resumes the session that was offered::

    ClientHello (cookie)        -------->                           flight 3
                                                   ServerHello
                                            [NewSessionTicket]      flight 4b
                                              ChangeCipherSpec
                                <--------             Finished
    ChangeCipherSpec                                                flight 5b
    Finished                    -------->
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from sansdtls.crypto.groups import EphemeralKey
from sansdtls.crypto.prf import psk_premaster_secret
from sansdtls.crypto.suites import KeyExchange
from sansdtls.errors import DecodeError
from sansdtls.events import AuthenticationProblem, PskRequested
from sansdtls.handshake.authentication import (
    ShownKey,
    certificate_body,
    check_key_fits,
    check_signature,
    read_certificate_untrusted,
    shared_secret,
    signed_parameters,
)
from sansdtls.handshake.failure import incompatible, violation
from sansdtls.handshake.flight import FlightPart
from sansdtls.handshake.handshake import Handshake
from sansdtls.handshake.keys import KeyCandidate
from sansdtls.handshake.negotiation import check_answer, client_extensions
from sansdtls.handshake.outcome import Peer
from sansdtls.handshake.states import State
from sansdtls.iana import (
    NULL_COMPRESSION,
    AlertDescription,
    CertificateType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
)
from sansdtls.session import Session
from sansdtls.wire.certificates import (
    CertificateRequest,
    CertificateVerify,
    EcdhClientKeyExchange,
    EcdhePskClientKeyExchange,
    EcdhePskServerKeyExchange,
    NewSessionTicket,
    SignedServerKeyExchange,
)
from sansdtls.wire.handshake import encode_message
from sansdtls.wire.messages import (
    RANDOM_LENGTH,
    ClientHello,
    HelloVerifyRequest,
    PskClientKeyExchange,
    PskServerKeyExchange,
    ServerHello,
    expect_empty_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sansdtls.config import ClientConfig
    from sansdtls.connection import Connection
    from sansdtls.credentials import Credential
    from sansdtls.events import Event
    from sansdtls.iana import SignatureScheme
    from sansdtls.record.layer import RecordLayer
    from sansdtls.wire.certificates import EcdheParameters
    from sansdtls.wire.handshake import HandshakeMessage

MAX_HELLO_VERIFY_REQUESTS = 4
"""A cookie may expire on the way, so more than one is legal; a server that never has enough is not."""
_SESSION_ID_LENGTH = 32
"""Bytes of the session_id that goes with a ticket: it is only there to be recognised, RFC 5077 §3.4."""


class ClientHandshake12(Handshake):
    """Sends flights 1, 3 and 5, or 5b."""

    IS_CLIENT = True
    OUR_LABEL = b"client finished"
    PEER_LABEL = b"server finished"
    CHANGE_CIPHER_SPEC_MAY_COME = frozenset((State.AWAIT_SESSION_TICKET,))

    def __init__(
        self,
        owner: Connection,
        config: ClientConfig,
        layer: RecordLayer,
        events: list[Event],
        entropy: Callable[[int], bytes],
        now: float,
    ) -> None:
        super().__init__(owner, config, layer, events, entropy, now, state=State.AWAIT_SERVER_HELLO)
        self._client_config = config
        if config.connection_id is not None:
            layer.connection_id = config.connection_id.generate(entropy)
        self._hello = self._first_hello()
        self._hello_verify_requests = 0
        self._server_session_id = b""
        self._hint: bytes | None = None
        self._shown: ShownKey | None = None
        self._server_share: EcdheParameters | None = None
        self._certificate_request: CertificateRequest | None = None
        self._ticket = NewSessionTicket(0, b"")
        self._send_hello(now)

    # --- the hello ----------------------------------------------------------------------------------

    def _first_hello(self) -> ClientHello:
        config, session = self._client_config, self._client_config.session
        suites = config.usable_cipher_suites
        if session is not None and (
            session.cipher_suite not in suites
            or session.server_name != _lower(config.server_name)
            or session.psk_identity not in (None, config.psk_identity)
            or not _still_trusted(session, config)
        ):
            session = None  # it would not be accepted, and should not be shown to another server
        random = self._entropy(RANDOM_LENGTH)
        session_id, ticket = b"", b"" if config.request_ticket else None
        if session is not None and session.ticket:
            session_id, ticket = self._entropy(_SESSION_ID_LENGTH), session.ticket
        elif session is not None:
            session_id = session.session_id
        return ClientHello(
            version=ProtocolVersion.DTLS_1_2,
            random=random,
            session_id=session_id,
            cookie=b"",
            cipher_suites=suites,
            compression_methods=bytes([NULL_COMPRESSION]),
            extensions=client_extensions(config, suites, ticket, self._layer.connection_id),
        )

    def _send_hello(self, now: float) -> None:
        # RFC 6347 §4.2.1: "The initial ClientHello and HelloVerifyRequest are not included in the
        # calculation of the handshake_messages", so each hello starts the transcript anew.
        self._transcript = b""
        # What came before this hello was sent cannot answer it: it is an old handshake's on this path.
        self._reassembler.clear()
        hello = self._message(HandshakeType.CLIENT_HELLO, self._hello.encode())
        self._send_flight([FlightPart(self._epoch_0, hello)], now)

    def _on_hello_verify_request(self, message: HandshakeMessage, now: float) -> None:
        request = HelloVerifyRequest.decode_untrusted(message.body)
        self._hello_verify_requests += 1
        if self._hello_verify_requests > MAX_HELLO_VERIFY_REQUESTS:
            raise violation(AlertDescription.UNEXPECTED_MESSAGE, "too many HelloVerifyRequests")
        # RFC 6347 §4.2.1: "the client MUST use the same parameter values (version, random, session_id,
        # cipher_suites, compression_method) as it did in the original ClientHello."
        self._hello = attrs.evolve(self._hello, cookie=request.cookie)
        self._send_hello(now)

    def _on_server_hello(self, message: HandshakeMessage, now: float) -> None:
        answer = ServerHello.decode_untrusted(message.body)
        self._agreement = check_answer(self._client_config, self._hello, answer)
        self._max_plaintext = self._agreement.max_plaintext
        if self._agreement.hello.connection_id is None:
            self._layer.connection_id = b""  # offered, not taken up
        self._server_random, self._server_session_id = answer.random, answer.session_id
        self._transcript += encode_message(message)
        session = self._client_config.session
        if session is not None and answer.session_id and answer.session_id == self._hello.session_id:
            self._resume(session, now)
        else:
            self.state = {
                KeyExchange.PSK: State.AWAIT_IDENTITY_HINT,
                KeyExchange.ECDHE_PSK: State.AWAIT_SERVER_KEY_EXCHANGE,
            }.get(self._agreement.suite.key_exchange, State.AWAIT_SERVER_CERTIFICATE)

    # --- flight 4 -----------------------------------------------------------------------------------

    def _on_server_certificate(self, message: HandshakeMessage, now: float) -> None:
        if self._agreement.server_certificate_type not in self._client_config.server_certificate_types:
            # RFC 7250 §4.2: a server that does not know the extension shows X.509, asked for or not.
            raise incompatible(AlertDescription.UNSUPPORTED_CERTIFICATE, "no certificate type in common")
        self._shown = read_certificate_untrusted(message.body, self._agreement.server_certificate_type)
        if self._shown is None:
            raise DecodeError("Certificate: the server's is empty")
        check_key_fits(self._shown, self._agreement.suite.key_exchange)
        self._transcript += encode_message(message)
        self.state = State.AWAIT_SERVER_KEY_EXCHANGE

    def _on_identity_hint(self, message: HandshakeMessage, now: float) -> None:
        self._hint = PskServerKeyExchange.decode_untrusted(message.body).identity_hint
        self._transcript += encode_message(message)
        self.state = State.AWAIT_SERVER_HELLO_DONE

    def _on_server_key_exchange(self, message: HandshakeMessage, now: float) -> None:
        shown = self._shown
        if shown is None:
            with_psk = EcdhePskServerKeyExchange.decode_untrusted(message.body)
            self._hint, share = with_psk.identity_hint or None, with_psk.parameters
            self.state = State.AWAIT_SERVER_HELLO_DONE
        else:
            signed = SignedServerKeyExchange.decode_untrusted(message.body)
            share = signed.parameters
            data = signed_parameters(self._hello.random, self._server_random, share)
            schemes = self._client_config.signature_schemes
            check_signature(shown, signed.scheme, schemes, data, signed.signature)
            self.state = State.AWAIT_CERTIFICATE_REQUEST
        if share.group not in self._client_config.groups:
            raise violation(AlertDescription.ILLEGAL_PARAMETER, f"group {share.group} was not offered")
        self._server_share = share
        negotiated = attrs.evolve(self._agreement.negotiated, group=NamedGroup(share.group))
        self._agreement = attrs.evolve(self._agreement, negotiated=negotiated)
        self._transcript += encode_message(message)

    def _on_certificate_request(self, message: HandshakeMessage, now: float) -> None:
        self._certificate_request = CertificateRequest.decode_untrusted(message.body)
        self._transcript += encode_message(message)
        self.state = State.AWAIT_SERVER_HELLO_DONE

    def _on_server_hello_done(self, message: HandshakeMessage, now: float) -> None:
        expect_empty_untrusted(message.body, "ServerHelloDone")
        self._transcript += encode_message(message)
        config = self._client_config
        if self._shown is not None:
            self._ask(self._shown.request(self._owner, config.server_name))
        elif config.psk_key is None:
            self._ask(PskRequested(self._owner, config.psk_identity or b"", self._hint))
        else:
            self._send_key_exchange(config.psk_key, now)

    # --- the caller's answers -----------------------------------------------------------------------

    def provide_psk(self, keys: Sequence[bytes], now: float) -> None:
        """Go on with the key, or end if there is none."""
        if not keys:
            raise self._authentication_failure(AuthenticationProblem.UNKNOWN_IDENTITY)
        self._send_key_exchange(keys[0], now)

    def accept_peer(self, now: float) -> None:
        """Go on: the caller trusts what the server showed."""
        self._send_key_exchange(None, now)

    # --- flight 5 -----------------------------------------------------------------------------------

    def _send_key_exchange(self, psk: bytes | None, now: float) -> None:
        credential, scheme = self._choose_credential()
        messages = []
        if self._certificate_request is not None:
            messages.append(self._message(HandshakeType.CERTIFICATE, certificate_body(credential)))
        body, premaster = self._key_exchange(psk)
        messages.append(self._message(HandshakeType.CLIENT_KEY_EXCHANGE, body))
        self._agree_on_parameters(full=True)
        if credential is not None and scheme is not None:
            verify = CertificateVerify(scheme, credential.key.sign(scheme, self._transcript))
            messages.append(self._message(HandshakeType.CERTIFICATE_VERIFY, verify.encode()))
        candidate = KeyCandidate(0, self._parameters, premaster=premaster)
        self._candidates = [candidate]
        self._log_secret(candidate.keys)
        self._send_finished(messages, candidate, now)
        self._await_last_flight()

    def _choose_credential(self) -> tuple[Credential | None, SignatureScheme | None]:
        """What to show and how to sign; RFC 5246 §7.4.6: nothing fitting, nothing shown."""
        request = self._certificate_request
        if request is None:
            return None, None
        kind = self._agreement.client_certificate_type
        for credential in self._client_config.credentials:
            if credential.certificate_type is not kind:
                continue
            for scheme in credential.key.schemes:  # what fits the key best comes first
                if scheme in self._client_config.signature_schemes and scheme in request.signature_schemes:
                    return credential, scheme
        return None, None

    def _key_exchange(self, psk: bytes | None) -> tuple[bytes, bytes]:
        """The body of ClientKeyExchange, and the premaster secret."""
        identity, share = self._client_config.psk_identity or b"", self._server_share
        if share is None:
            return PskClientKeyExchange(identity).encode(), psk_premaster_secret(psk or b"")
        ephemeral = EphemeralKey.generate(NamedGroup(share.group), self._entropy)
        secret = shared_secret(ephemeral, share.public)
        if psk is None:
            return EcdhClientKeyExchange(ephemeral.public).encode(), secret
        return EcdhePskClientKeyExchange(identity, ephemeral.public).encode(), psk_premaster_secret(
            psk, secret
        )

    def _await_last_flight(self) -> None:
        # RFC 5077 §3.3: "This message MUST be sent if the server included a SessionTicket extension in the
        # ServerHello."
        ticket_follows = self._agreement.hello.session_ticket is not None
        self.state = State.AWAIT_SESSION_TICKET if ticket_follows else State.AWAIT_CHANGE_CIPHER_SPEC

    # --- resuming -----------------------------------------------------------------------------------

    def _resume(self, session: Session, now: float) -> None:
        negotiated = self._agreement.negotiated
        if negotiated.cipher_suite is not session.cipher_suite:
            raise violation(AlertDescription.ILLEGAL_PARAMETER, "a session resumed with another cipher suite")
        # RFC 7627 §5.3: "If the original session used the "extended_master_secret" extension but the new
        # ServerHello does not contain the extension, the client MUST abort the handshake."
        if not negotiated.extended_master_secret:
            raise violation(
                AlertDescription.HANDSHAKE_FAILURE, "a session resumed without extended_master_secret"
            )
        self._agreement = attrs.evolve(self._agreement, negotiated=attrs.evolve(negotiated, resumed=True))
        self._agree_on_parameters(full=False)
        candidate = KeyCandidate(0, self._parameters, master_secret=session.master_secret)
        self._candidates = [candidate]
        self._log_secret(candidate.keys)
        self._await_last_flight()

    # --- the last flight ----------------------------------------------------------------------------

    def _on_new_session_ticket(self, message: HandshakeMessage, now: float) -> None:
        self._ticket = NewSessionTicket.decode_untrusted(message.body)
        self._transcript += encode_message(message)
        self._await_change_cipher_spec(now)

    def _on_finished(self, message: HandshakeMessage, now: float) -> None:
        chosen = self._verify_finished(message)
        self.state = State.DONE
        last_flight: list[FlightPart] = []
        if self._agreement.negotiated.resumed:
            last_flight = self._send_finished([], chosen, now)
        self._complete(chosen, self._peer(), last_flight, self._session(chosen.keys.master_secret))

    def _peer(self) -> Peer:
        config, session = self._client_config, self._client_config.session
        if self._agreement.negotiated.resumed and session is not None:
            identity, chain, spki = session.psk_identity, session.certificate_chain, session.raw_public_key
        elif self._shown is not None:
            shown = self._shown
            identity, chain, spki = None, shown.chain, shown.raw_public_key
        else:
            identity, chain, spki = config.psk_identity, None, None
        return Peer(
            psk_identity=identity,
            psk_key_index=None if identity is None else 0,
            certificate_chain=chain,
            raw_public_key=spki,
        )

    def _session(self, master_secret: bytes) -> Session | None:
        """What can be resumed next time."""
        negotiated, before = self._agreement.negotiated, self._client_config.session
        if negotiated.resumed and before is not None:
            if not self._ticket.ticket:
                return before
            return attrs.evolve(before, ticket=self._ticket.ticket, lifetime=self._ticket.lifetime_hint)
        if not negotiated.extended_master_secret or not (self._ticket.ticket or self._server_session_id):
            return None
        peer = self._peer()
        return Session(
            cipher_suite=negotiated.cipher_suite,
            master_secret=master_secret,
            server_name=negotiated.server_name,
            psk_identity=peer.psk_identity,
            certificate_chain=peer.certificate_chain,
            raw_public_key=peer.raw_public_key,
            session_id=b"" if self._ticket.ticket else self._server_session_id,
            ticket=self._ticket.ticket,
            lifetime=self._ticket.lifetime_hint,
        )

    EXPECTED: ClassVar = {
        State.AWAIT_SERVER_HELLO: {
            HandshakeType.HELLO_VERIFY_REQUEST: _on_hello_verify_request,
            HandshakeType.SERVER_HELLO: _on_server_hello,
        },
        State.AWAIT_SERVER_CERTIFICATE: {HandshakeType.CERTIFICATE: _on_server_certificate},
        State.AWAIT_SERVER_KEY_EXCHANGE: {HandshakeType.SERVER_KEY_EXCHANGE: _on_server_key_exchange},
        State.AWAIT_IDENTITY_HINT: {
            HandshakeType.SERVER_KEY_EXCHANGE: _on_identity_hint,
            HandshakeType.SERVER_HELLO_DONE: _on_server_hello_done,
        },
        State.AWAIT_CERTIFICATE_REQUEST: {
            HandshakeType.CERTIFICATE_REQUEST: _on_certificate_request,
            HandshakeType.SERVER_HELLO_DONE: _on_server_hello_done,
        },
        State.AWAIT_SERVER_HELLO_DONE: {HandshakeType.SERVER_HELLO_DONE: _on_server_hello_done},
        State.AWAIT_SESSION_TICKET: {HandshakeType.NEW_SESSION_TICKET: _on_new_session_ticket},
        State.AWAIT_FINISHED: {HandshakeType.FINISHED: _on_finished},
    }


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()


def _still_trusted(session: Session, config: ClientConfig) -> bool:
    """Whether the server proved itself in a way that is still asked for."""
    if session.certificate_chain is not None:
        return CertificateType.X509 in config.server_certificate_types
    return session.raw_public_key is None or CertificateType.RAW_PUBLIC_KEY in config.server_certificate_types
