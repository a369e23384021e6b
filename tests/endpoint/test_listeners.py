"""Several listeners: all or none, each at the index by which paths name it, from one process to the next."""

import contextlib
import errno
import socket
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st

from endpoint.clock import LastingClock
from endpoint.config import ConfigFileError, parse_config
from endpoint.listening import MAX_REMEMBERED, STORED_SOCKET, Listeners, adopt, listen, places
from endpoint.state.sqlite import AssociationFile
from endpoint.succession import Succession
from endpoint.systemd import Descriptor, Supervision, SupervisionError
from endpoint.tables.listen import MAX_ALSO, Listen
from endpoint.tables.state import State
from endpoint.udp import ListenError
from sansdtls import Checkpoint, SnapshotError
from tests.endpoint.devices import PATIENCE, Device, serving
from tests.ports import free_port

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


def handed(address="127.0.0.1", *, name="dtls", port=0):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return adopt(Descriptor(sock.detach(), name))


def closing(listeners):
    for udp in listeners.sockets:
        udp.close()


# --- the configuration ---


def mistakes(listen_table):
    config = f'[credentials]\npsk_file = "psk.txt"\n[listen]\n{listen_table}'
    with pytest.raises(ConfigFileError) as caught:
        parse_config(config.encode(), name="endpoint.toml", directory=Path("/"))
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        ("127.0.0.2:5685", ("127.0.0.2", 5685)),
        ("[::1]:5684", ("::1", 5684)),
        ("[::]:0", ("::", 0)),
        ("gateway.example:7", ("gateway.example", 7)),
    ],
)
def test_a_further_place_is_an_address_with_a_port(also, expected):
    assert Listen(also=(also,)).places == (("127.0.0.1", 5684), expected)


WRITE = 'remedy: "192.0.2.1:5684" or "[2001:db8::1]:5684"'


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("127.0.0.2", f'"127.0.0.2" is no address with a port; {WRITE}'),
        ("::1:5684", f'"::1:5684" is no address with a port; {WRITE}'),
        ("127.0.0.2:", f'"127.0.0.2:" is no address with a port; {WRITE}'),
        ("127.0.0.2:coap", f'"127.0.0.2:coap" is no address with a port; {WRITE}'),
        ("", f'"" is no address with a port; {WRITE}'),
        (
            "a\\nb:1",
            '"a\\x0ab:1": "a\\x0ab" is not an address ("0.0.0.0" = all of IPv4, "::" = IPv6 and IPv4)',
        ),
        ("127.0.0.2:65536", '"127.0.0.2:65536": 65536 is not within 0 to 65535'),
        (
            "[127.0.0.2]:1",
            '"[127.0.0.2]:1" has brackets around what is no IPv6 address; remedy: leave them out',
        ),
        (
            "300.0.0.1:1",
            '"300.0.0.1:1": "300.0.0.1" is not an address ("0.0.0.0" = all of IPv4, "::" = IPv6 and IPv4)',
        ),
        ("[fe80::zz]:1", '"[fe80::zz]:1": "fe80::zz" is no IPv6 address (a port belongs in listen.port)'),
    ],
)
def test_what_is_none_is_named_with_what_to_write(also, message):
    assert mistakes(f'also = ["{also}"]') == [f"endpoint.toml: listen.also: {message}"]


@pytest.mark.parametrize("also", ['"127.0.0.2:1"', "5684", "[5684]", '[["127.0.0.2:1"]]'])
def test_also_is_a_list_of_text(also):
    (mistake,) = mistakes(f"also = {also}")
    assert "is needed, not" in mistake


def test_there_are_as_many_as_sockets_are_sensible():
    many = ", ".join(f'"127.0.1.{number}:1"' for number in range(MAX_ALSO + 1))
    assert mistakes(f"also = [{many}]") == [
        'endpoint.toml: listen.also: 64 are more than 63; remedy: address = "::"'
    ]


TWICE = "is there twice; remedy: leave one out"
EVERYTHING = (
    'cannot be bound beside "::" with the same port, which serves IPv4 as well; '
    "remedy: leave it out, or name the addresses of IPv6 one by one"
)


