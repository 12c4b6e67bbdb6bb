"""A server that answers as it is told to, and the Segmind provider in front of it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from pydantic import SecretStr

from prefect_imagegen.providers.segmind.provider import Endpoints, SegmindProvider
from tests.support.builders.images import png
from tests.support.builders.requests import request_for

KEY = "SG_0123456789abcdef"
REQUEST = request_for()


PNG = png()


class Script:
    """A server on loopback: `answers` by path, each a list used up from the front (the last one stays)."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.requests: list[web.Request] = []
        self.url = ""

    def on(self, path: str, *answers: Any) -> None:
        self.answers[path] = list(answers)

    def calls(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        await request.read()
        queue = self.answers.get(request.path, [(404, {"error": "not found"})])
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if callable(answer):
            return await answer(request)
        status, body, *headers = answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=data, headers=headers[0] if headers else {})


@asynccontextmanager
async def server(port: int = 0) -> AsyncIterator[Script]:
    script = Script()
    runner = web.ServerRunner(web.Server(script.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield script
    finally:
        await runner.cleanup()


@asynccontextmanager
async def provider(script: Script, version: str = "v2", deadline: float = 5.0) -> AsyncIterator[SegmindProvider]:
    endpoints = Endpoints.of(script.url, None)
    client = SegmindProvider(endpoints, SecretStr(KEY), api_version=version, deadline=deadline)
    try:
        yield client
    finally:
        await client.aclose()


SUBMIT = "/v2/flux-2-klein-9b"
STATUS, RESULT = "/v2/requests/r1/status", "/v2/requests/r1"
HISTORY = "/inference-request/request-history"


async def delivered(script: Script, version: str = "v2") -> bytes:
    async with provider(script, version) as client:
        return (await client.collect(await client.submit(REQUEST, []))).data
