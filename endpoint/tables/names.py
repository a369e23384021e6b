"""What tables with file names and times share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from endpoint.values import within

if TYPE_CHECKING:
    from pathlib import Path

    import attrs

MAX_SOCKET_NAME = 107
"""Bytes that the name of a UNIX socket can have."""


def file_name(_instance: object, attribute: attrs.Attribute[Path | None], value: Path | None) -> None:
    """A name that the kernel takes."""
    if value is not None and "\0" in str(value):
        raise ValueError(f"{attribute.name}: a file name cannot hold a NUL character")


def seconds(instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    """Up to a year, or never."""
    if value is not None:
        within(0.001, 31_536_000, "seconds")(instance, attribute, value)
