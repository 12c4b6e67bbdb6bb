"""Keys, events of any type, and what is folded from them."""

from datetime import timedelta

import pyarrow as pa

from prefect_imagegen.core.ledger.events import RANK, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import (
    KEY_TYPE,
    fold,
)
from tests.support.builders.ledger import START, event_of

KEY, OTHER, THIRD = bytes(16), b"\x01" * 16, b"\x02" * 16
TYPES = list(RANK)


def event(kind, attempt="a", key=KEY, minute=0, **facts) -> Event:
    if kind == "delivered":
        facts.setdefault("image", ImageFacts(f"images/{attempt}.png", 1024, 768, "png", 5, attempt * 8, ("blank",)))
    return event_of(kind, key, attempt, time=START + timedelta(minutes=minute), **facts)


def attempt(key: bytes, n: object) -> str:
    return f"{key.hex()}-{n}"


NAMES = ["a", "b", *(attempt(key, n) for key in (KEY, OTHER) for n in (1, 2, 10))]


def set_of(rows):
    """Rows without duplicates: a segment may be read twice."""
    return [dict(items) for items in {tuple(sorted(row.items(), key=str)) for row in rows}]


def summary(*tables):
    keys = pa.array([KEY, OTHER, THIRD], KEY_TYPE)
    view = fold(tables)
    return (
        view.states(keys).to_pylist(),
        {key: view.failure(key) for key in (KEY, OTHER)},
        view.facts(keys),
        [view.rank_of(name) for name in NAMES],
        [sorted(row["attempt_id"] for row in set_of(view.course(key))) for key in (KEY, OTHER)],
        [view.next_attempt(key) for key in (KEY, OTHER)],
        view.costs(),
    )
