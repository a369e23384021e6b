"""What an operator is told of a policy that could never work."""

from __future__ import annotations

import attrs
import pytest
from cryptography import x509

from sansdtls import ConfigError, UsageError
from sansdtls.pki import (
    CrlPolicy,
    IdentitySource,
    Purpose,
    TrustPolicy,
    Verifier,
    certificates_from_pem,
    crls_from_pem,
)
from sansdtls.pki.policy import MAX_PATH_LENGTH
from tests.core.certificates import (
    A_DAY,
    END,
    NOW,
    SERVER_AUTH,
    START,
    Authority,
    key_usage,
    pem,
)

ROOT = Authority.root("Fleet root")
OTHER = Authority.root("Other root")
FACTORY = ROOT.authority("Factory 7")


def policy(**fields) -> TrustPolicy:
    return TrustPolicy(**{"purpose": Purpose.CLIENT, "anchors": [ROOT.der], **fields})


# --- PEM ----------------------------------------------------------------------------------------------


def test_a_policy_may_be_made_from_pem_with_text_around_it():
    anchors = b"the old one:\n" + pem(ROOT.der) + b"\nthe new one:\r\n" + pem(OTHER.der)
    made = TrustPolicy.from_pem(
        anchors=anchors,
        intermediates=pem(FACTORY.der),
        crls=pem(ROOT.crl(), label="X509 CRL"),
        crl_policy=CrlPolicy.IF_PRESENT,
        purpose=Purpose.CLIENT,
    )
    assert made.anchors == (ROOT.der, OTHER.der)
    assert made.intermediates == (FACTORY.der,)
    assert len(made.crls) == 1
    assert Verifier(made).verify([FACTORY.device("meter").der], at=NOW).identity == "meter"


def test_empty_files_of_intermediates_and_lists_mean_none():
    made = TrustPolicy.from_pem(anchors=pem(ROOT.der), intermediates=b" \n", crls=b"", purpose=Purpose.CLIENT)
    assert made == policy()


def test_a_chain_is_read_in_its_order():
    device = FACTORY.device()
    assert certificates_from_pem(device.chain_pem, "certificate") == device.chain


BLOCK = pem(ROOT.der)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "device_ca: there is no -----BEGIN CERTIFICATE-----"),
        (b"no PEM at all", "device_ca: there is no -----BEGIN CERTIFICATE-----"),
        (ROOT.der, "device_ca: there is no -----BEGIN CERTIFICATE-----"),
        (BLOCK[:-20], "device_ca: there is no -----BEGIN CERTIFICATE----- in it that also ends"),
        (BLOCK + BLOCK[:80], "device_ca: a -----BEGIN has no -----END of its own"),
        (BLOCK + ROOT.key_pem, "device_ca: number 2 is a PRIVATE KEY, not a CERTIFICATE"),
        (pem(ROOT.crl(), label="X509 CRL"), "device_ca: number 1 is a X509 CRL, not a CERTIFICATE"),
        (BLOCK + BLOCK.replace(b"MII", b"MIJ", 1), "device_ca: number 2 cannot be read"),
        (BLOCK + BLOCK.replace(b"MII", b"!!!", 1), "device_ca: number 2 cannot be read"),
    ],
)
def test_what_is_wrong_in_a_pem_file_is_said_with_its_place(data, said):
    with pytest.raises(ConfigError) as caught:
        certificates_from_pem(data, "device_ca")
    assert str(caught.value).startswith(said)
    assert "PRIVATE KEY-----" not in str(caught.value)


def test_a_certificate_where_a_list_belongs_is_pointed_out():
    with pytest.raises(ConfigError, match="crl: number 1 is a CERTIFICATE, not a X509 CRL"):
        crls_from_pem(BLOCK, "crl")


