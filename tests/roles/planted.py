"""An endpoint in a booted host without the role that deploys one: this tree, its libraries, and a plain unit."""

import json
import secrets
import shutil
import sysconfig
from pathlib import Path

from tests.lab.fleet import REPOSITORY

CONFIG_FILE = "etc/dtls-endpoint/endpoint.toml"
HOME = "opt/dtls-endpoint/current"
LIBRARIES = (
    "OpenSSL", "attr", "attrs", "cattr", "cattrs", "cffi", "_cffi_backend*.so", "cryptography", "exceptiongroup", "idna",
    "outcome", "sniffio", "sortedcontainers", "structlog", "trio", "typing_extensions.py", "tomli*", "*__mypyc*.so",
    "rich", "pygments", "markdown_it", "mdurl", "prometheus_client", "pcapng", "coredis", "anyio", "wrapt", "deprecated",
)  # fmt: skip
PROGRAM = f"""#!/bin/sh
PYTHONPATH=/{HOME}/lib exec python3 -m endpoint "$@"
"""
CONFIG = """[credentials]
psk_file = "psk.d"
[listen]
address = "0.0.0.0"
[forward]
kind = "echo"
[state]
admin_socket = "/run/dtls-endpoint/admin.sock"
usage_file = "/var/lib/dtls-endpoint/usage.db"
"""
UNIT = f"""[Service]
Type=notify
NotifyAccess=all
User=dtls-endpoint
Group=dtls-endpoint
StateDirectory=dtls-endpoint
RuntimeDirectory=dtls-endpoint
ExecStart=/{HOME}/bin/dtls-endpoint serve --config /{CONFIG_FILE}
"""


def plant(host, *, start=True):
    """Install and start it; returns when it serves."""
    lib = host.root / HOME / "lib"
    lib.mkdir(parents=True)
    for package in ("endpoint", "sansdtls"):
        shutil.copytree(REPOSITORY / package, lib / package)
    packages = Path(sysconfig.get_paths()["purelib"])
    for pattern in LIBRARIES:
        for found in packages.glob(pattern):
            if found.is_dir():
                shutil.copytree(found, lib / found.name)
            else:
                shutil.copy2(found, lib / found.name)
    _put(host, f"{HOME}/bin/dtls-endpoint", PROGRAM, 0o755)
    _put(host, CONFIG_FILE, CONFIG, 0o644)
    _put(host, "etc/dtls-endpoint/psk.d/probe.txt", f"probe:{secrets.token_hex(32)}\n", 0o600)
    _put(host, "etc/systemd/system/dtls-endpoint.service", UNIT, 0o644)
    host.ssh(
        "useradd --system --home-dir /var/lib/dtls-endpoint dtls-endpoint && "
        "chown -R dtls-endpoint: /etc/dtls-endpoint && chmod 700 /etc/dtls-endpoint/psk.d && systemctl daemon-reload"
        + (
            " && { systemctl start dtls-endpoint.service || { journalctl -u dtls-endpoint.service >&2; false; }; }"
            if start
            else ""
        )
    )


def _put(host, name, text, mode):
    place = host.root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def serve(host):
    """Start the service anew, with no memory of who has used which key."""
    host.ssh(
        "systemctl stop dtls-endpoint.service && rm -f /var/lib/dtls-endpoint/usage.db* && "
        "systemctl start dtls-endpoint.service"
    )


def give_keys(host, keys, *, reload=True):
    """Have the endpoint accept these, ``{identity: [current, next]}``, and no others of devices."""
    lines = "".join(f"{identity}:{key.hex()}\n" for identity, value in keys.items() for key in value)
    host.ssh(
        "umask 077 && cat > /etc/dtls-endpoint/psk.d/devices.txt && chown dtls-endpoint: /etc/dtls-endpoint/psk.d/devices.txt"
        + (f" && /{HOME}/bin/dtls-endpoint reload --wait --config /{CONFIG_FILE}" if reload else ""),
        text_input=lines,
    )


def accepted(host, identity):
    """Fingerprints of the keys that the running service accepts for ``identity``."""
    told = host.ssh(f"/{HOME}/bin/dtls-endpoint status --identities --json --config /{CONFIG_FILE}")
    for line in told.splitlines():
        entry = json.loads(line)
        if entry["identity"] == identity:
            return entry["keys"]
    return []
