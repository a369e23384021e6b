"""``dtls-endpoint serve``: run the endpoint."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import trio

from endpoint import check
from endpoint.admin import AdminError
from endpoint.commands.common import Commands, add_config, complain
from endpoint.forward import ForwardError
from endpoint.keystore import StoreStartError
from endpoint.logs import make_log
from endpoint.operations import OperationsError
from endpoint.service import Service
from endpoint.state.exclusive import StateFileError
from endpoint.systemd import Supervision, SupervisionError
from endpoint.udp import ListenError

if TYPE_CHECKING:
    import argparse


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="run the endpoint",
        description="Run the endpoint until SIGTERM or SIGINT. Facts go to standard error, one JSON line "
        'each, "listening" first. SIGHUP reads the credentials again, all or nothing. SIGTERM hands associations over '
        "to the next run, where [state] says how; SIGINT tells every device that this is the end.",
    )
    add_config(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        config, credentials = check.load_all(options.config)
        supervision = Supervision.taken_from(os.environ)
    except check.NotRightError as error:
        return complain(error.problems)
    except SupervisionError as error:
        return complain([str(error)])
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
    except StoreStartError as error:
        event, what = "key_store_failed", f"{options.config}: {error}"
    except StateFileError as error:
        event, what = "state_failed", str(error)
    except AdminError as error:
        event, what = "admin_failed", str(error)
    except OperationsError as error:
        event, what = "metrics_failed", f"{options.config}: {error}"
    except Exception:  # noqa: BLE001 - the last words go into the log, as one line like all others
        log.critical("crashed", traceback=traceback.format_exc())
        return 1
    log.error(event, error=what)
    return 1
