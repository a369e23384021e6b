"""Devices with certificates and raw public keys: who they are, verifiers that are slow, wrong or broken."""

import threading
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint import CredentialKind, PeerRejected, PeerVerifier, QuotaPolicy
from endpoint.verification import reject_all
from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CertificateCredential,
    CertificateType,
    ClientAuthentication,
    ClientConfig,
    Limits,
    PeerAlert,
    RawPublicKeyCredential,
    RetransmitPolicy,
    ServerConfig,
    SigningKey,
)
from sansdtls.pki import Purpose, TrustPolicy, Verifier
from tests.core.certificates import CLIENT_AUTH, END, NOW, Authority
from tests.endpoint.devices import KEY, serving

ROOT = Authority.root("Fleet root")
SERVER = ROOT.server("gw.example")
METER = ROOT.device("meter-7", purposes=[CLIENT_AUTH])
STRANGER = Authority.root("Others").device("meter-7", purposes=[CLIENT_AUTH])
POLICY = TrustPolicy(purpose=Purpose.CLIENT, anchors=(ROOT.der,))
TYPES = (CertificateType.X509, CertificateType.RAW_PUBLIC_KEY)


def own(credential):
    return CertificateCredential(credential.chain, SigningKey.wrap(credential.key))


def raw(credential):
    return RawPublicKeyCredential(SigningKey.wrap(credential.key))


def server_config(**more):
    fields: dict[str, Any] = {
        "credentials": (own(SERVER), raw(SERVER)),
        "client_authentication": ClientAuthentication.REQUIRED,
        "client_certificate_types": TYPES,
    }
    return ServerConfig(**fields | more)


def client_config(*credentials, **more):
    fields: dict[str, Any] = {
        "server_certificate_types": (CertificateType.X509,),
        "credentials": credentials,
        # How long a plaintext alert, which may be forged, is not believed.
        "retransmit": RetransmitPolicy(initial_timeout=0.05),
    }
    return ClientConfig(**fields | more)


def verifier(**more):
    return PeerVerifier(POLICY, {METER.spki: b"raw-7"}, wall_clock=lambda: NOW, **more)


certified = partial(serving, config=server_config())


async def test_a_device_is_who_its_certificate_says():
    async with certified(verify=verifier()) as served:
        device = await served.device(config=client_config(own(METER))).connect()
        assert device.connected
        (association,) = served.observer.live
        assert (association.identity, association.kind) == (b"meter-7", CredentialKind.CERTIFICATE)
        assert association.key_index is None
        assert served.engine.associations(b"meter-7") == [association]
        await device.send(b"21.5")
        assert await device.receive() == b"21.5"


async def test_a_device_is_who_its_raw_public_key_is_known_as():
    async with certified(verify=verifier()) as served:
        config = client_config(raw(METER), server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,))
        assert (await served.device(config=config).connect()).connected
        (association,) = served.observer.live
        assert (association.identity, association.kind) == (b"raw-7", CredentialKind.RAW_PUBLIC_KEY)


async def test_one_port_serves_every_kind_at_once():
    async with certified(verify=verifier()) as served:
        for config in (
            client_config(own(METER)),
            client_config(raw(METER), server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,)),
            ClientConfig(psk_identity=b"meter-1", psk_key=KEY),
        ):
            assert (await served.device(config=config).connect()).connected
        assert [association.kind.value for association in served.observer.live] == [
            "certificate",
            "raw_public_key",
            "psk",
        ]


async def test_those_who_show_nothing_are_nobody_and_share_no_limit():
    config = server_config(client_authentication=ClientAuthentication.WANTED)
    quotas = QuotaPolicy(associations_per_identity=1)
    async with serving(config=config, verify=verifier(), quotas=quotas) as served:
        for _ in range(3):
            assert (await served.device(config=client_config()).connect()).connected
        assert [association.identity for association in served.observer.live] == [b""] * 3
        assert {association.kind for association in served.observer.live} == {CredentialKind.NONE}
        assert served.gauges["identities"] == 0
        for device in served.devices:
            await device.close()
        assert served.idle


