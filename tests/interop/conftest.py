"""``meeting``: one side ours, one side theirs, ended together however the test ends."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from sansdtls import (
    DEFAULT_CIPHER_SUITES,
    ClientConfig,
    RetransmitPolicy,
    ServerConfig,
)
from tests.interop.certified import Terms
from tests.interop.credentials import KINDS, make_pair
from tests.interop.identified import IdentifiedMeeting
from tests.interop.ours import OurClient, OurServer, answer_to_coap, answer_to_hello, trusting
from tests.interop.process import running
from tests.interop.stacks import CCM_8, Session
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sansdtls import CipherSuite, NamedGroup, SignatureScheme
    from tests.interop.certified import CertifiedStack
    from tests.interop.credentials import Credential, Pair
    from tests.interop.ours import Judge
    from tests.interop.process import PeerProcess
    from tests.interop.stacks import Stack

DEFAULT_MTU = ServerConfig().mtu


class Meeting:
    """Starts both sides of a test, with the same suite, identity and key unless told otherwise."""

    def __init__(self, until_the_end: ExitStack, directory: Path) -> None:
        self._until_the_end = until_the_end
        self.directory = directory

    def their_client(
        self,
        stack: Stack,
        port: int,
        *,
        suite: CipherSuite = CCM_8,
        identity: str = "dev1",
        key: bytes | None = None,
        mtu: int | None = None,
        options: Sequence[str] = (),
    ) -> PeerProcess:
        stack.require()
        session = Session(
            directory=self.directory,
            port=port,
            suite=suite,
            identity=identity,
            key=key if key is not None else stack.key,
            mtu=mtu if stack.has_mtu else None,
            options=options,
        )
        return self._until_the_end.enter_context(
            running(
                stack.client(session),
                directory=self.directory,
                name="client",
                environment=stack.environment,
            )
        )

    def their_server(
        self,
        stack: Stack,
        *,
        suite: CipherSuite = CCM_8,
        identity: str = "dev1",
        mtu: int | None = None,
        options: Sequence[str] = (),
    ) -> tuple[PeerProcess, int]:
        """The server, and the port on which it has DTLS."""
        stack.require()
        port = free_port(neighbours=stack.port_offset)
        session = Session(
            directory=self.directory,
            port=port,
            suite=suite,
            identity=identity,
            key=stack.key,
            mtu=mtu if stack.has_mtu else None,
            options=options,
        )
        dtls_port = port + stack.port_offset
        process = self._until_the_end.enter_context(
            running(
                stack.server(session),
                directory=self.directory,
                name="server",
                listening_on=dtls_port,
                environment=stack.environment,
            )
        )
        return process, dtls_port

    def our_server(
        self,
        stack: Stack,
        *,
        suite: CipherSuite = CCM_8,
        mtu: int = DEFAULT_MTU,
        keys: Mapping[bytes, Sequence[bytes]] | None = None,
        retransmit: RetransmitPolicy | None = None,
        answer: Callable[[bytes], bytes] | None = None,
        hint: bytes | None = None,
    ) -> OurServer:
        """A server for clients of ``stack`` that knows the key of ``dev1`` unless given ``keys``."""
        config = ServerConfig(
            cipher_suites=_ours(stack, suite),
            mtu=mtu,
            retransmit=retransmit or RetransmitPolicy(),
            psk_identity_hint=hint,
        )
        return self._until_the_end.enter_context(
            OurServer(
                config,
                {b"dev1": [stack.key]} if keys is None else keys,
                answer=answer or (answer_to_coap if stack.speaks_coap else answer_to_hello),
            )
        )

    def our_client(
        self,
        stack: Stack,
        port: int,
        *,
        suite: CipherSuite = CCM_8,
        identity: str = "dev1",
        key: bytes | None = None,
        mtu: int = DEFAULT_MTU,
        retransmit: RetransmitPolicy | None = None,
        asks_for_key: bool = False,
    ) -> OurClient:
        key = stack.key if key is None else key
        config = ClientConfig(
            psk_identity=identity.encode(),
            psk_key=None if asks_for_key else key,
            cipher_suites=_ours(stack, suite),
            mtu=mtu,
            retransmit=retransmit or RetransmitPolicy(),
        )
        return self._until_the_end.enter_context(OurClient(config, port, key=key))


class CertifiedMeeting:
    """The same with certificates and raw public keys. What is not said is left to each side."""

    def __init__(self, until_the_end: ExitStack, directory: Path) -> None:
        self._until_the_end = until_the_end
        self.directory = directory

    def their_client(
        self,
        stack: CertifiedStack,
        port: int,
        *,
        suite: CipherSuite | None = None,
        group: NamedGroup | None = None,
        scheme: SignatureScheme | None = None,
        own: Credential | None = None,
        trusts: Credential | None = None,
        raw: bool = False,
        options: Sequence[str] = (),
    ) -> PeerProcess:
        stack.require()
        terms = Terms(
            directory=self.directory,
            port=port,
            suite=suite,
            group=group,
            scheme=scheme,
            own=own,
            trusts=trusts,
            raw=raw,
            options=options,
        )
        command = stack.client(terms)
        return self._until_the_end.enter_context(
            running(command, directory=self.directory, name="client", environment=stack.environment)
        )

    def their_server(
        self,
        stack: CertifiedStack,
        *,
        own: Credential,
        suite: CipherSuite | None = None,
        group: NamedGroup | None = None,
        scheme: SignatureScheme | None = None,
        trusts: Credential | None = None,
        raw: bool = False,
        options: Sequence[str] = (),
    ) -> tuple[PeerProcess, int]:
        """The server and its port."""
        stack.require()
        terms = Terms(
            directory=self.directory,
            port=free_port(),
            suite=suite,
            group=group,
            scheme=scheme,
            own=own,
            trusts=trusts,
            raw=raw,
            options=options,
        )
        process = self._until_the_end.enter_context(
            running(
                stack.server(terms),
                directory=self.directory,
                name="server",
                listening_on=terms.port,
                environment=stack.environment,
            )
        )
        return process, terms.port

    def our_server(
        self,
        config: ServerConfig,
        *,
        keys: Mapping[bytes, Sequence[bytes]] | None = None,
        judge: Judge = trusting,
    ) -> OurServer:
        return self._until_the_end.enter_context(
            OurServer(config, keys or {}, answer=answer_to_hello, judge=judge)
        )

    def our_client(self, config: ClientConfig, port: int, *, judge: Judge = trusting) -> OurClient:
        return self._until_the_end.enter_context(OurClient(config, port, judge=judge))


def _ours(stack: Stack, suite: CipherSuite) -> tuple[CipherSuite, ...]:
    """All our suites where the other side names the one to be taken, else that one."""
    return DEFAULT_CIPHER_SUITES if stack.takes_suite else (suite,)


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    with ExitStack() as until_the_end:
        yield Meeting(until_the_end, tmp_path)


@pytest.fixture
def certified_meeting(tmp_path: Path) -> Iterator[CertifiedMeeting]:
    with ExitStack() as until_the_end:
        yield CertifiedMeeting(until_the_end, tmp_path)


@pytest.fixture
def identified_meeting(tmp_path: Path) -> Iterator[IdentifiedMeeting]:
    with ExitStack() as until_the_end:
        yield IdentifiedMeeting(until_the_end, tmp_path)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A server's and a client's credentials, by kind of key; those of ``stranger`` nobody trusts."""
    directory = tmp_path_factory.mktemp("credentials")
    pairs = {kind: make_pair(directory, kind) for kind in KINDS}
    return {**pairs, "stranger": make_pair(directory, "p256", authority="stranger")}
