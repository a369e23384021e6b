"""``serve_dtls`` and ``open_dtls`` with certificates and raw public keys."""

import contextlib
from functools import partial
from typing import Any

import pytest
import trio

from endpoint import CredentialKind, HandshakeFailed, PeerRejected, PeerVerifier, open_dtls, serve_dtls
from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    CertificateCredential,
    CertificateType,
    ClientAuthentication,
    ClientConfig,
    ConfigError,
    RawPublicKeyCredential,
    RetransmitPolicy,
    ServerConfig,
    SigningKey,
    UsageError,
)
from sansdtls.pki import Purpose, TrustPolicy, Verifier
from tests.core.certificates import CLIENT_AUTH, Authority, Credential
from tests.endpoint.devices import KEY
from tests.fleet_files import DAY, NOW, VALID

ROOT = Authority.root("Fleet root", **VALID)
SERVER = ROOT.server("gw.example", **VALID)
METER = ROOT.device("meter-7", purposes=[CLIENT_AUTH], **VALID)
DEVICES = TrustPolicy(purpose=Purpose.CLIENT, anchors=(ROOT.der,))
SERVERS = TrustPolicy(purpose=Purpose.SERVER, anchors=(ROOT.der,))
X509 = (CertificateType.X509,)
RAW = (CertificateType.RAW_PUBLIC_KEY,)


def own(credential: Credential) -> CertificateCredential:
    return CertificateCredential(credential.chain, SigningKey.wrap(credential.key))


def raw(credential: Credential) -> RawPublicKeyCredential:
    return RawPublicKeyCredential(SigningKey.wrap(credential.key))


async def tell(channel):
    """Tells each client who it is."""
    async for _ in channel:
        await channel.send(channel.kind.value.encode() + b" " + channel.identity)


@contextlib.asynccontextmanager
async def served(**options):
    config = ServerConfig(
        credentials=(own(SERVER), raw(SERVER)),
        client_authentication=ClientAuthentication.REQUIRED,
        client_certificate_types=X509 + RAW,
    )
    async with trio.open_nursery() as nursery:
        serve = partial(serve_dtls, tell, 0, host="127.0.0.1", config=config, **options)
        (udp,) = await nursery.start(serve)
        yield udp.port
        nursery.cancel_scope.cancel()


def client(**more) -> ClientConfig:
    fields: dict[str, Any] = {
        "server_name": "gw.example",
        "server_certificate_types": X509,
        "credentials": (own(METER),),
        "retransmit": RetransmitPolicy(initial_timeout=0.1),
    }
    return ClientConfig(**fields | more)


async def test_both_sides_know_each_other_by_their_certificates():
    async with (
        served(verify=DEVICES) as port,
        await open_dtls("127.0.0.1", port, config=client(), verify=SERVERS) as channel,
    ):
        assert (channel.identity, channel.kind) == (b"gw.example", CredentialKind.CERTIFICATE)
        assert channel.peer.certificate_chain == SERVER.chain
        assert channel.key_index is None
        await channel.send(b"?")
        assert await channel.receive() == b"certificate meter-7"


async def test_both_sides_know_each_other_by_their_raw_public_keys():
    config = client(server_certificate_types=RAW, credentials=(raw(METER),), server_name=None)
    async with (
        served(verify=PeerVerifier(None, {METER.spki: b"raw-7"})) as port,
        await open_dtls(
            "127.0.0.1", port, config=config, verify=PeerVerifier(raw_keys={SERVER.spki: b"our gateway"})
        ) as channel,
    ):
        assert (channel.identity, channel.kind) == (b"our gateway", CredentialKind.RAW_PUBLIC_KEY)
        await channel.send(b"?")
        assert await channel.receive() == b"raw_public_key raw-7"


async def test_a_key_store_and_a_verifier_serve_one_port():
    config = ClientConfig(psk_identity=b"meter-1", psk_key=KEY)
    async with (
        served(verify=DEVICES, keystore={b"meter-1": KEY}) as port,
        await open_dtls("127.0.0.1", port, config=config) as channel,
    ):
        assert (channel.identity, channel.kind, channel.key_index) == (b"meter-1", CredentialKind.PSK, 0)
        await channel.send(b"?")
        assert await channel.receive() == b"psk meter-1"


