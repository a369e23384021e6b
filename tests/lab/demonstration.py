"""``make lab``: a whole fleet is deployed, keyed, protected, given new keys and upgraded, while its devices send.

A list of steps, each a playbook of this repository with what an operator would have changed in the inventory before
it. From the moment that they have keys the devices stream numbered datagrams, and every step is charged with the associations
and handshakes that it cost. What a step printed is in ``var/lab/last``.
"""

import argparse
import contextlib
import secrets
import shlex
import sys
import time
from collections.abc import Callable

import attrs
from rich.console import Console
from rich.table import Table

from endpoint.keystore.fingerprint import fingerprint
from tests.lab import images
from tests.lab.fleet import PLAYBOOKS, Fleet
from tests.lab.recorder import Record
from tests.lab.traffic import KEY_FILE, Streams
from tests.lab.wheelhouse import wheelhouse

LOGS = images.BUILD / "last"
SECRETS = {"vault_dtls_psk_master": lambda: secrets.token_hex(32)}
"""What the operator has in a vault."""
ALWAYS = {
    "dtls_psk_master": "{{ vault_dtls_psk_master | default('') }}",
    "dtls_psk_device_reload": "touch /run/sensor.reload",
    "dtls_endpoint_config": {"forward": {"kind": "echo"}},
}
"""What stands in the inventory from the beginning."""
WIDTH = 132
STEP_TIME = 900
"""Seconds after which a playbook is ended."""
FEW = 20
"""Datagrams of each device that have to come back after a step: what it broke is then seen in its own line."""


class Operator:
    """Who changes a line of the inventory, and runs a playbook."""

    def __init__(self, fleet):
        self.fleet = fleet
        self._variables = dict(ALWAYS)
        self.secrets = {name: make() for name, make in SECRETS.items()}
        self._vault = fleet.vault(**self.secrets)

    def play(self, playbook, *arguments, changes=(), status=0, **environment):
        """Run one with ``changes`` of variables, which stay; its record."""
        self._variables |= dict(changes)
        inventory = self.fleet.inventory(**self._variables)
        return self.fleet.playbook(
            playbook,
            *self._vault,
            *arguments,
            inventory=inventory,
            record=True,
            status=status,
            timeout=STEP_TIME,
            **environment,
        )


def _release(fleet, **how):
    return str(wheelhouse(fleet.suite, **how))


@attrs.frozen
class Step:
    """A playbook, and what is changed in the inventory before it."""

    name: str
    playbook: str
    changes: Callable[[Fleet], dict] = lambda _fleet: {}


STEPS = (
    Step("deploy", "deploy.yml", lambda fleet: {"dtls_endpoint_wheelhouse": _release(fleet)}),
    Step("provision", "rotate.yml", lambda _fleet: {"dtls_psk_generation": 1}),
    Step("firewall", "firewall.yml"),
    Step("rotate", "rotate.yml", lambda _fleet: {"dtls_psk_generation": 2}),
    Step(
        "upgrade", "upgrade.yml", lambda fleet: {"dtls_endpoint_wheelhouse": _release(fleet, version="0.1.1")}
    ),
)


@attrs.define
class Outcome:
    """What a step came to."""

    step: Step
    result: str = "done"
    """Or ``failed``, or ``missing``."""
    why: str = ""
    seconds: float = 0.0
    changed: dict[str, int] = attrs.Factory(dict)
    """Of each host, how many tasks changed something."""
    traffic: dict[str, int] = attrs.Factory(dict)
    """What was counted while it ran; empty if nobody was sending."""

    @property
    def good(self):
        """Whether it did what it should, and nothing was lost."""
        return self.result == "done" and not self.traffic.get("ended") and not self.traffic.get("failed")