@pytest.mark.parametrize(
    ("address", "also", "message"),
    [
        ("127.0.0.1", "127.0.0.1:5684", TWICE),
        ("::1", "[0:0::1]:5684", TWICE),
        ("gw.example", "GW.example:5684", TWICE),
        ("::", "127.0.0.1:5684", EVERYTHING),
        ("127.0.0.1", "[::]:5684", EVERYTHING),
        ("::", "0.0.0.0:5684", EVERYTHING),
        (
            "0.0.0.0",  # noqa: S104 - never bound
            "127.0.0.1:5684",
            'cannot be bound beside "0.0.0.0" with the same port, which serves all addresses; remedy: leave it out',
        ),
        (
            "::1",
            "[::]:5684",
            'cannot be bound beside "::" with the same port, which serves all addresses; remedy: leave it out',
        ),
    ],
)
def test_places_that_exclude_each_other_are_a_mistake_with_the_reason(address, also, message):
    assert mistakes(f'address = "{address}"\nalso = ["{also}"]') == [
        f'endpoint.toml: listen.also: "{also}" {message}'
    ]


@pytest.mark.parametrize(
    ("address", "also"),
    [
        ("127.0.0.1", ["127.0.0.1:0", "127.0.0.1:0"]),  # any port, twice
        ("::", ["127.0.0.1:5685"]),
        ("0.0.0.0", ["[::1]:5684"]),  # noqa: S104 - never bound
        ("gw.example", ["other.example:5684"]),
    ],
)
def test_places_that_go_together_do(address, also):
    assert list(Listen(address=address, also=tuple(also)).contradictions()) == []


# --- binding ---


@needs_ipv6
async def test_every_place_is_bound_with_its_family():
    listeners = await listen(Listen(port=0, also=("[::1]:0", "127.0.0.2:0")))
    try:
        assert [udp.address for udp in listeners.sockets] == ["127.0.0.1", "::1", "127.0.0.2"]
        assert listeners.indices == (0, 1, 2)
        assert listeners.bound_here == listeners.sockets
    finally:
        closing(listeners)


async def test_all_are_bound_or_none_and_the_key_is_named():
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.2", 0))
        at = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            await listen(Listen(port=port, also=(f"127.0.0.2:{at}",)))
    assert caught.value.key == "listen.also"
    assert caught.value.errno == errno.EADDRINUSE
    assert str(caught.value).startswith(f"listen.also: 127.0.0.2:{at} is already in use; ")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))


async def test_a_place_that_is_not_there_yet_is_waited_for_with_its_key(autojump_clock):
    notes = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.2", 0))
        at = taken.getsockname()[1]

        def on_retry(error, seconds):
            notes.append((error.key, seconds))
            taken.close()

        listeners = await listen(Listen(port=0, also=(f"127.0.0.2:{at}",), retry=10), on_retry=on_retry)
    closing(listeners)
    assert notes == [("listen.also", 0.5)]


async def test_a_name_that_turns_out_to_be_a_place_that_is_there_is_explained(monkeypatch):
    async def one_address(host, at, **_):
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", at))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", one_address)
    one = handed()
    port = one.udp.port
    with pytest.raises(ListenError) as caught:
        await listen(Listen(address="127.0.0.1", port=port, also=(f"gw.example:{port}",)), [one])
    assert str(caught.value) == (
        f"listen.also: gw.example:{port} is 127.0.0.1:{port}, which is there already; remedy: leave it out"
    )


async def test_the_same_without_a_socket_that_was_handed_down(monkeypatch):
    async def one_address(host, at, **_):
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", at))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", one_address)
    port = free_port()
    with pytest.raises(
        ListenError, match=f"^listen.also: gw.example:{port} is 127.0.0.1:{port}, which is there already;"
    ):
        await listen(Listen(address="127.0.0.1", port=port, also=(f"gw.example:{port}",)))


async def test_any_port_twice_is_two_sockets_of_which_one_may_be_handed_down():
    one = handed()
    listeners = await listen(Listen(port=0, also=("127.0.0.1:0",)), [one])
    try:
        first, second = listeners.sockets
        assert first is one.udp
        assert listeners.bound_here == (second,)
    finally:
        closing(listeners)


