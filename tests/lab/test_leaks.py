"""The search for secrets finds what is planted, each kind in its place, and nothing else."""

import base64
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.fleet import Fleet
from tests.lab.leaks import Needles, Search, Secret, _runs

KEY = bytes.fromhex("8f1c2a77d3e94b0596aa31f0cc5de21b7d40e6f38a95bc2210fe6bd9471385ac")
MASTER = "correct horse battery staple"


@pytest.fixture(scope="module")
def fleet():
    with Fleet(endpoints=1, devices=1) as fleet:
        yield fleet


@pytest.fixture
def search(fleet):
    return Search(
        fleet, secrets=[Secret("key", KEY, {"device-1": ["/etc/dtls/psk*"]}), Secret("master", MASTER)]
    )


def kinds(search):
    return {(leak.secret, leak.kind) for leak in search.leaks()}


DIGITS = KEY.hex()


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        DIGITS.encode(),
        DIGITS.upper().encode(),
        base64.b64encode(KEY),
        base64.b64encode(b"x" + KEY),
        base64.urlsafe_b64encode(b"xy" + KEY),
        DIGITS[::-1].encode(),
        KEY[::-1],
        KEY[::-1].hex().encode(),
        base64.b64encode(KEY[::-1]),
        DIGITS[:16].encode(),
        DIGITS[13:29].upper().encode(),
        DIGITS[-16:].encode(),
        repr(KEY).encode(),
    ],
)
def test_a_secret_is_found_in_every_form(text):
    data = b"before " + text + b" after"
    assert Needles(Secret("key", KEY)).found(data, data.lower(), _runs(data.lower()))


@pytest.mark.parametrize("text", [DIGITS[:15], DIGITS[40:55], "0123456789abcdef" * 4, ""])
def test_what_is_no_secret_is_not_found(text):
    data = f"before {text} after".encode()
    assert not Needles(Secret("key", KEY)).found(data, data.lower(), _runs(data.lower()))


def test_a_key_given_as_digits_is_looked_for_as_bytes():
    assert Secret("key", DIGITS) == Secret("key", KEY)


def test_nothing_is_found_where_nothing_was_planted(fleet, search):
    with search.watching():
        fleet["endpoint-1"].ssh("systemd-cat -t lab echo harmless")
        fleet["device-1"].ssh("mkdir -p /etc/dtls; cat > /etc/dtls/psk", text_input=f"device-1:{DIGITS}\n")
    search.check()


def test_a_secret_in_the_output_is_found(search):
    search.output(f'ok: [device-1] => {{"msg": "{DIGITS}"}}')
    assert kinds(search) == {("key", "output")}


THERE, LOOKED = "/etc/there", "/etc/looked"
"""Files by which a host and the test wait for each other: a look may take its time where the machine has something else to do."""
UNTIL_LOOKED = f"until [ -e {LOOKED} ]; do sleep 0.02; done"


def looked_at(sampler, host, command, *, there=None, **how):
    """Run a command that ends with UNTIL_LOOKED, and end that when two whole looks were taken since it was ``there``."""
    there = there or (host.root / THERE[1:]).exists
    looked = host.root / LOOKED[1:]
    with ThreadPoolExecutor() as pool:
        running = pool.submit(host.ssh, command, **how)
        try:
            until(lambda: running.done() or there())
            before = sampler.rounds
            # The first of them may have begun before.
            until(lambda: running.done() or sampler.rounds > before + 2)
        finally:
            looked.touch()
        running.exception()
        looked.unlink()
        (host.root / THERE[1:]).unlink(missing_ok=True)
        running.result()


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("host", ["endpoint-1", "device-1"])
@pytest.mark.parametrize(
    ("command", "where"),
    [
        (f"read KEY; sh -c ': >{THERE}; {UNTIL_LOOKED}; :' $KEY", "cmdline"),
        (f"read KEY; export KEY; sh -c ': >{THERE}; {UNTIL_LOOKED}; :'", "environ"),
    ],
    ids=["cmdline", "environ"],
)
def test_a_secret_in_a_process_of_a_host_is_found(fleet, search, host, command, where):
    with search.watching() as sampler:
        looked_at(sampler, fleet[host], command, text_input=f"{DIGITS}\n")
    assert {(leak.kind, leak.where) for leak in search.leaks()} == {("process", f"{host}: {where}")}


