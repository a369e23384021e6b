"""Every key of the configuration file has a test that shows what it does. Which one, stands here; what is wrong with a value, elsewhere.

For `[dtls]` and `[quotas]` the tests are of the classes that those tables are, field by field.
"""

import ast
import io
import json
import re
import socket
from functools import cache
from pathlib import Path

import pytest
import structlog
import trio

from endpoint.config import parse_config
from endpoint.keystore.file import PskSet
from endpoint.keystore.loading import LoadedCredentials
from endpoint.listening import listen
from endpoint.logs import make_log
from endpoint.operations import Operations
from endpoint.reference import reference
from endpoint.service import Service
from endpoint.succession import Succession
from endpoint.systemd import Supervision
from endpoint.verification import wall_clock
from sansdtls import Checkpoint, ClientConfig, PskRequested, ServerConfig
from sansdtls.handshake import server12
from sansdtls.handshake.keys import KeyCandidate
from sansdtls.testing import Pair
from tests.endpoint.devices import serving

ROOT = Path(__file__).parents[1]
PSK = '[credentials]\npsk_file = "psk.txt"\n'

TESTS = {
    "credentials.psk_file": "program/test_service.py::test_wrong_key_and_unknown_identity_are_named_in_the_log_and_alike_to_the_device",
    "credentials.psk_database": "program/test_key_stores.py::test_a_service_with_a_database_sees_changes_at_once_and_a_reload_ends_those_who_are_removed",
    "credentials.psk_valkey": "program/test_key_stores.py::test_a_service_with_a_server_that_is_not_there_yet",
    "credentials.psk_module": "program/test_key_stores.py::test_a_service_with_a_module_of_ones_own",
    "credentials.identity_hint": "program/test_config_keys.py::test_identity_hint_reaches_a_client",
    "credentials.certificate": "program/test_credential_files.py::test_a_certificate_and_its_key_may_share_a_file_of_mode_0600",
    "credentials.private_key": "program/test_credential_files.py::test_no_message_shows_a_private_key",
    "credentials.names": "program/test_credential_files.py::test_every_kind_of_credential_is_offered_at_once",
    "credentials.raw_public_key": "interop/test_raw_public_keys.py::test_their_client_with_raw_keys_talks_to_our_server",
    "credentials.client_ca": "program/test_certificates.py::test_what_connect_lacks_is_said_before_anything_is_sent",
    "credentials.client_crl": "program/test_credential_files.py::test_what_says_whom_to_trust_must_not_be_written_by_others",
    "credentials.client_crl_policy": "program/test_credential_files.py::test_the_policy_for_clients_is_as_told",
    "credentials.client_identity": "program/test_credential_files.py::test_the_policy_for_clients_is_as_told",
    "credentials.raw_public_keys": "core/test_raw_public_keys.py::test_a_server_that_takes_certificates_only_turns_a_client_with_a_raw_key_away",
    "credentials.client_authentication": "core/test_resumption_refused.py::test_a_session_is_resumed_under_the_present_client_authentication_policy_only",
    "credentials.when_removed": "endpoint/test_standing.py::test_drop_ends_removed_identities_at_once_and_nobody_else",
    "credentials.when_rotated": "endpoint/test_standing.py::test_each_policy_is_for_its_own_case",
    "credentials.rehandshake_spread": "endpoint/test_standing.py::test_rehandshake_is_spread_over_time",
    "credentials.lookup.timeout": "endpoint/test_guarded_store.py::test_no_answer_in_time_is_a_refusal_and_other_identities_do_not_wait_for_it",
    "credentials.lookup.concurrency": "endpoint/test_guarded_store.py::test_no_more_lookups_are_under_way_than_allowed_and_who_gets_no_place_in_time_comes_back",
    "credentials.lookup.negative_seconds": "endpoint/test_guarded_store.py::test_an_unknown_identity_is_asked_for_once_in_a_while_however_often_it_comes",
    "credentials.lookup.negative_size": "endpoint/test_guarded_store.py::test_a_flood_of_identities_fills_no_memory_and_the_least_recent_one_is_forgotten_first",
    "credentials.lookup.longest_identity": "endpoint/test_guarded_store.py::test_an_identity_that_is_too_long_is_unknown_without_a_question",
    "credentials.lookup.failures": "endpoint/test_guarded_store.py::test_failures_in_between_are_no_outage",
    "credentials.lookup.retry": "endpoint/test_guarded_store.py::test_a_store_that_is_down_is_left_alone_and_recovery_is_told_once",
    "credentials.valkey.username": "program/test_forward_valkey.py::test_the_rights_that_are_documented_are_enough_and_what_is_missing_is_told",
    "credentials.valkey.password_file": "endpoint/test_valkey_access.py::test_a_password_file_that_cannot_be_used_is_told_with_the_remedy",
    "credentials.valkey.database": "endpoint/test_valkey_store.py::test_another_database_is_another_fleet",
    "credentials.valkey.ca_file": "endpoint/test_valkey_store.py::test_tls_with_certificates_on_both_sides_and_what_is_said_if_one_is_wrong",
    "credentials.valkey.certificate": "endpoint/test_valkey_store.py::test_tls_with_certificates_on_both_sides_and_what_is_said_if_one_is_wrong",
    "credentials.valkey.private_key": "endpoint/test_valkey_store.py::test_tls_with_certificates_on_both_sides_and_what_is_said_if_one_is_wrong",
    "credentials.valkey.prefix": "endpoint/test_valkey_store.py::test_an_identity_is_any_bytes_and_the_prefix_is_configurable",
    'credentials.names."NAME".certificate': "program/test_credential_files.py::test_a_certificate_and_its_key_may_share_a_file_of_mode_0600",
    'credentials.names."NAME".private_key': "program/test_credential_files.py::test_no_message_shows_a_private_key",
    "listen.address": "program/test_operations.py::test_the_metrics_address_is_used",
    "listen.port": "program/test_service.py::test_with_retry_it_waits_until_the_port_is_free",
    "listen.also": "program/test_listening.py::test_every_listener_has_its_line_and_serves",
    "listen.retry": "program/test_service.py::test_with_retry_it_waits_until_the_port_is_free",
    "listen.receive_buffer": "endpoint/test_udp.py::test_a_larger_receive_buffer_is_asked_for",
    "listen.path_mtu_discovery": "program/test_config_keys.py::test_path_mtu_discovery_is_asked_of_every_socket",
    "listen.drain": "program/test_service.py::test_a_second_signal_ends_it_at_once",
    "dtls.cipher_suites": "core/test_usage.py::test_max_payload_is_what_the_mtu_leaves_and_never_above_2_to_the_14",
    "dtls.extended_master_secret": "core/test_usage.py::test_a_policy_for_extended_master_secret_that_does_not_exist_is_refused",
    "dtls.groups": "core/test_negotiation.py::test_unknown_extensions_groups_schemes_suites_and_types_are_passed_over",
    "dtls.signature_schemes": "core/test_negotiation.py::test_the_server_signs_with_a_scheme_that_the_client_offered",
    "dtls.alpn_protocols": "core/test_negotiation.py::test_without_a_protocol_in_common_the_client_is_told_so",
    "dtls.record_size_limit": "core/test_record_sizes.py::test_record_size_limit_takes_the_place_of_max_fragment_length",
    "dtls.mtu": "core/test_usage.py::test_max_payload_is_what_the_mtu_leaves_and_never_above_2_to_the_14",
    "dtls.notify_idle_timeout": "core/test_frozen_expiry.py::test_an_association_ends_at_its_time_whether_it_sleeps_or_not",
    "dtls.unknown_identity_key_length": "program/test_config_keys.py::test_unknown_identity_key_length_is_that_of_the_random_key",
    "dtls.resumption": "core/test_resumption.py::test_the_servers_policy_says_what_clients_get",
    "dtls.connection_id": "core/test_recorded_connection_ids.py::test_exactly_what_is_protected_carries_the_type_tls12_cid_and_the_id_of_its_receiver",
    "dtls.retransmit.initial_timeout": "core/test_secrets.py::test_a_handshake_that_repeats_itself_until_its_key_is_used_up_ends",
    "dtls.retransmit.maximum_timeout": "core/test_secrets.py::test_a_handshake_that_repeats_itself_until_its_key_is_used_up_ends",
    "dtls.retransmit.max_retransmissions": "core/test_secrets.py::test_a_handshake_that_repeats_itself_until_its_key_is_used_up_ends",
    "dtls.retransmit.handshake_timeout": "interop/test_failures.py::test_our_client_times_out_where_a_server_keeps_silent_about_its_wrong_key",
    "dtls.retransmit.shrink_after": "core/test_timers.py::test_datagrams_never_become_smaller_than_256_bytes",
    "dtls.limits.replay_window": "core/test_freezing.py::test_thawing_takes_limits_and_sizes_from_the_configuration_of_today",
    "dtls.limits.max_handshake_message_size": "core/test_reassembly.py::test_the_limit_per_message_is_exact",
    "dtls.limits.max_reassembly_size": "core/test_reassembly.py::test_what_is_held_never_exceeds_the_limit_and_is_what_is_charged",
    "dtls.limits.max_total_reassembly_size": "core/test_server_limits.py::test_a_hello_in_fragments_that_finds_no_room_leaves_nothing_on_its_path",
    "dtls.limits.max_messages_ahead": "core/test_reassembly.py::test_a_message_further_ahead_than_the_limit_is_of_no_use",
    "dtls.limits.max_deferred_records": "core/test_message_order.py::test_records_that_come_early_are_kept_within_limits",
    "dtls.limits.max_deferred_size": "core/test_message_order.py::test_records_that_come_early_are_kept_within_limits",
    "dtls.limits.max_half_open": "core/test_server_limits.py::test_offers_not_answered_count_as_half_open",
    "dtls.limits.max_hello_reassemblies": "core/test_cookies.py::test_hellos_in_fragments_hold_a_part_of_the_half_open_slots_only",
    "dtls.limits.max_associations": "core/test_server_limits.py::test_at_the_limit_the_longest_idle_association_gives_way_to_one_that_has_finished_its_handshake",
    "dtls.limits.stale_after": "core/test_server_limits.py::test_at_the_limit_the_longest_idle_association_gives_way_to_one_that_has_finished_its_handshake",
    "dtls.limits.max_frozen": "core/test_freezing_server.py::test_beyond_max_frozen_the_one_that_expires_first_ends",
    "dtls.limits.idle_timeout": "core/test_server_limits.py::test_the_idle_timeout_is_exact",
    "dtls.limits.idle_timeout_with_connection_id": "core/test_return_routability.py::test_without_configuration_a_path_is_asked_for_three_seconds",
    "dtls.limits.max_failed_opens": "core/test_server_limits.py::test_keys_used_up_by_forgeries_during_a_handshake_give_the_slot_back",
    "dtls.limits.max_sealed_records": "core/test_secrets.py::test_after_the_last_record_a_key_may_seal_the_association_ends_with_close_notify",
    "dtls.resumption.tickets": "core/test_sessions.py::test_tickets_take_no_room",
    "dtls.resumption.cache_size": "core/test_sessions.py::test_tickets_take_no_room",
    "dtls.resumption.lifetime": "core/test_sessions.py::test_ticket_keys_seal_for_one_lifetime_and_open_for_two",
    "dtls.cookie.cookie_length": "core/test_cookies.py::test_lengths_are_configurable",
    "dtls.cookie.key_length": "core/test_cookies.py::test_lengths_are_configurable",
    "dtls.cookie.rotation": "core/test_cookies.py::test_a_cookie_made_just_before_a_rotation_lives_a_whole_rotation_more",
    "dtls.connection_id.length": "core/test_id_routing.py::test_associations_with_ids_of_several_lengths_live_side_by_side",
    "dtls.connection_id.prefix": "core/test_id_negotiation.py::test_ids_begin_with_the_prefix_and_are_random_behind_it",
    "dtls.connection_id.padding": "core/test_path_mtu.py::test_padding_keeps_within_the_new_size",
    "dtls.connection_id.return_routability": "core/test_path_mtu.py::test_a_new_path_is_tried_with_full_datagrams_again",
    "dtls.connection_id.path_policy": "core/test_path_mtu.py::test_a_new_path_is_tried_with_full_datagrams_again",
    "dtls.connection_id.probe_timeout": "core/test_freezing_server.py::test_it_waits_for_a_check_of_the_path",
    "dtls.connection_id.max_probes": "core/test_freezing_server.py::test_it_waits_for_a_check_of_the_path",
    "quotas.handshakes_per_second": "program/test_quota_config.py::test_what_one_source_is",
    "quotas.handshake_burst": "program/test_quota_config.py::test_what_one_source_is",
    "quotas.half_open_per_prefix": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.associations_per_prefix": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.prefix_datagrams_per_second": "program/test_quota_config.py::test_a_rate_is_what_comes_back_each_second",
    "quotas.prefix_datagram_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.prefix_bytes_per_second": "endpoint/test_quota_networks.py::test_each_number_of_a_network_holds_there_in_place_of_the_usual_one",
    "quotas.prefix_byte_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.identity_handshakes_per_second": "program/test_quota_config.py::test_a_rate_is_what_comes_back_each_second",
    "quotas.identity_handshake_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.associations_per_identity": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.identity_overflow": "endpoint/test_engine_quotas.py::test_where_the_policy_says_so_the_newcomer_is_closed",
    "quotas.identity_datagrams_per_second": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.identity_datagram_burst": "endpoint/test_quota_state.py::test_an_identity_that_is_away_for_a_moment_gets_no_new_budget",
    "quotas.identity_bytes_per_second": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.identity_byte_burst": "endpoint/test_quota_state.py::test_data_of_a_prefix_or_identity_are_limited_over_all_its_associations",
    "quotas.datagrams_per_second": "program/test_quota_config.py::test_a_rate_of_bytes_is_what_comes_back_each_second",
    "quotas.datagram_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.bytes_per_second": "program/test_quota_config.py::test_a_rate_of_bytes_is_what_comes_back_each_second",
    "quotas.byte_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.total_handshakes_per_second": "program/test_quota_config.py::test_a_rate_is_what_comes_back_each_second",
    "quotas.total_handshake_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.total_datagrams_per_second": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.total_datagram_burst": "endpoint/test_quota_state.py::test_a_value_out_of_range_is_refused_with_the_name_of_its_field",
    "quotas.total_bytes_per_second": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.total_byte_burst": "endpoint/test_quota_state.py::test_a_value_out_of_range_is_refused_with_the_name_of_its_field",
    "quotas.fair_reserve": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.ipv4_prefix_length": "program/test_quota_config.py::test_what_one_source_is",
    "quotas.ipv6_prefix_length": "program/test_quota_config.py::test_what_one_source_is",
    "quotas.networks": "program/test_quota_config.py::test_every_mistake_in_networks_is_told_at_once",
    "quotas.tracked_prefixes": "program/test_quota_config.py::test_so_many_are_remembered",
    "quotas.tracked_identities": "program/test_quota_config.py::test_so_many_are_remembered",
    "quotas.tracked_offenders": "program/test_quota_config.py::test_so_many_are_remembered",
    "quotas.offender_half_life": "endpoint/test_quota_offenders.py::test_how_many_are_kept_and_how_fast_they_fade_is_the_policys",
    "quotas.handshake_share": "program/test_intake_config.py::test_handshakes_get_their_share_of_the_time_that_readings_want",
    "quotas.queued_datagrams": "program/test_intake_config.py::test_so_much_may_wait",
    "quotas.queued_bytes": "program/test_intake_config.py::test_so_much_may_wait",
    "quotas.networks[.network": "program/test_quota_config.py::test_every_mistake_in_networks_is_told_at_once",
    "quotas.networks[.prefix_length": "program/test_quota_config.py::test_a_network_that_cannot_be_is_told_with_its_name_and_the_remedy",
    "quotas.networks[.handshakes_per_second": "program/test_quota_config.py::test_what_one_source_is",
    "quotas.networks[.handshake_burst": "program/test_quota_config.py::test_what_one_source_is",
    "quotas.networks[.half_open_per_prefix": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.networks[.associations_per_prefix": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.networks[.prefix_datagrams_per_second": "program/test_quota_config.py::test_a_rate_is_what_comes_back_each_second",
    "quotas.networks[.prefix_datagram_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.networks[.prefix_bytes_per_second": "endpoint/test_quota_networks.py::test_each_number_of_a_network_holds_there_in_place_of_the_usual_one",
    "quotas.networks[.prefix_byte_burst": "program/test_quota_config.py::test_so_many_are_let_through_and_the_reason_is_the_name_of_the_key",
    "quotas.networks[.share": "program/test_quota_config.py::test_a_share_is_for_how_many_a_source_counts",
    "forward.kind": "program/test_keys_command.py::test_export_and_import_carry_everything_from_one_kind_to_the_other",
    "forward.name": "program/test_forward_router.py::test_who_showed_no_identity_matches_no_pattern_not_even_a_star",
    "forward.identities": "program/test_forward_router.py::test_patterns_are_for_identities_as_the_log_shows_them",
    "forward.alpn": "program/test_forward_router.py::test_the_match_is_found_once_for_each_association_and_shared",
    "forward.also": "program/test_forward_router.py::test_also_lets_those_behind_it_have_a_look",
    "forward.buffer": "program/test_forward_valkey.py::test_with_overflow_oldest_the_newest_are_kept",
    "forward.overflow": "program/test_forward_valkey.py::test_with_overflow_oldest_the_newest_are_kept",
    "forward.upstream": "program/test_forward_udp.py::test_a_server_that_never_answers_is_back_when_nothing_more_is_refused",
    "forward.bind": "program/test_forward_udp.py::test_bind_is_the_address_that_the_server_sees",
    "forward.idle": "program/test_forward_udp.py::test_an_idle_socket_of_a_sleeper_is_closed_too",
    "forward.max_upstreams": "program/test_forward_udp.py::test_beyond_max_upstreams_the_one_that_was_silent_longest_goes",
    "forward.wake": "program/test_forward_udp.py::test_a_device_that_slept_has_the_address_that_it_had",
    "forward.proxy_protocol": "program/test_forward_udp.py::test_on_all_interfaces_the_header_names_the_address_that_was_asked",
    "forward.path": "program/test_forward_unix.py::test_what_is_too_large_for_a_datagram_is_dropped_and_the_next_goes_on",
    "forward.listen": "program/test_forward_unix.py::test_the_way_there_and_back_through_an_engine",
    "forward.server": "program/test_forward_valkey.py::test_a_service_between_a_device_and_two_streams",
    "forward.stream": "program/test_forward_valkey.py::test_thousands_come_in_their_order_and_the_stream_keeps_about_so_many",
    "forward.max_entries": "program/test_forward_valkey.py::test_thousands_come_in_their_order_and_the_stream_keeps_about_so_many",
    "forward.downlink_prefix": "program/test_forward_downlink.py::test_what_is_for_a_device_that_is_away_waits_in_the_server_until_it_is_heard",
    "forward.username": "program/test_forward_valkey.py::test_the_rights_that_are_documented_are_enough_and_what_is_missing_is_told",
    "forward.password_file": "program/test_forward_valkey.py::test_the_rights_that_are_documented_are_enough_and_what_is_missing_is_told",
    "forward.database": "program/test_forward_valkey.py::test_the_login_is_what_the_key_store_has_too",
    "forward.ca_file": "program/test_forward_valkey.py::test_the_login_is_what_the_key_store_has_too",
    "forward.certificate": "program/test_forward_valkey.py::test_the_login_is_what_the_key_store_has_too",
    "forward.private_key": "program/test_forward_valkey.py::test_the_login_is_what_the_key_store_has_too",
    "forward.format": "program/test_forward_unix.py::test_what_is_too_large_for_a_datagram_is_dropped_and_the_next_goes_on",
    "state.freeze_after": "program/test_config_keys.py::test_freeze_after_puts_associations_to_sleep",
    "state.store": "program/test_units.py::test_the_service_runs_under_what_its_unit_takes_away",
    "state.file": "program/test_handing_over.py::test_a_database_keeps_everything_through_kills_and_a_stop",
    "state.checkpoint_interval": "program/test_config_keys.py::test_checkpoint_interval_is_how_often_changes_are_asked_for",
    "state.handoff_file": "endpoint/test_succession.py::test_without_a_manager_or_a_file_there_is_nothing_to_hand_over_to",
    "state.handoff_max_age": "endpoint/test_succession.py::test_what_is_too_old_is_not_taken_back",
    "state.key_file": "program/test_units.py::test_the_service_runs_under_what_its_unit_takes_away",
    "state.usage_file": "endpoint/test_key_usage.py::test_the_next_process_knows_what_the_last_one_did",
    "state.admin_socket": "program/test_reload.py::test_a_reload_says_what_changed_or_every_mistake_and_the_manager_hears_of_it",
    "state.capture_directory": "program/test_capture.py::test_what_is_being_captured_is_listed_and_every_suite_can_be_decoded",
    "metrics.address": "program/test_operations.py::test_the_metrics_address_is_used",
    "metrics.port": "program/test_operations.py::test_a_port_that_is_taken_keeps_it_from_starting_and_is_named",
    "metrics.remembered_identities": "program/test_config_keys.py::test_how_much_is_remembered_is_as_told",
    "metrics.remembered_strangers": "program/test_config_keys.py::test_how_much_is_remembered_is_as_told",
    "metrics.remembered_addresses": "program/test_config_keys.py::test_how_much_is_remembered_is_as_told",
    "log.level": "program/test_config_keys.py::test_level_is_the_least_that_is_written",
    "log.failures_per_second": "program/test_config_keys.py::test_failures_of_one_cause_are_logged_as_often_as_it_is_told",
    "log.failures_burst": "program/test_config_keys.py::test_failures_of_one_cause_are_logged_as_often_as_it_is_told",
}


def keys_of_the_reference():
    """Dotted, as in docs/configuration.md."""
    found: dict[str, None] = {}
    table = ""
    for line in reference().splitlines():
        heading = re.match(r"## `\[+([^\]]+?)\]+`", line)
        key = re.match(r"- \*\*`(\w+)`\*\*", line)
        table = heading[1] if heading else table
        if key:
            found[f"{table}.{key[1]}"] = None
    return list(found)


@cache
def functions_of(name):
    """The text of each test of a file, and the whole file."""
    source = (ROOT / name).read_text()
    nodes = [
        node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return {node.name: ast.get_source_segment(source, node) or "" for node in nodes}, source


def test_every_key_is_here_and_no_other():
    assert set(TESTS) == set(keys_of_the_reference())


@pytest.mark.parametrize("key", list(TESTS))
def test_the_test_of_a_key_is_there_and_has_to_do_with_it(key):
    name, _, function = TESTS[key].partition("::")
    functions, source = functions_of(name)
    assert function in functions
    # In itself, or in what its file makes for all tests of it.
    leaf = key.rpartition(".")[2]
    assert re.search(rf"(\\n|\b){leaf}\b", source), TESTS[key]


# --- those that nothing else shows ----------------------------------------------------------------------


def parsed(text, directory=Path("/nowhere")):
    return parse_config((PSK + text).encode(), name="endpoint.toml", directory=directory)


def test_identity_hint_reaches_a_client():
    config = parse_config(
        b'[credentials]\npsk_file = "psk.txt"\nidentity_hint = "fleet"\n',
        name="e",
        directory=Path("/nowhere"),
    )
    server = LoadedCredentials().complete(config.dtls, config.credentials)
    pair = Pair(ClientConfig(psk_identity=Pair.IDENTITY), server)
    pair.handshake()
    (asked,) = [event for event in pair.client_events if isinstance(event, PskRequested)]
    assert asked.hint == b"fleet"


def test_unknown_identity_key_length_is_that_of_the_random_key(monkeypatch):
    drawn = []
    made = KeyCandidate

    def candidate(index, *arguments, **more):
        drawn.append((index, len(more["psk"]) if more.get("psk") else None, len(more.get("premaster", b""))))
        return made(index, *arguments, **more)

    monkeypatch.setattr(server12, "KeyCandidate", candidate)
    lengths = []
    for length in (16, 48):
        drawn.clear()
        pair = Pair(server_config=parsed(f"[dtls]\nunknown_identity_key_length = {length}").dtls, keys={})
        pair.run_for(1)
        lengths.append({premaster for _, _, premaster in drawn})
    # RFC 4279 §2, RFC 5489 §2: 32 bytes from X25519 or P-256, then the key, each with two bytes of length.
    assert lengths == [{2 + 32 + 2 + 16}, {2 + 32 + 2 + 48}]


async def test_path_mtu_discovery_is_asked_of_every_socket():
    for wanted in ("true", "false"):
        told = parsed(f'[listen]\nport = 0\nalso = ["127.0.0.2:0"]\npath_mtu_discovery = {wanted}').listen
        for udp in (await listen(told)).sockets:
            with udp:
                mode = udp._socket.getsockopt(socket.IPPROTO_IP, 10)  # IP_MTU_DISCOVER
                assert mode == (2 if wanted == "true" else 0)


async def test_freeze_after_puts_associations_to_sleep(autojump_clock):
    for seconds, frozen in (("5", 1), ('"never"', 0)):
        state = parsed(f"[state]\nfreeze_after = {seconds}").state
        async with serving(config=ServerConfig(freeze_after=state.freeze_after)) as served:
            device = served.device()
            await device.connect()
            await device.send(b"x")  # its last flight has arrived
            await trio.sleep(6)
            assert served.engine.statistics()["frozen"] == frozen


async def test_checkpoint_interval_is_how_often_changes_are_asked_for(autojump_clock, tmp_path):
    (tmp_path / "state").mkdir(mode=0o700)
    counts = []
    for interval in (0.5, 2.0):
        state = parsed(
            f'[state]\nstore = "sqlite"\nfile = "state/a.db"\nkey_file = "k"\ncheckpoint_interval = {interval}',
            tmp_path,
        ).state
        asked: list[float] = []

        class Nothing:
            sockets = ()
            checkpoint_due = False
            on_checkpoint_due = None

            def checkpoint(self, *, limit=None, asked=asked):
                asked.append(trio.current_time())
                return Checkpoint(saved=[], removed=[])

        one = Succession(state, keys=(bytes(32),), supervision=Supervision(), log=structlog.get_logger())
        one.keep(Nothing(), lambda *_, **__: None)  # type: ignore[arg-type]
        with trio.move_on_after(20.1):
            await one.run()
        one.close()
        counts.append(len(asked))
    assert counts == [40, 10]


def service(text, log, directory=Path("/nowhere")):
    loaded = LoadedCredentials(psk=PskSet({}, (), ()))
    return Service(parsed(text, directory), credentials=loaded, log=log, wall_clock=wall_clock)


async def test_failures_of_one_cause_are_logged_as_often_as_it_is_told(autojump_clock):
    one = service("[log]\nfailures_burst = 3\nfailures_per_second = 0.5", structlog.get_logger())
    admitted = [one._throttle.admits(("handshake_failed", "wrong_key")) is not None for _ in range(5)]
    assert admitted == [True, True, True, False, False]
    await trio.sleep(2.1)
    assert one._throttle.admits(("handshake_failed", "wrong_key")) == 2
    assert one._throttle.admits(("handshake_failed", "wrong_key")) is None


async def test_how_much_is_remembered_is_as_told(monkeypatch):
    made = []
    monkeypatch.setattr("endpoint.operations.History", lambda **sizes: made.append(sizes))
    table = "remembered_identities = 7\nremembered_strangers = 8\nremembered_addresses = 9"
    Operations(parsed(f"[metrics]\n{table}"), trouble=print, stopping=bool)
    ((sizes),) = made
    assert {name: sizes[name] for name in ("identities", "strangers", "addresses")} == {
        "identities": 7,
        "strangers": 8,
        "addresses": 9,
    }


def test_level_is_the_least_that_is_written():
    for level, written in (("info", ["b", "c"]), ("warning", ["c"])):
        stream = io.BytesIO()
        log = make_log(stream, level=parsed(f'[log]\nlevel = "{level}"').log.level)
        log.debug("a")
        log.info("b")
        log.warning("c")
        assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == written
