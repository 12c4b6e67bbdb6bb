"""Plans: what is to be done for each row, in which shard, and what of it comes back from the store."""

import json
import secrets
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_imagegen.app.planning.plan import PlanDraft, Planner
from prefect_imagegen.app.planning.stored_plan import StoredPlan, request_from_json, request_to_json
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import LedgerView, events_table, fold
from prefect_imagegen.core.plan import SHOWN_ERRORS
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.inputs.manifests import manifest as manifests
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.store.object_store import open_object_store

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 8, 1, tzinfo=UTC)
MODEL = "flux-2-klein-9b"
EMPTY = LedgerView.empty()


@pytest.fixture
def store():
    opened = open_object_store(f"memory://{secrets.token_hex(6)}/store")
    yield opened
    opened.close()


def write(folder, *tables) -> Manifest:
    """A manifest of several files: each of them is a window of its own."""
    for n, table in enumerate(tables):
        pq.write_table(pa.table(table), folder / f"{n}.parquet")
    return Manifest(str(folder))


def planner(manifest, ledger=EMPTY, *, shard_size=2, limit=None, **options) -> Planner:
    return Planner(manifest, ManifestOptions(**options), ledger, shard_size=shard_size, limit=limit)


def plan(manifest, ledger=EMPTY, **options):
    """All rows of a plan, and its summary."""
    chosen = planner(manifest, ledger, **options)
    return [row for table in chosen.windows() for row in table.to_pylist()], chosen.summary


def states(rows) -> list[str]:
    return [row["state"] for row in rows]


def ledger_of(**kinds) -> LedgerView:
    """A ledger in which the prompt has ended so: type of event, or (failed, kind, message)."""
    events = []
    for prompt, kind in kinds.items():
        key = GenerationRequest(MODEL, {"prompt": prompt, "seed": 7}).key
        name, error_kind, message = kind if isinstance(kind, tuple) else (kind, None, None)
        events.append(Event(name, key, f"attempt {prompt}", "r", NOW, error_kind=error_kind, error_message=message))
    return fold([events_table(events)])


# States


def test_every_state_has_its_reason(tmp_path) -> None:
    """Each row is new, done, identical, invalid, failed or unsettled, by request and ledger, with the reason."""
    ledger = ledger_of(
        done="delivered",
        sent="submitted",
        claimed="claimed",
        policy=("failed", "content_policy", "no cups"),
        refused=("failed", "invalid_request", ""),
        broken=("failed", "server_error", "500"),
        held=("failed", "unknown", ""),
    )
    prompts = ["fresh", "done", "sent", "claimed", "policy", "refused", "broken", "held", "fresh", None]
    rows, summary = plan(write(tmp_path, {"prompt": prompts, "seed": [7] * 10}), ledger)
    assert states(rows) == [
        *("new", "done", "unsettled", "unsettled", "failed", "failed", "new", "new", "identical", "invalid")
    ]
    assert (rows[4]["error_kind"], rows[4]["error_message"]) == ("content_policy", "no cups")
    assert rows[5]["error_kind"] == "invalid_request"
    assert rows[5]["error_message"]
    assert (rows[9]["error_kind"], rows[9]["error_message"]) == ("invalid_row", "prompt: the prompt is missing")
    assert rows[9]["request_key"] is None
    assert summary.rows == sum(summary.counts.values()) == 10
    assert summary.to_make == 5


def test_rows_tell_what_they_ask_for(tmp_path) -> None:
    """A planned row tells its position, key, model, prompt, seed and the whole request."""
    (row,), _ = plan(write(tmp_path, {"prompt": ["a cup"], "seed": [7], "steps": [9], "model": ["flux-2-klein-4b"]}))
    request = request_from_json(row["request"])
    assert request.key == row["request_key"]
    assert request.params["steps"] == 9
    assert (row["row_index"], row["model"], row["prompt"], row["seed"]) == (0, "flux-2-klein-4b", "a cup", 7)


