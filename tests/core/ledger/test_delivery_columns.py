"""The columns of deliveries: declared once, the same in events, results and metadata; old ones stay as pinned."""

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Annotated

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.answers.jobs import job_of
from prefect_imagegen.core.columns import Column, columns_of, schema_with
from prefect_imagegen.core.ledger.delivery_columns import MEANINGS, facts_in
from prefect_imagegen.core.ledger.events import DeliveryFacts, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, events_table
from prefect_imagegen.core.metadata import COLUMN_MEANINGS, METADATA_SCHEMA
from prefect_imagegen.core.results import RESULT_SCHEMA, RequestResult, results_of, results_table
from prefect_imagegen.ports import Delivery

KEY = bytes(range(16))
TIME = datetime(2026, 11, 27, tzinfo=UTC)
IMAGE = ImageFacts("images/00/x.png", 1024, 768, "png", 2**33, "ab" * 32, ("blank",))
IMAGE_NAMES = ["image_path", "width", "height", "format", "size_bytes", "sha256", "flags"]
EVENT_NAMES = [
    *("type", "key", "attempt_id", "run_id", "time", "request_id", "error_kind", "error_message", "http_status"),
    *("cost_usd", "latency_s", "model", "cost_class", "seed", "backend", "endpoint", "applied", "account"),
    *IMAGE_NAMES,
]
"""The columns of ledger files as version 0.1.0 wrote them."""
RESULT_NAMES = [
    *("key", "status", "error_kind", "error_message", "cost_usd", "attempts", "maybe_paid", "paid", "latency_s"),
    *("request_id", "endpoint", "http_status", "applied", "created_at"),
    *IMAGE_NAMES,
]
"""The columns of results as version 0.1.0 wrote them."""


def declared() -> dict[str, Column]:
    """The columns that the records declare, by column name."""
    both = {**columns_of(ImageFacts), **columns_of(DeliveryFacts)}
    return {column.name or name: column for name, column in both.items()}


@pytest.mark.parametrize(("schema", "names"), [(EVENT_SCHEMA, EVENT_NAMES), (RESULT_SCHEMA, RESULT_NAMES)])
def test_old_columns_keep_their_order(schema, names) -> None:
    """New columns come between the old ones; those keep their names and their order."""
    assert [name for name in schema.names if name in names] == names


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (EVENT_SCHEMA, declared()),
        (RESULT_SCHEMA, declared()),
        (METADATA_SCHEMA, {name: column for name, column in declared().items() if column.meaning}),
    ],
    ids=["events", "results", "metadata"],
)
def test_every_table_has_the_columns_of_the_record(schema, expected) -> None:
    """Each field of the record is a column of the declared type in every table, in the metadata if it is explained."""
    assert {name: schema.field(name).type for name in expected} == {name: c.kind for name, c in expected.items()}
    strange = {name for name in declared() if name in schema.names} - set(expected)
    assert not strange
    if schema is METADATA_SCHEMA:
        assert {name: COLUMN_MEANINGS[name] for name in expected} == {name: c.meaning for name, c in expected.items()}


def test_every_field_of_the_record_is_a_column() -> None:
    """No fact of a delivery or an image is without a column, which would lose it on the way to the metadata."""
    assert set(columns_of(ImageFacts)) == {fact.name for fact in fields(ImageFacts)}
    assert set(columns_of(DeliveryFacts)) | {"image"} == {fact.name for fact in fields(DeliveryFacts)}
    for record in (Delivery, Event, RequestResult):
        assert issubclass(record, DeliveryFacts)


amounts = st.none() | st.floats(0, 1e9)
texts = st.none() | st.text(max_size=20)
deliveries = st.builds(
    DeliveryFacts,
    image=st.none() | st.just(IMAGE) | st.just(replace(IMAGE, flags=())),
    endpoint=texts,
    account=texts,
    applied=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    cost_usd=amounts,
    latency_s=amounts,
    queue_s=amounts,
    request_id=texts,
    http_status=st.none() | st.integers(100, 599),
)


@given(deliveries)
def test_a_delivery_survives_every_table(record) -> None:
    """All facts of a delivery come back from the table of results and from the ledger's, null where unknown."""
    result = RequestResult(KEY, "generated", created_at=TIME, **record.facts())
    assert results_of(results_table([result])) == {KEY: result}
    event = Event("delivered", KEY, "a", "run", TIME, **record.facts())
    (row,) = events_table([event]).to_pylist()
    assert DeliveryFacts(**facts_in(row)) == record


@pytest.mark.parametrize("name", sorted(set(declared()) - {"image_path", "width", "height", "flags"}))
def test_results_of_an_older_version_are_read(name) -> None:
    """A part of results that lacks a column, written by the version before it, is read; the fact is unknown."""
    result = RequestResult(KEY, "generated", image=IMAGE, queue_s=0.5, request_id="id", applied={"seed": 7})
    (read,) = results_of(results_table([result]).drop_columns([name])).values()
    assert (read.key, read.status) == (KEY, "generated")
    if name in {fact.name for fact in fields(DeliveryFacts)}:
        assert not getattr(read, name)
    else:
        assert getattr(read.image, name) is None


def test_a_new_column_follows_the_one_before_it() -> None:
    """A column that a table does not place stands behind the one before it in the record, the first at the end."""

    @dataclass
    class Record:
        first: Annotated[int, Column(pa.int32())] = 0
        second: Annotated[str, Column(pa.string(), name="two")] = ""
        third: Annotated[float, Column(pa.float64())] = 0.0
        no_column: int = 0

    kinds = {column.name or name: column.kind for name, column in columns_of(Record).items()}
    assert schema_with([pa.field("own", pa.bool_()), "two", pa.field("last", pa.bool_())], kinds) == pa.schema(
        [
            ("own", pa.bool_()),
            ("two", pa.string()),
            ("third", pa.float64()),
            ("last", pa.bool_()),
            ("first", pa.int32()),
        ]
    )
    with pytest.raises(KeyError):
        schema_with(["four"], kinds)


def test_every_explained_column_is_in_the_metadata_once() -> None:
    """The metadata explains each of its columns, and has no column twice."""
    assert list(COLUMN_MEANINGS) == METADATA_SCHEMA.names
    assert len(set(METADATA_SCHEMA.names)) == len(METADATA_SCHEMA)
    assert "account" not in MEANINGS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(json_values)
def test_no_time_in_the_queue_loses_an_image(value) -> None:
    """Whatever an API tells as `queue_time`, its image counts; what is no time of at most a day is null."""
    body = {"status": "COMPLETED", "output": "https://x.test/a.png", "metrics": {"cost": 0.04, "queue_time": value}}
    job = job_of(body)
    assert job is not None
    assert (job.state, len(job.outputs), job.cost_usd) == ("COMPLETED", 1, 0.04)
    assert job.queue_s is None or 0 <= job.queue_s <= 86_400
    results_table([RequestResult(KEY, "generated", queue_s=job.queue_s)])


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        *((0.3, 0.3), (0, 0.0), ("2.5", 2.5), (86_400, 86_400.0)),
        *((-0.1, None), (float("nan"), None), ("NaN", None), (float("inf"), None), (86_401, None), (10**400, None)),
        *((True, None), (None, None), ("soon", None), ([1], None), ({"s": 1}, None)),
    ],
)
def test_what_counts_as_a_time_in_the_queue(told, seconds) -> None:
    """A time is a number of seconds, as number or text, from 0 to a day; 0 is a time, and not unknown."""
    job = job_of({"status": "COMPLETED", "metrics": {"queue_time": told}})
    assert job is not None
    assert job.queue_s == seconds
