"""Events as a ledger holds them."""

from datetime import UTC, datetime
from typing import Any

from prefect_imagegen.core.ledger.events import Event, ImageFacts

START = datetime(2026, 8, 1, tzinfo=UTC)
IMAGE = ImageFacts("images/00/x.png", 1024, 768, "png", 5, "ab" * 32, ("blank",))


def event_of(
    kind: Any, key: bytes, attempt_id: str, *, run_id: str = "run-1", time: datetime = START, **facts: Any
) -> Event:
    """An event of an attempt; one of a delivery names an image, `IMAGE` unless another is given."""
    if kind == "delivered":
        facts = {"image": IMAGE} | facts
    return Event(kind, key, attempt_id, run_id, time, **facts)
