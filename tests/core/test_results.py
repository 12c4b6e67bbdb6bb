"""Results of requests survive their table; names in a store and metadata columns are as pinned here."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import ImageFacts
from prefect_imagegen.core.ledger.fold import KEY_TYPE
from prefect_imagegen.core.metadata import COLUMN_MEANINGS, METADATA_SCHEMA, STATUSES, carried_name
from prefect_imagegen.core.plan import KeySeen, Sharder
from prefect_imagegen.core.results import RESULT_SCHEMA, RequestResult, results_of, results_table

KEY = bytes(range(16))
IMAGE = ImageFacts("images/00/x.png", 1024, 768, "png", 2**33, "ab" * 32, ("blank",))


@pytest.mark.parametrize(
    "result",
    [
        RequestResult(KEY, "not_run"),
        RequestResult(KEY, "failed", "server_error", "500: Käse 🧀", attempts=3, maybe_paid=2, http_status=500),
        RequestResult(
            KEY,
            "generated",
            image=IMAGE,
            cost_usd=0.0402,
            attempts=1,
            latency_s=15.4,
            request_id="id-1",
            http_status=200,
            applied={"seed": 7, "nested": {"ü": [1, None]}},
            created_at=datetime(2026, 8, 1, 12, 0, 0, 123456, tzinfo=UTC),
        ),
    ],
    ids=lambda result: result.status,
)
def test_a_result_survives_its_table(result) -> None:
    """A result comes back from its table with every fact, null where there is none."""
    table = results_table([result])
    assert table.schema.equals(RESULT_SCHEMA)
    assert results_of(table) == {KEY: result}


def test_no_results_are_a_table_too() -> None:
    """A shard without results has a table of the same schema."""
    assert results_table([]).schema.equals(RESULT_SCHEMA)
    assert results_of(results_table([])) == {}


# The interface that scripts rely on: names and order of the metadata columns.
COLUMNS = [
    "row_index",
    "id",
    "request_key",
    "status",
    "error_kind",
    "error_message",
    "image_path",
    "width",
    "height",
    "format",
    "size_bytes",
    "sha256",
    "flags",
    "prompt",
    "seed",
    "model",
    "backend",
    "endpoint",
    "sandbox",
    "requested",
    "references",
    "applied",
    "cost_usd",
    "attempts",
    "latency_s",
    "queue_s",
    "request_id",
    "http_status",
    "created_at",
    "profile",
    "weights",
    "weights_license",
]


def test_metadata_has_the_promised_columns() -> None:
    """The metadata columns keep their names and order, and each has a meaning in words."""
    assert METADATA_SCHEMA.names == COLUMNS
    assert all(COLUMN_MEANINGS.values())
    assert list(STATUSES) == ["generated", "reused", "invalid", "failed", "held", "not_run"]


@given(st.text(max_size=8) | st.sampled_from(COLUMNS) | st.sampled_from(COLUMNS).map("manifest_{}".format))
def test_a_carried_name_is_never_ours(column) -> None:
    """A carried column never takes the name of one of ours, and keeps its own where that is free."""
    name = carried_name(column)
    assert name not in COLUMNS
    assert name == (f"manifest_{column}" if column in COLUMNS else column)


def test_the_store_layout_never_changes() -> None:
    """Objects lie where stores in the field have them."""
    key = KEY.hex()
    assert layout.image(key, "png") == f"images/00/{key}.png"
    assert layout.claim(key, 2) == f"ledger/claims/00/{key}/2.json"
    assert layout.claim_id(key, 2) == f"ledger/claims/00/{key}/2.id.json"
    assert layout.segment("s") == "ledger/segments/s.parquet"
    assert layout.run("r", "heartbeat.json") == "runs/r/heartbeat.json"
    assert layout.part("r", "metadata", 7) == "runs/r/metadata/part-00007.parquet"
    assert (layout.STORE_FILE, layout.GENERATIONS, layout.STORE_FORMAT) == ("store.json", "ledger/generations", 1)


def keys_of(numbers) -> pa.Array:
    return pa.array([number.to_bytes(16, "big") for number in numbers], KEY_TYPE)


@given(st.lists(st.lists(st.integers(0, 30), unique=True, max_size=8), max_size=6))
def test_seen_keys_keep_their_number(windows) -> None:
    """A key that came in an earlier window is known by the number that it came with; a new one is not known."""
    earlier_keys, expected = KeySeen(), {}
    for window in windows:
        assert earlier_keys.numbers(keys_of(window)) == [expected.get(number) for number in window]
        new = [number for number in window if number not in expected]
        expected |= {number: number * 7 for number in new}
        earlier_keys.add(keys_of(new), pa.array([number * 7 for number in new], pa.int32()))


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=40))
def test_shards_are_full_but_the_last_of_a_part(size, closes) -> None:
    """Shards are numbered without gaps, hold at most `size` rows, and end where a part ends."""
    sharder, numbers, parts = Sharder(size), [], [[]]
    for close in closes:
        numbers.append(sharder.next())
        parts[-1].append(numbers[-1])
        if close:
            sharder.close_shard()
            parts.append([])
    assert sorted(set(numbers)) == list(range(sharder.shards))
    assert numbers == sorted(numbers)
    for part in parts:
        assert all(part.count(shard) == size for shard in part[:-1] if shard != part[-1])
    assert sum(len(set(part)) for part in parts) == sharder.shards
