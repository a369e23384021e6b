"""The files that ``[credentials]`` names: what is read, and how each mistake is told."""

import base64
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.credentials import Credentials
from endpoint.keystore.file import KeyFileError
from endpoint.keystore.loading import load_credentials
from endpoint.keystore.rawkeys import load_raw_keys
from endpoint.structure import structure
from sansdtls import (
    CertificateCredential,
    CertificateType,
    ClientAuthentication,
    RawPublicKeyCredential,
    ServerConfig,
)
from sansdtls.pki import CrlPolicy, IdentitySource
from tests.core.certificates import CLIENT_AUTH, Authority, key_usage, pem
from tests.fleet_files import DAY, EXPIRED, FUTURE, NOW, VALID, Files

KEY = "00112233445566778899aabbccddeeff"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Files(tmp_path)
    made.ca()
    made.server()
    return made


def told(**more):
    """A table as it stands in a file, file names being text; ``None`` leaves a key out."""
    table = {"certificate": "server.pem", "private_key": "server.key", "client_ca": "ca.pem"} | more
    return structure({key: value for key, value in table.items() if value is not None}, Credentials)


def policy_of(**more):
    policy = load_credentials(told(**more)).policy
    assert policy is not None
    return policy


def problems(**more):
    with pytest.raises(KeyFileError) as caught:
        load_credentials(told(**more))
    return caught.value.problems


# --- what is right ------------------------------------------------------------------------------------


def test_a_certificate_comes_with_its_intermediates(files):
    factory = files.root.authority("Factory", **VALID)
    server = files.credential("server", factory.server("gw.example", **VALID))
    (own,) = load_credentials(told()).own
    assert isinstance(own, CertificateCredential)
    assert own.chain == server.chain
    assert len(own.chain) == 2


def test_a_certificate_and_its_key_may_share_a_file_of_mode_0600(files):
    server = files.server()
    files.write("both.pem", server.key_pem + server.chain_pem, 0o600)
    (own,) = load_credentials(told(certificate="both.pem", private_key="both.pem")).own
    assert own.key.spki == server.spki


def test_every_kind_of_credential_is_offered_at_once(files):
    files.server("other", dns="other.example")
    files.raw_key("own", "ed25519")
    device = files.raw_key("meter-9")
    files.write("raw.txt", b"meter-9:" + base64.b64encode(device.spki))
    files.write("psk.txt", f"dev1:{KEY}\n", 0o600)
    names = {"Other.Example": {"certificate": "other.pem", "private_key": "other.key"}}
    told_of = told(psk_file="psk.txt", names=names, raw_public_key="own.key", raw_public_keys="raw.txt")
    loaded = load_credentials(told_of)
    config = loaded.complete(ServerConfig(), told_of)
    assert [type(own) for own in config.credentials] == [
        CertificateCredential,
        CertificateCredential,
        RawPublicKeyCredential,
    ]
    assert config.credentials[0].server_names == ("other.example",)
    assert config.psk
    assert config.client_authentication is ClientAuthentication.REQUIRED
    assert config.client_certificate_types == (CertificateType.X509, CertificateType.RAW_PUBLIC_KEY)
    assert loaded.raw_keys.names == {device.spki: b"meter-9"}


def test_without_a_psk_file_no_psk_is_taken(files):
    assert not load_credentials(told()).complete(ServerConfig(), told()).psk


def test_the_policy_for_clients_is_as_told(files):
    files.crl()
    policy = policy_of(client_crl="crl.pem", client_identity=["uri"], client_crl_policy="required")
    assert policy.crl_policy is CrlPolicy.REQUIRED
    assert len(policy.crls) == 1
    assert policy.identity_sources == (IdentitySource.URI,)


def test_a_crl_is_looked_at_if_there_is_one(files):
    files.crl()
    assert policy_of(client_crl="crl.pem").crl_policy is CrlPolicy.IF_PRESENT
    assert policy_of().crl_policy is CrlPolicy.NONE


