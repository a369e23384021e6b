"""Status, doctor and metrics of the service as a process, and what none of them may show."""

import contextlib
import io
import json
import os
import pty
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families as parse

from endpoint import HandshakeFailed, check, cli, open_dtls
from endpoint.config import ConfigFileError, load_config
from endpoint.forward.router import Router
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.fingerprint import fingerprint
from endpoint.leaving import SAVE_GRACE
from endpoint.logs import make_log
from endpoint.operations import Operations
from endpoint.service import Service
from sansdtls import ClientConfig, RetransmitPolicy
from tests.endpoint.test_metrics_collector import forgotten
from tests.program.running import Running
from tests.program.test_service import K1, K2, K3, Home, finished, target
from tests.secrecy import assert_no_secret, pem_secrets

METRICS = "[metrics]\nport = 0\n"
QUICK = "[dtls]\nretransmit = { initial_timeout = 0.2 }\n"


class Operated(Home):
    """A service with an admin socket and metrics."""

    def write(self, more="", *, state="", kind="echo", credentials=""):
        """The configuration."""
        (self.path / "endpoint.toml").write_text(
            f'[credentials]\npsk_file = "psk.txt"\n{credentials}\n[listen]\nport = 0\n[forward]\nkind = "{kind}"\n'
            f'[state]\nadmin_socket = "admin"\n{state}\n{more}'
        )

    def serve(self, more="", **options):
        self.write(more, **options)
        return Running("serve", "--config", "endpoint.toml", cwd=self.path)

    def comes(self, service_target, key=K1, identity=b"dev1"):
        """A device that comes, says something, hears the echo and goes; False = it did not get in."""
        host, _, port = service_target.rpartition(":")
        config = ClientConfig(
            psk_identity=identity,
            psk_key=bytes.fromhex(key),
            retransmit=RetransmitPolicy(initial_timeout=0.1),
        )

        async def come():
            with trio.fail_after(30):
                async with await open_dtls(host, int(port), config=config) as channel:
                    await channel.send(b"21.4")
                    await channel.receive()

        try:
            trio.run(come)
        except HandshakeFailed:
            return False
        return True

    def asked(self, *arguments):
        """Exit status, standard output and standard error of a command that asks the service."""
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            config = str(self.path / "endpoint.toml")
            # In this process: starting another one takes a second.
            status = cli.main([arguments[0], "--config", config, *arguments[1:]])
        return status, out.getvalue(), error.getvalue()

    def answered(self, *arguments):
        status, out, error = self.asked(*arguments, "--json")
        assert out, error
        return status, json.loads(out)


@pytest.fixture
def home(tmp_path):
    return Operated(tmp_path)


def where(service):
    """The address of the metrics; the target of devices is ``service.reached``."""
    service.reached = target(service)
    fact = service.fact("metrics_listening")
    return f"http://127.0.0.1:{fact['port']}"


