"""Segmind's request history: own requests of any age, with cost, inputs and outputs.

Source: the official SDK 1.3.0. The names of the rows' timestamps are not published, so time is bounded by the
query's dates alone; `request_body` may be JSON or the repr of a Python dict.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from prefect_imagegen.core import answers
from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.core.request import plain_number
from prefect_imagegen.ports import HistoryRecord

PAGE_SIZE = 100
MAX_PAGES = 20
_STATES = {"COMPLETED": "COMPLETED", "FAILED": "FAILED"}


class SegmindHistory:
    """List and detail of the request history below one host; `get_json` is the backend's GET with the key."""

    def __init__(self, base_url: str, get_json: Callable[..., Awaitable[Any]]) -> None:
        self._url = f"{base_url}/inference-request/request-history"
        self._get_json = get_json

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

    async def records(self, model: str, since: datetime) -> list[HistoryRecord]:
        """Own requests of a model since a day, newest first, one per request_id, at most 2,000."""
        found: dict[str, HistoryRecord] = {}
        for page in range(1, MAX_PAGES + 1):
            params = {
                "page": str(page),
                "per_page": str(PAGE_SIZE),
                "model_name": model,
                "from_date": since.astimezone(UTC).strftime("%Y-%m-%d"),
                "to_date": datetime.now(UTC).strftime("%Y-%m-%d"),
            }
            rows = _rows(await self._get_json(self._url, params=params))
            for record in filter(None, map(_record, rows)):
                found.setdefault(record.request_id, record)
            if len(rows) < PAGE_SIZE:
                break
        return list(found.values())

    async def find(self, model: str, body: dict[str, Any], since: datetime, known: frozenset[str]) -> str | None:
        """The request_id of a call with this very body that nobody knows of yet; None if there is none.

        Compared are all fields that we sent. A record without inputs counts as not seen.
        """
        for record in await self.records(model, since):
            if record.request_id in known or record.body is None or record.model != model:
                continue
            if all(_equal(record.body.get(name), value) for name, value in body.items()):
                return record.request_id
        return None


def _equal(seen: Any, sent: Any) -> bool:
    return bool(plain_number(seen) == plain_number(sent)) or (sent in ([], None) and seen in ([], None, ""))


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
    )
