"""Segmind's request history: own requests of any age, with cost, inputs and outputs.

Source: the official SDK 1.3.0. The name of the rows' timestamp is not published (the sort key is `model_created`), so
where none is found time is bounded by the query's dates alone; `request_body` may be JSON or the repr of a Python dict.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

from prefect_imagegen.core import answers
from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.core.reconcile import same_call
from prefect_imagegen.ports import HistoryRecord

PAGE_SIZE = 100
MAX_PAGES = 200
_DAY = timedelta(days=1)
_CLOCKS_APART = timedelta(hours=2)
"""How far the clocks of a claim's machine and of the API may be apart."""
_STATES = {"COMPLETED": "COMPLETED", "FAILED": "FAILED"}


class SegmindHistory:
    """List and detail of the request history below one host; `get_json` is the backend's GET with the key."""

    def __init__(self, base_url: str, get_json: Callable[..., Awaitable[Any]]) -> None:
        self._url = f"{base_url}/inference-request/request-history"
        self._get_json = get_json
        self._looks = _Shared()

    async def detail(self, request_id: str) -> HistoryRecord | None:
        """One own request by its id; None if the history does not (yet) know it."""
        try:
            answer = await self._get_json(f"{self._url}/{quote(request_id, safe='')}")
        except BackendError as error:
            if error.status in (400, 404):
                return None
            raise
        rows = _rows(answer)
        return _record(rows[0]) if rows else None

    async def records(
        self, model: str, start: date, end: date, stop_before: datetime | None = None
    ) -> list[HistoryRecord]:
        """Own requests of a model between two days (inclusive, at most 31 apart), newest first, one per request_id.

        An empty model means all. Paging stops at the first page that is wholly from before `stop_before`. Raises
        BackendError if there are more pages than can be read: what was not seen is not absent.
        """
        found: dict[str, HistoryRecord] = {}
        for page in range(1, MAX_PAGES + 1):
            params = {
                "page": str(page),
                "per_page": str(PAGE_SIZE),
                "model_name": model,
                "from_date": start.isoformat(),
                "to_date": end.isoformat(),
            }
            rows = _rows(await self._get_json(self._url, params=params))
            records = list(filter(None, map(_record, rows)))
            for record in records:
                found.setdefault(record.request_id, record)
            if len(rows) < PAGE_SIZE:
                return list(found.values())
            times = [record.created for record in records]
            if stop_before and all(time is not None and time < stop_before for time in times):
                return list(found.values())
        raise BackendError(
            "unknown", f"the request history has more than {MAX_PAGES * PAGE_SIZE} requests since {start}"
        )

    async def find(self, model: str, claimed: Mapping[str, Any], since: datetime, known: frozenset[str]) -> str | None:
        """The request_id of a call with the body of a claim that nobody knows of yet; None if there is none.

        Compared are all fields that we sent. A record without inputs counts as not seen. Of several matches one that
        led to an image is taken. Looks at the same time share one listing.
        """
        since = since.astimezone(UTC)
        day = since.date()
        listing = partial(self.records, model, day - _DAY, day + _DAY, since - _CLOCKS_APART)
        found = [
            record
            for record in await self._looks.share((model, day), listing)
            if record.request_id not in known
            and record.model == model
            and record.body is not None
            and same_call(record.body, claimed)
        ]
        found.sort(key=lambda record: record.status != "COMPLETED")
        return found[0].request_id if found else None


class _Shared:
    """Lets callers that ask for the same thing at the same time share one answer, begun after they asked."""

    def __init__(self) -> None:
        self._next: dict[Any, asyncio.Task[Any]] = {}
        self._locks: dict[Any, asyncio.Lock] = {}

    async def share(
        self, key: Any, make: Callable[[], Coroutine[Any, Any, list[HistoryRecord]]]
    ) -> list[HistoryRecord]:
        """The answer of `make`, which is begun when the one under way, begun before this call, has ended."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.ensure_future(self._make(key, make))
        found: list[HistoryRecord] = await asyncio.shield(task)
        return found

    async def _make(
        self, key: Any, make: Callable[[], Coroutine[Any, Any, list[HistoryRecord]]]
    ) -> list[HistoryRecord]:
        async with self._locks.setdefault(key, asyncio.Lock()):
            # From here on it is under way: who asks now needs the next one.
            del self._next[key]
            return await make()


def _rows(answer: Any) -> list[dict[str, Any]]:
    value = answer.get("data", answer) if isinstance(answer, dict) else answer
    rows = value if isinstance(value, list) else [value]
    return [row for row in rows if isinstance(row, dict) and row.get("request_id")]


def _record(row: dict[str, Any]) -> HistoryRecord:
    return HistoryRecord(
        request_id=str(row["request_id"]),
        model=str(row.get("model_name") or ""),
        status=_STATES.get(str(row.get("model_status") or "").upper(), "PENDING"),
        cost_usd=answers.number(row.get("credits_deduction")),
        body=answers.parse_inputs(row.get("request_body")),
        generation_url=row.get("generation_url") or None,
        error=str(row["error"]) if row.get("error") else None,
        created=_created(row),
    )


def _created(row: dict[str, Any]) -> datetime | None:
    for name in ("model_created", "created_at", "created", "timestamp"):
        try:
            moment = datetime.fromisoformat(str(row.get(name)))
        except ValueError:
            continue
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None
