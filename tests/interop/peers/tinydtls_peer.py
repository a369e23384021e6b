"""A tinydtls peer (the C library in DTLSSocket), without CoAP: (client|server) port identity key-in-hex.

tinydtls knows peers by IPv6 address only; as there is one
peer here, a fixed address stands for it.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress

from DTLSSocket import dtls

PEER = "::1", 1
CONNECTED = 0x01DE
WARNING = 1
FATAL = 2
CLOSE_NOTIFY = 0
WAIT = 30.0
"""Seconds for an answer, also on a machine that stands still for some of them."""
TICK = 0.05


def say(line: str) -> None:
    print(line, flush=True)


class Peer:
    def __init__(self, link: socket.socket, identity: bytes, key: bytes) -> None:
        self.link = link
        self.ended = False
        self.closed_by_other_side = False
        self.answer_with: bytes | None = None
        self.is_client = False
        # DTLSSocket keeps only the address of the identity, so it has to outlive the context.
        self.identity = identity
        self.context = dtls.DTLS(
            read=self.read, write=self.write, event=self.event, pskId=self.identity, pskStore={identity: key}
        )
        self.session = dtls.Session(*PEER)

    def write(self, _address: object, data: bytes) -> int:
        return self.link.send(data)

    def read(self, _address: object, data: bytes) -> int:
        say(f"received {data.decode()}")
        if self.is_client or data == b"bye":
            self.ended = True
        else:
            self.answer_with = b"heard " + data[:5]
        return len(data)

    def event(self, level: int, code: int) -> None:
        if code == CONNECTED:
            say("connected")
            if self.is_client:
                self.answer_with = b"hello"
        elif level == FATAL or (level == WARNING and code == CLOSE_NOTIFY):
            say("closed" if code == CLOSE_NOTIFY else f"failed: alert {code}")
            self.ended = self.closed_by_other_side = True

    def run(self) -> None:
        deadline = time.monotonic() + WAIT
        self.link.settimeout(TICK)
        while not self.ended:
            if time.monotonic() > deadline:
                raise TimeoutError("nothing more came")
            self.context.checkRetransmit()
            with suppress(TimeoutError):
                # tinydtls decrypts in place: it gets a copy of its own.
                self.context.handleMessage(self.session, bytes(bytearray(self.link.recv(65_535))))
            if self.answer_with is not None:
                self.context.write(self.session, self.answer_with)
                self.answer_with = None


if __name__ == "__main__":
    role, port_text, identity_text, key_text = sys.argv[1:]
    address = ("127.0.0.1", int(port_text))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(WAIT)
        peer = Peer(link, identity_text.encode(), bytes.fromhex(key_text))
        try:
            if role == "client":
                link.connect(address)
                peer.is_client = True
                # The context forgets a peer whose connection object is gone.
                connection = peer.context.connect(*PEER)
                peer.run()
            else:
                link.bind(address)
                _, client = link.recvfrom(1, socket.MSG_PEEK)
                link.connect(client)
                peer.run()
            if not peer.closed_by_other_side:
                peer.context.close(peer.session)
        except OSError as error:
            say(f"failed: {error}")
            sys.exit(1)
