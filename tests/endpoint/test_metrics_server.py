"""Figures and health over HTTP: what is answered, what is bounded, and that nothing there harms the service."""

import json
import socket

import pytest
import trio
import trio.testing
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from endpoint.metrics import server as module
from endpoint.metrics.collector import make_registry
from endpoint.metrics.server import MAX_AGE, MAX_CONNECTIONS, MAX_RECEIVED, MetricsError, MetricsServer
from endpoint.tables.metrics import Metrics

GET = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Bench:
    """A server with figures that a test sets."""

    def __init__(self, **told):
        self.figures = {"associations": 3}
        self.reasons: dict[str, str] = {}
        self.troubles: list[tuple[str, dict[str, object]]] = []
        self.hang = False
        self.server = MetricsServer(
            Metrics(port=0, **told),
            registry=lambda: make_registry(self.statistics, version="1"),
            ready=self.ready,
            trouble=lambda what, **facts: self.troubles.append((what, facts)),
        )

    def statistics(self):
        if self.figures is None:
            raise RuntimeError("no figures")
        return self.figures

    async def ready(self):
        if self.hang:
            await trio.sleep_forever()
        return self.reasons

    async def connect(self):
        return await trio.open_tcp_stream(self.server.address, self.server.port)

    async def exchanged(self, data):
        """Everything that comes back until the end of the connection."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await rest(stream)

    async def get(self, path, request=GET):
        """Status, headers and body."""
        head, _, body = (await self.exchanged(request % path)).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


async def rest(stream):
    answer = b""
    with trio.fail_after(300):
        try:
            async for more in stream:
                answer += more
        except trio.BrokenResourceError:
            pass
    return answer


@pytest.fixture
async def bench(nursery):
    one = Bench()
    await nursery.start(one.server.run)
    yield one
    one.server.close()


async def test_metrics_are_prometheus_text(bench):
    status, headers, body = await bench.get(b"/metrics")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert int(headers["content-length"]) == len(body)
    got = {family.name: family for family in parse(body.decode())}
    assert got["dtls_associations"].samples[0].value == 3


async def test_metrics_are_openmetrics_where_that_is_asked_for(bench):
    def asking(accept):
        return GET.replace(b"Host: x", b"Host: x\r\nAccept: " + accept)

    wanted = b"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3"
    status, headers, body = await bench.get(b"/metrics", asking(wanted))
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    got = {family.name: family for family in parse_openmetrics(body.decode())}
    assert got["dtls_associations"].samples[0].value == 3
    # A version that is none is nobody's fault here.
    status, headers, _ = await bench.get(b"/metrics", asking(b"application/openmetrics-text;version=x.y"))
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert bench.troubles == []


async def test_health_is_that_the_loop_turns(bench):
    assert (await bench.get(b"/healthz"))[::2] == (200, b'{"status": "alive"}\n')


async def test_readiness_says_why_not(bench):
    status, headers, body = await bench.get(b"/readyz")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {"status": "ready", "reasons": {}}
    bench.reasons = {"key_store": "no route\nto host"}
    status, _, body = await bench.get(b"/readyz")
    assert status == 503
    assert json.loads(body) == {"status": "not ready", "reasons": bench.reasons}


async def test_a_question_that_takes_too_long_is_answered_with_no(bench, autojump_clock):
    bench.hang = True
    status, _, body = await bench.get(b"/readyz")
    assert (status, json.loads(body)["reasons"]) == (503, {"service": "does not say within 5 s"})


async def test_a_readiness_that_takes_long_holds_up_neither_health_nor_metrics(
    bench, autojump_clock, nursery
):
    bench.hang = True
    for _ in range(3):
        nursery.start_soon(bench.get, b"/readyz")
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    assert (await bench.get(b"/healthz"))[0] == 200
    assert (await bench.get(b"/metrics"))[0] == 200
    assert trio.current_time() == began


async def test_who_asks_for_readiness_while_others_do_is_answered_in_time_too(bench, autojump_clock, nursery):
    bench.hang = True
    nursery.start_soon(bench.get, b"/readyz")
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    assert (await bench.get(b"/readyz"))[0] == 503
    assert trio.current_time() - began <= module.REQUEST_TIME


async def test_head_has_the_length_and_no_body(bench):
    status, headers, body = await bench.get(b"/healthz", GET.replace(b"GET", b"HEAD"))
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"NONSENSE"])
async def test_other_methods_are_not_allowed(bench, method):
    status, headers, _ = await bench.get(b"/metrics", GET.replace(b"GET", method))
    assert (status, headers["allow"]) == (405, "get, head")


@pytest.mark.parametrize(
    "path", [b"/", b"/metrics/", b"/../etc/passwd", b"/%2e%2e/x", b"//metrics", b"/favicon.ico"]
)
async def test_other_paths_are_not_there(bench, path):
    assert (await bench.get(path))[0] == 404


async def test_a_query_changes_nothing(bench):
    assert (await bench.get(b"/metrics?name[]=x"))[0] == 200


async def test_requests_are_counted_by_status(bench):
    await bench.get(b"/healthz")
    await bench.get(b"/nowhere")
    await bench.get(b"/nowhere")
    assert bench.server.statistics() == {
        "requests": {"200": 1, "404": 2},
        "connections_refused": 0,
        "failures": 0,
    }


async def test_a_connection_takes_several_requests(bench):
    async with await bench.connect() as stream:
        for _ in range(3):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b"alive" not in answer:
                answer += await stream.receive_some()


# --- what it withstands -----------------------------------------------------------------------------

JUNK = [
    b"\r\n\r\n",
    b"junk\r\n\r\n",
    b"\x16\x03\x01\x00\xa5" + bytes(160),
    b"GET /metrics HTTP/x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)),
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: !\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%b\r\n"
    % b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_junk_ends_at_most_its_own_connection(bench, junk, autojump_clock):
    answer = await bench.exchanged(junk)
    assert b" 200 " not in answer[:15]
    assert (await bench.get(b"/healthz"))[0] == 200
    await trio.testing.wait_all_tasks_blocked()
    assert bench.server._connections == 0


async def test_figures_that_fail_are_an_answer_and_a_line_in_the_log_once(bench):
    bench.figures = None
    for _ in range(3):
        assert (await bench.get(b"/metrics"))[0] == 500
    assert bench.troubles == [("metrics failed", {"reason": "RuntimeError('no figures')"})]
    assert bench.server.statistics()["failures"] == 3
    assert (await bench.get(b"/healthz"))[0] == 200


async def test_no_more_than_so_many_connections_are_served_at_once(bench):
    async with trio.open_nursery() as nursery:
        streams = [await bench.connect() for _ in range(MAX_CONNECTIONS)]
        while bench.server._connections < MAX_CONNECTIONS:
            await trio.lowlevel.checkpoint()
        assert await bench.exchanged(GET % b"/healthz") == b""
        assert bench.server.statistics()["connections_refused"] == 1
        await streams.pop().aclose()
        while bench.server._connections == MAX_CONNECTIONS:
            await trio.lowlevel.checkpoint()
        assert (await bench.get(b"/healthz"))[0] == 200
        for stream in streams:
            nursery.start_soon(stream.aclose)


async def test_who_says_nothing_or_half_a_request_is_cut_off_in_time(bench, autojump_clock):
    for start in (b"", b"GET /metrics HTT"):
        async with await bench.connect() as stream:
            await stream.send_all(start or b"\r\n")
            began = trio.current_time()
            assert b"200" not in await rest(stream)
            assert trio.current_time() - began <= module.IDLE_TIME


async def test_a_connection_ends_after_a_while_however_busy(bench, autojump_clock):
    async with await bench.connect() as stream:
        began = trio.current_time()
        try:
            with trio.fail_after(MAX_AGE * 2):
                while True:
                    await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    if not await stream.receive_some():
                        break
                    await trio.sleep(5)
        except trio.BrokenResourceError:
            pass
        assert trio.current_time() - began <= MAX_AGE + 5


async def test_a_connection_may_send_only_so_much(bench):
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 2_000)
    async with await bench.connect() as stream:
        answered = 0
        try:
            for _ in range(MAX_RECEIVED // len(request) + 10):
                await stream.send_all(request)
                answer = await stream.receive_some()
                if not answer:
                    break
                answered += answer.count(b"alive")
        except trio.BrokenResourceError:
            pass
    assert answered <= MAX_RECEIVED // len(request) + 1


async def test_who_closes_its_side_gets_the_answer_and_its_place_is_free_at_once(bench):
    async with await bench.connect() as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        assert b"alive" in await rest(stream)
    with trio.fail_after(module.IDLE_TIME / 2):
        while bench.server._connections:
            await trio.lowlevel.checkpoint()


async def test_a_body_is_not_taken_in(bench, autojump_clock):
    async with await bench.connect() as stream:
        await stream.send_all(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        try:
            while True:
                await stream.send_all(bytes(65_536))
        except trio.BrokenResourceError:
            pass
    assert (await bench.get(b"/healthz"))[0] == 200


async def test_a_reader_that_does_not_read_holds_up_no_stop():
    bench = Bench()
    bench.figures["refused"] = {"x" * 1000 + str(number): 1 for number in range(100)}  # type: ignore[assignment]
    rescued = False

    async def rescue(stream):
        nonlocal rescued
        await trio.sleep(60)  # only where it is held up
        rescued = True
        stream.socket.close()

    async with trio.open_nursery() as outside:
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.server.run)
            stream = await bench.connect()
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            # Until both kernel buffers are full, and the server waits in a send that cannot be cancelled.
            for _ in range(200):
                await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert bench.server._connections == 1
            outside.start_soon(rescue, stream)
            nursery.cancel_scope.cancel()
        outside.cancel_scope.cancel()
    stream.socket.close()
    bench.server.close()
    assert not rescued


# --- its port ---------------------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_named_with_its_key(bench):
    with pytest.raises(MetricsError) as caught:
        module._bound(Metrics(port=bench.server.port))
    assert str(caught.value) == (
        f"metrics.port: TCP 127.0.0.1:{bench.server.port} is already in use; remedy: another port, or stop what uses it"
    )


async def test_an_address_that_is_not_ours_is_named_with_its_key():
    with pytest.raises(MetricsError, match=r"metrics.address: 192.0.2.1:0: this host has no such address"):
        Bench(address="192.0.2.1")


async def test_ipv6_is_served_too(nursery):
    one = Bench(address="::1")
    await nursery.start(one.server.run)
    assert (await one.get(b"/healthz"))[0] == 200
    one.server.close()
