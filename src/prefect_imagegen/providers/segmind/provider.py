"""The Segmind API as a provider: v2 (submit, await, download) and v1 (one blocking call).

Only `submit` sends a paid POST, and it sends one: polls, downloads and look-ups are GETs, and what a failed POST means
is decided by `core.policy.outcomes`. The key is sent to the endpoint's own hosts only; URLs are rebuilt from the base
URL and the request id.
"""

import asyncio
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from pydantic import SecretStr

from prefect_imagegen.core.answers.json_values import error_text, parse_json, parse_number, shape_of
from prefect_imagegen.core.answers.outputs import images_of_body
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.abilities import Abilities
from prefect_imagegen.core.policy.history_lookup import Look, Window
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.net.bodies import UNREADABLE, body_pieces, describe_error, read_body
from prefect_imagegen.net.client import TRANSPORT_ERRORS, never_sent
from prefect_imagegen.ports import Balance, Delivery, Health, HistoryRecord, Submission
from prefect_imagegen.providers.base import BaseProvider
from prefect_imagegen.providers.segmind.history import SegmindHistory
from prefect_imagegen.providers.segmind.http import SegmindHttp
from prefect_imagegen.providers.segmind.jobs import SegmindJobs, applied_seed
from prefect_imagegen.store.store_kind import SANDBOX_ENGINES

SEGMIND_URL = "https://api.segmind.com"
SEGMIND_HISTORY_URL = "https://api.spotprod.segmind.com"
SEGMIND_ASSETS_URL = "https://workflows-api.segmind.com"
ENGINE_HEADER = "x-imagegen-engine"
PROBE_S = 20.0
"""Seconds that the API has to answer each question asked before the first call (balance, engine)."""
ABILITIES = Abilities(
    queue=True,
    history=True,
    balance=True,
    uploads=True,
    cost_in_answer=True,
    outputs_live=timedelta(days=8),  # outputs are kept for seven days
)
"""What the API can do by v2; v1 has no queue."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The base URLs of one account: `base` for calls, `history` for the request history, `assets` for uploads."""

    base: str
    history: str
    assets: str

    @classmethod
    def of(cls, base_url: str | None, history_url: str | None, assets_url: str | None = None) -> "Endpoints":
        """The URLs from what the user set; None means Segmind's own, or `base_url` where that is another host."""
        base = (base_url or SEGMIND_URL).rstrip("/")
        own = (base, base) if base != SEGMIND_URL else (SEGMIND_HISTORY_URL, SEGMIND_ASSETS_URL)
        return cls(base, (history_url or own[0]).rstrip("/"), (assets_url or own[1]).rstrip("/"))


