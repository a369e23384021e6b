"""``dtls-endpoint capture`` as an operator uses it: the real service, its admin socket, and tshark on what comes out."""

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from endpoint.cli import main
from sansdtls import (
    DEFAULT_CIPHER_SUITES,
    CertificateCredential,
    CertificateType,
    CipherSuite,
    ClientConfig,
    ConnectionIdPolicy,
    RetransmitPolicy,
    SigningKey,
)
from tests.conftest import require_program
from tests.core.certificates import Authority
from tests.endpoint.devices import Device
from tests.program.running import Running
from tests.recordings import RECORDINGS

K1 = "00112233445566778899aabbccddeeff"
K2 = "ffeeddccbbaa99887766554433221100"
CCM_8 = "TLS_PSK_WITH_AES_128_CCM_8"
ROOT = Path(__file__).parent.parent.parent
PATIENT = RetransmitPolicy(initial_timeout=30.0)
"""Neither side repeats a flight, so that what was captured can be counted."""
CONFIGURATION = """
[credentials]
psk_file = "psk.txt"
{credentials}
[listen]
port = 0
[dtls.retransmit]
initial_timeout = 30
[forward]
kind = "echo"
[state]
admin_socket = "admin.sock"
{captures}
"""


class Done(NamedTuple):
    """What a command has come to. It runs in this process: a new one for each takes a second."""

    returncode: int
    stdout: str
    stderr: str


class Home:
    """A directory with a configuration, keys and a place for captures."""

    def __init__(self, path, capsys):
        self.path = path
        self._capsys = capsys
        self.captures = path / "captures"
        self.captures.mkdir(mode=0o700)
        self.private("psk.txt", f"dev1:{K1}\ndev2:{K2}\n")
        self.configure()

    def private(self, name, text):
        (self.path / name).touch(mode=0o600)
        (self.path / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    def configure(self, *, captures='capture_directory = "captures"', credentials=""):
        text = CONFIGURATION.format(captures=captures, credentials=credentials)
        (self.path / "endpoint.toml").write_text(text)

    def serve(self):
        return Running("serve", "--config", "endpoint.toml", cwd=self.path)

    def run(self, *arguments):
        self._capsys.readouterr()
        status: Any
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return Done(status, *self._capsys.readouterr())

    def capture(self, what, *arguments, config=True):
        return self.run("capture", what, *(["--config", "endpoint.toml"] if config else []), *arguments)

    @property
    def file(self):
        (file,) = self.captures.glob("*.pcapng")
        return file


@pytest.fixture
def home(tmp_path, capsys, monkeypatch):
    # The service starts here, and gets the package from where the tests are.
    monkeypatch.setattr("tests.program.running.Path.cwd", lambda: ROOT)
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path, capsys)


def device(
    port, message="21.5", *, identity=b"dev1", key=K1, suite=None, session=None, policy=None, config=None
):
    """A device connects, says something, is answered and leaves; its connection."""
    config = config or ClientConfig(
        psk_identity=identity,
        psk_key=bytes.fromhex(key),
        session=session,
        connection_id=policy,
        cipher_suites=DEFAULT_CIPHER_SUITES if suite is None else (CipherSuite[suite],),
        retransmit=PATIENT,
    )

    async def talk():
        with Device(port, config=config) as made:
            await made.connect()
            await made.send(message.encode())
            assert await made.receive() == message.encode()
            session = made.connection.session
            negotiated = made.connection.negotiated
            await made.close()
            return session, negotiated

    return trio.run(talk)


