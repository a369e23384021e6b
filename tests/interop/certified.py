"""The other DTLS stacks with certificates and raw public keys: how each is called and what it offers.

As in ``stacks.py``, a client says "hello" and is answered "heard hello", and the programs in ``peers/`` say
what happens.
"""

from __future__ import annotations

import abc
import functools
import subprocess
from typing import TYPE_CHECKING, ClassVar

import attrs

from sansdtls import CipherSuite, NamedGroup, SignatureScheme
from tests.conftest import require_file, require_program
from tests.interop.stacks import BUILD, COMPILING_TIME, PEERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.interop.credentials import Credential

ALL_GROUPS = tuple(NamedGroup)
KIND_OF_SCHEME = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: "p256",
    SignatureScheme.ECDSA_SECP384R1_SHA384: "p384",
    SignatureScheme.ED25519: "ed25519",
    SignatureScheme.RSA_PSS_RSAE_SHA256: "rsa",
    SignatureScheme.RSA_PSS_RSAE_SHA384: "rsa",
    SignatureScheme.RSA_PKCS1_SHA256: "rsa",
    SignatureScheme.RSA_PKCS1_SHA384: "rsa",
}


def with_certificates(*, ccm: bool = True) -> list[CipherSuite]:
    """The suites with certificates, perhaps without those with CCM."""
    return [
        suite
        for suite in CipherSuite
        if suite.name.startswith(("TLS_ECDHE_ECDSA_", "TLS_ECDHE_RSA_")) and (ccm or "_CCM" not in suite.name)
    ]


def kind_of(suite: CipherSuite) -> str:
    """The kind of key that goes with a suite, where no other is asked for."""
    return "rsa" if "_RSA_" in suite.name else "p256"


@attrs.frozen(kw_only=True)
class Terms:
    """What the other side is told. What is ``None`` it chooses itself."""

    directory: Path
    port: int
    suite: CipherSuite | None = None
    group: NamedGroup | None = None
    scheme: SignatureScheme | None = None
    own: Credential | None = None
    """What it shows of itself."""
    trusts: Credential | None = None
    """Whose authority it trusts. A server so told wants a certificate of its clients, a client checks the
    server's."""
    raw: bool = False
    """Whether both use raw public keys."""
    options: Sequence[str] = ()


class CertifiedStack(abc.ABC):
    """One implementation, as a client and as a server."""

    name: str
    suites: ClassVar[Sequence[CipherSuite]]
    groups: ClassVar[Sequence[NamedGroup]] = ()
    schemes: ClassVar[Sequence[SignatureScheme]] = ()
    """Signatures, both sides' at once."""
    kinds: ClassVar[Sequence[str]] = ()
    """Kinds of keys of both sides, authenticating each other."""
    takes_suite: ClassVar[bool] = True
    """Whether it can be told a suite; else our side offers but one."""
    takes_group: ClassVar[bool] = True
    """The same of groups."""
    server_schemes: ClassVar[Sequence[SignatureScheme] | None] = None
    """Those of a server, where a client has more."""
    server_kinds: ClassVar[Sequence[str] | None] = None
    """The same of kinds of keys."""
    asks_clients: ClassVar[bool] = True
    """Whether the server can ask for the client's certificate."""
    types_hello: ClassVar[bool] = False
    """Whether the client sends what is typed, rather than its hello on its own account."""
    types_answer: ClassVar[bool] = False
    """The same of the server: it cannot echo."""
    answer: ClassVar[bytes] = b"heard hello"
    """What is in the server's answer."""
    has_extended_master_secret: ClassVar[bool] = True
    environment: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def require(self) -> None:
        """Skip the test, or fail it in CI, if something is not installed."""

    @abc.abstractmethod
    def client(self, terms: Terms) -> list[str]:
        """The command for a client of 127.0.0.1 and the port."""

    @abc.abstractmethod
    def server(self, terms: Terms) -> list[str]:
        """The command for a server on 127.0.0.1 and the port."""

    def __str__(self) -> str:
        return self.name