def test_a_secret_in_a_process_that_a_service_hides_is_found(fleet, search):
    host = fleet["endpoint-1"]
    command = (
        "systemd-run --quiet --wait --unit=hidden -p Type=exec -p PrivateNetwork=yes -p PrivateTmp=yes -p DynamicUser=yes "
        f"-p PrivateUsers=yes -p StandardInput=null --setenv=KEY={DIGITS[:40]} sh -c '{UNTIL_LOOKED}'"
    )
    with search.watching() as sampler:
        looked_at(
            sampler, host, command, there=lambda: host.ssh("systemctl is-active hidden || :") == "active\n"
        )
    assert any(leak.where == "endpoint-1: environ" for leak in search.leaks())


def test_a_secret_in_a_process_of_the_controller_is_found(fleet, search, tmp_path):
    play = tmp_path / "play.yml"
    play.write_text(
        "- {hosts: device-1, gather_facts: false, tasks: [{name: Wait, ansible.builtin.pause: {seconds: 1}}]}"
    )
    with search.watching():
        fleet.playbook(play, "--extra-vars", f"master='{MASTER}'")
    assert ("master", "process") in kinds(search)


def test_a_secret_in_a_file_that_is_gone_again_is_found(fleet, search):
    places = {"endpoint-1": "/var/tmp", "device-1": "/root/.ansible"}  # noqa: S108 - of a host, on purpose
    mine = fleet.folder / "tmp/ansible-local/x"
    mine.parent.mkdir(parents=True, exist_ok=True)
    with search.watching() as sampler:
        mine.write_text(DIGITS)
        for host, folder in places.items():
            command = f"mkdir -p {folder}; cat > {folder}/x; : >{THERE}; {UNTIL_LOOKED}; rm {folder}/x"
            looked_at(sampler, fleet[host], command, text_input=DIGITS)
        mine.unlink()
    assert {leak.where for leak in search.leaks() if leak.kind == "temporary"} == {
        "controller: /tmp/ansible-local/x",
        *(f"{host}: {folder}/x" for host, folder in places.items()),
    }


@pytest.mark.parametrize(
    ("host", "path"),
    [("endpoint-1", "/etc/left"), ("endpoint-1", "/run/left"), ("device-1", "/etc/dtls/left")],
)
def test_a_secret_in_a_file_of_a_host_is_found(fleet, search, host, path):
    fleet[host].ssh(f"mkdir -p /etc/dtls; cat > {path}", text_input=f"x {DIGITS.upper()}")
    assert {(leak.kind, leak.where) for leak in search.leaks()} == {("file", f"{host}: {path}")}
    fleet[host].ssh(f"rm {path}")
    search.check()


def test_a_file_that_may_hold_it_may_do_so_on_its_own_host_alone(fleet, search):
    fleet["endpoint-1"].ssh("mkdir -p /etc/dtls; cat > /etc/dtls/psk", text_input=DIGITS)
    assert [str(leak) for leak in search.leaks()] == ["key (written out): file: endpoint-1: /etc/dtls/psk"]
    fleet["endpoint-1"].ssh("rm /etc/dtls/psk")


def test_a_secret_among_the_cached_facts_is_found(fleet, search, tmp_path):
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: device-1\n  gather_facts: false\n  tasks:\n"
        f"    - {{name: Set it, ansible.builtin.set_fact: {{cacheable: true, key: '{DIGITS}'}}}}\n"
    )
    fleet.playbook(play, **search.environment())
    assert kinds(search) == {("key", "controller")}
    (leak,) = search.leaks()
    assert "/facts/" in leak.where
    Path(leak.where).unlink()
    search.check()


def test_a_secret_in_the_journal_is_found_also_in_a_field_of_its_own(fleet, search):
    fleet["endpoint-1"].ssh(
        "logger --journald", text_input=f"MESSAGE=harmless\nKEY={base64.b64encode(KEY).decode()}\n"
    )
    end = time.monotonic() + 30
    while not (found := search.leaks()) and time.monotonic() < end:
        time.sleep(0.05)
    assert {(leak.secret, leak.kind) for leak in found} == {("key", "journal")}


def test_a_secret_on_the_console_of_a_device_is_found(fleet):
    key = secrets.token_bytes(32)
    fleet["device-1"].ssh("cat >> /proc/1/fd/1", text_input=f"{key.hex()}\n")
    assert kinds(Search(fleet, secrets=[Secret("console", key)])) == {("console", "journal")}
