"""Configuration: what is refused, what the defaults are, and what a repr must not show."""

import re
from typing import Any

import attrs
import pytest

from sansdtls.config import (
    DEFAULT_CIPHER_SUITES,
    MAX_PSK_LENGTH,
    ClientConfig,
    CookiePolicy,
    ExtendedMasterSecret,
    Limits,
    RetransmitPolicy,
    ServerConfig,
)
from sansdtls.connection_ids import ConnectionIdPolicy
from sansdtls.errors import ConfigError, UsageError
from sansdtls.iana import CipherSuite

# Every number: class, field, default, lowest, highest, unit.
NUMBERS = [
    (RetransmitPolicy, "initial_timeout", 1.0, 0.01, 600, "seconds"),
    (RetransmitPolicy, "maximum_timeout", 60.0, 0.01, 3600, "seconds"),
    (RetransmitPolicy, "max_retransmissions", 6, 0, 100, "retransmissions"),
    (RetransmitPolicy, "handshake_timeout", 130.0, 0.01, 86_400, "seconds"),
    (RetransmitPolicy, "shrink_after", 2, 1, 100, "retransmissions"),
    (Limits, "replay_window", 64, 32, 1024, "records"),
    (Limits, "max_handshake_message_size", 16_384, 256, 131_072, "bytes"),
    (Limits, "max_reassembly_size", 32_768, 256, 1_048_576, "bytes"),
    (Limits, "max_total_reassembly_size", 8_388_608, 256, 2**40, "bytes"),
    (Limits, "max_messages_ahead", 8, 1, 64, "messages"),
    (Limits, "max_deferred_records", 8, 0, 256, "records"),
    (Limits, "max_deferred_size", 8_192, 0, 1_048_576, "bytes"),
    (Limits, "max_half_open", 4_096, 1, 10_000_000, "handshakes"),
    (Limits, "max_hello_reassemblies", 512, 1, 10_000_000, "hellos"),
    (Limits, "max_associations", 100_000, 1, 10_000_000, "associations"),
    (Limits, "stale_after", 900.0, 0, 31_536_000, "seconds"),
    (Limits, "max_frozen", 1_000_000, 0, 100_000_000, "associations"),
    (Limits, "idle_timeout", 86_400.0, 0.001, 315_360_000, "seconds"),
    (Limits, "idle_timeout_with_connection_id", 7_776_000.0, 0.001, 315_360_000, "seconds"),
    (Limits, "max_failed_opens", None, 1, 2**36, "records"),
    (Limits, "max_sealed_records", None, 64, 2**48 - 1, "records"),
    (CookiePolicy, "cookie_length", 32, 8, 32, "bytes"),
    (CookiePolicy, "key_length", 32, 16, 64, "bytes"),
    (CookiePolicy, "rotation", 60.0, 1, 86_400, "seconds"),
    (ConnectionIdPolicy, "length", 8, 0, 20, "bytes"),
    (ConnectionIdPolicy, "padding", 1, 1, 1024, "bytes"),
    (ConnectionIdPolicy, "probe_timeout", 1.0, 0.01, 600, "seconds"),
    (ConnectionIdPolicy, "max_probes", 3, 1, 20, "challenges"),
]
NUMBER_IDS = [f"{row[0].__name__}.{row[1]}" for row in NUMBERS]

# A maximum wait may not be below the first one, so bounds are tried with a neighbour that allows them.
NEIGHBOURS = {
    ("initial_timeout", 600): {"maximum_timeout": 600.0},
    ("maximum_timeout", 0.01): {"initial_timeout": 0.01},
}


def psk_client(**changes) -> ClientConfig:
    return ClientConfig(**{"psk_identity": b"meter-7", "psk_key": b"0123456789abcdef", **changes})


