"""``dtls-endpoint keys`` beside a running service: a rotation with devices, and those that are removed."""

import json
import secrets

import pytest
import trio

from endpoint import open_dtls
from endpoint.admin import ask
from endpoint.cli import main
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.file import load_psk
from endpoint.keystore.fingerprint import fingerprint
from tests.program.running import Running
from tests.program.test_service import Home


class Endpoint(Home):
    """A service with an admin socket, a file of key use, and the keys command beside it."""

    def __init__(self, path, capfd):
        super().__init__(path)
        path.chmod(0o700)
        self._capfd = capfd
        self.run_keys("add", "meter", "--psk-file", "psk.txt")

    def serve_fleet(self, credentials="", *, keys='psk_file = "psk.txt"'):
        (self.path / "endpoint.toml").write_text(
            f"[credentials]\n{keys}\n{credentials}\n"
            '[listen]\naddress = "127.0.0.1"\nport = 0\n[forward]\nkind = "echo"\n'
            '[state]\nusage_file = "usage.db"\nadmin_socket = "admin.sock"\n'
        )
        return Running("serve", "--config", "endpoint.toml", cwd=self.path)

    def run_keys(self, *arguments, status=0):
        """Both outputs of the command."""
        self._capfd.readouterr()
        given = [
            str(self.path / one) if one in {"endpoint.toml", "psk.txt", "psk.db"} else one
            for one in arguments
        ]
        code = main(["keys", *given])
        out, error = self._capfd.readouterr()
        assert code == status, out + error
        return out + error

    def keys_of(self, identity):
        return load_psk(self.path / "psk.txt").keys[identity.encode()]

    def use(self, where, identity, key):
        """One handshake of a device with this key."""

        async def device():
            async with await open_dtls(*where, config=self.client(key.hex(), identity.encode())) as channel:
                await channel.send(b"x")
                assert await channel.receive() == b"x"

        trio.run(device)


@pytest.fixture
def home(tmp_path, capfd):
    return Endpoint(tmp_path, capfd)


def reload(service):
    service.signal("SIGHUP")
    return service.fact("reloaded")


def test_a_key_is_rotated_under_a_running_service_and_retired_when_the_device_has_used_it(home):
    (old,) = home.keys_of("meter")
    with home.serve_fleet() as service:
        where = service.listening()
        home.use(where, "meter", old)
        home.run_keys("rotate", "meter", "--config", "endpoint.toml")
        assert reload(service)["in_rotation"] == 1
        _, new = home.keys_of("meter")
        home.use(where, "meter", old)  # it does not know yet, and is served
        error = home.run_keys("retire", "meter", "--config", "endpoint.toml", status=1)
        assert "has not used its next key" in error
        home.use(where, "meter", new)
        listed = json.loads(home.run_keys("list", "--json", "--config", "endpoint.toml").splitlines()[0])
        assert listed["used_according_to"] == "the running service"
        entry = next(entry for entry in listed["identities"] if entry["identity"] == "meter")
        assert entry["confirmed"] is True
        assert service.end() == 0
        assert old.hex() not in service.everything
        assert new.hex() not in service.everything
    # The service is gone; what it has written down is as good, and it was asked to stop a moment after the handshake.
    home.run_keys("retire", "meter", "--config", "endpoint.toml")
    assert home.keys_of("meter") == (new,)
    with home.serve_fleet() as service:
        where = service.listening()
        home.use(where, "meter", new)
        assert service.end() == 0


def test_a_removed_device_is_dropped_by_a_reload_where_the_configuration_says_so(home):
    (key,) = home.keys_of("meter")
    with home.serve_fleet('when_removed = "drop"') as service:
        address, port = service.listening()

        async def device():
            config = home.client(key.hex(), b"meter")
            async with await open_dtls(address, port, config=config) as channel:
                removing = ["remove", "meter", "--config", "endpoint.toml"]
                told = await trio.to_thread.run_sync(lambda: home.run_keys(*removing))
                assert "meter: 1 live and 0 frozen associations go on, remedy: --drop" in told
                await trio.to_thread.run_sync(reload, service)
                ended = await trio.to_thread.run_sync(service.fact, "associations_ended")
                assert (ended["live"], ended["removed"]) == (1, 1)
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive()

        trio.run(device)
        assert service.end() == 0


def test_keys_in_a_database_are_in_use_at_once_and_associations_are_ended_by_a_reload(home):
    home.run_keys("import", "psk.txt", "--psk-database", "psk.db", "--force")
    (key,) = home.keys_of("meter")
    with home.serve_fleet('when_rotated = "drop"', keys='psk_database = "psk.db"') as service:
        where = service.listening()
        home.run_keys("rotate", "meter", "--config", "endpoint.toml")
        with KeyDatabase(home.path / "psk.db") as database:
            current, new = database.lookup(b"meter")
        assert current == key
        home.use(where, "meter", new)

        async def device():
            config = home.client(key.hex(), b"meter")
            async with await open_dtls(*where, config=config) as channel:
                retiring = ["retire", "meter", "--force", "--config", "endpoint.toml"]
                told = await trio.to_thread.run_sync(lambda: home.run_keys(*retiring))
                assert "reload" not in told
                service.signal("SIGHUP")
                ended = await trio.to_thread.run_sync(service.fact, "associations_ended")
                assert (ended["live"], ended["rotated"]) == (1, 1)
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive()

        trio.run(device)
        home.use(where, "meter", new)
        assert service.end() == 0


