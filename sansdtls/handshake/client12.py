"""The client's side of a DTLS 1.2 handshake with a pre-shared key.

RFC 6347 §4.2.4 and RFC 4279 §2::

Client                                  Server

ClientHello                 -------->                           flight 1
                            <--------   HelloVerifyRequest      flight 2
ClientHello (cookie)        -------->                           flight 3
                                               ServerHello
                                       [ServerKeyExchange]      flight 4
                            <--------      ServerHelloDone
ClientKeyExchange
[ChangeCipherSpec]                                              flight 5
Finished                    -------->
                                        [ChangeCipherSpec]      flight 6
                            <--------             Finished
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from sansdtls.crypto.prf import digest
from sansdtls.crypto.suites import SUITES
from sansdtls.events import AuthenticationProblem, PskRequested
from sansdtls.handshake.failure import violation
from sansdtls.handshake.flight import FlightPart
from sansdtls.handshake.handshake import Handshake, Outcome, State
from sansdtls.handshake.keys import HandshakeParameters, KeyCandidate
from sansdtls.handshake.negotiation import check_answer, client_extensions
from sansdtls.iana import NULL_COMPRESSION, AlertDescription, HandshakeType, ProtocolVersion
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
    from sansdtls.events import Event
    from sansdtls.handshake.negotiation import Negotiated
    from sansdtls.record.layer import RecordLayer
    from sansdtls.wire.handshake import HandshakeMessage

MAX_HELLO_VERIFY_REQUESTS = 4
"""A cookie may expire on the way, so more than one is legal; a server that never has enough is not."""


class ClientHandshake12(Handshake):
    """Sends flights 1, 3 and 5."""

    OUR_LABEL = b"client finished"
    PEER_LABEL = b"server finished"

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
        self._hello = ClientHello(
            version=ProtocolVersion.DTLS_1_2,
            random=entropy(RANDOM_LENGTH),
            session_id=b"",
            cookie=b"",
            cipher_suites=tuple(config.cipher_suites),
            compression_methods=bytes([NULL_COMPRESSION]),
            extensions=client_extensions(),
        )
        self._hello_verify_requests = 0
        self._server_random = b""
        self._hint: bytes | None = None
        self._negotiated: Negotiated  # set by ServerHello
        self._parameters: HandshakeParameters  # set with flight 5
        self._send_hello(now)

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
        self._negotiated = check_answer(self._client_config, self._hello, answer)
        self._server_random = answer.random
        self._transcript += encode_message(message)
        self.state = State.AWAIT_SERVER_KEY_EXCHANGE

    def _on_server_key_exchange(self, message: HandshakeMessage, now: float) -> None:
        self._hint = PskServerKeyExchange.decode_untrusted(message.body).identity_hint
        self._transcript += encode_message(message)
        self.state = State.AWAIT_SERVER_HELLO_DONE

    def _on_server_hello_done(self, message: HandshakeMessage, now: float) -> None:
        expect_empty_untrusted(message.body, "ServerHelloDone")
        self._transcript += encode_message(message)
        config = self._client_config
        if config.psk_key is None:
            self.state = State.AWAIT_PSK
            self.timer.pause()
            self._answered_seq = -1
            self._request = PskRequested(self._owner, config.psk_identity, self._hint)
            self._events.append(self._request)
        else:
            self._send_key_exchange(config.psk_key, now)

    def provide_psk(self, keys: Sequence[bytes], now: float) -> None:
        """Go on with the key, or end if there is none."""
        if not keys:
            raise self._authentication_failure(AuthenticationProblem.UNKNOWN_IDENTITY)
        self._send_key_exchange(keys[0], now)

    def _send_key_exchange(self, psk: bytes, now: float) -> None:
        negotiated = self._negotiated
        suite = SUITES[negotiated.cipher_suite]
        key_exchange = self._message(
            HandshakeType.CLIENT_KEY_EXCHANGE, PskClientKeyExchange(self._client_config.psk_identity).encode()
        )
        self._parameters = HandshakeParameters(
            suite,
            self._hello.random,
            self._server_random,
            digest(suite.prf_hash, self._transcript) if negotiated.extended_master_secret else None,
            is_client=True,
            limits=self._config.limits,
        )
        candidate = KeyCandidate(0, psk, self._parameters)
        self._candidates = [candidate]
        keys = candidate.keys
        self._log_secret(self._parameters, keys)
        finished = self._finished(keys, self._parameters)
        self.state = State.AWAIT_CHANGE_CIPHER_SPEC
        self._layer.write = keys.write
        self._send_flight(
            [
                FlightPart(self._epoch_0, key_exchange),
                FlightPart(self._epoch_0, None),
                FlightPart(keys.write, finished),
            ],
            now,
        )

    def _on_finished(self, message: HandshakeMessage, now: float) -> None:
        parameters = self._parameters
        chosen = self._verify_finished(message, parameters)
        self.state = State.DONE
        self.outcome = Outcome(
            negotiated=self._negotiated,
            psk_identity=self._client_config.psk_identity,
            psk_key_index=0,
            master_secret=chosen.keys.master_secret,
            client_random=parameters.client_random,
            server_random=parameters.server_random,
            write=chosen.keys.write,
            last_flight=[],
            next_receive_seq=self._reassembler.next_seq,
        )

    EXPECTED: ClassVar = {
        State.AWAIT_SERVER_HELLO: {
            HandshakeType.HELLO_VERIFY_REQUEST: _on_hello_verify_request,
            HandshakeType.SERVER_HELLO: _on_server_hello,
        },
        State.AWAIT_SERVER_KEY_EXCHANGE: {
            HandshakeType.SERVER_KEY_EXCHANGE: _on_server_key_exchange,
            HandshakeType.SERVER_HELLO_DONE: _on_server_hello_done,
        },
        State.AWAIT_SERVER_HELLO_DONE: {HandshakeType.SERVER_HELLO_DONE: _on_server_hello_done},
        State.AWAIT_FINISHED: {HandshakeType.FINISHED: _on_finished},
    }
