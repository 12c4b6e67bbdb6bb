"""The model, the moment and the window of the calls that are looked for, and a history that behaves as a test wants."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect_imagegen.core.policy.history_lookup import Window

MODEL = "flux-2-klein-9b"
NOW = datetime(2026, 11, 23, 20, tzinfo=UTC)


def around(moment: datetime) -> Window:
    return Window(moment - timedelta(minutes=10), moment + timedelta(minutes=20))


@dataclass
class Listing:
    """A request history with any order, paging and total; each of its rows is true."""

    rows: list[dict[str, Any]]
    size: int = 100
    beyond: str = "empty"
    """What a page number after the last one gives: nothing, the last page, or the first one; `ignored`: always that."""
    total: str = "none"
    zero_based: bool = False
    gets: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    when: Callable[[dict[str, Any]], datetime] | None = None

    async def get_json(self, _: str, params: dict[str, str]) -> Any:
        self.gets += 1
        self.asked.append((params["from_date"], params["to_date"]))
        rows = self.rows
        if self.when is not None:
            rows = [row for row in rows if params["from_date"] <= str(self.when(row).date()) <= params["to_date"]]
        size = min(self.size, int(params["per_page"]))
        pages = [rows[start : start + size] for start in range(0, len(rows), size)] or [[]]
        number = int(params["page"]) - 1
        if self.beyond == "ignored":
            number = 0
        elif number >= len(pages):
            pages.append([])
            number = {"empty": -1, "last": -2, "first": 0}[self.beyond]
        page = pages[number]
        return {"data": page} | ({"total": len(rows)} if self.total == "told" else {})


def call(n: int, moment: datetime, *, form: str = "zoned", body: Any = None) -> dict[str, Any]:
    created = {
        "zoned": moment.isoformat(),
        "naive": moment.replace(tzinfo=None).isoformat(),
        "zone +9": (moment + timedelta(hours=9)).replace(tzinfo=None).isoformat(),
        "day": moment.date().isoformat(),
        "zero": "0001-01-01T00:00:00Z",
        "seconds": moment.timestamp(),
        "none": None,
    }[form]
    return {
        "request_id": f"r{n}",
        "model_name": MODEL,
        "model_status": "COMPLETED",
        "request_body": repr({"prompt": "a cup", "seed": n}) if body is None else body,
        "model_created": created,
    }