def test_the_plan_does_not_depend_on_row_order(tmp_path) -> None:
    """The keys of rows are the same in any order of the manifest."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    prompts = [f"prompt {n}" for n in range(20)]
    rows, _ = plan(write(tmp_path / "a", {"prompt": prompts}))
    other, _ = plan(write(tmp_path / "b", {"prompt": prompts[:7]}, {"prompt": prompts[:6:-1]}))
    assert {row["prompt"]: row["request_key"] for row in rows} == {row["prompt"]: row["request_key"] for row in other}


def test_the_summary_counts_what_it_will_cost(tmp_path) -> None:
    """The summary counts rows by state and model, and images to be made by what their price depends on."""
    table = {
        "prompt": ["a", "b", "c", "a", "done"],
        "seed": [7] * 5,
        "model": [None, "flux-2-klein-4b", "x", None, None],
    }
    _, summary = plan(write(tmp_path, table), ledger_of(done="delivered"))
    content = summary.as_dict()
    assert content["counts"] == {
        "new": 3,
        "done": 1,
        "identical": 1,
        "invalid": 0,
        "busy": 0,
        "failed": 0,
        "unsettled": 0,
    }
    assert content["models"] == {MODEL: 3, "flux-2-klein-4b": 1, "x": 1}
    how = "steps=20 sampler=euler references=0"
    assert summary.to_make_by_class == {
        f"{MODEL} {how}": 1,
        f"flux-2-klein-4b {how}": 1,
        "x steps=- sampler=- references=0": 1,
    }


def test_row_errors_are_all_counted_and_some_shown(tmp_path) -> None:
    """All row errors are counted by column and reason; the first of them are kept to be shown."""
    table = {"prompt": ["x", None] * 30, "steps": [0] * 60}
    rows, summary = plan(write(tmp_path, table))
    assert summary.counts["invalid"] == 60
    assert len(summary.errors) == SHOWN_ERRORS
    assert summary.errors[0].row == 0
    assert summary.reasons == {"steps: it must lie in 1 to 100": 60, "prompt: the prompt is missing": 30}
    assert rows[1]["error_message"] == "prompt: the prompt is missing; steps: it must lie in 1 to 100"


def test_a_limit_ends_the_plan(tmp_path) -> None:
    """With a limit, rows beyond it are no part of the plan."""
    rows, summary = plan(write(tmp_path, {"prompt": ["a", "b"]}, {"prompt": ["c", None]}), limit=3)
    assert (states(rows), summary.rows) == (["new"] * 3, 3)


# Identical rows and ids


def test_identical_rows_share_a_shard_across_windows(tmp_path) -> None:
    """An identical row names the shard of the first such row, in the same window or in one before."""
    rows, summary = plan(
        write(tmp_path, {"prompt": ["a", "b", "c", "a"]}, {"prompt": ["c", "d", "d"]}, {"prompt": ["a", "d", "e"]})
    )
    assert states(rows) == [
        *("new", "new", "new", "identical"),
        *("identical", "new", "identical"),
        *("identical", "identical", "new"),
    ]
    assert [row["shard"] for row in rows] == [0, 0, 1, 0, 1, 2, 2, 0, 2, 3]
    assert summary.shards == 4


def test_windows_of_one_file_are_windows_too(tmp_path, monkeypatch) -> None:
    """A long file is planned window by window, with identical rows found across them."""
    monkeypatch.setattr(manifests, "WINDOW_ROWS", 3)
    prompts = ["a", "b", "c", "a", "d", "b", "e"]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "m.parquet")
    chosen = planner(Manifest(str(tmp_path / "m.parquet")))
    tables = list(chosen.windows())
    assert [len(table) for table in tables] == [3, 3, 1]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["row_index"] for row in rows] == list(range(7))
    assert states(rows) == ["new", "new", "new", "identical", "new", "identical", "new"]
    assert [row["shard"] for row in rows] == [0, 0, 1, 0, 2, 0, 3]


def test_identical_to_a_delivered_row_is_done(tmp_path) -> None:
    """Rows whose image is there already are all done, however many ask for it."""
    rows, _ = plan(write(tmp_path, {"prompt": ["done"] * 3, "seed": [7] * 3}), ledger_of(done="delivered"))
    assert states(rows) == ["done"] * 3
    assert {row["shard"] for row in rows} == {None}


def test_seeds_make_variants(tmp_path) -> None:
    """Equal prompts with different seeds are different requests."""
    rows, _ = plan(write(tmp_path, {"prompt": ["a"] * 3, "seed": [1, 2, 1]}))
    assert states(rows) == ["new", "new", "identical"]


def test_doubled_ids_are_errors_across_windows(tmp_path) -> None:
    """An id that came before makes a row invalid, and the message names the row that has it."""
    manifest = write(
        tmp_path,
        {"prompt": ["a", "b", "c"], "name": ["x", "y", "x"]},
        {"prompt": ["d", "e"], "name": ["y", "z"]},
    )
    rows, summary = plan(manifest, id_column="name")
    assert states(rows) == ["new", "new", "invalid", "invalid", "new"]
    assert "the id is that of row 0 already" in rows[2]["error_message"]
    assert "the id is that of row 1 already" in rows[3]["error_message"]
    assert [(error.row, error.column, error.value) for error in summary.errors] == [
        (2, "name", "'x'"),
        (3, "name", "'y'"),
    ]


def test_doubled_ids_matter_in_a_named_column_only(tmp_path) -> None:
    """Without a named id column, equal values of a column called id are nobody's concern."""
    rows, _ = plan(write(tmp_path, {"prompt": ["a", "b"], "id": ["x", "x"]}))
    assert states(rows) == ["new", "new"]
    assert [row["id"] for row in rows] == [None, None]


