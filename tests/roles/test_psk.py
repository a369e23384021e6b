"""The role `dtls_psk` on a fleet of two endpoints and three devices without Python, with real DTLS clients streaming."""

import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.fleet import REPOSITORY, Fleet
from tests.lab.leaks import Search, Secret
from tests.lab.recorder import assert_unchanged
from tests.lab.traffic import Sensor, Streams
from tests.roles.keys import (
    KEY_FILE,
    PREVIOUS,
    RELOAD,
    REVOKE,
    Keys,
    accepted,
    at_once,
    deploy,
    forget,
    start,
    stop,
)

DEVICES = ("device-1", "device-2", "device-3")


@pytest.fixture(scope="module")
def bare(lab):
    with Fleet(endpoints=2, devices=3) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def fleet(bare):
    deploy(bare)
    return bare


@pytest.fixture
def keys(fleet):
    """Other keys for each test, and services that remember nothing."""
    at_once(fleet.endpoints, forget)
    return Keys(fleet)


def test_check_mode_shows_on_a_bare_fleet_what_would_come_and_changes_nothing(bare):
    keys = Keys(bare)
    record = keys.rotate(1, "--check", "--diff", dtls_psk_secure_logging=False)
    for device in keys.devices:
        assert keys.on(device) is None
        assert f"changed: [{device}]" in record.output
        assert keys.key(device, 1).hex() not in record.output
    assert "+a secret of" in record.output


def test_a_rotation_under_traffic_loses_nothing_and_shows_no_key_anywhere(keys):
    keys.begin(1)
    search = Search(
        keys.fleet, secrets=[Secret("the master key", keys.master, {"controller": ["/inventory.json"]})]
    )
    on_endpoints = {host.name: ["/etc/dtls-endpoint/psk.d/*"] for host in keys.fleet.endpoints}
    for device in keys.devices:
        places = {device: [f"{KEY_FILE}*", "/etc/dtls/.psk*"], **on_endpoints}
        for generation in (1, 2):
            search.add(Secret(f"key {generation} of {device}", keys.key(device, generation), places))
    with Streams(keys.fleet) as streams:
        with search.watching():
            # With all that Ansible would show: what no_log hides is no less secret.
            record = keys.rotate(
                2, "-vvvvv", "--diff", environment=search.environment(), dtls_psk_secure_logging=False
            )
        search.output(record.output)
        for device in keys.devices:
            assert all(one == [2] for one in keys.accepted(device))
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (2, None)
            figures = streams[device].figures
            assert figures.key == keys.key(device, 2).hex()
            # Its own first handshake, and the one for the new key.
            assert (figures.handshakes, figures.reloads) == (2, 1)
        assert_unchanged(keys.rotate(2))
    streams.check(ended=0, failed=0, lost=0)
    search.check()


def test_first_keys_come_from_two_operators_at_once_and_the_next_ones_batch_by_batch(keys):
    keys.begin()
    place = keys.inventory(1)
    with Streams(keys.fleet, connected=False) as streams:
        with ThreadPoolExecutor() as pool:
            who = [keys.fleet.colleague(name) for name in ("a", "b")]
            for run in [pool.submit(keys.run, inventory=place, environment=one) for one in who]:
                run.result()
        for device in DEVICES:
            assert keys.accepted(device) == [[1], [1]]
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (1, None)
            status = (keys.fleet[device].root / KEY_FILE[1:]).stat()
            assert (status.st_mode & 0o777, status.st_uid) == (0o600, 0)
        # The entry points by themselves; what cannot be done yet is left to the one that comes later.
        play = keys.phases("stage", "push", "retire", "confirm", "retire", "status", serial=[1, 2])
        record = keys.rotate(2, playbook=play)
        staged = [result for result in record.changed if "Have each endpoint accept" in result.task]
        assert len(staged) == 2
        for device in DEVICES:
            assert keys.accepted(device) == [[2], [2]]
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (2, None)
    streams.check(ended=0, failed=0, lost=0)


def test_a_controller_that_is_killed_after_each_phase_goes_on_where_it_was(keys):
    keys.begin(1)
    with Streams(keys.fleet) as streams:
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
        # Killed after the files of the endpoints were changed, and before the services have read them:
        keys.give(3, 4, reload=False)
        assert keys.accepted("device-1") == [[3], [3]]
        record = keys.rotate(4)
        assert [result.task for result in record.changed if "Have services read" in result.task]
        # Killed after the old key was retired, and before devices have lost it:
        keys.killed(5, "Remove the device's previous key")
        assert [(keys.on(device), keys.on(device, PREVIOUS)) for device in DEVICES] == [(5, 4)] * 3
        keys.rotate(5)
        for device in DEVICES:
            assert keys.accepted(device) == [[5], [5]]
            assert (keys.on(device), keys.on(device, PREVIOUS)) == (5, None)
    streams.check(ended=0, failed=0, lost=0)


