"""Certificates, raw public keys and resumption with the programs as processes: serve, check, connect."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from endpoint import HandshakeFailed, open_dtls
from sansdtls import (
    AlertDescription,
    CertificateCredential,
    CertificateType,
    ClientConfig,
    PeerAlert,
    RetransmitPolicy,
    SigningKey,
)
from sansdtls.pki import Purpose, TrustPolicy
from tests.conftest import require_program
from tests.core.certificates import CLIENT_AUTH, Authority
from tests.fleet_files import EXPIRED, VALID, Files
from tests.program.running import Running

K1 = "00112233445566778899aabbccddeeff"
K2 = "ffeeddccbbaa99887766554433221100"

EVERY_KIND = """
psk_file = "psk.txt"
certificate = "server.pem"
private_key = "server.key"
raw_public_key = "own.key"
client_ca = "ca.pem"
client_crl = "crl.pem"
raw_public_keys = "raw.txt"
"""


class Home(Files):
    """A fleet's files, with an endpoint that serves every kind of credential."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.ca()
        self.gateway = self.server()
        self.meter = self.device("meter-7")
        self.raw_key("own", "ed25519")
        self.raw_names(b"meter-9", self.raw_key("meter-9"))
        self.crl()
        self.keys(f"dev1:{K1}\n")

    def keys(self, text):
        self.write("psk.txt", text, 0o600)

    def raw_names(self, name, device):
        self.write("raw.txt", name + b":" + base64.b64encode(device.spki) + b"\n")

    def configure(self, credentials=EVERY_KIND):
        self.write(
            "endpoint.toml", f'[credentials]\n{credentials}\n[listen]\nport = 0\n[forward]\nkind = "echo"\n'
        )

    def serve(self, credentials=EVERY_KIND):
        self.configure(credentials)
        return Running("serve", "--config", "endpoint.toml", cwd=self.path)

    def check(self, credentials=EVERY_KIND):
        self.configure(credentials)
        return self.run("check", "--config", "endpoint.toml")

    def run(self, *arguments):
        done = Running(*arguments, cwd=self.path)
        with done:
            out, error = done.process.communicate()
            return done.process.returncode, out, error

    def connect(self, port, *options, message="hello"):
        return self.run("connect", f"127.0.0.1:{port}", "--message", message, *options)

    def client(self, *devices, server_name="gw.example", **more) -> ClientConfig:
        return ClientConfig(
            server_name=server_name,
            server_certificate_types=(CertificateType.X509,),
            credentials=[CertificateCredential(own.chain, SigningKey.wrap(own.key)) for own in devices],
            retransmit=RetransmitPolicy(initial_timeout=0.1),
            **more,
        )

    @property
    def servers(self):
        return TrustPolicy(purpose=Purpose.SERVER, anchors=(self.root.der,))


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


CERTIFIED = ("--ca", "ca.pem", "--cert", "meter-7.pem", "--key", "meter-7.key")
RAW = ("--raw-public-key", "own.pub", "--key", "meter-9.key")
PSK = ("--identity", "dev1", "--psk-file", "psk.txt")


async def fact(service, event):
    return await trio.to_thread.run_sync(service.fact, event)


# --- serve and connect --------------------------------------------------------------------------------


def test_one_port_serves_every_kind_of_credential(home):
    with home.serve() as service:
        _, port = service.listening()
        loaded = service.fact("keys_loaded")
        assert (
            loaded["own_credentials"],
            loaded["client_cas"],
            loaded["crls"],
            loaded["raw_public_keys"],
        ) == (
            2,
            1,
            1,
            1,
        )
        for options, identity, kind, told in (
            (PSK, "dev1", "psk", 'as "dev1" with'),
            (CERTIFIED, "meter-7", "certificate", 'by its certificate "127.0.0.1", with'),
            (RAW, "meter-9", "raw_public_key", 'by its raw public key "own", with'),
        ):
            status, out, error = home.connect(port, *options)
            assert (status, out) == (0, "hello\n")
            assert told in error
            connected = service.fact("connected")
            assert (connected["identity"], connected["credential"]) == (identity, kind)
            assert connected["resumed"] is False
            assert ("key_used" in connected) is (kind == "psk")
        assert service.end() == 0


