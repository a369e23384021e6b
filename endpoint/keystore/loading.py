"""Everything that ``[credentials]`` names, read and checked: all of it, or every mistake.

What cannot be used is a mistake. What could be used at another time (an expired certificate, a CRL that has run out)
is a *lapse*, which is judged by whoever asks: ``dtls-endpoint check`` calls it wrong; a start goes on and says so,
because the clock may be what is wrong, and devices with pre-shared keys need no clock; a reload takes no lapse that is
new, and is not stopped by one that was there before.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from endpoint.files import RefusedFileError, files_at, read_private, read_trusted
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.file import KeyFileError, PskSet, load_psk
from endpoint.keystore.module import find_object
from endpoint.keystore.pem import (
    CERTIFICATE,
    CRL,
    PRIVATE_KEYS,
    PemError,
    Validity,
    blocks_of,
    certificate_validity,
    crl_validity,
    issued,
    name_text,
    parse_certificate,
    refused_by_clients,
)
from endpoint.keystore.rawkeys import RawKeySet, load_raw_keys
from endpoint.text import show_text
from endpoint.valkey_access import AccessError, ValkeyAccess, load_access
from sansdtls import (
    CertificateCredential,
    CertificateType,
    ClientAuthentication,
    ConfigError,
    RawPublicKeyCredential,
    SigningKey,
)
from sansdtls.pki import CrlPolicy, Purpose, TrustPolicy

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from endpoint.credentials import Credentials
    from sansdtls import ServerConfig

S = TypeVar("S")
T = TypeVar("T")

NO_KEYS = PskSet(keys={}, files=())
NO_RAW_KEYS = RawKeySet(names={})


@attrs.frozen(kw_only=True)
class Dated:
    """A certificate or CRL that was loaded, and the file it is in."""

    file: str
    validity: Validity
    anchor: bool = False
    """One CA of several may have expired, or be for later; of other things each is needed."""

    def lapse(self, now: datetime) -> str:
        """What is wrong with it at this time, and where it is."""
        return f"{self.file}: {self.validity.lapse(now)}"


@attrs.frozen(kw_only=True)
class LoadedCredentials:
    """All credentials of an endpoint, ready for use."""

    psk: PskSet = NO_KEYS
    counted: tuple[int, int] | None = None
    """Identities in the database, and how many of them have a next key; as of loading."""
    valkey: ValkeyAccess | None = None
    module: object | None = attrs.field(default=None, repr=False)
    """What ``psk_module`` stands for; at the start only."""
    own: tuple[CertificateCredential | RawPublicKeyCredential, ...] = ()
    policy: TrustPolicy | None = None
    raw_keys: RawKeySet = NO_RAW_KEYS
    dated: tuple[Dated, ...] = ()
    notes: tuple[str, ...] = ()
    """Nothing wrong, but worth a look; ``file: what``."""

    @property
    def identities(self) -> int | None:
        """How many identities have keys, as of loading; ``None`` = only the store knows."""
        if self.valkey is not None or self.module is not None:
            return None
        return len(self.psk.keys) if self.counted is None else self.counted[0]

    @property
    def in_rotation(self) -> int | None:
        """How many of them have a next key."""
        if self.identities is None:
            return None
        return self.psk.in_rotation if self.counted is None else self.counted[1]

    def lapses(self, now: datetime) -> list[str]:
        """What is not valid at this time and has to be; ``file: what is wrong; remedy: …``."""
        return [dated.lapse(now) for dated in self._lapsed(now, needed=True)]

    def remarks(self, now: datetime) -> list[str]:
        """What is not valid at this time and need not be: CAs beside one that is, while a fleet changes CAs."""
        return [dated.lapse(now) for dated in self._lapsed(now, needed=False)]

    def new_lapses(self, before: LoadedCredentials, now: datetime) -> list[str]:
        """The lapses that ``before`` did not have."""
        known = {dated.validity.der for dated in before.dated}
        return [
            dated.lapse(now) for dated in self._lapsed(now, needed=True) if dated.validity.der not in known
        ]

    def _lapsed(self, now: datetime, *, needed: bool) -> list[Dated]:
        trusted = any(dated.anchor and not dated.validity.lapse(now) for dated in self.dated)
        return [
            dated
            for dated in self.dated
            if dated.validity.lapse(now) and (dated.anchor and trusted) is not needed
        ]

    def complete(self, base: ServerConfig, credentials: Credentials) -> ServerConfig:
        """``base``, which is ``[dtls]``, with these credentials."""
        hint = credentials.identity_hint
        types = [CertificateType.X509] if self.policy else []
        if credentials.raw_public_keys:
            types.append(CertificateType.RAW_PUBLIC_KEY)
        return attrs.evolve(
            base,
            psk=bool(credentials.psk_sources),
            psk_identity_hint=None if hint is None else hint.encode(),
            credentials=self.own,
            client_authentication=ClientAuthentication(credentials.asks_clients),
            client_certificate_types=tuple(types),
        )


def load_credentials(credentials: Credentials) -> LoadedCredentials:
    """Read all files; :class:`KeyFileError` lists all mistakes of all of them. Reaches for no network."""
    loader = _Loader(credentials)
    loaded = loader.everything()
    if loader.problems:
        raise KeyFileError(loader.problems)
    return loaded


class _Loader:
    """Gathers mistakes and notes over all files."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.problems: list[str] = []
        self._dated: list[Dated] = []
        self._notes: list[str] = []

    def everything(self) -> LoadedCredentials:
        told = self._credentials
        psk = self._set(load_psk, told.psk_file) or NO_KEYS
        own: list[CertificateCredential | RawPublicKeyCredential | None] = []
        for name, named in told.names.items():
            own.append(self._certificate(named.certificate, named.private_key, (name.lower(),)))
        if told.certificate and told.private_key:
            own.append(self._certificate(told.certificate, told.private_key, ()))
        if told.raw_public_key:
            key = self._private_key(told.raw_public_key)
            own.append(RawPublicKeyCredential(key) if key else None)
        policy = self._policy()
        raw_keys = self._set(load_raw_keys, told.raw_public_keys) or NO_RAW_KEYS
        if told.raw_public_keys and not raw_keys.names and not self.problems:
            self._notes.append(f"{show_text(str(told.raw_public_keys))}: holds no key")
        return LoadedCredentials(
            psk=psk,
            counted=self._set(_count, told.psk_database),
            valkey=self._valkey(),
            module=self._set(find_object, told.psk_module),
            own=tuple(credential for credential in own if credential),
            policy=policy,
            raw_keys=raw_keys,
            dated=tuple(self._dated),
            notes=(*psk.notes, *self._notes),
        )

    def _set(self, load: Callable[[S], T], what: S | None) -> T | None:
        if what is None:
            return None
        try:
            return load(what)
        except KeyFileError as error:
            self.problems += error.problems
            return None

    def _valkey(self) -> ValkeyAccess | None:
        told = self._credentials
        if told.psk_valkey is None:
            return None
        try:
            access = load_access(told.psk_valkey, told.valkey)
        except AccessError as error:
            self.problems += error.problems
            return None
        if access.address.crosses_network_in_clear:
            self._notes.append(
                f"{access.address}: keys cross the network in clear; remedy: valkeys:// for TLS"
            )
        return access

    def _wrong(self, path: Path, what: object) -> None:
        problem = f"{show_text(str(path))}: {what}"
        if problem not in self.problems:  # one file may be named twice
            self.problems.append(problem)

    # --- what the endpoint shows ---

    def _private_key(self, path: Path) -> SigningKey | None:
        try:
            content = read_private(path, what="a private key", plural="key")
            return SigningKey.from_pem(content)
        except RefusedFileError as refused:
            self._wrong(path, refused)
        except ConfigError as error:
            what = f"the {error}" if str(error).startswith("private key") else error
            remedy = ""
            if "needs a password" in str(error):
                remedy = "; remedy: openssl pkey -in FILE -out NEW takes it off"
            elif "there is none" in str(error):
                what, remedy = "holds no private key", "; it should have -----BEGIN PRIVATE KEY-----"
            self._wrong(path, f"{what}{remedy}")
        return None

    def _certificate(
        self, path: Path, key_path: Path, server_names: tuple[str, ...]
    ) -> CertificateCredential | None:
        key = self._private_key(key_path)
        chain: list[bytes] = []
        try:
            if path == key_path:
                content = read_private(path, what="a certificate with its key", plural="key")
                chain = blocks_of(content, CERTIFICATE, beside=PRIVATE_KEYS)
            else:
                chain = blocks_of(
                    read_trusted(path, what="a certificate", plural="certificates"), CERTIFICATE
                )
            certificates = [parse_certificate(der) for der in chain]
        except (RefusedFileError, PemError) as error:
            self._wrong(path, error)
            return None
        self._dated += [
            Dated(file=show_text(str(path)), validity=certificate_validity(certificate))
            for certificate in certificates
        ]
        for number, (below, above) in enumerate(itertools.pairwise(certificates), start=2):
            if not issued(above, below):
                self._wrong(
                    path,
                    f"certificate {number}, of {name_text(above.subject)}, has not issued the one before it;"
                    " remedy: put the endpoint's own first, then the one that issued it, and so on",
                )
                return None
        if key is None:
            return None
        self._notes += [f"{show_text(str(path))}: {note}" for note in refused_by_clients(certificates[0])]
        try:
            return CertificateCredential(tuple(chain), key, server_names)
        except ConfigError as error:
            what = str(error).partition(": ")[2] or str(error)
            if "not the key" in what:
                what = (
                    f"the private key in {show_text(str(key_path))} is not the key of this certificate, that of"
                    f" {name_text(certificates[0].subject)}; remedy: put the two that belong together here"
                )
            self._wrong(path, what)
        return None

    # --- whom the endpoint trusts ---

    def _policy(self) -> TrustPolicy | None:
        told = self._credentials
        if told.client_ca is None:
            return None
        anchors = self._trusted(told.client_ca, CERTIFICATE, "CA certificates", _read_certificate)
        crls = [] if told.client_crl is None else self._crls(told.client_crl)
        if not anchors:
            return None
        policy = told.client_crl_policy or ("if_present" if told.client_crl else "none")
        sources: dict[str, Any] = (
            {} if told.client_identity is None else {"identity_sources": told.client_identity}
        )
        try:
            return TrustPolicy(
                purpose=Purpose.CLIENT,
                anchors=tuple(anchors),
                crls=tuple(der for _, der in crls),
                crl_policy=CrlPolicy(policy),
                **sources,
            )
        except ConfigError as error:
            self._refused_policy(str(error), told.client_ca, [file for file, _ in crls])
            return None

    def _crls(self, path: Path) -> list[tuple[Path, bytes]]:
        """Each list with the file that it is from."""
        try:
            files = files_at(path, plural="revocation lists")
        except RefusedFileError as refused:
            self._wrong(path, refused)
            return []
        if not files:
            self._notes.append(f"{show_text(str(path))}: holds no revocation list, so nothing is revoked")
        return [
            (file, der)
            for file in files
            for der in self._trusted(file, CRL, "revocation lists", crl_validity)
        ]

    def _trusted(self, path: Path, kind: str, plural: str, read: Callable[[bytes], Validity]) -> list[bytes]:
        try:
            found = blocks_of(read_trusted(path, what=plural, plural=plural), kind)
            self._dated += [
                Dated(file=show_text(str(path)), validity=read(der), anchor=kind == CERTIFICATE)
                for der in found
            ]
        except (RefusedFileError, PemError) as error:
            self._wrong(path, error)
            return []
        return found

    def _refused_policy(self, text: str, client_ca: Path, crl_files: list[Path]) -> None:
        """Tell what a policy is refused for at the file that the part is from."""
        match = re.match(r"(?:TrustPolicy\.)?(anchors|crls): (?:number (\d+) )?(.*)", text, re.DOTALL)
        if match is None:
            self._wrong(client_ca, text)
            return
        field, number, what = match.groups()
        if field == "anchors":
            self._wrong(client_ca, f"certificate {number} {what}" if number else what)
        elif number and int(number) <= len(crl_files):
            self._wrong(crl_files[int(number) - 1], f"the CRL {what}")
        else:
            self._wrong(self._credentials.client_crl or client_ca, what)


def _read_certificate(der: bytes) -> Validity:
    return certificate_validity(parse_certificate(der))


def _count(path: Path) -> tuple[int, int]:
    with KeyDatabase(path) as database:
        return database.counts()
