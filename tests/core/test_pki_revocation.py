"""Revocation lists: what they refuse, when they are current, and whose list counts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from sansdtls import AlertDescription, ConfigError
from sansdtls.pki import (
    CertificateProblem,
    CertificateRejected,
    CrlPolicy,
    Purpose,
    TrustPolicy,
    VerifiedPeer,
    Verifier,
)
from tests.core.certificates import (
    A_DAY,
    A_SECOND,
    NOW,
    Authority,
    key_usage,
    make_key,
)

ROOT = Authority.root("Fleet root")
FACTORY = ROOT.authority("Factory 7")
GOOD = FACTORY.device("good")
BAD = FACTORY.device("bad")

EITHER = pytest.mark.parametrize("crl_policy", [CrlPolicy.IF_PRESENT, CrlPolicy.REQUIRED])


def verifier(
    *crls: bytes, crl_policy: CrlPolicy = CrlPolicy.REQUIRED, anchor: Authority = ROOT, **fields
) -> Verifier:
    policy = TrustPolicy(
        purpose=Purpose.CLIENT, anchors=[anchor.der], crls=crls, crl_policy=crl_policy, **fields
    )
    return Verifier(policy)


def accept(checker: Verifier, chain, *, at=NOW) -> VerifiedPeer:
    return checker.verify(chain, at=at)


def refusal(checker: Verifier, chain, *, at=NOW) -> CertificateRejected:
    with pytest.raises(CertificateRejected) as caught:
        checker.verify(chain, at=at)
    return caught.value


# --- who is refused -----------------------------------------------------------------------------------


@EITHER
def test_a_revoked_device_is_refused_and_its_neighbour_is_not(crl_policy):
    checker = verifier(ROOT.crl(), FACTORY.crl(BAD), crl_policy=crl_policy)
    accept(checker, GOOD.chain)
    refused = refusal(checker, BAD.chain)
    assert refused.problem is CertificateProblem.REVOKED
    assert refused.description is AlertDescription.CERTIFICATE_REVOKED
    assert refused.detail == "the peer's certificate (CN=bad,O=Fleet) is revoked since 2026-01-02 00:00:00Z"


@EITHER
def test_a_device_below_a_revoked_ca_is_refused(crl_policy):
    checker = verifier(ROOT.crl(FACTORY), FACTORY.crl(), crl_policy=crl_policy)
    refused = refusal(checker, GOOD.chain)
    assert refused.problem is CertificateProblem.REVOKED
    assert "certificate 1 above it (CN=Factory 7,O=Fleet) is revoked" in refused.detail


def test_nobody_is_revoked_where_nobody_looks():
    policy = TrustPolicy(purpose=Purpose.CLIENT, anchors=[ROOT.der])
    assert policy.crl_policy is CrlPolicy.NONE
    accept(Verifier(policy), BAD.chain)


def test_a_serial_number_revoked_by_another_ca_is_another_certificate():
    other = ROOT.authority("Factory 8")
    accept(verifier(ROOT.crl(), FACTORY.crl(), other.crl(GOOD)), GOOD.chain)


def test_a_forged_certificate_with_a_revoked_number_learns_nothing_of_the_list():
    forged = bytearray(BAD.der)
    forged[-1] ^= 1
    checker = verifier(ROOT.crl(), FACTORY.crl(BAD))
    assert refusal(checker, [bytes(forged), *BAD.chain[1:]]).problem is CertificateProblem.BAD_SIGNATURE


def test_the_newer_of_two_current_lists_counts():
    older = FACTORY.crl(BAD, start=NOW - 2 * A_DAY)
    newer = FACTORY.crl(start=NOW - A_DAY)
    for order in ([older, newer], [newer, older]):
        accept(verifier(ROOT.crl(), *order), BAD.chain)


def test_a_list_of_a_ca_whose_name_is_written_in_other_letters_counts():
    shouting = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "FLEET"),
            x509.NameAttribute(NameOID.COMMON_NAME, "FACTORY  7"),
        ]
    )
    refused = refusal(verifier(ROOT.crl(), FACTORY.crl(BAD, issuer=shouting)), BAD.chain)
    assert refused.problem is CertificateProblem.REVOKED
    assert refused.detail == "the peer's certificate (CN=bad,O=Fleet) is revoked"


# --- lists that are not there -------------------------------------------------------------------------


def test_required_lists_are_required_of_every_ca_of_the_path():
    refused = refusal(verifier(ROOT.crl()), GOOD.chain)
    assert refused.problem is CertificateProblem.CRL_MISSING
    assert refused.description is AlertDescription.CERTIFICATE_UNKNOWN
    assert refused.detail == (
        "there is no revocation list of CN=Factory 7,O=Fleet for the peer's certificate (CN=good,O=Fleet)"
    )
    refused = refusal(verifier(FACTORY.crl()), GOOD.chain)
    assert refused.problem is CertificateProblem.CRL_MISSING
    assert "of CN=Fleet root,O=Fleet for certificate 1 above it" in refused.detail


def test_a_ca_without_a_list_revokes_nothing_if_lists_count_where_present():
    accept(verifier(ROOT.crl(), crl_policy=CrlPolicy.IF_PRESENT), GOOD.chain)
    accept(verifier(FACTORY.crl(), crl_policy=CrlPolicy.IF_PRESENT), GOOD.chain)
    accept(verifier(crl_policy=CrlPolicy.IF_PRESENT), GOOD.chain)


def test_an_anchor_that_is_not_self_signed_needs_no_list_from_above():
    checker = verifier(FACTORY.crl(BAD), anchor=FACTORY)
    accept(checker, GOOD.chain)
    assert refusal(checker, BAD.chain).problem is CertificateProblem.REVOKED


# --- lists that are too old ---------------------------------------------------------------------------


@EITHER
def test_a_list_counts_from_its_first_second_through_its_last(crl_policy):
    start, end = NOW, NOW + A_DAY
    checker = verifier(
        ROOT.crl(end=NOW + 9 * A_DAY), FACTORY.crl(BAD, start=start, end=end), crl_policy=crl_policy
    )
    for at in (start, start + A_SECOND, end - A_SECOND, end, end + timedelta(microseconds=999_999)):
        accept(checker, GOOD.chain, at=at)
    for at in (start - A_SECOND, end + A_SECOND):
        refused = refusal(checker, GOOD.chain, at=at)
        assert refused.problem is CertificateProblem.CRL_NOT_CURRENT
        assert refused.description is AlertDescription.CERTIFICATE_UNKNOWN
        assert "is from 2026-06-01 12:00:00Z to 2026-06-02 12:00:00Z" in refused.detail
        assert refusal(checker, BAD.chain, at=at).problem is CertificateProblem.REVOKED


def test_a_current_list_makes_an_old_one_of_the_same_ca_harmless():
    old = FACTORY.crl(start=NOW - 9 * A_DAY, end=NOW - 8 * A_DAY)
    for order in ([old, FACTORY.crl(BAD)], [FACTORY.crl(BAD), old]):
        checker = verifier(ROOT.crl(), *order)
        accept(checker, GOOD.chain)
        assert refusal(checker, BAD.chain).problem is CertificateProblem.REVOKED


def test_one_verifier_follows_the_time_back_and_forth():
    first = FACTORY.crl(start=NOW, end=NOW + A_DAY)
    second = FACTORY.crl(BAD, start=NOW + A_DAY, end=NOW + 2 * A_DAY)
    checker = verifier(ROOT.crl(end=NOW + 9 * A_DAY), first, second)
    for _ in range(2):
        accept(checker, BAD.chain, at=NOW)
        assert refusal(checker, BAD.chain, at=NOW + A_DAY).problem is CertificateProblem.REVOKED
        assert refusal(checker, GOOD.chain, at=NOW + 3 * A_DAY).problem is CertificateProblem.CRL_NOT_CURRENT


# --- lists of the wrong kind --------------------------------------------------------------------------


def test_a_list_signed_with_another_key_is_refused_when_its_ca_is_known():
    with pytest.raises(ConfigError, match=r"crls: number 1 \(CN=Fleet root,O=Fleet\) is not signed"):
        verifier(ROOT.crl(key=make_key()))


def test_a_list_counts_if_any_of_two_cas_of_one_name_has_signed_it():
    namesake = Authority.root("Fleet root")
    policy = TrustPolicy(
        purpose=Purpose.CLIENT,
        anchors=[ROOT.der, namesake.der],
        crls=[ROOT.crl(), FACTORY.crl()],
        crl_policy=CrlPolicy.REQUIRED,
    )
    accept(Verifier(policy), GOOD.chain)


def test_a_list_signed_with_another_key_is_found_out_when_its_ca_turns_up():
    refused = refusal(verifier(ROOT.crl(), FACTORY.crl(key=make_key())), GOOD.chain)
    assert refused.problem is CertificateProblem.CRL_UNUSABLE
    assert refused.description is AlertDescription.CERTIFICATE_UNKNOWN


def test_a_list_of_a_ca_that_may_not_sign_lists_is_of_no_use():
    mute = ROOT.authority("Mute", usage=key_usage("key_cert_sign"))
    assert (
        refusal(verifier(ROOT.crl(), mute.crl()), mute.device().chain).problem
        is CertificateProblem.CRL_UNUSABLE
    )


def distribution_point(**fields) -> tuple[x509.IssuingDistributionPoint, bool]:
    values = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**{**values, **fields}), True


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        ((x509.DeltaCRLIndicator(1), True), "delta"),
        (distribution_point(indirect_crl=True), "indirect"),
        (distribution_point(only_some_reasons=frozenset([x509.ReasonFlags.key_compromise])), "reasons"),
        (distribution_point(only_contains_attribute_certs=True), "attribute"),
        ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True), "1.2.3.4"),
    ],
)
def test_a_list_that_would_be_passed_over_in_silence_is_refused_at_the_start(extension, said):
    with pytest.raises(ConfigError, match=said):
        verifier(ROOT.crl(extensions=[extension]))


def test_a_list_for_other_certificates_does_not_cover_this_one():
    cas_only = FACTORY.crl(extensions=[distribution_point(only_contains_ca_certs=True)])
    assert refusal(verifier(ROOT.crl(), cas_only), GOOD.chain).problem is CertificateProblem.CRL_MISSING
    accept(verifier(ROOT.crl(), cas_only, crl_policy=CrlPolicy.IF_PRESENT), GOOD.chain)


def partition(number: int) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(f"http://crl.example/{number}")]


def test_a_partition_of_a_list_covers_the_certificates_that_point_to_it():
    points = x509.CRLDistributionPoints([x509.DistributionPoint(partition(1), None, None, None)])
    device = FACTORY.device("partitioned", extensions=[(points, False)])
    lists = [FACTORY.crl(extensions=[distribution_point(full_name=partition(number))]) for number in (1, 2)]
    accept(verifier(ROOT.crl(), lists[0]), device.chain)
    assert refusal(verifier(ROOT.crl(), lists[1]), device.chain).problem is CertificateProblem.CRL_MISSING


def test_a_list_with_a_weak_hash_is_refused_at_the_start():
    with pytest.raises(ConfigError, match="sha224"):
        verifier(FACTORY.crl(algorithm=hashes.SHA224()))


def sequence(contents: bytes) -> bytes:
    size = len(contents)
    length = (
        bytes([size])
        if size < 0x80
        else b"\x81" + bytes([size])
        if size < 0x100
        else b"\x82" + size.to_bytes(2)
    )
    return b"\x30" + length + contents


def contents(der: bytes) -> bytes:
    return der[2 if der[1] < 0x80 else 2 + (der[1] & 0x7F) :]


def test_a_list_without_a_next_update_is_refused_at_the_start():
    whole = ROOT.crl()
    body = x509.load_der_x509_crl(whole).tbs_certlist_bytes
    next_update = b"\x17\x0d" + f"{NOW + A_DAY:%y%m%d%H%M%SZ}".encode()
    assert next_update in body
    endless = contents(whole).replace(body, sequence(contents(body).replace(next_update, b"")))
    with pytest.raises(ConfigError, match="does not say when the next one comes"):
        verifier(sequence(endless))


# --- threads ------------------------------------------------------------------------------------------


def test_threads_may_share_a_verifier_while_lists_come_and_go():
    first = FACTORY.crl(start=NOW, end=NOW + A_DAY)
    second = FACTORY.crl(BAD, start=NOW + A_DAY + A_SECOND, end=NOW + 2 * A_DAY)
    checker = verifier(ROOT.crl(end=NOW + 9 * A_DAY), first, second)

    def decide(number: int) -> bool:
        if number % 2:
            return accept(checker, BAD.chain, at=NOW).identity == "bad"
        return refusal(checker, BAD.chain, at=NOW + 2 * A_DAY).problem is CertificateProblem.REVOKED

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decide, range(200)))