def test_what_is_asked_of_the_service_is_answered_and_what_makes_no_sense_is_refused(home):
    (key,) = home.keys_of("meter")
    with home.serve_fleet() as service:
        where = service.listening()
        home.use(where, "meter", key)
        socket = home.path / "admin.sock"

        def answer(command, **parameters):
            return ask(socket, command, seconds=10, **parameters)

        found = answer("key_use", identity="meter")
        assert (found["use"]["which"], found["frozen"]) == ("current", 0)
        assert answer("key_use", identity="nobody")["use"] is None
        page = answer("key_uses", limit=1)
        assert ([use["identity"] for use in page["uses"]], page["more"]) == (["meter"], True)
        assert answer("key_uses", after="meter")["uses"] == []
        assert answer("end", identity="nobody") == {"ok": True, "live": 0, "frozen": 0}
        nonsense: list[tuple[str, dict[str, object]]] = [
            ("key_use", {}),
            ("key_use", {"identity": 7}),
            ("key_uses", {"limit": 0}),
            ("key_uses", {"after": "\\q"}),
            ("end", {}),
        ]
        for command, parameters in nonsense:
            assert answer(command, **parameters)["ok"] is False
        assert service.end() == 0
        assert "command_failed" not in service.everything


def test_dropping_ends_associations_of_removed_identities_at_once(home):
    (key,) = home.keys_of("meter")
    with home.serve_fleet() as service:
        address, port = service.listening()

        async def device():
            config = home.client(key.hex(), b"meter")
            async with await open_dtls(address, port, config=config) as channel:
                removing = ["remove", "meter", "--config", "endpoint.toml", "--drop"]
                told = await trio.to_thread.run_sync(lambda: home.run_keys(*removing))
                assert "meter: 1 live and 0 frozen associations ended" in told
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive()

        trio.run(device)
        assert service.end() == 0


def test_reloading_is_asked_of_the_service_and_what_it_refuses_is_told(home):
    with home.serve_fleet() as service:
        where = service.listening()
        told = home.run_keys("add", "new", "--config", "endpoint.toml", "--reload")
        assert "the running service uses them" in told
        home.use(where, "new", *home.keys_of("new"))
        (home.path / "psk.txt").chmod(0o400)
        home.run_keys("remove", "new", "--config", "endpoint.toml")
        removing = ["remove", "meter", "dev1", "--config", "endpoint.toml", "--reload"]
        told = home.run_keys(*removing, status=1)  # none would be left
        assert "the keys are changed, but the service goes on with those before:" in told
        assert "holds no identity now" in told
        assert service.end() == 0


def test_associations_of_a_key_that_leaked_end_at_once_and_those_of_the_new_one_go_on(home):
    """A command that is asked again after an accident has the service read what an earlier one has written."""
    (old,) = home.keys_of("meter")
    new = secrets.token_bytes(32)
    with home.serve_fleet() as service:
        where = service.listening()

        async def device():
            async with await open_dtls(*where, config=home.client(old.hex(), b"meter")) as channel:
                # Killed before it could tell the service:
                (home.path / "psk.txt").write_text(f"meter:{new.hex()}\n")
                (home.path / "new.txt").touch(0o600)
                (home.path / "new.txt").write_text(f"meter:{new.hex()}\n")
                given = [
                    "import",
                    str(home.path / "new.txt"),
                    "--replace",
                    "--drop",
                    "--config",
                    "endpoint.toml",
                ]
                told = await trio.to_thread.run_sync(lambda: home.run_keys(*given))
                assert "1 identity unchanged" in told
                assert "meter: 1 live and 0 frozen associations ended" in told
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive()
            async with await open_dtls(*where, config=home.client(new.hex(), b"meter")) as channel:
                told = await trio.to_thread.run_sync(lambda: home.run_keys(*given))
                assert "ended" not in told
                retiring = ["retire", "meter", "--drop", "--config", "endpoint.toml"]
                assert "ended" not in await trio.to_thread.run_sync(lambda: home.run_keys(*retiring))
                await channel.send(b"x")
                assert await channel.receive() == b"x"

        trio.run(device)
        assert service.end() == 0


def test_the_list_says_what_the_running_service_accepts_and_who_is_there(home):
    (old,) = home.keys_of("meter")
    new = secrets.token_bytes(32)
    home.run_keys("list", "--running", "--json", "--psk-file", "psk.txt", status=2)
    with home.serve_fleet() as service:
        where = service.listening()
        home.run_keys("list", "--running", "--config", "endpoint.toml", status=2)

        def listed():
            told = home.run_keys("list", "--running", "--json", "--config", "endpoint.toml")
            return {entry["identity"]: entry for entry in json.loads(told.splitlines()[0])["identities"]}

        async def device():
            async with await open_dtls(*where, config=home.client(old.hex(), b"meter")):
                (home.path / "psk.txt").write_text(
                    f"meter:{old.hex()}\nmeter:{new.hex()}\nother:{new.hex()}\n"
                )
                told = await trio.to_thread.run_sync(listed)
                assert told["meter"]["accepted"] == [fingerprint(old)]
                assert told["meter"]["next"] == fingerprint(new)
                assert (told["meter"]["live"], told["meter"]["frozen"]) == (1, 0)
                assert told["other"]["accepted"] == []
                (home.path / "psk.txt").write_text(f"other:{new.hex()}\n")
                told = await trio.to_thread.run_sync(listed)
                assert (told["meter"]["current"], told["meter"]["accepted"]) == (None, [fingerprint(old)])

        trio.run(device)
        assert service.end() == 0
    home.run_keys("list", "--running", "--json", "--config", "endpoint.toml", status=1)