async def test_sockets_that_were_handed_down_are_matched_to_the_places_they_are_bound_to():
    first, second, third = handed("127.0.0.3"), handed("127.0.0.1"), handed("127.0.0.2")
    config = Listen(
        port=second.udp.port,
        also=(f"127.0.0.2:{third.udp.port}", "127.0.0.9:0", f"127.0.0.3:{first.udp.port}"),
    )
    listeners = await listen(config, [first, second, third])
    try:
        assert listeners.sockets[:2] == (second.udp, third.udp)
        assert listeners.sockets[3] is first.udp
        assert listeners.bound_here == (listeners.sockets[2],)
    finally:
        closing(listeners)


async def test_a_managers_socket_that_is_in_no_place_is_a_contradiction_that_names_all_places():
    one = handed("127.0.0.3")
    where = one.udp.local_text
    with pytest.raises(SupervisionError) as caught:
        await listen(Listen(port=0, also=("127.0.0.2:0",)), [one])
    assert str(caught.value) == (
        f"LISTEN_FDS: {one.descriptor} is bound to {where}, but "
        "listen.address, listen.port and listen.also say 127.0.0.1:0, 127.0.0.2:0; "
        "remedy: make them agree with ListenDatagram= in the socket unit"
    )


# --- indices ---


class At:
    def __init__(self, local_text):
        self.local_text = local_text


def at(*texts):
    sockets: list[Any] = [At(text) for text in texts]
    return sockets


A, B, C = "192.0.2.1:5684", "192.0.2.2:5684", "[2001:db8::1]:5684"


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ([A, B, C], [], {0: A, 1: B, 2: C}),
        ([C, B, A], [A, B, C], {0: A, 1: B, 2: C}),
        ([A, C], [A, B, C], {0: A, 2: C}),  # the one that is gone leaves its place empty
        ([C], [A, B, C], {2: C}),
        ([A, B], [A], {0: A, 1: B}),
        ([A, "198.51.100.1:9", B], [A, B], {0: A, 1: B, 2: "198.51.100.1:9"}),
        ([A, "192.0.2.2:9"], [A, B], {0: A, 1: "192.0.2.2:9"}),  # another port
        ([A, "192.0.2.77:5684"], [A, B], {0: A, 1: "192.0.2.77:5684"}),  # another address of the host
        ([A, "198.51.100.1:9"], [A, B], {0: A, 2: "198.51.100.1:9"}),  # another listener altogether
        (["0.0.0.0:5684", C], ["[::]:5684", C], {1: C, 2: "0.0.0.0:5684"}),  # IPv4 instead of IPv6
        (["127.0.0.1:40001"], ["127.0.0.1:40000"], {0: "127.0.0.1:40001"}),  # port 0, twice
        ([B, "192.0.2.1:1"], [A, "192.0.2.1:1"], {0: B, 1: "192.0.2.1:1"}),
    ],
)
def test_each_listener_has_the_index_that_it_had_and_no_other_listener_takes_it(now, before, expected):
    found = places(at(*now), before)
    assert {index: udp.local_text for index, udp in found.items()} == expected
    assert list(found) == sorted(found)


TEXTS = st.lists(
    st.sampled_from([A, B, C, "192.0.2.1:1", "192.0.2.9:5684", "[2001:db8::1]:1", "198.51.100.1:7"]),
    unique=True,
    max_size=6,
)


@given(runs=st.lists(TEXTS.filter(bool), min_size=1, max_size=6))
def test_through_any_changes_a_listener_that_stays_keeps_its_index_and_none_has_two(runs):
    before: list[str] = []
    for now in runs:
        found = {index: udp.local_text for index, udp in places(at(*now), before).items()}
        assert sorted(found.values()) == sorted(now)
        for index, text in enumerate(before):
            if text in now and before.index(text) == index:
                assert found.get(index) == text
        before = [found.get(index) or before[index] for index in range(max(len(before), 1 + max(found)))]


