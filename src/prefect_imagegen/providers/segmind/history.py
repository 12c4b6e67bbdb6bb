"""Segmind's request history over HTTP: own requests of any age, with cost, inputs and outputs.

Source: the official SDK 1.3.0. A listing proves that a call is absent only if every answer has the known shape (an
object with a list of rows under `data`, and no error) and the pages are read to their end: an empty page that was not
announced to have followers, or the announced total. Anything else is a ProviderError.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

from prefect_imagegen.core.answers.history import announces_more, detail_rows, listed_rows, listed_total
from prefect_imagegen.core.answers.json_values import shape_of
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Candidate, Look, Verdict, Window, compare_calls, compare_models
from prefect_imagegen.ports import HistoryRecord
from prefect_imagegen.providers.segmind.history_pages import (
    Page,
    RowId,
    continues,
    has_all_rows,
    is_before,
    is_from,
    is_more_announced,
    is_newest_first,
    join_rows,
    record_of,
)
from prefect_imagegen.providers.segmind.shared_listings import Listing, SharedListings

PAGE_SIZE = 100
MAX_PAGES = 1000
_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_MAX_DAYS = 31
"""The API lists at most this many days at once."""
_MAX_SPANS = 13
"""At most this many listings of 31 days are searched for one call whose claim has clocks that lie far apart."""
_LISTING_TRIES = 3
"""How often a listing is read whose rows move between its pages."""

_PageReader = Callable[[int], Coroutine[Any, Any, Page]]
"""Reads the page of a number, counted from 1."""


class _MovedError(Exception):
    """A page repeats rows of other pages: the listing may have changed while it was read."""


class SegmindHistory:
    """The request history of one account on one host.

    `get_json` is the provider's GET with the key. `report_odd` is called, with a few words, for every answer that is
    not understood.
    """

    def __init__(
        self, base_url: str, get_json: Callable[..., Awaitable[Any]], report_odd: Callable[[str], None] = lambda _: None
    ) -> None:
        self._url = f"{base_url}/inference-request/request-history"
        self._get_json = get_json
        self._report_odd = report_odd
        self._listings = SharedListings()

    async def aclose(self) -> None:
        """Cancel the listings under way."""
        await self._listings.aclose()

    async def detail(self, request_id: str) -> HistoryRecord | None:
        """One own request by its id; None if the history does not (yet) have it.

        Raises ProviderError (`unknown` for an answer that is not understood).
        """
        try:
            answer = await self._get("the record of a request", f"{self._url}/{quote(request_id, safe='')}")
        except ProviderError as error:
            if error.status == 404:
                return None
            raise
        rows = detail_rows(answer, request_id)
        if rows is None:
            raise self._not_understood(f"the record of a request: {shape_of(answer)}")
        records = [record_of(row) for row in rows]
        return join_rows(records) if records else None

    async def records(self, model: str, start: date, end: date) -> list[HistoryRecord]:
        """Own requests of a model between two days (inclusive, at most 31 apart), newest first, one per request_id.

        An empty model means all models. Raises ProviderError if not all of them can be read.
        """
        by_id: dict[str, HistoryRecord] = {}
        for record in await self._read_steadily(lambda: self._walk(partial(self._page, model, start, end), 1, None)):
            if record is not None and record.request_id:
                by_id.setdefault(record.request_id, record)
        return list(by_id.values())

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        """Look once for the call of a claim: every request in the window that is, or could be, that call.

        Look-ups for the same hours share one listing. Raises ProviderError where the history cannot be read.
        """
        records = await self._listings.share(_hours(window), partial(self._around, *_hours(window)))
        candidates = []
        for record in records:
            if record is None:
                candidates.append(Candidate(None, "unclear", "PENDING"))
            elif window.takes(record.created, zoned=record.zoned):
                verdict = _verdict(record, model, claimed)
                if verdict != "differs":
                    candidates.append(Candidate(record.request_id or None, verdict, record.status))
        shown = frozenset(record.request_id for record in records if record is not None and record.request_id)
        return Look(tuple(candidates), shown)

    async def _around(self, first: datetime, last: datetime) -> Listing:
        """All own requests between two times, and those around them that are on the same pages."""
        start, end = (first - _DAY).date(), (last + _DAY).date()
        spans = -(-((end - start).days + 1) // _MAX_DAYS)
        if spans > _MAX_SPANS:
            raise ProviderError("unknown", f"the clocks of the claim are years apart: {start} to {end}")
        records: Listing = []
        for _ in range(spans):
            begin = max(start, end - timedelta(days=_MAX_DAYS - 1))
            records += await self._read_steadily(partial(self._between, begin, end, first, last))
            end = begin - _DAY
        return records

    async def _read_steadily(self, read: Callable[[], Awaitable[Listing]]) -> Listing:
        """Read a listing until it does not move meanwhile: new calls push rows to later pages."""
        for _ in range(_LISTING_TRIES - 1):
            with suppress(_MovedError):
                return await read()
        try:
            return await read()
        except _MovedError as error:
            raise self._not_understood(str(error)) from error

    async def _between(self, start: date, end: date, first: datetime, last: datetime) -> Listing:
        """The requests between two times, from a listing of at most 31 days."""
        pages: dict[int, Page] = {}

        async def read_page(number: int) -> Page:
            if number not in pages:
                pages[number] = await self._page("", start, end, number)
            return pages[number]

        number = await _first_page_before(last, read_page)
        if number > 1 and not is_newest_first(page for _, page in sorted(pages.items())):
            number = 1  # not sorted by time, so no page can be left out
        if len(pages) > 1:
            pages.clear()  # rows may have been pushed on since: only pages read in order prove something
        return await self._walk(read_page, number, first)

    async def _walk(self, read_page: _PageReader, number: int, stop_before: datetime | None) -> Listing:
        """All rows from a page on, up to the first page that lies wholly before `stop_before`, or to the end.

        The end is a page without rows, or the total that the answers give. A page that repeats rows is not the end:
        the API may clamp page numbers, or ignore them.
        """
        records: Listing = []
        seen_ids: set[RowId] = set()
        read: list[Page] = []
        first_number = number
        while number < first_number + MAX_PAGES:
            current = await read_page(number)
            is_all = has_all_rows(read, current, first_number)
            if not current.records and (is_all or (is_all is None and not is_more_announced(read, current))):
                return records
            if not current.records or current in read or (current.row_id_set and current.row_id_set <= seen_ids):
                if is_all:
                    return records
                if current.records and current not in read:
                    raise _MovedError("the request history: a page repeats rows of others")
                trouble = "repeats what another one showed" if current.records else "is empty before the end is reached"
                raise self._not_understood(f"the request history: a page {trouble}")
            if not continues(read, current, seen_ids):
                raise _MovedError("the request history: pages overlap in another order")
            records += current.records
            seen_ids |= current.row_id_set
            read.append(current)
            if stop_before is not None and is_before(current, stop_before) and is_newest_first(read):
                return records
            number += 1
        raise ProviderError("unknown", f"the request history has more than {MAX_PAGES * PAGE_SIZE} requests to read")

    async def _page(self, model: str, start: date, end: date, number: int) -> Page:
        """Read one page. An empty model asks for all: the history may name models otherwise than we do."""
        params = {
            "page": str(number),
            "per_page": str(PAGE_SIZE),
            "from_date": start.isoformat(),
            "to_date": end.isoformat(),
        } | ({"model_name": model} if model else {})
        answer = await self._get("the request history", self._url, params=params)
        rows = listed_rows(answer)
        if rows is None:
            raise self._not_understood(f"the request history: {shape_of(answer)}")
        return Page(
            tuple(record_of(row) if isinstance(row, dict) else None for row in rows),
            listed_total(answer),
            announces_more(answer),
        )

    async def _get(self, label: str, url: str, **options: Any) -> Any:
        """The JSON of a GET; an answer that is not JSON counts as not understood."""
        try:
            return await self._get_json(url, **options)
        except ProviderError as error:
            if error.kind != "protocol":
                raise
            raise self._not_understood(f"{label}: {'no JSON' if error.status == 200 else error.message}") from error

    def _not_understood(self, description: str) -> ProviderError:
        self._report_odd(description)
        return ProviderError("unknown", f"an answer is not understood: {description}")


def _hours(window: Window) -> tuple[datetime, datetime]:
    """The full hours around a window, so that look-ups for calls of about the same time ask for the same listing."""
    first = window.first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    last = window.last.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + _HOUR
    return first, last


def _verdict(record: HistoryRecord, model: str, claimed: Mapping[str, Any]) -> Verdict:
    """Whether a row is the call of a claim: `same`, `differs`, or `unclear`."""
    verdicts = {compare_models(record.model, model), compare_calls(record.body, claimed)}
    return "differs" if "differs" in verdicts else "unclear" if "unclear" in verdicts else "same"


async def _first_page_before(moment: datetime, read_page: _PageReader) -> int:
    """The number of the first page, newest first, that has a row from before `moment`, by a doubling binary search.

    New calls push old ones to later pages only, so nothing is missed meanwhile. Where rows have no times it is 1.
    """

    async def is_later(number: int) -> bool:
        return is_from(await read_page(number), moment)

    low, high = 0, 1
    while high <= MAX_PAGES and await is_later(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await is_later(middle) else (low, middle)
    return high