def test_a_session_is_kept_for_its_owner_only_and_resumed(home):
    with home.serve() as service:
        _, port = service.listening()
        for turn, resumed in enumerate((False, True, True)):
            status, out, error = home.connect(port, *CERTIFIED, "--resume", "session")
            assert (status, out) == (0, "hello\n")
            assert ("resumed the session" in error) is resumed, turn
            connected = service.fact("connected")
            assert (connected["identity"], connected["resumed"]) == ("meter-7", resumed)
            assert (home.path / "session").stat().st_mode & 0o777 == 0o600
        # Another server name is another question, to be answered by a certificate.
        _, _, error = home.connect(port, *CERTIFIED, "--server-name", "gw.example", "--resume", "session")
        assert "resumed the session" not in error
        assert service.end() == 0


def test_a_file_that_is_no_session_is_neither_used_nor_overwritten(home):
    status, _, error = home.connect(9, *CERTIFIED, "--resume", "psk.txt")
    assert (status, error) == (2, "psk.txt: is no saved session; remedy: name another file, or remove it\n")
    assert (home.path / "psk.txt").read_text() == f"dev1:{K1}\n"


async def test_each_refused_device_is_one_line_with_the_exact_problem(home):
    others = Authority.root("Others", **VALID)
    old = home.root.device("old", purposes=[CLIENT_AUTH], **EXPIRED)
    foreign = others.device("foreign", purposes=[CLIENT_AUTH], **VALID)
    server = home.root.server("wrong.example", **VALID)
    stolen = home.device("stolen")
    home.crl(stolen)
    with home.serve() as service:
        _, port = service.listening()
        for device, problem, alert in (
            (old, "expired", AlertDescription.CERTIFICATE_EXPIRED),
            (foreign, "unknown_issuer", AlertDescription.UNKNOWN_CA),
            (server, "wrong_purpose", AlertDescription.UNSUPPORTED_CERTIFICATE),
            (stolen, "revoked", AlertDescription.CERTIFICATE_REVOKED),
        ):
            with pytest.raises(HandshakeFailed) as caught:
                await open_dtls("127.0.0.1", port, config=home.client(device), verify=home.servers)
            assert isinstance(caught.value.cause, PeerAlert)
            assert caught.value.cause.description is alert
            failed = await fact(service, "handshake_failed")
            assert failed["cause"] == "AuthenticationFailed.peer_rejected"
            assert failed["problem"] == problem
            assert failed["identity"] is None
            assert len(failed["reason"]) > 20
        with pytest.raises(HandshakeFailed):
            await open_dtls("127.0.0.1", port, config=home.client(), verify=home.servers)
        failed = await fact(service, "handshake_failed")
        assert failed["cause"] == "AuthenticationFailed.no_certificate"
        assert service.end() == 0


def test_a_client_refuses_the_wrong_server_and_says_why(home):
    home.raw_key("another")
    with home.serve() as service:
        _, port = service.listening()
        status, out, error = home.connect(port, *CERTIFIED, "--server-name", "other.example")
        assert (status, out) == (1, "")
        assert "other.example was wanted; the subjectAltName has gw.example" in error
        status, _, error = home.connect(port, "--raw-public-key", "another.pub", "--key", "meter-9.key")
        assert status == 1
        assert "is not a known one" in error


async def test_each_name_has_its_own_certificate(home):
    others = home.server("other", dns="other.example")
    more = '[credentials.names."other.example"]\ncertificate = "other.pem"\nprivate_key = "other.key"\n'
    with home.serve(EVERY_KIND + more) as service:
        _, port = service.listening()
        for name, chain in (("other.example", others.chain), ("gw.example", home.gateway.chain)):
            config = home.client(home.meter, server_name=name)
            async with await open_dtls("127.0.0.1", port, config=config, verify=home.servers) as channel:
                assert channel.peer.certificate_chain == chain


