"""Which certificate chains are accepted, and what is said of the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import AlertDescription, UsageError
from sansdtls.pki import (
    CertificateProblem,
    CertificateRejected,
    IdentitySource,
    Purpose,
    TrustPolicy,
    VerifiedPeer,
    Verifier,
)
from sansdtls.pki.rejection import ALERTS, MAX_SHOWN
from sansdtls.pki.verifier import MAX_CERTIFICATES
from tests.core.certificates import (
    A_SECOND,
    ANY_PURPOSE,
    CLIENT_AUTH,
    END,
    NEVER,
    NOW,
    SERVER_AUTH,
    START,
    Authority,
    Credential,
    key_usage,
    make_key,
)

ROOT = Authority.root("Fleet root")
FACTORY = ROOT.authority("Factory 7")
METER = FACTORY.device("meter-7")


def verifier(*anchors: Authority, purpose: Purpose = Purpose.CLIENT, **fields) -> Verifier:
    chosen = anchors or (ROOT,)
    return Verifier(TrustPolicy(purpose=purpose, anchors=[anchor.der for anchor in chosen], **fields))


def accept(checker: Verifier, chain, *, at=NOW, **others) -> VerifiedPeer:
    return checker.verify(chain, at=at, **others)


def refusal(checker: Verifier, chain, *, at=NOW, **others) -> CertificateRejected:
    with pytest.raises(CertificateRejected) as caught:
        checker.verify(chain, at=at, **others)
    return caught.value


def problem(checker: Verifier, chain, **others) -> CertificateProblem:
    return refusal(checker, chain, **others).problem


# --- what is accepted ---------------------------------------------------------------------------------


def test_a_chain_up_to_an_anchor_gives_a_verified_peer():
    peer = accept(verifier(), METER.chain)
    assert peer.identity == "meter-7"
    assert peer.identity_source is IdentitySource.COMMON_NAME
    assert peer.subject == "CN=meter-7,O=Fleet"
    assert peer.spki == METER.spki
    assert peer.fingerprint == sha256(METER.der).hexdigest()
    assert peer.not_after == END
    assert peer.valid_until == END


def test_a_device_directly_below_the_anchor_is_accepted():
    assert accept(verifier(), ROOT.device("gauge").chain).identity == "gauge"


def test_the_root_may_be_sent_along():
    assert accept(verifier(), [*METER.chain, ROOT.der]).identity == "meter-7"


def test_certificates_that_belong_to_no_path_do_not_disturb():
    stranger = Authority.root("Stranger")
    own, factory = METER.chain
    assert accept(verifier(), [own, stranger.der, factory]).identity == "meter-7"


def test_an_intermediate_of_the_policy_need_not_be_sent():
    assert accept(verifier(intermediates=[FACTORY.der]), [METER.der]).identity == "meter-7"


def test_an_anchor_need_not_be_self_signed():
    assert accept(verifier(FACTORY), [METER.der]).identity == "meter-7"


def test_an_anchor_that_is_not_self_signed_makes_nothing_else_below_its_root_trusted():
    sibling = ROOT.authority("Factory 8").device("meter-8")
    assert problem(verifier(FACTORY), sibling.chain) is CertificateProblem.UNKNOWN_ISSUER


def test_a_certificate_that_is_an_anchor_itself_is_accepted():
    alone = Authority.root("alone", usage=key_usage("digital_signature", "key_cert_sign"))
    assert accept(verifier(alone), [alone.der]).identity == "alone"


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa"])
@pytest.mark.parametrize("authority", ["p256", "p384", "p521", "ed25519", "rsa"])
def test_every_supported_kind_of_key_is_accepted(kind, authority):
    root = Authority.root(key=authority)
    device = root.authority(key=authority).device(key=kind)
    assert accept(verifier(root), device.chain).spki == device.spki


def test_a_cross_signed_ca_is_accepted_under_either_anchor():
    old, new = Authority.root("Old"), Authority.root("New")
    crossed = old.sign(
        new.certificate.subject,
        new.key,
        constraints=x509.BasicConstraints(ca=True, path_length=None),
        usage=key_usage("key_cert_sign"),
    )
    device = Credential(new.device().certificate, new.key, (crossed,))
    accept(verifier(old), device.chain)
    accept(verifier(new), device.chain)


def test_an_expired_anchor_does_not_hide_a_renewed_one():
    key = make_key()
    old = Authority.root("Root", key=key, end=NOW - A_SECOND)
    renewed = Authority.root("Root", key=key)
    for order in ([old, renewed], [renewed, old]):
        accept(verifier(*order), old.device().chain)


# --- time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (START - A_SECOND, CertificateProblem.NOT_YET_VALID),
        (START, None),
        (START + A_SECOND, None),
        (END - A_SECOND, None),
        # RFC 5280 §4.1.2.5: "the period of time from notBefore through notAfter, inclusive"
        (END, None),
        (END + timedelta(microseconds=999_999), None),
        (END + A_SECOND, CertificateProblem.EXPIRED),
    ],
)
def test_a_certificate_is_valid_from_its_first_second_through_its_last(at, expected):
    if expected is None:
        accept(verifier(), METER.chain, at=at)
    else:
        assert problem(verifier(), METER.chain, at=at) is expected


@pytest.mark.parametrize("hours", [-11, 0, 5.5, 14])
def test_the_time_zone_of_the_given_time_is_heeded(hours):
    zone = timezone(timedelta(hours=hours))
    accept(verifier(), METER.chain, at=START.astimezone(zone))
    early = (START - A_SECOND).astimezone(zone)
    assert problem(verifier(), METER.chain, at=early) is CertificateProblem.NOT_YET_VALID


def test_a_time_without_a_zone_is_the_callers_mistake():
    with pytest.raises(UsageError, match="time zone"):
        verifier().verify(METER.chain, at=NOW.replace(tzinfo=None))


def test_one_verifier_serves_any_order_of_times():
    # OpenSSL's store ignores each time but the first that it is given.
    checker = verifier()
    for _ in range(2):
        accept(checker, METER.chain)
        assert problem(checker, METER.chain, at=END + A_SECOND) is CertificateProblem.EXPIRED
        assert problem(checker, METER.chain, at=START - A_SECOND) is CertificateProblem.NOT_YET_VALID


def test_the_certificate_that_has_expired_is_named_with_its_date():
    device = ROOT.authority("Old line", end=NOW - A_SECOND).device("meter")
    refused = refusal(verifier(), device.chain)
    assert refused.problem is CertificateProblem.EXPIRED
    assert "certificate 1 above it (CN=Old line,O=Fleet) expired 2026-06-01 11:59:59Z" in refused.detail


def test_the_certificate_that_is_not_yet_valid_is_named_with_its_date():
    refused = refusal(verifier(), ROOT.device("early", start=NOW + A_SECOND).chain)
    assert refused.problem is CertificateProblem.NOT_YET_VALID
    assert "the peer's certificate (CN=early,O=Fleet) is valid from 2026-06-01 12:00:01Z" in refused.detail


def test_an_expired_anchor_is_refused():
    root = Authority.root(end=NOW - A_SECOND)
    assert problem(verifier(root), root.device().chain) is CertificateProblem.EXPIRED


def test_a_device_without_an_end_is_valid_until_its_ca_ends():
    peer = accept(verifier(), FACTORY.idevid("0042").chain)
    assert peer.not_after == NEVER
    assert peer.valid_until == END


# --- whom nobody vouches for --------------------------------------------------------------------------


def test_a_self_signed_certificate_is_refused():
    refused = refusal(verifier(), [Authority.root("meter-7").der])
    assert refused.problem is CertificateProblem.SELF_SIGNED
    assert refused.description is AlertDescription.UNKNOWN_CA


def test_a_chain_up_to_a_foreign_root_is_refused():
    foreign = Authority.root("Foreign")
    refused = refusal(verifier(), [*foreign.device().chain, foreign.der])
    assert refused.problem is CertificateProblem.UNTRUSTED
    assert "CN=Foreign" in refused.detail


def test_a_missing_intermediate_is_refused_and_named():
    refused = refusal(verifier(), [METER.der])
    assert refused.problem is CertificateProblem.UNKNOWN_ISSUER
    assert refused.description is AlertDescription.UNKNOWN_CA
    assert "issued by CN=Factory 7,O=Fleet, whose certificate was not sent" in refused.detail


def test_the_root_in_place_of_the_intermediate_does_not_help():
    assert problem(verifier(), [METER.der, ROOT.der]) is CertificateProblem.UNKNOWN_ISSUER


def test_an_anchor_of_the_same_name_with_another_key_is_pointed_out():
    namesake = Authority.root("Fleet root")
    refused = refusal(verifier(), namesake.authority("Factory 9").device().chain)
    assert refused.problem is CertificateProblem.UNKNOWN_ISSUER
    assert "there is a trust anchor of that name, with another key" in refused.detail


def test_a_ca_that_has_the_name_of_an_anchor_and_hides_its_key_is_refused():
    namesake = Authority.root("Fleet root", key_ids=False)
    assert problem(verifier(), namesake.device(key_ids=False).chain) is CertificateProblem.BAD_SIGNATURE


def test_a_bad_signature_on_an_intermediate_is_refused():
    forged = Authority.root("Fleet root").authority("Factory 7", key_ids=False)
    refused = refusal(verifier(), forged.device().chain)
    assert refused.problem is CertificateProblem.BAD_SIGNATURE
    assert refused.description is AlertDescription.BAD_CERTIFICATE
    assert "certificate 1 above it" in refused.detail


# --- CAs ----------------------------------------------------------------------------------------------


def below(authority: Credential, **fields) -> tuple[bytes, ...]:
    """The chain of a device that an end entity has signed."""
    ca = Authority(authority.certificate, authority.key, authority.above)
    return ca.device("child", **fields).chain


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"constraints": x509.BasicConstraints(ca=False, path_length=None)},
        {"usage": key_usage("digital_signature")},
        {"usage": key_usage("digital_signature", "key_cert_sign")},
    ],
)
def test_what_an_end_entity_has_signed_is_refused(fields):
    refused = refusal(verifier(), below(FACTORY.device("meter-7", **fields)))
    assert refused.problem is CertificateProblem.NOT_A_CA
    assert refused.description is AlertDescription.UNKNOWN_CA
    assert "CN=meter-7" in refused.detail


def test_what_a_ca_without_certificate_signing_has_signed_is_refused():
    listmaker = ROOT.authority("Lists only", usage=key_usage("crl_sign"))
    assert problem(verifier(), listmaker.device().chain) is CertificateProblem.NOT_A_CA


def test_a_ca_below_a_path_length_of_zero_is_refused():
    line = ROOT.authority("Factory", path_length=0).authority("Line 1")
    refused = refusal(verifier(), line.device().chain)
    assert refused.problem is CertificateProblem.TOO_DEEP
    assert refused.description is AlertDescription.UNKNOWN_CA


def test_a_device_below_a_path_length_of_zero_is_accepted():
    accept(verifier(), ROOT.authority("Factory", path_length=0).device().chain)


def authorities(count: int) -> Authority:
    lowest = ROOT
    for number in range(count):
        lowest = lowest.authority(f"CA {number}")
    return lowest


@pytest.mark.parametrize("allowed", [0, 1, 3, 8])
def test_as_many_intermediates_as_the_policy_allows_are_accepted_and_not_one_more(allowed):
    checker = verifier(max_path_length=allowed)
    accept(checker, authorities(allowed).device().chain)
    refused = refusal(checker, authorities(allowed + 1).device().chain)
    assert refused.problem is CertificateProblem.TOO_DEEP
    assert f"{allowed} allowed" in refused.detail


def test_more_certificates_than_any_policy_needs_are_refused_unread():
    accept(verifier(), [*METER.chain, *[ROOT.der] * (MAX_CERTIFICATES - 2)])
    assert problem(verifier(), [b"no certificate"] * (MAX_CERTIFICATES + 1)) is CertificateProblem.TOO_DEEP


def test_a_name_outside_a_cas_name_constraints_is_refused():
    constraints = x509.NameConstraints([x509.DNSName("fleet.example")], None)
    factory = ROOT.authority(extensions=[(constraints, True)])
    accept(verifier(), factory.device(dns=["meter.fleet.example"]).chain)
    assert (
        problem(verifier(), factory.device(dns=["meter.other.example"]).chain)
        is CertificateProblem.NAME_NOT_PERMITTED
    )


UNKNOWN_EXTENSION = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")


def test_an_unknown_extension_is_refused_only_if_it_is_critical():
    accept(verifier(), ROOT.device(extensions=[(UNKNOWN_EXTENSION, False)]).chain)
    refused = refusal(verifier(), ROOT.device(extensions=[(UNKNOWN_EXTENSION, True)]).chain)
    assert refused.problem is CertificateProblem.UNSUPPORTED_EXTENSION
    assert refused.description is AlertDescription.UNSUPPORTED_CERTIFICATE


# --- purposes and key usage ---------------------------------------------------------------------------

ROLES = [(Purpose.CLIENT, CLIENT_AUTH, SERVER_AUTH), (Purpose.SERVER, SERVER_AUTH, CLIENT_AUTH)]


def anyone(purpose: Purpose) -> Verifier:
    return verifier(purpose=purpose, require_server_name=False)


@pytest.mark.parametrize(("purpose", "right", "wrong"), ROLES)
def test_a_certificate_for_the_other_role_is_refused(purpose, right, wrong):
    accept(anyone(purpose), ROOT.device(purposes=[right]).chain)
    accept(anyone(purpose), ROOT.device(purposes=[wrong, right]).chain)
    refused = refusal(anyone(purpose), ROOT.device(purposes=[wrong]).chain)
    assert refused.problem is CertificateProblem.WRONG_PURPOSE
    assert refused.description is AlertDescription.UNSUPPORTED_CERTIFICATE


@pytest.mark.parametrize(("purpose", "right", "wrong"), ROLES)
def test_a_ca_for_the_other_role_is_refused(purpose, right, wrong):
    accept(anyone(purpose), ROOT.authority(purposes=[right]).device().chain)
    refused = refusal(anyone(purpose), ROOT.authority(purposes=[wrong]).device().chain)
    assert refused.problem is CertificateProblem.WRONG_PURPOSE
    assert "certificate 1 above it" in refused.detail


def test_any_purpose_is_not_taken_for_the_purpose():
    assert problem(verifier(), ROOT.device(purposes=[ANY_PURPOSE]).chain) is CertificateProblem.WRONG_PURPOSE


@pytest.mark.parametrize("names", ["digital_signature", "digital_signature key_encipherment"])
def test_a_key_usage_with_digital_signatures_is_accepted(names):
    accept(verifier(), ROOT.device(usage=key_usage(*names.split())).chain)


@pytest.mark.parametrize(
    "names", ["key_encipherment", "key_agreement", "key_cert_sign", "content_commitment"]
)
def test_a_key_usage_without_digital_signatures_is_refused(names):
    refused = refusal(verifier(), ROOT.device(usage=key_usage(names)).chain)
    assert refused.problem is CertificateProblem.WRONG_KEY_USAGE
    assert refused.description is AlertDescription.UNSUPPORTED_CERTIFICATE


# --- strength -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rsa-1024", "k1", "p521"])
def test_a_peers_key_that_no_handshake_here_can_use_is_refused(kind):
    refused = refusal(verifier(), ROOT.device(key=kind).chain)
    assert refused.problem is CertificateProblem.UNUSABLE_KEY
    assert refused.description is AlertDescription.UNSUPPORTED_CERTIFICATE


@pytest.mark.parametrize("kind", ["rsa-1024", "k1"])
def test_an_intermediate_with_a_weak_or_unusual_key_is_refused(kind):
    assert problem(verifier(), ROOT.authority(key=kind).device().chain) is CertificateProblem.UNUSABLE_KEY


def test_a_weak_hash_in_a_signature_is_refused_wherever_it_is():
    weak = hashes.SHA224()
    refused = refusal(verifier(), ROOT.device(algorithm=weak).chain)
    assert refused.problem is CertificateProblem.WEAK_SIGNATURE
    assert refused.description is AlertDescription.BAD_CERTIFICATE
    assert (
        problem(verifier(), ROOT.authority(algorithm=weak).device().chain)
        is CertificateProblem.WEAK_SIGNATURE
    )


def test_the_hash_of_an_anchors_own_signature_does_not_matter():
    root = Authority.root(algorithm=hashes.SHA224())
    accept(verifier(root), root.device().chain)


# --- pins ---------------------------------------------------------------------------------------------


def pin(credential: Credential) -> bytes:
    return sha256(credential.spki).digest()


@pytest.mark.parametrize("pinned", [METER, FACTORY, ROOT], ids=["peer", "intermediate", "anchor"])
def test_one_pinned_key_on_the_path_is_enough(pinned):
    accept(verifier(pins=[pin(pinned), bytes(32)]), METER.chain)


def test_a_path_without_a_pinned_key_is_refused():
    refused = refusal(verifier(pins=[pin(ROOT.device())]), METER.chain)
    assert refused.problem is CertificateProblem.NOT_PINNED
    assert refused.description is AlertDescription.CERTIFICATE_UNKNOWN


def test_a_pinned_key_that_was_sent_but_is_not_on_the_path_does_not_count():
    stranger = Authority.root("Stranger")
    assert (
        problem(verifier(pins=[pin(stranger)]), [*METER.chain, stranger.der]) is CertificateProblem.NOT_PINNED
    )


def test_a_pin_replaces_no_validation():
    alone = Authority.root("alone")
    assert problem(verifier(pins=[pin(alone)]), [alone.der]) is CertificateProblem.SELF_SIGNED


# --- bytes that are no certificates -------------------------------------------------------------------


def test_a_peer_without_a_certificate_is_refused():
    refused = refusal(verifier(), [])
    assert refused.problem is CertificateProblem.NO_CERTIFICATE
    assert refused.description is AlertDescription.HANDSHAKE_FAILURE


def test_what_follows_a_certificate_is_not_overlooked():
    assert problem(verifier(), [METER.der + b"\0", FACTORY.der]) is CertificateProblem.MALFORMED


def test_the_certificate_that_cannot_be_read_is_named():
    refused = refusal(verifier(), [METER.der, b"\x30\x03\x02\x01\x00"])
    assert refused.problem is CertificateProblem.MALFORMED
    assert refused.description is AlertDescription.BAD_CERTIFICATE
    assert refused.detail.startswith("certificate 2 of 2 sent cannot be read")


@given(data=st.binary(max_size=80))
def test_any_bytes_are_refused_with_the_same_exception(data):
    assert problem(verifier(), [data]) is CertificateProblem.MALFORMED


RICH = FACTORY.server("rich.example", uris=["urn:dev:mac:0123456789abcdef"], addresses=["192.0.2.1"])


@pytest.mark.parametrize("position", [0, 1])
def test_a_certificate_with_any_byte_changed_is_refused_with_the_same_exception(position):
    checker = verifier(purpose=Purpose.SERVER)
    accept(checker, RICH.chain, at=NOW, server_name="rich.example")
    original = RICH.chain[position]
    for index in range(len(original)):
        changed = bytearray(original)
        changed[index] ^= 1 << index % 8
        chain = list(RICH.chain)
        chain[position] = bytes(changed)
        refused = refusal(checker, chain, server_name="rich.example")
        assert str(refused).isprintable()


@given(data=st.data())
def test_a_signed_certificate_with_any_extension_values_is_refused_with_the_same_exception_if_at_all(data):
    kinds = ["2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.31", "2.5.29.32"]
    chosen = data.draw(st.lists(st.sampled_from(kinds), unique=True, max_size=3))
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (
            x509.UnrecognizedExtension(x509.ObjectIdentifier(kind), data.draw(st.binary(max_size=24))),
            data.draw(st.booleans()),
        )
        for kind in chosen
    ]
    device = FACTORY.device("odd", key_ids=False, extensions=extensions)
    try:
        accept(verifier(), device.chain)
    except CertificateRejected as refused:
        assert str(refused).isprintable()


# --- what is said -------------------------------------------------------------------------------------


def test_every_problem_has_an_alert():
    assert set(ALERTS) == set(CertificateProblem)


def test_a_refusal_reads_as_one_sentence_for_the_operator():
    refused = refusal(verifier(), [METER.der])
    assert str(refused) == f"unknown_issuer: {refused.detail}"


def test_names_of_strangers_are_shown_printable_and_bounded():
    attributes = [
        x509.NameAttribute(NameOID.COMMON_NAME, f"\x1b[31m{number}\n\u202e") for number in range(60)
    ]
    refused = refusal(verifier(), Authority.root("Foreign").device(x509.Name(attributes)).chain)
    assert refused.detail.isprintable()
    assert len(refused.detail) < 2 * MAX_SHOWN + 200
    assert "CN=\\x1b[31m59\\n\\u202e," in refused.detail


# --- threads ------------------------------------------------------------------------------------------


def test_threads_may_share_a_verifier():
    checker = verifier()
    refused = ROOT.authority().device(purposes=[SERVER_AUTH])

    def decide(number: int) -> bool:
        match number % 4:
            case 0:
                return accept(checker, METER.chain).identity == "meter-7"
            case 1:
                return problem(checker, METER.chain, at=END + A_SECOND) is CertificateProblem.EXPIRED
            case 2:
                return problem(checker, [METER.der]) is CertificateProblem.UNKNOWN_ISSUER
            case _:
                return problem(checker, refused.chain) is CertificateProblem.WRONG_PURPOSE

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decide, range(400)))
