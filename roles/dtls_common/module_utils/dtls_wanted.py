"""Which key each device is to have, as the inventory says it of all devices at once.

Elsewhere a key is known by its fingerprint. Keys themselves come out of this file by :func:`lines` alone, whose result goes
to standard input of an endpoint or of the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dtls_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

REMEMBERED = 4
"""Generations around the wanted one that are told by their number where a fingerprint is met."""
FOR_ALL = (
    "dtls_psk_endpoints",
    "dtls_psk_endpoint_program",
    "dtls_psk_endpoint_config",
    "dtls_psk_endpoint_file",
    "dtls_psk_mode",
    "dtls_psk_revoked",
    "dtls_psk_existing_sessions",
    "dtls_psk_allow_pending",
)
"""Variables that a run reads of one device and uses for all."""


class Mistake(Exception):
    """What the inventory says cannot be used: each line names the host, the variable and a remedy."""


def wanted(
    hostvars: Mapping[str, Any], hosts: Iterable[str], defaults: Mapping[str, Any], revoked: Sequence[str]
) -> dict[str, Any]:
    """By host: identity, generation and fingerprint of its key, and the numbers of other generations."""
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    holders: dict[str, str] = {}
    first: _View | None = None
    problems = []
    for host in hosts:
        try:
            view = _View(hostvars, host, defaults)
            first = first or view
            view.agree(first)
            identity = view.identity()
            if identity in revoked:
                continue
            if owners.setdefault(identity, host) != host:
                raise ValueError(
                    f"dtls_psk_device_id: {identity!r} is also {owners[identity]}'s; remedy: one for each device"
                )
            generation = view.generation()
            fingerprint = dtls_keys.fingerprint(view.key(generation))
            if holders.setdefault(fingerprint, host) != host:
                raise ValueError(
                    f"dtls_psk_keys: the key of generation {generation} is also {holders[fingerprint]}'s; "
                    "remedy: one for each device"
                )
            found[host] = {
                "identity": identity,
                "generation": generation,
                "fingerprint": fingerprint,
                "generations": view.generations(generation, fingerprint),
            }
        except ValueError as error:
            problems.append(f"{host}: {error}")
    if problems:
        raise Mistake("\n".join(problems))
    return found


def lines(hostvars: Mapping[str, Any], hosts: Iterable[str], defaults: Mapping[str, Any]) -> str:
    """The wanted keys of these hosts as lines of a PSK file: secret."""
    found = []
    for host in hosts:
        view = _View(hostvars, host, defaults)
        found.append(f"{view.identity()}:{view.key(view.generation()).hex()}\n")
    return "".join(found)


class _View:
    """The variables of one host that say which key it has."""

    def __init__(self, hostvars: Mapping[str, Any], host: str, defaults: Mapping[str, Any]) -> None:
        self._told = hostvars[host]
        self.host = host
        self._defaults = defaults

    def _value(self, name: str) -> Any:
        # Of other hosts, Ansible does not tell defaults of roles.
        value = self._told.get(name)
        return self._defaults.get(name) if value is None else value

    def agree(self, other: _View) -> None:
        """ValueError if the other host has another value of a variable that is used for both."""
        for name in FOR_ALL:
            mine, theirs = self._value(name), other._value(name)
            if mine != theirs:
                raise ValueError(
                    f"{name}: is {mine!r} here and {theirs!r} for {other.host}, and counts for all devices of a run; "
                    "remedy: group_vars of all devices, or a run for each (--limit)"
                )

    def identity(self) -> str:
        told = self._told.get("dtls_psk_device_id")
        identity = self.host if told is None else str(told)
        if not identity or identity != identity.strip() or not identity.isprintable() or "\\" in identity:
            raise ValueError(
                f"dtls_psk_device_id: {identity!r} is empty, has blanks around it or what is not printable, or a backslash"
            )
        if identity.startswith("#"):
            raise ValueError("dtls_psk_device_id: begins with #, which makes a line of a PSK file a comment")
        return identity

    def generation(self) -> int:
        told = self._value("dtls_psk_generation")
        try:
            generation = int(told)
        except (TypeError, ValueError):
            generation = -1
        if generation < 0 or isinstance(told, (bool, float)):
            raise ValueError(
                f"dtls_psk_generation: {told!r} is no number from 0 on; remedy: dtls_psk_generation: 1 in the inventory"
            )
        return generation

    def key(self, generation: int) -> bytes:
        source = self._value("dtls_psk_source")
        if source == "derived":
            master = self._value("dtls_psk_master")
            if not master:
                raise ValueError(
                    "dtls_psk_master: is missing; remedy: a vaulted one in the inventory (openssl rand -hex 32)"
                )
            key = dtls_keys.from_hexadecimal(master, "dtls_psk_master")
            if dtls_keys.weak(key):
                raise ValueError("dtls_psk_master: is a pattern, or known; remedy: openssl rand -hex 32")
            return dtls_keys.derive(key, self.identity(), generation, self._length())
        if source != "vault":
            raise ValueError(f"dtls_psk_source: {source!r} is neither derived nor vault")
        keys = self._keys()
        if generation not in keys:
            there = ", ".join(map(str, sorted(keys))) or "none"
            raise ValueError(
                f"dtls_psk_keys: has no key of generation {generation}, but: {there}; remedy: add it"
            )
        key = dtls_keys.from_hexadecimal(keys[generation], f"dtls_psk_keys: generation {generation}")
        if not dtls_keys.SHORTEST <= len(key) <= dtls_keys.LONGEST or dtls_keys.weak(key):
            raise ValueError(
                f"dtls_psk_keys: the key of generation {generation} is weak, or has not {dtls_keys.SHORTEST} to "
                f"{dtls_keys.LONGEST} bytes; remedy: openssl rand -hex 32"
            )
        return key

    def generations(self, about: int, fingerprint: str) -> dict[str, int]:
        """The generations around one, which has this fingerprint, by the fingerprints of their keys."""
        if self._value("dtls_psk_source") == "vault":
            numbers = [number for number in self._keys() if number != about]
        else:
            numbers = [
                number
                for number in range(max(0, about - REMEMBERED), about + REMEMBERED + 1)
                if number != about
            ]
        found = {}
        for number in numbers:
            try:
                found[dtls_keys.fingerprint(self.key(number))] = number
            except ValueError:
                continue  # a key that was good once, and nobody wants now
        if fingerprint in found:
            numbers = sorted((found[fingerprint], about))
            raise ValueError(
                f"dtls_psk_keys: generations {numbers[0]} and {numbers[1]} are the same key; remedy: a new one for each"
            )
        return found

    def _length(self) -> int:
        told = self._value("dtls_psk_length")
        try:
            return int(told)
        except (TypeError, ValueError):
            raise ValueError(f"dtls_psk_length: {told!r} is no number of bytes") from None

    def _keys(self) -> dict[int, Any]:
        told = self._value("dtls_psk_keys")
        try:
            return {int(number): told[number] for number in told}
        except (TypeError, ValueError):
            raise ValueError(
                "dtls_psk_keys: is no dictionary of vaulted keys by the number of their generation"
            ) from None
