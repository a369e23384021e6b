"""The other DTLS stacks that know connection IDs (RFC 9146), both from Debian 13: see ``.ci/trixie``.

Both programs in ``peers/`` are told what to do, and say what happens, in the same words; those are in
``mbedtls_cid_peer.c``. Their servers answer all that they receive.
"""

from __future__ import annotations

import abc
import functools
import subprocess
from typing import TYPE_CHECKING, ClassVar

from sansdtls import CertificateType, CipherSuite, ClientConfig, ServerConfig
from tests.conftest import require_file, require_program
from tests.interop.ours import OurClient, OurServer, answer_to_hello
from tests.interop.process import running, wait_until
from tests.interop.stacks import BUILD, CCM_8, COMPILING_TIME, PEERS, WITH_PSK
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from sansdtls import CertificateCredential, ConnectionIdPolicy
    from tests.interop.credentials import Credential
    from tests.interop.process import PeerProcess

TRIXIE = BUILD / "trixie"
ORIGIN = "Debian 13 (.ci/trixie fetches it, where apt knows a mirror of Debian)"
IDENTITY = "dev1"
KEY = bytes.fromhex("00112233445566778899aabbccddeeff")
DEFAULT_MTU = ServerConfig().mtu

GCM = CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256
WITH_CERTIFICATE = CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8


class IdentifiedStack(abc.ABC):
    """One implementation, as a client and as a server."""

    name: str
    suites: ClassVar[Mapping[CipherSuite, str]]
    """Its own names of the suites with PSK."""
    padding: ClassVar[int] = 1
    """What it fills each record up to a multiple of, in bytes."""
    environment: ClassVar[Mapping[str, str]] = {"PSK_IDENTITY": IDENTITY, "PSK_KEY": KEY.hex()}

    @abc.abstractmethod
    def require(self) -> None:
        """Skip the test, or fail it in CI, if something is not there."""

    @abc.abstractmethod
    def command(
        self, role: str, port: int, *, suite: CipherSuite, cid: str | None, options: Sequence[str] = ()
    ) -> list[str]:
        """For a ``client`` of 127.0.0.1 and the port, or a ``server`` there.

        ``cid``: its connection ID in hex; ``""`` = it needs none, ``None`` = it does not know the extension.
        """

    def __str__(self) -> str:
        return self.name


class BouncyCastle(IdentifiedStack):
    """Version 1.80 in a Java program of our own, compiled on first use."""

    name = "bouncycastle"
    suites: ClassVar = {suite: hex(suite) for suite in WITH_PSK}
    jars: ClassVar = tuple(
        str(TRIXIE / "usr" / "share" / "java" / f"{name}.jar") for name in ("bctls", "bcprov", "bcutil")
    )

    def require(self) -> None:
        for jar in self.jars:
            require_file(jar, origin=ORIGIN)
        require_program("java")
        require_program("javac")

    def command(
        self, role: str, port: int, *, suite: CipherSuite, cid: str | None, options: Sequence[str] = ()
    ) -> list[str]:
        assert not options, "it has none"
        # A one-shot program: the first compiler stage and the small collector start fastest.
        java = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        java += ["-cp", ":".join((str(compiled_java()), *self.jars)), "BouncyCastleCidPeer"]
        return [*java, role, str(port), self.suites[suite], *([] if cid is None else [cid])]


class MbedTls(IdentifiedStack):
    """Version 3.6 in a C program of our own, compiled on first use."""

    name = "mbedtls"
    suites: ClassVar = {
        suite: suite.name.replace("_", "-")
        for suite in WITH_PSK
        # It has no AEAD cipher with ECDHE_PSK but this one.
        if "ECDHE" not in suite.name or "CHACHA20" in suite.name
    }
    padding = 16
    headers: ClassVar = str(TRIXIE / "usr" / "include" / "mbedtls" / "ssl.h")

    def require(self) -> None:
        require_file(self.headers, origin=ORIGIN)
        require_program("gcc")

    def command(
        self, role: str, port: int, *, suite: CipherSuite, cid: str | None, options: Sequence[str] = ()
    ) -> list[str]:
        arguments = [f"suite={suite.name.replace('_', '-')}", *options]
        if cid is not None:
            arguments.append(f"cid={cid}")
        return [str(compiled_c()), role, str(port), *arguments]


def shown_and_trusted(own: Credential, trusts: Credential) -> list[str]:
    """Options of Mbed TLS for certificates."""
    return [
        f"certificate={own.file('.pem')}",
        f"key={own.file('.key')}",
        f"authority={trusts.file('.ca.pem')}",
    ]