def test_anybody_may_connect_where_that_is_said(home):
    with home.serve(
        'certificate = "server.pem"\nprivate_key = "server.key"\nclient_authentication = "none"'
    ) as service:
        _, port = service.listening()
        assert home.connect(port, "--ca", "ca.pem")[:2] == (0, "hello\n")
        connected = service.fact("connected")
        assert (connected["identity"], connected["credential"]) == (None, "none")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            (),
            (
                "it is not said how the server proves who it is; remedy: add --identity and --psk-file, or --ca, or "
                "--raw-public-key"
            ),
        ),
        (("--identity", "x"), "--identity and --psk-file need each other"),
        (
            ("--ca", "ca.pem", "--cert", "meter-7.pem"),
            "--cert needs --key, the private key of the certificate",
        ),
        ((*PSK, "--key", "meter-7.key"), "--key is for a server with --ca or --raw-public-key"),
    ],
)
def test_what_connect_lacks_is_said_before_anything_is_sent(home, options, what):
    status, out, error = home.connect(9, *options)
    assert (status, out, error) == (2, "", f"dtls-endpoint connect: {what}\n")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--ca", "none.pem"), "none.pem: cannot be read: no such file or directory"),
        (
            ("--ca", "meter-7.pub"),
            "meter-7.pub: holds -----BEGIN PUBLIC KEY-----, not a certificate",
        ),
        (
            ("--ca", "ca.pem", "--cert", "meter-7.pem", "--key", "meter-9.key"),
            "meter-7.pem: this is not the key of the first certificate",
        ),
        (
            ("--raw-public-key", "own.key"),
            "own.key: holds a private key; remedy: take the public half of it: openssl pkey -in FILE -pubout",
        ),
    ],
)
def test_a_file_that_connect_cannot_use_is_named(home, options, problem):
    assert home.connect(9, *options) == (2, "", f"{problem}\n")


# --- reload -------------------------------------------------------------------------------------------


async def echo(channel, data=b"x"):
    await channel.send(data)
    with trio.fail_after(10):
        assert await channel.receive() == data


async def test_a_reload_takes_all_new_credentials_and_keeps_the_associations(home):
    with home.serve() as service:
        _, port = service.listening()
        async with await open_dtls(
            "127.0.0.1", port, config=home.client(home.meter), verify=home.servers
        ) as old:
            renewed = home.server()
            home.crl(home.meter)
            home.keys(f"dev1:{K2}\n")
            home.raw_names(b"meter-10", home.raw_key("meter-10"))
            service.signal("SIGHUP")
            reloaded = await fact(service, "reloaded")
            assert (reloaded["changed"], reloaded["own_credentials"], reloaded["crls"]) == (1, 2, 1)
            await echo(old)
            with pytest.raises(HandshakeFailed) as caught:
                await open_dtls("127.0.0.1", port, config=home.client(home.meter), verify=home.servers)
            assert isinstance(caught.value.cause, PeerAlert)
            assert caught.value.cause.description is AlertDescription.CERTIFICATE_REVOKED
            fresh = home.device("meter-8")
            async with await open_dtls(
                "127.0.0.1", port, config=home.client(fresh), verify=home.servers
            ) as new:
                assert new.peer.certificate_chain == renewed.chain
                await echo(new)
            psk = ClientConfig(psk_identity=b"dev1", psk_key=bytes.fromhex(K2))
            async with await open_dtls("127.0.0.1", port, config=psk) as channel:
                await echo(channel)
            status, _, _ = await trio.to_thread.run_sync(
                lambda: home.connect(port, "--raw-public-key", "own.pub", "--key", "meter-10.key")
            )
            assert status == 0
        assert service.end() == 0


async def test_a_revoked_device_cannot_resume(home):
    with home.serve() as service:
        _, port = service.listening()
        async with await open_dtls(
            "127.0.0.1", port, config=home.client(home.meter), verify=home.servers
        ) as channel:
            session = channel.session
        home.crl(home.meter)
        service.signal("SIGHUP")
        await fact(service, "reloaded")
        with pytest.raises(HandshakeFailed):
            await open_dtls(
                "127.0.0.1", port, config=home.client(home.meter, session=session), verify=home.servers
            )
        assert (await fact(service, "handshake_failed"))["problem"] == "revoked"


