"""The same decisions as ``openssl verify`` in the plain cases: another version of OpenSSL, called another way."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import attrs
import pytest
from cryptography import x509

from sansdtls.pki import CertificateRejected, CrlPolicy, Purpose, TrustPolicy, Verifier
from tests.conftest import require_program
from tests.core.certificates import (
    A_DAY,
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
    pem,
)

if TYPE_CHECKING:
    from datetime import datetime

ROOT = Authority.root("Fleet root")
FACTORY = ROOT.authority("Factory 7")
NAMESAKE = Authority.root("Fleet root")
FLAT = ROOT.authority("Flat", path_length=0)
CONSTRAINED = ROOT.authority(
    "Constrained", extensions=[(x509.NameConstraints(None, [x509.DNSName("evil.example")]), True)]
)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
METER = FACTORY.device("meter-7")


@attrs.frozen(kw_only=True)
class Case:
    chain: tuple[bytes, ...]
    accepted: bool
    anchors: tuple[bytes, ...] = (ROOT.der,)
    purpose: Purpose = Purpose.CLIENT
    at: datetime = NOW
    crls: tuple[bytes, ...] = ()
    depth: int = 3
    name: str | None = None


def changed(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


def issued_by(credential: Credential) -> tuple[bytes, ...]:
    return Authority(credential.certificate, credential.key, credential.above).device("child").chain


CASES = {
    "one intermediate": Case(chain=METER.chain, accepted=True),
    "no intermediate": Case(chain=ROOT.device().chain, accepted=True),
    "P-384 below RSA": Case(
        chain=(rsa := Authority.root("RSA root", key="rsa")).device(key="p384").chain,
        anchors=(rsa.der,),
        accepted=True,
    ),
    "Ed25519": Case(
        chain=(edwards := Authority.root("Edwards", key="ed25519")).device(key="ed25519").chain,
        anchors=(edwards.der,),
        accepted=True,
    ),
    "802.1AR": Case(chain=FACTORY.idevid("0042").chain, accepted=True),
    "EUI-64": Case(chain=FACTORY.eui64_device("00-1B-44-FF-FE-11-3A-B7").chain, accepted=True),
    "an anchor that is not self-signed": Case(chain=METER.chain, anchors=(FACTORY.der,), accepted=True),
    "missing intermediate": Case(chain=(METER.der,), accepted=False),
    "self-signed": Case(chain=(Authority.root("meter-7").der,), accepted=False),
    "a foreign root": Case(chain=(*METER.chain, ROOT.der), anchors=(rsa.der,), accepted=False),
    "an anchor of the same name": Case(chain=METER.chain, anchors=(NAMESAKE.der,), accepted=False),
    "a changed signature": Case(chain=(changed(METER.der), FACTORY.der), accepted=False),
    "a changed intermediate": Case(chain=(METER.der, changed(FACTORY.der)), accepted=False),
    "a second before the first": Case(chain=METER.chain, at=START - A_SECOND, accepted=False),
    "the first second": Case(chain=METER.chain, at=START, accepted=True),
    "a second before the last": Case(chain=METER.chain, at=END - A_SECOND, accepted=True),
    "a second after the last": Case(chain=METER.chain, at=END + A_SECOND, accepted=False),
    "an expired intermediate": Case(
        chain=ROOT.authority(end=NOW - A_SECOND).device(end=NEVER).chain, accepted=False
    ),
    "signed by an end entity": Case(chain=issued_by(METER), accepted=False),
    "signed by an end entity that says so": Case(
        chain=issued_by(FACTORY.device(constraints=x509.BasicConstraints(ca=False, path_length=None))),
        accepted=False,
    ),
    "a CA that may not sign": Case(
        chain=ROOT.authority(usage=key_usage("crl_sign")).device().chain, accepted=False
    ),
    "below a path length of zero": Case(chain=FLAT.device().chain, accepted=True),
    "a CA below a path length of zero": Case(chain=FLAT.authority().device().chain, accepted=False),
    "as deep as allowed": Case(chain=FACTORY.authority().device().chain, depth=2, accepted=True),
    "too deep": Case(chain=FACTORY.authority().device().chain, depth=1, accepted=False),
    "the right purpose": Case(chain=ROOT.device(purposes=[CLIENT_AUTH]).chain, accepted=True),
    "the wrong purpose": Case(chain=ROOT.device(purposes=[SERVER_AUTH]).chain, accepted=False),
    "any purpose": Case(chain=ROOT.device(purposes=[ANY_PURPOSE]).chain, accepted=False),
    "a server's purpose": Case(
        chain=ROOT.device(purposes=[SERVER_AUTH]).chain, purpose=Purpose.SERVER, accepted=True
    ),
    "not a server's purpose": Case(
        chain=ROOT.device(purposes=[CLIENT_AUTH]).chain, purpose=Purpose.SERVER, accepted=False
    ),
    "a CA for the other role": Case(
        chain=ROOT.authority(purposes=[SERVER_AUTH]).device().chain, accepted=False
    ),
    "a key usage for certificates only": Case(
        chain=ROOT.device(usage=key_usage("key_cert_sign")).chain, accepted=False
    ),
    "a name that is excluded": Case(chain=CONSTRAINED.device(dns=["a.evil.example"]).chain, accepted=False),
    "a name that is not excluded": Case(
        chain=CONSTRAINED.device(dns=["a.good.example"]).chain, accepted=True
    ),
    "an unknown critical extension": Case(
        chain=ROOT.device(extensions=[(UNKNOWN, True)]).chain, accepted=False
    ),
    "the wanted server": Case(
        chain=FACTORY.server("a.example").chain, purpose=Purpose.SERVER, name="a.example", accepted=True
    ),
    "another server": Case(
        chain=FACTORY.server("a.example").chain, purpose=Purpose.SERVER, name="b.example", accepted=False
    ),
    "on no list": Case(chain=METER.chain, crls=(ROOT.crl(), FACTORY.crl()), accepted=True),
    "revoked": Case(chain=METER.chain, crls=(ROOT.crl(), FACTORY.crl(METER)), accepted=False),
    "below a revoked CA": Case(chain=METER.chain, crls=(ROOT.crl(FACTORY), FACTORY.crl()), accepted=False),
    "a list is missing": Case(chain=METER.chain, crls=(ROOT.crl(),), accepted=False),
    "a list is old": Case(
        chain=METER.chain,
        crls=(ROOT.crl(), FACTORY.crl(start=NOW - 2 * A_DAY, end=NOW - A_DAY)),
        accepted=False,
    ),
    "a list is not in force yet": Case(
        chain=METER.chain, crls=(ROOT.crl(), FACTORY.crl(start=NOW + A_SECOND)), accepted=False
    ),
    "a list is forged": Case(
        chain=METER.chain, crls=(ROOT.crl(), FACTORY.crl(key=make_key())), accepted=False
    ),
}


def accepted_by_openssl(case: Case, directory) -> bool:
    # Without the security level the program takes keys of any size; with the purpose it checks what we do.
    command = [
        *(require_program("openssl"), "verify", "-no-CAfile", "-no-CApath", "-no-CAstore", "-partial_chain"),
        *("-attime", str(int(case.at.timestamp())), "-verify_depth", str(case.depth)),
        *("-purpose", "sslclient" if case.purpose is Purpose.CLIENT else "sslserver"),
    ]
    if case.name is not None:
        command += ["-verify_hostname", case.name]
    if case.crls:
        command += ["-crl_check_all"]
    for option, data in [
        ("-CAfile", pem(*case.anchors)),
        ("-untrusted", pem(*case.chain[1:])),
        ("-CRLfile", pem(*case.crls, label="X509 CRL")),
        ("", pem(case.chain[0])),
    ]:
        if data:
            path = directory / f"{option or 'own'}.pem"
            path.write_bytes(data)
            command += [option, str(path)] if option else [str(path)]
    done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert done.returncode in {0, 2}, done.stderr
    return done.returncode == 0


def accepted_here(case: Case) -> bool:
    policy = TrustPolicy(
        purpose=case.purpose,
        anchors=case.anchors,
        crls=case.crls,
        crl_policy=CrlPolicy.REQUIRED if case.crls else CrlPolicy.NONE,
        max_path_length=case.depth,
        require_server_name=False,
    )
    try:
        Verifier(policy).verify(case.chain, at=case.at, server_name=case.name)
    except CertificateRejected:
        return False
    return True


@pytest.mark.parametrize("name", CASES)
def test_the_decision_is_that_of_openssl(name, tmp_path):
    case = CASES[name]
    assert accepted_here(case) is case.accepted
    assert accepted_by_openssl(case, tmp_path) is case.accepted
