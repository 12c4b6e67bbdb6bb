"""The service as its documentation has it, and the truth about every call.

It answers honestly, with the traits of its world; `troubles` spoils the answers. It never forgets what it took on,
for whom, and what it billed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import Any
from urllib.parse import unquote

from .images import png
from .loop import Time
from .shapes import history_row, result_body, text_of
from .wire import Reply, Request

API = "api.segmind.com"
HISTORY = "api.spotprod.segmind.com"
ASSETS = "workflows-api.segmind.com"
CDN = "images.segmind.com"
OTHER_CDN = "cdn-eu.segmind.net"
LIST_PATH = "/inference-request/request-history"
RECORD_LIVES_S = 3600.0
FILE_LIVES_S = 7 * 86400.0


@dataclass(slots=True)
class Traits:
    """What holds for a world from beginning to end, in good times too. `skew`: seconds the API's clock is off."""

    skew: float = 0.0
    date: str = "right"
    """The Date header: `right` (by the API's own clock), `absent` or `garbage`."""
    list_wrap: str = "data"
    detail_wrap: str = "data"
    body_form: str = "repr"
    created_name: str = "model_created"
    created_form: str = "iso"
    result_shape: str = "full"
    cdn_redirect: int = 0
    outputs: int = 1
    open_records: bool = False
    """Whether any key can poll any job; the history shows own ones only."""
    costs: bool = True
    """Whether answers name what a call cost."""


@dataclass(slots=True)
class Job:
    """Work that the service took on. It is billed when it completes. Times are true ones, in seconds."""

    request_id: str
    account: str
    model: str
    body: dict[str, Any]
    accepted_at: float
    ready_at: float
    fails_with: str | None
    lag: float
    """The seconds until the history shows the job."""
    partial: dict[str, float] = field(default_factory=dict)
    """Fields of its history row that come so many seconds later still."""
    cost: float = 0.04
    outputs: tuple[str, ...] = ()
    foreign: bool = False
    """Another store's call on the same account."""
    downloaded: bool = False

    @property
    def prompt(self) -> str:
        return text_of(self.body.get("prompt"))

    def state(self, now: float) -> str:
        if now < self.ready_at:
            return "PROCESSING" if now > self.accepted_at + 0.2 else "QUEUED"
        return "FAILED" if self.fails_with else "COMPLETED"


@dataclass(slots=True)
class Call:
    """One paid POST that reached the service, and how it was answered. `run` is the number of the run that sent it."""

    run: int
    at: float
    account: str | None
    prompt: str
    job: Job | None
    answer: str = ""
    status: int = 0
    whole: bool = True
    """Whether the answer has the bytes, in the encoding, that it says it has."""
    abandoned_at: float | None = None


@dataclass(slots=True)
class Plan:
    """What the world decided about one POST: whether it is taken on, and the fate of the job."""

    accepts: bool = True
    seconds: float = 1.0
    fails_with: str | None = None
    lag: float = 0.0
    partial: dict[str, float] = field(default_factory=dict)


