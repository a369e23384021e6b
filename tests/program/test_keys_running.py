"""``dtls-endpoint keys`` beside a running service: a rotation with devices, and what becomes of those that are removed."""

import json

import pytest
import trio

from endpoint import open_dtls
from endpoint.admin import ask
from endpoint.cli import main
from endpoint.keystore.file import load_psk
from tests.program.running import Running
from tests.program.test_service import Home


class Endpoint(Home):
    """A service with an admin socket, a file of key use, and the keys command beside it."""

    def __init__(self, path, capfd):
        super().__init__(path)
        path.chmod(0o700)
        self._capfd = capfd
        self.run_keys("add", "meter", "--psk-file", "psk.txt")

    def serve_fleet(self, credentials=""):
        (self.path / "endpoint.toml").write_text(
            f'[credentials]\npsk_file = "psk.txt"\n{credentials}\n'
            '[listen]\naddress = "127.0.0.1"\nport = 0\n[forward]\nkind = "echo"\n'
            '[state]\nusage_file = "usage.db"\nadmin_socket = "admin.sock"\n'
        )
        return Running("serve", "--config", "endpoint.toml", cwd=self.path)

    def run_keys(self, *arguments, status=0):
        """Both outputs of the command."""
        self._capfd.readouterr()
        given = [str(self.path / one) if one in {"endpoint.toml", "psk.txt"} else one for one in arguments]
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


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_a_removed_device_is_dropped_where_the_configuration_says_so(home, policy):
    (key,) = home.keys_of("meter")
    with home.serve_fleet(f'when_removed = "{policy}"') as service:
        address, port = service.listening()

        async def device():
            config = home.client(key.hex(), b"meter")
            async with await open_dtls(address, port, config=config) as channel:
                await channel.send(b"one")
                assert await channel.receive() == b"one"
                removing = ["remove", "meter", "--config", "endpoint.toml"]
                told = await trio.to_thread.run_sync(lambda: home.run_keys(*removing))
                assert "meter: 1 live and 0 frozen associations go on, remedy: --drop" in told
                await trio.to_thread.run_sync(reload, service)
                if policy == "keep":
                    await channel.send(b"two")
                    assert await channel.receive() == b"two"
                    return
                ended = await trio.to_thread.run_sync(service.fact, "associations_ended")
                assert (ended["live"], ended["removed"]) == (1, 1)
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive()

        trio.run(device)
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
        for command, parameters in [
            ("key_use", {}),
            ("key_use", {"identity": 7}),
            ("key_uses", {"limit": 0}),
            ("key_uses", {"after": "\\q"}),
            ("end", {}),
        ]:
            assert answer(command, **parameters)["ok"] is False
        assert service.end() == 0
        assert "command_failed" not in service.everything
