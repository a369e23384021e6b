"""Metrics of devices: their handshakes, their associations, what they send."""

from __future__ import annotations

from endpoint.metrics.metric import counter, gauge, histogram

HANDSHAKES = (
    counter(
        "dtls_handshakes_started",
        "server.handshakes_started",
        "Handshakes begun with a client that had proved its address.",
        "A fleet that comes back, or one device in a loop: `dtls-endpoint status` names the busiest sources.",
    ),
    counter(
        "dtls_handshakes_completed",
        "server.handshakes_completed",
        "Handshakes that succeeded, resumptions included.",
        "Much more often than devices restart: their associations are lost on the way (NAT, no connection ID).",
    ),
    counter(
        "dtls_handshakes_failed",
        "server.handshakes_failed.{cause}",
        "Handshakes that failed, by cause; the cause is the one in the log.",
        "`dtls-endpoint doctor IDENTITY` says what to do about each; wrong_key after a rotation: devices have old keys.",
    ),
    histogram(
        "dtls_handshake_seconds",
        "handshake_seconds.{result}",
        "Seconds from a valid cookie to the end of a handshake, by result.",
        "Slow and completed: lost datagrams or a busy endpoint. Failed after 30 s and more: devices that fall silent.",
    ),
    counter(
        "dtls_retransmissions",
        "server.retransmissions",
        "Flights sent again, for whatever reason.",
        "A lossy path, or an endpoint that answers too late.",
    ),
    counter(
        "dtls_cookies_sent",
        "server.cookies_sent",
        "Answers to hellos that had not proved their address.",
        "Many more than handshakes_started: a scan, or a flood with forged addresses; it costs no memory.",
    ),
    counter(
        "dtls_cookies_bad",
        "server.cookies_bad",
        "Hellos with a cookie that did not verify.",
        "Forged, or devices whose address changes within a handshake (NAT).",
    ),
    counter(
        "dtls_offers_refused", "server.offers_refused", "Handshakes refused by a quota or while stopping."
    ),
    counter(
        "dtls_psk_unknown",
        "server.psk_unknown",
        "Handshakes with an identity that has no key.",
        "A device that was not provisioned, or somebody who guesses names.",
    ),
    counter(
        "dtls_peers_rejected",
        "tally.peers_rejected.{problem}",
        "Certificates and raw public keys that were not accepted, by problem.",
        "expired, crl_not_current: renew. revoked, unknown_key: somebody uses what was withdrawn.",
    ),
    counter("dtls_sessions_resumed", "tally.sessions_resumed", "Handshakes that resumed a session."),
    counter(
        "dtls_associations_made",
        "tally.associations_made.{credential}",
        "Devices let in, by the kind of credential.",
    ),
    counter(
        "dtls_cipher_suites_used",
        "tally.cipher_suites_used.{cipher_suite}",
        "Devices let in, by cipher suite.",
        "Shows whether a cipher suite can be switched off.",
    ),
    counter(
        "dtls_psk_keys_used",
        "tally.psk_keys_used.{key}",
        "Devices let in with the current or the next of their keys.",
        "A rotation is done when the fleet uses `next` only.",
    ),
    gauge(
        "dtls_handshakes",
        "handshakes",
        "Handshakes under way.",
        "Stays high: devices fall silent, a key store is slow, or a storm; see handshake_seconds.",
    ),
    gauge(
        "dtls_half_open",
        "server.half_open",
        "Offers, hello reassemblies and handshakes under way.",
        "Close to dtls.limits.max_half_open: newcomers are refused.",
    ),
    gauge("dtls_reassembly_bytes", "server.reassembly_size", "Bytes of handshake fragments held."),
    gauge(
        "dtls_waiting",
        "intake.waiting.{queue}",
        "Datagrams that wait because live associations come first, by queue.",
        "More handshakes than there is time for (quotas.handshake_share): a storm or a flood.",
    ),
    gauge("dtls_waiting_bytes", "intake.waiting_bytes", "Bytes of those datagrams."),
    counter("dtls_waited", "intake.waited.{queue}", "Datagrams that had to wait, by queue."),
    counter(
        "dtls_waited_seconds",
        "intake.seconds_waited",
        "Seconds that they waited, added up; divided by waited, the mean delay of a handshake's datagram.",
        "As waiting.",
    ),
    counter(
        "dtls_superseded",
        "intake.superseded",
        "Waiting datagrams that were dropped for a newer one of the same peer.",
    ),
    counter(
        "dtls_handshake_work_seconds", "intake.seconds_spent", "Seconds of computing for what had to wait."
    ),
)