class Service:
    """Answers requests. `accounts` names the account of each key."""

    api = API
    """The host that takes POSTs."""
    own_hosts = frozenset({API, HISTORY, ASSETS})
    """The hosts that may see a key."""

    def __init__(
        self, true: Time, traits: Traits, accounts: dict[str, str], plan: Callable[[Request], Plan], v1: bool
    ) -> None:
        self.calls: list[Call] = []
        self.jobs: dict[str, Job] = {}
        self.traits = traits
        self._run = 0
        self.polled: list[tuple[str, float]] = []
        self._true = true
        self._accounts = accounts
        self._plan = plan
        self._uploads = 0
        self._v1 = v1

    def kind_of(self, request: Request) -> str:
        """The kind of endpoint that a request is for."""
        return self._route(request)[0]

    def answer(self, request: Request, run: int) -> Reply:
        """The honest answer to a run."""
        self._run = run
        reply = self._route(request)[1](request)
        reply.headers.setdefault("Content-Type", "application/json")
        reply.headers.setdefault("Server", "envoy")
        if self.traits.date == "right":
            reply.headers.setdefault("Date", format_datetime(self._local(self._true.now), usegmt=True))
        elif self.traits.date == "garbage":
            reply.headers.setdefault("Date", "yesterday, or so")
        return reply

    def kind_at(self, method: str, host: str) -> str:
        """The kind of endpoint that a new connection to a host is for."""
        kinds = {API: "status", HISTORY: "history", ASSETS: "upload", CDN: "download", OTHER_CDN: "download"}
        return "submit" if method == "POST" and host == API else kinds.get(host, "other")

    def polled_id(self, request: Request) -> str:
        """The id of the job that a poll asks for."""
        return request.path.split("/")[3]

    def account_of(self, request: Request) -> str | None:
        return self._accounts.get(request.key or "")

    def local(self, seconds: float) -> datetime:
        """The time that the API's clock shows at a true time."""
        return self._local(seconds)

    def _local(self, seconds: float) -> datetime:
        return self._true.moment + timedelta(seconds=seconds - self._true.now + self.traits.skew)

    def _route(self, request: Request) -> tuple[str, Callable[[Request], Reply]]:
        path, host = request.path, request.host
        if host not in (CDN, OTHER_CDN) and request.key not in self._accounts:
            return ("other", lambda _: _json({"error": "Unauthorized. API key is invalid or may have expired"}, 401))
        routes: tuple[tuple[bool, str, Callable[[Request], Reply]], ...] = (
            (host in (CDN, OTHER_CDN), "download", self._download),
            (host == HISTORY and path == LIST_PATH, "history", self._list),
            (host == HISTORY and path.startswith(LIST_PATH + "/"), "detail", self._detail),
            (host == ASSETS and path == "/upload-asset", "upload", self._upload),
            (host == API and path == "/v1/get-user-credits", "balance", _balance),
            (host == API and request.method == "POST" and path.count("/") == 2, "submit", self._submit),
            (host == API and path.startswith("/v2/requests/") and path.endswith("/status"), "status", self._poll),
            (host == API and path.startswith("/v2/requests/"), "result", self._poll),
        )
        nowhere = ("other", lambda _: _json({"error": "Not Found"}, 404))
        return next(((kind, act) for here, kind, act in routes if here), nowhere)

    def _submit(self, request: Request) -> Reply:
        body = json.loads(request.body)
        account = self.account_of(request) or ""
        plan = self._plan(request)
        call = Call(self._run, self._true.now, account, text_of(body.get("prompt")), None)
        self.calls.append(call)
        if not plan.accepts:
            return _json({"error": "not taken"}, 503)
        call.job = job = self._take(body, account, request.path.rsplit("/", 1)[1], plan)
        if not self._v1:
            return _json({"request_id": job.request_id, "status": "QUEUED", **_urls(job.request_id)})
        if job.fails_with:
            return _json({"error": job.fails_with}, 400, delay=plan.seconds)
        facts = {"x-request-id": job.request_id, "x-generation-time": "1.5"}
        facts |= {"x-cost": str(job.cost)} if self.traits.costs else {}
        return Reply(200, png(job.outputs[0]), {"Content-Type": "image/png", **facts}, delay=plan.seconds)

    def _take(self, body: dict[str, Any], account: str, model: str, plan: Plan) -> Job:
        number = len(self.jobs) + 1
        request_id = f"{number:08d}-2222-3333-4444-{number * 7919 % 10**12:012d}"
        outputs = tuple(f"generations/{request_id[:8]}{'abc'[n]}.png" for n in range(self.traits.outputs))
        now = self._true.now
        job = Job(request_id, account, model, body, now, now + plan.seconds, plan.fails_with, plan.lag, plan.partial)
        job.outputs = outputs
        self.jobs[request_id] = job
        return job

    def add_foreign(self, account: str, body: dict[str, Any], at: float, model: str, seconds: float) -> Job:
        """Another store of the account had work done at some time, which the history shows from then on."""
        job = self._take(body, account, model, Plan(seconds=seconds))
        job.accepted_at, job.ready_at, job.foreign = at, at + seconds, True
        return job

    def _poll(self, request: Request) -> Reply:
        parts = request.path.split("/")
        job, now = self.jobs.get(unquote(parts[3])), self._true.now
        self.polled.append((parts[3], now))
        own = job is not None and (self.traits.open_records or job.account == self.account_of(request))
        known = own and not self._v1
        if job is None or not known or now > job.accepted_at + RECORD_LIVES_S:
            return _json({"error": f"Request {parts[3]} not found"}, 404)
        state = job.state(now)
        body: dict[str, Any] = {"status": state, "request_id": job.request_id, **_urls(job.request_id), "metrics": {}}
        if state == "FAILED":
            return _json(body | {"error": job.fails_with, "metrics": {"total_time": 0.24}}, 422)
        if state == "COMPLETED" and request.path.endswith("/status"):
            body["metrics"] = {"inference_time": job.ready_at - job.accepted_at}
        elif state == "COMPLETED":
            body = result_body(job, self.traits, [self.url(path) for path in job.outputs])
        return _json(body)

    def url(self, path: str) -> str:
        return f"https://{CDN}/{path}"

    def _download(self, request: Request) -> Reply:
        now = self._true.now
        for job in self.jobs.values():
            if request.path[1:] in job.outputs and job.ready_at <= now < job.ready_at + FILE_LIVES_S:
                if self.traits.cdn_redirect and request.host == CDN:
                    url = f"https://{OTHER_CDN}{request.path}?sig=1"
                    return Reply(self.traits.cdn_redirect, b"", {"Location": url, "Content-Type": "text/html"})
                job.downloaded = True
                return Reply(200, png(request.path[1:]), {"Content-Type": "image/png"})
        return Reply(404, b"<html>404 Not Found</html>", {"Content-Type": "text/html"})

    def _list(self, request: Request) -> Reply:
        query, now = request.query, self._true.now
        rows = []
        for job in sorted(self.jobs.values(), key=lambda job: (-job.accepted_at, job.request_id)):
            day = self._local(job.accepted_at).date().isoformat()
            inside = query.get("from_date", "") <= day <= query.get("to_date", "9999")
            if job.account == self.account_of(request) and inside and now >= job.accepted_at + job.lag:
                rows += self._rows(job, now)
        model = query.get("model_name", "")
        rows = [row for row in rows if model in (row.get("model_name") or model)]
        size, page = min(100, int(query.get("per_page", "20"))), int(query.get("page", "1"))
        if query.get("clamped"):
            page = max(1, min(page, -(-len(rows) // size)))
        if query.get("scrambled"):
            Random(f"{now} {page}").shuffle(rows)
        shown = rows[(page - 1) * size : page * size]
        if query.get("cursor"):
            shown = shown if page == 1 else []
            return _json({"data": shown, "has_more": bool(shown) and len(rows) > size})
        wraps: dict[str, Any] = {"data": {"data": shown}}
        wraps["total"] = {"data": shown, "total": len(rows), "page": page, "per_page": size}
        return _json(wraps[self.traits.list_wrap])

    def _detail(self, request: Request) -> Reply:
        job, now = self.jobs.get(unquote(request.path.rsplit("/", 1)[1])), self._true.now
        if job is None or job.account != self.account_of(request) or now < job.accepted_at + job.lag:
            return _json({"error": "not found"}, 404)
        rows = self._rows(job, now)
        shown = rows[0] if len(rows) == 1 else rows
        return _json(shown if self.traits.detail_wrap == "bare" else {"data": shown})

    def _rows(self, job: Job, now: float) -> list[dict[str, Any]]:
        """One for each output, once there are any."""
        paths = job.outputs if job.state(now) == "COMPLETED" else job.outputs[:1]
        return [history_row(self, job, now, path) for path in paths]

    def _upload(self, request: Request) -> Reply:
        self._uploads += 1
        url = f"https://{CDN}/assets/somebody@example.com/images/{self._uploads:06d}.png"
        return _json({"file_urls": [url], "message": "Files uploaded successfully"})


def _balance(_: Request) -> Reply:
    return _json({"credits": 25.0, "free-credits": 0.018})


def _json(value: Any, status: int = 200, delay: float = 0.0) -> Reply:
    return Reply(status, json.dumps(value).encode(), delay=delay)


def _urls(request_id: str) -> dict[str, str]:
    base = f"https://{API}/v2/requests/{request_id}"
    return {"status_url": f"{base}/status", "response_url": base, "poll_url": base.replace("/v2/", "/v1/")}
