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
MAX_PAGES = 1000
_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
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
        rows = [row for row in _rows(answer) if row.get("request_id")]
        return _record(rows[0]) if rows else None

    async def records(self, model: str, start: date, end: date) -> list[HistoryRecord]:
        """Own requests of a model between two days (inclusive, at most 31 apart), newest first, one per request_id.

        An empty model means all. Raises BackendError if there are more pages than can be read: what was not seen is
        not absent.
        """
        return await self._read(partial(self._page, model, start, end), 1, None)

    async def _around(self, model: str, moment: datetime) -> list[HistoryRecord]:
        """Own requests of a model within the hours that a claim of the hour from `moment` on can belong to."""
        first, last = moment - _CLOCKS_APART, moment + _HOUR + _CLOCKS_APART
        day = moment.date()
        pages: dict[int, tuple[list[HistoryRecord], bool]] = {}

        async def page(number: int) -> tuple[list[HistoryRecord], bool]:
            if number not in pages:
                pages[number] = await self._page(model, day - _DAY, day + _DAY, number)
            return pages[number]

        return await self._read(page, await _first_page_before(last, page), first)

    async def _read(self, page: "_Page", number: int, stop_before: datetime | None) -> list[HistoryRecord]:
        """All pages from one on, up to the first that is wholly from before `stop_before`."""
        found: dict[str, HistoryRecord] = {}
        for current in range(number, number + MAX_PAGES):
            records, full = await page(current)
            for record in records:
                found.setdefault(record.request_id, record)
            if not full:
                return list(found.values())
            if stop_before and all(one.created is not None and one.created < stop_before for one in records):
                return list(found.values())
        raise BackendError("unknown", f"the request history has more than {MAX_PAGES * PAGE_SIZE} requests to read")

    async def _page(self, model: str, start: date, end: date, number: int) -> tuple[list[HistoryRecord], bool]:
        """One page, and whether it is full: then there may be another."""
        params = {
            "page": str(number),
            "per_page": str(PAGE_SIZE),
            "model_name": model,
            "from_date": start.isoformat(),
            "to_date": end.isoformat(),
        }
        rows = _rows(await self._get_json(self._url, params=params))
        return [_record(row) for row in rows if row.get("request_id")], len(rows) >= PAGE_SIZE

    async def find(
        self, model: str, claimed: Mapping[str, Any], since: datetime, known: frozenset[str], unnamed: int
    ) -> str | None:
        """The request_id of a call with the body of a claim that nobody knows of yet; None if there is none.

        Compared are all fields that we sent. A record without inputs counts as not seen. Of several matches one that
        led to an image is taken. So many failed ones as there were earlier calls that were answered without a name
        (`unnamed`) are theirs. Looks for calls of the same hour share one listing.
        """
        hour = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        found = [
            record
            for record in await self._looks.share((model, hour), partial(self._around, model, hour))
            if record.request_id not in known
            and record.model == model
            and record.body is not None
            and same_call(record.body, claimed)
        ]
        found.sort(key=lambda record: ("COMPLETED", "PENDING", "FAILED").index(record.status))
        failed = sum(record.status == "FAILED" for record in found)
        return found[0].request_id if found and (len(found) > failed or failed > unnamed) else None


_Page = Callable[[int], Coroutine[Any, Any, tuple[list[HistoryRecord], bool]]]


async def _first_page_before(moment: datetime, page: _Page) -> int:
    """The number of the first page, newest first, that is not wholly from `moment` or later: galloped to, then halved.

    New calls push old ones to later pages only, so nothing is missed meanwhile. Where times are not told it is 1.
    """

    async def is_later(number: int) -> bool:
        records, full = await page(number)
        return full and all(one.created is not None and one.created >= moment for one in records)

    low, high = 0, 1
    while await is_later(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await is_later(middle) else (low, middle)
    return high


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
    return [row for row in rows if isinstance(row, dict)]


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