def test_a_directory_of_crls_is_read(files):
    (files.path / "crls").mkdir()
    other = Authority.root("Other", **VALID)
    files.ca(files.root, other)
    files.crl(name="crls/a.pem")
    files.write("crls/b.pem", pem(other.crl(start=NOW - DAY, end=NOW + DAY), label="X509 CRL"))
    files.write("crls/b.pem~", "an editor's")
    assert len(policy_of(client_crl="crls").crls) == 2


# --- what is wrong ------------------------------------------------------------------------------------


def test_a_key_that_is_not_the_certificates_is_named(files):
    files.raw_key("wrong")
    assert problems(private_key="wrong.key") == (
        (
            'server.pem: the private key in wrong.key is not the key of this certificate, that of "O=Fleet"; '
            "remedy: put the two that belong together here"
        ),
    )


def test_a_key_that_others_can_read_is_refused(files):
    (files.path / "server.key").chmod(0o640)
    assert problems() == (
        "server.key: mode 0640 gives group or others access to the key; remedy: chmod 600 server.key",
    )


@pytest.mark.parametrize("name", ["client_ca", "certificate", "client_crl", "raw_public_keys"])
def test_what_says_whom_to_trust_must_not_be_written_by_others(files, name):
    files.crl()
    files.write("raw.txt", "")
    file = {
        "client_ca": "ca.pem",
        "certificate": "server.pem",
        "client_crl": "crl.pem",
        "raw_public_keys": "raw.txt",
    }[name]
    (files.path / file).chmod(0o664)
    (problem,) = problems(client_crl="crl.pem", raw_public_keys="raw.txt")
    assert problem.startswith(f"{file}: mode 0664 lets others add ")
    assert problem.endswith(f"; remedy: chmod go-w {file}")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "holds no certificate; it should have -----BEGIN CERTIFICATE-----"),
        ("server", "holds no certificate; it should have -----BEGIN CERTIFICATE-----"),
        (
            "-----BEGIN CERTIFICATE-----\nMIIB\n",
            "line 1: a block that begins here has no end; the file may be cut off",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nMI?IB\n-----END CERTIFICATE-----\n",
            "line 1: what follows is not base64; the file may be damaged",
        ),
        (
            "# text\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END X509 CRL-----\n",
            "line 2: -----BEGIN CERTIFICATE----- has no END of its own",
        ),
        (
            "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n",
            "holds -----BEGIN PUBLIC KEY-----, not a certificate",
        ),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n",
            (
                "holds -----BEGIN CERTIFICATE REQUEST-----, not a certificate; remedy: this is what a CA is sent; "
                "put the certificate that it answered with here"
            ),
        ),
        (
            "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
            "holds a private key; remedy: keep it in a file of its own",
        ),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_told_with_the_reason(files, content, what):
    files.write("server.pem", content)
    assert problems() == (f"server.pem: {what}",)


def test_a_certificate_that_cannot_be_read_is_told(files):
    files.write("ca.pem", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    (problem,) = problems()
    assert problem.startswith("ca.pem: holds a certificate that cannot be read: ")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("no key", "holds no private key; it should have -----BEGIN PRIVATE KEY-----"),
        (
            "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
            "the private key: cannot be read",
        ),
    ],
)
def test_a_private_key_that_is_none_is_told(files, content, what):
    files.write("server.key", content, 0o600)
    assert problems() == (f"server.key: {what}",)


def test_a_key_with_a_password_is_told_with_the_remedy(files):
    subprocess.run(
        ["openssl", "pkey", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "secret.key"],
        check=True,
        cwd=files.path,
    )
    assert problems(private_key="secret.key") == (
        "secret.key: the private key: needs a password; remedy: openssl pkey -in FILE -out NEW takes it off",
    )


def test_a_chain_in_the_wrong_order_is_told(files):
    factory = files.root.authority("Factory", **VALID)
    server = factory.server("gw.example", **VALID)
    files.write("server.pem", pem(*reversed(server.chain)))
    files.write("server.key", server.key_pem, 0o600)
    (problem,) = problems()
    assert problem.startswith(
        'server.pem: certificate 2, of "O=Fleet", has not issued the one before it; remedy:'
    )


