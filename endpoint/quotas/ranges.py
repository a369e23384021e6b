"""The validator of the policy's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sansdtls import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import attrs


def within(
    low: float, high: float, unit: str, *, whole: bool = True, none: bool = False
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """A number from ``low`` to ``high``, both included; else ConfigError with class, field, value and range.

    ``none`` = None is possible too.
    """
    kinds = (int,) if whole else (int, float)

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if none and value is None:
            return
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            number = "whole number" if whole else "number"
            raise ConfigError(
                f"{type(instance).__name__}.{attribute.name}: {value!r} is not a {number} within {low} to {high} {unit}"
            )

    return check
