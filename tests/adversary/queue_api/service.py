"""A queue API as fal.ai documents it, answering honestly, and the truth about every call.

POST /{model} -> request_id, status_url, response_url; GET /{app}/requests/{id}/status -> IN_QUEUE, IN_PROGRESS,
COMPLETED (also for a job that failed); GET /{app}/requests/{id} -> the images, or 422 with the reason in `detail`.
The app is the model's first two parts. Source: https://docs.fal.ai/model-endpoints/queue
"""

import json
from collections.abc import Callable
from typing import Any

from ..world.api import FILE_LIVES_S, Call, Job, Service
from ..world.images import png
from ..world.shapes import text_of
from ..world.wire import Reply, Request

API = "queue.example.com"
FILES = "files.example.net"
MODEL = "some-lab/flux/dev"


class QueueService(Service):
    """Answers requests; nothing but a job's own id leads to it."""

    api = API
    own_hosts = frozenset({API})

    def kind_at(self, method: str, host: str) -> str:
        """The kind of endpoint that a new connection to a host is for."""
        if host == API:
            return "submit" if method == "POST" else "status"
        return "download" if host == FILES else "other"

    def polled_id(self, request: Request) -> str:
        """The id of the job that a poll asks for."""
        return request.path.removesuffix("/status").rsplit("/", 1)[1]

    def url(self, path: str) -> str:
        """The address of an output."""
        return f"https://{FILES}/{path}"

    def _route(self, request: Request) -> tuple[str, Callable[[Request], Reply]]:
        path, host = request.path, request.host
        if host == FILES:
            return "download", self._download
        if host != API:
            return "other", lambda _: _json({"detail": "Not Found"}, 404)
        if request.key not in self._accounts:
            return "other", lambda _: _json({"detail": "Authentication is required"}, 401)
        if request.method == "POST":
            return "submit", self._submit
        if "/requests/" in path:
            return ("status", self._poll) if path.endswith("/status") else ("result", self._result)
        return "other", lambda _: _json({"detail": "Not Found"}, 404)

    def _submit(self, request: Request) -> Reply:
        body, account = json.loads(request.body), self.account_of(request) or ""
        plan = self._plan(request)
        call = Call(self._run, self._true.now, account, text_of(body.get("prompt")), None)
        self.calls.append(call)
        if not plan.accepts:
            return _json({"detail": "not taken"}, 503)
        call.job = job = self._take(body, account, request.path[1:], plan)
        url = f"https://{API}/{_app(job)}/requests/{job.request_id}"
        urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        return _json({"request_id": job.request_id, "status": "IN_QUEUE", "queue_position": 0, **urls})

    def _poll(self, request: Request) -> Reply:
        job, now = self._known(request), self._true.now
        self.polled.append((self.polled_id(request), now))
        if job is None:
            return _json({"detail": "Request not found"}, 404)
        state = {"QUEUED": "IN_QUEUE", "PROCESSING": "IN_PROGRESS"}.get(job.state(now), "COMPLETED")
        extra = {"queue_position": 0} if state == "IN_QUEUE" else {"metrics": {"inference_time": 1.5}, "logs": None}
        return _json({"status": state, "request_id": job.request_id, **extra})

    def _result(self, request: Request) -> Reply:
        job, now = self._known(request), self._true.now
        if job is None:
            return _json({"detail": "Request not found"}, 404)
        if now < job.ready_at:
            return _json({"detail": "Request is still in progress"}, 400)
        if job.fails_with:
            return _json({"detail": [{"loc": ["body"], "msg": job.fails_with, "type": "generation"}]}, 422)
        images = [{"url": self.url(path), "content_type": "image/png"} for path in job.outputs]
        return _json({"images": images, "seed": job.body.get("seed"), "prompt": job.prompt})

    def _known(self, request: Request) -> Job | None:
        """The job of a poll, where the key is that of its account and it is not forgotten yet."""
        job = self.jobs.get(self.polled_id(request))
        is_own = job is not None and job.account == self.account_of(request)
        is_at = job is not None and request.path.startswith(f"/{_app(job)}/requests/")
        is_young = job is not None and self._true.now < job.ready_at + FILE_LIVES_S
        return job if is_own and is_at and is_young else None

    def _download(self, request: Request) -> Reply:
        now = self._true.now
        for job in self.jobs.values():
            if request.path[1:] in job.outputs and job.ready_at <= now < job.ready_at + FILE_LIVES_S:
                job.downloaded = True
                return Reply(200, png(request.path[1:]), {"Content-Type": "image/png"})
        return Reply(404, b"<html>404 Not Found</html>", {"Content-Type": "text/html"})


def _app(job: Job) -> str:
    return "/".join(job.model.split("/")[:2])


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())
