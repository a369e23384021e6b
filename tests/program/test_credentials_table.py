"""``[credentials]``: what may stand there, what goes together, and how it is said that something does not."""

from pathlib import Path

import pytest

from endpoint.config import ConfigFileError, parse_config
from sansdtls import CertificateType, NamedGroup, SignatureScheme
from sansdtls.pki import IdentitySource

HOME = Path("/etc/dtls-endpoint")
SERVER = 'certificate = "server.pem"\nprivate_key = "server.key"\n'
CLIENTS = 'client_ca = "ca.pem"\n'


def parsed(text):
    return parse_config(f"[credentials]\n{text}".encode(), name="endpoint.toml", directory=HOME)


def problems(text):
    with pytest.raises(ConfigFileError) as caught:
        parsed(text)
    return caught.value.problems


def test_all_file_names_are_completed_with_the_directory_of_the_configuration():
    credentials = parsed(
        SERVER
        + CLIENTS
        + """
        psk_file = "psk.txt"
        client_crl = "crl"
        raw_public_key = "/run/own.key"
        raw_public_keys = "raw.txt"
        [credentials.names."gw.example"]
        certificate = "gw.pem"
        private_key = "gw.key"
        """
    ).credentials
    assert credentials.certificate == HOME / "server.pem"
    assert credentials.private_key == HOME / "server.key"
    assert credentials.client_ca == HOME / "ca.pem"
    assert credentials.client_crl == HOME / "crl"
    assert credentials.raw_public_key == Path("/run/own.key")
    assert credentials.raw_public_keys == HOME / "raw.txt"
    assert credentials.names["gw.example"].certificate == HOME / "gw.pem"
    assert credentials.names["gw.example"].private_key == HOME / "gw.key"


def test_a_psk_file_is_not_needed_beside_a_certificate():
    assert parsed(SERVER + CLIENTS).credentials.psk_file is None


@pytest.mark.parametrize("more", [CLIENTS, 'raw_public_keys = "raw.txt"\n'])
def test_clients_that_are_known_by_a_credential_have_to_show_it_unless_something_else_is_said(more):
    assert parsed(SERVER + more).credentials.asks_clients == "required"
    assert parsed(SERVER + more + 'client_authentication = "wanted"').credentials.asks_clients == "wanted"


def test_identities_are_taken_from_where_it_is_said():
    told = parsed(SERVER + CLIENTS + 'client_identity = ["serial_number", "uri"]').credentials
    assert told.client_identity == (IdentitySource.SERIAL_NUMBER, IdentitySource.URI)


def test_groups_signatures_and_protocols_are_named_in_the_dtls_table():
    server = parsed(
        SERVER
        + CLIENTS
        + """
        [dtls]
        groups = ["secp256r1", "X25519"]
        signature_schemes = ["ecdsa_secp256r1_sha256"]
        alpn_protocols = ["coap"]
        record_size_limit = 512
        resumption.tickets = false
        """
    ).dtls
    assert server.groups == (NamedGroup.SECP256R1, NamedGroup.X25519)
    assert server.signature_schemes == (SignatureScheme.ECDSA_SECP256R1_SHA256,)
    assert server.alpn_protocols == (b"coap",)
    assert server.record_size_limit == 512
    assert not server.resumption.tickets
    assert server.client_certificate_types == (CertificateType.X509,)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ['nobody could connect; remedy: add  psk_file = "psk.txt"  or a certificate and its key']),
        (
            'certificate = "a.pem"\n' + CLIENTS,
            ['private_key: missing; remedy: add  private_key = "server.key"  to certificate'],
        ),
        (
            'psk_file = "p"\nprivate_key = "a.key"',
            [
                (
                    'certificate: missing; remedy: add  certificate = "server.pem"  to private_key, or name the key '
                    "raw_public_key if clients know its public half"
                )
            ],
        ),
        (
            'psk_file = "p"\n' + CLIENTS,
            [
                (
                    "client_ca: is of no use without something to show to clients; remedy: add certificate and "
                    "private_key, or raw_public_key"
                )
            ],
        ),
        (
            SERVER,
            [
                (
                    "client_authentication: missing; it is not said which clients may connect; remedy: add client_ca "
                    'or raw_public_keys, or  client_authentication = "none"  to let anybody connect'
                )
            ],
        ),
        (
            SERVER + 'client_authentication = "required"',
            ['client_authentication: "required" needs client_ca or raw_public_keys'],
        ),
        (
            SERVER + CLIENTS + 'client_crl_policy = "required"',
            ['client_crl: missing; client_crl_policy = "required" needs it'],
        ),
        (
            SERVER + CLIENTS + 'client_crl = "c.pem"\nclient_crl_policy = "none"',
            ['client_crl: is not looked at with client_crl_policy = "none"; remedy: remove one of them'],
        ),
        ('psk_file = "p"\nclient_crl = "c.pem"', ["client_crl: is of no use without client_ca"]),
        (SERVER + CLIENTS + "client_identity = []", ["client_identity: at least one is needed"]),
        (
            SERVER + CLIENTS + 'client_identity = ["dnss"]',
            [
                (
                    "client_identity: the value is not one of eui64, dns, uri, address, serial_number, "
                    'common_name, subject (did you mean "dns"?)'
                )
            ],
        ),
        (
            SERVER + 'client_authentication = "yes"',
            ["client_authentication: the value is not one of none, wanted, required"],
        ),
        (SERVER + CLIENTS + "certificat = 1", ['certificat: unknown key (did you mean "certificate"?)']),
        (
            'psk_file = "p"\n[credentials.names."gw.example"]\ncertificate = "a"',
            ['names."gw.example".private_key: missing; remedy: add  private_key = "name.key"'],
        ),
        (
            'psk_file = "p"\n[credentials.names."gw example"]\ncertificate = "a"\nprivate_key = "b"',
            [
                (
                    'names: a DNS name is needed in quotes, such as [credentials.names."gateway.example"] '
                    "(an international one in its ASCII form, xn--…)"
                )
            ],
        ),
    ],
)
def test_what_does_not_go_together_is_one_line_with_a_remedy(text, found):
    assert [line.removeprefix("endpoint.toml: credentials").lstrip(".: ") for line in problems(text)] == found


def test_what_credentials_say_is_no_key_of_the_dtls_table():
    for key in ("psk", "credentials", "client_authentication", "client_certificate_types"):
        assert problems(f'psk_file = "p"\n[dtls]\n{key} = "x"')[0].startswith(
            f"endpoint.toml: dtls.{key}: unknown"
        )