async def test_a_limit_per_identity_counts_certificates_too():
    async with certified(verify=verifier(), quotas=QuotaPolicy(associations_per_identity=1)) as served:
        for _ in range(2):
            assert (await served.device(config=client_config(own(METER))).connect()).connected
        await wait_all_tasks_blocked()
        assert len(served.observer.live) == 1
        assert [reason for _, reason in served.observer.refusals] == ["associations_per_identity"]


async def test_a_refused_certificate_is_told_exactly_here_and_generally_there():
    async with certified(verify=verifier()) as served:
        device = await served.device(config=client_config(own(STRANGER))).connect()
        assert device.cause == PeerAlert(
            AlertDescription.UNKNOWN_CA, authenticated=device.cause.authenticated
        )
        ((_, identity, cause),) = served.observer.failed
        assert (identity, cause) == (None, AuthenticationFailed(AuthenticationProblem.PEER_REJECTED))
        (rejection,) = served.observer.rejections
        assert rejection.problem == "unknown_issuer"
        assert "meter-7" in rejection.detail
        assert served.idle


async def test_without_a_verifier_nobody_is_accepted():
    async with certified() as served:
        for config in (
            client_config(own(METER)),
            client_config(raw(METER), server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,)),
        ):
            assert not (await served.device(config=config).connect()).connected
        assert [rejection.problem for rejection in served.observer.rejections] == ["no_verifier"] * 2


async def test_an_unknown_raw_key_is_told_by_its_digest():
    async with certified(verify=verifier()) as served:
        config = client_config(raw(STRANGER), server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,))
        device = await served.device(config=config).connect()
        assert isinstance(device.cause, PeerAlert)
        (rejection,) = served.observer.rejections
        assert rejection.problem == "unknown_key"
        assert "SHA-256" in rejection.detail


class SlowVerifier(Verifier):
    """Blocks its thread until it may go on; counts how many threads are in it at once."""

    __slots__ = ("_lock", "entered", "go", "most", "now")

    def __init__(self, policy):
        super().__init__(policy)
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.now = self.most = 0

    def verify(self, chain, *, at, server_name=None):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.entered.release()
        self.go.wait(30)
        with self._lock:
            self.now -= 1
        return super().verify(chain, at=at, server_name=server_name)


async def until(condition):
    """Until a thread of the engine's has made it true."""
    with trio.fail_after(30):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_a_slow_chain_holds_up_nobody():
    slow = SlowVerifier(POLICY)
    async with (
        certified(verify=PeerVerifier(slow, wall_clock=lambda: NOW)) as served,
        trio.open_nursery() as nursery,
    ):
        waiting = served.device(config=client_config(own(METER)))
        nursery.start_soon(waiting.connect)
        await trio.to_thread.run_sync(slow.entered.acquire)
        quick = await served.device(config=ClientConfig(psk_identity=b"meter-1", psk_key=KEY)).connect()
        await quick.send(b"x")
        assert await quick.receive() == b"x"
        assert not waiting.connected
        assert served.engine.statistics()["verifications"] == 1
        slow.go.set()
        await until(lambda: waiting.connected)
        assert served.engine.statistics()["verifications"] == 0


async def test_threads_are_bounded_and_those_who_wait_for_one_get_their_turn():
    slow = SlowVerifier(POLICY)
    verify = PeerVerifier(slow, wall_clock=lambda: NOW, limiter=trio.CapacityLimiter(2))
    async with certified(verify=verify) as served, trio.open_nursery() as nursery:
        devices = [served.device(config=client_config(own(METER))) for _ in range(5)]
        for device in devices:
            nursery.start_soon(device.connect)
        await until(lambda: served.engine.statistics()["verifications"] == 5)
        for _ in range(2):
            await trio.to_thread.run_sync(slow.entered.acquire)
        slow.go.set()
        await until(lambda: all(device.connected for device in devices))
        assert slow.most == 2