def tshark(file, port, *fields):
    """What tshark sees, without being given any key: rows of these fields."""
    command = [require_program("tshark"), "-r", file, "-d", f"udp.port=={port},dtls", "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    command += ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


# --- Wireshark opens it ---


@pytest.mark.interop
@pytest.mark.slow
def test_tshark_opens_what_was_captured_with_nothing_but_the_file(home):
    with home.serve() as service:
        _, port = service.listening()
        started = home.capture("start", "--identity", "dev1", "--seconds", "5m")
        assert (started.returncode, started.stdout) == (
            0,
            f"capture 1: pcapng in captures/{home.file.name}\n",
        )
        session, _ = device(port, "ccm-8", suite=CCM_8)
        device(port, "gcm", suite="TLS_PSK_WITH_AES_128_GCM_SHA256")
        _, negotiated = device(port, "resumed", suite=CCM_8, session=session)
        assert negotiated.resumed
        device(port, "with an ID", suite=CCM_8, policy=ConnectionIdPolicy(length=3))
        device(port, "other", identity=b"dev2", key=K2, suite=CCM_8)
        stopped = home.capture("stop")
        assert stopped.returncode == 0
        assert "capture 1 of dev1: ended, " in stopped.stdout
        assert ", 4 readable handshakes" in stopped.stdout
        service.end()
    # From here on tshark has the file alone.
    rows = tshark(home.file, port, "_ws.col.Info", "data.data", "ip.checksum.status", "udp.checksum.status")
    said = ["ccm-8", "gcm", "resumed", "with an ID"]
    assert [bytes.fromhex(row[1]).decode() for row in rows if row[1]] == [
        text for text in said for _ in range(2)
    ]
    assert rows[0][0] == "Client Hello"
    assert sum(row[0].endswith("Finished") for row in rows) == 8  # encrypted, and read
    assert {tuple(row[2:]) for row in rows} == {("1", "1")}
    assert "other" not in home.capture("decode", home.file, config=False).stdout
    assert K1 not in service.everything
    for line in home.file.read_bytes().split(b"CLIENT_RANDOM ")[1:]:
        assert line.split()[1].decode() not in service.everything


@pytest.mark.interop
@pytest.mark.slow
def test_tshark_opens_a_handshake_with_ephemeral_keys_and_certificates(home):
    authority = Authority.root("Fleet root")
    server, meter = authority.server("gw.example"), authority.device("meter-7")
    home.private("server.pem", server.chain_pem)
    home.private("server.key", server.key_pem)
    home.private("ca.pem", authority.chain_pem)
    home.configure(credentials='certificate = "server.pem"\nprivate_key = "server.key"\nclient_ca = "ca.pem"')
    config = ClientConfig(
        server_certificate_types=(CertificateType.X509,),
        credentials=(CertificateCredential(meter.chain, SigningKey.wrap(meter.key)),),
        cipher_suites=(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,),
    )
    with home.serve() as service:
        _, port = service.listening()
        home.capture("start", "--identity", "meter-7")
        device(port, "certified", config=config)
        home.capture("stop")
    assert [bytes.fromhex(row[0]) for row in tshark(home.file, port, "data.data") if row[0]] == [
        b"certified"
    ] * 2


# --- at run time ---


def test_what_is_being_captured_is_listed_and_every_suite_can_be_decoded(home):
    with home.serve() as service:
        _, port = service.listening()
        assert home.capture("list").stdout == "nothing is being captured\n"
        assert home.capture("stop").stdout == "nothing was being captured\n"
        home.capture("start", "--identity-hex", b"dev1".hex(), "--keylog", "--size", "1M", "--seconds", "2h")
        device(port)
        listed = json.loads(home.capture("list", "--json").stdout)
        (capture,) = listed["captures"]
        assert (capture["identities"], capture["readable_handshakes"], capture["datagrams"]) == (
            ["dev1"],
            1,
            8,
        )
        assert (capture["size_limit"], capture["lost"]) == (1_048_576, 0)
        assert 7_000 < capture["seconds_left"] <= 7_200
        told = home.capture("list").stdout.splitlines()
        assert told[0].startswith("capture 1 of dev1: 7")
        assert len(told) == 3
        started = service.fact("capture_started")
        assert (started["identities"], started["level"]) == (["dev1"], "warning")
        assert isinstance(started["asked_by"], int)
        assert service.end() == 0
        assert '"reason": "the service ends"' in service.everything
    decoded = home.capture("decode", home.file, config=False)
    assert decoded.returncode == 0
    assert decoded.stdout.count("authentic; 4 bytes: 21.5") == 2
    assert (
        "association 1: identity dev1; TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256; opened with the key log; the "
        in (decoded.stdout)
    )
    (log,) = home.captures.glob("*.keylog")
    assert len(log.read_text().splitlines()) == 1


def test_a_reload_during_a_capture_changes_nothing_of_it(home):
    with home.serve() as service:
        _, port = service.listening()
        home.capture("start", "--identity", "dev1")
        service.signal("SIGHUP")
        service.fact("reloaded")
        device(port)
        assert ", 1 readable handshakes" in home.capture("stop").stdout


@pytest.mark.parametrize(
    ("captures", "status", "what"),
    [
        ("", 1, "captures are switched off; remedy: state.capture_directory"),
        ('capture_directory = "none"', 1, "none: no such file or directory; remedy: mkdir -m 700"),
    ],
)
def test_a_capture_that_cannot_be_is_refused_with_the_remedy(home, captures, status, what):
    home.configure(captures=captures)
    with home.serve() as service:
        service.listening()
        done = home.capture("start", "--identity", "dev1")
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("dtls-endpoint capture start: ")
        assert what in done.stderr
        assert "Traceback" not in done.stderr + service.everything


def test_the_directory_is_looked_at_by_check(home):
    done = home.run("check", "--config", "endpoint.toml")
    assert "captures for whoever may use admin.sock, with secrets, into captures" in done.stdout
    home.captures.chmod(0o777)
    done = home.run("check", "--config", "endpoint.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "endpoint.toml: state.capture_directory: captures: mode 0777 lets others put files there; "
        "remedy: chmod go-w captures\n"
    )
    home.configure(captures="")
    done = home.run("check", "--config", "endpoint.toml")
    assert "captures nothing for anybody (state.capture_directory)" in done.stdout


def test_a_directory_without_an_admin_socket_is_a_contradiction(home):
    text = (home.path / "endpoint.toml").read_text().replace('admin_socket = "admin.sock"', "")
    (home.path / "endpoint.toml").write_text(text)
    done = home.run("check", "--config", "endpoint.toml")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "endpoint.toml: state.capture_directory: is of no use without admin_socket; remedy: "
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "--identity", "dev1", "--seconds", "soon"],
        ["start", "--identity", "dev1", "--size", "-1"],
        ["start", "--identity", "dev1", "--size", "16X"],
        ["start", "--identity", "dev1", "--keylog", "--keylog-only"],
        ["stop", "x"],
        ["dance"],
        [],
    ],
)
def test_wrong_usage_is_told(home, arguments):
    done = home.run("capture", *arguments, *(["--config", "endpoint.toml"] if arguments else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: dtls-endpoint capture" in done.stderr


# --- recordings of anybody ---


def test_a_recording_of_others_is_decoded_with_a_key_log_or_with_the_key(home):
    recording = RECORDINGS / "openssl-psk-ccm8.pcap"
    for how in (["--keylog", RECORDINGS / "openssl-psk-ccm8.keylog"], ["--psk-file", "psk.txt"]):
        done = home.capture("decode", recording, *how, config=False)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[1].endswith("association 1, flight 1")
        assert "       0/2 handshake: ClientKeyExchange 2: identity b'dev1'" in lines
        assert "       1/1 application_data: authentic; 11 bytes: hello-peer\\x0a" in lines
        assert (
            "the client's Finished proves the handshake; the server's Finished proves the handshake"
            in lines[-1]
        )
        assert K1 not in done.stdout


def test_a_wrong_key_is_told_as_such(home):
    home.private("wrong.txt", f"dev1:{K2}\n")
    recording = RECORDINGS / "openssl-psk-ccm8.pcap"
    done = home.capture("decode", recording, "--psk-file", "wrong.txt", config=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("the device has another key")
    assert K2 not in done.stdout + done.stderr


def test_a_captured_device_is_replayed_as_it_was_recorded(home):
    with home.serve() as service:
        _, port = service.listening()
        home.capture("start", "--identity", "dev1")
        device(port, suite=CCM_8)
        home.capture("stop")
    done = home.capture("replay", home.file, "--psk-file", "psk.txt", config=False)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[1].endswith("the hello: no event; answered with server_hello server_hello_done")
    assert "key of dev1 asked for, completed with the current key; answered with " in lines[2]
    assert lines[3].endswith("4 bytes of data: 21.5")
    assert lines[4].endswith("alert close_notify, ended: closed by the peer; answered with alert (protected)")
    assert lines[5] == "association 1: the handshake completes; all is answered as it was recorded"
    home.private("wrong.txt", f"dev1:{K2}\n")
    done = home.capture("replay", home.file, "--psk-file", "wrong.txt", config=False)
    assert done.returncode == 1
    assert "the handshake does not complete" in done.stdout


def test_what_cannot_be_replayed_is_told_with_the_reason(home):
    for name, reason in (
        (
            "gnutls-rpk",
            "cannot be replayed: it has an ephemeral key, which is in no recording; remedy: capture decode",
        ),
        ("openssl-psk-ccm8", "with another ServerHello the recorded client's Finished cannot be verified"),
    ):
        done = home.capture("replay", RECORDINGS / f"{name}.pcap", "--psk-file", "psk.txt", config=False)
        assert done.returncode == 1
        assert reason in done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["decode", "replay"])
def test_a_file_that_is_no_recording_is_wrong_usage(home, what):
    for arguments, message in (
        (["psk.txt"], "psk.txt: neither pcap nor pcapng"),
        (["none"], "none: cannot be read: no such file or directory"),
        (
            [RECORDINGS / "gnutls-rpk.pcap", "--keylog", "none"],
            "none: cannot be read: no such file or directory",
        ),
        (
            [RECORDINGS / "gnutls-rpk.pcap", "--psk-file", "none"],
            "none: cannot be read: no such file or directory",
        ),
    ):
        done = home.capture(what, *arguments, config=False)
        assert done.returncode == 2
        assert done.stderr == message + "\n"
