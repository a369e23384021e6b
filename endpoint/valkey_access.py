"""What is needed to connect to a Valkey or Redis server: address, password and TLS, read from the files that are named.

The password is in memory, in :class:`ValkeyAccess`, and in what is sent; not in its ``repr``, in the address, or in any text here.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import attrs

from endpoint.files import RefusedFileError, read_private, read_trusted
from endpoint.tables.valkey import ValkeyAddress
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from endpoint.tables.valkey import ValkeyLogin

MAX_PASSWORD_BYTES = 1024
"""More is another file, named by mistake."""


class AccessError(Exception):
    """What is named for the access to a server cannot be used; ``problems`` has lines ``file: what; remedy``."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@attrs.frozen(kw_only=True)
class ValkeyAccess:
    """All that is needed to connect: ready for use, files read."""

    address: ValkeyAddress
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = attrs.field(default=None, repr=False, eq=False)


def load_access(address: str, login: ValkeyLogin) -> ValkeyAccess:
    """Read the files that ``login`` names; :class:`AccessError` lists all mistakes."""
    where = ValkeyAddress.parse(address)
    problems: list[str] = []
    password = None
    if login.password_file is not None:
        try:
            password = _password(read_private(login.password_file, what="a password", plural="password"))
        except RefusedFileError as refused:
            problems.append(f"{show_text(str(login.password_file))}: {refused}")
    context = _tls(login, problems) if where.tls else None
    if problems:
        raise AccessError(problems)
    return ValkeyAccess(
        address=where, username=login.username, password=password, database=login.database, tls=context
    )


def _password(content: bytes) -> str:
    try:
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise RefusedFileError("is not UTF-8") from None
    if not password:
        raise RefusedFileError("holds no password")
    if "\n" in password or "\r" in password or len(content) > MAX_PASSWORD_BYTES:
        raise RefusedFileError(f"should hold one line of at most {MAX_PASSWORD_BYTES} bytes: the password")
    return password


def _tls(login: ValkeyLogin, problems: list[str]) -> ssl.SSLContext | None:
    context = ssl.create_default_context()
    before = len(problems)

    def wrong(path: Path, what: object) -> None:
        problems.append(f"{show_text(str(path))}: {what}")

    if login.ca_file is not None:
        try:
            content = read_trusted(login.ca_file, what="CA certificates", plural="CAs")
            context = ssl.create_default_context(cadata=content.decode("ascii"))
        except RefusedFileError as refused:
            wrong(login.ca_file, refused)
        except (ssl.SSLError, ValueError):
            wrong(login.ca_file, "holds no certificate that can be used")
    if login.certificate is not None and login.private_key is not None:
        try:
            read_trusted(login.certificate, what="a certificate", plural="certificates")
        except RefusedFileError as refused:
            wrong(login.certificate, refused)
        try:
            read_private(login.private_key, what="a private key", plural="key")
        except RefusedFileError as refused:
            wrong(login.private_key, refused)
        if len(problems) == before:
            try:
                # Without the function it would ask for a password at the terminal.
                context.load_cert_chain(login.certificate, login.private_key, password=bytes)
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or "cannot be used"
                wrong(
                    login.certificate,
                    f"with the key in {show_text(str(login.private_key))}: {str(reason).lower().replace('_', ' ')}",
                )
    return context