def test_a_ca_that_is_none_is_told(files):
    files.write("ca.pem", pem(files.root.der, files.server().der))
    (problem,) = problems()
    assert problem.startswith("ca.pem: certificate 2 ")
    assert "not that of a CA" in problem


def test_a_crl_of_a_ca_with_another_key_is_told_at_its_own_file(files):
    (files.path / "crls").mkdir()
    files.crl(name="crls/a.pem")
    files.crl(name="crls/b.pem", key=Authority.root("Fleet root", **VALID).key)
    (problem,) = problems(client_crl="crls")
    assert problem.startswith("crls/b.pem: the CRL ")
    assert "not signed with the key" in problem


def test_every_mistake_of_every_file_is_told_at_once(files):
    files.write("server.pem", "nothing")
    (files.path / "server.key").chmod(0o644)
    files.write("psk.txt", "meter-1", 0o600)
    found = problems(
        psk_file="psk.txt", client_ca="none.pem", raw_public_keys="gone.txt", raw_public_key="server.key"
    )
    assert [line.split(":")[0] for line in found] == [
        "psk.txt",
        "server.key",
        "server.pem",
        "none.pem",
        "gone.txt",
    ]


def test_no_message_shows_a_private_key(files):
    key = (files.path / "server.key").read_text()
    files.write("server.pem", key)
    body = key.splitlines()[1]
    assert body not in "".join(problems())
    assert body not in repr(
        load_credentials(told(certificate=None, private_key=None, raw_public_key="server.key"))
    )


# --- time ---------------------------------------------------------------------------------------------


def test_what_has_expired_is_a_lapse_with_file_name_and_remedy(files):
    files.server(**EXPIRED)
    day = EXPIRED["end"].strftime("%Y-%m-%dT%H:%M:%SZ")
    assert load_credentials(told()).lapses(NOW) == [
        f'server.pem: the certificate of "O=Fleet" expired at {day}; remedy: renew it'
    ]


def test_what_is_not_yet_valid_is_a_lapse(files):
    files.server(**FUTURE)
    day = FUTURE["start"].strftime("%Y-%m-%dT%H:%M:%SZ")
    assert load_credentials(told()).lapses(NOW) == [
        f'server.pem: the certificate of "O=Fleet" is not yet valid (from {day}); remedy: look at the clock'
    ]


def test_a_crl_that_has_run_out_is_a_lapse(files):
    files.crl(start=NOW - 3 * DAY, end=NOW - DAY)
    (lapse,) = load_credentials(told(client_crl="crl.pem")).lapses(NOW)
    assert lapse.startswith('crl.pem: the CRL of "CN=Fleet root,O=Fleet" expired at ')
    assert lapse.endswith("; remedy: fetch the current one")


def test_a_ca_for_later_beside_one_for_now_is_no_lapse(files):
    files.ca(files.root, Authority.root("Next root", **FUTURE))
    loaded = load_credentials(told())
    assert loaded.lapses(NOW) == []
    (remark,) = loaded.remarks(NOW)
    assert "Next root" in remark
    assert "not yet valid" in remark
    assert len(loaded.lapses(FUTURE["end"] + DAY)) == 3


def test_no_ca_that_is_valid_is_a_lapse(files):
    files.ca(Authority.root("Old root", **EXPIRED))
    (lapse,) = load_credentials(told()).lapses(NOW)
    assert lapse.startswith('ca.pem: the certificate of "CN=Old root,O=Fleet" expired at ')


def test_what_clients_would_refuse_about_a_certificate_is_noted(files):
    usage, purposes = key_usage("key_agreement"), [CLIENT_AUTH]
    files.credential("server", files.root.device("gw", usage=usage, purposes=purposes, **VALID))
    assert load_credentials(told()).notes == (
        "server.pem: its extended key usage lacks serverAuth, so clients refuse it",
        "server.pem: its key usage lacks digitalSignature, so clients refuse it",
        "server.pem: it has no subjectAltName, so clients that look for a name refuse it",
    )