class OpenSsl(CertifiedStack):
    name = "openssl"
    suites: ClassVar = with_certificates()
    groups: ClassVar = ALL_GROUPS
    schemes: ClassVar = tuple(KIND_OF_SCHEME)
    kinds: ClassVar = ("p256", "p384", "ed25519", "rsa")
    # Its servers look for TLS 1.2 before they use Ed25519, and so not for DTLS 1.2.
    server_schemes: ClassVar = tuple(
        scheme for scheme in KIND_OF_SCHEME if scheme is not SignatureScheme.ED25519
    )
    server_kinds: ClassVar = ("p256", "p384", "rsa")
    types_hello = True
    types_answer = True
    group_names: ClassVar = {
        NamedGroup.X25519: "X25519",
        NamedGroup.SECP256R1: "P-256",
        NamedGroup.SECP384R1: "P-384",
    }
    scheme_names: ClassVar = {
        SignatureScheme.ECDSA_SECP256R1_SHA256: "ECDSA+SHA256",
        SignatureScheme.ECDSA_SECP384R1_SHA384: "ECDSA+SHA384",
        SignatureScheme.ED25519: "ed25519",
        SignatureScheme.RSA_PSS_RSAE_SHA256: "rsa_pss_rsae_sha256",
        SignatureScheme.RSA_PSS_RSAE_SHA384: "rsa_pss_rsae_sha384",
        SignatureScheme.RSA_PKCS1_SHA256: "RSA+SHA256",
        SignatureScheme.RSA_PKCS1_SHA384: "RSA+SHA384",
    }

    def require(self) -> None:
        require_program("openssl")

    @staticmethod
    def _suite_name(suite: CipherSuite) -> str:
        # TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8 is ECDHE-ECDSA-AES128-CCM8.
        exchange, _, cipher = suite.name.removeprefix("TLS_").partition("_WITH_")
        cipher = cipher.replace("AES_", "AES").replace("CCM_8", "CCM8").removesuffix("_POLY1305_SHA256")
        cipher += "_POLY1305" if cipher == "CHACHA20" else ""
        return f"{exchange}_{cipher}".replace("_", "-")

    def _options(self, terms: Terms) -> list[str]:
        options = []
        # From OpenSSL 3.2 on CCM_8 is under the default security level.
        suites = "ALL" if terms.suite is None else self._suite_name(terms.suite)
        options += ["-cipher", f"{suites}:@SECLEVEL=0"]
        if terms.group is not None:
            options += ["-curves", self.group_names[terms.group]]
        if terms.scheme is not None:
            options += ["-sigalgs", self.scheme_names[terms.scheme]]
        if terms.own is not None:
            options += ["-cert", terms.own.file(".pem"), "-key", terms.own.file(".key")]
        if terms.trusts is not None:
            options += ["-CAfile", terms.trusts.file(".ca.pem"), "-verify_return_error"]
        return [*options, *terms.options]

    def client(self, terms: Terms) -> list[str]:
        connect = ["-connect", f"127.0.0.1:{terms.port}"]
        return ["openssl", "s_client", "-dtls1_2", *connect, *self._options(terms)]

    def server(self, terms: Terms) -> list[str]:
        listen = ["-accept", f"127.0.0.1:{terms.port}"]
        mutual = ["-Verify", "2"] if terms.trusts is not None else []
        return ["openssl", "s_server", "-dtls1_2", *listen, *mutual, *self._options(terms)]


class GnuTls(CertifiedStack):
    name = "gnutls"
    suites: ClassVar = with_certificates()
    groups: ClassVar = ALL_GROUPS
    schemes: ClassVar = tuple(KIND_OF_SCHEME)
    kinds: ClassVar = ("p256", "p384", "ed25519", "rsa")
    types_hello = True
    answer = b"hello"
    scheme_names: ClassVar = {
        SignatureScheme.ECDSA_SECP256R1_SHA256: "ECDSA-SHA256",
        SignatureScheme.ECDSA_SECP384R1_SHA384: "ECDSA-SHA384",
        # With Ed25519 alone a server would ask for certificates of no type at all, against RFC 5246 §7.4.4.
        SignatureScheme.ED25519: "EDDSA-ED25519:+SIGN-ECDSA-SHA512",
        SignatureScheme.RSA_PSS_RSAE_SHA256: "RSA-PSS-RSAE-SHA256",
        SignatureScheme.RSA_PSS_RSAE_SHA384: "RSA-PSS-RSAE-SHA384",
        SignatureScheme.RSA_PKCS1_SHA256: "RSA-SHA256",
        SignatureScheme.RSA_PKCS1_SHA384: "RSA-SHA384",
    }

    def require(self) -> None:
        require_program("gnutls-cli")
        require_program("gnutls-serv")

    def _options(self, terms: Terms) -> list[str]:
        priority = "NORMAL:-VERS-ALL:+VERS-DTLS1.2"
        if terms.suite is not None:
            exchange, _, cipher = terms.suite.name.removeprefix("TLS_").partition("_WITH_")
            cipher = cipher.removesuffix("_SHA256").removesuffix("_SHA384")
            priority += f":-KX-ALL:+{exchange}:-CIPHER-ALL:+{cipher}".replace("_", "-")
        if terms.group is not None:
            priority += f":-GROUP-ALL:+GROUP-{terms.group.name}"
        if terms.scheme is not None:
            priority += f":-SIGN-ALL:+SIGN-{self.scheme_names[terms.scheme]}"
        if terms.raw:
            priority += ":+CTYPE-CLI-RAWPK:+CTYPE-SRV-RAWPK:-CTYPE-X509"
        options = ["--udp", "--port", str(terms.port), "--priority", priority]
        if terms.own is not None and terms.raw:
            options += ["--rawpkkeyfile", terms.own.file(".key"), "--rawpkfile", terms.own.file(".pub")]
        elif terms.own is not None:
            options += ["--x509keyfile", terms.own.file(".key"), "--x509certfile", terms.own.file(".pem")]
        if terms.trusts is not None and not terms.raw:
            options += ["--x509cafile", terms.trusts.file(".ca.pem")]
        return [*options, *terms.options]

    def client(self, terms: Terms) -> list[str]:
        check = ["--insecure"] if terms.trusts is None or terms.raw else ["--verify-hostname", "localhost"]
        return ["gnutls-cli", *self._options(terms), *check, "127.0.0.1"]

    def server(self, terms: Terms) -> list[str]:
        # It binds to 0.0.0.0 and :: alike and has no option for one address.
        if terms.trusts is None:
            mutual = ["--disable-client-cert"]
        else:
            mutual = ["--require-client-cert", *([] if terms.raw else ["--verify-client-cert"])]
        return ["gnutls-serv", "--echo", *mutual, *self._options(terms)]