def test_ids_derive_seeds(tmp_path) -> None:
    """With an id column equal prompts are variants, each with a seed of its own."""
    rows, _ = plan(write(tmp_path, {"prompt": ["a", "a"], "name": [1, 2]}), id_column="name")
    assert states(rows) == ["new", "new"]
    assert [row["id"] for row in rows] == ["1", "2"]
    assert rows[0]["seed"] != rows[1]["seed"]


# Shards


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_shards_have_a_size_and_never_span_parts(tmp_path, size) -> None:
    """No shard is larger than the size, shards are numbered in order, and each lies in one part."""
    tables = [{"prompt": [f"{part}-{n}" for n in range(rows)]} for part, rows in enumerate((5, 1, 4))]
    chosen = planner(write(tmp_path, *tables), shard_size=size)
    parts = [table["shard"].to_pylist() for table in chosen.windows()]
    numbers = [shard for part in parts for shard in part]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(chosen.summary.shards))
    assert max(numbers.count(shard) for shard in numbers) <= size
    assert sum(len(set(part)) for part in parts) == chosen.summary.shards


def test_rows_without_work_fill_no_shard(tmp_path) -> None:
    """Done, identical and invalid rows take no room in a shard."""
    table = {"prompt": ["a", "done", "a", None, "b", "c"], "seed": [7] * 6}
    rows, summary = plan(write(tmp_path, table), ledger_of(done="delivered"))
    assert [row["shard"] for row in rows] == [0, None, 0, None, 0, 1]
    assert summary.shards == 2


def test_nothing_to_do_has_no_shards(tmp_path) -> None:
    """A plan in which all is done has no shards at all."""
    _, summary = plan(write(tmp_path, {"prompt": ["done"], "seed": [7]}), ledger_of(done="delivered"))
    assert (summary.shards, summary.to_make) == (0, 0)


# Refusals


@pytest.mark.parametrize(
    ("table", "options", "kind", "words"),
    [
        ({"text": ["a"]}, {}, "manifest_schema", "--column prompt=text"),
        ({"prompt": ["a"]}, {"columns": {"seed": ["sed"]}}, "manifest_schema", "no column 'sed'"),
        ({"prompt": ["a"]}, {"values": {"step": 4}}, "unknown_field", "Did you mean 'steps'?"),
        ({"prompt": ["a"], "x": [1]}, {"columns": {"guidance": ["x"]}}, "unknown_field", "no field 'guidance'"),
        ({"prompt": []}, {}, "manifest_empty", "has no rows"),
    ],
)
def test_a_manifest_that_cannot_be_planned(tmp_path, table, options, kind, words) -> None:
    """A missing column, an unknown field or an empty manifest is refused with the culprit and the remedy."""
    with pytest.raises(RefusedError) as raised:
        plan(write(tmp_path, table), **options)
    assert raised.value.kind == kind
    assert words in str(raised.value)


