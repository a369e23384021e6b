"""Each cause of a failed handshake has a remedy where there is one, and names keys that there are."""

import re
from typing import get_args

import attrs
import pytest

from endpoint import remedies
from endpoint.causes import SHOWN_SUITES, suite_name, with_offer
from endpoint.config import NOT_IN_DTLS
from endpoint.credentials import Credentials
from endpoint.quotas import QuotaPolicy
from endpoint.remedies import quota_remedy, remedy_text
from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    Cause,
    CipherSuite,
    HandshakeTimeout,
    IdleTimeout,
    KeysExhausted,
    LimitExceeded,
    Limits,
    LocalClose,
    PeerAlert,
    PeerClose,
    PeerIncompatible,
    ProtocolViolation,
    ServerConfig,
)
from sansdtls.pki import CertificateProblem

SUITES_DIFFER = PeerIncompatible(AlertDescription.HANDSHAKE_FAILURE, "no cipher suite in common")

WITH_REMEDY: dict[Cause, str] = {
    AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY): "byte by byte",
    AuthenticationFailed(AuthenticationProblem.WRONG_KEY): "fingerprints",
    AuthenticationFailed(AuthenticationProblem.KEYS_UNAVAILABLE): "key store",
    AuthenticationFailed(AuthenticationProblem.NO_CERTIFICATE): "pre-shared key",
    AuthenticationFailed(AuthenticationProblem.BAD_SIGNATURE): "private key",
    AuthenticationFailed(AuthenticationProblem.PEER_REJECTED): "not accepted",
    AuthenticationFailed(AuthenticationProblem.BAD_FINISHED): "middlebox",
    SUITES_DIFFER: "dtls.cipher_suites",
    PeerIncompatible(AlertDescription.PROTOCOL_VERSION, "client version 0xfeff"): "DTLS 1.2",
    PeerIncompatible(AlertDescription.NO_APPLICATION_PROTOCOL, "none"): "dtls.alpn_protocols",
    PeerIncompatible(
        AlertDescription.HANDSHAKE_FAILURE, "the peer lacks extended_master_secret"
    ): "dtls.extended_master_secret",
    HandshakeTimeout("AWAIT_CLIENT_KEY_EXCHANGE"): "firewall or NAT",
    HandshakeTimeout("AWAIT_FINISHED"): "fingerprints",
    HandshakeTimeout("AWAIT_PSK"): "key store",
    HandshakeTimeout("AWAIT_ACCEPTANCE"): "certificate",
    HandshakeTimeout("ACCEPT"): "too busy",
    PeerAlert(AlertDescription.UNKNOWN_CA): "CA of this endpoint's certificate",
    PeerAlert(AlertDescription.DECRYPT_ERROR): "identity and key",
    PeerAlert(222): "the device's log",
    ProtocolViolation(AlertDescription.DECODE_ERROR, "trailing bytes"): "capture",
    LimitExceeded("max_associations"): "dtls.limits.max_associations",
}
WITHOUT: tuple[Cause, ...] = (LocalClose(), PeerClose(), KeysExhausted("seal"), IdleTimeout(1.0))


@pytest.mark.parametrize(("cause", "words"), WITH_REMEDY.items(), ids=str)
def test_a_cause_has_its_remedy(cause, words):
    assert words in (remedy_text(cause) or "")


def test_no_cause_was_forgotten():
    assert {type(cause) for cause in (*WITH_REMEDY, *WITHOUT)} == set(get_args(Cause))
    assert all(remedy_text(cause) is None for cause in WITHOUT)
    problems = {cause.problem for cause in WITH_REMEDY if isinstance(cause, AuthenticationFailed)}
    assert problems == set(AuthenticationProblem)


@pytest.mark.parametrize("problem", [problem.value for problem in CertificateProblem])
def test_a_certificate_problem_has_its_own_remedy_or_the_general_one(problem):
    text = remedy_text(AuthenticationFailed(AuthenticationProblem.PEER_REJECTED), problem)
    assert text
    known = {"no_certificate", "malformed", "unsupported_extension", "wrong_name", "other"}
    assert (text == "see why its certificate or raw public key was not accepted") is (problem in known)


def test_every_key_of_the_configuration_that_is_named_is_there():
    quoted = "\n".join(
        text
        for name, value in vars(remedies).items()
        if name.startswith("_") and isinstance(value, (str, dict))
        for text in ([value] if isinstance(value, str) else value.values())
        if isinstance(text, str)
    ) + "\n".join(remedy_text(cause) or "" for cause in WITH_REMEDY)
    tables = {
        "dtls": {field.name for field in attrs.fields(ServerConfig)} - set(NOT_IN_DTLS),
        "credentials": {field.name for field in attrs.fields(Credentials)},
        "limits": {field.name for field in attrs.fields(Limits)},
    }
    named = re.findall(r"\b(dtls|credentials|limits)\.([a-z_]+)", quoted)
    assert len(named) > 8
    for table, key in named:
        assert key in tables[table], f"{table}.{key}"


def test_a_quota_is_named_with_its_key():
    for field in attrs.fields(QuotaPolicy):
        assert f"quotas.{field.name}" in quota_remedy(field.name)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("max_half_open", "raise dtls.limits.max_half_open, which all share"),
        ("identity_handshakes_per_second", "raise quotas.identity_handshakes_per_second"),
        (
            "half_open_per_prefix",
            "raise quotas.half_open_per_prefix; where many of them share an address, list its network in quotas.networks",
        ),
    ],
)
def test_the_remedy_of_a_refusal_names_the_key_that_helps(name, remedy):
    assert quota_remedy(name) == f"if devices are meant to do that, {remedy}"


def test_an_offer_is_told_where_no_cipher_suite_was_in_common():
    told = with_offer(SUITES_DIFFER, (0xC0A8, 0x00AE, 0xCAFE, 0x00FF))
    assert isinstance(told, PeerIncompatible)
    assert told.rule == (
        "no cipher suite in common; it offered TLS_PSK_WITH_AES_128_CCM_8, TLS_PSK_WITH_AES_128_CBC_SHA256, 0xcafe"
    )
    assert told.description is SUITES_DIFFER.description


def test_a_long_offer_is_cut_and_an_empty_one_told():
    many = with_offer(SUITES_DIFFER, tuple(range(0x1000, 0x3000)))
    assert isinstance(many, PeerIncompatible)
    assert many.rule.count("0x") == SHOWN_SUITES
    assert many.rule.endswith(f"and {0x2000 - SHOWN_SUITES} more")
    none = with_offer(SUITES_DIFFER, (0x00FF,))
    assert isinstance(none, PeerIncompatible)
    assert none.rule.endswith("it offered none")


def test_other_causes_stay_as_they_are():
    for cause in (
        HandshakeTimeout("AWAIT_FINISHED"),
        PeerIncompatible(AlertDescription.PROTOCOL_VERSION, "x"),
    ):
        assert with_offer(cause, (1, 2)) is cause


def test_our_suites_have_their_names():
    assert all(suite_name(suite.value) == suite.name for suite in CipherSuite)
