"""The other DTLS stacks: how each is called, which suites it has, and how one talks through it.

A client says "hello" and is answered "heard hello", however long its hello is; those that speak CoAP ask
with ``GET /``. What a server answers is in its ``answer``. Our side of it is in ``ours.py``.

The programs in ``peers/`` are ours, around libraries that are not. They say what happens: ``connected``,
``received TEXT``, ``closed`` (by the other side), ``failed: WHY``.
"""

from __future__ import annotations

import abc
import functools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from sansdtls import CipherSuite
from tests.conftest import require_file, require_module, require_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent
PEERS = HERE / "peers"
BUILD = HERE / "build"
COMPILING_TIME = 600
"""Seconds after which a compiler hangs. Go compiles its own library, too, where it has not done so before."""
IP_AND_UDP_HEADERS = 28
"""Bytes of IPv4 and UDP header: some stacks' MTU is the link's, ours is that of the UDP payload."""

WITH_PSK = [suite for suite in CipherSuite if suite.name.startswith(("TLS_PSK_", "TLS_ECDHE_PSK_"))]
CCM_8 = CipherSuite.TLS_PSK_WITH_AES_128_CCM_8


@attrs.frozen(kw_only=True)
class Session:
    """What both sides of one test agree on."""

    directory: Path
    port: int
    suite: CipherSuite = CCM_8
    identity: str = "dev1"
    key: bytes
    mtu: int | None = None
    """Bytes of UDP payload; ``None`` = the stack's own default."""
    options: Sequence[str] = ()
    """Further options, for the programs that have any."""


class Stack(abc.ABC):
    """One implementation, as a client and as a server."""

    name: str
    suites: ClassVar[Mapping[CipherSuite, str]]
    """Its own names of the suites."""
    client_lacks: ClassVar[Sequence[CipherSuite]] = ()
    """Those that only the server has."""
    key: ClassVar[bytes] = bytes.fromhex("00112233445566778899aabbccddeeff")
    has_mtu: ClassVar[bool] = False
    """Whether it can be told an MTU."""
    takes_suite: ClassVar[bool] = True
    """Whether it can be told a suite; else our side offers but one."""
    speaks_coap: ClassVar[bool] = False
    port_offset: ClassVar[int] = 0
    """How far above the port it is given a server has DTLS."""
    types_hello: ClassVar[bool] = False
    """Whether the client sends what is typed, rather than its hello on its own account."""
    types_answer: ClassVar[bool] = False
    """The same of the server: it cannot echo."""
    answer: ClassVar[bytes] = b"heard hello"
    """What is in the server's answer."""
    echoes: ClassVar[bool] = False
    """Whether the server sends back what it receives, perhaps in pieces."""
    closes_on_bye: ClassVar[bool] = False
    """Whether the server closes the connection when it receives ``bye``."""
    has_extended_master_secret: ClassVar[bool] = True
    client_sees_close: ClassVar[str | None] = None
    """What the client prints when the server closes; ``None`` = nothing."""
    server_sees_close: ClassVar[str | None] = None
    """The same of the server."""
    sees_decrypt_error: str | None = None
    """What the client prints about the alert decrypt_error."""
    repeats_itself: ClassVar[bool] = True
    """Whether the client has a retransmission timer."""
    longest_identity: ClassVar[int] = 128
    """Bytes. RFC 7925 §4 asks for 128."""
    environment: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def require(self) -> None:
        """Skip the test, or fail it in CI, if something is not installed."""

    @abc.abstractmethod
    def client(self, session: Session) -> list[str]:
        """The command for a client of 127.0.0.1 and the session's port."""

    @abc.abstractmethod
    def server(self, session: Session) -> list[str]:
        """The command for a server on 127.0.0.1 and the session's port."""

    def __str__(self) -> str:
        return self.name


