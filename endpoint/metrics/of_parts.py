"""Metrics of the endpoint's parts: keys, sinks, the database of associations, the program itself."""

from __future__ import annotations

from endpoint.metrics.metric import counter, gauge, histogram

KEYS = (
    gauge(
        "dtls_lookups",
        "lookups",
        "Key lookups under way.",
        "The key store is slow or does not answer.",
    ),
    histogram(
        "dtls_lookup_seconds",
        "lookup_seconds",
        "Seconds that the key store took to answer.",
        "The store, or the network to it, is slow: devices wait, and give up after some seconds.",
    ),
    counter(
        "dtls_lookup_failures",
        "lookup_failures",
        "Key lookups that failed; the log says why.",
        "The key store is broken.",
    ),
    counter(
        "dtls_lookups_unavailable",
        "lookups_unavailable",
        "Handshakes refused because the key store could not answer; the devices are told to come back.",
        "The key store is down: no new device gets in, those that are connected stay.",
    ),
    counter(
        "dtls_key_store_lookups",
        "key_store.lookups.{outcome}",
        "Questions to the guard of the key store, by outcome.",
        "failed, timed_out, refused: it is down. crowded: it is too slow. cached, unknown: strangers guess names.",
    ),
    gauge("dtls_key_store_in_flight", "key_store.in_flight", "Lookups that the key store works on."),
    gauge(
        "dtls_key_store_negative_cache", "key_store.negative_cache", "Unknown identities that are remembered."
    ),
    gauge(
        "dtls_key_store_down",
        "key_store.down",
        "1 while the key store cannot answer.",
        "See its log, and the network to it.",
    ),
    counter("dtls_key_store_outages", "key_store.outages", "Times that it went down."),
    gauge("dtls_key_store_connected", "key_store.store.connected", "1 while there is a connection to it."),
    counter("dtls_key_store_connects", "key_store.store.connects", "Connections made to it."),
    counter("dtls_key_store_attempts", "key_store.store.attempts", "Attempts to connect to it."),
    gauge(
        "dtls_key_store_busy",
        "key_store.store.thread_busy",
        "1 while its database is being read.",
        "Stays 1: the disk hangs.",
    ),
    counter(
        "dtls_standings_unasked",
        "rotation.standings_unasked",
        "Associations that could not be looked at after a change of keys, as the store did not answer.",
        "Some may live on with a key that was removed: reload again.",
    ),
    gauge(
        "dtls_key_usage_failing",
        "rotation.key_usage_failing",
        "1 while the file of the keys that were used cannot be written.",
        "Disk full, or state.usage_file is damaged; after a restart, rotations look unconfirmed.",
    ),
    counter(
        "dtls_key_uses_forgotten",
        "rotation.key_uses_forgotten",
        "Identities whose last key was forgotten for lack of room.",
        "Set state.usage_file.",
    ),
    gauge("dtls_key_uses_unwritten", "rotation.key_uses_unwritten", "Uses of keys that wait to be written."),
    gauge(
        "dtls_verifications", "verifications", "Certificates being examined.", "More than four: they queue."
    ),
    counter(
        "dtls_verification_failures",
        "verification_failures",
        "Verifications that failed for a reason that is not the peer's.",
        "A fault of the verifier; the log says which.",
    ),
    gauge(
        "dtls_credentials_identities", "credentials.identities", "Identities in the keys that were loaded."
    ),
    gauge(
        "dtls_credentials_in_rotation",
        "credentials.in_rotation",
        "Identities that have a next key.",
        "Stays above 0: a rotation was not finished.",
    ),
    counter(
        "dtls_reloads",
        "credentials.reloads.{result}",
        "Times that credentials were read again, by result.",
        "failed: the old ones stay in use; the log says what is wrong.",
    ),
    gauge(
        "dtls_credentials_expiry_timestamp_seconds",
        "credentials.expiry.{kind}",
        "When the first of the loaded certificates (own, ca) or revocation lists (crl) runs out.",
        "Renew before that time.",
    ),
)