def test_the_table_of_numbers_has_every_field_of_every_policy():
    fields = {
        (policy, field.name)
        for policy in (RetransmitPolicy, Limits, CookiePolicy, ConnectionIdPolicy)
        for field in attrs.fields(policy)
        if re.search("int|float", str(field.type))
    }
    assert {(row[0], row[1]) for row in NUMBERS} == fields


@pytest.mark.parametrize(("policy", "field", "default", "low", "high", "unit"), NUMBERS, ids=NUMBER_IDS)
def test_every_number_has_the_documented_default(policy, field, default, low, high, unit):
    value = getattr(policy(), field)
    assert value == default
    assert type(value) is type(default)


@pytest.mark.parametrize(("policy", "field", "default", "low", "high", "unit"), NUMBERS, ids=NUMBER_IDS)
def test_the_bounds_of_every_number_are_allowed(policy, field, default, low, high, unit):
    for bound in (low, high):
        made = policy(**{field: bound, **NEIGHBOURS.get((field, bound), {})})
        assert getattr(made, field) == bound


@pytest.mark.parametrize(("policy", "field", "default", "low", "high", "unit"), NUMBERS, ids=NUMBER_IDS)
def test_a_number_out_of_range_is_refused_with_class_field_value_range_and_unit(
    policy, field, default, low, high, unit
):
    for value in (low - 1, high + 1):
        with pytest.raises(ConfigError) as caught:
            policy(**{field: value})
        assert (
            str(caught.value) == f"{policy.__name__}.{field}: {value!r} is not within {low} to {high} {unit}"
        )


@pytest.mark.parametrize("wrong", ["64", True, float("nan"), float("inf"), b"1", [1]], ids=repr)
@pytest.mark.parametrize(("policy", "field", "default", "low", "high", "unit"), NUMBERS, ids=NUMBER_IDS)
def test_what_is_no_number_is_refused_with_class_field_and_value(
    policy, field, default, low, high, unit, wrong
):
    with pytest.raises(ConfigError) as caught:
        policy(**{field: wrong})
    assert str(caught.value).startswith(f"{policy.__name__}.{field}: {wrong!r} ")


@pytest.mark.parametrize(
    ("policy", "field", "low"),
    [(row[0], row[1], row[3]) for row in NUMBERS if row[5] != "seconds"],
    ids=[name for name, row in zip(NUMBER_IDS, NUMBERS, strict=True) if row[5] != "seconds"],
)
def test_what_is_counted_must_be_a_whole_number(policy, field, low):
    with pytest.raises(ConfigError) as caught:
        policy(**{field: low + 0.5})
    assert str(caught.value) == f"{policy.__name__}.{field}: {low + 0.5!r} is not a whole number"


@pytest.mark.parametrize(
    "field", ["idle_timeout", "idle_timeout_with_connection_id", "max_failed_opens", "max_sealed_records"]
)
def test_none_switches_a_limit_off_only_where_that_is_documented(field):
    off: dict[str, Any] = {field: None}
    assert getattr(Limits(**off), field) is None


@pytest.mark.parametrize(
    ("policy", "field"),
    [(row[0], row[1]) for row in NUMBERS if not row[1].startswith("idle_timeout") and row[2] is not None],
)
def test_none_is_refused_elsewhere(policy, field):
    with pytest.raises(ConfigError, match=rf"{policy.__name__}\.{field}: None "):
        policy(**{field: None})


def test_the_longest_wait_may_not_be_below_the_first():
    with pytest.raises(ConfigError) as caught:
        RetransmitPolicy(initial_timeout=9.0, maximum_timeout=8.0)
    assert str(caught.value) == "RetransmitPolicy.maximum_timeout: 8.0 is below initial_timeout (9.0)"


def test_the_constrained_preset_waits_nine_seconds_first_and_five_minutes_in_all():
    policy = RetransmitPolicy.constrained()
    assert (policy.initial_timeout, policy.maximum_timeout, policy.handshake_timeout) == (9.0, 60.0, 300.0)
    assert policy.max_retransmissions == RetransmitPolicy().max_retransmissions


