"""The endpoint is restarted, gently and not, under a fleet that never stops sending: nobody notices.

What is watched: each meter has an echo of a message that it sent after each restart; the endpoint has made one
handshake for each in all its lives; and a ledger of every record that either side ever sent has
no number twice. As no datagram was dropped on the way to the meters, the ledger knows all that the endpoint
sent, also what its next life was not told of.
"""

from sansdtls import ConnectionIdPolicy
from tests.restarts.meters import Meters
from tests.restarts.service import supervised

COUNT = 10_000
"""Meters, as many as a carrier's NAT may hide. Most of the time goes into their handshakes."""
FEW = 100
"""Where the number does not matter."""
OWN_IDS = (0, 0, 0, 4, 8)
"""Lengths of the meters' own connection IDs, by turns. Most devices need none: they have one peer."""


def with_connection_id(number):
    return {"connection_id": ConnectionIdPolicy(length=OWN_IDS[number % len(OWN_IDS)])}


def begin(service, meters):
    """Start the endpoint, and have every meter connected and heard."""
    service.start()
    service.wait_until_said("READY")
    meters.connect()
    meters.hear_all()


def restart(service, meters, signal):
    """End the endpoint in the middle of a round and start it again, with the meters sending all along."""
    meters.begin_round()
    meters.stream(lambda: meters.behind <= len(meters.all) // 2)
    service.signal(signal)
    meters.stream(lambda: service.ended, up=lambda: False)
    service.start()
    meters.hear_all(up=lambda: service.has_said("READY"))
    return service.process.returncode


def test_a_kill_without_saved_state_loses_every_association(tmp_path):
    with supervised(tmp_path, FEW) as (service, target), Meters(FEW, target, with_connection_id) as meters:
        begin(service, meters)
        service.stop("SIGKILL")
        service.start()
        service.wait_until_said("READY")
        meters.say_once()
        with Meters(1, target) as newcomers:
            # Once it is answered, all that was sent before has been read.
            newcomers.connect()
            newcomers.hear_all()
        assert meters.behind == FEW
        assert service.stop() == 0
        discarded = service.facts("stopped")[-1]["statistics"]["server"]["records_discarded"]
        assert sum(discarded.values()) == FEW
