"""Plans in a store: what is written comes back."""

import secrets
from datetime import date

import pyarrow as pa
import pytest

from prefect_imagegen.app.planning.plan import PlanDraft
from prefect_imagegen.app.planning.stored_plan import StoredPlan, request_from_json, request_to_json
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.store.object_store import open_object_store
from tests.app.planning.plans.conftest import MODEL, NOW, plan, planner, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def store():
    opened = open_object_store(f"memory://{secrets.token_hex(6)}/store")
    yield opened
    opened.close()


async def written(store, chosen) -> StoredPlan:
    draft = PlanDraft(chosen)
    try:
        draft.make(keep=True)
        await draft.upload(store, "run-1")
    finally:
        draft.close()
    return await StoredPlan.load(store, "run-1")


async def test_a_written_plan_comes_back(tmp_path, store) -> None:
    """What was planned comes back from the store: rows, shards, parts and the requests of each shard in order."""
    manifest = write(tmp_path, {"prompt": ["a", "b", "c", "a"]}, {"prompt": ["c"]}, {"prompt": [None, "d", "e", "f"]})
    direct, summary = plan(manifest)
    stored = await written(store, planner(manifest))
    assert (stored.rows, stored.shards) == (9, summary.shards)
    rows = [row async for _, table in stored.parts() for row in table.to_pylist()]
    assert rows == direct
    shards = [await stored.shard(index) for index in range(stored.shards)]
    assert [[part.request.prompt for part in shard] for shard in shards] == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert [[part.row_index for part in shard] for shard in shards] == [[0, 1], [2], [6, 7], [8]]
    assert all(part.key == part.request.key for shard in shards for part in shard)
    # In any order, too: a retried shard goes back.
    assert [part.row_index for part in await stored.shard(0)] == [0, 1]


async def test_the_plan_lies_where_the_layout_says(tmp_path, store) -> None:
    """A plan's parts lie under its run, with plan.json beside them, whose summary is that of the plan."""
    stored = await written(store, planner(write(tmp_path, {"prompt": ["a"]}, {"prompt": ["b"]})))
    assert [info.path for info in await store.list("")] == [
        *("runs/run-1/plan/part-00000.parquet", "runs/run-1/plan/part-00001.parquet", "runs/run-1/plan/plan.json")
    ]
    assert stored.content["counts"]["new"] == 2


async def test_a_draft_writes_nothing_before_it_is_uploaded(tmp_path, store) -> None:
    """Planning alone leaves the store empty, and no temporary files once it is closed."""
    draft = PlanDraft(planner(write(tmp_path, {"prompt": ["a"]})))
    draft.make(keep=True)
    folder = draft._path(0).parent
    assert list(await store.list("")) == []
    draft.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    "array",
    [
        pa.array([date(2026, 8, 1), None]),
        pa.array([NOW, None], pa.timestamp("ns", tz="Europe/Vienna")),
        pa.array([b"\0\xff", None]),
        pa.array([[1, None], None]),
        pa.array([{"a": "x", "b": 1.5}, None]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([1, None], pa.uint8()),
        pa.array([None, None]),
        pa.array(["12.50", None]).cast(pa.decimal128(10, 2)),
    ],
    ids=lambda array: str(array.type),
)
async def test_carried_columns_keep_type_and_value(tmp_path, store, array) -> None:
    """A further column of any type comes through the plan unchanged, for invalid rows too."""
    table = pa.table({"prompt": ["a", None], "Ü 1": array, "status": array})
    stored = await written(store, planner(write(tmp_path, table), carry=["Ü 1", "status"]))
    assert stored.carried == {"Ü 1": "Ü 1", "status": "manifest_status"}
    ((_, part),) = [numbered_part async for numbered_part in stored.parts()]
    for name in ("c_0", "c_1"):
        assert part[name].type == array.type
        assert part[name].to_pylist() == array.to_pylist()


async def test_a_run_without_plan_is_said(store) -> None:
    """A run that has no whole plan is an error that names where it was looked for."""
    with pytest.raises(StoreError) as raised:
        await StoredPlan.load(store, "run-9")
    assert raised.value.kind == "run_not_found"
    assert "runs/run-9/plan/plan.json" in raised.value.message


def test_a_request_survives_its_text_form() -> None:
    """A request comes back from its text with the same key, references and types."""
    references = (Reference("url", "https://a/b", "https://a/b"), Reference("sha256", "ab" * 32, "s3://x/y"))
    params = {"prompt": "Käse 🧀\n", "seed": 2**63 - 1, "cfg": 5.5, "go_fast": False, "x": None}
    request = GenerationRequest(MODEL, params, references, "fast", "w1")
    restored = request_from_json(request_to_json(request))
    assert restored == request
    assert restored.key == request.key