def fetched(url):
    """Status and text."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - a loopback address of our own
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(text)
        for sample in family.samples
    }


# --- the commands -----------------------------------------------------------------------------------


def test_status_says_how_the_service_is_and_who_may_connect(home):
    home.keys(f"dev1:{K1}\ndev2:{K2}\ndev2:{K3}\n")
    with home.serve() as service:
        assert home.comes(target(service))
        service.fact("disconnected")
        status, answer = home.answered("status")
        assert status == 0
        assert (answer["ok"], answer["state"], answer["ready"]) == (True, "serving", True)
        assert answer["handshakes_completed"] == answer["recent"]["completed"] == 1
        assert answer["credentials"]["identities"] == 2
        assert next(iter(answer["forward"]["sinks"].values()))["forwarded"] == 1
        status, out, error = home.asked("status")
        assert (status, error) == (0, "")
        assert "1 handshakes completed, 0 failed, 0 refused" in out
        status, out, _ = home.asked("status", "--identities", "--json")
        one, two = (json.loads(line) for line in out.splitlines())
        assert status == 0
        assert one["identity"] == "dev1"
        assert one["keys"] == [fingerprint(bytes.fromhex(K1))]
        assert one["used"]["fingerprint"] == one["keys"][0]
        assert one["used"]["which"] == "current"
        assert (one["live"], one["frozen"]) == (0, 0)
        assert two["keys"] == [fingerprint(bytes.fromhex(key)) for key in (K2, K3)]
        assert two["used"] is None
        lines = home.asked("status", "--identities")[1].splitlines()
        assert [line.partition(":")[0] for line in lines] == ["dev1", "dev2"]
        assert service.end() == 0


def test_a_long_list_comes_in_pages(home):
    names = [f"meter-{number:04d}" for number in range(1_203)]
    home.keys("".join(f"{name}:{K1[:-4]}{number:04x}\n" for number, name in enumerate(names)))
    with home.serve() as service:
        service.listening()
        out = home.asked("status", "--identities", "--json")[1]
        assert [json.loads(line)["identity"] for line in out.splitlines()] == names


def test_the_doctor_says_why_a_device_does_not_get_in(home):
    home.keys(f"Meter-17:{K1}\n")
    with home.serve(QUICK) as service:
        reached = target(service)
        for identity in (b"Meter-17", b"meter-17"):
            assert not home.comes(reached, K2, identity)
            service.fact("handshake_failed")
        status, answer = home.answered("doctor", "Meter-17")
        assert (status, answer["known"]) == (0, True)
        assert answer["last_failures"][0]["cause"] == "AuthenticationFailed.wrong_key"
        assert answer["tried_as"][0]["identity"] == "meter-17"
        status, out, _ = home.asked("doctor", "meter-17")
        assert status == 1
        assert "did you mean Meter-17? It is the same but for case" in out
        status, answer = home.answered("doctor", "--path", "127.0.0.1:1234")
        assert (status, answer["failed"]) == (0, 2)
        # What cannot be printed is named as in the log.
        assert home.answered("doctor", r"Meter-17\x00")[1]["similar"][0]["differs_in"] == "a NUL at the end"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("doctor",), "either an identity or --path ADDRESS is needed"),
        (("doctor", "x", "--path", "y"), "either an identity or --path ADDRESS is needed"),
        (("doctor", r"dev1\q"), r"the identity: a backslash is written \\"),
        (("status", "--identities", "--watch"), "do not go together"),
    ],
)
def test_wrong_use_is_told(home, arguments, what):
    home.write()
    status, out, error = home.asked(*arguments)
    assert (status, out) == (2, "")
    assert what in error


@pytest.mark.parametrize("command", [("status",), ("doctor", "dev1")])
def test_without_a_service_or_a_socket_it_is_told(home, command):
    home.write()
    status, out, error = home.asked(*command)
    assert (status, out) == (1, "")
    assert "no service answers there; is it running?" in error
    (home.path / "endpoint.toml").write_text('[credentials]\npsk_file = "psk.txt"\n')
    status, _, error = home.asked(*command)
    assert status == 2
    assert "state.admin_socket: missing; remedy: add" in error


def read_until(descriptor, wanted):
    """What a terminal shows until it shows ``wanted``."""
    seen = b""
    deadline = time.monotonic() + 120  # a busy machine
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(descriptor, 65_536)
    return seen


def test_a_terminal_sees_a_live_table_and_a_pipe_plain_lines(home):
    with home.serve() as service:
        service.listening()
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "endpoint", "status", "--config", "endpoint.toml", "--watch"],
            cwd=home.path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path.cwd()),
                "TERM": "xterm",
                "COLUMNS": "100",
                "LINES": "40",
            },
            stdin=theirs,
            stdout=theirs,
        ) as watching:
            os.close(theirs)
            try:
                read_until(ours, b"associations")
                read_until(ours, b"associations")  # and again, after a second
                watching.send_signal(2)
                assert b"\x1b[?1049l" in read_until(ours, b"\x1b[?1049l"), "the screen is given back"
                assert watching.wait() == 130
            finally:
                watching.kill()  # it may be waiting for somebody who reads what it writes
        os.close(ours)
        with Running("status", "--config", "endpoint.toml", "--watch", "--json", cwd=home.path) as watching:
            for _ in range(2):
                assert json.loads(watching.output())["state"] == "serving"


# --- metrics ----------------------------------------------------------------------------------------


def test_metrics_and_health_are_served_and_tell_of_a_stop(home):
    with home.serve(METRICS) as service:
        url = where(service)
        assert home.comes(service.reached)
        service.fact("disconnected")
        status, text = fetched(f"{url}/metrics")
        got = samples(text)
        assert status == 200
        assert got["dtls_handshakes_completed_total",] == 1
        assert got["dtls_associations_made_total", "psk"] == 1
        assert got["dtls_psk_keys_used_total", "current"] == 1
        assert got["dtls_credentials_identities",] == 1
        assert got["process_open_fds",] > 3
        assert "dev1" not in text
        assert fetched(f"{url}/healthz")[0] == 200
        assert fetched(f"{url}/readyz") == (200, '{"status": "ready", "reasons": {}}\n')
        assert service.end() == 0


def test_what_only_metrics_and_live_tables_need_is_not_loaded_without_them():
    loaded = "import sys, endpoint.cli; print(*sorted({'hypercorn', 'prometheus_client', 'rich.live'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


async def test_without_a_port_there_is_no_http(home):
    config, _ = configured(home, "")
    assert Operations(config, trouble=print, stopping=lambda: False).server is None


def test_a_port_that_is_taken_keeps_it_from_starting_and_is_named(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with home.serve(f"[metrics]\nport = {port}\n") as service:
            assert service.finished() == 1
            fact = json.loads(service.everything.splitlines()[-1])
    assert (fact["event"], fact["error"]) == (
        "metrics_failed",
        f"endpoint.toml: metrics.port: TCP 127.0.0.1:{port} is already in use; remedy: another port, or stop what uses it",
    )


async def test_the_metrics_address_is_used(home):
    config, _ = configured(home, '[metrics]\nport = 0\naddress = "::1"\n')
    operations = Operations(config, trouble=print, stopping=lambda: False)
    assert operations.server is not None
    assert operations.server.address == "::1"
    operations.close()


def test_check_says_what_is_served_and_warns_of_an_address_that_others_reach(home):
    home.write(METRICS.replace("0", "9100"))
    assert (
        "serves /metrics, /healthz and /readyz over HTTP at 127.0.0.1:9100 (reachable from this host only)"
        in described(home)
    )
    home.write('[metrics]\nport = 9100\naddress = "0.0.0.0"\n')
    assert "note: metrics.address: whoever reaches it can read the metrics without a password" in described(
        home
    )
    home.write()
    text = described(home)
    assert "serves no metrics over HTTP" in text
    assert "note: metrics" not in text


def described(home):
    path = home.path / "endpoint.toml"
    config, loaded = check.load_all(path)
    return "\n".join(check.describe(path, config, loaded, check_time()))


def check_time():
    from endpoint.verification import wall_clock

    return wall_clock()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("port = 70000", "metrics.port: 70000 is not within 0 to 65535"),
        ('port = "on"', 'metrics.port: "on" is neither a whole number nor "off"'),
        ("port = true", "metrics.port: a whole number is needed, not true or false (true)"),
        (
            'address = "localhost"',
            'metrics.address: "localhost" is no IP address; remedy: "127.0.0.1" or "::1"',
        ),
        (
            "remembered_identities = 0",
            "metrics.remembered_identities: 0 is not within 1 to 10000000 identities",
        ),
        ("remembered_strangers = 0", "metrics.remembered_strangers: 0 is not within 1 to 1000000 names"),
        ("remembered_addresses = 0", "metrics.remembered_addresses: 0 is not within 1 to 10000000 addresses"),
        ("ports = 1", 'metrics.ports: unknown key (did you mean "port"?)'),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path, line, message):
    (tmp_path / "e.toml").write_text(f'[credentials]\npsk_file = "psk.txt"\n[metrics]\n{line}\n')
    with pytest.raises(ConfigFileError) as caught:
        load_config(tmp_path / "e.toml")
    assert message in str(caught.value)


# --- the parts, in this process ---------------------------------------------------------------------


def configured(home, more, **options):
    home.write(more, **options)
    return check.load_all(home.path / "endpoint.toml")


async def test_how_much_is_remembered_is_configured(home):
    sizes = "[metrics]\nremembered_identities = 1\nremembered_strangers = 2\nremembered_addresses = 3\n"
    config, _ = configured(home, sizes)
    operations = Operations(config, trouble=print, stopping=lambda: False)
    history = operations.history
    assert (history._names.proved._size, history._names.others._size) == (1, 2)
    assert history._places.proved._size == 3


DATABASES = 'store = "sqlite"\nfile = "state/a.db"\nkey_file = "state.key"\nusage_file = "state/usage.db"\n'
SINKS = '[[forward.sinks]]\nkind = "udp"\nupstream = "127.0.0.1:9"\nalso = true\n[[forward.sinks]]\nkind = "echo"\n'
AWAY = (
    '[[forward.sinks]]\nkind = "unix"\npath = "readings"\nlisten = "answers"\nalso = true\n'
    '[[forward.sinks]]\nkind = "valkey"\nserver = "unix:/nowhere/valkey.sock"\ndownlink_prefix = "to:"\n'
)
VARIANTS = {
    "files": ('psk_file = "psk.txt"', DATABASES + '[forward]\nkind = "jsonl"\n'),
    "database": ('psk_database = "state/keys.db"', SINKS),
    "valkey": ('psk_valkey = "unix:/nowhere/valkey.sock"', AWAY),
}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_every_figure_of_a_running_service_is_exported_or_an_exception(home, variant):
    (home.path / "state").mkdir(mode=0o700)
    home.keys("ab" * 32 + "\n", "state.key")
    with KeyDatabase(home.path / "state/keys.db", create=True) as database, database.change() as changes:
        for name in (b"dev1", b"dev2"):
            changes.set(name, [bytes.fromhex(K1)])
    credentials, more = VARIANTS[variant]
    (home.path / "endpoint.toml").write_text(
        f'[credentials]\n{credentials}\n[listen]\nport = 0\n{METRICS}[state]\nadmin_socket = "admin"\n{more}'
    )
    config, loaded = check.load_all(home.path / "endpoint.toml")
    service = Service(config, credentials=loaded, log=make_log(io.BytesIO(), level="debug"))
    async with trio.open_nursery() as nursery:
        ((address, port),) = await nursery.start(service.run)
        if variant != "valkey":
            key = ClientConfig(psk_identity=b"dev1", psk_key=bytes.fromhex(K1))
            with trio.fail_after(30):
                async with await open_dtls(address, port, config=key) as channel:
                    await channel.send(b"21.4")
        status, out, _ = await trio.to_thread.run_sync(home.asked, "status", "--identities")
        assert status == 0
        assert [line.partition(":")[0] for line in out.splitlines()] == (
            {"files": ["dev1"], "database": ["dev1", "dev2"], "valkey": []}[variant]
        )
        assert (await trio.to_thread.run_sync(home.asked, "status"))[0] == (variant == "valkey")
        assert service._companions is not None
        statistics = service._companions.operations.statistics()
        nursery.cancel_scope.cancel()
    assert statistics["sockets"]
    assert ("key_store" in statistics and bool(statistics["key_store"])) is (variant != "files")
    assert not forgotten(statistics), "\n".join(forgotten(statistics))


async def test_an_unready_part_is_named(home, monkeypatch):
    config, credentials = configured(home, METRICS)
    service = Service(config, credentials=credentials, log=make_log(io.BytesIO()))
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        assert service._companions is not None
        operations = service._companions.operations
        assert await operations._not_ready() == {}

        async def down():
            return "no route to host"

        monkeypatch.setattr(service._credentials.keystore, "check", down, raising=False)
        assert await operations._not_ready() == {"key_store": "no route to host"}
        service._stop.set()
        assert await operations._not_ready() == {"service": "it is stopping"}
        nursery.cancel_scope.cancel()


async def test_what_came_last_is_handed_on_even_where_nothing_of_the_time_to_drain_is_left(
    home, monkeypatch, autojump_clock
):
    config, credentials = configured(home, "")
    assert config.listen.drain > 0
    config = attrs.evolve(config, listen=attrs.evolve(config.listen, drain=0.0))
    handed_on = []

    async def flush(_router):
        await trio.sleep(SAVE_GRACE / 2)
        handed_on.append("all")

    monkeypatch.setattr(Router, "flush", flush)
    service = Service(config, credentials=credentials, log=make_log(io.BytesIO()))
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        service._stop.set()
    assert handed_on == ["all"]


async def test_before_there_is_an_engine_it_is_starting(home):
    config, _ = configured(home, "")
    operations = Operations(config, trouble=print, stopping=lambda: False)
    assert await operations._not_ready() == {"service": "it is starting"}


# --- secrets ----------------------------------------------------------------------------------------


def certificate_files(path):
    """A CA, a certificate for the endpoint, and one for a device that the endpoint's CA has not issued."""
    import trustme

    ours, theirs = trustme.CA(), trustme.CA()
    endpoint, device = ours.issue_cert("localhost"), theirs.issue_cert("device-1")
    ours.cert_pem.write_to_path(path / "ca.pem")
    for name, one in (("endpoint", endpoint), ("device", device)):
        (path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in one.cert_chain_pems))
        (path / f"{name}.key").touch(mode=0o600)
        (path / f"{name}.key").write_bytes(one.private_key_pem.bytes())
    return endpoint.private_key_pem.bytes().decode()


