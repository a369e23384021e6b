"""A server's decisions about resuming a session in one handshake. The essay is in ``resumption.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sansdtls.credentials import ClientAuthentication
from sansdtls.crypto.prf import equal, sha256
from sansdtls.crypto.signatures import spki_of_certificate
from sansdtls.crypto.suites import SUITES
from sansdtls.events import PskRequested
from sansdtls.handshake.authentication import ShownKey
from sansdtls.handshake.resumption import SESSION_ID_LENGTH, psk_fingerprint
from sansdtls.iana import CertificateType
from sansdtls.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sansdtls.config import ServerConfig
    from sansdtls.connection import Connection
    from sansdtls.handshake.negotiation import Agreement
    from sansdtls.handshake.resumption import Sessions
    from sansdtls.handshake.states import Request
    from sansdtls.wire.messages import ClientHello


class Resumption12:
    """What a client may resume, and what it may resume next time."""

    def __init__(self, config: ServerConfig, sessions: Sessions | None) -> None:
        self._config = config
        self._sessions = sessions
        self._session_id = b""
        self.session: Session | None = None
        """The session that is being resumed, or may be."""

    # --- this time ----------------------------------------------------------------------------------

    def find_untrusted(self, hello: ClientHello, agreement: Agreement, now: float) -> Session | None:
        """The session that the hello asks for, if there is one and nothing speaks against it."""
        sessions, ticket = self._sessions, agreement.hello.session_ticket
        # RFC 7627 §5.3: a session with extended_master_secret, and a hello without it, do not go together.
        if sessions is None or not agreement.negotiated.extended_master_secret:
            return None
        if ticket:
            session = sessions.open_untrusted(ticket, now)
        elif hello.session_id:
            session = sessions.find(hello.session_id, now)
        else:
            return None
        if session is not None and self._allows(session, hello, agreement):
            self.session = session
        return self.session

    def _allows(self, session: Session, hello: ClientHello, agreement: Agreement) -> bool:
        config = self._config
        if (
            session.cipher_suite not in hello.cipher_suites
            or session.cipher_suite not in config.cipher_suites
        ):
            return False
        if session.server_name != agreement.negotiated.server_name:
            return False
        if session.psk_identity is not None:
            return config.psk
        # Without a PSK the server proved itself with a credential, which has to be in use still, and the
        # client with what the present policy asks for.
        in_use = {sha256(credential.key.spki) for credential in config.credentials}  # digests of public keys
        if session.server_key not in in_use:
            return False
        shown = session.certificate_chain is not None or session.raw_public_key is not None
        if config.client_authentication is ClientAuthentication.NONE:
            return not shown
        if not shown:
            return config.client_authentication is ClientAuthentication.WANTED
        kind = (
            CertificateType.X509 if session.certificate_chain is not None else CertificateType.RAW_PUBLIC_KEY
        )
        return kind in config.client_certificate_types

    def request(self, owner: Connection) -> Request | None:
        """The question whether the client's credential is still good; ``None`` if it had none."""
        session = self.session
        if session is None:
            return None
        if session.psk_identity is not None:
            return PskRequested(owner, session.psk_identity, resumption=True)
        shown = self.shown
        return None if shown is None else shown.request(owner, session.server_name, resumption=True)

    @property
    def shown(self) -> ShownKey | None:
        """What the client showed when the session was made."""
        session = self.session
        if session is None:
            return None
        if session.certificate_chain is not None:
            return ShownKey(spki_of_certificate(session.certificate_chain[0]), session.certificate_chain)
        return None if session.raw_public_key is None else ShownKey(session.raw_public_key, None)

    def index_among(self, keys: Sequence[bytes]) -> int | None:
        """Which of ``keys`` the session was made with; ``None`` if it is withdrawn."""
        known = b"" if self.session is None else self.session.psk_fingerprint or b""
        return next((index for index, key in enumerate(keys) if equal(psk_fingerprint(key), known)), None)

    def refuse(self) -> None:
        """A full handshake instead."""
        self.session = None

    def agreement(self, agreement: Agreement, session: Session) -> Agreement:
        """What was agreed on, for resuming: the session's suite, and no credential to show."""
        return attrs.evolve(
            agreement,
            negotiated=attrs.evolve(
                agreement.negotiated, cipher_suite=session.cipher_suite, group=None, resumed=True
            ),
            suite=SUITES[session.cipher_suite],
            credential=None,
            scheme=None,
            client_certificate_type=None,
        )

    # --- next time ----------------------------------------------------------------------------------

    def plan(self, agreement: Agreement, entropy: Callable[[int], bytes]) -> tuple[bytes, bool]:
        """For a full handshake: the session ID to give, and whether a ticket will follow."""
        sessions = self._sessions
        if sessions is None or not agreement.negotiated.extended_master_secret:
            return b"", False
        if agreement.hello.session_ticket is not None and sessions.policy.tickets:
            return b"", True
        if sessions.policy.cache_size:
            self._session_id = entropy(SESSION_ID_LENGTH)
        return self._session_id, False

    def seal(self, session: Session, now: float) -> bytes:
        """A ticket for ``session``."""
        return b"" if self._sessions is None else self._sessions.seal(session, now)

    @property
    def lifetime(self) -> int:
        """Seconds, for the ticket's hint."""
        return 0 if self._sessions is None else int(self._sessions.policy.lifetime)

    def keep(self, session: Session) -> None:
        """Remember ``session`` under the ID that was given, if one was."""
        if self._sessions is not None and self._session_id:
            self._sessions.keep(self._session_id, session)


def new_session(
    agreement: Agreement,
    master_secret: bytes,
    now: float,
    *,
    psk_identity: bytes | None,
    psk: bytes | None,
    shown: ShownKey | None,
) -> Session:
    """What a server remembers of a handshake that has just succeeded."""
    credential = agreement.credential
    return Session(
        cipher_suite=agreement.negotiated.cipher_suite,
        master_secret=master_secret,
        server_name=agreement.negotiated.server_name,
        psk_identity=psk_identity,
        psk_fingerprint=None if psk is None else psk_fingerprint(psk),
        certificate_chain=None if shown is None else shown.chain,
        raw_public_key=None if shown is None else shown.raw_public_key,
        server_key=None if credential is None else sha256(credential.key.spki),
        created_at=max(0, int(now)),
    )
