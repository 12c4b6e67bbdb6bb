"""What became of a call, by its id: polled, and fetched from its record, the request history and the CDN.

Only ever GETs: nothing here can buy an image. What is not understood is said to `odd`, and proves nothing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from prefect_imagegen.core.answers.jobs import JobAnswer, job_of
from prefect_imagegen.core.answers.json_values import parse_json, parse_number, shape_of
from prefect_imagegen.core.answers.outputs import Output
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.classify import classify_failure
from prefect_imagegen.ports import Delivery
from prefect_imagegen.providers.segmind.history import SegmindHistory
from prefect_imagegen.providers.segmind.http import GET_TRIES, UNREADABLE, SegmindHttp, plain_name, read_body
from prefect_imagegen.providers.segmind.polls import Polls

_EXPIRED = 404
_OUTPUT_PATIENCE = 3
"""So often a finished job is asked for its output before the history is."""


class SegmindJobs:
    """The accepted calls of one account. `has_records`: whether they have a record of their own (v2)."""

    def __init__(
        self,
        base_url: str,
        http: SegmindHttp,
        history: SegmindHistory,
        odd: Callable[[str], None],
        *,
        deadline: float,
        has_records: bool,
    ) -> None:
        self._base = base_url
        self._http = http
        self._history = history
        self._odd = odd
        self._deadline = deadline
        self._has_records = has_records
        self._polls = Polls()

    async def fetch(self, request_id: str, *, is_old: bool = False) -> Delivery:
        """The result of a call by its id, from its record or the history; asks until --deadline. Outputs live 7 days.

        One that an earlier run sent (`is_old`), and of which neither knows anything, is asked for once.
        """
        job = await self._ended(request_id, is_old=is_old)
        if job.state == "FAILED":
            text = job.error or ""
            raise ProviderError(
                classify_failure(text),
                self._http.safe(text),
                status=422,
                request_id=request_id,
                cost_usd=job.cost_usd,
            )
        facts = {
            "request_id": request_id,
            "cost_usd": job.cost_usd,
            "latency_s": job.latency_s,
            "http_status": 200,
            "applied": applied_seed(job.seed),
        }
        try:
            return await self.delivery(job.outputs, request_id, None, facts)
        except ProviderError as error:
            if error.status not in (404, 410):
                raise
            try:
                other = await self._recorded(request_id)  # it may know another address
            except ProviderError as untold:
                if untold.kind == "auth":
                    raise
                # Whether there is one is not known: without its status the error says nothing for good.
                text = f"{error.message}; {untold.message}"
                raise ProviderError("submitted", text, request_id=request_id) from error
            if other is None or other.state != "COMPLETED" or other.outputs == job.outputs:
                raise
            return await self.delivery(other.outputs, request_id, None, facts)

    async def delivery(
        self, outputs: Sequence[Output], request_id: str | None, media: str | None, facts: Mapping[str, Any]
    ) -> Delivery:
        """The bytes of all images of one answer."""
        found: list[bytes] = []
        for output in outputs:
            if output.data is not None:
                found.append(output.data)
            else:
                data, media = await self._http.download(output.url or "", request_id)
                found.append(data)
        return Delivery(found[0], media, more=tuple(found[1:]), **facts)

    async def _ended(self, request_id: str, *, is_old: bool) -> JobAnswer:
        """Ask until the job has ended: failed, as two answers agree, or completed, with its outputs named."""
        loop = asyncio.get_running_loop()
        started, asked = loop.time(), 0
        while (elapsed := loop.time() - started) < self._deadline:
            if asked or not is_old:
                await self._polls.wait(elapsed)
            asked += 1
            found, is_there = await self._record(request_id)
            if is_old and self._polls.failures >= GET_TRIES:
                break  # nobody is there who could tell
            if found is None and (not is_there or asked % _OUTPUT_PATIENCE == 0):
                try:
                    found = await self._recorded(request_id)
                except ProviderError as error:
                    if error.kind == "auth":
                        raise
                    found, is_there = None, True  # what it knows is not known: ask again
                if found is None and not is_there and (is_old or not self._has_records):
                    text = "neither the record nor the history tells the result"
                    raise ProviderError("submitted", text, status=_EXPIRED, request_id=request_id)
            if found is not None and found.state != "PENDING":
                self._polls.ended(loop.time() - started)
                return found
        raise ProviderError("submitted", f"no result after {loop.time() - started:.0f} s", request_id=request_id)

    async def _record(self, request_id: str) -> tuple[JobAnswer | None, bool]:
        """What the record says once: an end that counts, or None; and whether there still is a record."""
        url = f"{self._base}/v2/requests/{quote(request_id, safe='')}"
        first, status = await self._job(f"{url}/status", request_id)
        if first is None or first.state == "PENDING":
            pending = first is not None and first.state == "PENDING"
            return (first if pending else None), status != _EXPIRED
        # A failure leads to another call, and only the result names outputs: the other answer has to say so too.
        second, _ = await self._job(url, request_id)
        if second is not None and second.state == "COMPLETED" and second.outputs:
            return second, True
        if first.state == "COMPLETED" and first.outputs:
            return first, True
        agree = second is not None and first.state == second.state == "FAILED"
        return (second if agree else None), True

    async def _recorded(self, request_id: str) -> JobAnswer | None:
        """What the history says once of an end that counts; None if it does not tell (yet)."""
        record = await self._history.detail(request_id)
        if record is None:
            return None
        outputs = tuple(Output(url=url) for url in record.generation_urls)
        if outputs and record.status != "PENDING":
            return JobAnswer("COMPLETED", outputs=outputs, cost_usd=record.cost_usd)
        if record.status == "FAILED":
            return JobAnswer("FAILED", error=record.error or "the history says FAILED", cost_usd=record.cost_usd)
        return None

    async def _job(self, url: str, request_id: str) -> tuple[JobAnswer | None, int | None]:
        """One poll: what it says, if it is understood, and its HTTP status. Raises ProviderError for a rejected key."""
        sent = await self._polls.take()
        what = "the result" if url.endswith(quote(request_id, safe="")) else "a poll"
        try:
            async with self._http.get(url) as response:
                self._http.heard(response)
                body, status = await read_body(response), response.status_code
        except UNREADABLE as error:
            self._http.lost(plain_name(error))
            self._polls.failed()
            return None, None
        if status == 429:
            self._polls.refused(sent, self._http.pause(response))
        else:
            self._polls.answered(sent)
        value = parse_json(body)
        job = job_of(value, status=status, request_id=request_id)
        if job is not None:
            self._polls.understood()
            if not job.is_known:
                self._odd(f"{what}: an unknown state")
            return job, status
        if status == 401:
            raise self._http.refusal(response, body, request_id)
        if status not in (429, _EXPIRED):
            self._polls.failed()
            self._odd(f"{what}: status {status}, {shape_of(value)}")
        return None, status


def applied_seed(seed: Any) -> dict[str, Any]:
    """The seed that was used, where the API tells."""
    found = parse_number(seed)
    return {} if found is None else {"seed": int(found)}