ASSOCIATIONS = (
    gauge(
        "dtls_associations", "associations", "Live associations.", "Falls suddenly: see associations_ended."
    ),
    gauge("dtls_frozen", "frozen", "Frozen associations: silent devices, kept in a few hundred bytes."),
    gauge("dtls_identities", "identities", "Identities with a live association."),
    counter(
        "dtls_associations_ended",
        "tally.associations_ended.{cause}",
        "Associations that ended, by cause.",
        "IdleTimeout: devices vanished. PeerClose: they left, or came back with a new handshake.",
    ),
    counter(
        "dtls_evictions",
        "server.evictions",
        "Idle associations that gave way to a newcomer.",
        "dtls.limits.max_associations is too small for this fleet.",
    ),
    counter("dtls_freezes", "server.freezes", "Associations that were frozen because they were silent."),
    counter("dtls_thaws", "server.thaws", "Frozen associations that came back."),
    counter(
        "dtls_thaws_refused",
        "server.thaws_refused",
        "Records for a frozen association that were not authentic.",
        "Forged, or devices that lost their state; the association stays as it was.",
    ),
    counter(
        "dtls_frozen_lost",
        "server.frozen_lost",
        "Frozen associations that could not be used when they were needed.",
        "The store is damaged, or was restored from a copy.",
    ),
    counter("dtls_path_changes", "server.path_changes", "Times that a device's address changed."),
    counter(
        "dtls_path_checks_failed",
        "server.path_checks_failed",
        "Return routability checks that were not answered.",
        "An attack, or a path that is not stable.",
    ),
    counter(
        "dtls_path_responses_ignored",
        "server.path_responses_ignored",
        "Answers to no open return routability challenge.",
        "Somebody may be trying to divert a device's association.",
    ),
    counter("dtls_keep_alives", "keep_alives", "Empty datagrams, which only keep a NAT's mapping alive."),
)

TRAFFIC = (
    counter("dtls_datagrams_received", "server.datagrams_received", "Datagrams read from the sockets."),
    counter("dtls_datagrams_sent", "server.datagrams_sent", "Datagrams that the protocol sent."),
    counter(
        "dtls_datagrams_dropped",
        "datagrams_dropped.{stage}",
        "Datagrams dropped in the endpoint, by stage.",
        "send: the kernel refuses them (see send_errors). quota: an association sends too much. waiting_…: there was no time "
        "for them, as in a flood of hellos (docs/flood.md).",
    ),
    counter(
        "dtls_records_discarded",
        "server.records_discarded.{reason}",
        "Records and messages that changed nothing, by reason.",
        "unknown_association after a restart: devices do not know that it is gone. replay, bad_mac: a bad path or forgery.",
    ),
    counter(
        "dtls_mac_failures",
        "server.mac_failures",
        "Records that no key authenticated.",
        "Forged, damaged, or from a device with a key that is not ours any more.",
    ),
    counter(
        "dtls_refused",
        "refused.{quota}",
        "Refusals by quota; the name is the key in [quotas].",
        "`dtls-endpoint status` names the sources; raise the quota if they are a NAT with many devices.",
    ),
    gauge("dtls_quota_slots", "quotas.slots", "Handshakes and live associations that quotas count."),
    gauge("dtls_quota_half_open", "quotas.half_open", "Of them, handshakes."),
    gauge("dtls_quota_prefixes", "quotas.prefixes", "Source prefixes that hold a slot."),
    gauge(
        "dtls_quota_tracked_prefixes", "quotas.tracked_prefixes", "Source prefixes remembered beside those."
    ),
    gauge(
        "dtls_quota_tracked_identities",
        "quotas.tracked_identities",
        "Identities whose use of late is remembered.",
    ),
    gauge(
        "dtls_quota_tracked_offenders", "quotas.tracked_offenders", "Sources and identities refused of late."
    ),
    counter(
        "dtls_dropped_by_kernel",
        "sockets.{listener}.dropped_by_kernel",
        "Datagrams that the kernel dropped because the endpoint read too slowly.",
        "Raise listen.receive_buffer and net.core.rmem_max; if it stays, one core is not enough.",
    ),
    counter(
        "dtls_send_errors",
        "sockets.{listener}.send_errors.{error}",
        "Datagrams that the kernel refused to send, by errno.",
        "ENETUNREACH, EPERM: routing or a firewall on this host. EAGAIN: the network card is slower than the load.",
    ),
    counter(
        "dtls_receive_errors",
        "sockets.{listener}.receive_errors.{error}",
        "Errors of receiving, by errno.",
        "ENOBUFS, ENOMEM: the host is out of memory.",
    ),
    counter(
        "dtls_path_mtu_reports",
        "sockets.{listener}.path_mtu_reports",
        "Reports of routers that a datagram was too large.",
        "Devices behind a tunnel; what follows is sent in smaller pieces. dtls.mtu may be set lower for all.",
    ),
    gauge(
        "dtls_receive_buffer_bytes",
        "sockets.{listener}.receive_buffer",
        "Receive buffer that the kernel granted.",
    ),
)
