"""``dtls-endpoint connect``: be a device."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from endpoint import connect
from endpoint.commands.common import PROGRAM, Commands, complain, seconds
from endpoint.device import Device, DeviceError
from endpoint.saved import SavedSession
from endpoint.tables.listen import DEFAULT_PORT
from endpoint.values import cipher_suite
from sansdtls import DEFAULT_CIPHER_SUITES, CipherSuite, ConfigError, ConnectionIdPolicy, RetransmitPolicy


def add_to(commands: Commands) -> None:
    """Declare the command."""
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
        type=seconds,
        metavar="S",
        help="send an empty datagram after so many seconds without sending, for a NAT on the way",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=20.0,
        metavar="S",
        help="give up the handshake after so many seconds (default 20; a wrong key shows after about 7)",
    )
    parser.add_argument(
        "--wait",
        type=seconds,
        default=2.0,
        metavar="S",
        help="stop waiting for replies after so many seconds of silence (default 2)",
    )
    parser.set_defaults(run=_run)


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


def _run(options: argparse.Namespace) -> int:
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
        return complain(error.problems)
    except ConfigError as error:
        field, _, what = str(error).partition(": ")
        return complain([f"{PROGRAM} connect: --{field.rpartition('.')[2].replace('_', '-')}: {what}"])
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