@functools.cache
def compiled_java() -> Path:
    """The folder with the compiled Java peer; compiled if the source is newer."""
    source, compiled = PEERS / "BouncyCastleCidPeer.java", BUILD / "java" / "BouncyCastleCidPeer.class"
    if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
        compiled.parent.mkdir(parents=True, exist_ok=True)
        command = ["javac", "-d", str(compiled.parent), "-cp", ":".join(BouncyCastle.jars), str(source)]
        subprocess.run(command, check=True, timeout=COMPILING_TIME)
    return compiled.parent


@functools.cache
def compiled_c() -> Path:
    """The Mbed TLS peer; compiled anew if the source is newer.

    The compiler is this machine's, headers and libraries are trixie's, the C library among them. Linked
    statically, the program runs here, however old the C library here is.
    """
    source, compiled = PEERS / "mbedtls_cid_peer.c", BUILD / "mbedtls_cid_peer"
    if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
        libraries = ["-lmbedtls", "-lmbedx509", "-lmbedcrypto"]
        command = ["gcc", f"--sysroot={TRIXIE}", "-static", "-Wall", "-Wextra", "-O1"]
        command += ["-o", str(compiled), str(source), *libraries]
        subprocess.run(command, check=True, timeout=COMPILING_TIME)
    return compiled


# --- the meeting ------------------------------------------------------------------------------------


class IdentifiedMeeting:
    """Starts both sides of a test, with the same identity and key; ``cid`` is their own, ``policy`` is ours."""

    def __init__(self, until_the_end: ExitStack, directory: Path) -> None:
        self._until_the_end = until_the_end
        self._directory = directory

    def their_client(
        self,
        stack: IdentifiedStack,
        port: int,
        *,
        cid: str | None,
        suite: CipherSuite = CCM_8,
        options: Sequence[str] = (),
    ) -> PeerProcess:
        stack.require()
        return self._until_the_end.enter_context(
            running(
                stack.command("client", port, suite=suite, cid=cid, options=options),
                directory=self._directory,
                name="client",
                environment=stack.environment,
            )
        )

    def their_server(
        self,
        stack: IdentifiedStack,
        *,
        cid: str | None,
        suite: CipherSuite = CCM_8,
        options: Sequence[str] = (),
    ) -> tuple[PeerProcess, int]:
        """The server and its port."""
        stack.require()
        port = free_port()
        process = self._until_the_end.enter_context(
            running(
                stack.command("server", port, suite=suite, cid=cid, options=options),
                directory=self._directory,
                name="server",
                listening_on=port,
                environment=stack.environment,
            )
        )
        return process, port

    def our_server(
        self,
        policy: ConnectionIdPolicy | None,
        *,
        suite: CipherSuite = CCM_8,
        credentials: Sequence[CertificateCredential] = (),
        answer: Callable[[bytes], bytes] = answer_to_hello,
    ) -> OurServer:
        config = ServerConfig(cipher_suites=(suite,), connection_id=policy, credentials=tuple(credentials))
        return self._until_the_end.enter_context(OurServer(config, {IDENTITY.encode(): [KEY]}, answer=answer))

    def our_client(
        self,
        policy: ConnectionIdPolicy | None,
        port: int,
        *,
        suite: CipherSuite = CCM_8,
        credentials: Sequence[CertificateCredential] = (),
        mtu: int = DEFAULT_MTU,
    ) -> OurClient:
        config = ClientConfig(
            psk_identity=IDENTITY.encode() if suite in WITH_PSK else None,
            psk_key=KEY if suite in WITH_PSK else None,
            server_certificate_types=() if suite in WITH_PSK else (CertificateType.X509,),
            credentials=tuple(credentials),
            cipher_suites=(suite,),
            connection_id=policy,
            mtu=mtu,
        )
        return self._until_the_end.enter_context(OurClient(config, port))


# --- what they say ----------------------------------------------------------------------------------


def said(process: PeerProcess, what: str) -> list[str]:
    """The rest of each whole line that begins with ``what``."""
    lines = process.output.splitlines(keepends=True)
    return [line.removeprefix(what).strip() for line in lines if line.startswith(what) and line[-1] == "\n"]


def cid_said(process: PeerProcess, whose: str) -> bytes:
    """A connection ID of the last handshake that a peer tells of, ``own-cid`` or ``peer-cid``; empty = none."""
    cid = said(process, whose)[-1]
    return b"" if cid == "none" else bytes.fromhex(cid)


def rebound(process: PeerProcess) -> int:
    """Let the peer go on from another port: that port."""
    times = len(said(process, "rebound"))
    process.say("rebind")
    wait_until(lambda: len(said(process, "rebound")) > times, process.__str__)
    return int(said(process, "rebound")[-1])


BOUNCY_CASTLE = BouncyCastle()
MBED_TLS = MbedTls()

IDENTIFIED = (BOUNCY_CASTLE, MBED_TLS)
