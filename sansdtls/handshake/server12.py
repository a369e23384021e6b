"""The server's side of a DTLS 1.2 handshake with a pre-shared key.

RFC 6347 §4.2.4 and RFC 4279 §2; flights 1 and 2 are the cookie's (``cookie.py``)::

Client                                  Server

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

from sansdtls.crypto.prf import digest
from sansdtls.crypto.suites import SUITES
from sansdtls.errors import DecodeError
from sansdtls.events import AuthenticationFailed, AuthenticationProblem, PskRequested
from sansdtls.handshake.failure import HandshakeFailure, violation
from sansdtls.handshake.flight import FlightPart
from sansdtls.handshake.handshake import Handshake, Outcome, State
from sansdtls.handshake.keys import DECOY, HandshakeParameters, KeyCandidate
from sansdtls.handshake.negotiation import negotiate, server_extensions
from sansdtls.iana import NULL_COMPRESSION, AlertDescription, HandshakeType, ProtocolVersion
from sansdtls.wire.handshake import encode_message
from sansdtls.wire.messages import (
    RANDOM_LENGTH,
    PskClientKeyExchange,
    PskServerKeyExchange,
    ServerHello,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sansdtls.config import ServerConfig
    from sansdtls.connection import Connection
    from sansdtls.events import ConnectionOffered, Event
    from sansdtls.handshake.negotiation import Negotiated
    from sansdtls.record.layer import RecordLayer
    from sansdtls.wire.handshake import HandshakeMessage

MAX_KEYS = 2
"""Keys per identity: the current one and, during a rotation, the next. As many are always tried."""


class ServerHandshake12(Handshake):
    """Sends flights 4 and 6. Begins with a ClientHello whose cookie the server has verified."""

    OUR_LABEL = b"server finished"
    PEER_LABEL = b"client finished"

    def __init__(
        self,
        owner: Connection,
        config: ServerConfig,
        layer: RecordLayer,
        events: list[Event],
        entropy: Callable[[int], bytes],
        now: float,
        offer: ConnectionOffered,
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
        self._negotiated: Negotiated  # set by start
        self._server_random = b""
        self._identity = b""
        self._identity_known = False
        self._parameters: HandshakeParameters  # set by ClientKeyExchange
        self._reassembler.next_seq += 1

    def start(self, now: float) -> None:
        """Answer the ClientHello. Raises HandshakeFailure where there is nothing in common."""
        hello, config = self._hello, self._server_config
        try:
            self._negotiated = negotiate(config, hello)
        except DecodeError as error:
            raise violation(error.description, error.rule) from None
        self._server_random = self._entropy(RANDOM_LENGTH)
        answer = ServerHello(
            version=ProtocolVersion.DTLS_1_2,
            random=self._server_random,
            session_id=b"",
            cipher_suite=self._negotiated.cipher_suite,
            compression_method=NULL_COMPRESSION,
            extensions=server_extensions(self._negotiated, hello),
        )
        messages = [self._message(HandshakeType.SERVER_HELLO, answer.encode())]
        if config.psk_identity_hint is not None:
            key_exchange = PskServerKeyExchange(config.psk_identity_hint)
            messages.append(self._message(HandshakeType.SERVER_KEY_EXCHANGE, key_exchange.encode()))
        messages.append(self._message(HandshakeType.SERVER_HELLO_DONE, b""))
        self._send_flight([FlightPart(self._epoch_0, message) for message in messages], now)

    def _on_client_key_exchange(self, message: HandshakeMessage, now: float) -> None:
        self._identity = PskClientKeyExchange.decode_untrusted(message.body).identity
        self._transcript += encode_message(message)
        suite = SUITES[self._negotiated.cipher_suite]
        self._parameters = HandshakeParameters(
            suite,
            self._hello.random,
            self._server_random,
            digest(suite.prf_hash, self._transcript) if self._negotiated.extended_master_secret else None,
            is_client=False,
            limits=self._config.limits,
        )
        self.state = State.AWAIT_PSK
        self.timer.pause()
        self._request = PskRequested(self._owner, self._identity)
        self._events.append(self._request)

    def provide_psk(self, keys: Sequence[bytes], now: float) -> None:
        """Go on with the keys; without any, with random ones, so that the peer cannot tell."""
        parameters = self._parameters
        self._identity_known = bool(keys)
        length = len(keys[0]) if keys else self._server_config.unknown_identity_key_length
        decoys = [self._entropy(length) for _ in range(MAX_KEYS)]  # always drawn: same work for everybody
        self._candidates = [
            *(KeyCandidate(index, key, parameters) for index, key in enumerate(keys)),
            *(KeyCandidate(DECOY, decoy, parameters) for decoy in decoys[len(keys) :]),
        ]
        self.state = State.AWAIT_CHANGE_CIPHER_SPEC
        self.timer.restart(now)
        if self._change_cipher_spec_seen:
            self._change_read_epoch()
        self._process_messages(now)

    def _on_finished(self, message: HandshakeMessage, now: float) -> None:
        parameters = self._parameters
        chosen = self._verify_finished(message, parameters)
        self._log_secret(parameters, chosen.keys)
        finished = self._finished(chosen.keys, parameters)
        last_flight = [FlightPart(self._epoch_0, None), FlightPart(chosen.keys.write, finished)]
        self.state = State.DONE
        self._layer.write = chosen.keys.write
        self._send_flight(last_flight, now)
        self.outcome = Outcome(
            negotiated=self._negotiated,
            psk_identity=self._identity,
            psk_key_index=chosen.index,
            master_secret=chosen.keys.master_secret,
            client_random=parameters.client_random,
            server_random=parameters.server_random,
            write=chosen.keys.write,
            last_flight=last_flight,
            next_receive_seq=self._reassembler.next_seq,
        )

    def _authentication_failure(self, problem: AuthenticationProblem) -> HandshakeFailure:
        if problem is AuthenticationProblem.WRONG_KEY and not self._identity_known:
            problem = AuthenticationProblem.UNKNOWN_IDENTITY
        return HandshakeFailure(AlertDescription.DECRYPT_ERROR, AuthenticationFailed(problem, self._identity))

    EXPECTED: ClassVar = {
        State.AWAIT_CLIENT_KEY_EXCHANGE: {HandshakeType.CLIENT_KEY_EXCHANGE: _on_client_key_exchange},
        State.AWAIT_FINISHED: {HandshakeType.FINISHED: _on_finished},
    }
