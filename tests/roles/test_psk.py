"""The role `dtls_psk` on a fleet of two endpoints and three devices without Python, with real DTLS clients streaming."""

import json
import os
import secrets
import shutil
import signal
import sys
import time

import pytest

from tests.lab.controllers import controller
from tests.lab.fleet import REPOSITORY, Fleet
from tests.lab.leaks import Search, Secret
from tests.lab.recorder import assert_unchanged
from tests.lab.required import require_lab
from tests.lab.traffic import Streams
from tests.roles.planted import accepted, give_keys, plant, serve

sys.path.append(str(REPOSITORY / "roles/dtls_common/module_utils"))
import dtls_keys

ROTATE, REVOKE = REPOSITORY / "playbooks/rotate.yml", REPOSITORY / "playbooks/revoke.yml"
KEY_FILE, PREVIOUS = "/etc/dtls/psk", "/etc/dtls/psk.previous"
DEVICES = ("device-1", "device-2", "device-3")


class Keys:
    """What the inventory says, and the keys that this means."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.master = secrets.token_hex(32)
        self.common = {
            "dtls_psk_master": self.master,
            "dtls_psk_device_reload": "touch /run/sensor.reload",
            "dtls_psk_confirm_timeout": 60,
            "dtls_psk_confirm_interval": 1,
            "ansible_timeout": 3,
            # A connection that is kept open would wait for a host that is gone until TCP gives up.
            "ansible_ssh_extra_args": "-o ServerAliveInterval=2 -o ServerAliveCountMax=3",
        }

    def key(self, device, generation):
        return dtls_keys.derive(bytes.fromhex(self.master), device, generation, 32)

    def fingerprint(self, device, generation):
        return dtls_keys.fingerprint(self.key(device, generation))

    def inventory(self, generation, of=None, **more):
        """Its file; ``of``: variables of single devices."""
        place = self.fleet.inventory(**{"dtls_psk_generation": generation, **self.common, **more})
        told = json.loads(place.read_text())
        for device, own in (of or {}).items():
            told["all"]["children"]["dtls_devices"]["hosts"][device].update(own)
        place.write_text(json.dumps(told))
        return place

    def rotate(self, generation, *arguments, of=None, status=0, playbook=ROTATE, environment=(), **more):
        """Run the playbook; its record."""
        return self.fleet.playbook(
            playbook,
            *arguments,
            inventory=self.inventory(generation, of, **more),
            status=status,
            record=True,
            timeout=240,
            **dict(environment),
        )

    def killed(self, generation, task, **more):
        """Run the playbook until it says that it begins with this task, and kill it then."""
        process = self.fleet.start_playbook(ROTATE, inventory=self.inventory(generation, **more))
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("TASK") and task in line:
                break
        else:
            raise AssertionError(f"the run has ended without {task!r}:\n{''.join(lines)}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

    def begin(self, *generations, devices=DEVICES, reload=True):
        """All endpoints accept these generations, and the devices have the first one."""
        keys = {device: [self.key(device, one) for one in generations] for device in devices}
        for host in self.fleet.endpoints:
            give_keys(host, keys, reload=reload)
        for device in DEVICES:
            root = self.fleet[device].root
            shutil.rmtree(root / "etc/dtls", ignore_errors=True)
            if device in keys:
                (root / "etc/dtls").mkdir(mode=0o700)
                (root / KEY_FILE[1:]).touch(0o600)
                (root / KEY_FILE[1:]).write_text(f"{device}:{keys[device][0].hex()}\n")

    def accepted(self, device):
        """Generations that each endpoint accepts for a device."""
        names = {self.fingerprint(device, number): number for number in range(9)}
        return [[names.get(one, one) for one in accepted(host, device)] for host in self.fleet.endpoints]

    def on(self, device, path=KEY_FILE):
        """The generation in a file of a device; None if there is none."""
        try:
            line = (self.fleet[device].root / path[1:]).read_text()
        except FileNotFoundError:
            return None
        return next(number for number in range(9) if line == f"{device}:{self.key(device, number).hex()}\n")


@pytest.fixture(scope="module")
def bare():
    require_lab()
    with Fleet(endpoints=2, devices=3) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def fleet(bare):
    for host in bare.endpoints:
        plant(host)
    return bare


@pytest.fixture
def keys(fleet):
    """Other keys for each test, and services that remember nothing."""
    for host in fleet.endpoints:
        serve(host)
    return Keys(fleet)


@pytest.mark.parametrize("ansible", ["newest", "here"])
def test_check_mode_shows_on_a_bare_fleet_what_would_come_and_changes_nothing(bare, monkeypatch, ansible):
    monkeypatch.setattr(bare, "controller", controller(ansible))
    keys = Keys(bare)
    record = keys.rotate(1, "--check", "--diff", dtls_psk_secure_logging=False)
    for device in DEVICES:
        assert keys.on(device) is None
        assert f"changed: [{device}]" in record.output
    assert "+a secret of" in record.output
    assert keys.key("device-1", 1).hex() not in record.output


def test_devices_get_their_first_keys_and_a_second_run_changes_nothing(keys):
    keys.begin(devices=())
    streams = Streams(keys.fleet)
    for sensor in streams.sensors.values():
        sensor.start()
    try:
        keys.rotate(1)
        for device in DEVICES:
            assert keys.accepted(device) == [[1], [1]]
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (1, None)
            status = (keys.fleet[device].root / KEY_FILE[1:]).stat()
            assert (status.st_mode & 0o777, status.st_uid) == (0o600, 0)
        assert_unchanged(keys.rotate(1))
    finally:
        streams.__exit__(None, None, None)
    streams.check()


def test_a_rotation_under_traffic_loses_nothing_and_shows_no_key_anywhere(keys):
    keys.begin(1)
    places = {device: [KEY_FILE, PREVIOUS, f"{KEY_FILE}*", "/etc/dtls/.psk*"] for device in DEVICES}
    on_endpoints = {host.name: ["/etc/dtls-endpoint/psk.d/*"] for host in keys.fleet.endpoints}
    on_controller = {"controller": ["/inventory.json"]}
    secret = [Secret("the master key", keys.master, on_controller)] + [
        Secret(
            f"key {generation} of {device}",
            keys.key(device, generation),
            {device: places[device], **on_endpoints},
        )
        for device in DEVICES
        for generation in (1, 2)
    ]
    search = Search(keys.fleet, secrets=secret)
    with Streams(keys.fleet) as streams:
        with search.watching():
            record = keys.rotate(2, "-vvvvv", environment=search.environment())
        search.output(record.output)
        for device in DEVICES:
            assert keys.accepted(device) == [[2], [2]]
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (2, None)
            assert streams[device].figures.key == keys.key(device, 2).hex()
            # Its own first handshake, and the one for the new key.
            assert (streams[device].figures.handshakes, streams[device].figures.reloads) == (2, 1)
        assert_unchanged(keys.rotate(2))
    streams.check(ended=0, failed=0, lost=0)
    search.check()


def test_a_controller_that_is_killed_after_each_phase_goes_on_where_it_was(keys):
    keys.begin(1)
    with Streams(keys.fleet) as streams:
        keys.killed(2, "Refuse to go on where an endpoint did not take them")
        keys.killed(2, "Look for the folder of the device's key file")
        assert [keys.on(device) for device in DEVICES] == [1, 1, 1]
        keys.killed(2, "Have the device use its key")
        assert [keys.accepted(device) for device in DEVICES] == [[[1, 2], [1, 2]]] * 3
        keys.killed(2, "Retire the old keys of devices")
        # The next generation, before the old key was retired: that comes first.
        record = keys.rotate(3)
        assert [result.task for result in record.changed if "Settle earlier" in result.task]
        for device in DEVICES:
            assert keys.accepted(device) == [[3], [3]]
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (3, None)
        # Killed after the file was changed and before the service has read it:
        for host in keys.fleet.endpoints:
            give_keys(
                host, {device: [keys.key(device, 3), keys.key(device, 4)] for device in DEVICES}, reload=False
            )
        keys.killed(4, "Remove the device's previous key")
        keys.rotate(4)
        for device in DEVICES:
            assert keys.accepted(device) == [[4], [4]]
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (4, None)
    streams.check(ended=0, failed=0, lost=0)


def test_a_device_that_is_offline_stays_in_the_overlap_is_told_and_comes_later(keys):
    """With keys of the vault, one by one."""
    keys.begin(1)
    vault = {
        device: {"dtls_psk_keys": {str(one): keys.key(device, one).hex() for one in (1, 2)}}
        for device in DEVICES
    }
    away = keys.fleet["device-3"]
    with Streams(keys.fleet) as streams:
        streams["device-3"].stop()
        away.unplug()
        try:
            record = keys.rotate(2, of=vault, dtls_psk_source="vault", dtls_psk_master="", status=2)
        finally:
            away.plug()
        told = record.output[record.output.index("TASK [dtls_psk : Fail if somebody is not done]") :]
        assert (
            "device-3: overlap: generation 2 is accepted beside another key, and it used generation 1 last"
            in told
        )
        assert "it could not be reached in this run" in told
        assert "device-1" not in told.partition("PLAY RECAP")[0].replace("fatal: [device-1]", "")
        assert keys.accepted("device-3") == [[1, 2], [1, 2]]
        assert keys.on("device-3") == 1
        for device in ("device-1", "device-2"):
            assert (keys.accepted(device), keys.on(device)) == ([[2], [2]], 2)
        # It wakes up with its old key, and is served.
        fresh = Streams(keys.fleet).sensors["device-3"]
        fresh.start()
        fresh.wait_until_connected()
        try:
            keys.rotate(2, of=vault, dtls_psk_source="vault", dtls_psk_master="")
            assert (keys.accepted("device-3"), keys.on("device-3")) == ([[2], [2]], 2)
        finally:
            fresh.stop()
        assert (fresh.figures.ended, fresh.figures.failed, fresh.lost) == (0, 0, 0), fresh.figures
    streams.check(ended=0, failed=0, lost=0)


@pytest.mark.parametrize("how", ["stopped", "unplugged"])
def test_nothing_is_pushed_while_an_endpoint_is_down(keys, how):
    keys.begin(1)
    down = keys.fleet["endpoint-2"]
    if how == "stopped":
        down.ssh("systemctl stop dtls-endpoint.service")
    else:
        down.unplug()
    try:
        record = keys.rotate(2, status=2)
    finally:
        if how == "unplugged":
            down.plug()
    assert "Nothing was changed, and no device is given a key" in record.output
    assert "endpoint-2" in record.output
    assert not record.changed
    assert [keys.on(device) for device in DEVICES] == [1, 1, 1]
    assert accepted(keys.fleet["endpoint-1"], "device-1") == [keys.fingerprint("device-1", 1)]


def test_in_an_emergency_the_old_key_is_worth_nothing_at_once(keys):
    keys.begin(1)
    emergency = {"of": {"device-1": {"dtls_psk_generation": 2}}, "dtls_psk_mode": "emergency"}
    with Streams(keys.fleet) as streams:
        keys.rotate(1, **emergency)
        assert keys.accepted("device-1") == [[2], [2]]
        assert (keys.on("device-1"), keys.on("device-1", PREVIOUS)) == (2, None)
        assert streams["device-1"].figures.key == keys.key("device-1", 2).hex()
        assert streams["device-1"].figures.ended == 1
        assert_unchanged(keys.rotate(1, **emergency))
    for device in ("device-2", "device-3"):
        figures = streams[device].figures
        assert (figures.ended, figures.failed, figures.handshakes, streams[device].lost) == (0, 0, 1, 0), (
            figures
        )


def test_a_revoked_device_is_out_at_once_and_no_later_run_brings_it_back(keys):
    keys.begin(1)
    with Streams(keys.fleet) as streams:
        keys.rotate(1, playbook=REVOKE, dtls_psk_revoked=["device-2"])
        assert keys.accepted("device-2") == [[], []]
        assert keys.on("device-2") is None
        assert_unchanged(keys.rotate(1, playbook=REVOKE, dtls_psk_revoked=["device-2"]))
        keys.rotate(2, dtls_psk_revoked=["device-2"])
        assert keys.accepted("device-2") == [[], []]
        assert keys.accepted("device-1") == [[2], [2]]
        assert streams["device-2"].figures.ended == 1
    assert streams["device-2"].figures.handshakes == 1
    for device in ("device-1", "device-3"):
        figures = streams[device].figures
        assert (figures.ended, figures.failed, streams[device].lost) == (0, 0, 0), figures


def test_without_staging_the_traffic_test_goes_red(keys, tmp_path):
    """The negative control: the same rotation with the phase and its gate taken out."""
    roles = tmp_path / "roles"
    shutil.copytree(REPOSITORY / "roles", roles)
    main = roles / "dtls_psk/tasks/main.yml"
    before, _, after = main.read_text().partition("- name: Stage the new keys")
    main.write_text(before + after[after.index("- name: Drop the old keys") :])
    internal = roles / "dtls_psk/vars/main.yml"
    text = internal.read_text()
    gate = text.index("__dtls_psk_give: >-")
    internal.write_text(text[:gate] + "__dtls_psk_give: true\n" + text[text.index("# Its line, secret") :])
    keys.begin(1)
    with Streams(keys.fleet) as streams:
        record = keys.rotate(
            2, status=2, dtls_psk_confirm_timeout=2, environment={"ANSIBLE_ROLES_PATH": str(roles)}
        )
        end = time.monotonic() + 30
        while not streams["device-1"].figures.failed and time.monotonic() < end:
            time.sleep(0.1)
        keys.begin(2)  # so that it can end
    assert "is not accepted yet" in record.output
    with pytest.raises(AssertionError, match="failed"):
        streams.check(ended=0, failed=0, lost=0)
