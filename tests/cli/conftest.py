"""A small S3 service that takes no notice of conditions: what older services do with `If-None-Match`."""

import asyncio
import threading
from collections.abc import Iterator
from xml.sax.saxutils import escape

import pytest
from aiohttp import web

_LIST = "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>{items}</ListBucketResult>"
_ITEM = "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"


class BlindS3:
    """Objects of one bucket `images`, path style; signatures are not checked."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        """Put, get, head, list and delete."""
        bucket, _, key = request.path.lstrip("/").partition("/")
        if bucket != "images":
            return web.Response(status=404)
        if request.method == "PUT":
            self.objects[key] = await request.read()
            return web.Response(headers={"ETag": '"0"'})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        if key:
            data = self.objects.get(key)
            return web.Response(status=404) if data is None else web.Response(body=data, headers={"ETag": '"0"'})
        prefix = request.query.get("prefix", "")
        names = sorted(name for name in self.objects if name.startswith(prefix))
        items = "".join(_ITEM.format(key=escape(name), size=len(self.objects[name])) for name in names)
        return web.Response(text=_LIST.format(count=len(names), items=items), content_type="application/xml")


@pytest.fixture
def blind_s3() -> Iterator[BlindS3]:
    """The service on a free port, in a thread."""
    service, ready, loop = BlindS3(), threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", service.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(30)
        yield service
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