def test_a_lapse_is_new_unless_the_same_certificate_was_there_before(files):
    before = load_credentials(told())
    soon = VALID["end"] + DAY
    again = load_credentials(told())
    assert again.lapses(soon)
    assert again.new_lapses(before, soon) == []
    files.server(**EXPIRED)
    assert len(load_credentials(told()).new_lapses(before, NOW)) == 1


# --- raw public keys ----------------------------------------------------------------------------------


def raw_problems(path):
    with pytest.raises(KeyFileError) as caught:
        load_raw_keys(path)
    return caught.value.problems


def test_a_device_may_have_two_raw_keys_while_it_changes(files):
    one, two = files.raw_key("a"), files.raw_key("b", "ed25519")
    text = (
        b"# fleet\nurn:dev:9:"
        + base64.b64encode(one.spki)
        + b"\nurn:dev:9:"
        + base64.b64encode(two.spki)
        + b"\r\n"
    )
    loaded = load_raw_keys(files.write("raw.txt", text))
    assert loaded.names == {one.spki: b"urn:dev:9", two.spki: b"urn:dev:9"}
    assert loaded.devices == 1


def test_a_pem_file_is_named_after_its_device(files):
    (files.path / "devices").mkdir()
    device = files.raw_key("devices/meter-9")
    (files.path / "devices" / "meter-9.key").unlink()
    (files.path / "devices" / "meter-9.pem").unlink()
    assert load_raw_keys(files.path / "devices").names == {device.spki: b"meter-9"}


def test_what_is_wrong_with_raw_keys_is_told_line_by_line(files):
    key = base64.b64encode(files.raw_key("a").spki).decode()
    other = base64.b64encode(files.raw_key("b").spki).decode()
    third = base64.b64encode(files.raw_key("c").spki).decode()
    weak = base64.b64encode(files.raw_key("weak", "rsa-1024").spki).decode()
    path = files.write(
        "raw.txt",
        f"m:{key}\nn:{key}\nm:{other}\nm:{third}\nmeter\n:{third}\n x:{third}\nx:?\nx:MAA=\nx:{weak}\n",
    )
    assert [line.removeprefix(f"{path}:") for line in raw_problems(path)] == [
        f'2: the key of "n" is that of "m" too ({path}:1); a key belongs to one name',
        '4: a third key for "m"; a name has a current key and at most one next key',
        "5: not name:key (there is no colon)",
        "6: the name before the colon is empty",
        '7: blanks around the name " x"; remedy: leave them out',
        '8: the key of "x" is not base64',
        '9: the key of "x" is no public key: ' + raw_problems(path)[6].partition("is no public key: ")[2],
        '10: the key of "x" is an RSA key of 1024 bits; at least 2048 are needed',
    ]


def test_a_private_key_among_the_public_ones_is_refused_with_the_remedy(files):
    path = files.write("meter-9.pem", files.raw_key("a").key_pem)
    assert raw_problems(path) == (
        f"{path}: holds a private key; remedy: take the public half of it: openssl pkey -in FILE -pubout",
    )


# --- whatever a file holds ----------------------------------------------------------------------------

PIECES = st.sampled_from(
    [b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"-----BEGIN ", b"-----END PUBLIC KEY-----",
     b"-----BEGIN PUBLIC KEY-----", b"MIIB", b"MAA=", b"\n", b"\r\n", b":", b"#", b"m:MAA=", b"Proc-Type: 4,ENCRYPTED"]
)  # fmt: skip


@given(st.lists(PIECES | st.binary(max_size=6), max_size=12).map(b"".join))
def test_whatever_a_file_holds_is_read_or_told(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "file.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    everything = dict.fromkeys(
        ("certificate", "private_key", "client_ca", "client_crl", "raw_public_keys"), str(path)
    )
    with pytest.raises(KeyFileError) as caught:
        load_credentials(told(**everything))
    for problem in caught.value.problems:
        assert problem.startswith(str(path))
        assert problem.isprintable()
