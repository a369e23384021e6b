"""``[forward]``: what its keys make, what ``check`` says of it, and what it says of mistakes."""

import resource
import socket

import pytest

from endpoint.cli import main
from endpoint.config import parse_config
from endpoint.forward import ForwardError
from endpoint.forward.echo import Echo
from endpoint.forward.jsonl import JsonLines
from endpoint.forward.making import make_forwarder
from endpoint.forward.udp import UdpUpstreams
from endpoint.forward.unix import UnixDatagrams
from endpoint.tables.sinks import KINDS
from tests.program.sinks import Told

CREDENTIALS = '[credentials]\npsk_file = "psk.txt"\n'
UDP = 'kind = "udp"\nupstream = "127.0.0.1:5683"\n'


def parsed(directory, text):
    return parse_config((CREDENTIALS + text).encode(), name="endpoint.toml", directory=directory)


@pytest.fixture
def home(tmp_path):
    psk = tmp_path / "psk.txt"
    psk.touch(mode=0o600)
    psk.write_text("meter-1:00112233445566778899aabbccddeeff\n")
    return tmp_path


@pytest.fixture
def check(home, monkeypatch, capsys):
    """Exit status and lines of ``check`` for a configuration with these tables."""

    def checked(text):
        # What is in no table comes before any, or it would be a key of that.
        tables = CREDENTIALS + text if not text or text.startswith("[") else f"{text}\n{CREDENTIALS}"
        (home / "endpoint.toml").write_text(tables)
        monkeypatch.chdir(home)
        status = main(["check", "--config", "endpoint.toml"])
        output, errors = capsys.readouterr()
        return status, output.splitlines() if status == 0 else errors.splitlines()

    return checked


# --- what is made ---


async def test_every_kind_is_made_with_what_its_keys_say(home):
    config = parsed(
        home,
        f"""
        [dtls]
        alpn_protocols = ["coap"]
        [[forward.sinks]]
        kind = "jsonl"
        buffer = 2048
        overflow = "oldest"
        also = true
        [[forward.sinks]]
        name = "coap"
        alpn = ["coap"]
        {UDP}
        bind = "127.0.0.2"
        idle = "never"
        max_upstreams = 7
        wake = false
        proxy_protocol = "every"
        [[forward.sinks]]
        name = "pumps"
        kind = "unix"
        identities = ["pump-*"]
        path = "there"
        listen = "{home}/back"
        format = "raw"
        [[forward.sinks]]
        kind = "echo"
        """,
    )
    told = Told()
    router = make_forwarder(config, told)
    try:
        routes = [outlet.route for outlet in router._outlets]
        assert [(route.name, type(route.sink), route.also) for route in routes] == [
            ("jsonl", JsonLines, True),
            ("coap", UdpUpstreams, False),
            ("pumps", UnixDatagrams, False),
            ("echo", Echo, False),
        ]
        assert [(route.identities, route.alpn) for route in routes[1:3]] == [
            (None, (b"coap",)),
            (("pump-*",), None),
        ]
        assert [route.devices is not None for route in routes] == [False, True, True, False]
        assert [route.devices and route.devices._wake for route in routes] == [None, False, True, None]
        lines, coap, pumps = [route.sink for route in routes[:3]]
        assert isinstance(lines, JsonLines)
        assert (lines._lines._limit, lines._lines._drop_oldest) == (2048, True)
        assert isinstance(coap, UdpUpstreams)
        assert (coap._bind, coap._idle, coap._upstreams.limit, coap._header) == (
            "127.0.0.2",
            None,
            7,
            "every",
        )
        assert isinstance(pumps, UnixDatagrams)
        assert (pumps._path, pumps._raw) == (home / "there", True)
        assert (home / "back").is_socket()
    finally:
        router.close()
    assert not (home / "back").exists()
    assert told.facts == []


async def test_what_was_made_is_closed_where_a_later_one_cannot_be(home):
    config = parsed(
        home,
        '[[forward.sinks]]\nkind = "unix"\npath = "there"\nlisten = "back"\n'
        '[[forward.sinks]]\nname = "two"\nkind = "unix"\npath = "there"\nlisten = "gone/back"\n',
    )
    with pytest.raises(ForwardError, match="its directory is not there"):
        make_forwarder(config, Told())
    assert not (home / "back").exists()


async def test_facts_name_the_sink(home):
    config = parsed(home, '[[forward.sinks]]\nname = "far"\nkind = "unix"\npath = "there"\n')
    told = Told()
    router = make_forwarder(config, told)
    (route,) = [outlet.route for outlet in router._outlets]
    assert isinstance(route.sink, UnixDatagrams)
    route.sink._lost(OSError(2, "No such file or directory"))
    assert told.facts[0][1]["sink"] == "far"
    router.close()


