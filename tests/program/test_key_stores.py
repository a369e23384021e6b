"""Key stores in the configuration: what may stand there, what ``check`` says, and services with each of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from endpoint import HandshakeFailed, open_dtls
from endpoint.cli import main
from endpoint.config import ConfigFileError, parse_config
from endpoint.keystore import StoreStartError
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.module import find_object, make_store
from sansdtls import AlertDescription, ClientConfig, PeerAlert
from tests.program.running import Running
from tests.valkey_server import ValkeyServer

K1 = "00112233445566778899aabbccddeeff"
K2 = "ffeeddccbbaa99887766554433221100"
VALKEY = 'psk_valkey = "valkeys://h"\n'


def parsed(text):
    config = parse_config(f"[credentials]\n{text}".encode(), name="e.toml", directory=Path("/etc/e"))
    return config.credentials


# --- the table ------------------------------------------------------------------------------------------


def test_every_key_has_its_place():
    told = parsed(
        VALKEY
        + """
        [credentials.lookup]
        timeout = 2
        concurrency = 4
        negative_seconds = 0
        negative_size = 5
        longest_identity = 64
        failures = 1
        retry = 0.5
        [credentials.valkey]
        prefix = "p/"
        username = "u"
        password_file = "pw"
        database = 2
        ca_file = "ca.pem"
        certificate = "c.pem"
        private_key = "/run/c.key"
        """
    )
    assert (told.lookup.timeout, told.lookup.concurrency, told.lookup.longest_identity) == (2, 4, 64)
    assert (told.lookup.negative_seconds, told.lookup.negative_size) == (0, 5)
    assert (told.lookup.failures, told.lookup.retry) == (1, 0.5)
    assert (told.valkey.prefix, told.valkey.username, told.valkey.database) == ("p/", "u", 2)
    assert told.valkey.password_file == Path("/etc/e/pw")
    assert (told.valkey.ca_file, told.valkey.certificate) == (Path("/etc/e/ca.pem"), Path("/etc/e/c.pem"))
    assert told.valkey.private_key == Path("/run/c.key")
    assert parsed('psk_database = "keys.db"').psk_database == Path("/etc/e/keys.db")
    assert parsed('psk_module = "a.b:c.d"').psk_sources == ["psk_module"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            'psk_file = "p"\npsk_module = "a:b"\npsk_database = "d"',
            [
                "psk_database: pre-shared keys come from one place, and psk_file is there too; remedy: remove one",
                "psk_module: pre-shared keys come from one place, and psk_file is there too; remedy: remove one",
            ],
        ),
        (
            'psk_file = "p"\nlookup.timeout = 1',
            ["lookup: is of no use without psk_database, psk_valkey or psk_module; remedy: remove it"],
        ),
        (
            'psk_file = "p"\nvalkey.prefix = "x"',
            ['valkey: is of no use without psk_valkey; remedy: psk_valkey = "unix:/run/valkey/valkey.sock"'],
        ),
        (
            'psk_valkey = "valkey://u:hunter2@h"',
            [
                (
                    "psk_valkey: holds a user or password, which everybody who reads this file would know;"
                    " remedy: put them under username and password_file"
                )
            ],
        ),
        (
            'psk_valkey = "h:6379"',
            [
                (
                    'psk_valkey: is no address; remedy: "unix:/run/valkey/valkey.sock", "valkey://host:6379", or'
                    ' "valkeys://host:6379" for TLS'
                )
            ],
        ),
        (
            'psk_valkey = "valkey://h/2"',
            [
                "psk_valkey: only host and port are possible; remedy: the number of the database goes under database"
            ],
        ),
        (
            'psk_valkey = "unix:v.sock"',
            ['psk_valkey: the socket needs its whole path, such as "unix:/run/valkey/valkey.sock"'],
        ),
        (VALKEY + 'valkey.username = "u"', ["valkey.password_file: missing; a username needs it"]),
        (
            VALKEY + 'valkey.username = "a b"',
            ["valkey.username: 1 to 128 printable characters without blanks are needed"],
        ),
        (VALKEY + 'valkey.prefix = ""', ["valkey.prefix: has 0 bytes, not 1 to 128"]),
        (VALKEY + "valkey.database = -1", ["valkey.database: -1 is not within 0 to 65535"]),
        (
            VALKEY + 'valkey.password_file = "a\\u0000"',
            ["valkey.password_file: a file name cannot hold a NUL character"],
        ),
        (
            VALKEY + 'valkey.certificate = "c"',
            ["valkey.private_key: missing; certificate and private_key belong together"],
        ),
        (
            'psk_valkey = "/v.sock"\nvalkey.ca_file = "c"',
            ["valkey.ca_file: is of no use without TLS; remedy: an address that begins with valkeys://"],
        ),
        ('psk_module = "a.b"', ['psk_module: is not of the form "package.module:object"']),
        ('psk_module = "a b:c"', ['psk_module: is not of the form "package.module:object"']),
        (
            f'psk_database = "m:{K1}"',
            ["psk_database: the name of a file is needed, not a key; remedy: put the key in the file"],
        ),
        (VALKEY + "lookup.timeout = 0", ["lookup.timeout: 0 is not within 0.01 to 60 seconds"]),
        (VALKEY + "lookup.concurrency = 0", ["lookup.concurrency: 0 is not within 1 to 4096 lookups"]),
        (
            VALKEY + "lookup.negative_seconds = -1",
            ["lookup.negative_seconds: -1 is not within 0 to 3600 seconds"],
        ),
        (
            VALKEY + "lookup.negative_size = 0",
            ["lookup.negative_size: 0 is not within 1 to 10000000 identities"],
        ),
        (
            VALKEY + "lookup.longest_identity = 0",
            ["lookup.longest_identity: 0 is not within 1 to 65535 bytes"],
        ),
        (VALKEY + "lookup.failures = 0", ["lookup.failures: 0 is not within 1 to 1000 lookups"]),
        (VALKEY + "lookup.retry = 0", ["lookup.retry: 0 is not within 0.1 to 600 seconds"]),
    ],
)
def test_a_mistake_is_one_line_with_key_and_remedy(text, found):
    with pytest.raises(ConfigFileError) as caught:
        parsed(text)
    lines = [line.removeprefix("e.toml: credentials.") for line in caught.value.problems]
    assert lines == found
    assert "hunter2" not in str(caught.value)


# --- check ----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def check(home, capsys, monkeypatch):
    """What ``check`` says of these credentials: exit status, and the lines of both outputs."""
    monkeypatch.chdir(home)

    def checked(text, more=""):
        (home / "e.toml").write_text(f"[credentials]\n{text}\n{more}")
        status = main(["check", "--config", "e.toml"])
        output, errors = capsys.readouterr()
        return status, output.splitlines(), errors.splitlines()

    return checked


def put(path, **identities):
    with KeyDatabase(path, create=True) as database, database.change() as changes:
        for identity, keys in identities.items():
            changes.set(identity.encode(), [bytes.fromhex(key) for key in keys])


ASKS = (
    "asks for keys at each handshake, 32 at once, for 5 s; remembers for 10 s that one is unknown (at most 10000); while "
    "there is no answer new handshakes are refused, and associations live on"
)


def test_check_reads_a_database(home, check):
    put(home / "keys.db", one=[K1], two=[K1, K2])
    status, lines, _ = check('psk_database = "keys.db"')
    assert status == 0
    assert "accepts 2 identities from keys.db, 1 of them with a next key" in lines
    assert ASKS in lines
    put(home / "none.db")
    _, lines, _ = check('psk_database = "none.db"')
    assert "note: none.db: no identity, so nobody can connect" in lines
    (home / "keys.db").chmod(0o640)
    status, _, errors = check('psk_database = "keys.db"')
    assert status == 2
    assert errors[0].startswith("keys.db: mode 0640 ")
    status, _, errors = check('psk_database = "away.db"')
    assert (status, errors[0].startswith("away.db: is not there; remedy: ")) == (2, True)


def test_check_reads_what_a_server_needs_and_does_not_ask_it(home, check):
    (home / "pw").touch(mode=0o600)
    (home / "pw").write_text("hunter2")
    status, lines, _ = check(
        'psk_valkey = "valkey://keys.example"\n[credentials.valkey]\nprefix = "d/"\nusername = "e"\npassword_file = "pw"\n'
        "[credentials.lookup]\nnegative_seconds = 0\ntimeout = 1.5\nconcurrency = 7"
    )
    assert status == 0
    assert (
        'accepts the identities of valkey://keys.example:6379, names that begin with "d/"; not asked now, as check touches no network'
        in lines
    )
    assert any(
        line.startswith("asks for keys at each handshake, 7 at once, for 1.5 s; does not remember")
        for line in lines
    )
    note = "note: valkey://keys.example:6379: keys cross the network in clear; remedy: valkeys:// for TLS"
    assert note in lines
    assert "hunter2" not in "".join(lines)
    (home / "pw").chmod(0o644)
    status, _, errors = check('psk_valkey = "/v.sock"\nvalkey.password_file = "pw"')
    assert (status, errors) == (
        2,
        ["pw: mode 0644 gives group or others access to the password; remedy: chmod 600 pw"],
    )


MODULE = f"""
from endpoint import DictKeyStore
keys = {{b"dev1": bytes.fromhex("{K1}")}}
store = DictKeyStore(keys)
called = []
def make(): called.append(1); return store
async def make_async(): return DictKeyStore(keys)
class Store:
    def lookup(self, identity): return [keys[identity]] if identity in keys else []
