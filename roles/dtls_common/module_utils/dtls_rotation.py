"""How far the keys of a fleet are, derived from what its endpoints say: no state is kept anywhere else.

For each device there is a key that the inventory wants, known here by its fingerprint. Every endpoint says which keys its
file has for the device, which of them the running service accepts, and which one the device used last. From that::

    unstaged    not every endpoint accepts the wanted key yet
    settling    the same, and the key of an earlier rotation has to be retired before: the device has used its next one
    blocked     the same, and two other keys are in the way of which it is not clear that one can go
    overlap     all accept the wanted key, some another beside it, and the device was not heard with the wanted one
    confirmed   as overlap, but the device was heard with it: the others can go
    unheard     all accept the wanted key and no other, and the device was not heard with it
    steady      all accept the wanted key and no other, and the device uses it

What the inventory wants is worked out in ``dtls_wanted``; no key gets here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STAGED = ("overlap", "confirmed", "unheard", "steady")
"""Phases in which a device may be given the wanted key."""


# --- what the endpoints say -------------------------------------------------------------------------


class Held(NamedTuple):
    """What one endpoint has of one device."""

    stored: tuple[str, ...] = ()
    """Fingerprints of its file: the current key, then the next."""
    accepted: tuple[str, ...] = ()
    """The same of the running service."""
    used: str = ""
    """The key that was used last there."""
    when: str = ""
    associations: int = 0

    @property
    def fresh(self) -> bool:
        """Whether the service uses what is stored."""
        return self.stored == self.accepted


def observations(results: Iterable[Mapping[str, Any]]) -> tuple[dict[str, dict[str, Held]], dict[str, str]]:
    """Of the registered answers of ``keys list --running``: by endpoint and identity; and why others have none."""
    found: dict[str, dict[str, Held]] = {}
    silent: dict[str, str] = {}
    for result in results:
        endpoint = str(result["item"])
        if result.get("skipped") and result.get("reached"):
            found[endpoint] = {}  # check mode, before there is a program
        elif isinstance(result.get("answer"), dict) and "identities" in result["answer"]:
            entries = result["answer"]["identities"]
            found[endpoint] = {str(entry["identity"]): _held(entry) for entry in entries}
        else:
            silent[endpoint] = str(result.get("msg") or "it was not asked")
    return found, silent


def _keyed(held: Held | None) -> bool:
    return held is not None and bool(held.stored or held.accepted)


def _held(entry: Mapping[str, Any]) -> Held:
    used = entry.get("used") or {}
    return Held(
        stored=tuple(str(one) for one in (entry.get("current"), entry.get("next")) if one),
        accepted=tuple(map(str, entry.get("accepted", ()))),
        used=str(used.get("fingerprint", "")),
        when=str(used.get("when", "")),
        associations=int(entry.get("live", 0)) + int(entry.get("frozen", 0)),
    )


# --- what that comes to -----------------------------------------------------------------------------


def plan(
    wants: Mapping[str, Mapping[str, Any]],
    results: Iterable[Mapping[str, Any]],
    *,
    holding: Sequence[str] = (),
    revoked: Sequence[str] = (),
    now: str = "9999",
) -> dict[str, Any]:
    """The phase of each device, and what there is to do at each endpoint that was heard.

    ``holding``: devices in whose file this run has seen the wanted key. ``now``: the time, as endpoints write it.
    """
    heard, silent = observations(results)
    devices: dict[str, Any] = {}
    todo: dict[str, dict[str, list[str]]] = {
        what: {endpoint: [] for endpoint in heard} for what in ("stage", "settle", "retire", "emergency")
    }
    stale: set[str] = set()
    for host, want in wants.items():
        identity, fingerprint = want["identity"], want["fingerprint"]
        held = {endpoint: known.get(identity, Held()) for endpoint, known in heard.items()}
        state = _Device(want, held, holding=host in holding, now=now)
        phase, why = state.phase()
        devices[host] = {
            "identity": identity,
            "generation": want["generation"],
            "fingerprint": fingerprint,
            "phase": phase,
            "staged": phase in STAGED,
            "why": why,
        }
        stale |= {endpoint for endpoint, one in held.items() if not one.fresh}
        for endpoint, one in held.items():
            if phase in {"unstaged", "settling"} and fingerprint not in one.stored:
                todo["stage"][endpoint].append(host)
            if phase == "settling" and len(one.stored) > 1 and fingerprint not in one.stored:
                todo["settle"][endpoint].append(f"{identity}:{state.used}")
            if phase == "confirmed" and one.stored != (fingerprint,):
                todo["retire"][endpoint].append(f"{identity}:{fingerprint}")
            todo["emergency"][endpoint].append(host)
    return {
        "devices": devices,
        "heard": sorted(heard),
        "silent": silent,
        "stale": sorted(stale),
        "still": {
            identity: places
            for identity in revoked
            if (places := [endpoint for endpoint, known in heard.items() if _keyed(known.get(identity))])
        },
        **todo,
    }


class _Device:
    """One device as all endpoints together see it."""

    def __init__(self, want: Mapping[str, Any], held: Mapping[str, Held], *, holding: bool, now: str) -> None:
        self._want = want
        self._now = now
        self._key = str(want["fingerprint"])
        self._held = held
        self._holding = holding
        # The last one of all: clocks of endpoints agree better than a device changes its key.
        last = max(
            ((one.when, one.used, endpoint) for endpoint, one in held.items() if one.used),
            default=("", "", ""),
        )
        self.when, self.used, self._where = last

    def phase(self) -> tuple[str, str]:
        """The phase and, where the device is not done, why."""
        key, held = self._key, list(self._held.values())
        name = self._named(key)
        if held and all(one.stored == one.accepted == (key,) for one in held):
            # Who has an association, and no other key is left, needs not be heard again after a restart of the endpoint.
            present = not self.used and any(one.associations for one in held)
            if self.used == key or present:
                return "steady", ""
            return "unheard", f"{name} is its only key, and {self._last()}"
        if held and all(key in one.stored and key in one.accepted for one in held):
            # Going back to a key that it had before, that it was heard with it once proves nothing: it may have the later one.
            back = any(one.stored[0] == key and len(one.stored) > 1 for one in held)
            if self.used == key and (self._holding or not back):
                return "confirmed", f"{name} is in use, and another key is still accepted"
            return "overlap", f"{name} is accepted beside another key, and {self._last()}"
        return self._unstaged()

    def _unstaged(self) -> tuple[str, str]:
        key = self._key
        full = {
            endpoint: one
            for endpoint, one in self._held.items()
            if len(one.stored) > 1 and key not in one.stored
        }
        if not full:
            missing = ", ".join(
                endpoint
                for endpoint, one in self._held.items()
                if key not in one.stored or key not in one.accepted
            )
            return "unstaged", f"{self._named(key)} is not accepted yet at {missing or 'any endpoint'}"
        everywhere = all(self.used in one.stored and self.used in one.accepted for one in self._held.values())
        if self.used and everywhere and all(one.stored[1] == self.used for one in full.values()):
            return "settling", f"{self._named(self.used)} has to be settled before"
        endpoint, one = next(iter(full.items()))
        first, second = map(self._named, one.stored)
        if self.used and self.used not in one.stored:
            return "blocked", (
                f"{endpoint} accepts {first} and {second} for it, and not {self._named(self.used)}, which it used last, at "
                f"{self.when} ({self._where}): of a backup, perhaps; remedy: forget them there (dtls-endpoint keys remove), "
                "and run it again"
            )
        number = self._want["generations"].get(one.stored[1])
        finish = f"dtls_psk_generation: {number}" if number is not None else "the generation of the latter"
        return "blocked", (
            f"{endpoint} accepts {first} and {second} for it, so there is no place for {self._named(key)}; {self._last()}; "
            f"remedy: finish that rotation first ({finish} until it has used it), or dtls_psk_mode: emergency, which locks it "
            "out until it has the new key"
        )

    def _last(self) -> str:
        if not self.used:
            return "it was not heard of since that is noted"
        ahead = ", when the clock there was ahead; remedy: set it, and have the device connect there once"
        return f"it used {self._named(self.used)} last, at {self.when} ({self._where}){ahead * (self.when > self._now)}"

    def _named(self, fingerprint: str) -> str:
        if fingerprint == self._key:
            return f"generation {self._want['generation']}"
        number = self._want["generations"].get(fingerprint)
        return f"a key of no known generation ({fingerprint})" if number is None else f"generation {number}"


# --- what the operator hears ------------------------------------------------------------------------


def seen(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, Any]:
    """What this run has met at the devices: those that hold the wanted key, and what went wrong with others."""
    holding: list[str] = []
    unreached: dict[str, str] = {}
    troubled: dict[str, str] = {}
    for host in hosts:
        told = hostvars[host]
        if _went_well(told.get("__dtls_psk_pushed")):
            holding.append(host)
        for name, what in MET:
            result = told.get(name)
            if result is None or _went_well(result) or "msg" not in result:
                continue
            if result.get("reached") is False or result.get("unreachable"):
                unreached.setdefault(host, what)
            else:
                troubled.setdefault(host, f"{what}: {result['msg']}")
    return {"holding": holding, "unreached": unreached, "troubled": troubled}


MET = (
    ("__dtls_psk_looked", "its key file cannot be looked at"),
    ("__dtls_psk_made", "the folder of its key file cannot be made"),
    ("__dtls_psk_pushed", "its key file is not written"),
    ("__dtls_psk_reloaded_there", "dtls_psk_device_reload was not done"),
    ("__dtls_psk_wiped", "its previous key is still there"),
)
"""What the role registers of a device, and what it means if that went wrong."""


def _went_well(result: Mapping[str, Any] | None) -> bool:
    if result is None or result.get("skipped") or result.get("unreachable"):
        return False
    return (bool(result.get("reached")) and "differing" in result) or result.get("rc") == 0


def report(planned: Mapping[str, Any], met: Mapping[str, Any]) -> dict[str, Any]:
    """Lines: devices that are not done and why, and endpoints that did not answer.

    ``met`` is what :func:`seen` has told: an explanation, nothing is decided by it here.
    """
    unreached, troubled = met["unreached"], met["troubled"]
    pending = [
        f"{identity}: revoked: {', '.join(places)} still has a key of it; remedy: playbooks/revoke.yml"
        for identity, places in planned["still"].items()
    ]
    for host, device in planned["devices"].items():
        reasons = [device["why"]] if device["phase"] != "steady" else []
        if host in unreached:
            reasons.append(f"it could not be reached in this run: {unreached[host]}")
        elif host in troubled:
            reasons.append(troubled[host])
        if reasons:
            pending.append(f"{host}: {device['phase']}: {'; '.join(reasons)}")
    phases = [device["phase"] for device in planned["devices"].values()]
    return {
        "devices": len(phases),
        "steady": phases.count("steady"),
        "pending": pending,
        "silent": [f"{endpoint}: {why}" for endpoint, why in planned["silent"].items()],
    }
