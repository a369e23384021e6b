"""Filters for the endpoint's configuration, and for what its unit needs because of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError

# As in action_plugins/.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

import dtls_settings  # noqa: E402
import dtls_wheels  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def endpoint_listeners(texts: Iterable[Any]) -> list[dict[str, Any]]:
    """The listeners in parts."""
    try:
        return dtls_settings.listeners(texts)
    except ValueError as error:
        raise AnsibleFilterError(f"dtls_endpoint_listen: {error}") from None


def endpoint_settings(
    given: Mapping[str, Any], listen: Iterable[Any], *, systemd: Any = True
) -> dict[str, Any]:
    """What is given over defaults that are safe."""
    try:
        return dtls_settings.settings(given, listen=listen, systemd=bool(systemd))
    except ValueError as error:
        name = "dtls_endpoint_config" if str(error).startswith("listen.") else "dtls_endpoint_listen"
        raise AnsibleFilterError(f"{name}: {error}") from None


def endpoint_network(table: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the service needs a network of its own, and why."""
    return dtls_settings.network(table)


def endpoint_release(wheelhouse: Any) -> str:
    """The name of the release that a folder of wheels is."""
    try:
        return dtls_wheels.release_of(dtls_wheels.look_at(Path(str(wheelhouse)).expanduser()))
    except ValueError as error:
        raise AnsibleFilterError(f"dtls_endpoint_wheelhouse: {error}") from None


def toml(table: Mapping[str, Any]) -> str:
    """A dictionary as TOML."""
    try:
        return dtls_settings.toml(table)
    except ValueError as error:
        raise AnsibleFilterError(f"dtls_toml: {error}") from None


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by their names in templates."""
        return {
            "dtls_endpoint_listeners": endpoint_listeners,
            "dtls_endpoint_network": endpoint_network,
            "dtls_endpoint_release": endpoint_release,
            "dtls_endpoint_settings": endpoint_settings,
            "dtls_toml": toml,
        }
