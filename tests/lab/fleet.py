"""A whole fleet: the network, the hosts, an inventory of them, and Ansible to run on it."""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.lab import clean, images, recorder
from tests.lab.controllers import controller as controller_named
from tests.lab.hosts import BusyboxHost, Device, SystemdHost
from tests.lab.network import Network

REPOSITORY = Path(__file__).parents[2]
PLAYBOOKS = REPOSITORY / "playbooks"
FIRST_ENDPOINT, FIRST_DEVICE = 11, 21

_numbers = itertools.count()


class Fleet:
    """Use it in a ``with`` statement; all hosts are up inside, and gone after.

    ``suite`` is the Debian of the endpoints, ``init`` what boots them; ``controller`` the Ansible that manages them, a name or an object of
    :mod:`tests.lab.controllers`.
    """

    def __init__(self, *, endpoints=2, devices=3, suite="bookworm", init="systemd", controller="here"):
        images.require()
        self._counts = endpoints, devices
        self._endpoint = {"systemd": SystemdHost, "busybox": BusyboxHost}[init]
        self.suite = suite
        self.controller = controller_named(controller)
        self._stem = f"lab-{os.getpid()}-{next(_numbers)}"
        self._undo = contextlib.ExitStack()
        self.hosts = {}

    def __enter__(self):
        clean.leftovers()
        with contextlib.ExitStack() as undo:
            self.folder = Path(tempfile.mkdtemp(prefix="lab-"))
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            undo.enter_context(clean.claim(self._stem, self.folder))
            self.network = undo.enter_context(Network(self._stem))
            endpoints, devices = self._counts
            kinds = [
                *((f"endpoint-{n}", FIRST_ENDPOINT + n - 1, self._endpoint) for n in range(1, endpoints + 1)),
                *((f"device-{n}", FIRST_DEVICE + n - 1, Device) for n in range(1, devices + 1)),
            ]
            for name, number, kind in kinds:
                image = images.device() if kind is Device else images.debian(self.suite)
                host = kind(name, number, network=self.network, folder=self.folder, image=image)
                undo.callback(host.close)
                self.hosts[name] = host
            for host in self.hosts.values():
                host.boot()
            for host in self.hosts.values():
                host.wait_until_up()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def __getitem__(self, name):
        return self.hosts[name]

    @property
    def endpoints(self):
        """The hosts that endpoints are deployed to."""
        return [host for host in self.hosts.values() if host.kind != "device"]

    @property
    def devices(self):
        """The hosts without Python."""
        return [host for host in self.hosts.values() if host.kind == "device"]

    def inventory(self, **variables):
        """Write an inventory of all hosts, with ``variables`` for all of them; its file."""
        common = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(images.ssh_key()),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            **variables,
        }

        def group(hosts, **own):
            members = {host.name: {"ansible_host": host.address} for host in hosts}
            return {"hosts": members, "vars": own} if own else {"hosts": members}

        told = {
            "all": {
                "vars": common,
                "children": {
                    "dtls_endpoints": group(self.endpoints, ansible_python_interpreter="/usr/bin/python3"),
                    "dtls_devices": group(self.devices),
                },
            }
        }
        place = self.folder / "inventory.json"
        place.write_text(json.dumps(told, indent=1))
        return place

    def vault(self, **values):
        """Arguments for a playbook that give it ``values`` out of an encrypted file, as an operator keeps secrets."""
        password, place = self.folder / "vault-password", self.folder / "vault.yml"
        for path, text in ((password, secrets.token_hex(16)), (place, json.dumps(values))):
            path.touch(mode=0o600)
            path.write_text(text)
        process = self.start("ansible-vault", "encrypt", "--vault-password-file", password, place)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return ["--vault-password-file", str(password), "--extra-vars", f"@{place}"]

    def environment(self):
        """What Ansible is started with: our roles, no configuration of this machine, one short-lived control folder."""
        control, temporary = self.folder / "control", self.folder / "tmp"
        for folder in (control, temporary):
            folder.mkdir(exist_ok=True)
        return {
            "PATH": f"{self.controller.path}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "TMPDIR": str(temporary),
            "ANSIBLE_ROLES_PATH": str(REPOSITORY / "roles"),
            "ANSIBLE_CALLBACK_PLUGINS": str(recorder.PLUGINS),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
            "ANSIBLE_DEPRECATION_WARNINGS": "True",
            "ANSIBLE_NOCOLOR": "True",
            "ANSIBLE_RETRY_FILES_ENABLED": "False",
            # Half a second less for each module.
            "ANSIBLE_PIPELINING": "True",
        }

    def start(self, program, *arguments, **environment):
        """Start one of Ansible's programs in the controller's namespace; the process, its output piped as text."""
        return subprocess.Popen(
            self.controller.words(self.network.controller, program, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=self.environment() | environment,
            start_new_session=True,
        )

    def colleague(self, name):
        """Environment of another operator: connections of their own, as on a machine of their own.

        Two programs that share connections of OpenSSH (ControlMaster=auto) lose one now and then when both make the first.
        """
        control = self.folder / f"control-{name}"
        control.mkdir(exist_ok=True)
        return {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(control)}

    def start_playbook(self, playbook, *arguments, inventory=None, **environment):
        """Start ansible-playbook, as :meth:`start` does."""
        if "ANSIBLE_ROLES_PATH" in environment and Path(playbook).parent == PLAYBOOKS:
            # Roles beside a playbook would come before those that are asked for.
            playbook = shutil.copy(playbook, self.folder)
        return self.start(
            "ansible-playbook", "-i", inventory or self.inventory(), playbook, *arguments, **environment
        )

    def playbook(
        self, playbook, *arguments, inventory=None, status=0, timeout=300, record=False, **environment
    ):
        """Run a playbook to its end; its output, or with ``record`` what each task did.

        ``status`` is what it has to end with; None: as it likes, and the record tells.
        """
        place = self.folder / f"record-{next(_numbers)}.jsonl"
        process = self.start_playbook(
            playbook, *arguments, inventory=inventory, **{"LAB_RECORD": str(place)} | environment
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"{playbook} does not end within {timeout:g} s:\n{output}") from None
        recorded = recorder.read(place, output, process.returncode)
        assert status in {None, process.returncode}, f"status {process.returncode}, not {status}:\n{output}"
        return recorded if record else output
