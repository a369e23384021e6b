"""``meeting``: one side ours, one side theirs, ended together however the test ends."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from sansdtls import DEFAULT_CIPHER_SUITES, ClientConfig, RetransmitPolicy, ServerConfig
from tests.interop.ours import OurClient, OurServer, answer_to_coap, answer_to_hello
from tests.interop.process import free_port, running
from tests.interop.stacks import CCM_8, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sansdtls import CipherSuite
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
        mtu: int = DEFAULT_MTU,
        asks_for_key: bool = False,
    ) -> OurClient:
        config = ClientConfig(
            psk_identity=identity.encode(),
            psk_key=None if asks_for_key else stack.key,
            cipher_suites=_ours(stack, suite),
            mtu=mtu,
        )
        return self._until_the_end.enter_context(OurClient(config, port, key=stack.key))


def _ours(stack: Stack, suite: CipherSuite) -> tuple[CipherSuite, ...]:
    """All our suites where the other side names the one to be taken, else that one."""
    return DEFAULT_CIPHER_SUITES if stack.takes_suite else (suite,)


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    with ExitStack() as until_the_end:
        yield Meeting(until_the_end, tmp_path)
