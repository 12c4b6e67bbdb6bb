"""Pages of Segmind's request history: what one shows, and what several of them prove. Pure.

Source of the field names: the official SDK 1.3.0. The name of a row's timestamp is not published (the sort key is
`model_created`), so several names are tried; `request_body` may be JSON or the repr of a Python dict.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from prefect_imagegen.core.answers.history import parse_inputs
from prefect_imagegen.core.answers.json_values import parse_number, parse_time
from prefect_imagegen.ports import HistoryRecord

_ENOUGH_TIMES = 8
"""This many different times in descending order show that a listing is sorted by them."""
_STATES = {"COMPLETED": "COMPLETED", "SUCCESS": "COMPLETED", "SUCCEEDED": "COMPLETED", "FAILED": "FAILED"}

RowId = tuple[str, tuple[str, ...]]
"""What identifies a row: its request id and its output URLs (a request has one row for each of its outputs)."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the request history: its rows (None for a row that is not a JSON object), newest first.

    `total` is the number of rows on all pages, where the answer gives it. `has_more`: the answer says that more rows
    follow.
    """

    records: tuple[HistoryRecord | None, ...]
    total: int | None = None
    has_more: bool = False

    @property
    def row_ids(self) -> "list[RowId | None]":
        """The identity of each row; None for a row without a request id."""
        return [
            (record.request_id, record.generation_urls) if record and record.request_id else None
            for record in self.records
        ]

    @property
    def row_id_set(self) -> "frozenset[RowId]":
        """The identities of the rows that have a request id."""
        return frozenset(filter(None, self.row_ids))


def has_all_rows(read: Sequence[Page], current: Page, first_number: int) -> bool | None:
    """Whether the pages read hold as many rows as the answers announce.

    None where the answers give no total, or where reading did not begin at page 1. A row that came on two pages counts
    once. The smallest total counts: calls made while reading need not be seen.
    """
    totals = [page.total for page in (*read, current) if page.total is not None]
    if first_number > 1 or not totals:
        return None
    rows = {row_id for page in read for row_id in page.row_id_set}
    unnamed = sum(record is None or not record.request_id for page in read for record in page.records)
    return len(rows) + unnamed >= min(totals)


def is_more_announced(read: Sequence[Page], current: Page) -> bool:
    """Whether an empty page, or the page before it, announces more rows: then it is not the end."""
    return current.has_more or (bool(read) and read[-1].has_more)


def continues(read: Sequence[Page], current: Page, seen_ids: Collection[RowId | None]) -> bool:
    """Whether a page starts with new rows, or with the last rows of the pages before it (new calls push rows on).

    Rows that repeat in any other way mean that the order changed between pages, so a row may be on none of them.
    """
    repeats = [row_id in seen_ids for row_id in current.row_ids]
    count = repeats.index(False) if False in repeats else len(repeats)
    before = [row_id for page in read[-2:] for row_id in page.row_ids]
    return not any(repeats[count:]) and (not count or before[-count:] == current.row_ids[:count])


def is_newest_first(pages: Iterable[Page]) -> bool:
    """Whether every row has a time and the times descend, over enough different times to rule out chance."""
    times = [time_of(record) for page in pages for record in page.records]
    known = [time for time in times if time is not None]
    in_order = len(known) == len(times) and all(newer >= older for newer, older in pairwise(known))
    return in_order and len(set(known)) >= _ENOUGH_TIMES


def is_before(page: Page, moment: datetime) -> bool:
    """Whether every row has a time, and all of them lie before `moment`."""
    return all(time is not None and time < moment for time in map(time_of, page.records))


def is_from(page: Page, moment: datetime) -> bool:
    """Whether the page has rows, and all of them have a time at or after `moment`."""
    later = [time is not None and time >= moment for time in map(time_of, page.records)]
    return bool(later) and all(later)


def time_of(record: HistoryRecord | None) -> datetime | None:
    """When a row was created; None where the row gives no time, or one without a time zone."""
    return record.created if record is not None and record.zoned else None


def record_of(row: Mapping[str, Any]) -> HistoryRecord:
    """The record that one row of the history describes."""
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


def join_rows(records: Sequence[HistoryRecord]) -> HistoryRecord:
    """One request from its rows: there is one row for each output, and each states the whole cost."""
    done = next((record for record in records if record.status == "COMPLETED"), records[0])
    urls = dict.fromkeys(url for record in records for url in record.generation_urls)
    return replace(done, generation_urls=tuple(urls))


def _created(row: Mapping[str, Any]) -> tuple[datetime | None, bool]:
    """When a row was created (UTC if it has no time zone), and whether it has a time zone."""
    for name in ("model_created", "created_at", "created", "timestamp"):
        time = parse_time(row.get(name))
        if time is not None:
            return (time, True) if time.tzinfo else (time.replace(tzinfo=UTC), False)
    return None, True