@pytest.mark.slow
def test_no_key_password_or_private_key_is_shown_anywhere(home):
    """A debug run with right and wrong keys, certificates, a failing reload, and all questions that there are."""
    private = certificate_files(home.path)
    sealing = os.urandom(32)
    home.keys(f"dev1:{K1}\ndev2:{K2}\ndev2:{K3}\n")
    home.keys(f"dev1:{K2}\ndev9:{K1}\n{K1}:{K2}\n", "device.txt")
    home.keys(f"{sealing.hex()}\n", "state.key")
    credentials = 'certificate = "endpoint.pem"\nprivate_key = "endpoint.key"\nclient_ca = "ca.pem"\n'
    text = []
    with home.serve(
        f'[log]\nlevel = "debug"\n{METRICS}{QUICK}',
        state='handoff_file = "handoff"\nkey_file = "state.key"\nusage_file = "usage.db"',
        kind="jsonl",
        credentials=credentials,
    ) as service:
        url = where(service)
        for more in (
            {"identity": "dev1"},
            {"identity": "dev1", "psk_file": "device.txt"},
            {"identity": "dev9", "psk_file": "device.txt"},
            {"identity": K1, "psk_file": "device.txt"},
        ):
            text += finished(home.connect(service.reached, "--message", "hello", "--wait", "0.01", **more))[
                1:
            ]
        device = (
            "--cert",
            "device.pem",
            "--key",
            "device.key",
            "--ca",
            "ca.pem",
            "--server-name",
            "localhost",
        )
        text += finished(Running("connect", service.reached, *device, "--message", "x", cwd=home.path))[1:]
        home.keys(f"dev1:{K1}\ndev1 {K2}\ndev3:{K3}zz\n")
        service.signal("SIGHUP")
        service.fact("reload_failed")
        for question in (
            ("status",),
            ("status", "--json"),
            ("status", "--identities"),
            ("doctor", "dev1", "--json"),
            ("doctor", "dev9"),
            ("doctor", "--path", "127.0.0.1"),
            ("check",),
        ):
            text += home.asked(*question)[1:]
        text += [fetched(f"{url}{path}")[1] for path in ("/metrics", "/readyz", "/healthz", "/x")]
        assert service.end() == 0
        log = service.everything
    shown = "\n".join(text)
    for expected in ("wrong_key", "unknown_identity", "peer_rejected", "handed_over"):
        assert expected in log
    keys = [bytes.fromhex(key) for key in (K1, K2, K3)]
    # K1 was used as a name: who swaps the two has shown it to everybody on the way. Not so its bytes.
    assert_no_secret(log.replace(K1, ""), [*keys, sealing, *pem_secrets(private)])
    assert_no_secret(shown.replace(K1, ""), [*keys, sealing, *pem_secrets(private)])
    assert (home.path / "endpoint.key").read_text() == private