async def test_where_few_files_may_be_open_sockets_are_shared_out_and_that_is_told(home, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1256))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    config = parsed(
        home,
        f"[[forward.sinks]]\n{UDP}identities = ['a*']\nmax_upstreams = 3000\n"
        f'[[forward.sinks]]\nname = "rest"\n{UDP}max_upstreams = 1000\n',
    )
    told = Told()
    router = make_forwarder(config, told)
    limits = {"udp": 750, "rest": 250}
    assert told.facts == [
        (
            "forward_limited",
            {"max_upstreams": limits, "reason": "the limit of open files (RLIMIT_NOFILE)"},
        )
    ]
    assert [outlet.route.sink._upstreams.limit for outlet in router._outlets] == [750, 250]  # type: ignore[attr-defined]
    router.close()


# --- what check says ---


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["writes each datagram as a JSON line to standard output, holding at most 1048576 bytes"]),
        (
            '[forward]\nbuffer = 4096\noverflow = "oldest"',
            [
                (
                    "writes each datagram as a JSON line to standard output, holding at most 4096 bytes, then dropping "
                    "the oldest"
                )
            ],
        ),
        ('[forward]\nkind = "echo"', ["sends every datagram back to its sender"]),
        (
            f"[forward]\n{UDP}max_upstreams = 100",
            [
                (
                    "sends each datagram to UDP 127.0.0.1:5683, and what is answered back; one socket an association, at most "
                    "100 and closed after 86400 s of silence"
                )
            ],
        ),
        (
            (
                '[forward]\nkind = "udp"\nupstream = "[::1]:5683"\nbind = "::1"\nidle = "never"\nwake = false\nproxy_protocol = "every"\n'
                "max_upstreams = 5"
            ),
            [
                (
                    "sends each datagram to UDP [::1]:5683, from ::1, with a PROXY header, and what is answered back, unless "
                    "the device sleeps; one socket an association, at most 5"
                )
            ],
        ),
        (
            '[forward]\nkind = "unix"\npath = "psk.txt"\nlisten = "back"\nwake = false',
            [
                (
                    "sends each datagram as a JSON object to the socket psk.txt, holding at most 1048576 bytes; answers come "
                    "by back, and are dropped for devices that sleep"
                )
            ],
        ),
        (
            (
                '[dtls]\nalpn_protocols = ["coap"]\n[[forward.sinks]]\nkind = "unix"\npath = "there"\nformat = "raw"\n'
                'alpn = ["coap"]\nidentities = ["a*", "b"]\nalso = true\n[[forward.sinks]]\nidentities = ["c"]\nkind = "echo"'
            ),
            [
                (
                    'sink "unix", for identities like a*, b with the protocols coap, and on to the next: sends each datagram '
                    "to the socket there, holding at most 1048576 bytes"
                ),
                'sink "echo", for identities like c: sends every datagram back to its sender',
                "note: forward: what no sink is for is dropped and counted (unmatched)",
                "note: there: is not there now; datagrams wait for it in the buffer",
            ],
        ),
    ],
)
def test_check_says_what_each_sink_does(check, text, lines):
    status, output = check(text)
    assert status == 0, output
    for line in lines:
        assert line in output


def test_check_says_when_there_are_too_few_files(check, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1256))
    status, output = check(f"[forward]\n{UDP}")
    assert status == 0
    assert (
        "note: forward: a process of this user may open files for 1000 sockets, not for max_upstreams = 10000; "
        "remedy: LimitNOFILE= in the unit, or ulimit -n"
    ) in output