def test_places_of_long_ago_are_used_again_before_there_are_too_many():
    before = [f"192.0.2.1:{number}" for number in range(1, MAX_REMEMBERED + 2)]
    (index,) = places(at("[2001:db8::1]:9"), before)
    assert index == 0
    (index,) = places(at("[2001:db8::1]:9"), before[:-1])
    assert index == MAX_REMEMBERED


async def test_what_is_gone_is_remembered_for_when_it_comes_back():
    kept = handed("127.0.0.2", name=STORED_SOCKET)
    text = kept.udp.local_text
    before = ["198.51.100.9:9", text, "203.0.113.7:7"]
    listeners = await listen(Listen(address="127.0.0.2", port=kept.udp.port), [kept], before=before)
    try:
        assert listeners.indices == (1,)
        assert listeners.addresses == tuple(before)
    finally:
        closing(listeners)


async def test_associations_keep_their_socket_when_another_listener_goes_comes_or_changes_its_place():
    # One process with three sockets hands over to one with two of them and a new one, in another order.
    texts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    first = await listen(Listen(address=texts[0], port=0, also=tuple(f"{host}:0" for host in texts[1:])))
    ports = [udp.port for udp in first.sockets]
    devices: list[Device] = []
    async with serving(sockets=first.sockets) as served:
        for host, port in zip(texts, ports, strict=True):
            devices.append(Device(port, host=host, identity=b"meter-%d" % (1 + len(devices))))
            await devices[-1].connect()
            assert devices[-1].connected
        served.nursery.cancel_scope.cancel()
    blobs = list(served.engine.freeze_all())
    closing(first)
    config = Listen(address="127.0.0.9", port=0, also=(f"{texts[2]}:{ports[2]}", f"{texts[0]}:{ports[0]}"))
    second = await listen(config, before=first.addresses)
    try:
        assert second.indices == (0, 2, 3)
        async with serving(sockets=second.sockets, indices=second.indices) as served:
            refused = []
            for blob in blobs:
                try:
                    served.engine.restore(blob, unsealed=True)
                except SnapshotError as error:
                    refused.append(str(error))
            (reason,) = refused
            assert reason.endswith("it talked to socket number 1, and there are 3, without that one")
            for device in (devices[0], devices[2]):
                with trio.fail_after(PATIENCE):
                    await device.send(b"still here")
                    assert await device.receive() == b"still here"
            assert sorted(one.local for one in served.observer.live) == [
                f"{texts[0]}:{ports[0]}",
                f"{texts[2]}:{ports[2]}",
            ]
    finally:
        closing(second)
        for device in devices:
            device.socket.close()


async def test_the_database_knows_which_listener_had_which_index(tmp_path):
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    state = State(store="sqlite", file=directory / "a.db", key_file=tmp_path / "key")

    def succession():
        return Succession(state, keys=(bytes(32),), supervision=Supervision(), log=structlog.get_logger())

    class Nothing:
        sockets = ()
        checkpoint_due = False
        on_checkpoint_due = None

        def checkpoint(self, *, limit=None):
            return Checkpoint(saved=[], removed=[])

        def confirm(self, checkpoint):
            pass

    with contextlib.closing(succession()) as first:
        assert first.listeners == ()
        at = first.clock()
        engine: Any = Nothing()
        first.restore(engine)
        first.keep(engine, lambda *_, **__: None)
        first.prepare(Listeners(sockets=(), bound_here=(), addresses=(A, B, C)))
        assert await first.flush(5)
    with contextlib.closing(succession()) as second:
        assert second.listeners == (A, B, C)
        assert second.clock() >= at


async def test_a_database_of_a_version_that_did_not_know_the_listeners_keeps_its_clock(tmp_path):
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    state = State(store="sqlite", file=directory / "a.db", key_file=tmp_path / "key")
    with AssociationFile(directory / "a.db") as file:
        file.apply([], anchor=LastingClock(ahead=1e6).anchor())
    with contextlib.closing(
        Succession(state, keys=(bytes(32),), supervision=Supervision(), log=structlog.get_logger())
    ) as one:
        assert one.listeners == ()
        assert one.clock.ahead > 1e5
