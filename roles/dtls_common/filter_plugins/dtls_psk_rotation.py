"""Filters for the rotation of keys. What they return holds no key, but for ``dtls_psk_wanted_lines``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError

# As in action_plugins/.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

import dtls_rotation  # noqa: E402
import dtls_wanted  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LATE = timedelta(seconds=10)
"""By which the controller's clock may be behind an endpoint's."""


def psk_wanted(
    hostvars: Mapping[str, Any], hosts: list[str], defaults: Mapping[str, Any], revoked: Any = ()
) -> dict[str, Any]:
    """Which key each device is to have, by its fingerprint."""
    try:
        return dtls_wanted.wanted(hostvars, hosts, defaults, [str(one) for one in revoked])
    except dtls_wanted.Mistake as mistake:
        raise AnsibleFilterError(str(mistake)) from None


def psk_wanted_lines(hostvars: Mapping[str, Any], hosts: list[str], defaults: Mapping[str, Any]) -> str:
    """These keys themselves, as lines of a PSK file."""
    try:
        return dtls_wanted.lines(hostvars, hosts, defaults)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


def psk_plan(
    results: list[Any], wants: Mapping[str, Any], met: Mapping[str, Any], revoked: Any = ()
) -> dict[str, Any]:
    """What the endpoints say, compared with that."""
    now = datetime.now(UTC) + LATE
    return dtls_rotation.plan(
        wants,
        results,
        holding=met["holding"],
        revoked=[str(one) for one in revoked],
        now=now.isoformat(),
    )


def psk_seen(hostvars: Mapping[str, Any], hosts: list[str]) -> dict[str, Any]:
    """What was met at the devices in this run."""
    return dtls_rotation.seen(hostvars, hosts)


def psk_report(planned: Mapping[str, Any], met: Mapping[str, Any]) -> dict[str, Any]:
    """What is told in the end."""
    return dtls_rotation.report(planned, met)


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by their names in templates."""
        return {
            "dtls_psk_wanted": psk_wanted,
            "dtls_psk_wanted_lines": psk_wanted_lines,
            "dtls_psk_plan": psk_plan,
            "dtls_psk_seen": psk_seen,
            "dtls_psk_report": psk_report,
        }
