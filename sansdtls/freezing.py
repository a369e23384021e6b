"""A connection turned into bytes and back.

What is saved is described, sealed and checked in ``snapshot.py``; here it is taken from a connection that
is connected, and put into a new one. A handshake under way cannot be saved: it holds private keys and answers
that somebody is waiting for, and whoever lost it begins anew.

The keys themselves are not saved but derived again from the master secret, which has to be there for
exporters anyhow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Self

from sansdtls.association import Association, ConnectionState
from sansdtls.config import ClientConfig
from sansdtls.crypto.suites import SUITES
from sansdtls.errors import SnapshotError, WrongState
from sansdtls.handshake.flight import FlightPart
from sansdtls.handshake.keys import HandshakeParameters, derive_epoch_keys, room_for_plaintext
from sansdtls.handshake.negotiation import Negotiated, shared
from sansdtls.handshake.outcome import Peer
from sansdtls.iana import HandshakeType, ProtocolVersion
from sansdtls.record.epochs import WriteEpoch
from sansdtls.record.layer import RecordLayer
from sansdtls.saved import SavedAssociation
from sansdtls.session import Session
from sansdtls.snapshot import RESERVE, THAW_JUMP, decode_snapshot, encode_snapshot
from sansdtls.wire.handshake import HandshakeMessage
from sansdtls.wire.messages import RANDOM_LENGTH
from sansdtls.wire.record import MAX_SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable

    from sansdtls.association import Watcher
    from sansdtls.config import ServerConfig
    from sansdtls.record.layer import Outgoing
    from sansdtls.statistics import ServerStatistics


class Origin(NamedTuple):
    """Where a connection was thawed from."""

    base: int
    """The number that it could have begun with, had nothing been left out for safety at thawing."""
    first_number: int
    """The one that was begun with instead."""


class FreezableAssociation(Association):
    """What :class:`~sansdtls.Connection` has of all this."""

    __slots__ = ()

    def freeze(self, *, now: float) -> bytes:
        """Turn the association into bytes and end this object: its state is ``FROZEN``, no event tells of it.

        Of a server's connection use ``server.freeze``. The bytes are secret unless ``snapshot_keys`` are
        configured, and are to be thawed once: twice, two connections would use the same nonces. ``now``
        must come from a clock that goes on until they are thawed. Counters and a check of a new path under
        way are not kept.

        Raises WrongState unless connected, while events wait and for a server's connection, SnapshotError if
        the path cannot be saved.
        """
        if self._watcher is not None:
            raise WrongState("cannot freeze: the connection has its place in a server; use server.freeze")
        if self._events:
            raise WrongState("cannot freeze: events wait to be fetched")
        blob = self.snapshot(generation=0, keys=self._config.snapshot_keys)
        self.leave()
        return blob

    @classmethod
    def thaw(
        cls,
        blob: bytes,
        config: ClientConfig | ServerConfig,
        *,
        entropy: Callable[[int], bytes],
        now: float,
    ) -> Self:
        """A connection that goes on where the frozen one was. For a server's use ``server.thaw``.

        ``config`` gives limits, size of datagrams and ``snapshot_keys``; what was negotiated stays. Raises
        SnapshotError if the bytes are damaged, of another version, sealed under another key, or not of this role.
        """
        saved = decode_snapshot(blob, keys=config.snapshot_keys)
        if saved.is_client is not isinstance(config, ClientConfig):
            role, other = ("client", "server") if saved.is_client else ("server", "client")
            raise SnapshotError(f"the frozen association is a {role}'s, the configuration a {other}'s")
        return cls.revived(saved, config, entropy=entropy, now=now, outbox=[], totals=None)

    # --- for the server -----------------------------------------------------------------------------

    def snapshot(self, *, generation: int, keys: tuple[bytes, ...]) -> bytes:
        """The bytes, without ending anything. Each has a serial above that of all before.

        ``keys`` are those of today: the connection may be older, and its own may have been replaced.
        """
        if self._state is not ConnectionState.CONNECTED:
            raise WrongState(f"cannot freeze: the connection is {self._state.value}")
        saved = self._saved(generation)
        self.serial += 1
        return encode_snapshot(saved, keys=keys, entropy=self._entropy)

    def checkpoint(self, *, generation: int, keys: tuple[bytes, ...]) -> tuple[bytes, int]:
        """The bytes, and the number that may not be reached before the checkpoint after this one is confirmed."""
        write = self._layer.write
        bound = write.next_sequence_number + RESERVE
        blob = self.snapshot(generation=generation, keys=keys)
        if write.reserved_until == MAX_SEQUENCE_NUMBER:
            write.reserve_until(bound)  # the first: until now nothing could have been found
        return blob, bound

    def reserve_until(self, number: int) -> None:
        """The numbers below this one may be used."""
        write = self._layer.write
        write.reserve_until(max(number, write.reserved_until))

    @property
    def reserved_until(self) -> int:
        """The number that may not be reached."""
        return self._layer.write.reserved_until

    @property
    def watcher(self) -> Watcher | None:
        """Its place in a server."""
        return self._watcher

    @property
    def failed_opens(self) -> int:
        """Records that no key authenticated, over all the association's life."""
        return self._layer.read.failed_opens

    @property
    def has_events(self) -> bool:
        """Whether events wait to be fetched."""
        return bool(self._events)

    @property
    def client_random(self) -> bytes:
        """Of the handshake; none before it is complete."""
        return self._randoms[:RANDOM_LENGTH]

    @property
    def server_random(self) -> bytes:
        """The same; on a server it names the association, because nobody else has drawn it."""
        return self._randoms[RANDOM_LENGTH:]

    def leave(self) -> None:
        """End this object, but not the association."""
        self._state = ConnectionState.FROZEN
        self._max_payload = 0
        self._master_secret = b""
        self._last_flight = ()
        self._layer.forget_keys()

    def drop_last_flight(self, now: float) -> None:
        """Forget it if nobody may ask for it any more: it need not be saved."""
        if now >= self._repeat_until:
            self._last_flight = ()

    def rests_at(self, freeze_after: float) -> float:
        """When it will have been silent for so many seconds, and nobody may ask for the last flight any more."""
        rest = max(self.last_received, self.last_sent) + freeze_after
        return max(rest, self._repeat_until) if self._last_flight else rest

    def rests(self, now: float) -> bool:
        """Whether nothing would be lost by freezing: nobody may need what only a live object can do."""
        return (
            self._state is ConnectionState.CONNECTED
            and not self._events
            and not self.path_check_under_way
            and (not self._last_flight or now >= self._repeat_until)
        )

    def _saved(self, generation: int) -> SavedAssociation:
        assert self._negotiated is not None  # noqa: S101 - connected
        assert self._peer is not None  # noqa: S101 - connected
        layer, negotiated, peer = self._layer, self._negotiated, self._peer
        origin = self._origin
        number = layer.write.next_sequence_number
        if origin is not None and number == origin.first_number:
            # Nothing was sent: what was left out at thawing is not lost, or junk could use up the numbers.
            number = origin.base
        idle_timeout = self._idle_timeout
        epoch_0 = next((part.epoch for part in self._last_flight if part.epoch is not layer.write), None)
        return SavedAssociation(
            is_client=self._is_client,
            cipher_suite=negotiated.cipher_suite,
            extended_master_secret=negotiated.extended_master_secret,
            secure_renegotiation=negotiated.secure_renegotiation,
            resumed=negotiated.resumed,
            group=negotiated.group,
            server_name=negotiated.server_name,
            alpn_protocol=negotiated.alpn_protocol,
            return_routability=negotiated.return_routability,
            master_secret=self._master_secret,
            client_random=self.client_random,
            server_random=self.server_random,
            connection_id=layer.connection_id,
            peer_connection_id=layer.write.connection_id,
            write_sequence_number=number,
            read_highest=layer.read.window.highest,
            read_seen=layer.read.window.seen,
            failed_opens=layer.read.failed_opens,
            max_plaintext=self._max_plaintext,
            max_accepted=self._max_accepted,
            next_receive_seq=self._next_receive_seq,
            last_flight=tuple(
                (int(part.epoch is layer.write), None, 0, b"")
                if part.message is None
                else (int(part.epoch is layer.write), *part.message)
                for part in self._last_flight
            ),
            epoch_0_sequence_number=0 if epoch_0 is None else epoch_0.next_sequence_number,
            psk_identity=peer.psk_identity,
            psk_key_index=peer.psk_key_index,
            certificate_chain=peer.certificate_chain,
            raw_public_key=peer.raw_public_key,
            path=layer.path,
            last_received=self.last_received,
            expires_at=math.inf if idle_timeout is None else self.last_received + idle_timeout,
            generation=generation,
            serial=self.serial,
            annotation=self._annotation,
            session=b"" if self._session is None else self._session.to_bytes(),
        )

    @classmethod
    def revived(
        cls,
        saved: SavedAssociation,
        config: ClientConfig | ServerConfig,
        *,
        entropy: Callable[[int], bytes],
        now: float,
        outbox: list[Outgoing],
        totals: ServerStatistics | None,
        generation: int | None = None,
        reserved_until: int = MAX_SEQUENCE_NUMBER,
        watcher: Watcher | None = None,
    ) -> Self:
        """A connection made of what was saved. Raises SnapshotError if its numbers are used up."""
        layer = RecordLayer(
            path=saved.path,
            outbox=outbox,
            totals=totals,
            window_width=config.limits.replay_window,
            max_datagram_size=config.mtu,
        )
        layer.connection_id = saved.connection_id
        connection = cls(config, layer, min(saved.last_received, now), entropy, is_client=saved.is_client)
        policy, suite = config.connection_id, SUITES[saved.cipher_suite]
        parameters = HandshakeParameters(
            suite,
            saved.client_random,
            saved.server_random,
            None,
            is_client=saved.is_client,
            limits=config.limits,
            connection_id=saved.connection_id,
            peer_connection_id=saved.peer_connection_id,
            padding=1 if policy is None else policy.padding,
            max_plaintext=room_for_plaintext(
                suite, config.mtu, saved.peer_connection_id, saved.max_plaintext
            ),
        )
        keys = derive_epoch_keys(parameters, saved.master_secret)
        layer.read, layer.write = keys.read, keys.write
        layer.read.window.restore(saved.read_highest, saved.read_seen)
        layer.read.failed_opens = saved.failed_opens
        generations = 0 if generation is None else generation - saved.generation
        if generations < 0:
            raise SnapshotError(
                f"the frozen association is of generation {saved.generation}, later than this store's "
                f"{generation}: somebody has put back an old store"
            )
        base = saved.write_sequence_number + RESERVE * generations
        first = base + THAW_JUMP
        layer.write.next_sequence_number = first
        if layer.write.remaining <= 1:
            raise SnapshotError("the frozen association has used up its record numbers")
        if reserved_until < MAX_SEQUENCE_NUMBER:
            layer.write.reserve_until(reserved_until)
        connection._origin = Origin(base, first)
        connection.serial = saved.serial + 1
        connection.last_sent = now  # whoever wakes it has something to send
        connection._state = ConnectionState.CONNECTED
        connection._watcher = watcher
        connection._settle_sizes(saved.max_plaintext, saved.max_accepted)
        connection._negotiated = shared(
            Negotiated(
                version=ProtocolVersion.DTLS_1_2,
                cipher_suite=saved.cipher_suite,
                extended_master_secret=saved.extended_master_secret,
                secure_renegotiation=saved.secure_renegotiation,
                group=saved.group,
                server_name=saved.server_name,
                alpn_protocol=saved.alpn_protocol,
                resumed=saved.resumed,
                return_routability=saved.return_routability,
            )
        )
        connection._peer = peer_of(saved)
        connection._session = Session.from_bytes(saved.session) if saved.session else None
        connection._master_secret = saved.master_secret
        connection._randoms = saved.client_random + saved.server_random
        connection._next_receive_seq = saved.next_receive_seq
        connection._annotation = saved.annotation
        connection._restore_last_flight(saved, now)
        return connection

    def _restore_last_flight(self, saved: SavedAssociation, now: float) -> None:
        epoch_0 = WriteEpoch(0, first_sequence_number=saved.epoch_0_sequence_number)
        self._last_flight = tuple(
            FlightPart(
                self._layer.write if epoch else epoch_0,
                None
                if message_type is None
                else HandshakeMessage(HandshakeType(message_type), message_seq, body),
            )
            for epoch, message_type, message_seq, body in saved.last_flight
        )
        self._expect_repeats_until(now)


def peer_of(saved: SavedAssociation) -> Peer:
    """Who is at the other end of it."""
    return Peer(saved.psk_identity, saved.psk_key_index, saved.certificate_chain, saved.raw_public_key)