def test_policies_cannot_be_changed_once_made():
    for policy, field in ((Limits(), "replay_window"), (RetransmitPolicy(), "initial_timeout")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(policy, field, 100)


def test_a_config_error_is_a_usage_error_so_one_except_clause_is_enough():
    assert issubclass(ConfigError, UsageError)


# --- what clients and servers share -----------------------------------------------------------------


def test_the_default_suites_are_all_there_are_and_the_short_tags_come_last():
    assert set(DEFAULT_CIPHER_SUITES) == set(CipherSuite)
    assert psk_client().cipher_suites == ServerConfig().cipher_suites == DEFAULT_CIPHER_SUITES
    short = ["_CCM_8" in suite.name for suite in DEFAULT_CIPHER_SUITES]
    assert short == [False] * 17 + [True] * 5


def test_the_default_suites_have_forward_secrecy_first():
    # RFC 9325 §4.1, among suites with the same length of tag
    for tag in (False, True):
        suites = [suite.name for suite in DEFAULT_CIPHER_SUITES if ("_CCM_8" in suite.name) is tag]
        without = [name.startswith("TLS_PSK_") for name in suites]
        assert without == sorted(without)
        assert True in without


def test_suites_keep_the_order_given_and_may_be_given_as_code_points():
    suites = psk_client(cipher_suites=[0xC0A8, CipherSuite.TLS_PSK_WITH_AES_128_CCM]).cipher_suites
    assert suites == (CipherSuite.TLS_PSK_WITH_AES_128_CCM_8, CipherSuite.TLS_PSK_WITH_AES_128_CCM)


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        ([], "cipher_suites: at least one is needed"),
        ([0xC0A8, 0xC0A8], "cipher_suites: a CipherSuite is named twice"),
        ([0xC0A8, 0x0005], "cipher_suites: 5 is not a valid CipherSuite"),
        (["TLS_PSK_WITH_AES_128_CCM_8"], "cipher_suites: 'TLS_PSK_WITH_AES_128_CCM_8' is not a valid"),
        (0xC0A8, "cipher_suites: 'int' object is not iterable"),
    ],
    ids=["empty", "twice", "unknown", "by name", "not a list"],
)
@pytest.mark.parametrize("make", [psk_client, ServerConfig])
def test_a_list_of_suites_that_is_empty_repeated_or_unknown_is_refused(make, suites, message):
    with pytest.raises(ConfigError) as caught:
        make(cipher_suites=suites)
    assert message in str(caught.value)


@pytest.mark.parametrize("mtu", [255, 65_508])
@pytest.mark.parametrize(("make", "name"), [(psk_client, "ClientConfig"), (ServerConfig, "ServerConfig")])
def test_an_mtu_out_of_range_is_refused_with_the_name_of_the_class_that_was_made(make, name, mtu):
    with pytest.raises(ConfigError) as caught:
        make(mtu=mtu)
    assert str(caught.value) == f"{name}.mtu: {mtu} is not within 256 to 65507 bytes"


def test_the_shared_defaults_are_the_documented_ones():
    for config in (psk_client(), ServerConfig()):
        assert config.mtu == 1232
        assert config.extended_master_secret is ExtendedMasterSecret.PREFERRED
        assert config.retransmit == RetransmitPolicy()
        assert config.limits == Limits()
        assert config.log_secrets is False


def test_extended_master_secret_may_be_given_as_the_word_a_configuration_file_uses():
    assert (
        psk_client(extended_master_secret="required").extended_master_secret is ExtendedMasterSecret.REQUIRED
    )


# --- keys, identities, hints ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, MAX_PSK_LENGTH + 1])
def test_a_key_of_bad_length_is_refused_without_being_shown(length):
    key = b"K" * length
    with pytest.raises(ConfigError) as caught:
        psk_client(psk_key=key)
    assert str(caught.value) == f"ClientConfig.psk_key: has {length} bytes, not 1 to 64"


