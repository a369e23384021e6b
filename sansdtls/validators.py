"""Validators of configuration classes: each raises ConfigError with class, field, value and range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from sansdtls.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import attrs

Check: TypeAlias = "Callable[[Any, attrs.Attribute[Any], Any], None]"
"""A validator as attrs calls it: instance, attribute, value."""


def in_range(low: float, high: float, unit: str) -> Check:
    """A number from ``low`` to ``high``, both included."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(
                f"{type(instance).__name__}.{attribute.name}: {value!r} is not within {low} to {high} {unit}"
            )

    return check


def whole(low: int, high: int, unit: str) -> Check:
    """The same, without a fraction."""
    range_check = in_range(low, high, unit)

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        range_check(instance, attribute, value)
        if not isinstance(value, int):
            raise ConfigError(f"{type(instance).__name__}.{attribute.name}: {value!r} is not a whole number")

    return check


def optional(
    check: Check,
) -> Check:
    """``None``, or what ``check`` allows."""

    def check_unless_none(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None:
            check(instance, attribute, value)

    return check_unless_none


def instance_of(kind: type) -> Check:
    """An instance of ``kind``."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise ConfigError(
                f"{type(instance).__name__}.{attribute.name}: {kind.__name__} is needed, not {type(value).__name__}"
            )

    return check


def bytes_of_length(low: int, high: int, *, secret: bool) -> Check:
    """Bytes, ``low`` to ``high`` of them; a ``secret`` is not repeated in the error."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        where = f"{type(instance).__name__}.{attribute.name}"
        if not isinstance(value, bytes):
            raise ConfigError(f"{where}: bytes are needed, not {type(value).__name__}")
        if not low <= len(value) <= high:
            shown = "" if secret else f" {value!r}"
            raise ConfigError(f"{where}:{shown} has {len(value)} bytes, not {low} to {high}")

    return check
