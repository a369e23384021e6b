"""UDP by hand in namespaces of a lab: what is sent where, from which addresses, and what arrives."""

import contextlib
import re
import socket
import subprocess
import threading
import time

from tests.namespaces import inside, run, within

_BODY = bytes.fromhex("fefd") + b"Z" * 32 + bytes.fromhex("00000002c0a80100")
_MESSAGE = b"\x01" + len(_BODY).to_bytes(3) + bytes(5) + len(_BODY).to_bytes(3) + _BODY
HELLO = bytes.fromhex("16feff") + bytes(8) + len(_MESSAGE).to_bytes(2) + _MESSAGE
"""A ClientHello without a cookie."""
IPV6_TRANSPARENT, IP_TRANSPARENT = 75, 19
END = b"that was all"


def udp(namespace, address="0.0.0.0", port=0):  # noqa: S104 - of one host of a lab
    """A socket bound in a namespace, also to an address that the host does not have."""

    def make():
        six = ":" in address
        one = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        if six:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            one.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        one.bind((address, port))
        one.settimeout(10)
        return one

    return inside(namespace, make)


def admitted(source, target, datagrams, *, port=5684):
    """Those of ``datagrams`` that reach ``port`` of the host ``target`` from the host ``source``, IPv4 and IPv6 alike."""
    both = []
    for from_, to in ((source.address, target.address), (source.address6, target.address6)):
        with udp(source.namespace, from_) as sender, udp(target.namespace, to, port) as receiver:
            for datagram in datagrams:
                sender.sendto(datagram, (to, port))
            # In order, so that nobody has to wait for what does not come; a protected record passes.
            sender.sendto(bytes.fromhex("17fefd0001") + END, (to, port))
            arrived = []
            while not (datagram := receiver.recv(65_535)).endswith(END):
                arrived.append(datagram)
        both.append(arrived)
    assert both[0] == both[1], "IPv4 and IPv6 differ"
    return both[0]


def reaches(source, target, *, port, from_port=0, address=None, six=False):
    """Whether a datagram gets from one host to another; whoever is asked knows no answer but its arrival."""
    to = target.address6 if six else target.address
    here = address or (source.address6 if six else source.address)
    with udp(source.namespace, here, from_port) as sender, udp(target.namespace, to, port) as receiver:
        try:
            sender.sendto(b"anybody there?", (to, port))
        except PermissionError:
            return False  # what the sender's own rules drop
        receiver.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            return receiver.recv(100) == b"anybody there?"
    return False


def opens(source, target, *, port):
    """Whether a TCP connection can be made."""

    def connect():
        with contextlib.suppress(OSError), socket.create_connection((target.address, port), 0.7):
            return True
        return False

    return inside(source if isinstance(source, str) else source.namespace, connect)


class Flood(threading.Thread):
    """ClientHellos from many addresses and ports at once, for as long as it is not stopped; use it in ``with``."""

    def __init__(self, namespace, addresses, target, *, ports=20, port=5684, rate=4_000):
        super().__init__(daemon=True)
        self._senders = [udp(namespace, address) for address in addresses for _ in range(ports)]
        self._target, self._rate = (target, port), rate
        self._over = threading.Event()
        self.sent = 0

    def run(self):
        """Send, evenly over the senders."""
        began = time.monotonic()
        while not self._over.is_set():
            for sender in self._senders[:: max(1, len(self._senders) // 200)]:
                with contextlib.suppress(OSError):
                    sender.sendto(HELLO, self._target)
                self.sent += 1
            self._senders.append(self._senders.pop(0))
            time.sleep(max(0.0, began + self.sent / self._rate - time.monotonic()))

    def wait_until_sent(self, count):
        """Return when it has sent so many."""
        end = time.monotonic() + 30
        while self.sent < count:
            assert time.monotonic() < end, self.sent
            time.sleep(0.005)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()
        for sender in self._senders:
            sender.close()


def on(host):
    """The words that run the host's own program, whether the host is up or not: nft cannot read what a newer one has made."""
    return [*within(host.namespace), "chroot", str(host.root)]


def counters(host):
    """What the rules of a host have counted, by their comments: packets."""
    found: dict[str, int] = {}
    for line in run(*on(host), "nft", "list", "table", "inet", "dtls_firewall").splitlines():
        if " packets " in line and 'comment "' in line:
            count = int(line.split("counter packets ")[1].split()[0])
            comment = line.split('comment "')[1].split('"')[0]
            found[comment] = found.get(comment, 0) + count
    return found


def counters_of_iptables(host):
    """The same, of iptables-legacy, both families together."""
    found: dict[str, int] = {}
    for program in ("iptables-legacy", "ip6tables-legacy"):
        listed = run(*within(host.namespace), program, "-L", "-v", "-x", "-n")
        for line in listed.splitlines():
            if "/* " in line:
                comment = line.split("/* ")[1].split(" */")[0]
                found[comment] = found.get(comment, 0) + int(line.split()[0])
    return found


def ruleset(host):
    """Our rules as they are in a host's kernel, without what they have counted; empty if there are none."""
    said = []
    for command in (
        ("nft", "-s", "list", "table", "inet", "dtls_firewall"),
        ("iptables-legacy", "-S"),
        ("ip6tables-legacy", "-S"),
        ("iptables-nft", "-S"),
        ("ip6tables-nft", "-S"),
    ):
        words = [*(within(host.namespace) if "legacy" in command[0] else on(host)), *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        said += [line for line in done.stdout.splitlines() if command[0] == "nft" or "dtls_firewall" in line]
    return re.sub(r"\s*elements = \{[^}]*\}", "", "\n".join(said))


def lose_rules(host):
    """A namespace outlives the host that a lab shuts down, a kernel does not: forget what it would have forgotten."""
    run(*on(host), "nft", "flush", "ruleset")
    for program in ("iptables-legacy", "ip6tables-legacy"):
        run(*within(host.namespace), program, "-F")
        run(*within(host.namespace), program, "-X")
    for leftover in (host.root / "run/dtls-guard", host.root / "var/run/dtls-guard"):
        if leftover.is_dir():
            run("rm", "-rf", str(leftover))