class OpenSsl(Stack):
    name = "openssl"
    suites: ClassVar = {
        CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256: "PSK-AES128-GCM-SHA256",
        CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384: "PSK-AES256-GCM-SHA384",
        CipherSuite.TLS_PSK_WITH_AES_128_CCM: "PSK-AES128-CCM",
        CipherSuite.TLS_PSK_WITH_AES_256_CCM: "PSK-AES256-CCM",
        CipherSuite.TLS_PSK_WITH_AES_128_CCM_8: "PSK-AES128-CCM8",
        CipherSuite.TLS_PSK_WITH_AES_256_CCM_8: "PSK-AES256-CCM8",
        CipherSuite.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256: "PSK-CHACHA20-POLY1305",
        CipherSuite.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-PSK-CHACHA20-POLY1305",
    }
    has_mtu = True
    types_hello = True
    types_answer = True
    client_sees_close = "closed"
    server_sees_close = "DONE"
    sees_decrypt_error = "alert decrypt error"
    longest_identity = 255

    def require(self) -> None:
        require_program("openssl")

    def _options(self, session: Session) -> list[str]:
        options = ["-psk", session.key.hex(), "-psk_identity", session.identity]
        # From OpenSSL 3.2 on CCM_8 is under the default security level.
        options += ["-cipher", f"{self.suites[session.suite]}:@SECLEVEL=0"]
        if session.mtu is not None:
            options += ["-mtu", str(session.mtu + IP_AND_UDP_HEADERS)]
        return options

    def client(self, session: Session) -> list[str]:
        return [
            "openssl",
            "s_client",
            "-dtls1_2",
            "-connect",
            f"127.0.0.1:{session.port}",
            *self._options(session),
            *session.options,
        ]

    def server(self, session: Session) -> list[str]:
        listen = ["-accept", f"127.0.0.1:{session.port}", "-nocert"]
        return ["openssl", "s_server", "-dtls1_2", *listen, *self._options(session), *session.options]


class GnuTls(Stack):
    name = "gnutls"
    suites: ClassVar = {
        CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256: "AES-128-GCM",
        CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384: "AES-256-GCM",
        CipherSuite.TLS_PSK_WITH_AES_128_CCM: "AES-128-CCM",
        CipherSuite.TLS_PSK_WITH_AES_256_CCM: "AES-256-CCM",
        CipherSuite.TLS_PSK_WITH_AES_128_CCM_8: "AES-128-CCM-8",
        CipherSuite.TLS_PSK_WITH_AES_256_CCM_8: "AES-256-CCM-8",
        CipherSuite.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256: "CHACHA20-POLY1305",
        CipherSuite.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256: "CHACHA20-POLY1305",
    }
    # Version 3.7 of the client crashes at the end of a handshake with ECDHE_PSK.
    client_lacks: ClassVar = (CipherSuite.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256,)
    has_mtu = True
    types_hello = True
    answer = b"hello"
    echoes = True
    client_sees_close = "Peer has closed the GnuTLS connection"
    sees_decrypt_error = "Decrypt error"

    def require(self) -> None:
        require_program("gnutls-cli")
        require_program("gnutls-serv")

    def _options(self, session: Session) -> list[str]:
        exchange = "ECDHE-PSK" if "ECDHE" in session.suite.name else "PSK"
        priority = f"NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+{exchange}"
        priority += f":-CIPHER-ALL:+{self.suites[session.suite]}"
        options = ["--udp", "--port", str(session.port), "--priority", priority]
        if session.mtu is not None:
            options += ["--mtu", str(session.mtu)]
        return options

    def client(self, session: Session) -> list[str]:
        credentials = ["--pskusername", session.identity, "--pskkey", session.key.hex()]
        return ["gnutls-cli", *self._options(session), *credentials, *session.options, "127.0.0.1"]

    def server(self, session: Session) -> list[str]:
        # It binds to 0.0.0.0 and :: alike and has no option for one address.
        keys = session.directory / "gnutls.psk"
        keys.write_text(f"{session.identity}:{session.key.hex()}\n", encoding="utf-8")
        return ["gnutls-serv", "--echo", *self._options(session), "--pskpasswd", str(keys), *session.options]


