"""A server of the Images dialect, as vLLM-Omni and SGLang speak it, that misbehaves as it is told."""

import asyncio
import base64
import io
import json
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from aiohttp import web
from PIL import Image

_FIELDS = Path(__file__).parents[1] / "data" / "openai_images"


class FakeImagesEngine:
    """A server of the Images dialect on a real socket, as `vllm_omni` or `sglang`, that misbehaves as told.

    It works on one call at a time, `seconds` each, and holds every body against the fields of the real engine; what
    does not fit is in `complaints`. `faults` are struck by calls in turn: `500`, `503`, `429`, `drop`, `hang`,
    `wrong_size`, `truncated`, `url`, `no_image`; None works. Those of `SPELLINGS` answer with the whole picture, as
    other servers write it, and `other_format` with one in a format that nobody asked for.
    """

    SPELLINGS: ClassVar[dict[str, Callable[[str], dict[str, str]]]] = {
        "data_url": lambda text: {"b64_json": f"data:image/png;base64,{text}"},
        "data_url_with_more": lambda text: {"b64_json": f" DATA:image/png;charset=utf-8;Base64,\n{text}\n"},
        "url_of_data": lambda text: {"url": f"data:image/png;base64,{text}"},
        "lines": lambda text: {"b64_json": "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))},
        "url_safe": lambda text: {"b64_json": text.translate(str.maketrans("+/", "-_"))},
        "unpadded": lambda text: {"b64_json": text.rstrip("=")},
    }

    def __init__(self, kind: str, *, seconds: float = 0.0, faults: Sequence[str | None] = ()) -> None:
        self.kind = kind
        self.seconds = seconds
        self.faults = list(faults)
        self.healthy = True
        self.key: str | None = None
        """The only key that it takes, where it asks for one."""
        self.refuses: int | None = None
        """The status with which it refuses every call."""
        self.checkpoint: str | None = None
        """What /v1/models names; without it that route is not there."""
        self.bodies: list[dict[str, Any]] = []
        self.references: list[int] = []
        self.complaints: list[str] = []
        self.keys: list[str | None] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""
        self._fields = json.loads((_FIELDS / f"{kind}.json").read_text())
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def endpoint(self) -> str:
        """As --endpoint takes it."""
        return f"openai+{self.url}"

    def start(self) -> "FakeImagesEngine":
        """Serve on a free port."""
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def stop(self) -> None:
        """Cut all connections, as a process that dies does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._one = asyncio.Lock()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/images/generations", self._generations)
        app.router.add_post("/v1/images/edits", self._edits)
        runner = web.AppRunner(app, shutdown_timeout=0)

        async def begin() -> None:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()

        self._loop.run_until_complete(begin())
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _health(self, _: web.Request) -> web.Response:
        words = {"vllm_omni": ("healthy", "unhealthy"), "sglang": ("ok", "unhealthy")}[self.kind]
        return web.json_response({"status": words[not self.healthy]}, status=200 if self.healthy else 503)

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.refuses is not None:
            return web.json_response({"detail": "refused"}, status=self.refuses)
        return None

    async def _models(self, request: web.Request) -> web.Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.checkpoint is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"object": "list", "data": [{"id": self.checkpoint, "object": "model"}]})

    async def _generations(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return web.json_response({"detail": "Unsupported media type"}, status=415)
        return await self._answer(request, await request.json(), "generations", 0)

    async def _edits(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        body = {name: value for name, value in form.items() if isinstance(value, str)}
        return await self._answer(request, body, "edits", len(form.getall("image", [])))

    async def _answer(self, request: web.Request, body: dict[str, Any], call: str, images: int) -> web.StreamResponse:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        self.references.append(images)
        wrong = list(misfits(self._fields[call], body))
        self.complaints += wrong
        if wrong or (call == "edits" and not images):
            return web.json_response({"detail": wrong}, status=422)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._draw(request, body)
        finally:
            self.in_flight -= 1

    async def _draw(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        fault = self.faults.pop(0) if self.faults else None
        if fault in ("500", "503", "429"):
            return web.json_response({"error": {"message": "injected", "code": int(fault)}}, status=int(fault))
        if fault == "hang":
            await asyncio.sleep(3600)
        async with self._one:
            await asyncio.sleep(self.seconds)
        width, height = map(int, body["size"].split("x"))
        if fault == "wrong_size":
            width += 16
        chance = random.Random(f"{body['prompt']} {body['seed']}")
        image = Image.frombytes("RGB", (8, 8), chance.randbytes(192)).resize((width, height), Image.Resampling.NEAREST)
        sink = io.BytesIO()
        asked = body["output_format"]
        other = "png" if asked == "jpeg" else "jpeg"
        image.save(sink, (other if fault == "other_format" else asked).upper(), compress_level=1)
        text = base64.b64encode(sink.getvalue()).decode()
        item = {"b64_json": text, "url": None, "revised_prompt": None}
        if fault in self.SPELLINGS:
            # One byte behind the end of a picture is nothing, and makes sure that there is something to pad.
            odd = base64.b64encode(sink.getvalue() + bytes(1 + -len(sink.getvalue()) % 3)).decode()
            item = self.SPELLINGS[fault](odd)
        if fault == "truncated":
            item["b64_json"] = text[: len(text) // 2 + 1]
        if fault == "url":
            item = {"b64_json": None, "url": "/v1/images/1/content", "revised_prompt": None}
        answer = json.dumps({"created": 1, "data": [] if fault == "no_image" else [item]}).encode()
        if fault == "drop":
            response = web.StreamResponse(headers={"content-length": str(len(answer))})
            await response.prepare(request)
            await response.write(answer[: len(answer) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(body=answer, content_type="application/json")


def misfits(fields: Mapping[str, Mapping[str, Any]], body: Mapping[str, Any]) -> Iterator[str]:
    """What of a body a real engine would not know or refuse; texts of a form count as what they spell."""
    for name, value in body.items():
        spec = fields.get(name)
        if spec is None:
            yield f"{name} is unknown"
            continue
        kind = spec["type"]
        try:
            number = float(value) if "float" in kind else int(value) if re.search(r"\bint\b", kind) else None
        except (TypeError, ValueError):
            yield f"{name} is {value!r}, not {kind}"
            continue
        if number is None and ("bool" in kind or not isinstance(value, str)):
            yield f"{name} is {value!r}, not {kind}"
        elif number is not None and not spec.get("ge", number) <= number <= spec.get("le", number):
            yield f"{name} is {value!r}, outside of {spec}"
    missing = [name for name, spec in fields.items() if spec.get("default", "...") == "..." and name not in body]
    yield from (f"{name} is missing" for name in missing)
