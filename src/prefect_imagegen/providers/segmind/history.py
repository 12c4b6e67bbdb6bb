"""Segmind's request history: own requests of any age, with cost, inputs and outputs.

Source: the official SDK 1.3.0. The name of the rows' timestamp is not published (the sort key is `model_created`), so
where none is found time is bounded by the query's dates alone; `request_body` may be JSON or the repr of a Python dict.

A listing proves something only if it is understood: an object with a list of rows under `data`, and without an error,
page after page until one is empty and none was announced. Anything else is a ProviderError, and nobody may take it for
absence.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from prefect_imagegen.core.answers.history import announces_more, detail_rows, listed_rows, listed_total, parse_inputs
from prefect_imagegen.core.answers.json_values import parse_number, parse_time, shape_of
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Candidate, Look, Window, compare_calls, compare_models
from prefect_imagegen.ports import HistoryRecord

PAGE_SIZE = 100
MAX_PAGES = 1000
_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_MOST_DAYS = 31
_MOST_SPANS = 13
"""So many listings of 31 days are searched for one call, where the clocks of its claim lie far apart."""
_ENOUGH = 8
"""So many different times in falling order show that a listing is ordered by them."""
_STATES = {"COMPLETED": "COMPLETED", "SUCCESS": "COMPLETED", "SUCCEEDED": "COMPLETED", "FAILED": "FAILED"}

_LISTINGS = 3
"""So often a listing is read whose rows move between its pages."""
_RowName = tuple[str, tuple[str, ...]]


class _MovedError(Exception):
    """A page shows nothing but some rows of others: the listing may have moved meanwhile."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page as understood: its rows (None for one that is no object), the total where it is told.

    `has_more`: it says that more rows follow.
    """

    records: tuple[HistoryRecord | None, ...]
    total: int | None = None
    has_more: bool = False

    @property
    def names(self) -> "list[_RowName | None]":
        """What tells its rows apart: a request has one for each of its outputs, and they may lie on two pages."""
        return [(one.request_id, one.generation_urls) if one and one.request_id else None for one in self.records]

    @property
    def named(self) -> "frozenset[_RowName]":
        """The names of its rows, of those that have one."""
        return frozenset(filter(None, self.names))


class SegmindHistory:
    """List and detail of the request history below one host; `get_json` is the provider's GET with the key.

    `odd` is told, in a few words, of every answer that is not understood.
    """

    def __init__(
        self, base_url: str, get_json: Callable[..., Awaitable[Any]], odd: Callable[[str], None] = lambda _: None
    ) -> None:
        self._url = f"{base_url}/inference-request/request-history"
        self._get_json = get_json
        self._odd = odd
        self._looks = _Shared()

    async def aclose(self) -> None:
        """Let go of listings that nobody waits for any more."""
        await self._looks.aclose()

    async def detail(self, request_id: str) -> HistoryRecord | None:
        """One own request by its id; None if the history does not (yet) know it.

        Raises ProviderError (`unknown` for an answer that is not understood).
        """
        try:
            answer = await self._asked("the record of a request", f"{self._url}/{quote(request_id, safe='')}")
        except ProviderError as error:
            if error.status == 404:
                return None
            raise
        rows = detail_rows(answer, request_id)
        if rows is None:
            raise self._not_understood(f"the record of a request: {shape_of(answer)}")
        records = [_record(row) for row in rows]
        return _joined(records) if records else None

    async def records(self, model: str, start: date, end: date) -> list[HistoryRecord]:
        """Own requests of a model between two days (inclusive, at most 31 apart), newest first, one per request_id.

        An empty model means all. Raises ProviderError if they cannot all be read: what was not seen is not absent.
        """
        found: dict[str, HistoryRecord] = {}
        for record in await self._steadily(lambda: self._walk(partial(self._page, model, start, end), 1, None)):
            if record is not None and record.request_id:
                found.setdefault(record.request_id, record)
        return list(found.values())

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        """Look once for the call of a claim: every request that is, or could be, the one. Raises ProviderError.

        Looks for calls of the same hours share one listing.
        """
        records = await self._looks.share(_hours(window), partial(self._around, *_hours(window)))
        candidates = []
        for record in records:
            if record is None:
                candidates.append(Candidate(None, "unclear", "PENDING"))
            elif window.takes(record.created, zoned=record.zoned):
                verdict = _verdict(record, model, claimed)
                if verdict != "differs":
                    candidates.append(Candidate(record.request_id or None, verdict, record.status))
        shown = frozenset(one.request_id for one in records if one is not None and one.request_id)
        return Look(tuple(candidates), shown)

    async def _around(self, first: datetime, last: datetime) -> list[HistoryRecord | None]:
        """All own requests of some hours, and of more where the pages begin or end elsewhere."""
        start, end = (first - _DAY).date(), (last + _DAY).date()
        spans = -(-((end - start).days + 1) // _MOST_DAYS)
        if spans > _MOST_SPANS:
            raise ProviderError("unknown", f"the clocks of the claim are years apart: {start} to {end}")
        found: list[HistoryRecord | None] = []
        for _ in range(spans):
            begin = max(start, end - timedelta(days=_MOST_DAYS - 1))
            found += await self._steadily(partial(self._between, begin, end, first, last))
            end = begin - _DAY
        return found

    async def _steadily(
        self, listing: Callable[[], Awaitable[list[HistoryRecord | None]]]
    ) -> list[HistoryRecord | None]:
        """A listing that did not move while it was read: calls that are made meanwhile push rows to later pages."""
        for _ in range(_LISTINGS - 1):
            with suppress(_MovedError):
                return await listing()
        try:
            return await listing()
        except _MovedError as error:
            raise self._not_understood(str(error)) from error

    async def _between(self, start: date, end: date, first: datetime, last: datetime) -> list[HistoryRecord | None]:
        """The requests of some hours, as the listing of at most 31 days has them."""
        pages: dict[int, Page] = {}

        async def page(number: int) -> Page:
            if number not in pages:
                pages[number] = await self._page("", start, end, number)
            return pages[number]

        number = await _first_page_before(last, page)
        if number > 1 and not _falls(one for _, one in sorted(pages.items())):
            number = 1  # the order is none that pages could be left out by
        if len(pages) > 1:
            pages.clear()  # rows may have been pushed on since: what proves something is read in order
        return await self._walk(page, number, first)

    async def _walk(self, page: "_Page", number: int, stop_before: datetime | None) -> list[HistoryRecord | None]:
        """All rows from one page on, up to the first page that is wholly from before `stop_before`, or to the end.

        The end is a page without rows, or the total that the answers tell. A page that brings nothing new is not the
        end: page numbers may be clamped, or not be heeded at all.
        """
        found: list[HistoryRecord | None] = []
        seen: set[_RowName] = set()
        read: list[Page] = []
        first_number = number
        while number < first_number + MAX_PAGES:
            current = await page(number)
            is_all = _is_all(read, current, first_number)
            if not current.records and (is_all or (is_all is None and not _is_promised_more(read, current))):
                return found
            if not current.records or current in read or (current.named and current.named <= seen):
                if is_all:
                    return found
                if current.records and current not in read:
                    raise _MovedError("the request history: a page repeats rows of others")
                what = "repeats what another one showed" if current.records else "is empty before the end is reached"
                raise self._not_understood(f"the request history: a page {what}")
            if not _goes_on(read, current, seen):
                raise _MovedError("the request history: pages overlap in another order")
            found += current.records
            seen |= current.named
            read.append(current)
            if stop_before is not None and _is_before(current, stop_before) and _falls(read):
                return found
            number += 1
        raise ProviderError("unknown", f"the request history has more than {MAX_PAGES * PAGE_SIZE} requests to read")

    async def _page(self, model: str, start: date, end: date, number: int) -> Page:
        """One page. No model is asked for where absence is to be proven: names in the history may be others."""
        params = {
            "page": str(number),
            "per_page": str(PAGE_SIZE),
            "from_date": start.isoformat(),
            "to_date": end.isoformat(),
        } | ({"model_name": model} if model else {})
        answer = await self._asked("the request history", self._url, params=params)
        rows = listed_rows(answer)
        if rows is None:
            raise self._not_understood(f"the request history: {shape_of(answer)}")
        return Page(
            tuple(_record(row) if isinstance(row, dict) else None for row in rows),
            listed_total(answer),
            announces_more(answer),
        )

    async def _asked(self, what: str, url: str, **more: Any) -> Any:
        """The JSON of a GET; an answer that is none is as little understood as one of another shape."""
        try:
            return await self._get_json(url, **more)
        except ProviderError as error:
            if error.kind != "protocol":
                raise
            raise self._not_understood(f"{what}: {'no JSON' if error.status == 200 else error.message}") from error

    def _not_understood(self, what: str) -> ProviderError:
        self._odd(what)
        return ProviderError("unknown", f"an answer is not understood: {what}")


_Page = Callable[[int], Coroutine[Any, Any, Page]]


def _hours(window: Window) -> tuple[datetime, datetime]:
    """The full hours around a window, so that looks for calls of one time ask for the same."""
    first = window.first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    last = window.last.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + _HOUR
    return first, last


def _verdict(record: HistoryRecord, model: str, claimed: Mapping[str, Any]) -> Any:
    """Whether a row is the call of a claim: `same`, `differs`, or `unclear`."""
    verdicts = {compare_models(record.model, model), compare_calls(record.body, claimed)}
    return "differs" if "differs" in verdicts else "unclear" if "unclear" in verdicts else "same"


def _is_all(read: Sequence[Page], current: Page, first_number: int) -> bool | None:
    """Whether so many rows were seen as the answers count; None where they do not count, or not all were asked for.

    A row that came on two pages counts once; calls that were made meanwhile need not be seen.
    """
    totals = [page.total for page in (*read, current) if page.total is not None]
    if first_number > 1 or not totals:
        return None
    rows = {name for page in read for name in page.named}
    unnamed = sum(one is None or not one.request_id for page in read for one in page.records)
    return len(rows) + unnamed >= min(totals)


def _is_promised_more(read: Sequence[Page], current: Page) -> bool:
    """Whether an empty page, or the one before it, says that more rows follow: then it is no end."""
    return current.has_more or (bool(read) and read[-1].has_more)


def _goes_on(read: Sequence[Page], current: Page, seen: Collection[_RowName | None]) -> bool:
    """Whether a page goes on where the ones before it end, or begins with their last rows, which were pushed on to it.

    Other rows that come again mean that pages are cut from changing orders: a row may be on none of them.
    """
    again = [name in seen for name in current.names]
    count = again.index(False) if False in again else len(again)
    before = [name for page in read[-2:] for name in page.names]
    return not any(again[count:]) and (not count or before[-count:] == current.names[:count])


def _falls(pages: Iterable[Page]) -> bool:
    """Whether the rows of some pages come newest first, and all tell when; few rows may do so by chance."""
    times = [_time_of(one) for page in pages for one in page.records]
    told = [moment for moment in times if moment is not None]
    in_order = len(told) == len(times) and all(newer >= older for newer, older in pairwise(told))
    return in_order and len(set(told)) >= _ENOUGH


def _time_of(record: HistoryRecord | None) -> datetime | None:
    """When a row was made, where that is certain."""
    return record.created if record is not None and record.zoned else None


def _is_before(page: Page, moment: datetime) -> bool:
    return all(told is not None and told < moment for told in map(_time_of, page.records))


async def _first_page_before(moment: datetime, page: _Page) -> int:
    """The number of the first page, newest first, that is not wholly from `moment` or later: galloped to, then halved.

    New calls push old ones to later pages only, so nothing is missed meanwhile. Where times are not told it is 1.
    """

    async def is_later(number: int) -> bool:
        records = (await page(number)).records
        later = [told is not None and told >= moment for told in map(_time_of, records)]
        return bool(later) and all(later)

    low, high = 0, 1
    while high <= MAX_PAGES and await is_later(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await is_later(middle) else (low, middle)
    return high


class _Shared:
    """Lets callers that ask for the same thing at the same time share one answer, begun after they asked."""

    def __init__(self) -> None:
        self._next: dict[Any, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._locks: dict[Any, asyncio.Lock] = {}

    async def share(
        self, key: Any, make: Callable[[], Coroutine[Any, Any, list[HistoryRecord | None]]]
    ) -> list[HistoryRecord | None]:
        """The answer of `make`, which is begun when the one under way, begun before this call, has ended."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.ensure_future(self._make(key, make))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        found: list[HistoryRecord | None] = await asyncio.shield(task)
        return found

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who asked has heard of it, or has gone

    async def _make(
        self, key: Any, make: Callable[[], Coroutine[Any, Any, list[HistoryRecord | None]]]
    ) -> list[HistoryRecord | None]:
        async with self._locks.setdefault(key, asyncio.Lock()):
            # From here on it is under way: who asks now needs the next one.
            del self._next[key]
            return await make()