async def test_a_verifier_may_be_a_function_that_takes_its_time():
    async def by_number(request):
        await trio.lowlevel.checkpoint()
        return b"%d certificates" % len(request.chain)

    async with (
        served(verify=by_number) as port,
        await open_dtls("127.0.0.1", port, config=client(), verify=by_number) as channel,
    ):
        assert channel.identity == b"1 certificates"
        await channel.send(b"?")
        assert await channel.receive() == b"certificate 1 certificates"


async def test_without_a_verifier_a_client_refuses_every_certificate():
    async with served(verify=DEVICES) as port:
        with pytest.raises(HandshakeFailed, match="no verifier was given, so nobody is accepted") as caught:
            await open_dtls("127.0.0.1", port, config=client())
        assert caught.value.cause == AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)


async def test_without_a_verifier_a_server_refuses_every_certificate():
    async with served() as port:
        with pytest.raises(HandshakeFailed, match="certificate_unknown"):
            await open_dtls("127.0.0.1", port, config=client(), verify=SERVERS)


async def test_a_server_of_another_name_is_refused_with_both_names():
    async with served(verify=DEVICES) as port:
        with pytest.raises(
            HandshakeFailed, match=r"other\.example was wanted; the subjectAltName has gw\.example"
        ):
            await open_dtls("127.0.0.1", port, config=client(server_name="other.example"), verify=SERVERS)


async def test_a_policy_for_the_other_side_is_noticed_before_anything_is_sent():
    with pytest.raises(ConfigError, match=r"Purpose\.SERVER is needed, not with Purpose\.CLIENT"):
        await open_dtls("127.0.0.1", 9, config=client(), verify=DEVICES)
    with pytest.raises(ConfigError, match=r"Purpose\.CLIENT is needed, not with Purpose\.SERVER"):
        await serve_dtls(tell, 0, config=ServerConfig(), verify=Verifier(SERVERS))


async def test_what_a_function_of_the_clients_own_raises_is_raised():
    def broken(_request):
        raise ZeroDivisionError("mine")

    async def broken_later(_request):
        raise ZeroDivisionError("mine")

    async with served(verify=DEVICES) as port:
        for verify in (broken, broken_later):
            with pytest.raises(ZeroDivisionError, match="mine"):
                await open_dtls("127.0.0.1", port, config=client(), verify=verify)
        with pytest.raises(UsageError, match="which server is wanted"):
            await open_dtls("127.0.0.1", port, config=client(server_name=None), verify=SERVERS)


async def test_a_slow_decision_of_the_client_ends_with_the_handshake(autojump_clock):
    cancelled = []

    async def never(_request):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(True)
            raise

    config = client(retransmit=RetransmitPolicy(handshake_timeout=10.0))
    async with served(verify=DEVICES) as port:
        with pytest.raises(HandshakeFailed, match="the handshake took too long"):
            await open_dtls("127.0.0.1", port, config=config, verify=never)
    assert cancelled == [True]


async def test_a_resumed_server_is_judged_again():
    times = [NOW]
    verify = PeerVerifier(SERVERS, wall_clock=lambda: times[-1])
    async with served(verify=DEVICES) as port:
        async with await open_dtls("127.0.0.1", port, config=client(), verify=verify) as channel:
            session = channel.session
        async with await open_dtls(
            "127.0.0.1", port, config=client(session=session), verify=verify
        ) as channel:
            assert channel.negotiated.resumed
            assert (channel.identity, channel.kind) == (b"gw.example", CredentialKind.CERTIFICATE)
        times.append(VALID["end"] + DAY)
        with pytest.raises(HandshakeFailed, match="expired") as caught:
            await open_dtls("127.0.0.1", port, config=client(session=session), verify=verify)
        assert caught.value.cause == AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)


async def test_a_failed_handshake_is_logged_with_the_exact_problem(caplog):
    def refuse(_request):
        raise PeerRejected("stolen", "reported stolen")

    async with served(verify=refuse) as port:
        with pytest.raises(HandshakeFailed):
            await open_dtls("127.0.0.1", port, config=client(), verify=SERVERS)
    assert "stolen: reported stolen" in caplog.text