def test_a_field_of_a_passed_through_model_is_allowed(tmp_path) -> None:
    """A field that we do not know is sent where a row's model may know it."""
    table = {"prompt": ["a", "b"], "model": [MODEL, "qwen-image"], "x": [1.5, 2.5]}
    rows, _ = plan(write(tmp_path, table), columns={"guidance": ["x"]})
    params = [dict(request_from_json(row["request"]).params) for row in rows]
    assert ["guidance" in fields for fields in params] == [False, True]


def test_csv_and_json_lines_give_the_same_plan(tmp_path) -> None:
    """The same rows as Parquet, CSV and JSON lines are the same requests, numbers as text included."""
    pq.write_table(pa.table({"prompt": ["007", "b"], "name": ["1", "2"], "cfg": [5.5, None]}), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("prompt,name,cfg\n007,1,5.5\nb,2,\n")
    (tmp_path / "m.jsonl").write_text('{"prompt":"007","name":"1","cfg":5.5}\n{"prompt":"b","name":"2"}\n')
    keys = [
        [row["request_key"] for row in plan(Manifest(str(tmp_path / name)), id_column="name")[0]]
        for name in ("m.parquet", "m.csv", "m.jsonl")
    ]
    assert keys[0] == keys[1] == keys[2]
    assert None not in keys[0]


def test_csv_text_fields_are_text(tmp_path) -> None:
    """Every field that a model takes as text is read as text from a CSV, mapped or not."""
    (tmp_path / "m.csv").write_text("words,negative_prompt,avoid\n7,8,9\n")
    manifest = Manifest(str(tmp_path / "m.csv"))
    (row,), _ = plan(manifest, columns={"prompt": ["words"]})
    assert request_from_json(row["request"]).params["negative_prompt"] == "8"
    (row,), _ = plan(manifest, columns={"prompt": ["words"], "negative_prompt": ["avoid"]})
    assert request_from_json(row["request"]).params["negative_prompt"] == "9"


# In the store


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


CELLS = {
    pa.string(): st.text(max_size=20),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(max_size=8),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(),
    pa.list_(pa.string()): st.lists(st.none() | st.text(max_size=8), max_size=3),
    pa.list_(pa.int64()): st.lists(st.integers(0, 9), max_size=3),
    pa.struct([("a", pa.string())]): st.fixed_dictionaries({"a": st.text(max_size=4)}),
    pa.decimal128(9, 2): st.decimals(-1000, 1000, places=2),
}
NAMES = st.sampled_from(
    ["prompt", "model", "seed", "image_urls", "negative_prompt", "cfg", "steps", "go_fast", "quality", "aspect_ratio"]
) | st.text(max_size=6)


@st.composite
def tables(draw) -> pa.Table:
    """Any table: known and unknown columns of any type, with nulls, of no or some rows."""
    count = draw(st.integers(0, 4))
    columns = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(list(CELLS)))
        values = draw(st.lists(st.none() | CELLS[kind], min_size=count, max_size=count))
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


@settings(max_examples=200)
@given(tables(), st.sampled_from(["parquet", "jsonl", "csv"]), st.binary(max_size=4))
def test_no_manifest_raises(tmp_path_factory, table, suffix, junk) -> None:
    """Whatever a manifest holds, each of its rows is planned or told as invalid, or the file is refused by name."""
    path = tmp_path_factory.mktemp("fuzz") / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        rows = [json.dumps(row, default=str) for row in table.to_pylist()]
        lines = rows if suffix == "jsonl" else [",".join(json.dumps(name) for name in table.column_names), *rows]
        path.write_bytes("\n".join(lines).encode(errors="replace") + junk)
    refusal = None
    try:
        rows, summary = plan(Manifest(str(path)))
    except RefusedError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(path) in refusal or "column" in refusal
        return
    assert sum(summary.counts.values()) == summary.rows
    assert len(rows) == summary.rows
    assert len(summary.errors) == min(SHOWN_ERRORS, sum(summary.reasons.values()))