class LibCoap(Stack):
    """libcoap with one of its two backends. Its programs take keys as text and choose the suite themselves."""

    suites: ClassVar = dict.fromkeys(
        # The backend with GnuTLS has no AES_256_CCM_8, and no suite of ECDHE_PSK that we have works with both.
        [
            suite
            for suite in WITH_PSK
            if suite is not CipherSuite.TLS_PSK_WITH_AES_256_CCM_8 and "ECDHE" not in suite.name
        ],
        "what the other side prefers",
    )
    key = b"sixteen-byte-key"
    takes_suite = False
    speaks_coap = True
    port_offset = 1
    answer = b"This is a test server made with libcoap"

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"libcoap-{backend}"
        self.sees_decrypt_error = {"openssl": "alert decrypt error", "gnutls": "Alert '51'"}[backend]

    def require(self) -> None:
        require_program(f"coap-client-{self.backend}")
        require_program(f"coap-server-{self.backend}")

    def client(self, session: Session) -> list[str]:
        credentials = ["-k", session.key.decode(), "-u", session.identity]
        give_up = ["-B", "30"]
        uri = f"coaps://127.0.0.1:{session.port}/"
        return [f"coap-client-{self.backend}", *session.options, *give_up, *credentials, uri]

    def server(self, session: Session) -> list[str]:
        listen = ["-A", "127.0.0.1", "-p", str(session.port)]
        return [f"coap-server-{self.backend}", *listen, "-k", session.key.decode(), *session.options]


class BouncyCastle(Stack):
    """Bouncy Castle's Java DTLS in a program of our own, compiled on first use."""

    name = "bouncycastle"
    client_sees_close = "closed"
    server_sees_close = "closed"
    sees_decrypt_error = "decrypt_error(51)"
    closes_on_bye = True
    suites: ClassVar = {suite: hex(suite) for suite in WITH_PSK}
    has_mtu = True
    expansion = 8 + 16
    """Bytes that it forgets, up to version 1.72 at least: it drops records whose ciphertext is larger than the
    plaintext that fits its MTU, so explicit nonce and tag come on top."""
    jars: ClassVar = tuple(f"/usr/share/java/{name}.jar" for name in ("bctls", "bcprov", "bcutil"))

    def require(self) -> None:
        for jar in self.jars:
            require_file(jar)
        require_program("java")
        require_program("javac")

    def _command(self, role: str, session: Session) -> list[str]:
        suite = self.suites[session.suite]
        link_mtu = (session.mtu or 1400) + IP_AND_UDP_HEADERS + self.expansion
        # One-shot programs: the first compiler stage and the small collector start fastest.
        java = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        java += ["-cp", ":".join((str(compiled_java()), *self.jars)), "BouncyCastlePeer"]
        return [*java, role, str(session.port), suite, session.identity, session.key.hex(), str(link_mtu)]

    def client(self, session: Session) -> list[str]:
        return self._command("client", session)

    def server(self, session: Session) -> list[str]:
        return self._command("server", session)


class _PythonPeer(Stack):
    """A script of ours around a Python package; it runs in a process of its own, as the others do."""

    script: ClassVar[str]
    module: ClassVar[str]

    def require(self) -> None:
        require_module(self.module)

    def _arguments(self, session: Session) -> list[str]:
        return [str(session.port), session.identity, session.key.hex()]

    def client(self, session: Session) -> list[str]:
        return [sys.executable, str(PEERS / self.script), "client", *self._arguments(session)]

    def server(self, session: Session) -> list[str]:
        return [sys.executable, str(PEERS / self.script), "server", *self._arguments(session)]


