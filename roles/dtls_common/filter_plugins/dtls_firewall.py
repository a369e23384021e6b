"""Filters for rules of packets: limits from the endpoint's quotas, addresses, and whether a session is admitted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError

# As in action_plugins/.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

import dtls_packets as rules  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except rules.Wrong as error:
            raise AnsibleFilterError(str(error)) from None

    return checked


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by their names in templates."""
        return {
            "dtls_firewall_limits": _checked(rules.limits),
            "dtls_firewall_ports": _checked(rules.ports),
            "dtls_firewall_addresses": _checked(rules.addresses),
            "dtls_firewall_egress": _checked(rules.device_egress),
            "dtls_firewall_refusal": _checked(rules.refusal),
        }
