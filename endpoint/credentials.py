"""``[credentials]``: who may connect, and how the endpoint proves itself.

One port serves all kinds at once::

    kind              of the devices                    of the endpoint
    pre-shared key    psk_file, or psk_database,        the same key
                      psk_valkey or psk_module
    certificate       client_ca, client_crl             certificate, private_key, [credentials.names]
    raw public key    raw_public_keys                   raw_public_key

The two columns combine freely: a device with a certificate may talk to an endpoint with a raw public key. What
the files hold is read by ``endpoint.keystore.loading``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from endpoint.tables.lookup import LookupPolicy
from endpoint.tables.valkey import ValkeyAddress, ValkeyKeys, server_address
from endpoint.values import within
from sansdtls.pki import IdentitySource


def _hint(_instance: object, _attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and not 1 <= len(value.encode()) <= 128:
        raise ValueError(f"identity_hint: has {len(value.encode())} bytes, not 1 to 128")


def _file_name(_instance: object, attribute: attrs.Attribute[Any], value: Path | None) -> None:
    if value is None:
        return
    if "\0" in str(value):
        raise ValueError(f"{attribute.name}: a file name cannot hold a NUL character")
    if re.search(r":[0-9A-Fa-f]{32}", str(value)):
        raise ValueError(
            f"{attribute.name}: the name of a file is needed, not a key; remedy: put the key in the file"
        )


def _object_name(_instance: object, _attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", value):
        raise ValueError('psk_module: is not of the form "package.module:object"')


def _names(
    _instance: object, _attribute: attrs.Attribute[Mapping[str, object]], value: Mapping[str, object]
) -> None:
    for name in value:
        if not re.fullmatch(r"(?=.{1,253}$)[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*", name):
            raise ValueError(
                'names: a DNS name is needed in quotes, such as [credentials.names."gateway.example"]'
                " (an international one in its ASCII form, xn--…)"
            )


def _sources(
    _instance: object,
    _attribute: attrs.Attribute[tuple[IdentitySource, ...] | None],
    value: tuple[IdentitySource, ...] | None,
) -> None:
    if value == ():
        raise ValueError("client_identity: at least one is needed")


_PSK_SOURCES = ("psk_file", "psk_database", "psk_valkey", "psk_module")


@attrs.frozen(kw_only=True)
class NamedCredentials:
    """``[credentials.names."host.example"]``: what is shown to clients that ask for this name (SNI)."""

    certificate: Path = attrs.field(
        validator=_file_name, metadata={"remedy": 'add  certificate = "name.pem"'}
    )
    """As ``certificate`` of ``[credentials]``."""
    private_key: Path = attrs.field(
        validator=_file_name, metadata={"remedy": 'add  private_key = "name.key"'}
    )
    """As ``private_key`` of ``[credentials]``."""


@attrs.frozen(kw_only=True)
class Credentials:
    """``[credentials]``. File names are relative to the directory of the configuration file."""

    psk_file: Path | None = attrs.field(default=None, validator=_file_name)
    """A PSK file or a directory of such files. For its owner only (mode 0600), as all files with keys. Of the four places where
    pre-shared keys can be, one is possible."""
    psk_database: Path | None = attrs.field(default=None, validator=_file_name)
    """An SQLite database of keys, made by ``dtls-endpoint keys``; mode 0600. It is asked at each handshake, so a change takes
    effect with the next one."""
    psk_valkey: str | None = attrs.field(default=None, validator=server_address)
    """The address of a Valkey or Redis server with keys: ``"unix:/run/valkey/valkey.sock"``, ``"valkey://host:6379"``, or for TLS
    ``"valkeys://host:6379"``. How it is laid out: see ``endpoint.keystore.valkey``. Asked at each handshake; while it is away new
    handshakes are refused, and associations live on."""
    psk_module: str | None = attrs.field(default=None, validator=_object_name)
    """A key store of one's own, ``"package.module:object"``: see ``endpoint.keystore.module``."""
    lookup: LookupPolicy = attrs.field(factory=LookupPolicy)
    valkey: ValkeyKeys = attrs.field(factory=ValkeyKeys)
    identity_hint: str | None = attrs.field(default=None, validator=_hint)
    """Sent to clients before they name their identity; by default nothing is sent, as RFC 7925 §4.2
    has devices ignore it."""

    certificate: Path | None = attrs.field(default=None, validator=_file_name)
    """The endpoint's certificate, PEM: its own first, then the intermediates; the root is left out."""
    private_key: Path | None = attrs.field(default=None, validator=_file_name)
    """The key of ``certificate``, PEM, without a password (a service has nobody to ask). Mode 0600."""
    names: Mapping[str, NamedCredentials] = attrs.field(factory=dict, validator=_names)
    """Certificates for clients that ask for a name; ``certificate`` is for all others. Without
    ``certificate`` clients that ask for another name, or for none, are refused."""
    raw_public_key: Path | None = attrs.field(default=None, validator=_file_name)
    """The endpoint's own key pair for clients that know its public key beforehand (RFC 7250): the
    *private* key, PEM, mode 0600. May be the same file as ``private_key``."""

    client_ca: Path | None = attrs.field(default=None, validator=_file_name)
    """CAs whose client certificates are accepted, PEM. Nobody but the owner may write it."""
    client_crl: Path | None = attrs.field(default=None, validator=_file_name)
    """Revocation lists, PEM: a file or a directory."""
    client_crl_policy: Literal["if_present", "required", "none"] | None = None
    """``if_present``: a CA that has a list must have a current one, and what is on it is refused.
    ``required``: every certificate below ``client_ca`` must be covered by a current list. ``none``:
    revocation is not looked at. The default is ``if_present`` with ``client_crl``, else ``none``."""
    client_identity: tuple[IdentitySource, ...] | None = attrs.field(default=None, validator=_sources)
    """Where in a client's certificate its identity stands, the first that is there: ``eui64``, ``dns``,
    ``uri``, ``address``, ``serial_number``, ``common_name``, ``subject``. The default is
    that of :class:`sansdtls.pki.TrustPolicy`."""
    raw_public_keys: Path | None = attrs.field(default=None, validator=_file_name)
    """Public keys of devices and their names: see ``endpoint.keystore.rawkeys`` for the file."""
    client_authentication: Literal["none", "wanted", "required"] | None = None
    """Whether clients that use no PSK must prove who they are. ``wanted``: those that can. ``none``:
    anybody may connect, without an identity. The default is ``required`` where ``client_ca`` or
    ``raw_public_keys`` says who; else it has to be said, because ``none`` opens the endpoint to all."""

    when_removed: Literal["keep", "rehandshake", "drop"] = "keep"
    """What a reload does with associations of identities that have no pre-shared key any more. `keep`: nothing, they
    cannot come back. `rehandshake`: close_notify within `rehandshake_spread`, frozen ones when they wake. `drop`: at once, also
    those that are frozen. A database or server that has lost its keys looks like one from which all were removed (an empty PSK
    file is refused)."""
    when_rotated: Literal["keep", "rehandshake", "drop"] = "keep"
    """The same for associations that were made with a key that is not accepted any more, of identities that have another."""
    rehandshake_spread: float = attrs.field(default=300.0, validator=within(0.0, 86_400.0, "seconds"))
    """Seconds over which `rehandshake` is spread, so that devices come back one after the other. Five minutes: 10,000 devices
    are then 33 handshakes a second."""

    @property
    def psk_sources(self) -> list[str]:
        """The keys that say where pre-shared keys are."""
        return [name for name in _PSK_SOURCES if getattr(self, name) is not None]

    @property
    def asks_clients(self) -> Literal["none", "wanted", "required"]:
        """``client_authentication``, or its default."""
        return self.client_authentication or ("required" if self.knows_clients else "none")

    @property
    def shows_something(self) -> bool:
        """Whether the endpoint has anything to show but pre-shared keys."""
        return bool(self.certificate or self.raw_public_key or self.names)

    @property
    def knows_clients(self) -> bool:
        """Whether it is said which clients with certificates or raw public keys may connect."""
        return bool(self.client_ca or self.raw_public_keys)

    def below(self, directory: Path) -> Credentials:
        """The same with every file name completed by ``directory``."""
        files: dict[str, Any] = {
            field.name: directory / value
            for field in attrs.fields(Credentials)
            if isinstance(value := getattr(self, field.name), Path)
        }
        names = {
            name: NamedCredentials(
                certificate=directory / named.certificate, private_key=directory / named.private_key
            )
            for name, named in self.names.items()
        }
        files["valkey"] = self.valkey.below(directory)
        return attrs.evolve(self, names=names, **files)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What does not go together, as (key, text) pairs."""
        yield from self._about_psk()
        if not (self.psk_sources or self.shows_something or self.knows_clients or self.private_key):
            yield "", 'nobody could connect; remedy: add  psk_file = "psk.txt"  or a certificate and its key'
            return
        if self.certificate and not self.private_key:
            yield "private_key", 'missing; remedy: add  private_key = "server.key"  to certificate'
        if self.private_key and not self.certificate:
            yield (
                "certificate",
                (
                    'missing; remedy: add  certificate = "server.pem"  to private_key, or name the key'
                    " raw_public_key if clients know its public half"
                ),
            )
        if self.knows_clients and not self.shows_something and not self.private_key:
            yield (
                "client_ca" if self.client_ca else "raw_public_keys",
                (
                    "is of no use without something to show to clients; remedy: add certificate and private_key,"
                    " or raw_public_key"
                ),
            )
        yield from self._about_clients()

    def _about_psk(self) -> Iterator[tuple[str, str]]:
        sources = self.psk_sources
        for other in sources[1:]:
            yield (
                other,
                f"pre-shared keys come from one place, and {sources[0]} is there too; remedy: remove one",
            )
        if self.lookup != LookupPolicy() and not set(sources) - {"psk_file"}:
            # What is in memory is not looked up anywhere.
            yield "lookup", "is of no use without psk_database, psk_valkey or psk_module; remedy: remove it"
        if self.psk_valkey is not None:
            address = ValkeyAddress.parse(self.psk_valkey)
            yield from ((f"valkey.{key}", what) for key, what in self.valkey.contradictions_with(address))
        elif self.valkey != ValkeyKeys():
            yield (
                "valkey",
                'is of no use without psk_valkey; remedy: psk_valkey = "unix:/run/valkey/valkey.sock"',
            )

    def _about_clients(self) -> Iterator[tuple[str, str]]:
        told = self.client_authentication
        if self.shows_something and not self.knows_clients and told is None:
            yield (
                "client_authentication",
                (
                    "missing; it is not said which clients may connect; remedy: add client_ca or raw_public_keys, or"
                    '  client_authentication = "none"  to let anybody connect'
                ),
            )
        elif not self.knows_clients and told not in (None, "none"):
            yield "client_authentication", f'"{told}" needs client_ca or raw_public_keys'
        if self.client_crl_policy == "required" and not self.client_crl:
            yield "client_crl", 'missing; client_crl_policy = "required" needs it'
        if self.client_crl_policy == "none" and self.client_crl:
            yield "client_crl", 'is not looked at with client_crl_policy = "none"; remedy: remove one of them'
        needs_ca = ("client_crl", "client_crl_policy", "client_identity")
        first = next((name for name in needs_ca if getattr(self, name)), None)
        if first and not self.client_ca:
            yield first, "is of no use without client_ca"