def broken(): raise RuntimeError("no HSM")
def wrong(): return {{"a": "{K2}"}}
number = 7
class inner: deep = store
"""


@pytest.fixture
def module(home):
    (home / "ourstore.py").write_text(MODULE)
    yield "ourstore"
    sys.modules.pop("ourstore", None)


def test_check_imports_a_module_and_calls_nothing(module, check):
    status, lines, _ = check('psk_module = "ourstore:make"')
    assert status == 0
    assert "accepts the identities of ourstore:make, which was imported, and not called" in lines
    assert sys.modules["ourstore"].called == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            "no_such_thing:x",
            (
                "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'; remedy: install it where "
                "dtls-endpoint is installed, or set PYTHONPATH"
            ),
        ),
        ("ourstore:nothing", "there is no nothing in ourstore"),
        ("ourstore:inner.x", "there is no x in ourstore"),
        ("ourstore:number", "is of type int, and neither a key store (with a method lookup) nor makes one"),
        ("ourstore:keys", "is of type dict, and neither a key store (with a method lookup) nor makes one"),
        ("brokenmodule:x", "cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_used_is_told_with_file_and_key(home, module, check, name, what):
    (home / "brokenmodule.py").write_text("1/0")
    status, _, errors = check(f'psk_module = "{name}"')
    assert (status, errors) == (2, [f"e.toml: credentials.psk_module: {name}: {what}"])
    # Also beside another mistake, which keeps the file from being used at all.
    _, _, errors = check(f'psk_module = "{name}"', more="[listen]\nport = -1")
    assert len(errors) == 2
    assert errors[1] == f"e.toml: credentials.psk_module: {name}: {what}"


@pytest.mark.parametrize("name", ["store", "make", "make_async", "Store", "inner.deep"])
async def test_a_store_and_what_makes_one_will_do(module, name):
    store: Any = await make_store(f"ourstore:{name}", find_object(f"ourstore:{name}"))
    assert list(store.lookup(b"dev1")) == [bytes.fromhex(K1)]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("broken", "raised RuntimeError: no HSM"),
        ("wrong", "made of type dict, and no key store (with a method lookup)"),
    ],
)
async def test_one_that_makes_none_keeps_the_service_from_starting(module, name, what):
    with pytest.raises(StoreStartError) as caught:
        await make_store(f"ourstore:{name}", find_object(f"ourstore:{name}"))
    assert str(caught.value) == f"credentials.psk_module: ourstore:{name}: {what}"
    assert K2 not in str(caught.value)


# --- services -------------------------------------------------------------------------------------------


def serve(home, credentials, more=""):
    (home / "e.toml").write_text(
        f'[credentials]\n{credentials}\n[listen]\naddress = "127.0.0.1"\nport = 0\n[forward]\nkind = "echo"\n'
        # Wrong keys are told after two of these.
        f"[dtls.retransmit]\ninitial_timeout = 0.1\n{more}"
    )
    return Running("serve", "--config", "e.toml", cwd=home)


def talk(port, key=K1, identity=b"dev1"):
    """An echo over a new association."""

    async def once():
        config = ClientConfig(psk_identity=identity, psk_key=bytes.fromhex(key))
        async with await open_dtls("127.0.0.1", port, config=config) as channel:
            await channel.send(b"x")
            return await channel.receive() == b"x"

    return trio.run(once)


@pytest.mark.slow
def test_a_service_with_a_server_that_is_not_there_yet(home):
    server = ValkeyServer(home)
    with serve(home, f'psk_valkey = "{server.address}"\nlookup.negative_seconds = 0') as service:
        _, port = service.listening()
        loaded = service.fact("keys_loaded")
        assert (loaded["identities"], loaded["source"]) == (None, server.address)
        away = service.fact("key_store_unavailable")
        assert away["reason"] == f"{server.address}: no such file or directory"
        with pytest.raises(HandshakeFailed) as caught:
            talk(port)
        assert caught.value.cause == PeerAlert(AlertDescription.INTERNAL_ERROR, authenticated=False)
        assert service.fact("key_store_unavailable")["identity"] == "dev1"
        failed = service.fact("handshake_failed")
        assert (failed["cause"], failed["identity"]) == ("AuthenticationFailed.keys_unavailable", "dev1")
        with server:
            server.keys(b"dev1", current=K2, next=K1)
            assert service.fact("key_store_recovered")["seconds"] > 0
            assert talk(port)
            assert service.fact("connected")["key_used"] == "next"
            server.keys(b"dev1", current="nonsense")
            with pytest.raises(HandshakeFailed):
                talk(port)
            unusable = service.fact("key_record_unusable")
            assert "the current key is not an even number of hex digits" in unusable["reason"]
            assert service.end() == 0
    figures = json.loads(service.seen[-1].splitlines()[-1])["statistics"]
    assert figures["lookups_unavailable"] == 2
    assert figures["key_store"]["lookups"]["invalid"] == 1
    assert figures["key_store"]["outages"] == 1
    assert K1 not in service.everything
    assert "nonsense" not in service.everything


@pytest.mark.slow
def test_a_service_with_a_database_sees_changes_at_once_and_a_reload_ends_those_who_are_removed(home):
    put(home / "keys.db", dev1=[K1], dev2=[K1])
    with serve(
        home, 'psk_database = "keys.db"\nwhen_removed = "drop"\nlookup.negative_seconds = 0'
    ) as service:
        _, port = service.listening()
        assert service.fact("keys_loaded")["identities"] == 2
        assert talk(port)

        async def removed():
            config = ClientConfig(psk_identity=b"dev2", psk_key=bytes.fromhex(K1))
            async with await open_dtls("127.0.0.1", port, config=config) as channel:
                with KeyDatabase(home / "keys.db") as database, database.change() as changes:
                    changes.set(b"dev1", [bytes.fromhex(K2)])
                    changes.remove(b"dev2")
                await channel.send(b"x")
                assert await channel.receive() == b"x"
                service.signal("SIGHUP")
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive()

        trio.run(removed)
        assert service.fact("reloaded")["identities"] == 1
        assert talk(port, K2)
        with pytest.raises(HandshakeFailed):
            talk(port, K1, b"dev2")
        (home / "keys.db").rename(home / "away.db")
        service.signal("SIGHUP")
        assert "is not there" in service.fact("reload_failed")["errors"][0]
        assert service.end() == 0
    assert K2 not in service.everything


@pytest.mark.slow
def test_a_service_with_a_module_of_ones_own(home, module):
    with serve(home, 'psk_module = "ourstore:make_async"') as service:
        _, port = service.listening()
        assert service.fact("keys_loaded")["source"] == "module"
        assert talk(port)
        service.signal("SIGHUP")
        assert service.fact("reloaded")["source"] == "module"
        assert service.end() == 0
    with serve(home, 'psk_module = "ourstore:broken"') as service:
        assert service.finished() == 1
    (line,) = service.seen[-1].splitlines()
    assert json.loads(line)["event"] == "key_store_failed"
    assert "RuntimeError: no HSM" in line
