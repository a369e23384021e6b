"""Every way in which a handshake with a server can fail, each as a function that makes it fail that way."""

from sansdtls import PskRequested
from tests.core import raw
from tests.core.puppet import PuppetClient


def log_in_in_vain(puppet: PuppetClient) -> None:
    """Flight 5, and once more when the server repeats flight 4, as an honest client does."""
    puppet.hello()
    key_exchange = puppet.key_exchange()
    finished = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=puppet.message_seq)
    for _ in range(2):
        puppet.give(key_exchange, puppet.change_cipher_spec(), puppet.record(22, finished, epoch=1))
        puppet.wait(1.5)
    puppet.wait(1)


def fail_wrong_key(puppet: PuppetClient) -> None:
    puppet.psk = b"not the key....."
    log_in_in_vain(puppet)


def fail_unknown_identity(puppet: PuppetClient) -> None:
    puppet.identity = b"who?"
    log_in_in_vain(puppet)


def fail_bad_finished(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished(bytes(12)))


def fail_by_silence(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.wait(200)


def fail_by_silence_after_key_exchange(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange())
    puppet.wait(200)


def fail_by_silence_after_change_cipher_spec(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    puppet.wait(200)


def fail_by_alert(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.alert(2, 40))
    puppet.wait(2)


def fail_by_violation(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.message(raw.SERVER_HELLO_DONE, b""))


def fail_by_incompatible_hello(puppet: PuppetClient) -> None:
    puppet.hello_options = {"suites": (0xC02B,)}
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))
    puppet.wait(0)


def fail_by_malformed_hello(puppet: PuppetClient) -> None:
    puppet.hello_options = {"extensions": (raw.EMS, raw.EMS)}
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))


def fail_by_reassembly(puppet: PuppetClient) -> None:
    puppet.hello()
    for seq in range(8):
        puppet.give(puppet.record(22, raw.fragment(16, bytes(200), message_seq=2 + seq, total=300)))
    assert puppet.rig.server.statistics.reassembly_size > 1000
    puppet.wait(200)


def fail_by_local_close(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange())
    request = [event for event in puppet.rig.events if isinstance(event, PskRequested)][-1]
    request.connection.close(now=puppet.rig.now)
    puppet.wait(0)


FAILURES = {
    fail_wrong_key: "AuthenticationFailed.wrong_key",
    fail_unknown_identity: "AuthenticationFailed.unknown_identity",
    fail_bad_finished: "AuthenticationFailed.bad_finished",
    fail_by_silence: "HandshakeTimeout",
    fail_by_silence_after_key_exchange: "HandshakeTimeout",
    fail_by_silence_after_change_cipher_spec: "HandshakeTimeout",
    fail_by_alert: "PeerAlert",
    fail_by_violation: "ProtocolViolation",
    fail_by_incompatible_hello: "PeerIncompatible",
    fail_by_malformed_hello: "ProtocolViolation",
    fail_by_reassembly: "HandshakeTimeout",
    fail_by_local_close: "LocalClose",
}
