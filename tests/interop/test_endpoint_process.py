"""Devices that are other programs send their readings to a running ``dtls-endpoint serve``."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.interop.identified import IDENTIFIED, said
from tests.interop.process import running, wait_until
from tests.interop.stacks import GNUTLS, LIBCOAP_GNUTLS, LIBCOAP_OPENSSL, OPENSSL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.interop.conftest import Meeting
    from tests.interop.identified import IdentifiedMeeting, IdentifiedStack
    from tests.interop.process import PeerProcess
    from tests.interop.stacks import LibCoap

pytestmark = pytest.mark.interop

ROOT = Path(__file__).parent.parent.parent
CONFIGURATION = """
[listen]
address = "127.0.0.1"
port = 0
[credentials]
psk_file = "keys.psk"
[forward]
kind = "{kind}"
"""


def lines_of(endpoint: PeerProcess) -> list[dict[str, Any]]:
    """The JSON lines printed so far, data and log alike; a line that is not yet whole is left out."""
    return [json.loads(line) for line in endpoint.output.splitlines(keepends=True) if line.endswith("\n")]


def facts(endpoint: PeerProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(endpoint) if line.get("event") == event]


def readings(endpoint: PeerProcess) -> list[dict[str, Any]]:
    return [line for line in lines_of(endpoint) if "event" not in line]


class Endpoint:
    """A running endpoint that knows ``dev1`` with the key of the hex-taking stacks, ``coap1`` with libcoap's."""

    def __init__(self, process: PeerProcess) -> None:
        self.process = process
        wait_until(
            lambda: bool(facts(process, "listening")) or process.exit_status is not None, process.__str__
        )
        assert process.exit_status is None, str(process)
        (listening,) = facts(process, "listening")
        self.port: int = listening["port"]


@pytest.fixture
def endpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    keys = tmp_path / "keys.psk"
    keys.touch(mode=0o600)
    keys.write_text(f"dev1:{OPENSSL.key.hex()}\ncoap1:{LIBCOAP_OPENSSL.key.hex()}\n", encoding="utf-8")
    configuration = tmp_path / "endpoint.toml"
    configuration.write_text(CONFIGURATION.format(kind=request.param), encoding="utf-8")
    command = [sys.executable, "-m", "endpoint", "serve", "--config", str(configuration)]
    environment = {"PYTHONPATH": str(ROOT)}
    with running(command, directory=tmp_path, name="endpoint", environment=environment) as process:
        yield Endpoint(process)


@pytest.mark.parametrize("endpoint", ["jsonl"], indirect=True)
def test_a_reading_from_openssl_comes_out_as_a_json_line(meeting: Meeting, endpoint: Endpoint):
    client = meeting.their_client(OPENSSL, endpoint.port)
    client.say("21.5")
    wait_until(
        lambda: bool(readings(endpoint.process)), lambda: f"a line from {endpoint.process} of {client}"
    )
    (reading,) = readings(endpoint.process)
    assert (reading["identity"], reading["data"]) == ("dev1", "21.5\n")


@pytest.mark.parametrize("endpoint", ["echo"], indirect=True)
def test_gnutls_cli_gets_its_echo_through_the_endpoint(meeting: Meeting, endpoint: Endpoint):
    client = meeting.their_client(GNUTLS, endpoint.port)
    client.say("21.5")
    wait_until(lambda: "21.5" in client.output, lambda: f"an echo from {endpoint.process} for {client}")


@pytest.mark.parametrize("endpoint", ["jsonl"], indirect=True)
@pytest.mark.parametrize("stack", [LIBCOAP_OPENSSL, LIBCOAP_GNUTLS], ids=str)
def test_a_reading_from_coap_client_comes_out_as_a_json_line(
    meeting: Meeting, endpoint: Endpoint, stack: LibCoap
):
    put = ["-m", "put", "-e", "21.5"]
    client = meeting.their_client(stack, endpoint.port, identity="coap1", options=put)
    wait_until(
        lambda: bool(readings(endpoint.process)), lambda: f"a line from {endpoint.process} of {client}"
    )
    reading = readings(endpoint.process)[0]
    assert reading["identity"] == "coap1"
    request = reading["data"].encode() if "data" in reading else base64.b64decode(reading["data_base64"])
    assert request.endswith(b"\xff21.5")


@pytest.mark.parametrize("endpoint", ["echo"], indirect=True)
@pytest.mark.parametrize("stack", IDENTIFIED, ids=str)
def test_a_device_that_moves_gets_its_echo_wherever_it_is(
    identified_meeting: IdentifiedMeeting, endpoint: Endpoint, stack: IdentifiedStack
):
    client = identified_meeting.their_client(stack, endpoint.port, cid="c0ffee")
    for text in ("21.5", "21.6", "21.7"):
        client.say(f"send {text}")
        wait_until(
            lambda: text in said(client, "received"),  # noqa: B023
            lambda: f"an echo from {endpoint.process} for {client}",
        )
        client.say("rebind")
    assert len(facts(endpoint.process, "connected")) == 1


@pytest.mark.parametrize("endpoint", ["jsonl"], indirect=True)
@pytest.mark.parametrize("stack", IDENTIFIED, ids=str)
def test_readings_of_a_device_that_moves_come_out_under_its_identity(
    identified_meeting: IdentifiedMeeting, endpoint: Endpoint, stack: IdentifiedStack
):
    client = identified_meeting.their_client(stack, endpoint.port, cid="")
    for text in ("21.5", "21.6", "21.7"):
        client.say(f"send {text}")
        client.say("rebind")
    wait_until(
        lambda: len(readings(endpoint.process)) == 3, lambda: f"lines from {endpoint.process} of {client}"
    )
    assert [(reading["identity"], reading["data"]) for reading in readings(endpoint.process)] == [
        ("dev1", "21.5"),
        ("dev1", "21.6"),
        ("dev1", "21.7"),
    ]
    assert len(facts(endpoint.process, "connected")) == 1


@pytest.mark.parametrize("endpoint", ["jsonl"], indirect=True)
def test_the_log_names_an_openssl_client_with_a_wrong_key(meeting: Meeting, endpoint: Endpoint):
    client = meeting.their_client(OPENSSL, endpoint.port, key=bytes(16))
    expected = OPENSSL.sees_decrypt_error
    assert expected is not None
    wait_until(lambda: expected in client.output, lambda: f"decrypt_error at {client} of {endpoint.process}")
    # The alert is on its way before the line is written.
    wait_until(lambda: "wrong_key" in endpoint.process.output, endpoint.process.__str__)
    assert '"dev1"' in endpoint.process.output
