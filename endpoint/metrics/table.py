"""Every metric that is exported, and why the other figures are not.

A figure's place is its path in the statistics, ``server.handshakes_failed.{cause}``: a word in braces stands for any
member and becomes a label. The names are those of the counters in the code, after ``dtls_``; ``docs/metrics.md`` is
made from this table. A figure that is neither here nor in :data:`NOT_EXPORTED` fails a test.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable


@enum.unique
class Kind(enum.Enum):
    """Types of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@attrs.frozen
class Metric:
    """One family of time series."""

    name: str
    """Without ``_total``, which counters get."""
    kind: Kind
    at: tuple[str, ...]
    """Where it stands in the statistics; the first that is there counts."""
    help: str
    advice: str
    """What to do when it rises, or falls."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names, in the order of the path."""
        return tuple(re.findall(r"{(\w+)}", self.at[0]))

    @property
    def series(self) -> str:
        """The name under which it is asked for."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def _counter(name: str, at: str, help_text: str, advice: str = "—") -> Metric:
    return Metric(name, Kind.COUNTER, tuple(at.split()), help_text, advice)


def _gauge(name: str, at: str, help_text: str, advice: str = "—") -> Metric:
    return Metric(name, Kind.GAUGE, tuple(at.split()), help_text, advice)


def _histogram(name: str, at: str, help_text: str, advice: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, tuple(at.split()), help_text, advice)


HANDSHAKES = (
    _counter(
        "dtls_handshakes_started",
        "server.handshakes_started",
        "Handshakes begun with a client that had proved its address.",
        "A fleet that comes back, or one device in a loop: `dtls-endpoint status` names the busiest sources.",
    ),
    _counter(
        "dtls_handshakes_completed",
        "server.handshakes_completed",
        "Handshakes that succeeded, resumptions included.",
        "Much more often than devices restart: their associations are lost on the way (NAT, no connection ID).",
    ),
    _counter(
        "dtls_handshakes_failed",
        "server.handshakes_failed.{cause}",
        "Handshakes that failed, by cause; the cause is the one in the log.",
        "`dtls-endpoint doctor IDENTITY` says what to do about each; wrong_key after a rotation: devices have old keys.",
    ),
    _histogram(
        "dtls_handshake_seconds",
        "handshake_seconds.{result}",
        "Seconds from a valid cookie to the end of a handshake, by result.",
        "Slow and completed: lost datagrams or a busy endpoint. Failed after 30 s and more: devices that fall silent.",
    ),
    _counter(
        "dtls_retransmissions",
        "server.retransmissions",
        "Flights sent again, for whatever reason.",
        "A lossy path, or an endpoint that answers too late.",
    ),
    _counter(
        "dtls_cookies_sent",
        "server.cookies_sent",
        "Answers to hellos that had not proved their address.",
        "Many more than handshakes_started: a scan, or a flood with forged addresses; it costs no memory.",
    ),
    _counter(
        "dtls_cookies_bad",
        "server.cookies_bad",
        "Hellos with a cookie that did not verify.",
        "Forged, or devices whose address changes within a handshake (NAT).",
    ),
    _counter(
        "dtls_offers_refused", "server.offers_refused", "Handshakes refused by a quota or while stopping."
    ),
    _counter(
        "dtls_psk_unknown",
        "server.psk_unknown",
        "Handshakes with an identity that has no key.",
        "A device that was not provisioned, or somebody who guesses names.",
    ),
    _counter(
        "dtls_peers_rejected",
        "tally.peers_rejected.{problem}",
        "Certificates and raw public keys that were not accepted, by problem.",
        "expired, crl_not_current: renew. revoked, unknown_key: somebody uses what was withdrawn.",
    ),
    _counter("dtls_sessions_resumed", "tally.sessions_resumed", "Handshakes that resumed a session."),
    _counter(
        "dtls_associations_made",
        "tally.associations_made.{credential}",
        "Devices let in, by the kind of credential.",
    ),
    _counter(
        "dtls_cipher_suites_used",
        "tally.cipher_suites_used.{cipher_suite}",
        "Devices let in, by cipher suite.",
        "Shows whether a cipher suite can be switched off.",
    ),
    _counter(
        "dtls_psk_keys_used",
        "tally.psk_keys_used.{key}",
        "Devices let in with the current or the next of their keys.",
        "A rotation is done when the fleet uses `next` only.",
    ),
    _gauge(
        "dtls_handshakes",
        "handshakes",
        "Handshakes under way.",
        "Stays high: devices fall silent, a key store is slow, or a storm; see handshake_seconds.",
    ),
    _gauge(
        "dtls_half_open",
        "server.half_open",
        "Offers, hello reassemblies and handshakes under way.",
        "Close to dtls.limits.max_half_open: newcomers are refused.",
    ),
    _gauge("dtls_reassembly_bytes", "server.reassembly_size", "Bytes of handshake fragments held."),
    _gauge(
        "dtls_waiting",
        "intake.waiting.{queue}",
        "Datagrams that wait because live associations come first, by queue.",
        "More handshakes than there is time for (quotas.handshake_share): a storm or a flood.",
    ),
    _gauge("dtls_waiting_bytes", "intake.waiting_bytes", "Bytes of those datagrams."),
    _counter("dtls_waited", "intake.waited.{queue}", "Datagrams that had to wait, by queue."),
    _counter(
        "dtls_waited_seconds",
        "intake.seconds_waited",
        "Seconds that they waited, added up; divided by waited, the mean delay of a handshake's datagram.",
        "As waiting.",
    ),
    _counter(
        "dtls_superseded",
        "intake.superseded",
        "Waiting datagrams that were dropped for a newer one of the same peer.",
    ),
    _counter(
        "dtls_handshake_work_seconds", "intake.seconds_spent", "Seconds of computing for what had to wait."
    ),
)

ASSOCIATIONS = (
    _gauge(
        "dtls_associations", "associations", "Live associations.", "Falls suddenly: see associations_ended."
    ),
    _gauge("dtls_frozen", "frozen", "Frozen associations: silent devices, kept in a few hundred bytes."),
    _gauge("dtls_identities", "identities", "Identities with a live association."),
    _counter(
        "dtls_associations_ended",
        "tally.associations_ended.{cause}",
        "Associations that ended, by cause.",
        "IdleTimeout: devices vanished. PeerClose: they left, or came back with a new handshake.",
    ),
    _counter(
        "dtls_evictions",
        "server.evictions",
        "Idle associations that gave way to a newcomer.",
        "dtls.limits.max_associations is too small for this fleet.",
    ),
    _counter("dtls_freezes", "server.freezes", "Associations that were frozen because they were silent."),
    _counter("dtls_thaws", "server.thaws", "Frozen associations that came back."),
    _counter(
        "dtls_thaws_refused",
        "server.thaws_refused",
        "Records for a frozen association that were not authentic.",
        "Forged, or devices that lost their state; the association stays as it was.",
    ),
    _counter(
        "dtls_frozen_lost",
        "server.frozen_lost",
        "Frozen associations that could not be used when they were needed.",
        "The store is damaged, or was restored from a copy.",
    ),
    _counter("dtls_path_changes", "server.path_changes", "Times that a device's address changed."),
    _counter(
        "dtls_path_checks_failed",
        "server.path_checks_failed",
        "Return routability checks that were not answered.",
        "An attack, or a path that is not stable.",
    ),
    _counter(
        "dtls_path_responses_ignored",
        "server.path_responses_ignored",
        "Answers to no open return routability challenge.",
        "Somebody may be trying to divert a device's association.",
    ),
    _counter("dtls_keep_alives", "keep_alives", "Empty datagrams, which only keep a NAT's mapping alive."),
)

TRAFFIC = (
    _counter("dtls_datagrams_received", "server.datagrams_received", "Datagrams read from the sockets."),
    _counter("dtls_datagrams_sent", "server.datagrams_sent", "Datagrams that the protocol sent."),
    _counter(
        "dtls_datagrams_dropped",
        "datagrams_dropped.{stage}",
        "Datagrams dropped in the endpoint, by stage.",
        "send: the kernel refuses them (see send_errors). quota: an association sends too much.",
    ),
    _counter(
        "dtls_records_discarded",
        "server.records_discarded.{reason}",
        "Records and messages that changed nothing, by reason.",
        "unknown_association after a restart: devices do not know that it is gone. replay, bad_mac: a bad path or forgery.",
    ),
    _counter(
        "dtls_mac_failures",
        "server.mac_failures",
        "Records that no key authenticated.",
        "Forged, damaged, or from a device with a key that is not ours any more.",
    ),
    _counter(
        "dtls_refused",
        "refused.{quota}",
        "Refusals by quota; the name is the key in [quotas].",
        "`dtls-endpoint status` names the sources; raise the quota if they are a NAT with many devices.",
    ),
    _gauge("dtls_quota_slots", "quotas.slots", "Handshakes and live associations that quotas count."),
    _gauge("dtls_quota_half_open", "quotas.half_open", "Of them, handshakes."),
    _gauge("dtls_quota_prefixes", "quotas.prefixes", "Source prefixes that hold a slot."),
    _gauge(
        "dtls_quota_tracked_prefixes", "quotas.tracked_prefixes", "Source prefixes remembered beside those."
    ),
    _gauge(
        "dtls_quota_tracked_identities",
        "quotas.tracked_identities",
        "Identities whose use of late is remembered.",
    ),
    _gauge(
        "dtls_quota_tracked_offenders", "quotas.tracked_offenders", "Sources and identities refused of late."
    ),
    _counter(
        "dtls_dropped_by_kernel",
        "sockets.{listener}.dropped_by_kernel",
        "Datagrams that the kernel dropped because the endpoint read too slowly.",
        "Raise listen.receive_buffer and net.core.rmem_max; if it stays, one core is not enough.",
    ),
    _counter(
        "dtls_send_errors",
        "sockets.{listener}.send_errors.{error}",
        "Datagrams that the kernel refused to send, by errno.",
        "ENETUNREACH, EPERM: routing or a firewall on this host. EAGAIN: the network card is slower than the load.",
    ),
    _counter(
        "dtls_receive_errors",
        "sockets.{listener}.receive_errors.{error}",
        "Errors of receiving, by errno.",
        "ENOBUFS, ENOMEM: the host is out of memory.",
    ),
    _counter(
        "dtls_path_mtu_reports",
        "sockets.{listener}.path_mtu_reports",
        "Reports of routers that a datagram was too large.",
        "Devices behind a tunnel; what follows is sent in smaller pieces. dtls.mtu may be set lower for all.",
    ),
    _gauge(
        "dtls_receive_buffer_bytes",
        "sockets.{listener}.receive_buffer",
        "Receive buffer that the kernel granted.",
    ),
)

KEYS = (
    _gauge(
        "dtls_lookups",
        "lookups",
        "Key lookups under way.",
        "The key store is slow or does not answer.",
    ),
    _histogram(
        "dtls_lookup_seconds",
        "lookup_seconds",
        "Seconds that the key store took to answer.",
        "The store, or the network to it, is slow: devices wait, and give up after some seconds.",
    ),
    _counter(
        "dtls_lookup_failures",
        "lookup_failures",
        "Key lookups that failed; the log says why.",
        "The key store is broken.",
    ),
    _counter(
        "dtls_lookups_unavailable",
        "lookups_unavailable",
        "Handshakes refused because the key store could not answer; the devices are told to come back.",
        "The key store is down: no new device gets in, those that are connected stay.",
    ),
    _counter(
        "dtls_key_store_lookups",
        "key_store.lookups.{outcome}",
        "Questions to the guard of the key store, by outcome.",
        "failed, timed_out, refused: it is down. crowded: it is too slow. cached, unknown: strangers guess names.",
    ),
    _gauge("dtls_key_store_in_flight", "key_store.in_flight", "Lookups that the key store works on."),
    _gauge(
        "dtls_key_store_negative_cache", "key_store.negative_cache", "Unknown identities that are remembered."
    ),
    _gauge(
        "dtls_key_store_down",
        "key_store.down",
        "1 while the key store cannot answer.",
        "See its log, and the network to it.",
    ),
    _counter("dtls_key_store_outages", "key_store.outages", "Times that it went down."),
    _gauge("dtls_key_store_connected", "key_store.store.connected", "1 while there is a connection to it."),
    _counter("dtls_key_store_connects", "key_store.store.connects", "Connections made to it."),
    _counter("dtls_key_store_attempts", "key_store.store.attempts", "Attempts to connect to it."),
    _gauge(
        "dtls_key_store_busy",
        "key_store.store.thread_busy",
        "1 while its database is being read.",
        "Stays 1: the disk hangs.",
    ),
    _counter(
        "dtls_standings_unasked",
        "rotation.standings_unasked",
        "Associations that could not be looked at after a change of keys, as the store did not answer.",
        "Some may live on with a key that was removed: reload again.",
    ),
    _gauge(
        "dtls_key_usage_failing",
        "rotation.key_usage_failing",
        "1 while the file of the keys that were used cannot be written.",
        "Disk full, or state.usage_file is damaged; after a restart, rotations look unconfirmed.",
    ),
    _counter(
        "dtls_key_uses_forgotten",
        "rotation.key_uses_forgotten",
        "Identities whose last key was forgotten for lack of room.",
        "Set state.usage_file.",
    ),
    _gauge("dtls_key_uses_unwritten", "rotation.key_uses_unwritten", "Uses of keys that wait to be written."),
    _gauge(
        "dtls_verifications", "verifications", "Certificates being examined.", "More than four: they queue."
    ),
    _counter(
        "dtls_verification_failures",
        "verification_failures",
        "Verifications that failed for a reason that is not the peer's.",
        "A fault of the verifier; the log says which.",
    ),
    _gauge(
        "dtls_credentials_identities", "credentials.identities", "Identities in the keys that were loaded."
    ),
    _gauge(
        "dtls_credentials_in_rotation",
        "credentials.in_rotation",
        "Identities that have a next key.",
        "Stays above 0: a rotation was not finished.",
    ),
    _counter(
        "dtls_reloads",
        "credentials.reloads.{result}",
        "Times that credentials were read again, by result.",
        "failed: the old ones stay in use; the log says what is wrong.",
    ),
    _gauge(
        "dtls_credentials_expiry_timestamp_seconds",
        "credentials.expiry.{kind}",
        "When the first of the loaded certificates (own, ca) or revocation lists (crl) runs out.",
        "Renew before that time.",
    ),
)

FORWARDING = (
    _counter("dtls_forwarded", "forward.sinks.{sink}.forwarded", "Datagrams handed on, by sink."),
    _counter(
        "dtls_forward_dropped",
        "forward.sinks.{sink}.drops.{reason}",
        "Datagrams that could not be handed on, by sink and reason.",
        "The reader is too slow or gone; forward.buffer only bridges a pause.",
    ),
    _counter(
        "dtls_forward_unmatched",
        "forward.unmatched",
        "Datagrams that no sink is meant for.",
        "forward.sinks has patterns that leave somebody out.",
    ),
    _gauge(
        "dtls_forward_down",
        "forward.sinks.{sink}.down",
        "1 while the sink cannot be reached.",
        "See what it sends to.",
    ),
    _gauge(
        "dtls_forward_over",
        "forward.sinks.{sink}.over",
        "1 if it gets nothing any more.",
        "Restart the service.",
    ),
    _counter(
        "dtls_forward_failures",
        "forward.sinks.{sink}.failures",
        "Faults of the sink itself.",
        "The log says which.",
    ),
    _counter("dtls_forward_replies", "forward.sinks.{sink}.replies", "Datagrams that it sent to devices."),
    _counter(
        "dtls_forward_replies_dropped",
        "forward.sinks.{sink}.replies_dropped.{reason}",
        "Datagrams for devices that could not be sent, by reason.",
        "The device is asleep or gone; or the datagram is too large.",
    ),
    _gauge(
        "dtls_forward_upstreams",
        "forward.sinks.{sink}.upstreams",
        "Sockets that it has open, one per association.",
    ),
    _gauge(
        "dtls_forward_upstreams_asleep",
        "forward.sinks.{sink}.asleep",
        "Of them, those of frozen associations.",
    ),
    _counter(
        "dtls_forward_closed_idle", "forward.sinks.{sink}.closed_idle", "Sockets closed for want of traffic."
    ),
    _gauge(
        "dtls_forward_held_bytes",
        "forward.sinks.{sink}.forward_held",
        "Bytes that wait to be handed on.",
        "Close to forward.buffer: soon data are dropped.",
    ),
)

STATE = (
    _counter(
        "dtls_state_checkpoints", "state_checkpoints", "Checkpoints written to the database of associations."
    ),
    _counter("dtls_state_rows_saved", "state_rows_saved", "Associations written to it."),
    _counter("dtls_state_rows_removed", "state_rows_removed", "Associations removed from it."),
    _counter(
        "dtls_state_failures",
        "state_failures",
        "Checkpoints that could not be written.",
        "Disk full or broken: soon numbers run out, and devices hear nothing.",
    ),
    _gauge(
        "dtls_state_failing",
        "state_failing",
        "1 while the last attempt to write failed.",
        "As state_failures.",
    ),
)

ITSELF = (
    _gauge("dtls_start_timestamp_seconds", "started", "When this process began to serve."),
    _counter(
        "dtls_observer_failures",
        "observer_failures",
        "Faults in what hears of events.",
        "A fault of the program; the log has the details.",
    ),
    _gauge(
        "dtls_captures",
        "captures.captures",
        "Captures under way.",
        "Each holds secrets: end it when it is done.",
    ),
    _gauge("dtls_captured_datagrams", "captures.captured_datagrams", "Datagrams in them."),
    _gauge(
        "dtls_capture_lost_datagrams",
        "captures.capture_lost",
        "Datagrams that are missing in them, as the disk was too slow.",
    ),
    _gauge(
        "dtls_capture_held",
        "captures.capture_held",
        "Handshakes that are held until it is known whose they are.",
    ),
    _gauge("dtls_history_identities", "history.identities", "Devices whose last handshakes are remembered."),
    _gauge("dtls_history_strangers", "history.strangers", "Names that are nobody's and are remembered."),
    _gauge("dtls_history_addresses", "history.addresses", "Addresses whose last handshakes are remembered."),
    _counter(
        "dtls_history_forgotten",
        "history.forgotten",
        "Devices and addresses that were forgotten for lack of room.",
        "Raise metrics.remembered_identities, or `doctor` will not know them.",
    ),
    _counter(
        "dtls_metrics_requests",
        "metrics.requests.{status}",
        "HTTP requests to this metrics server, by status.",
    ),
    _counter(
        "dtls_metrics_connections_refused",
        "metrics.connections_refused",
        "Connections to this metrics server beyond what it serves at once.",
        "Something on this host opens connections and leaves them.",
    ),
    _counter(
        "dtls_metrics_failures", "metrics.failures", "Faults while serving HTTP; the log has the details."
    ),
)

SECTIONS = {
    "Handshakes": HANDSHAKES,
    "Associations": ASSOCIATIONS,
    "Traffic": TRAFFIC,
    "Keys and certificates": KEYS,
    "Forwarding": FORWARDING,
    "Saved associations": STATE,
    "The program itself": ITSELF,
}

NOT_EXPORTED = {
    "server.associations": "the core's view of `associations`, without those that are ending",
    "server.frozen": "the same as `frozen`",
    "quotas.top.{n}.who": "whom quotas refused most: addresses and identities; `dtls-endpoint status` shows them",
    "quotas.top.{n}.reason": "as above",
    "quotas.top.{n}.count": "as above",
    "key_store.store.kind": "text",
    "sockets.{listener}.local": "text: it is the label `listener`",
    "forward.forwarded": "the sum of all sinks",
    "forward.forward_dropped": "the sum of all sinks and reasons",
    "forward.forward_held": "the sum of all sinks",
    "forward.sinks.{sink}.forward_dropped": "the sum of all reasons",
}
"""Figures of the statistics that are no metrics, each with the reason."""


def all_metrics() -> Iterable[Metric]:
    """Of all sections, in their order."""
    return (metric for section in SECTIONS.values() for metric in section)
