"""``make run``: a real endpoint and two simulated sensors on this machine, to look at and to connect to.

Everything is what it would be in service (keys in a file of mode 0600, DTLS over UDP, JSON lines on
standard output, the log on standard error); only the sensors are tasks of this process.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from endpoint import open_dtls
from endpoint.config import EndpointConfig
from endpoint.credentials import Credentials
from endpoint.forward import ForwardError
from endpoint.keystore.file import KeyFileError, load_psk
from endpoint.keystore.loading import LoadedCredentials
from endpoint.logs import make_log
from endpoint.service import Service
from endpoint.tables.listen import DEFAULT_PORT, Listen
from endpoint.text import json_line, show_text
from endpoint.udp import ListenError
from sansdtls import ClientConfig, ConnectionIdPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from endpoint.service import Listening

DEVICE = "demo-device"
THERMOMETER = "sensor-1"
METER = "sensor-2"
KEY_BYTES = 16
READING_INTERVAL = 1.0
"""Seconds between two readings of a sensor."""
RECONNECT_DELAY = 1.0
"""Seconds before a sensor that lost its connection tries again."""


class DemoError(Exception):
    """Why the demo cannot start."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo until Ctrl-C; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m endpoint.demo",
        description="Run an endpoint with a demo key and two simulated sensors on this machine.",
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"UDP port (default {DEFAULT_PORT})")
    parser.add_argument(
        "--directory", type=Path, default=Path("var"), help="where the keys are kept (default ./var)"
    )
    options = parser.parse_args(arguments)
    try:
        psk_file = prepare_keys(options.directory)
        return trio.run(run, psk_file, options.port)
    except DemoError as error:
        print(error, file=sys.stderr)
    except KeyFileError as error:
        print(
            *error.problems,
            "remedy: put it right, or remove it to have it made anew",
            sep="\n",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return 0  # before the service could see it
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return 0
    return 1


# --- keys ---------------------------------------------------------------------------------------------


def prepare_keys(directory: Path) -> Path:
    """The PSK file of the demo; made, with new random keys, where there is none yet."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "psk.txt"
    if not path.exists():
        _create_private(path, "".join(f"{name}:{os.urandom(KEY_BYTES).hex()}\n" for name in _NAMES))
    known = load_psk(path).keys
    missing = [name for name in _NAMES if name.encode() not in known]
    if missing:
        raise DemoError(
            f"{show_text(str(path))}: no key for {', '.join(missing)}; remove the file to have it made anew"
        )
    return path


_NAMES = (DEVICE, THERMOMETER, METER)


def _create_private(path: Path, content: str) -> None:
    """Make a file of mode 0600 that appears whole or not at all, and replaces none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
            file.write(content)
        path.hardlink_to(draft)
    finally:
        draft.unlink()


# --- the endpoint and its sensors ---------------------------------------------------------------------


async def run(psk_file: Path, port: int) -> int:
    """Serve until stopped, on ``port`` or, where that is taken, on a free one; the exit status."""
    psk = load_psk(psk_file)
    keys = psk.keys
    status = 1

    async def serve(on: int, task_status: trio.TaskStatus[Listening]) -> None:
        nonlocal status
        config = EndpointConfig(credentials=Credentials(psk_file=psk_file), listen=Listen(port=on))
        log = make_log(sys.stderr.buffer)
        credentials = LoadedCredentials(psk=psk)
        status = await Service(config, credentials=credentials, log=log).run(task_status=task_status)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        try:
            try:
                ((host, bound),) = await nursery.start(serve, port)
            except ListenError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                print(f"Port {port} is taken by another program; taking a free one.", flush=True)
                ((host, bound),) = await nursery.start(serve, 0)
        except (ForwardError, ListenError) as error:
            print(error, file=sys.stderr)
            return 1
        print(_introduction(host, bound, psk_file, keys[DEVICE.encode()][0]), flush=True)
        for name, reading in ((THERMOMETER, temperature), (METER, energy)):
            client = ClientConfig(
                psk_identity=name.encode(),
                psk_key=keys[name.encode()][0],
                connection_id=ConnectionIdPolicy(length=0),
            )
            nursery.start_soon(_sensor, host, bound, client, reading)
    return status


async def _sensor(
    host: str, port: int, config: ClientConfig, reading: Callable[[float], Mapping[str, object]]
) -> None:
    """A device: connects, sends a reading now and then, and connects again when the connection is lost."""
    while True:
        try:
            async with await open_dtls(host, port, config=config) as channel:
                while True:
                    await channel.send(json_line(reading(trio.current_time())).encode())
                    # Waiting in receive is what notices that the endpoint has closed the association.
                    with trio.move_on_after(READING_INTERVAL):
                        await channel.receive()
        except (OSError, trio.BrokenResourceError, trio.EndOfChannel):
            await trio.sleep(RECONNECT_DELAY)


def temperature(now: float) -> dict[str, object]:
    """A room through an accelerated day."""
    return {"temperature": round(21 + 3 * math.sin(now / 20), 2), "unit": "°C"}


def energy(now: float) -> dict[str, object]:
    """A meter that counts."""
    return {"energy": round(4200 + now % 100_000 / 3600, 4), "unit": "kWh"}


def _from_here(path: Path) -> str:
    """``path`` as short as it can be typed in this directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# --- what to type in the second terminal ----------------------------------------------------------------


def _introduction(host: str, port: int, psk_file: Path, key: bytes) -> str:
    target = f"{host}:{port}"
    # The program beside this interpreter; without an installation, the module.
    program = Path(sys.executable).with_name("dtls-endpoint")
    own = [_from_here(program)] if program.exists() else [_from_here(Path(sys.executable)), "-m", "endpoint"]
    connect = [
        *own, "connect", target, "--identity", DEVICE, "--psk-file", str(psk_file), "--message", "hello"
    ]  # fmt: skip
    openssl = [
        "openssl", "s_client", "-dtls1_2", "-connect", target, "-psk_identity", DEVICE, "-psk", key.hex(),
        "-cipher", "PSK-AES128-GCM-SHA256",
    ]  # fmt: skip
    gnutls = [
        "gnutls-cli", "--udp", "-p", str(port), "--priority", "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+PSK",
        "--pskusername", DEVICE, "--pskkey", key.hex(), host,
    ]  # fmt: skip
    return f"""\
The endpoint listens on {target}. Two simulated sensors are sending to it; each line below is one datagram.
Keys are in {psk_file} (mode 0600). To be a device yourself, type one of these in a second terminal:

  {shlex.join(connect)}
  {shlex.join(openssl)}
  {shlex.join(gnutls)}

openssl and gnutls-cli send each line you type. They take the key as an argument, where every user of this
machine can see it: fine for the demo's key, never for a real one. Ctrl-C ends everything.
"""


if __name__ == "__main__":
    sys.exit(main())
