"""What ``dtls-endpoint check`` says of pre-shared keys beyond how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.file import KeyFileError
from endpoint.keystore.strength import weak_notes
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endpoint.config import EndpointConfig
    from endpoint.keystore.loading import LoadedCredentials

_WHAT_HAPPENS = {
    "rehandshake": "get close_notify within {spread:g} s of a reload, frozen ones when they wake",
    "drop": "are ended by a reload, frozen ones too",
}


def about_rotation(config: EndpointConfig) -> Iterator[str]:
    """What becomes of associations, and what is remembered, where that is not the default."""
    told = config.credentials
    for policy, whose in (
        (told.when_removed, "removed identities"),
        (told.when_rotated, "keys that were taken away"),
    ):
        if policy != "keep":
            yield f"associations of {whose} {_WHAT_HAPPENS[policy].format(spread=told.rehandshake_spread)}"
    if config.state.usage_file:
        yield f"writes to {show_text(str(config.state.usage_file))} which key each device used last"


def key_notes(config: EndpointConfig, loaded: LoadedCredentials) -> list[str]:
    """Keys that are in use and should not have been made, and what a rotation would miss."""
    told, state = config.credentials, config.state
    notes = []
    if told.psk_file:
        notes = weak_notes(loaded.psk.keys.items(), show_text(str(told.psk_file)))
    elif told.psk_database:
        try:
            with KeyDatabase(told.psk_database) as database:
                notes = weak_notes(database.items(), show_text(str(told.psk_database)))
        except KeyFileError as error:
            notes = list(error.problems)
    if loaded.in_rotation and not (state.usage_file or state.admin_socket):
        notes.append(
            "nothing will say who has used the next key; remedy: state.usage_file, or state.admin_socket"
        )
    return notes
