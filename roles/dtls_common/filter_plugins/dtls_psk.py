"""Filters for keys. No error of theirs shows what they were given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError

# As in action_plugins/.
_SHARED = str(Path(__file__).resolve().parents[1] / "module_utils")
if _SHARED not in sys.path:
    sys.path.append(_SHARED)

import dtls_keys  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def psk_derive(master: Any, device: Any, generation: Any, length: Any = 32) -> str:
    """The key of a device in a generation, in hexadecimal."""
    try:
        key = dtls_keys.from_hexadecimal(master, "the master key")
        return dtls_keys.derive(
            key, str(device), _number(generation, "generation"), _number(length, "length")
        ).hex()
    except ValueError as error:
        raise AnsibleFilterError(f"dtls_psk_derive: {error}") from None


def psk_fingerprint(key: Any) -> str:
    """What stands for a key in output: as ``dtls-endpoint keys list`` shows it."""
    try:
        return dtls_keys.fingerprint(dtls_keys.from_hexadecimal(key, "the key"))
    except ValueError as error:
        raise AnsibleFilterError(f"dtls_psk_fingerprint: {error}") from None


def psk_lines(keys: Mapping[str, Any]) -> list[str]:
    """``{identity: key or list of keys}`` as lines of a PSK file."""
    lines = []
    for identity, value in keys.items():
        if (
            not identity
            or identity != identity.strip()
            or identity.startswith(("#", "\ufeff"))
            or "\n" in identity
        ):
            raise AnsibleFilterError(
                f"dtls_psk_lines: no line of a PSK file can hold the identity {identity!r}"
            )
        for key in [value] if isinstance(value, str) else value:
            try:
                digits = dtls_keys.from_hexadecimal(key, f"the key of {identity!r}").hex()
            except ValueError as error:
                raise AnsibleFilterError(f"dtls_psk_lines: {error}") from None
            lines.append(f"{identity}:{digits}")
    return lines


def strong(key: Any) -> bool:
    """Whether it is a key in hexadecimal, long enough, that nobody would try first."""
    try:
        plain = dtls_keys.from_hexadecimal(key, "the key")
    except ValueError:
        return False
    return dtls_keys.SHORTEST <= len(plain) <= dtls_keys.LONGEST and not dtls_keys.weak(plain)


def _number(value: Any, name: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"the {name}: is no number") from None


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by their names in templates."""
        return {
            "dtls_psk_derive": psk_derive,
            "dtls_psk_fingerprint": psk_fingerprint,
            "dtls_psk_lines": psk_lines,
            "dtls_strong": strong,
        }