FORWARDING = (
    counter("dtls_forwarded", "forward.sinks.{sink}.forwarded", "Datagrams handed on, by sink."),
    counter(
        "dtls_forward_dropped",
        "forward.sinks.{sink}.drops.{reason}",
        "Datagrams that could not be handed on, by sink and reason.",
        "The reader is too slow or gone; forward.buffer only bridges a pause.",
    ),
    counter(
        "dtls_forward_unmatched",
        "forward.unmatched",
        "Datagrams that no sink is meant for.",
        "forward.sinks has patterns that leave somebody out.",
    ),
    gauge(
        "dtls_forward_down",
        "forward.sinks.{sink}.down",
        "1 while the sink cannot be reached.",
        "See what it sends to.",
    ),
    gauge(
        "dtls_forward_over",
        "forward.sinks.{sink}.over",
        "1 if it gets nothing any more.",
        "Restart the service.",
    ),
    counter(
        "dtls_forward_failures",
        "forward.sinks.{sink}.failures",
        "Faults of the sink itself.",
        "The log says which.",
    ),
    counter("dtls_forward_replies", "forward.sinks.{sink}.replies", "Datagrams that it sent to devices."),
    counter(
        "dtls_forward_replies_dropped",
        "forward.sinks.{sink}.replies_dropped.{reason}",
        "Datagrams for devices that could not be sent, by reason.",
        "The device is asleep or gone; or the datagram is too large.",
    ),
    gauge(
        "dtls_forward_upstreams",
        "forward.sinks.{sink}.upstreams",
        "Sockets that it has open, one per association.",
    ),
    gauge(
        "dtls_forward_upstreams_asleep",
        "forward.sinks.{sink}.asleep",
        "Of them, those of frozen associations.",
    ),
    counter(
        "dtls_forward_closed_idle", "forward.sinks.{sink}.closed_idle", "Sockets closed for want of traffic."
    ),
    counter(
        "dtls_forward_connects",
        "forward.sinks.{sink}.connects",
        "Connections that it made.",
        "Its server, or the network to it, is not stable.",
    ),
    counter(
        "dtls_forward_downlink_sent",
        "forward.sinks.{sink}.downlink.sent",
        "Entries for devices that were sent.",
    ),
    counter(
        "dtls_forward_downlink_deleted_unsent",
        "forward.sinks.{sink}.downlink.deleted_unsent",
        "Entries for devices that were deleted unsent, as they have no field data or are too large for the device.",
        "Whoever adds them makes a mistake; replies_dropped says which.",
    ),
    gauge(
        "dtls_forward_downlink_awake",
        "forward.sinks.{sink}.downlink.awake",
        "Devices whose streams are read as they are awake.",
    ),
    gauge(
        "dtls_forward_downlink_groups",
        "forward.sinks.{sink}.downlink.groups",
        "Groups in which they are asked about, each with a connection.",
    ),
    gauge(
        "dtls_forward_held_bytes",
        "forward.sinks.{sink}.forward_held",
        "Bytes that wait to be handed on.",
        "Close to forward.buffer: soon data are dropped.",
    ),
)

STATE = (
    counter(
        "dtls_state_checkpoints", "state_checkpoints", "Checkpoints written to the database of associations."
    ),
    counter("dtls_state_rows_saved", "state_rows_saved", "Associations written to it."),
    counter("dtls_state_rows_removed", "state_rows_removed", "Associations removed from it."),
    counter(
        "dtls_state_failures",
        "state_failures",
        "Checkpoints that could not be written.",
        "Disk full or broken: soon numbers run out, and devices hear nothing.",
    ),
    gauge(
        "dtls_state_failing",
        "state_failing",
        "1 while the last attempt to write failed.",
        "As state_failures.",
    ),
)

ITSELF = (
    gauge("dtls_start_timestamp_seconds", "started", "When this process began to serve."),
    counter(
        "dtls_observer_failures",
        "observer_failures",
        "Faults in what hears of events.",
        "A fault of the program; the log has the details.",
    ),
    gauge(
        "dtls_captures",
        "captures.captures",
        "Captures under way.",
        "Each holds secrets: end it when it is done.",
    ),
    gauge("dtls_captured_datagrams", "captures.captured_datagrams", "Datagrams in them."),
    gauge(
        "dtls_capture_lost_datagrams",
        "captures.capture_lost",
        "Datagrams that are missing in them, as the disk was too slow.",
    ),
    gauge(
        "dtls_capture_held",
        "captures.capture_held",
        "Handshakes that are held until it is known whose they are.",
    ),
    gauge("dtls_history_identities", "history.identities", "Devices whose last handshakes are remembered."),
    gauge("dtls_history_strangers", "history.strangers", "Names that are nobody's and are remembered."),
    gauge("dtls_history_addresses", "history.addresses", "Addresses whose last handshakes are remembered."),
    counter(
        "dtls_history_forgotten",
        "history.forgotten",
        "Devices and addresses that were forgotten for lack of room.",
        "Raise metrics.remembered_identities, or `doctor` will not know them.",
    ),
    counter(
        "dtls_metrics_requests",
        "metrics.requests.{status}",
        "HTTP requests to this metrics server, by status.",
    ),
    counter(
        "dtls_metrics_connections_refused",
        "metrics.connections_refused",
        "Connections to this metrics server beyond what it serves at once.",
        "Something on this host opens connections and leaves them.",
    ),
    counter(
        "dtls_metrics_failures", "metrics.failures", "Faults while serving HTTP; the log has the details."
    ),
)
