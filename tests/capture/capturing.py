"""Captures of a running engine, asked for as the admin socket asks, and read as ``capture decode`` reads."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from trio.testing import wait_all_tasks_blocked

from endpoint.capture.control import Captures
from endpoint.capture.decoding import Source
from endpoint.capture.reading import read_recording
from endpoint.logs import make_log
from endpoint.observer import Observers
from sansdtls.recorded import ContentType
from tests.endpoint.devices import Recorder, serving


class Capturing:
    """An engine, its captures and their log."""

    def __init__(self, served, captures, log):
        self.served = served
        self.captures = captures
        self.observer = served.observer
        self._log = log
        self._started = []

    def device(self, **options):
        return self.served.device(**options)

    async def ask(self, command, **request):
        return await self.captures.commands()[f"capture_{command}"]({"asked_by": 1000, **request})

    async def start(self, *identities, **more):
        """Begin to capture; the pcapng file, or the key log where there is no other."""
        answer = await self.ask("start", identities=[identity.hex() for identity in identities], **more)
        self.files = dict(answer["files"])
        self.live = answer["live"]
        self._started.append(self.captures._captures[answer["number"]])
        return Captured(next(iter(self.files.values())))

    async def stop(self):
        """End all captures, and wait for their files; the facts of each."""
        answer = await self.ask("stop")
        await self.over()
        return answer["captures"]

    async def over(self):
        """Wait until all have ended. A clock that jumps does not wait for threads, so they are not given a time."""
        for capture in self._started:
            await capture.wait_over()
        await wait_all_tasks_blocked()

    async def listed(self):
        return (await self.ask("list"))["captures"]

    @property
    def log(self):
        return self._log.getvalue().decode()

    def facts(self, event):
        lines = [json.loads(line) for line in self.log.splitlines()]
        return [line for line in lines if line["event"] == event]

    @property
    def armed(self):
        """Whether anything listens, or secrets are made into events."""
        engine = self.served.engine
        return engine.tap is not None or engine._server._config.log_secrets


class Captured:
    """A file that a capture has made."""

    def __init__(self, name):
        self.path = Path(name)

    @property
    def datagrams(self):
        """(source, destination, payload)"""
        items = [item for item in read_recording(self.path) if not isinstance(item, dict)]
        return [(str(packet.source), str(packet.destination), packet.payload) for _, packet in items]

    @property
    def secrets(self):
        """Of the file itself, by client random."""
        found: dict[bytes, bytes] = {}
        for item in read_recording(self.path):
            if isinstance(item, dict):
                found |= item
        return found

    def source(self):
        return Source(self.path, secrets={}, keys={}, port=None)

    @property
    def seen(self):
        return [seen for _, _, seen in self.source().datagrams()]

    @property
    def data(self):
        """What can be read: (from the device?, content)."""
        return [
            (datagram.from_client, record.content)
            for datagram in self.seen
            for record in datagram.records
            if record.content_type == ContentType.APPLICATION_DATA and record.content is not None
        ]


@contextlib.asynccontextmanager
async def capturing(directory, **options):
    """An engine that echoes on loopback, and captures into ``directory``."""
    log = io.BytesIO()
    captures = Captures(directory, log=make_log(log))
    seen = Recorder(echo=True)
    async with serving(observer=Observers(seen, captures.recorder, data=seen), **options) as served:
        served.observer = seen
        captures.attach(served.engine)
        await served.nursery.start(captures.run)
        yield Capturing(served, captures, log)