@pytest.mark.parametrize("field", ["psk_key", "psk_identity"])
def test_text_where_bytes_are_needed_is_refused_without_being_shown(field):
    with pytest.raises(ConfigError) as caught:
        psk_client(**{field: "swordfish"})
    assert str(caught.value) == f"ClientConfig.{field}: bytes are needed, not str"


def test_an_identity_may_be_empty_and_may_hold_any_bytes_up_to_its_length_field():
    for identity in (b"", b"\x00\xff", b"i" * 65_535):
        assert psk_client(psk_identity=identity).psk_identity == identity
    with pytest.raises(
        ConfigError, match=r"^ClientConfig\.psk_identity: .* has 65536 bytes, not 0 to 65535$"
    ):
        psk_client(psk_identity=b"i" * 65_536)


def test_a_client_without_a_key_is_allowed_because_it_may_be_asked_for_later():
    assert ClientConfig(psk_identity=b"meter-7").psk_key is None


def test_a_hint_is_absent_by_default_and_has_one_to_128_bytes():
    assert ServerConfig().psk_identity_hint is None
    assert ServerConfig(psk_identity_hint=b"h" * 128).psk_identity_hint == b"h" * 128
    for hint in (b"", b"h" * 129):
        with pytest.raises(ConfigError, match=rf"psk_identity_hint: .* has {len(hint)} bytes, not 1 to 128"):
            ServerConfig(psk_identity_hint=hint)


@pytest.mark.parametrize("length", [0, 65])
def test_the_stand_in_key_has_a_length_that_a_real_key_may_have(length):
    assert ServerConfig().unknown_identity_key_length == 16
    with pytest.raises(ConfigError) as caught:
        ServerConfig(unknown_identity_key_length=length)
    assert str(caught.value) == (
        f"ServerConfig.unknown_identity_key_length: {length} is not within 1 to 64 bytes"
    )


def test_secrets_are_in_no_repr():
    config = psk_client(psk_key=b"open sesame")
    for shown in (repr(config), str(config), f"{config!r}"):
        assert "sesame" not in shown
        assert b"open sesame".hex() not in shown
        assert "meter-7" in shown


def test_the_cookie_is_never_longer_than_keeps_the_answer_below_the_question():
    # HelloVerifyRequest: 13 record header, 12 message header, 2 version, 1 length, cookie. The smallest
    # ClientHello: 25 of headers, 2 version, 32 random, 1 session, 1 cookie, 4 suites, 2 compression.
    answer = 13 + 12 + 2 + 1 + CookiePolicy().cookie_length
    assert answer == 60
    assert answer <= 13 + 12 + 2 + 32 + 1 + 1 + 4 + 2 == 67


def test_an_association_is_frozen_after_no_time_at_all_by_default_and_after_up_to_a_year():
    assert ServerConfig().freeze_after is None
    for bound in (0.001, 31_536_000):
        assert ServerConfig(freeze_after=bound).freeze_after == bound
    wrongs: tuple[Any, ...] = (0, 31_536_001, "60")
    for wrong in wrongs:
        with pytest.raises(
            ConfigError, match=r"^ServerConfig\.freeze_after: .* is not within 0\.001 to 31536000"
        ):
            ServerConfig(freeze_after=wrong)


@pytest.mark.parametrize("make", [psk_client, ServerConfig])
def test_keys_that_seal_have_32_bytes_and_are_not_shown(make):
    keys = (b"\x5a" * 32, b"Z" * 32)
    config = make(snapshot_keys=list(keys))
    assert config.snapshot_keys == keys
    assert "Z" * 8 not in repr(config)
    assert make().snapshot_keys == ()
    for length in (0, 31, 33):
        with pytest.raises(ConfigError) as caught:
            make(snapshot_keys=[b"Z" * length])
        assert str(caught.value) == "snapshot_keys: each is 32 bytes"
