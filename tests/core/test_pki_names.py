"""Who a device is, and whether a server is the one that was wanted."""

from __future__ import annotations

import attrs
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

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
from sansdtls.pki.names import MAX_IDENTITY_LENGTH, MAX_NAMES_SHOWN
from tests.core.certificates import NOW, Authority

ROOT = Authority.root("Fleet root")
EUI64 = "00-1B-44-FF-FE-11-3A-B7"


def client(device, *sources: IdentitySource) -> VerifiedPeer:
    """The device as a server sees it."""
    policy = TrustPolicy(purpose=Purpose.CLIENT, anchors=[ROOT.der])
    if sources:
        policy = attrs.evolve(policy, identity_sources=sources)
    return Verifier(policy).verify(device.chain, at=NOW)


def server(credential, wanted: str | None, **fields) -> VerifiedPeer:
    """The server as a client sees it that wants to reach ``wanted``."""
    policy = TrustPolicy(purpose=Purpose.SERVER, anchors=[ROOT.der], **fields)
    return Verifier(policy).verify(credential.chain, at=NOW, server_name=wanted)


def no_identity(device, *sources: IdentitySource) -> bool:
    with pytest.raises(CertificateRejected) as caught:
        client(device, *sources)
    assert caught.value.description is AlertDescription.CERTIFICATE_UNKNOWN
    return caught.value.problem is CertificateProblem.NO_IDENTITY


# --- devices ------------------------------------------------------------------------------------------

EVERYTHING = ROOT.device(
    "Meter",
    serial_number="SN-42",
    dns=["First.Example", "second.example"],
    uris=["coaps://first.example", "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"],
    addresses=["2001:db8::1"],
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (IdentitySource.DNS, "first.example"),
        (IdentitySource.URI, "coaps://first.example"),
        (IdentitySource.ADDRESS, "2001:db8::1"),
        (IdentitySource.SERIAL_NUMBER, "SN-42"),
        (IdentitySource.COMMON_NAME, "Meter"),
        (IdentitySource.SUBJECT, "2.5.4.5=SN-42,CN=Meter,O=Fleet"),
    ],
)
def test_an_identity_is_taken_from_where_the_policy_says(source, expected):
    peer = client(EVERYTHING, source)
    assert (peer.identity, peer.identity_source) == (expected, source)


def test_every_source_has_a_test():
    tested = {IdentitySource.EUI64, IdentitySource.DNS, IdentitySource.URI, IdentitySource.ADDRESS}
    tested |= {IdentitySource.SERIAL_NUMBER, IdentitySource.COMMON_NAME, IdentitySource.SUBJECT}
    assert set(IdentitySource) == tested


def test_the_first_source_that_has_one_decides():
    order = [IdentitySource.URI, IdentitySource.COMMON_NAME, IdentitySource.DNS]
    assert client(EVERYTHING, *order).identity_source is IdentitySource.URI
    assert client(ROOT.device("meter", dns=["meter.example"]), *order).identity == "meter"


def test_a_device_certificate_by_802_1ar_is_known_by_its_subjects_serial_number():
    peer = client(ROOT.idevid("PID:Meter SN:0042"))
    assert (peer.identity, peer.identity_source) == ("PID:Meter SN:0042", IdentitySource.SERIAL_NUMBER)


def test_a_device_certificate_by_rfc_7925_is_known_by_its_eui64():
    peer = client(ROOT.eui64_device(EUI64))
    assert (peer.identity, peer.identity_source) == (EUI64, IdentitySource.EUI64)


@pytest.mark.parametrize(
    "device",
    [
        ROOT.device("meter", dns=[EUI64.lower()]),
        ROOT.device("meter", dns=["other", EUI64]),
        ROOT.device("meter", uris=["urn:dev:mac:001b44fffe113ab7"]),
        ROOT.device("meter", serial_number=EUI64),
        ROOT.device(EUI64.replace("-", ":")),
    ],
    ids=["dns", "second dns", "uri", "serial number", "common name"],
)
def test_an_eui64_reads_the_same_wherever_and_however_it_is_written(device):
    assert client(device, IdentitySource.EUI64).identity == EUI64


@pytest.mark.parametrize(
    "text",
    ["001B44FFFE113AB7", "00-1B-44-FF-FE-11-3A", "00-1B:44-FF-FE-11-3A-B7", EUI64 + "-00", "0\u0660-1B"],
)
def test_what_only_resembles_an_eui64_is_none(text):
    assert no_identity(ROOT.device(text), IdentitySource.EUI64)


def test_a_certificate_without_any_of_the_names_is_refused():
    assert no_identity(ROOT.device(None))
    assert no_identity(ROOT.device("meter"), IdentitySource.DNS, IdentitySource.URI)


def test_two_common_names_are_no_identity():
    names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in ("meter-1", "meter-2")])
    assert no_identity(ROOT.device(names), IdentitySource.COMMON_NAME)


@pytest.mark.parametrize("text", ["meter\0.evil", "meter\n", "\u202emeter", "\x1b[2J"])
def test_a_name_that_does_not_print_as_it_is_is_no_identity(text):
    assert no_identity(ROOT.device(text), IdentitySource.COMMON_NAME)