# --- DER and fields -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"anchors": []}, "TrustPolicy.anchors: at least one certificate is needed"),
        ({"anchors": ROOT.der}, "a sequence of DER encodings is needed"),
        ({"anchors": "ca.pem"}, "a sequence of DER encodings is needed"),
        ({"anchors": [ROOT.der, b"\0"]}, "anchors: number 2 cannot be read"),
        ({"anchors": [pem(ROOT.der)]}, "anchors: number 1 cannot be read"),
        ({"anchors": [None]}, "anchors: number 1 cannot be read"),
        ({"intermediates": [b"\0"]}, "intermediates: number 1 cannot be read"),
        (
            {"crls": [ROOT.der], "crl_policy": CrlPolicy.REQUIRED},
            "crls: number 1 cannot be read",
        ),
        (
            {"anchors": [ROOT.device("meter").der]},
            "anchors: number 1 (CN=meter,O=Fleet) is not that of a CA (basicConstraints CA:TRUE)",
        ),
        (
            {"anchors": [Authority.root("Lists", usage=key_usage("crl_sign")).der]},
            "anchors: number 1 (CN=Lists,O=Fleet) has a key usage without certificate signing",
        ),
        (
            {"anchors": [Authority.root("Servers", purposes=[SERVER_AUTH]).der]},
            "anchors: number 1 (CN=Servers,O=Fleet) has an extended key usage without client authentication",
        ),
        (
            {"anchors": [Authority.root("Weak", key="rsa-1024").der]},
            "anchors: number 1 (CN=Weak,O=Fleet) has an RSA key of 1024 bits, not of 2048 to 8192",
        ),
        (
            {"anchors": [Authority.root("Odd", key="k1").der]},
            "anchors: number 1 (CN=Odd,O=Fleet) has a key of a kind that is not supported",
        ),
        (
            {"intermediates": [ROOT.device("meter").der]},
            "intermediates: number 1 (CN=meter,O=Fleet) is not that of a CA",
        ),
        (
            {"crls": [ROOT.crl()]},
            "TrustPolicy.crls: there are some, but crl_policy says that none is looked at",
        ),
        ({"crl_policy": CrlPolicy.REQUIRED}, "TrustPolicy.crls: crl_policy requires lists, and none"),
        ({"crl_policy": "required"}, "TrustPolicy.crl_policy: 'required' is no CrlPolicy"),
        ({"purpose": "client"}, "TrustPolicy.purpose: 'client' is no Purpose"),
        ({"max_path_length": -1}, "TrustPolicy.max_path_length: -1 is not within 0 to 8"),
        ({"max_path_length": MAX_PATH_LENGTH + 1}, "TrustPolicy.max_path_length: 9 is not within 0 to 8"),
        ({"max_path_length": True}, "TrustPolicy.max_path_length: True"),
        ({"identity_sources": []}, "TrustPolicy.identity_sources: one or more"),
        ({"identity_sources": ["dns"]}, "TrustPolicy.identity_sources: one or more"),
        ({"pins": [b"short"]}, "TrustPolicy.pins: b'short' is no SHA-256 digest of 32 bytes"),
        ({"pins": ["0" * 32]}, "TrustPolicy.pins: '000"),
        ({"allow_wildcards": "no"}, "TrustPolicy.allow_wildcards: 'no' is no bool"),
        ({"require_server_name": 0}, "TrustPolicy.require_server_name: 0 is no bool"),
    ],
)
def test_a_policy_that_could_never_work_says_what_is_wrong(fields, said):
    with pytest.raises(ConfigError) as caught:
        policy(**fields)
    assert said in str(caught.value)


def test_an_anchor_with_basic_constraints_that_cannot_be_read_is_refused():
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.37"), b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        policy(anchors=[Authority.root(extensions=[(odd, False)]).der])


def test_an_intermediate_signed_in_an_unknown_way_is_refused_by_the_number_of_that_way():
    ecdsa_with_sha256 = bytes.fromhex("06082a8648ce3d040302")
    der = FACTORY.der.replace(ecdsa_with_sha256, ecdsa_with_sha256[:-1] + b"\x7f")
    with pytest.raises(ConfigError, match=r"is signed with 1\.2\.840\.10045\.4\.3\.127"):
        policy(intermediates=[der])


def test_the_defaults_are_the_careful_ones():
    made = policy()
    assert made.crl_policy is CrlPolicy.NONE
    assert not made.allow_wildcards
    assert made.require_server_name
    assert made.identity_sources[0] is IdentitySource.EUI64


def test_a_policy_prints_without_its_certificates():
    shown = repr(policy(pins=[bytes(32)]))
    assert "anchors=<1>" in shown
    assert "pins=<1>" in shown
    assert len(shown) < 700


def test_policies_are_values():
    assert policy() == policy()
    assert hash(policy()) == hash(policy())
    assert attrs.evolve(policy(), max_path_length=1).max_path_length == 1
    assert Verifier(policy()).policy == policy()


# --- dates --------------------------------------------------------------------------------------------


def test_what_is_out_of_date_is_listed_with_its_dates():
    new = Authority.root("New root", start=NOW + A_DAY)
    made = policy(
        anchors=[ROOT.der, new.der],
        intermediates=[FACTORY.der],
        crls=[ROOT.crl(start=START, end=NOW - A_DAY)],
        crl_policy=CrlPolicy.IF_PRESENT,
    )
    assert made.out_of_date(NOW) == (
        "anchors: number 2 (CN=New root,O=Fleet) begins 2026-06-02 12:00:00Z",
        "crls: number 1 (CN=Fleet root,O=Fleet) ended 2026-05-31 12:00:00Z",
    )
    assert [text.partition(" (")[0] for text in made.out_of_date(END + A_DAY)] == [
        "anchors: number 1",
        "anchors: number 2",
        "intermediates: number 1",
        "crls: number 1",
    ]
    assert made.out_of_date(END)[0].startswith("crls")
    with pytest.raises(UsageError, match="time zone"):
        made.out_of_date(NOW.replace(tzinfo=None))
