"""A fleet that the role dtls_psk gives keys: what its inventory says, and what its endpoints and devices have of them."""

import json
import os
import secrets
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

from tests.lab.fleet import REPOSITORY
from tests.roles.endpoints import CONFIG, PROGRAM, variables
from tests.roles.plays import load

KEYS = load("module_utils/dtls_keys")
ROTATE, REVOKE = REPOSITORY / "playbooks/rotate.yml", REPOSITORY / "playbooks/revoke.yml"
KEY_FILE, PREVIOUS = "/etc/dtls/psk", "/etc/dtls/psk.previous"
RELOAD = "touch /run/sensor.reload"
ENDPOINT_FILE = "/etc/dtls-endpoint/psk.d/devices.txt"
GENERATIONS = range(9)
"""Those that a test may mean."""


def at_once(hosts, what):
    """Do it at all hosts, and return what came of it, in their order."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(what, hosts))


def deploy(fleet):
    """Endpoints by the role, all at once: what comes one after the other is shown elsewhere."""
    place = fleet.folder / "deploy.json"
    place.write_text(
        json.dumps([{"hosts": "dtls_endpoints", "gather_facts": False, "roles": ["dtls_endpoint"]}])
    )
    fleet.playbook(place, inventory=fleet.inventory(**variables(fleet.suite)))


def forget(host):
    """Start the service anew, with no memory of who has used which key."""
    host.ssh(
        "systemctl stop dtls-endpoint.service && rm -rf /var/lib/dtls-endpoint/* && systemctl start dtls-endpoint.service"
    )


def stop(host):
    """End the service, and have nothing start it again."""
    host.ssh("systemctl stop dtls-endpoint.socket dtls-endpoint.service")


def start(host):
    """Undo :func:`stop`."""
    host.ssh("systemctl start dtls-endpoint.socket dtls-endpoint.service")


def accepted(host, identity):
    """Fingerprints of the keys that the running service accepts for ``identity``."""
    told = host.ssh(f"{PROGRAM} status --identities --json --config {CONFIG}")
    entries = [json.loads(line) for line in told.splitlines()]
    return next((entry["keys"] for entry in entries if entry["identity"] == identity), [])


class Keys:
    """What the inventory says, and the keys that this means. All devices have the same master key, another for each object."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.devices = [device.name for device in fleet.devices]
        self.master = secrets.token_hex(32)
        self.common = {
            "dtls_psk_master": self.master,
            "dtls_psk_device_reload": RELOAD,
            "dtls_psk_confirm_timeout": 60,
            "dtls_psk_confirm_interval": 1,
            "ansible_timeout": 3,
            # A connection that is kept open would wait for a host that is gone until TCP gives up.
            "ansible_ssh_extra_args": "-o ServerAliveInterval=2 -o ServerAliveCountMax=3",
        }

    def key(self, device, generation):
        return KEYS.derive(bytes.fromhex(self.master), device, generation, 32)

    def fingerprint(self, device, generation):
        return KEYS.fingerprint(self.key(device, generation))

    # --- runs ---------------------------------------------------------------------------------------

    def inventory(self, generation, of=None, **more):
        """Its file; ``of``: variables of single devices."""
        place = self.fleet.inventory(**{"dtls_psk_generation": generation, **self.common, **more})
        told = json.loads(place.read_text())
        for device, own in (of or {}).items():
            told["all"]["children"]["dtls_devices"]["hosts"][device].update(own)
        place.write_text(json.dumps(told))
        return place

    def run(self, *arguments, inventory, status=0, playbook=ROTATE, environment=()):
        """Run the playbook; its record."""
        return self.fleet.playbook(
            playbook, *arguments, inventory=inventory, status=status, record=True, timeout=240, **dict(environment)
        )  # fmt: skip

    def rotate(self, generation, *arguments, status=0, playbook=ROTATE, environment=(), **more):
        """Run the playbook with this in the inventory; its record."""
        place = self.inventory(generation, **more)
        return self.run(
            *arguments, inventory=place, status=status, playbook=playbook, environment=environment
        )

    def phases(self, *names, **keywords):
        """A play of entry points of the role, for :meth:`rotate`."""
        tasks = [
            {
                "name": f"Do {name}",
                "ansible.builtin.import_role": {"name": "dtls_psk", "tasks_from": f"{name}.yml"},
            }
            for name in names
        ]
        place = self.fleet.folder / "phases.json"
        place.write_text(
            json.dumps([{"hosts": "dtls_devices", "gather_facts": False, "tasks": tasks} | keywords])
        )
        return place

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

    # --- hosts --------------------------------------------------------------------------------------

    def begin(self, *generations):
        """All endpoints accept these generations, and the devices have the first one; none: nobody has any."""
        self.give(*generations)
        for device in self.devices:
            root = self.fleet[device].root
            shutil.rmtree(root / "etc/dtls", ignore_errors=True)
            if generations:
                (root / "etc/dtls").mkdir(mode=0o700)
                (root / KEY_FILE[1:]).touch(0o600)
                (root / KEY_FILE[1:]).write_text(f"{device}:{self.key(device, generations[0]).hex()}\n")

    def give(self, *generations, reload=True):
        """Have each endpoint accept these, the current one and the next, and no other of devices."""
        lines = "".join(
            f"{name}:{self.key(name, one).hex()}\n" for name in self.devices for one in generations
        )
        command = f"umask 077 && cat > {ENDPOINT_FILE} && chown dtls-endpoint: {ENDPOINT_FILE}" + (
            f" && {PROGRAM} reload --wait --config {CONFIG}" if reload else ""
        )
        at_once(self.fleet.endpoints, lambda host: host.ssh(command, text_input=lines))

    def accepted(self, device):
        """Generations that each endpoint accepts for a device."""
        names = {self.fingerprint(device, number): number for number in GENERATIONS}
        told = at_once(self.fleet.endpoints, lambda host: accepted(host, device))
        return [[names.get(one, one) for one in keys] for keys in told]

    def on(self, device, path=KEY_FILE):
        """The generation in a file of a device; None if there is no file, and what it says if it is another key."""
        try:
            line = (self.fleet[device].root / path[1:]).read_text()
        except FileNotFoundError:
            return None
        lines = {f"{device}:{self.key(device, number).hex()}\n": number for number in GENERATIONS}
        return lines.get(line, line)
