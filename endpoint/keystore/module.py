"""``psk_module = "package.module:object"``: a key store of one's own.

The object is a :class:`~endpoint.keystore.KeyStore`, or a class or function without arguments, also an ``async`` one, that makes one. The
module is imported as ``import`` would: installed where ``dtls-endpoint`` is, or on ``PYTHONPATH``; the directory that the program is
started in is not looked at unless that says so. Whoever can write there runs code as the service.

It is imported when the configuration is read, by ``check`` too: a module that cannot be imported is the likeliest mistake, and a
service that finds out when it starts at night finds out too late. What is *called* is not called by ``check``, as it may reach for the
network; the service calls it once, before it takes devices. A reload does neither: code is exchanged by a restart.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from endpoint.keystore import StoreStartError
from endpoint.keystore.file import KeyFileError
from endpoint.text import show_text

if TYPE_CHECKING:
    from endpoint.keystore import KeyStore


def find_object(name: str) -> object:
    """Import what ``name`` stands for; :class:`KeyFileError` says why that is not possible."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - importing runs code, which may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        remedy = "; remedy: install it where dtls-endpoint is installed, or set PYTHONPATH" if missing else ""
        raise _wrong(name, f"cannot be imported: {_said(error)}{remedy}") from None
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _wrong(name, f"there is no {show_text(part)} in {show_text(module)}") from None
    if not (callable(found) or _is_store(found)):
        raise _wrong(name, f"is {_kind(found)}, and neither a key store (with a method lookup) nor makes one")
    return found


async def make_store(name: str, found: object) -> KeyStore:
    """The store that ``found`` is, or makes. :class:`StoreStartError` if it does not."""
    made: Any = found
    if not _is_store(found):
        try:
            made = made()
            if isinstance(made, Awaitable):
                made = await made
        except Exception as error:
            raise StoreStartError(
                f"credentials.psk_module: {show_text(name)}: raised {_said(error)}"
            ) from error
    if not _is_store(made):
        raise StoreStartError(
            f"credentials.psk_module: {show_text(name)}: made {_kind(made)}, and no key store (with a method lookup)"
        )
    store: KeyStore = made
    return store


def _is_store(found: object) -> bool:
    return not isinstance(found, type) and callable(getattr(found, "lookup", None))


def _kind(found: object) -> str:
    # Not its repr: it may be a dictionary of keys.
    return f"of type {show_text(type(found).__name__)}"


def _said(error: Exception) -> str:
    return show_text(f"{type(error).__name__}: {error}")[:500]


def _wrong(name: str, what: str) -> KeyFileError:
    return KeyFileError([f"credentials.psk_module: {show_text(name)}: {what}"])
