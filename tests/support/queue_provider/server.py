"""A queue API on a socket, in the shape that fal.ai documents, which misbehaves on demand and knows what it billed.

POST /{model} -> request_id, status_url, response_url; GET .../requests/{id}/status -> IN_QUEUE, IN_PROGRESS, COMPLETED;
GET .../requests/{id} -> the images. Source: https://docs.fal.ai/model-endpoints/queue
"""

import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from PIL import Image

Answer = tuple[int, dict[str, Any]] | bytes | None
"""Status and JSON, the bytes of a picture, or None for a connection that is closed without an answer."""


@dataclass(slots=True)
class QueueJob:
    """Work that the API took on, and billed."""

    request_id: str
    key: str
    model: str
    body: dict[str, Any]
    idempotency_key: str | None
    polls: int = 0


@dataclass(slots=True)
class QueueServer:
    """The API, as a context manager.

    `on_post`: faults of the next POSTs, one each: `unanswered` and `server_error` take the work and do not say so,
    `away` takes nothing (503), `refused` is a 400, `no_id` an answer without a request_id. `lost`, `fails` and `junk`
    say what becomes of results while they are set. `images`: how many a result has. `honours_keys`: whether two POSTs
    with one idempotency key are one call.
    """

    on_post: list[str] = field(default_factory=list)
    lost: bool = False
    fails: bool = False
    junk: bool = False
    images: int = 1
    honours_keys: bool = False
    posts: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all POSTs."""
    calls: list[str] = field(default_factory=list)
    """Method and path of every call, in order."""
    downloads_with_key: int = 0
    jobs: dict[str, QueueJob] = field(default_factory=dict)
    url: str = ""
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def submit(self, model: str, key: str, body: dict[str, Any], idempotency_key: str | None) -> Answer:
        """Take a POST on, or not."""
        self.posts.append(body)
        fault = self.on_post.pop(0) if self.on_post else ""
        if fault in ("refused", "away"):
            return (400, {"detail": "no such size"}) if fault == "refused" else (503, {"detail": "try again"})
        known = [job for job in self.jobs.values() if job.idempotency_key == idempotency_key]
        if not (self.honours_keys and idempotency_key and known):
            request_id = f"00000000-0000-4000-8000-{len(self.jobs):012}"
            self.jobs[request_id] = QueueJob(request_id, key, model, body, idempotency_key)
            known = [self.jobs[request_id]]
        url = f"{self.url}/{_app(model)}/requests/{known[0].request_id}"
        accepted = {"request_id": known[0].request_id, "response_url": url, "status_url": f"{url}/status"}
        answers: dict[str, Answer] = {"unanswered": None, "server_error": (503, {"detail": "busy"}), "no_id": (200, {})}
        return answers.get(fault, (200, accepted))

    def status(self, job: QueueJob) -> Answer:
        """The state of a job: each poll brings it one on."""
        job.polls += 1
        state = ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")[min(job.polls, 3) - 1] if job.polls < 3 else "COMPLETED"
        return 200, {"status": state, "response_url": f"{self.url}/{_app(job.model)}/requests/{job.request_id}"}

    def result(self, job: QueueJob) -> Answer:
        """The result of a job."""
        if self.lost:
            return 404, {"detail": "Request not found"}
        if self.fails:
            return 422, {"detail": "the safety checker rejected the content: nsfw content"}
        names = [f"{self.url}/files/{job.request_id}-{number}.png" for number in range(self.images)]
        return 200, {"images": [{"url": name, "content_type": "image/png"} for name in names], "seed": 7}


def _app(model: str) -> str:
    return "/".join(model.split("/")[:2])


class _Handler(BaseHTTPRequestHandler):
    api: QueueServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)))
        self._answer(lambda key: self.api.submit(self.path[1:], key, body, self.headers.get("idempotency-key")))

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        if parts[0] == "files":
            self.api.downloads_with_key += "authorization" in self.headers
            self.api.calls.append(f"GET {self.path}")
            self._send(b"junk" if self.api.junk else _picture())
            return
        ending = parts[-1] == "status"
        request_id = parts[-2] if ending else parts[-1]

        def answer(key: str) -> Answer:
            job = self.api.jobs.get(request_id)
            if job is None or job.key != key or parts[: -3 if ending else -2] != _app(job.model).split("/"):
                return 404, {"detail": "Request not found"}
            return self.api.status(job) if ending else self.api.result(job)

        self._answer(answer)

    def _answer(self, make: Callable[[str], Answer]) -> None:
        self.api.calls.append(f"{self.command} {self.path}")
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        self._send(make(key) if scheme == "Key" and key else (401, {"detail": "no key"}))

    def _send(self, answer: Answer) -> None:
        if answer is None:
            self.close_connection = True
            return
        status, data, media = (
            (200, answer, "image/png")
            if isinstance(answer, bytes)
            else (answer[0], json.dumps(answer[1]).encode(), "application/json")
        )
        self.send_response(status)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Say nothing."""


def _picture() -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(sink, "PNG")
    return sink.getvalue()