def _record(row: Mapping[str, Any]) -> HistoryRecord:
    created, zoned = _created(row)
    url = row.get("generation_url")
    return HistoryRecord(
        request_id=str(row.get("request_id") or ""),
        model=str(row.get("model_name") or ""),
        status=_STATES.get(str(row.get("model_status") or "").upper(), "PENDING"),
        cost_usd=parse_number(row.get("credits_deduction")),
        body=parse_inputs(row.get("request_body")),
        generation_urls=(url,) if isinstance(url, str) and url else (),
        error=str(row["error"]) if row.get("error") else None,
        created=created,
        zoned=zoned,
    )


def _joined(records: list[HistoryRecord]) -> HistoryRecord:
    """One request from its rows, of which there is one for each output, each with the whole cost."""
    done = next((one for one in records if one.status == "COMPLETED"), records[0])
    urls = dict.fromkeys(url for one in records for url in one.generation_urls)
    return replace(done, generation_urls=tuple(urls))


def _created(row: Mapping[str, Any]) -> tuple[datetime | None, bool]:
    """When a row was made, and whether it says in which zone."""
    for name in ("model_created", "created_at", "created", "timestamp"):
        found = parse_time(row.get(name))
        if found is not None:
            return (found, True) if found.tzinfo else (found.replace(tzinfo=UTC), False)
    return None, True
