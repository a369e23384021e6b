"""What ``dtls-endpoint connect`` is told of credentials, as a client configuration and a verifier."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING, Any

import attrs

from endpoint.files import RefusedFileError, read_private, read_trusted
from endpoint.keystore.file import KeyFileError, load_psk
from endpoint.keystore.pem import (
    CERTIFICATE,
    PRIVATE_KEYS,
    PUBLIC_KEY,
    PemError,
    blocks_of,
    parse_certificate,
    public_key,
)
from endpoint.text import show_bytes, show_text
from endpoint.verification import PeerVerifier
from sansdtls import (
    CertificateCredential,
    CertificateType,
    ClientConfig,
    ConfigError,
    RawPublicKeyCredential,
    SigningKey,
)
from sansdtls.pki import Purpose, TrustPolicy

if TYPE_CHECKING:
    from pathlib import Path


class DeviceError(Exception):
    """What is wrong with the options or their files: ``problems``, one line each."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@attrs.frozen(kw_only=True)
class Device:
    """The options of ``connect`` that are about credentials."""

    host: str
    identity: bytes | None = None
    psk_file: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    ca: Path | None = None
    server_name: str | None = None
    raw_public_key: Path | None = None

    def fingerprint(self, port: int) -> str:
        """Stands for server and credentials, by what was told and by what trusted files hold."""
        digest = hashlib.sha256(repr((self, port)).encode())
        for path in (self.ca, self.raw_public_key, self.certificate):
            if path is not None:
                try:
                    digest.update(path.read_bytes())
                except OSError:
                    continue  # told when it is read for use
        return digest.hexdigest()

    def config(self, **more: Any) -> ClientConfig:
        """The configuration; :class:`DeviceError` for what is wrong, ``ConfigError`` for ``more``."""
        self._require_enough()
        kinds = []
        if self.raw_public_key:
            kinds.append(CertificateType.RAW_PUBLIC_KEY)
        if self.ca:
            kinds.append(CertificateType.X509)
        own = self._own()
        return ClientConfig(
            psk_identity=self.identity,
            psk_key=None if self.identity is None else self._psk(self.identity),
            server_certificate_types=tuple(kinds),
            credentials=() if own is None else (own,),
            server_name=self._name_to_send(),
            **more,
        )

    def verifier(self) -> PeerVerifier | None:
        """What judges the server; ``None`` where only its PSK counts."""
        if not (self.ca or self.raw_public_key):
            return None
        policy = None
        if self.ca is not None:
            anchors = self._read(self.ca, CERTIFICATE)
            try:
                policy = TrustPolicy(purpose=Purpose.SERVER, anchors=anchors)
            except ConfigError as error:
                raise _problem(self.ca, str(error).partition(": ")[2]) from None
        keys = {}
        if self.raw_public_key is not None:
            name = self.raw_public_key.stem.encode("utf-8", "surrogateescape")
            try:
                keys = {public_key(der): name for der in self._read(self.raw_public_key, PUBLIC_KEY)}
            except PemError as error:
                raise _problem(self.raw_public_key, error) from None
        return PeerVerifier(policy, keys, server_name=self.server_name or self.host)

    def _require_enough(self) -> None:
        def wrong(what: str) -> DeviceError:
            return DeviceError([f"dtls-endpoint connect: {what}"])

        if (self.identity is None) != (self.psk_file is None):
            raise wrong("--identity and --psk-file need each other")
        if self.certificate and not self.private_key:
            raise wrong("--cert needs --key, the private key of the certificate")
        if not (self.psk_file or self.ca or self.raw_public_key):
            raise wrong(
                "it is not said how the server proves who it is; remedy: add --identity and --psk-file, or --ca,"
                " or --raw-public-key"
            )
        if (self.private_key or self.server_name) and not (self.ca or self.raw_public_key):
            option = "--key" if self.private_key else "--server-name"
            raise wrong(f"{option} is for a server with --ca or --raw-public-key")

    def _name_to_send(self) -> str | None:
        """RFC 6066 §3: names only, no addresses. With a PSK alone a server has no use for it."""
        name = self.server_name or (self.host if self.ca or self.raw_public_key else None)
        if name is None or _is_address(name):
            return None
        return name.removesuffix(".")

    def _psk(self, identity: bytes) -> bytes:
        assert self.psk_file is not None  # noqa: S101 - see _require_enough
        try:
            keys = load_psk(self.psk_file).keys.get(identity)
        except KeyFileError as error:
            raise DeviceError(list(error.problems)) from None
        if not keys:
            raise _problem(self.psk_file, f'no key for identity "{show_bytes(identity)}"')
        return keys[0]

    def _own(self) -> CertificateCredential | RawPublicKeyCredential | None:
        if self.private_key is None:
            return None
        try:
            key = SigningKey.from_pem(read_private(self.private_key, what="a private key", plural="key"))
        except (RefusedFileError, ConfigError) as error:
            raise _problem(self.private_key, error) from None
        if self.certificate is None:
            return RawPublicKeyCredential(key)
        chain = self._read(self.certificate, CERTIFICATE)
        try:
            return CertificateCredential(chain, key)
        except ConfigError as error:
            raise _problem(self.certificate, str(error).partition(": ")[2]) from None

    def _read(self, path: Path, kind: str) -> tuple[bytes, ...]:
        beside = PRIVATE_KEYS if path == self.private_key else ()
        try:
            found = blocks_of(read_trusted(path, what="a PEM file", plural="keys"), kind, beside=beside)
            if kind == CERTIFICATE:
                for der in found:
                    parse_certificate(der)
        except (RefusedFileError, PemError) as error:
            raise _problem(path, error) from None
        return tuple(found)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _problem(path: Path, what: object) -> DeviceError:
    return DeviceError([f"{show_text(str(path))}: {what}"])
