"""The command line: ``dtls-endpoint serve | check | handoff | connect``.

Exit status 0: done. 1: it failed (port taken, no connection). 2: the command line or a configuration
or key file is wrong; each mistake is one line on standard error. 130: interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from endpoint import check, connect
from endpoint.admin import AdminError, ask
from endpoint.config import DEFAULT_PORT, ConfigFileError, load_config
from endpoint.device import Device, DeviceError
from endpoint.forward import ForwardError
from endpoint.logs import make_log
from endpoint.saved import SavedSession
from endpoint.service import Service
from endpoint.state.exclusive import StateFileError
from endpoint.structure import cipher_suite
from endpoint.systemd import Supervision, SupervisionError
from endpoint.text import show_text
from endpoint.udp import ListenError
from endpoint.verification import wall_clock
from sansdtls import DEFAULT_CIPHER_SUITES, CipherSuite, ConfigError, ConnectionIdPolicy, RetransmitPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PROGRAM = "dtls-endpoint"
WRONG_USE = 2
HANDOFF_PATIENCE = 60.0
"""Seconds for a service to hand over; 100,000 associations take less than 20."""
INTERRUPTED = 130
"""What a shell makes of SIGINT: 128 + 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit status."""
    _keep_standard_descriptors()
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseExceptionGroup as group:
        # trio wraps it where it struck inside a nursery.
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        status = INTERRUPTED
    except BrokenPipeError:
        status = 1
    return status if _flushed() else status or 1


def _flushed() -> bool:
    """Flush standard output; False = nobody reads it, and the interpreter must not try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _keep_standard_descriptors() -> None:
    """Put /dev/null where a standard descriptor is closed, or the next socket would become the output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Terminate DTLS for a fleet of devices.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or configuration.",
    )
    try:
        version = importlib.metadata.version("sansdtls")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_check(commands)
    _add_handoff(commands)
    _add_connect(commands)
    return parser


def _complain(lines: Iterable[str]) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return WRONG_USE


# --- serve, check and handoff -------------------------------------------------------------------------


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration, TOML")


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the endpoint",
        description="Run the endpoint until SIGTERM or SIGINT. Facts go to standard error, one JSON line "
        'each, "listening" first. SIGHUP reads the credentials again, all or nothing. SIGTERM hands associations over '
        "to the next run, where [state] says how; SIGINT tells every device that this is the end.",
    )
    _add_config(parser)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        config, credentials = check.load_all(options.config)
        supervision = Supervision.taken_from(os.environ)
    except check.NotRightError as error:
        return _complain(error.problems)
    except SupervisionError as error:
        return _complain([str(error)])
    if sys.stderr is None:
        return 1  # it was closed, and there is nowhere to say anything
    log = make_log(sys.stderr.buffer, level=config.log.level)
    service = Service(config, credentials=credentials, log=log, supervision=supervision)
    try:
        return trio.run(service.run)
    except ListenError as error:
        event, what = "listen_failed", f"{options.config}: {error}"
    except SupervisionError as error:
        event, what = "listen_failed", str(error)
    except ForwardError as error:
        event, what = "forward_failed", str(error)
    except StateFileError as error:
        event, what = "state_failed", str(error)
    except AdminError as error:
        event, what = "admin_failed", str(error)
    except Exception:  # noqa: BLE001 - the last words go into the log, as one line like all others
        log.critical("crashed", traceback=traceback.format_exc())
        return 1
    log.error(event, error=what)
    return 1


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "check",
        help="check a configuration and its credentials",
        description="Check a configuration file and the keys, certificates, revocation lists and saved associations "
        "that it names, with permissions and dates, and say what the endpoint would do. Touches no network. Exit status 0 if all is right, else 2.",
    )
    _add_config(parser)
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    try:
        config, credentials = check.load_all(options.config)
    except check.NotRightError as error:
        return _complain(error.problems)
    now = wall_clock()
    mistakes = [*credentials.lapses(now), *check.state_mistakes(options.config, config.state)]
    if mistakes:
        return _complain(mistakes)
    print("\n".join(check.describe(options.config, config, credentials, now)), flush=True)
    return 0


def _add_handoff(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "handoff",
        help="have the running service hand over to the next one, and end",
        description="Have the running service hand all associations over to the next one, as SIGTERM would, and end. "
        "Needs state.admin_socket. Exit status 1 if no service answers, or it has nothing to hand over to and goes on.",
    )
    _add_config(parser)
    parser.set_defaults(run=_handoff)


def _handoff(options: argparse.Namespace) -> int:
    where = show_text(str(options.config))
    try:
        socket = load_config(options.config).state.admin_socket
    except ConfigFileError as error:
        return _complain(error.problems)
    if socket is None:
        return _complain([f'{where}: state.admin_socket: missing; remedy: add  admin_socket = "admin.sock"'])
    try:
        answer = ask(socket, "handoff", seconds=HANDOFF_PATIENCE)
    except AdminError as error:
        print(f"{PROGRAM} handoff: {error}", file=sys.stderr)
        return 1
    if not answer.get("ok"):
        print(f"{PROGRAM} handoff: {show_text(str(answer.get('error')))}", file=sys.stderr)
        return 1
    count, to = answer.get("associations"), show_text(str(answer.get("to")))
    print(f"handed over {count} {'association' if count == 1 else 'associations'} to {to}", flush=True)
    return 0


# --- connect ------------------------------------------------------------------------------------------


def _add_connect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "connect",
        help="connect as a device",
        description="Connect as a device, send messages (or the lines of standard input) and print each "
        "reply as one line. Exit status 1, with the cause, if there is no connection.",
    )
    parser.add_argument(
        "target",
        metavar="HOST[:PORT]",
        type=_target,
        help=f"where to; [::1]:5684 for IPv6; port {DEFAULT_PORT} if none is given",
    )
    _add_credentials(parser)
    parser.add_argument(
        "--message",
        action="append",
        metavar="TEXT",
        help="send this, may be repeated; default: lines of stdin",
    )
    parser.add_argument(
        "--cipher-suite",
        action="append",
        type=_suite,
        metavar="NAME",
        help="offer only this, may be repeated; one of " + ", ".join(suite.name for suite in CipherSuite),
    )
    parser.add_argument("--mtu", type=int, metavar="N", help="largest datagram sent, in bytes")
    parser.add_argument(
        "--connection-id",
        action="store_true",
        help="offer connection IDs (RFC 9146), so that the server finds us when our address changes",
    )
    parser.add_argument(
        "--keep-alive",
        type=_seconds,
        metavar="S",
        help="send an empty datagram after so many seconds without sending, for a NAT on the way",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=20.0,
        metavar="S",
        help="give up the handshake after so many seconds (default 20; a wrong key shows after about 7)",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="stop waiting for replies after so many seconds of silence (default 2)",
    )
    parser.set_defaults(run=_connect)


def _add_credentials(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("who we are")
    own.add_argument("--identity", metavar="ID", help="PSK identity; needs --psk-file")
    own.add_argument(
        "--psk-file",
        type=Path,
        metavar="FILE",
        help="file with a line identity:hexkey; for an identity with two lines the first is used",
    )
    own.add_argument(
        "--cert", type=Path, metavar="FILE", help="our certificate, PEM, intermediates after it; needs --key"
    )
    own.add_argument(
        "--key", type=Path, metavar="FILE", help="private key of --cert; alone: shown as a raw public key"
    )
    server = parser.add_argument_group("whom we expect, where that is not proved by the PSK")
    server.add_argument(
        "--ca", type=Path, metavar="FILE", help="CAs, PEM: the server must have a certificate of one"
    )
    server.add_argument(
        "--server-name", metavar="NAME", help="the name that the certificate must have; default: HOST"
    )
    server.add_argument(
        "--raw-public-key", type=Path, metavar="FILE", help="the server's public key, PEM (RFC 7250)"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="resume the session kept in FILE, if there is one, and keep this one there (mode 0600)",
    )


def _connect(options: argparse.Namespace) -> int:
    host, port = options.target
    device = Device(
        host=host,
        identity=None if options.identity is None else os.fsencode(options.identity),
        psk_file=options.psk_file,
        certificate=options.cert,
        private_key=options.key,
        ca=options.ca,
        server_name=options.server_name,
        raw_public_key=options.raw_public_key,
    )
    saved = None if options.resume is None else SavedSession(options.resume, device.fingerprint(port))
    try:
        config = device.config(
            cipher_suites=options.cipher_suite or DEFAULT_CIPHER_SUITES,
            retransmit=RetransmitPolicy(handshake_timeout=options.timeout),
            session=None if saved is None else saved.load(),
            # Length 0: nobody changes the address that we send to, so we need none in what we get.
            connection_id=ConnectionIdPolicy(length=0) if options.connection_id else None,
            **({} if options.mtu is None else {"mtu": options.mtu}),
        )
        verify = device.verifier()
    except DeviceError as error:
        return _complain(error.problems)
    except ConfigError as error:
        field, _, what = str(error).partition(": ")
        return _complain([f"{PROGRAM} connect: --{field.rpartition('.')[2].replace('_', '-')}: {what}"])
    messages = None if options.message is None else tuple(os.fsencode(text) for text in options.message)
    request = connect.Request(
        host=host,
        port=port,
        config=config,
        verify=verify,
        saved=saved,
        messages=messages,
        keep_alive=options.keep_alive,
        timeout=options.timeout,
        wait=options.wait,
    )
    try:
        return connect.run(request)
    except connect.ConnectError as error:
        print(f"{PROGRAM} connect: {error}", file=sys.stderr)
        return 1


def _target(text: str) -> tuple[str, int]:
    try:
        return connect.parse_target(text, DEFAULT_PORT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _suite(text: str) -> CipherSuite:
    try:
        return cipher_suite(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.01 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.01 to 86400")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