class Botan(CertifiedStack):
    """Its programs have no CCM and no certificates of clients."""

    name = "botan"
    suites: ClassVar = with_certificates(ccm=False)
    groups: ClassVar = (NamedGroup.X25519, NamedGroup.SECP256R1, NamedGroup.SECP384R1)
    group_names: ClassVar = {
        NamedGroup.X25519: "x25519",
        NamedGroup.SECP256R1: "secp256r1",
        NamedGroup.SECP384R1: "secp384r1",
    }
    types_hello = True
    answer = b"hello"

    def require(self) -> None:
        require_program("botan")

    def _options(self, terms: Terms) -> list[str]:
        policy = terms.directory / "botan.policy"
        lines = ["allow_tls12 = true", "allow_dtls12 = true", "key_exchange_methods = ECDH"]
        if terms.suite is not None:
            exchange, _, cipher = terms.suite.name.removeprefix("TLS_ECDHE_").partition("_WITH_")
            bits = "256" if "_256_" in cipher else "128"
            name = "ChaCha20Poly1305" if cipher.startswith("CHACHA20") else f"AES-{bits}/GCM"
            lines += [f"ciphers = {name}", "macs = AEAD", f"signature_methods = {exchange}"]
        if terms.group is not None:
            lines.append(f"groups = {self.group_names[terms.group]}")
        policy.write_text("\n".join(lines) + "\n", encoding="ascii")
        return [f"--port={terms.port}", "--type=udp", f"--policy={policy}", *terms.options]

    def client(self, terms: Terms) -> list[str]:
        assert terms.trusts is not None
        anchors = [f"--trusted-cas={terms.trusts.file('.ca.pem')}", "--skip-system-cert-store"]
        # Else it prints what it has received when it ends.
        line_by_line = ["stdbuf", "--output=L"]
        return [*line_by_line, "botan", "tls_client", "localhost", *self._options(terms), *anchors]

    def server(self, terms: Terms) -> list[str]:
        assert terms.own is not None
        files = [terms.own.file(".pem"), terms.own.file(".key")]
        return ["botan", "tls_server", *files, *self._options(terms)]


class Nss(CertifiedStack):
    """tstclnt as both; with -P server it listens. It has no CCM."""

    name = "nss"
    suites: ClassVar = with_certificates(ccm=False)
    groups: ClassVar = ALL_GROUPS
    group_names: ClassVar = {
        NamedGroup.X25519: "x25519",
        NamedGroup.SECP256R1: "P256",
        NamedGroup.SECP384R1: "P384",
    }
    schemes: ClassVar = tuple(scheme for scheme in KIND_OF_SCHEME if scheme is not SignatureScheme.ED25519)
    kinds: ClassVar = ("p256", "p384", "rsa")
    asks_clients = False
    types_hello = True
    types_answer = True

    def require(self) -> None:
        for program in ("tstclnt", "certutil", "pk12util", "openssl"):
            require_program(program)

    def _options(self, terms: Terms) -> list[str]:
        credential = terms.own or terms.trusts
        assert credential is not None
        options = ["-4", "-p", str(terms.port), "-G", "-V", "tls1.2:tls1.2"]
        options += ["-d", f"sql:{nss_database(credential.stem)}"]
        if terms.own is not None:
            options += ["-n", "own"]
        if terms.suite is not None:
            options += ["-c", f":{terms.suite:04X}"]
        if terms.group is not None:
            options += ["-I", self.group_names[terms.group]]
        if terms.scheme is not None:
            options += ["-J", terms.scheme.name.lower()]
        return [*options, *terms.options]

    def client(self, terms: Terms) -> list[str]:
        return ["tstclnt", "-P", "client", "-h", "localhost", *self._options(terms)]

    def server(self, terms: Terms) -> list[str]:
        return ["tstclnt", "-P", "server", "-h", "127.0.0.1", *self._options(terms)]


