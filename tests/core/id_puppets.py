"""Records with connection IDs and peers that speak them, written from RFC 9146 for the tests.

As ``key_schedule.py`` and ``puppet.py``, which they extend: not a line of ``sansdtls``. Where both agree with a
recording of Mbed TLS, both are right.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag

from sansdtls import ClientConfig, ConnectionIdPolicy
from tests.core import raw
from tests.core.key_schedule import SUITES, Protection
from tests.core.puppet import IDENTITY, KEY, ClientRig, Puppet, PuppetClient, PuppetServer, ServerRig

CONNECTION_ID, RRC = 54, 61
PUPPETS_ID = b"puppet"
"""What a puppet wants to find in records to it."""


class IdProtection:
    """One direction of record protection with a connection ID, RFC 9146 §4 and §5.3."""

    def __init__(self, plain: Protection, connection_id: bytes):
        self.plain = plain
        self.connection_id = connection_id

    def _additional_data(self, version: int, number: bytes, length: int) -> bytes:
        return (
            b"\xff" * 8  # seq_num_placeholder
            + bytes([25])  # tls12_cid
            + bytes([len(self.connection_id)])
            + bytes([25])
            + version.to_bytes(2, "big")
            + number
            + self.connection_id
            + length.to_bytes(2, "big")
        )

    def seal_inner(self, inner: bytes, *, epoch: int, seq: int, version: int = raw.DTLS_1_2) -> bytes:
        """A record with ``inner`` as its DTLSInnerPlaintext, well-formed or not."""
        number = epoch.to_bytes(2, "big") + seq.to_bytes(6, "big")
        additional = self._additional_data(version, number, len(inner))
        sealed = self.plain.cipher.encrypt(self.plain._nonce(number), inner, additional)
        explicit = b"" if self.plain.aead == "CHACHA20" else number
        return raw.record(
            raw.TLS12_CID,
            explicit + sealed,
            epoch=epoch,
            seq=seq,
            version=version,
            connection_id=self.connection_id,
        )

    def seal(self, content_type: int, content: bytes, *, epoch: int, seq: int, zeros: int = 0) -> bytes:
        return self.seal_inner(content + bytes([content_type]) + bytes(zeros), epoch=epoch, seq=seq)

    def open_inner(self, sealed: raw.Record) -> bytes:
        """DTLSInnerPlaintext; ``InvalidTag`` where it does not authenticate."""
        assert (sealed.type, sealed.connection_id) == (raw.TLS12_CID, self.connection_id)
        number = sealed.epoch.to_bytes(2, "big") + sealed.seq.to_bytes(6, "big")
        payload, explicit = sealed.payload, number
        if self.plain.aead != "CHACHA20":
            explicit, payload = payload[:8], payload[8:]
        length = len(payload) - SUITES[self.plain.suite].tag_length
        return self.plain.cipher.decrypt(
            self.plain._nonce(explicit), payload, self._additional_data(sealed.version, number, length)
        )

    def open(self, sealed: raw.Record) -> tuple[int, bytes]:
        """True type and content."""
        content = self.open_inner(sealed)
        while content[-1] == 0:
            content = content[:-1]
        return content[-1], content[:-1]


def connection_id_extension(connection_id: bytes) -> tuple[int, bytes]:
    return (CONNECTION_ID, raw.vector(connection_id, 1))


class _WithIds(Puppet):
    """``own_id`` is what it asks for (``None`` = it does not speak of IDs), ``peers_id`` what it is asked for."""

    def __init__(self, rig, *, own_id: bytes | None = PUPPETS_ID, more_extensions=(), **more):
        self.own_id = own_id
        self.more_extensions = tuple(more_extensions)
        self.peers_id: bytes | None = None
        super().__init__(rig, **more)

    @property
    def with_ids(self) -> bool:
        """Whether both have spoken of IDs."""
        return self.own_id is not None and self.peers_id is not None

    @property
    def id_length(self) -> int:
        return len(self.own_id or b"")

    @property
    def extensions(self) -> tuple[tuple[int, bytes], ...]:
        ids = () if self.own_id is None else (connection_id_extension(self.own_id),)
        return (*raw.DEFAULT_EXTENSIONS, *ids, *self.more_extensions)

    def find_id(self, extensions: tuple[tuple[int, bytes], ...] | None) -> None:
        body = dict(extensions or ()).get(CONNECTION_ID)
        if body is not None:
            assert body[0] == len(body) - 1
            self.peers_id = body[1:]

    def sealing(self, role: str) -> IdProtection | None:
        """How ``role`` protects what it sends; ``None`` = without a connection ID."""
        connection_id = self.peers_id if role == self.role else self.own_id
        return IdProtection(self.protection(role), connection_id) if self.with_ids and connection_id else None

    def take_seq(self) -> int:
        self.record_seq[1] += 1
        return self.record_seq[1] - 1

    def record(
        self, content_type: int, payload: bytes, *, epoch: int = 0, seq: int | None = None, zeros: int = 0
    ) -> bytes:
        sealing = self.sealing(self.role) if epoch else None
        if sealing is None:
            return super().record(content_type, payload, epoch=epoch, seq=seq)
        seq = self.take_seq() if seq is None else seq
        return sealing.seal(content_type, payload, epoch=epoch, seq=seq, zeros=zeros)

    def inner(self, inner: bytes, *, seq: int | None = None) -> bytes:
        """A record with this DTLSInnerPlaintext."""
        sealing = self.sealing(self.role)
        assert sealing is not None
        return sealing.seal_inner(inner, epoch=1, seq=self.take_seq() if seq is None else seq)

    def opened(self, datagrams: list[bytes] | None = None) -> list[tuple[int, bytes]]:
        found = []
        for datagram in self.answers if datagrams is None else datagrams:
            for each in raw.records(datagram, self.id_length):
                if each.epoch != 1 or self.keys is None:
                    continue
                sealing = self.sealing(self.other_role)
                assert (each.type == raw.TLS12_CID) == (sealing is not None), "the other record format"
                try:
                    if sealing is None:
                        found.append((each.type, self.protection(self.other_role).open(each)))
                    else:
                        found.append(sealing.open(each))
                except InvalidTag:
                    continue
        return found


class IdClient(_WithIds, PuppetClient):
    """A client that offers connection IDs."""

    def __init__(self, rig: ServerRig | None = None, *, random: bytes | None = None, **more):
        super().__init__(rig or ServerRig(), **more)
        self.random = random or self.random

    def hello_body(self, **more) -> bytes:
        return super().hello_body(**{"extensions": self.extensions, **self.hello_options, **more})

    def read_server_flight(self, answers: list[bytes]) -> None:
        super().read_server_flight(answers)
        self.find_id(self.server_hello.extensions)


class IdServer(_WithIds, PuppetServer):
    """A server that answers connection IDs where they are offered."""

    def __init__(self, rig: ClientRig | None = None, *, policy: ConnectionIdPolicy | None = None, **more):
        super().__init__(rig or ClientRig(offering(policy)), **more)

    def read_hello(self, datagrams: list[bytes]) -> None:
        super().read_hello(datagrams)
        self.find_id(self.client_hello.extensions)

    def server_hello_body(self, **more) -> bytes:
        return super().server_hello_body(**{"extensions": self.extensions, **more})


def offering(policy: ConnectionIdPolicy | None = None, **more) -> ClientConfig:
    """A client that offers connection IDs."""
    policy = policy or ConnectionIdPolicy()
    return ClientConfig(**{"psk_identity": IDENTITY, "psk_key": KEY, "connection_id": policy, **more})