@pytest.mark.parametrize(
    "spoil", ["server.key", "ca.pem", "crl.pem", "raw.txt", "psk.txt", "own.key", "expired"]
)
async def test_a_reload_with_any_mistake_changes_nothing_at_all(home, spoil):
    with home.serve() as service:
        _, port = service.listening()
        home.keys(f"dev1:{K2}\n")  # right, but not alone
        if spoil == "expired":
            home.server(**EXPIRED)
        else:
            home.write(spoil, "not what it should be\n", 0o600)
        service.signal("SIGHUP")
        failed = await fact(service, "reload_failed")
        name = "server.pem" if spoil == "expired" else spoil
        assert [line.partition(":")[0] for line in failed["errors"]] == [name]
        async with await open_dtls(
            "127.0.0.1", port, config=home.client(home.meter), verify=home.servers
        ) as channel:
            assert channel.peer.certificate_chain == home.gateway.chain
            await echo(channel)
        psk = ClientConfig(psk_identity=b"dev1", psk_key=bytes.fromhex(K1))
        async with await open_dtls("127.0.0.1", port, config=psk) as channel:
            await echo(channel)
        assert service.end() == 0


def test_an_expired_certificate_is_a_warning_at_the_start_and_no_hindrance_to_a_reload(home):
    home.server(**EXPIRED)
    with home.serve() as service:
        _, port = service.listening()
        assert "server.pem: the certificate of " in service.fact("credential_lapsed")["reason"]
        assert home.connect(port, *PSK)[0] == 0
        home.keys(f"dev1:{K2}\n")
        service.signal("SIGHUP")
        assert service.fact("reloaded")["changed"] == 1
        assert service.fact("credential_lapsed")


# --- check --------------------------------------------------------------------------------------------


def test_check_says_what_would_be_served_and_to_whom(home):
    status, out, error = home.check()
    assert (status, error) == (0, "")
    assert 'shows the certificate of "O=Fleet", valid until ' in out
    assert "shows a raw public key, SHA-256 " in out
    assert "accepts certificates of 1 CA from ca.pem, with 1 revocation list (if_present)" in out
    assert "accepts the raw public keys of 1 device from raw.txt" in out
    assert "clients without a pre-shared key need a certificate or raw public key" in out


def test_check_names_everything_that_is_wrong_with_its_file_and_remedy(home):
    home.raw_key("server")  # another key and certificate ...
    home.server("other")
    home.write("server.pem", (home.path / "other.pem").read_bytes())  # ... that do not belong together
    (home.path / "own.key").chmod(0o604)
    home.write("crl.pem", "-----BEGIN PKCS7-----\nMIIB\n-----END PKCS7-----\n")
    (home.path / "raw.txt").unlink()
    status, out, error = home.check()
    assert (status, out) == (2, "")
    assert [line.partition(": ")[0] for line in error.splitlines()] == [
        "server.pem",
        "own.key",
        "crl.pem",
        "raw.txt",
    ]
    assert "is not the key of this certificate" in error
    assert "remedy: chmod 600 own.key" in error
    assert "openssl pkcs7 -print_certs" in error


def test_check_calls_what_has_expired_wrong(home):
    home.server(**EXPIRED)
    home.crl(start=EXPIRED["start"], end=EXPIRED["end"])
    status, out, error = home.check()
    assert (status, out) == (2, "")
    assert [line.partition(": ")[0] for line in error.splitlines()] == ["server.pem", "crl.pem"]
    assert error.count(" expired at ") == 2


# --- another program ----------------------------------------------------------------------------------


def test_openssl_s_client_connects_with_its_certificate(home):
    openssl = require_program("openssl")
    with home.serve() as service:
        _, port = service.listening()
        device = subprocess.Popen(
            [
                openssl, "s_client", "-dtls1_2", "-connect", f"127.0.0.1:{port}", "-quiet", "-CAfile", "ca.pem",
                "-verify_return_error", "-verify_ip", "127.0.0.1", "-cert", "meter-7.pem", "-key", "meter-7.key",
            ],
            cwd=home.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert service.fact("connected")["identity"] == "meter-7"
            assert device.stdin
            assert device.stdout
            device.stdin.write(b"from openssl\n")
            device.stdin.flush()
            assert device.stdout.readline() == b"from openssl\n"
        finally:
            device.kill()
            device.communicate()


def test_the_module_needs_no_openssl_to_be_imported_for_psk_alone():
    code = "import sansdtls, sys; assert 'OpenSSL' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
