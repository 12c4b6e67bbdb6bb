"""The results of accepted calls, by request id: polled, then fetched from the record, the history and the CDN.

Only GETs: nothing here can buy an image. An answer that is not understood is reported to `report_odd`, and proves
nothing.
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
from prefect_imagegen.net.bodies import UNREADABLE, describe_error, read_body
from prefect_imagegen.ports import Delivery
from prefect_imagegen.providers.segmind.history import SegmindHistory
from prefect_imagegen.providers.segmind.http import GET_TRIES, SegmindHttp
from prefect_imagegen.providers.segmind.polls import Polls

_EXPIRED = 404
_OUTPUT_PATIENCE = 3
"""A job that has a record but no end yet is looked up in the history at every third poll."""


class SegmindJobs:
    """The accepted calls of one account. `has_records`: the API serves a record for each call (v2)."""

    def __init__(
        self,
        base_url: str,
        http: SegmindHttp,
        history: SegmindHistory,
        report_odd: Callable[[str], None],
        *,
        deadline: float,
        has_records: bool,
    ) -> None:
        self._base = base_url
        self._http = http
        self._history = history
        self._report_odd = report_odd
        self._deadline = deadline
        self._has_records = has_records
        self._polls = Polls()

    async def fetch(self, request_id: str, *, is_old: bool = False) -> Delivery:
        """The result of a call by its id, from its record or the history, asked for until the deadline.

        The API keeps outputs for 7 days. A call that an earlier run sent (`is_old`) is given up at once if neither the
        record nor the history knows it. Raises ProviderError.
        """
        job = await self._await_end(request_id, is_old=is_old)
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
            "queue_s": job.queue_s,
            "http_status": 200,
            "applied": applied_seed(job.seed),
        }
        try:
            return await self.delivery(job.outputs, request_id, None, facts)
        except ProviderError as error:
            if error.status not in (404, 410):
                raise
            try:
                other = await self._look_up(request_id)  # it may have another address
            except ProviderError as failure:
                if failure.kind == "auth":
                    raise
                # Whether there is another address is not known: an error without a status is not final.
                text = f"{error.message}; {failure.message}"
                raise ProviderError("submitted", text, request_id=request_id) from error
            if other is None or other.state != "COMPLETED" or other.outputs == job.outputs:
                raise
            return await self.delivery(other.outputs, request_id, None, facts)

    async def delivery(
        self, outputs: Sequence[Output], request_id: str | None, media: str | None, facts: Mapping[str, Any]
    ) -> Delivery:
        """The bytes of all images of one answer, downloaded where it names URLs. Raises ProviderError."""
        images: list[bytes] = []
        for output in outputs:
            if output.data is not None:
                images.append(output.data)
            else:
                data, media = await self._http.download(output.url or "", request_id)
                images.append(data)
        return Delivery(images[0], media, more=tuple(images[1:]), **facts)

    async def _await_end(self, request_id: str, *, is_old: bool) -> JobAnswer:
        """Poll until the job has ended: completed with named outputs, or failed according to two answers."""
        loop = asyncio.get_running_loop()
        started, polls = loop.time(), 0
        while (elapsed := loop.time() - started) < self._deadline:
            if polls or not is_old:
                await self._polls.wait(elapsed)
            polls += 1
            job, has_record = await self._poll_record(request_id)
            if is_old and self._polls.failures >= GET_TRIES:
                break  # the API is away
            if job is None and (not has_record or polls % _OUTPUT_PATIENCE == 0):
                try:
                    job = await self._look_up(request_id)
                except ProviderError as error:
                    if error.kind == "auth":
                        raise
                    job, has_record = None, True  # the history did not answer: ask again
                if job is None and not has_record and (is_old or not self._has_records):
                    text = "neither the record nor the history tells the result"
                    raise ProviderError("submitted", text, status=_EXPIRED, request_id=request_id)
            if job is not None and job.state != "PENDING":
                self._polls.note_latency(loop.time() - started)
                return job
        raise ProviderError("submitted", f"no result after {loop.time() - started:.0f} s", request_id=request_id)

    async def _poll_record(self, request_id: str) -> tuple[JobAnswer | None, bool]:
        """Ask the record once: its answer (PENDING, or an end that counts), or None; and whether the record exists."""
        url = f"{self._base}/v2/requests/{quote(request_id, safe='')}"
        first, status = await self._job(f"{url}/status", request_id)
        if first is None or first.state == "PENDING":
            pending = first is not None and first.state == "PENDING"
            return (first if pending else None), status != _EXPIRED
        # A failure leads to another paid call, and only the result names outputs: both answers have to agree.
        second, _ = await self._job(url, request_id)
        if second is not None and second.state == "COMPLETED" and second.outputs:
            return second, True
        if first.state == "COMPLETED" and first.outputs:
            return first, True
        agree = second is not None and first.state == second.state == "FAILED"
        return (second if agree else None), True

    async def _look_up(self, request_id: str) -> JobAnswer | None:
        """Ask the history once for an end that counts; None if it has none (yet)."""
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
        """One poll: its answer, if it is understood, and its HTTP status. Raises ProviderError for a rejected key."""
        sent = await self._polls.take()
        label = "the result" if url.endswith(quote(request_id, safe="")) else "a poll"
        try:
            async with self._http.get(url) as response:
                self._http.note_answer(response)
                body, status = await read_body(response), response.status_code
        except UNREADABLE as error:
            self._http.note_failure(describe_error(error))
            self._polls.note_failure()
            return None, None
        if status == 429:
            self._polls.refused(sent, self._http.pause(response))
        else:
            self._polls.answered(sent)
        value = parse_json(body)
        job = job_of(value, status=status, request_id=request_id)
        if job is not None:
            self._polls.note_success()
            if not job.is_known:
                self._report_odd(f"{label}: an unknown state")
            return job, status
        if status == 401:
            raise self._http.refusal(response, body, request_id)
        if status not in (429, _EXPIRED):
            self._polls.note_failure()
            self._report_odd(f"{label}: status {status}, {shape_of(value)}")
        return None, status


def applied_seed(seed: Any) -> dict[str, Any]:
    """The applied parameters as far as the API reports them: the seed that was used, or nothing."""
    value = parse_number(seed)
    return {} if value is None else {"seed": int(value)}
