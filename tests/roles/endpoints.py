"""An endpoint in the lab: deployed by the role, with devices that have keys."""

import re

from tests.lab.fleet import PLAYBOOKS
from tests.lab.wheelhouse import wheelhouse

PROGRAM = "/opt/dtls-endpoint/current/bin/dtls-endpoint"
CONFIG = "/etc/dtls-endpoint/endpoint.toml"
AS_USER = 'su -s /bin/sh -c \'exec "$0" "$@"\' -- dtls-endpoint'
PATIENCE = 30
"""Seconds within which a release has to serve, on a busy machine."""
PROCESS = {
    "systemd": "systemctl show -p MainPID --value dtls-endpoint.service",
    "busybox": "cat /run/dtls-endpoint/pid",
}
"""What prints the number of the process that serves."""
SHORT = 6
"""The same of one that never will."""


def variables(suite="bookworm", *, version=None, patch=None, config=None, **more):
    """What an inventory says of endpoints."""
    return {
        "dtls_endpoint_wheelhouse": str(wheelhouse(suite, version=version, patch=patch)),
        "dtls_endpoint_config": config or {"forward": {"kind": "echo"}},
        "dtls_endpoint_health_timeout": PATIENCE,
        **more,
    }


def play(
    fleet,
    name="deploy",
    *arguments,
    status=0,
    suite="bookworm",
    version=None,
    patch=None,
    config=None,
    **more,
):
    """Run a playbook of ours with these variables; its output."""
    told = variables(suite, version=version, patch=patch, config=config, **more)
    if "--check" not in arguments:
        # For deployed(): what a run that failed has left is not known.
        fleet.last = None
    output = fleet.playbook(
        PLAYBOOKS / f"{name}.yml", *arguments, inventory=fleet.inventory(**told), status=status, timeout=180
    )
    if status == 0 and not arguments:
        fleet.last = told
    return output


def deployed(fleet, suite="bookworm", **told):
    """Deploy this endpoint, by default the plain one, unless it was the last that was; its first host."""
    if getattr(fleet, "last", None) != variables(suite, **told):
        play(fleet, suite=suite, **told)
    return fleet.endpoints[0]


def counts(output, host="endpoint-1"):
    """What the recap says of a host, by its words."""
    line = re.findall(rf"^{host} +: (.+)$", output, re.MULTILINE)[-1]
    return {word: int(number) for word, number in re.findall(r"(\w+)=(\d+)", line)}


def give_keys(fleet):
    """Each device a key, made by the endpoint's program and put into the device's key file; the keys."""
    keys = {}
    for number, device in enumerate(fleet.devices):
        endpoint = fleet.endpoints[number % len(fleet.endpoints)]
        line = endpoint.ssh(f"{AS_USER} {PROGRAM} keys add --config {CONFIG} --reload --show {device.name}")
        identity, _, key = next(one for one in line.split() if one.startswith(f"{device.name}:")).rpartition(
            ":"
        )
        place = device.root / "etc/dtls/psk"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{identity}:{key}\n")
        place.chmod(0o600)
        keys[identity] = key
    return keys


def release(host):
    """The release that ``current`` leads to, and that which the running process is of."""
    current = host.ssh("readlink /opt/dtls-endpoint/current").strip().rpartition("/")[2]
    running = host.ssh(f"tr '\\0' '\\n' < /proc/$({PROCESS[host.kind]})/cmdline | head -n 1")
    return current, running.split("/")[4] if running.count("/") > 4 else ""


def started(host):
    """When the process that serves was started; another time = another process."""
    return host.ssh("systemctl show -p MainPID -p ExecMainStartTimestampMonotonic dtls-endpoint.service")
