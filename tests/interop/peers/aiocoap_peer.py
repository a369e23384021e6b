"""An aiocoap peer over tinydtls: (client|server) port identity key-in-hex.

The client sends GET / and prints the answer; the server answers GET / on port + 1, where aiocoap puts
coaps.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aiocoap
from aiocoap import resource


def say(line: str) -> None:
    print(line, flush=True)


async def client(port: int, identity: str, key: str) -> None:
    context = await aiocoap.Context.create_client_context(transports=["tinydtls"])
    uri = f"coaps://127.0.0.1:{port}/"
    context.client_credentials.load_from_dict(
        {f"{uri}*": {"dtls": {"psk": {"hex": key}, "client-identity": {"ascii": identity}}}}
    )
    try:
        answer = await context.request(aiocoap.Message(code=aiocoap.GET, uri=uri)).response
        say(f"received {answer.payload.decode()}")
    finally:
        await context.shutdown()


async def server(port: int, identity: str, key: str) -> None:
    class Greeting(resource.Resource):
        async def render_get(self, request: Any) -> Any:
            say("received GET")
            return aiocoap.Message(payload=b"heard GET")

    site = resource.Site()
    site.add_resource([], Greeting())
    context = await aiocoap.Context.create_server_context(
        site, bind=("127.0.0.1", port), transports=["tinydtls_server"]
    )
    context.server_credentials.load_from_dict(
        {":client": {"dtls": {"psk": {"hex": key}, "client-identity": {"ascii": identity}}}}
    )
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    role, port_text, identity, key = sys.argv[1:]
    asyncio.run({"client": client, "server": server}[role](int(port_text), identity, key))