class PythonMbedTls(_PythonPeer):
    name = "python-mbedtls"
    server_sees_close = "closed"
    sees_decrypt_error = "A fatal alert message was received"
    closes_on_bye = True
    suites: ClassVar = {
        CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256: "TLS-PSK-WITH-AES-128-GCM-SHA256",
        CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384: "TLS-PSK-WITH-AES-256-GCM-SHA384",
        CipherSuite.TLS_PSK_WITH_AES_128_CCM: "TLS-PSK-WITH-AES-128-CCM",
        CipherSuite.TLS_PSK_WITH_AES_256_CCM: "TLS-PSK-WITH-AES-256-CCM",
        CipherSuite.TLS_PSK_WITH_AES_128_CCM_8: "TLS-PSK-WITH-AES-128-CCM-8",
        CipherSuite.TLS_PSK_WITH_AES_256_CCM_8: "TLS-PSK-WITH-AES-256-CCM-8",
        CipherSuite.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256: "TLS-PSK-WITH-CHACHA20-POLY1305-SHA256",
    }
    script = "mbedtls_peer.py"
    module = "mbedtls"

    def _arguments(self, session: Session) -> list[str]:
        return [str(session.port), self.suites[session.suite], session.identity, session.key.hex()]


class TinyDtls(_PythonPeer):
    name = "tinydtls"
    sees_decrypt_error = "failed: alert 51"
    server_sees_close = "closed"
    closes_on_bye = True
    suites: ClassVar = dict.fromkeys(
        (CCM_8, CipherSuite.TLS_PSK_WITH_AES_128_CCM), "what the other side prefers"
    )
    takes_suite = False
    longest_identity = 32
    script = "tinydtls_peer.py"
    module = "DTLSSocket"


class AioCoap(_PythonPeer):
    name = "aiocoap"
    suites: ClassVar = TinyDtls.suites
    takes_suite = False
    speaks_coap = True
    port_offset = 1
    answer = b"heard GET"
    longest_identity = 32
    script = "aiocoap_peer.py"
    module = "aiocoap"

    def require(self) -> None:
        super().require()
        require_module("DTLSSocket")


class NodeDtlsClient(Stack):
    name = "node-dtls-client"
    suites: ClassVar = {
        suite: suite.name
        for suite in (
            CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256,
            CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384,
            CipherSuite.TLS_PSK_WITH_AES_128_CCM_8,
            CipherSuite.TLS_PSK_WITH_AES_256_CCM_8,
        )
    }
    has_extended_master_secret = False
    sees_decrypt_error = "received fatal alert: decrypt_error"
    repeats_itself = False
    environment: ClassVar = {"NODE_DTLS_CLIENT": str(BUILD)}

    def require(self) -> None:
        require_program("node")
        require_file(str(BUILD / "node_modules" / "node-dtls-client"))

    def client(self, session: Session) -> list[str]:
        arguments = [str(session.port), self.suites[session.suite], session.identity, session.key.hex()]
        return ["node", str(PEERS / "node_dtls_client.mjs"), *arguments]

    def server(self, session: Session) -> list[str]:
        raise NotImplementedError("node-dtls-client is a client only")


@functools.cache
def compiled_java() -> Path:
    """The folder with the compiled Java peer; compiled if the source is newer."""
    source, compiled = PEERS / "BouncyCastlePeer.java", BUILD / "java" / "BouncyCastlePeer.class"
    if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
        compiled.parent.mkdir(parents=True, exist_ok=True)
        class_path = ":".join(BouncyCastle.jars)
        command = ["javac", "-d", str(compiled.parent), "-cp", class_path, str(source)]
        subprocess.run(command, check=True, timeout=COMPILING_TIME)
    return compiled.parent


OPENSSL = OpenSsl()
GNUTLS = GnuTls()
BOUNCY_CASTLE = BouncyCastle()
LIBCOAP_OPENSSL = LibCoap("openssl")
LIBCOAP_GNUTLS = LibCoap("gnutls")
MBEDTLS = PythonMbedTls()
TINYDTLS = TinyDtls()
AIOCOAP = AioCoap()
NODE = NodeDtlsClient()

CLIENTS = (
    OPENSSL,
    GNUTLS,
    LIBCOAP_OPENSSL,
    LIBCOAP_GNUTLS,
    BOUNCY_CASTLE,
    MBEDTLS,
    TINYDTLS,
    AIOCOAP,
    NODE,
)
SERVERS = CLIENTS[:-1]