def test_what_goes_wrong_at_one_device_is_told_and_stops_no_other(keys):
    """With keys of the vault, one by one."""
    keys.begin(1)
    of = {
        device: {"dtls_psk_keys": {str(one): keys.key(device, one).hex() for one in (1, 2)}}
        for device in DEVICES
    }
    vault = {"dtls_psk_source": "vault", "dtls_psk_master": ""}
    spoilt = f"sed -i 's/:.*/:{secrets.token_hex(32)}/' {KEY_FILE}; {RELOAD}"
    broken = {
        # The new key fails there, so it falls back to the previous one.
        "device-1": of["device-1"] | {"dtls_psk_device_reload": spoilt},
        # Leaves something in the background that keeps the output open.
        "device-2": of["device-2"] | {"dtls_psk_device_reload": f"{RELOAD}; sleep 600 & echo broken; exit 7"},
        "device-3": of["device-3"],
    }
    away = keys.fleet["device-3"]
    with Streams(keys.fleet) as streams:
        streams["device-3"].stop()
        away.unplug()
        try:
            told = _told(keys.rotate(2, of=broken, dtls_psk_confirm_timeout=8, status=2, **vault))
            beside = "overlap: generation 2 is accepted beside another key, and it used generation 1 last"
            assert f"device-1: {beside}" in told
            assert f"device-3: {beside}" in told
            assert (
                re.findall(r"(device-\d): overlap: [^;]*; it could not be reached in this run", told)[0]
                == "device-3"
            )
            assert "device-2: steady: dtls_psk_device_reload was not done: device-2: " in told
            assert "status 7: broken" in told
            assert (keys.accepted("device-2"), keys.on("device-2")) == ([[2], [2]], 2)
            assert keys.accepted("device-1") == keys.accepted("device-3") == [[1, 2], [1, 2]]
            assert keys.on("device-3") == 1
            streams["device-1"].wait_until(lambda figures: figures.failed and figures.handshakes == 2)
            assert streams["device-1"].figures.key == keys.key("device-1", 1).hex()
            # In the middle of it, check mode tells what would come.
            before = keys.on("device-1")
            record = keys.rotate(2, "--check", "--diff", of=of, dtls_psk_secure_logging=False, **vault)
            assert {one.host for one in record.changed} == {"device-1"}
            assert "Give the device its key and keep the old one" in record.changed[0].task
            assert keys.key("device-1", 2).hex() not in record.output
            assert (keys.on("device-1"), keys.accepted("device-1")) == (before, [[1, 2], [1, 2]])
            # Those who can be reached are done, and an operator may be content with that.
            told = keys.rotate(2, of=of, dtls_psk_allow_pending=True, **vault).output
            assert f"device-3: {beside}" in told
            assert "device-1: " not in told.partition("Show how many")[2].partition("PLAY RECAP")[0]
            assert (keys.accepted("device-1"), keys.on("device-1")) == ([[2], [2]], 2)
        finally:
            away.plug()
        # It wakes up with its old key, and is served.
        fresh = streams.sensors["fresh"] = Streams(keys.fleet).sensors["device-3"]
        fresh.start()
        fresh.wait_until_connected()
        keys.rotate(2, of=of, **vault)
        assert (keys.accepted("device-3"), keys.on("device-3")) == ([[2], [2]], 2)
    streams.check(ended=0, failed=1, lost=0)


def _told(record):
    """What the last task of the role says that fails the run."""
    return record.output[record.output.index("TASK [dtls_psk : Fail if somebody is not done]") :]