class Demonstration:
    """Runs the steps on a fleet that is up; use it in a ``with`` statement, so that the devices stop in the end."""

    def __init__(self, fleet, *, playbooks=PLAYBOOKS, steps=STEPS, console=None):
        self._fleet = fleet
        self._playbooks = playbooks
        self._steps = steps
        self._console = console or Console()
        self._operator = Operator(fleet)
        self._streams = None
        self._undo = contextlib.ExitStack()
        self.outcomes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._undo.close()

    def run(self):
        """All steps, up to the first that fails; whether all is well."""
        for step in self._steps:
            with self._console.status(step.name):
                outcome = self._one(step)
            self.outcomes.append(outcome)
            told = [f"{step.name}: {outcome.result} after {outcome.seconds:.1f} s", outcome.why]
            self._console.print("; ".join(filter(None, told)), highlight=False, soft_wrap=True)
            if outcome.result == "failed":
                break
        self._undo.close()
        return len(self.outcomes) == len(self._steps) and all(outcome.good for outcome in self.outcomes)

    def _one(self, step):
        playbook = self._playbooks / step.playbook
        if not playbook.exists():
            return Outcome(step, "missing", f"there is no {playbook.name} in {self._playbooks}")
        before = self._totals()
        outcome = Outcome(step)
        changes = step.changes(self._fleet)
        began = time.monotonic()
        try:
            record = self._operator.play(playbook, changes=changes, status=None)
        except AssertionError as error:
            record = Record([], str(error), status=1)
        outcome.seconds = time.monotonic() - began
        outcome.changed = record.hosts_changed()
        log = LOGS / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(record.output)
        if record.status:
            outcome.result, outcome.why = "failed", f"see {log}"
        try:
            self._let_them_send()
        except AssertionError as error:
            outcome.result, outcome.why = "failed", f"devices do not get through: {error}"
        if before:
            after = self._totals()
            outcome.traffic = {name: after[name] - before[name] for name in after}
        return outcome

    def _let_them_send(self):
        if self._streams is None:
            # A device is switched on before it has a key: it is provisioned when an endpoint has heard it use it.
            self._streams = self._undo.enter_context(Streams(self._fleet, connected=False))
        if all((device.root / KEY_FILE).exists() for device in self._fleet.devices):
            self._streams.wait_until_echoed(FEW)

    def _totals(self):
        if self._streams is None:
            return {}
        totals = self._streams.totals()
        # What was sent a moment ago is not lost because it is not back yet: that is told in the end.
        del totals["lost"]
        return totals

    # --- what is shown ------------------------------------------------------------------------------

    def show(self):
        """The tables."""
        for table in (self._hosts(), self._steps_table(), self._traffic()):
            if table is not None:
                self._console.print(table)

    def _hosts(self):
        table = _table("Hosts", "host", "what", "address", "changed by", right=())
        kinds = {"systemd": f"Debian ({self._fleet.suite}), systemd", "device": "busybox, no Python"}
        for host in self._fleet.hosts.values():
            by = [
                f"{one.step.name} ({one.changed[host.name]})"
                for one in self.outcomes
                if one.changed.get(host.name)
            ]
            table.add_row(host.name, kinds[host.kind], host.address, ", ".join(by) or "nothing")
        return table

    def _steps_table(self):
        heads = (
            "seconds",
            "tasks that changed",
            "handshakes",
            "associations lost",
            "failed handshakes",
            "sent",
        )
        table = _table("Steps", "step", "result", *heads, right=heads)
        for one in self.outcomes:
            counts = [one.traffic.get(name) for name in ("handshakes", "ended", "failed", "sent")]
            table.add_row(
                one.step.name,
                one.result,
                f"{one.seconds:.1f}",
                str(sum(one.changed.values())),
                *("-" if count is None else str(count) for count in counts),
            )
        return table

    def _traffic(self):
        if self._streams is None or not self._streams.totals()["handshakes"]:
            self._console.print("No traffic: no step has given the devices keys.")
            return None
        heads = ("sent", "echoed", "lost", "handshakes", "failed handshakes", "associations lost")
        table = _table("Traffic, all steps together", "device", "key now", *heads, right=heads)
        for name, sensor in self._streams.sensors.items():
            now = sensor.figures
            mark = fingerprint(bytes.fromhex(now.key)) if now.key else "none"
            figures = (now.sent, now.echoed, sensor.lost, now.handshakes, now.failed, now.ended)
            table.add_row(name, mark, *map(str, figures))
        return table

    def lost(self):
        """What was lost in all, in words; empty if nothing was."""
        if self._streams is None:
            return ""
        totals = self._streams.totals()
        told = {"lost": "datagrams", "ended": "associations", "failed": "handshakes"}
        return ", ".join(f"{totals[name]} {word}" for name, word in told.items() if totals[name])


def _table(title, *heads, right):
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", overflow="fold")
    return table


def main(arguments=None, *, console=None):
    """The command; its exit status: 1 if a step failed or anything was lost, 2 if this machine cannot have a lab."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--suite", choices=images.SUITES, default=images.SUITES[0], help="Debian of the endpoints"
    )
    parser.add_argument("--controller", choices=["here", "newest"], default="here", help="which ansible-core")
    parser.add_argument(
        "--stay", action="store_true", help="keep the fleet until Enter is pressed, to look around"
    )
    options = parser.parse_args(arguments)
    # As a table in a file or a pipe, where nobody says how wide it is, it keeps its lines whole.
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        images.require()
        with console.status("images, which takes a minute the first time"):
            images.debian(options.suite)
            images.device()
        began = time.monotonic()
        with Fleet(suite=options.suite, controller=options.controller) as fleet:
            console.print(
                f"{len(fleet.hosts)} hosts are up after {time.monotonic() - began:.1f} s", highlight=False
            )
            return _demonstrate(fleet, console, stay=options.stay)
    except images.Impossible as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"the lab could not be started: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _demonstrate(fleet, console, *, stay):
    with Demonstration(fleet, console=console) as demonstration:
        good = demonstration.run()
        demonstration.show()
        if stay:
            host = next(iter(fleet.hosts.values()))
            console.print(
                f"inventory: {fleet.inventory()}\n{shlex.join(host.ssh_command('sh'))}", highlight=False
            )
            input("Enter ends the fleet. ")
        lost = demonstration.lost()
        if lost:
            console.print(f"Lost: {lost}.", highlight=False)
        elif good:
            console.print("Nothing was lost.")
        return 0 if good and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