class SegmindProvider(BaseProvider):
    """One Segmind-compatible endpoint: a `ports.Provider`, a `ports.PaidAccount` and a worker's `Dialect`.

    Close it with `aclose`.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        api_key: SecretStr | None,
        *,
        api_version: str = "v2",
        max_in_flight: int = 16,
        deadline: float = 600.0,
        connect_timeout: float = 2.0,
        logs_outages: bool = True,
    ) -> None:
        """`logs_outages`: whether an API that is away is logged (a pool logs for its workers)."""
        parts = urlsplit(endpoints.base)
        shown = f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")
        super().__init__("segmind", shown, replace(ABILITIES, queue=api_version != "v1"))
        self._base = endpoints.base
        self._assets = endpoints.assets
        self._v1 = api_version == "v1"
        self._deadline = deadline
        self._sandbox: bool | None = None
        self._http = SegmindHttp(
            api_key,
            (endpoints.base, endpoints.history, endpoints.assets),
            max_in_flight=max_in_flight,
            connect_timeout=connect_timeout,
            outage_name=f"The image API at {self.endpoint}" if logs_outages else None,
        )
        self._history = SegmindHistory(endpoints.history, self._http.get_json, self._report_odd)
        self._jobs = SegmindJobs(
            endpoints.base,
            self._http,
            self._history,
            self._report_odd,
            deadline=deadline,
            has_records=self.abilities.queue,
        )

    def now(self) -> datetime | None:
        """The present time by the API's clock: the `Date` of its last answer, and the time since; None before it."""
        return self._http.now()

    def _report_odd(self, description: str) -> None:
        self.not_understood[self._http.safe(description)] += 1

    async def check(self) -> Balance:
        """The balance, which also proves address and key; a failed connection is tried again once.

        Raises ProviderError.
        """
        try:
            answer = await self._http.get_json(f"{self._base}/v1/get-user-credits", tries=2, within=PROBE_S)
        except ProviderError as error:
            if error.status == 404:  # "No credits found for the user": an account without a balance record
                return Balance(None)
            raise
        value = answer if isinstance(answer, dict) else {}
        amounts = [parse_number(value.get(name)) for name in ("credits", "free-credits")]
        known = [amount for amount in amounts if amount is not None]
        return Balance(sum(known) if known else None)

    async def upload(self, data: bytes, media_type: str) -> str:
        """Upload a reference image; returns the URL that the API fetches it from.

        The URL contains the account's e-mail address. Raises ProviderError.
        """
        url = f"data:{media_type};base64,{b64encode(data).decode()}"
        try:
            async with asyncio.timeout(self._deadline):
                answer = await self._http.post_json(f"{self._assets}/upload-asset", {"data_urls": [url]})
        except TimeoutError:
            # The rows wait in line for a host that answers 429: the deadline keeps one from waiting for ever.
            raise ProviderError("upload_failed", f"an upload was not taken within {self._deadline:.0f} s") from None
        value = answer if isinstance(answer, dict) else {}
        urls = value.get("file_urls") or value.get("urls")
        if not isinstance(urls, list) or not urls or not isinstance(urls[0], str):
            raise ProviderError("upload_failed", "the answer to an upload names no address")
        return urls[0]

    async def has_upload(self, url: str) -> bool:
        """Whether an upload is still there."""
        return await self._http.is_there(url)

    async def submit(
        self,
        request: GenerationRequest,
        image_urls: Sequence[str],
        *,
        idempotency_key: str | None = None,  # noqa: ARG002 - the API honours none
    ) -> Submission:
        """Send the paid POST, once. Returns with the request_id (v2) or the opened answer (v1).

        Raises ProviderError, whose kind says what is known of the money.
        """
        version = "v1" if self._v1 else "v2"
        data = json.dumps(request.body(image_urls), ensure_ascii=False).encode()
        call = self._http.client.build_request(
            "POST",
            f"{self._base}/{version}/{quote(request.model, safe='')}",
            content=body_pieces(data),
            headers=self._http.post_headers(data),
            # A paid call gets the whole deadline, however quick other calls are.
            timeout=httpx.Timeout(self._deadline, connect=4.0),
        )
        try:
            response = await self._http.client.send(call, stream=True)
        except TRANSPORT_ERRORS as error:
            self._http.note_failure(describe_error(error))
            if never_sent(error):
                raise ProviderError(
                    "unsent", f"{self.endpoint} could not be reached: {describe_error(error)}"
                ) from error
            raise ProviderError(
                "unknown", f"{self.endpoint} took the call and gave no answer: {describe_error(error)}"
            ) from error
        self._http.note_answer(response)
        request_id = response.headers.get("x-request-id")
        if self._v1 and 200 <= response.status_code < 300:
            self._check_engine(response, request_id)
            return Submission(request, request_id, response)
        try:
            body = await read_body(response)
        except UNREADABLE as error:
            if response.status_code < 300:
                raise ProviderError(
                    "unknown", f"the answer to the call broke off: {describe_error(error)}", status=response.status_code
                ) from error
            body = b""
        if response.status_code >= 300:
            raise self._http.refusal(response, body)
        request_id = self._request_id_of(body, response.status_code)
        self._check_engine(response, request_id)
        return Submission(request, request_id)

    async def collect(self, submission: Submission) -> Delivery:
        """The bytes of an accepted call: from the open answer (v1), or by polls, history and download.

        Raises ProviderError.
        """
        response: httpx.Response | None = submission.open_body
        if response is not None:
            submission.open_body = None
            return await self._read_v1(submission, response)
        if submission.request_id is None:
            raise ProviderError("unknown", "the answer broke off and named no request_id")
        # The API serves no record of a v1 call: it is looked up in the history.
        return await self.fetch(submission.request_id, is_old=submission.is_old)

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        """Look once in the request history for a call with the body of a claim. Raises ProviderError."""
        return await self._history.find(model, claimed, window)

    async def record(self, request_id: str) -> HistoryRecord | None:
        """One call as the request history shows it; None where it is not there (yet). Raises ProviderError."""
        return await self._history.detail(request_id)

    async def records(self, start: date, end: date) -> list[HistoryRecord]:
        """All own calls between two days (inclusive, at most 31 apart). Raises ProviderError."""
        return await self._history.records("", start, end)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._history.aclose()
        await self._http.aclose()

    async def health(self) -> Health:
        """What a gateway reports in /health; not ready where it gives no answer."""
        try:
            async with self._http.get(f"{self._base}/health", with_key=False) as response:
                value = parse_json(await read_body(response))
                engine = response.headers.get(ENGINE_HEADER)
        except UNREADABLE as error:
            return Health(False, f"no answer: {describe_error(error)}")
        report = value if isinstance(value, dict) else {}
        models, batch = report.get("models"), report.get("max_batch")
        return Health(
            response.status_code == 200,
            str(report.get("status") or f"status {response.status_code}"),
            engine,
            report.get("profile"),
            frozenset(map(str, models)) if isinstance(models, list) else None,
            # One batch that runs and one that waits: with fewer calls the next batch would not be full.
            2 * batch if isinstance(batch, int) else None,
        )

    async def engine(self) -> str | None:
        """The engine that a gateway names in /health; None for any other service.

        Raises ProviderError (`unsent`) if it is out of reach.
        """
        for last_try in (False, True):
            try:
                async with (
                    asyncio.timeout(PROBE_S),
                    self._http.get(f"{self._base}/health", with_key=False) as response,
                ):
                    await read_body(response)
                    name: str | None = response.headers.get(ENGINE_HEADER)
                    return name
            except UNREADABLE as error:
                if last_try:
                    raise ProviderError("unsent", f"{self.endpoint} gave no answer: {describe_error(error)}") from error
        return None

    def expect(self, *, sandbox: bool) -> None:
        """From now on require that every answer comes from a sandbox, or that none does (`sandbox_mismatch`)."""
        self._sandbox = sandbox
        self.name = "sandbox" if sandbox else "segmind"

    async def _read_v1(self, submission: Submission, response: httpx.Response) -> Delivery:
        try:
            body = await read_body(response)
        except UNREADABLE as error:
            raise ProviderError(
                "bad_output",
                f"the answer broke off: {describe_error(error)}",
                request_id=submission.request_id,
                status=200,
            ) from error
        headers = response.headers
        facts: dict[str, Any] = {
            "request_id": submission.request_id,
            "cost_usd": parse_number(headers.get("x-cost")),
            "latency_s": parse_number(headers.get("x-generation-time")),
            "http_status": response.status_code,
            "applied": applied_seed(headers.get("x-seed-value")),
        }
        outputs = images_of_body(body)
        if outputs[0].error is not None:
            raise ProviderError(
                "bad_output",
                self._http.safe(outputs[0].error),
                request_id=submission.request_id,
                status=response.status_code,
            )
        return await self._jobs.delivery(outputs, submission.request_id, headers.get("content-type"), facts)

    async def fetch(self, request_id: str, *, is_old: bool = False) -> Delivery:
        """The result of a call by its id; `is_old`: an earlier run sent it. Raises ProviderError."""
        return await self._jobs.fetch(request_id, is_old=is_old)

    def _request_id_of(self, body: bytes, status: int) -> str:
        value = parse_json(body)
        request_id = value.get("request_id") if isinstance(value, dict) else None
        if isinstance(request_id, str) and request_id:
            return request_id
        # A 2xx without an id: the work may have been queued, so it is not sent again.
        self._report_odd(f"a submit: status {status}, {shape_of(value)}")
        raise ProviderError(
            "unknown",
            self._http.safe(f"the answer to the call has no request_id: {error_text(body)}"),
            status=status,
        )

    def _check_engine(self, response: httpx.Response, request_id: str | None) -> None:
        if self._sandbox is None:
            return
        engine = response.headers.get(ENGINE_HEADER)
        if (engine in SANDBOX_ENGINES) != self._sandbox:
            service = f"engine {engine!r}" if engine else "no sandbox"
            text = f"{self.endpoint} changed during the run: it is now {service}"
            raise ProviderError("sandbox_mismatch", text, status=response.status_code, request_id=request_id)