def test_while_an_endpoint_is_down_nothing_is_pushed_and_an_emergency_does_what_it_can(keys):
    keys.begin(1)
    here, down = keys.fleet.endpoints
    emergency = {"dtls_psk_mode": "emergency", "dtls_psk_confirm_timeout": 0}
    streams = Streams(keys.fleet)
    del streams.sensors["device-2"]  # which would use the endpoint that is down
    with streams:
        stop(down)
        record = keys.rotate(2, status=2)
        assert "Nothing was changed, and no device is given a key" in record.output
        assert "endpoint-2" in record.output
        assert not record.changed
        assert [keys.on(device) for device in DEVICES] == [1, 1, 1]
        assert accepted(here, "device-1") == [keys.fingerprint("device-1", 1)]
        # The old key of one device is known to somebody: it is to be worth nothing at once.
        down.unplug()
        try:
            record = keys.rotate(2, "--limit", "device-1", status=2, **emergency)
        finally:
            down.plug()
        assert "endpoint-2 cannot be reached" in _told(record)
        assert accepted(here, "device-1") == [keys.fingerprint("device-1", 2)]
        assert (keys.on("device-1"), keys.on("device-1", PREVIOUS)) == (2, None)
        streams["device-1"].wait_until(lambda figures: figures.key == keys.key("device-1", 2).hex())
        start(down)
        assert keys.accepted("device-1") == [[2], [1]]
        keys.rotate(2, "--limit", "device-1", **emergency)
        assert keys.accepted("device-1") == [[2], [2]]
        assert_unchanged(keys.rotate(2, "--limit", "device-1", **emergency))
    assert streams["device-1"].figures.ended == 1
    assert keys.accepted("device-3") == [[1], [1]]
    figures = streams["device-3"].figures
    assert (figures.ended, figures.failed, figures.handshakes, streams["device-3"].lost) == (0, 0, 1, 0), (
        figures
    )


def test_a_revoked_device_is_out_at_once_everywhere_and_sessions_of_old_keys_end_where_that_is_said(keys):
    keys.begin(1)
    here = keys.fleet["endpoint-1"]
    streams = Streams(keys.fleet)
    # The one that is revoked has an association with each endpoint.
    elsewhere = streams.sensors["elsewhere"] = Sensor(keys.fleet["device-2"], here.address)
    # Somebody goes on with the association of the old key beside the new one.
    deaf = streams.sensors["deaf"] = Sensor(keys.fleet["device-3"], here.address, deaf=True)
    revoked = {"dtls_psk_revoked": ["device-2"]}
    with streams:
        keys.rotate(1, playbook=REVOKE, **revoked)
        for sensor in (streams["device-2"], elsewhere):
            sensor.wait_until(lambda figures: figures.ended == 1)
        assert keys.accepted("device-2") == [[], []]
        assert keys.on("device-2") is None
        assert_unchanged(keys.rotate(1, playbook=keys.phases("revoke", "status"), **revoked))
        assert deaf.figures.ended == 0
        keys.rotate(2, dtls_psk_existing_sessions="drop", **revoked)
        assert keys.accepted("device-2") == [[], []]
        assert keys.accepted("device-1") == keys.accepted("device-3") == [[2], [2]]
        deaf.wait_until(lambda figures: figures.handshakes == 2)
        assert (deaf.figures.ended, deaf.figures.key) == (1, keys.key("device-3", 2).hex())
    assert streams["device-2"].figures.handshakes == elsewhere.figures.handshakes == 1
    for device in ("device-1", "device-3"):
        figures = streams[device].figures
        assert (figures.ended, figures.failed, streams[device].lost) == (0, 0, 0), figures


# --- negative controls ------------------------------------------------------------------------------


@pytest.fixture
def roles(tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(REPOSITORY / "roles", tmp_path / "roles")


def test_without_staging_the_traffic_test_goes_red(keys, roles):
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
        streams["device-1"].wait_until(lambda figures: figures.failed)
        keys.begin(2)  # so that it can end
    assert "is not accepted yet" in record.output
    with pytest.raises(AssertionError, match="failed"):
        streams.check(ended=0, failed=0, lost=0)


def test_without_the_gate_a_device_that_was_away_is_locked_out(keys, roles):
    plan = roles / "dtls_common/module_utils/dtls_rotation.py"
    gate = 'if phase == "confirmed" and one.stored'
    assert plan.read_text().count(gate) == 1
    plan.write_text(plan.read_text().replace(gate, "if phase in STAGED and one.stored"))
    keys.begin(1)
    away = keys.fleet["device-3"]
    away.unplug()
    try:
        environment = {"ANSIBLE_ROLES_PATH": str(roles)}
        keys.rotate(2, status=2, dtls_psk_confirm_timeout=0, environment=environment)
    finally:
        away.plug()
    streams = Streams(keys.fleet, connected=False, handshake_time=3.0)
    streams.sensors = {"device-3": streams["device-3"]}
    with streams:
        streams["device-3"].wait_until(lambda figures: figures.failed)
    with pytest.raises(AssertionError, match="failed"):
        streams.check(ended=0, failed=0, lost=0)