class Pion(CertifiedStack):
    """pion/dtls 2 in a Go program of our own, compiled on first use."""

    name = "pion"
    suites: ClassVar = (
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM,
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8,
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    )
    groups: ClassVar = ALL_GROUPS
    takes_group = False
    kinds: ClassVar = ("p256", "ed25519", "rsa")
    go: ClassVar = "/usr/bin/go"
    library: ClassVar = "/usr/share/gocode/src/github.com/pion/dtls/v2"

    def require(self) -> None:
        require_file(self.go)
        require_file(self.library)

    def _command(self, role: str, terms: Terms) -> list[str]:
        suite = hex(terms.suite) if terms.suite is not None else "-"
        own = [terms.own.file(".pem"), terms.own.file(".key")] if terms.own is not None else ["-", "-"]
        authority = terms.trusts.file(".ca.pem") if terms.trusts is not None else "-"
        return [str(compiled_go()), role, str(terms.port), suite, *own, authority]

    def client(self, terms: Terms) -> list[str]:
        return self._command("client", terms)

    def server(self, terms: Terms) -> list[str]:
        return self._command("server", terms)


class Werift(CertifiedStack):
    """werift-dtls, made for WebRTC: a client without certificate it does not know."""

    name = "werift"
    suites: ClassVar = (
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    )
    kinds: ClassVar = ("p256", "rsa")
    takes_suite = False
    environment: ClassVar = {"NODE_PEERS": str(BUILD)}

    def require(self) -> None:
        require_program("node")
        require_file(str(BUILD / "node_modules" / "werift-dtls"))

    def _command(self, role: str, terms: Terms) -> list[str]:
        own = terms.own or terms.trusts
        assert own is not None
        kind = "rsa" if own.is_rsa else "ecdsa"
        files = [own.file(".pem"), own.file(".key")]
        mutual = "mutual" if terms.own and terms.trusts else "-"
        return ["node", str(PEERS / "werift_peer.mjs"), role, str(terms.port), *files, kind, mutual]

    def client(self, terms: Terms) -> list[str]:
        return self._command("client", terms)

    def server(self, terms: Terms) -> list[str]:
        return self._command("server", terms)


@functools.cache
def nss_database(stem: Path) -> Path:
    """A database of NSS with the certificate and key at ``stem``, named ``own``, and its authority."""
    database = stem.with_suffix(".nss")
    database.mkdir()
    at = ["-d", f"sql:{database}"]
    pack = ["openssl", "pkcs12", "-export", "-name", "own", "-passout", "pass:", "-out", f"{stem}.p12"]
    for command in (
        ["certutil", "-N", *at, "--empty-password"],
        ["certutil", "-A", *at, "-n", "authority", "-t", "C,C,C", "-i", f"{stem}.ca.pem"],
        [*pack, "-in", f"{stem}.pem", "-inkey", f"{stem}.key"],
        ["pk12util", *at, "-i", f"{stem}.p12", "-W", ""],
    ):
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    return database


@functools.cache
def compiled_go() -> Path:
    """The Go peer, compiled with Debian's Go and libraries; compiled anew if the source is newer."""
    source, compiled = PEERS / "pion_peer.go", BUILD / "pion_peer"
    if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
        environment = {
            "PATH": "/usr/bin:/bin",
            "GO111MODULE": "off",
            "GOPATH": "/usr/share/gocode",
            "GOCACHE": str(BUILD / "go-cache"),
        }
        BUILD.mkdir(exist_ok=True)
        command = [Pion.go, "build", "-o", str(compiled), str(source)]
        subprocess.run(command, check=True, timeout=COMPILING_TIME, env=environment)
    return compiled


OPENSSL = OpenSsl()
GNUTLS = GnuTls()
BOTAN = Botan()
NSS = Nss()
PION = Pion()
WERIFT = Werift()

STACKS = (OPENSSL, GNUTLS, BOTAN, NSS, PION, WERIFT)