class Late:
    """Answers when told to."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = trio.Event()
        self.go = trio.Event()
        self.cancelled = 0

    async def __call__(self, request):
        self.asked.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_verification_ends_with_its_handshake(autojump_clock):
    late = Late(b"meter")
    config = server_config(
        retransmit=RetransmitPolicy(handshake_timeout=20.0), limits=Limits(max_half_open=2)
    )
    async with serving(config=config, verify=late) as served, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(served.device(config=client_config(own(METER))).connect)
        await late.asked.wait()
        await wait_all_tasks_blocked()
        assert served.engine.statistics()["verifications"] == 2
        await trio.sleep(21)
        assert late.cancelled == 2
        assert served.engine.statistics()["verifications"] == 0
        assert served.idle
        nursery.cancel_scope.cancel()


async def test_a_verdict_that_comes_in_the_moment_in_which_its_handshake_ends_is_dropped():
    late = Late(b"meter")
    async with serving(config=server_config(), verify=late) as served, trio.open_nursery() as nursery:
        nursery.start_soon(served.device(config=client_config(own(METER))).connect)
        await late.asked.wait()
        late.go.set()  # the task that waits will run with the verdict, and is not cancelled any more
        assert await served.engine.drain(5) == 0
        await wait_all_tasks_blocked()
        assert served.idle
        assert served.observer.troubles == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnectionError("directory down"), "ConnectionError('directory down')"),
        (None, "an identity in bytes is needed, not NoneType"),
        ("meter", "an identity in bytes is needed, not str"),
        (b"", "an identity of at least one byte is needed"),
        (bytes(1025), "an identity of at most 1024 bytes is needed, not of 1025"),
        (True, "an identity in bytes is needed, not bool"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
async def test_a_verifier_that_fails_or_answers_nonsense_lets_nobody_in_and_is_reported(answer, reason, late):
    def at_once(_request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    slow = Late(answer)
    slow.go.set()
    async with certified(verify=slow if late else at_once) as served:
        assert not (await served.device(config=client_config(own(METER))).connect()).connected
        assert served.observer.troubles == [("verifier failed", {"reason": reason})]
        assert served.observer.rejections[0].problem == "verifier_failed"
        assert served.engine.statistics()["verification_failures"] == 1
        assert served.idle


async def test_a_verifier_chooses_the_alert():
    def refuse(_request):
        raise PeerRejected("stolen", "reported stolen on Monday", AlertDescription.ACCESS_DENIED)

    async with certified(verify=refuse) as served:
        device = await served.device(config=client_config(own(METER))).connect()
        assert device.cause.description is AlertDescription.ACCESS_DENIED
        assert served.observer.rejections[0].detail == "reported stolen on Monday"


async def test_a_new_configuration_is_for_new_handshakes_and_live_associations_stay():
    async with certified(verify=verifier()) as served:
        first = await served.device(config=client_config(own(METER))).connect()
        served.engine.use_config(server_config(psk=False), reject_all)
        await first.send(b"still here")
        assert await first.receive() == b"still here"
        assert not (await served.device(config=client_config(own(METER))).connect()).connected
        psk = ClientConfig(psk_identity=b"meter-1", psk_key=KEY)
        assert not (await served.device(config=psk).connect()).connected


async def test_a_session_is_resumed_as_long_as_its_certificate_is_good():
    times = [NOW]
    verify = PeerVerifier(POLICY, wall_clock=lambda: times[-1])
    async with certified(verify=verify) as served:
        first = await served.device(config=client_config(own(METER))).connect()
        session = first.connection.session
        config = client_config(own(METER), session=session)
        again = await served.device(config=config).connect()
        assert again.connection.negotiated.resumed
        assert [association.identity for association in served.observer.live] == [b"meter-7"] * 2
        times.append(END.replace(year=END.year + 1))
        refused = await served.device(config=config).connect()
        assert not refused.connected
        assert [rejection.problem for rejection in served.observer.rejections] == ["expired"]