async def test_a_failure_of_http_after_the_start_is_told_and_ends_nothing(home, monkeypatch):
    told = []
    config, _ = configured(home, METRICS)
    operations = Operations(
        config, trouble=lambda what, **facts: told.append((what, facts)), stopping=lambda: False
    )

    async def broken(**_):
        raise OSError("the kernel is out of everything")

    monkeypatch.setattr(operations.server, "run", broken)
    await operations.run()
    operations.close()
    assert told == [("metrics failed", {"reason": "OSError('the kernel is out of everything')"})]


@pytest.mark.slow
def test_a_store_that_fails_betrays_no_password(home):
    """Valkey that is not there, asked for keys with a password, at level debug."""
    password = "correct horse battery"
    home.keys(f"{password}\n", "password.txt")
    (home.path / "endpoint.toml").write_text(
        '[credentials]\npsk_valkey = "valkey://127.0.0.1:1"\n'
        '[credentials.valkey]\nusername = "endpoint"\npassword_file = "password.txt"\n'
        "[credentials.lookup]\ntimeout = 0.5\n[listen]\nport = 0\n"
        f'[state]\nadmin_socket = "admin"\n[log]\nlevel = "debug"\n{METRICS}{QUICK}'
    )
    with Running("serve", "--config", "endpoint.toml", cwd=home.path) as service:
        url = where(service)
        text = []
        assert not home.comes(service.reached)
        service.fact("handshake_failed")
        status, answer = home.answered("doctor", "dev1")
        assert (status, answer["known"]) == (0, None)
        assert answer["findings"][0].startswith("the key store cannot answer, so no new device gets in:")
        assert answer["last_failures"][0]["cause"] == "AuthenticationFailed.keys_unavailable"
        status, ready = fetched(f"{url}/readyz")
        assert (status, list(json.loads(ready)["reasons"])) == (503, ["key_store"])
        status, out, _ = home.asked("status")
        assert status == 1
        assert "not ready: key_store" in out
        got = samples(fetched(f"{url}/metrics")[1])
        assert got["dtls_lookups_unavailable_total",] >= 1
        text += [json.dumps(answer), ready, out, fetched(f"{url}/metrics")[1], home.asked("check")[1]]
        assert service.end() == 0
        text.append(service.everything)
    assert_no_secret("\n".join(text), [password, bytes.fromhex(K1)])