def test_an_identity_has_a_greatest_length():
    at_most = "x" * (MAX_IDENTITY_LENGTH - len("coaps://"))
    assert client(ROOT.device("meter", uris=[f"coaps://{at_most}"]), IdentitySource.URI).identity
    assert no_identity(ROOT.device("meter", uris=[f"coaps://{at_most}x"]), IdentitySource.URI)


def test_an_empty_name_is_no_identity():
    assert client(ROOT.device("meter", dns=[""])).identity == "meter"


def test_a_client_has_no_server_name():
    policy = TrustPolicy(purpose=Purpose.CLIENT, anchors=[ROOT.der])
    with pytest.raises(UsageError, match="server_name"):
        Verifier(policy).verify(EVERYTHING.chain, at=NOW, server_name="meter.example")


# --- servers ------------------------------------------------------------------------------------------


def wrong_name(credential, wanted: str, **fields) -> str:
    """What the operator is told of a server that is not the wanted one."""
    with pytest.raises(CertificateRejected) as caught:
        server(credential, wanted, **fields)
    assert caught.value.problem is CertificateProblem.WRONG_NAME
    assert caught.value.description is AlertDescription.BAD_CERTIFICATE
    return caught.value.detail


@pytest.mark.parametrize(
    ("presented", "wanted"),
    [
        ("a.example", "a.example"),
        ("a.example", "A.EXAMPLE"),
        ("A.Example", "a.example"),
        ("a.example", "a.example."),
        ("a.example.", "a.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("gateway", "gateway"),
    ],
)
def test_a_server_is_the_wanted_one_if_a_dns_name_is_equal(presented, wanted):
    peer = server(ROOT.server(presented), wanted)
    assert (peer.identity, peer.identity_source) == (wanted.lower().removesuffix("."), IdentitySource.DNS)


def test_any_of_several_dns_names_will_do():
    assert server(ROOT.server(dns=["a.example", "b.example"]), "b.example").identity == "b.example"


@pytest.mark.parametrize(
    ("presented", "wanted"),
    [
        ("a.example", "b.example"),
        ("a.example", "example"),
        ("example", "a.example"),
        ("a.example", "xa.example"),
        ("a.example.evil.example", "a.example"),
        ("a.example\0.evil.example", "a.example"),
        ("*", "gateway"),
    ],
)
def test_a_server_of_another_name_is_refused(presented, wanted):
    detail = wrong_name(ROOT.server(presented), wanted, allow_wildcards=True)
    assert detail.startswith(f"{wanted} was wanted; the subjectAltName has ")
    assert detail.isprintable()


def test_the_common_name_is_no_name_of_a_server():
    assert "no DNS name and no address" in wrong_name(ROOT.device("a.example"), "a.example")


def test_wildcards_are_refused_unless_they_are_allowed():
    wrong_name(ROOT.server("*.example.com"), "a.example.com")
    assert (
        server(ROOT.server("*.example.com"), "a.example.com", allow_wildcards=True).identity
        == "a.example.com"
    )


@pytest.mark.parametrize(
    ("presented", "wanted"),
    [
        ("*.example.com", "a.b.example.com"),
        ("*.example.com", "example.com"),
        ("*.com", "example.com"),
        ("a*.example.com", "ab.example.com"),
        ("*a.example.com", "ba.example.com"),
        ("a.*.com", "a.example.com"),
        ("*.*.com", "a.example.com"),
        ("**.example.com", "a.example.com"),
    ],
)
def test_a_wildcard_stands_for_one_whole_left_most_label_and_nothing_else(presented, wanted):
    wrong_name(ROOT.server(presented), wanted, allow_wildcards=True)


@pytest.mark.parametrize(
    ("presented", "wanted"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:DB8:0:0::1"), ("2001:db8::1", "[2001:db8::1]")],
)
def test_a_server_is_the_wanted_one_if_an_address_is_equal(presented, wanted):
    peer = server(ROOT.server(dns=[], addresses=[presented]), wanted)
    assert (peer.identity, peer.identity_source) == (presented, IdentitySource.ADDRESS)


def test_an_address_is_no_dns_name_and_a_dns_name_no_address():
    wrong_name(ROOT.server("192.0.2.1"), "192.0.2.1")
    wrong_name(ROOT.server("a.example", addresses=["192.0.2.1"]), "192.0.2.2")
    wrong_name(ROOT.server(dns=[], addresses=["192.0.2.1"]), "a.example")


def test_many_names_are_shown_in_part():
    names = [f"n{number}.example" for number in range(MAX_NAMES_SHOWN + 3)]
    assert wrong_name(ROOT.server(dns=names), "a.example").endswith("n7.example and 3 more")


@pytest.mark.parametrize(
    "wanted",
    ["", ".", "a..b", "*.example", "bücher.example", "a b", "-a.example", "a" * 64, "a." * 127 + "b"],
)
def test_what_is_neither_a_dns_name_nor_an_address_is_the_callers_mistake(wanted):
    with pytest.raises(UsageError, match="server_name"):
        server(ROOT.server(), wanted)


def test_a_client_must_say_which_server_it_wants_unless_the_policy_takes_any():
    with pytest.raises(UsageError, match="require_server_name"):
        server(ROOT.server(), None)
    peer = server(ROOT.server("any.example"), None, require_server_name=False)
    assert peer.identity == "any.example"


def test_a_name_is_checked_where_it_is_given_though_none_is_required():
    wrong_name(ROOT.server("a.example"), "b.example", require_server_name=False)
