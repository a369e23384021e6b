"""Who has used which key: as the running service knows it, or as it has written it down."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from endpoint.admin import AdminError, ask
from endpoint.commands.common import WRONG_USE, CommandFailed
from endpoint.files import MAX_FILE_BYTES
from endpoint.keystore.fingerprint import fingerprint
from endpoint.text import UtcStamps, read_shown, show_bytes, show_text
from endpoint.usage_file import KeyUse, UsageFile, UsageFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from endpoint.commands.keys.places import Setting

PATIENCE = 10.0
"""Seconds for one answer of the service."""
FEW = 50
"""Identities that are asked for one by one; for more all are fetched, page by page."""
PAGE = 1_000
_FINGERPRINT = re.compile(rb"[0-9a-f]{16}")


@attrs.frozen
class Evidence:
    """What is known."""

    uses: dict[bytes, KeyUse]
    source: str | None
    """Where it is from; ``None`` = nobody could be asked."""
    why: tuple[str, ...] = ()
    """Why nobody could be."""

    @property
    def remedy(self) -> str:
        """What the operator can do about that."""
        reasons = "".join(f"; {reason}" for reason in self.why)
        return f"it is not known which keys devices use{reasons}"

    def confirmed(self, identity: bytes, key: bytes) -> bool:
        """Whether this key is the one that ``identity`` used last."""
        use = self.uses.get(identity)
        return use is not None and use.fingerprint == fingerprint(key)

    def doubt(self, identity: bytes) -> str:
        """Of one that has not used its next key: what is known instead."""
        use = self.uses.get(identity)
        if use is None:
            return "was not heard of since that is noted"
        return f"used key {use.fingerprint} last, at {stamp(use.when)}"


def gathered(setting: Setting, identities: Sequence[bytes] | None) -> Evidence:
    """What is known about these identities, or about all: the running service is asked, else the file is read."""
    why = []
    if setting.admin_socket is None:
        if setting.config is not None:
            why.append("no service can be asked: state.admin_socket is missing")
    else:
        try:
            return Evidence(_asked(setting, identities), "the running service")
        except AdminError as error:
            why.append(str(error))
    if setting.usage_file is None:
        what = "state.usage_file is missing" if setting.config else "give --config, or --usage-file"
        why.append(what)
    else:
        try:
            return Evidence(_read(setting, identities), show_text(str(setting.usage_file)))
        except UsageFileError as error:
            why.append(str(error))
    return Evidence({}, None, tuple(why))


def _asked(setting: Setting, identities: Sequence[bytes] | None) -> dict[bytes, KeyUse]:
    if identities is not None and len(identities) <= FEW:
        found = {}
        for identity in identities:
            use = answer(setting, "key_use", identity=show_bytes(identity)).get("use")
            if use is not None:
                found[identity] = _use(use)
        return found
    found = {}
    after = ""
    while True:
        page = answer(setting, "key_uses", after=after, limit=PAGE)
        for use in page["uses"]:
            found[read_shown(use["identity"])] = _use(use)
            after = use["identity"]
        if not page["more"]:
            return found


def _read(setting: Setting, identities: Iterable[bytes] | None) -> dict[bytes, KeyUse]:
    assert setting.usage_file is not None  # noqa: S101 - who calls has looked
    with UsageFile(setting.usage_file) as file:
        if identities is not None:
            uses = ((identity, file.last(identity)) for identity in identities)
            return {identity: use for identity, use in uses if use is not None}
        found: dict[bytes, KeyUse] = {}
        after = b""
        while page := file.page(after, PAGE):
            found.update(page)
            after = page[-1][0]
        return found


def read_fingerprints(name: str) -> dict[bytes, str]:
    """Lines ``identity:fingerprint`` of a file, ``-`` = standard input; :class:`CommandFailed` for one mistake or more."""
    where = "standard input" if name == "-" else show_text(name)
    try:
        content = sys.stdin.buffer.read(MAX_FILE_BYTES) if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CommandFailed(WRONG_USE, f"{where}: {(error.strerror or str(error)).lower()}") from None
    found: dict[bytes, str] = {}
    problems = []
    for number, line in enumerate(content.splitlines(), 1):
        identity, _, named = line.rpartition(b":")
        if not identity or not _FINGERPRINT.fullmatch(named):
            # Nothing of the line: somebody may have taken a file of keys for one of fingerprints.
            problems.append(
                f"{where}:{number}: is not IDENTITY:FINGERPRINT, 16 hex digits as keys list shows them"
            )
        elif found.setdefault(identity, named.decode()) != named.decode():
            problems.append(f"{where}:{number}: an identity comes twice, with different keys")
    if problems:
        raise CommandFailed(WRONG_USE, *problems[:FEW])
    return found


def answer(
    setting: Setting, command: str, *, patience: float = PATIENCE, **parameters: Any
) -> dict[str, Any]:
    """The running service's answer; :class:`AdminError` if there is none, or it is no."""
    assert setting.admin_socket is not None  # noqa: S101 - who calls has looked
    answered = ask(setting.admin_socket, command, seconds=patience, **parameters)
    if not answered.get("ok"):
        raise AdminError(f"{show_text(str(setting.admin_socket))}: {show_text(str(answered.get('error')))}")
    return answered


def _use(told: dict[str, Any]) -> KeyUse:
    return KeyUse(str(told["fingerprint"]), str(told["which"]), float(told["when"]))


def stamp(seconds: float) -> str:
    """Seconds since 1970 as UTC text."""
    return UtcStamps()(seconds)
