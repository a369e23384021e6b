"""Devices that are other programs, talking to a running ``dtls-endpoint serve``."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.interop.process import PeerProcess, running, wait_until
from tests.interop.stacks import GNUTLS, LIBCOAP_OPENSSL, OPENSSL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.interop.conftest import Meeting
    from tests.interop.stacks import Stack

pytestmark = pytest.mark.interop

COAP_GET_CODE = 0x01

type Started = tuple[PeerProcess, int]


def facts(endpoint: PeerProcess) -> list[dict[str, Any]]:
    """The JSON lines that it has printed and ended with a newline."""
    return [json.loads(line) for line in endpoint.output.splitlines(keepends=True) if line.endswith("\n")]
