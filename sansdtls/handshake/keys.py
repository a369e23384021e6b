"""From a premaster secret to the keys of an epoch, RFC 5246 §6.3 and §8.1, RFC 7627 §4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sansdtls.crypto.prf import MASTER_SECRET_LENGTH, VERIFY_DATA_LENGTH, digest, prf
from sansdtls.record.epochs import ReadEpoch, WriteEpoch
from sansdtls.record.protection import make_protection
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH, RECORD_HEADER_LENGTH

if TYPE_CHECKING:
    from sansdtls.config import Limits
    from sansdtls.crypto.suites import SuiteParameters


@attrs.frozen
class HandshakeParameters:
    """What both sides agreed on before any key is used."""

    suite: SuiteParameters
    client_random: bytes
    server_random: bytes
    session_hash: bytes | None
    """Hash of the transcript up to ClientKeyExchange, RFC 7627 §3; ``None`` without the extension, and in a
    resumed handshake, which derives no master secret."""
    is_client: bool
    limits: Limits
    connection_id: bytes = b""
    """What the peer puts into its records."""
    peer_connection_id: bytes = b""
    """What we put into ours."""
    padding: int = 1
    """Records with a connection ID are padded to a multiple of so many bytes."""
    max_plaintext: int = MAX_PLAINTEXT_LENGTH
    """What fits one record of ours, padding included, and is taken by the peer; in bytes."""


def room_for_plaintext(
    suite: SuiteParameters, mtu: int, peer_connection_id: bytes, max_plaintext: int
) -> int:
    """Bytes of plaintext, type and padding included, that fit a datagram and are taken by the peer."""
    return min(max_plaintext, mtu - RECORD_HEADER_LENGTH - len(peer_connection_id) - suite.overhead)


@attrs.frozen
class EpochKeys:
    """What one premaster secret leads to."""

    master_secret: bytes = attrs.field(repr=False)
    read: ReadEpoch
    write: WriteEpoch


def derive_master_secret(parameters: HandshakeParameters, premaster: bytes) -> bytes:
    """RFC 7627 §4, or RFC 5246 §8.1 without the extension."""
    if parameters.session_hash is not None:
        label, seed = b"extended master secret", parameters.session_hash
    else:
        label, seed = b"master secret", parameters.client_random + parameters.server_random
    return prf(parameters.suite.prf_hash, premaster, label, seed, MASTER_SECRET_LENGTH)


def derive_epoch_keys(parameters: HandshakeParameters, master_secret: bytes) -> EpochKeys:
    """Both directions of epoch 1."""
    suite, limits = parameters.suite, parameters.limits
    padding, most = parameters.padding, parameters.max_plaintext
    ours, peers = parameters.connection_id, parameters.peer_connection_id
    of_client, of_server = (peers, ours) if parameters.is_client else (ours, peers)
    key_block = prf(
        suite.prf_hash,
        master_secret,
        b"key expansion",
        parameters.server_random + parameters.client_random,
        2 * (suite.key_length + suite.fixed_iv_length),
    )
    # RFC 5246 §6.3: client key, server key, client IV, server IV; AEAD suites have no MAC keys.
    ivs = 2 * suite.key_length
    client_key, server_key = key_block[: suite.key_length], key_block[suite.key_length : ivs]
    client_iv, server_iv = (
        key_block[ivs : ivs + suite.fixed_iv_length],
        key_block[ivs + suite.fixed_iv_length :],
    )
    client = make_protection(suite, client_key, client_iv, of_client, padding, most)
    server = make_protection(suite, server_key, server_iv, of_server, padding, most)
    read, write = (server, client) if parameters.is_client else (client, server)
    return EpochKeys(
        master_secret,
        ReadEpoch(
            1,
            limits.replay_window,
            read,
            max_failed_opens=limits.max_failed_opens or suite.max_failed_opens,
            connection_id=ours,
        ),
        WriteEpoch(
            1,
            write,
            max_sealed=limits.max_sealed_records or suite.max_sealed,
            connection_id=peers,
        ),
    )


DECOY = -1
"""The index of a random key that takes as long to try as a real one and never lets anybody in."""


class KeyCandidate:
    """A secret that the peer may hold. Its epoch keys are derived when first needed, and then kept.

    ``index`` is the key's place in the answer to ``PskRequested``, or ``DECOY``; 0 where there is only one
    candidate. ``psk`` is the key itself, where it is one. The secret is the premaster secret of a full
    handshake or the master secret of a resumed session.
    """

    __slots__ = ("_keys", "_master_secret", "_parameters", "_premaster", "index", "psk")

    def __init__(
        self,
        index: int,
        parameters: HandshakeParameters,
        *,
        premaster: bytes = b"",
        master_secret: bytes | None = None,
        psk: bytes | None = None,
    ) -> None:
        self.index = index
        self.psk = psk
        self._premaster = premaster
        self._master_secret = master_secret
        self._parameters = parameters
        self._keys: EpochKeys | None = None

    @property
    def keys(self) -> EpochKeys:
        """Master secret and epochs under this key."""
        if self._keys is None:
            master_secret = self._master_secret or derive_master_secret(self._parameters, self._premaster)
            self._keys = derive_epoch_keys(self._parameters, master_secret)
        return self._keys


def verify_data(suite: SuiteParameters, master_secret: bytes, label: bytes, transcript: bytes) -> bytes:
    """The content of Finished, RFC 5246 §7.4.9."""
    return prf(suite.prf_hash, master_secret, label, digest(suite.prf_hash, transcript), VERIFY_DATA_LENGTH)