def test_check_of_a_running_service_does_not_mind_its_socket(check, home):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as running:
        running.bind(str(home / "back"))
        assert check('[forward]\nkind = "unix"\npath = "there"\nlisten = "back"')[0] == 0


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ('[forward]\nkind = "udp"', ['forward.upstream: missing; remedy: add  upstream = "127.0.0.1:5683"']),
        (
            '[forward]\nkind = "udp"\nupstream = "127.0.0.1"',
            ['forward.upstream: "127.0.0.1" is not HOST:PORT or [IPv6]:PORT'],
        ),
        (
            '[forward]\nkind = "udp"\nupstream = "::1:5683"',
            ['forward.upstream: "::1:5683" is not HOST:PORT or [IPv6]:PORT'],
        ),
        (
            '[forward]\nkind = "udp"\nupstream = "[coap]:5683"',
            ['forward.upstream: "[coap]:5683": what is in brackets is no IPv6 address'],
        ),
        (
            '[forward]\nkind = "udp"\nupstream = "1.2.3:5683"',
            ['forward.upstream: "1.2.3:5683": the host is neither an address nor a name'],
        ),
        (
            '[forward]\nkind = "udp"\nupstream = "coap:65536"',
            ["forward.upstream: port 65536 is not within 1 to 65535"],
        ),
        (
            f'[forward]\n{UDP}bind = "eth0"',
            ['forward.bind: "eth0" is no IP address; remedy: one of this host'],
        ),
        (
            f'[forward]\n{UDP}bind = "::1"',
            [
                'forward.bind: "::1" cannot reach "127.0.0.1:5683"; remedy: an address of the same version of IP'
            ],
        ),
        (
            (
                '[[forward.sinks]]\nkind = "unix"\npath = "x"\nlisten = "back"\nalso = true\n'
                '[[forward.sinks]]\nname = "b"\nkind = "unix"\npath = "y"\nlisten = "back"'
            ),
            ['forward.sinks."b".listen: is that of the sink "unix" too; remedy: name another'],
        ),
        (f"[forward]\n{UDP}idle = 0", ["forward.idle: 0 is not within 0.001 to 31536000 seconds"]),
        (
            f"[forward]\n{UDP}max_upstreams = 0",
            ["forward.max_upstreams: 0 is not within 1 to 1000000 sockets"],
        ),
        (
            f'[forward]\n{UDP}proxy_protocol = "on"',
            ['forward.proxy_protocol: "on" is not one of off, every, first'],
        ),
        (
            '[forward]\nkind = "unix"',
            ['forward.path: missing; remedy: add  path = "/run/…/readings.sock"'],
        ),
        (
            '[forward]\nkind = "unix"\npath = "x"\nformat = "xml"',
            ['forward.format: "xml" is not one of json, raw'],
        ),
        (
            '[forward]\nkind = "unix"\npath = "x"\nlisten = "x"',
            ["forward.listen: is the same socket as path; remedy: name another"],
        ),
        (
            '[forward]\nkind = "unix"\npath = "' + "x" * 108 + '"',
            ["forward.path: the name has more than 107 bytes; remedy: a shorter directory"],
        ),
        (
            '[forward]\nkind = "unix"\npath = "\\u0000"',
            ["forward.path: a file name cannot hold a NUL character"],
        ),
        (
            '[forward]\nkind = "unix"\npath = "x"\nlisten = "gone/back"',
            ["forward.listen: gone/back: its directory is not there; remedy: make it, for the service only"],
        ),
        (
            '[[forward.sinks]]\nkind = "unix"\npath = "x"\nlisten = "psk.txt"\n[[forward.sinks]]\nkind = "echo"',
            ['forward.sinks."unix".listen: psk.txt: is there already, and no socket; remedy: name another'],
        ),
        ("[forward]\nbuffer = 1", ["forward.buffer: 1 is not within 1024 to 4294967296 bytes"]),
        ('[forward]\noverflow = "all"', ['forward.overflow: "all" is not one of newest, oldest']),
        (
            "[forward]\nupstream = 'x:1'\nbufer = 1",
            [
                'forward.upstream: is of no use with kind = "jsonl"; it belongs to udp',
                'forward.bufer: unknown key (did you mean "buffer"?)',
            ],
        ),
        (
            "[forward]\nidentities = []",
            ["forward.identities: an empty list means nobody; remedy: leave it out for everybody"],
        ),
        ("[forward]\nidentities = [7]", ["forward.identities: text is needed, not a whole number (7)"]),
        (
            '[forward]\nalpn = ["coap", "lwm2m"]',
            [
                (
                    "forward.alpn: can never match, as no such protocol is negotiated; remedy: "
                    '[dtls] alpn_protocols = ["coap", "lwm2m"]'
                )
            ],
        ),
        ("[forward]\nalso = 1", ["forward.also: true or false is needed, not a whole number (1)"]),
        (
            '[forward]\nname = "a b"',
            ['forward.name: "a b" is not up to 64 letters, digits, dots, dashes and underscores'],
        ),
        (
            f'[forward]\nkind = "echo"\n[[forward.sinks]]\n{UDP}',
            [
                "forward.kind: belongs into a sink where there are several; remedy: move it below its [[forward.sinks]]"
            ],
        ),
        ("[forward]\nsinks = []", ["forward.sinks: a list of tables is needed, [[forward.sinks]]"]),
        ("[forward]\nsinks = [1]", ["forward.sinks.1: a table is needed, not this"]),
        ("forward = 1", ["forward: a table is needed, not this"]),
        (
            "[[forward.sinks]]\nbuffer = 4096",
            [f"forward.sinks.1.kind: missing; remedy: one of {', '.join(KINDS)}"],
        ),
        (
            '[[forward.sinks]]\nkind = "echo"\n[[forward.sinks]]\nkind = "echo"',
            ['forward.sinks."echo".name: two sinks are called so; remedy: give each its own  name = "…"'],
        ),
        (
            '[[forward.sinks]]\nkind = "jsonl"\n[[forward.sinks]]\nname = "b"\nkind = "jsonl"',
            ["forward.sinks: only one sink can write to standard output; remedy: one of kind jsonl"],
        ),
        (
            '[[forward.sinks]]\nname = "coap"\nkind = "udp"\nupstream = 5\n[[forward.sinks]]\nkind = "udq"',
            [
                'forward.sinks."coap".upstream: text is needed, not a whole number (5)',
                f'forward.sinks."udq".kind: "udq" is not one of {", ".join(KINDS)} (did you mean "udp"?)',
            ],
        ),
    ],
)
def test_a_mistake_is_told_with_its_key(check, text, mistakes):
    status, errors = check(text)
    assert (status, errors) == (2, [f"endpoint.toml: {mistake}" for mistake in mistakes])
