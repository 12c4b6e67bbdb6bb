"""Plans: what is to be done for each row, and why."""

import pytest

from prefect_imagegen.app.planning.stored_plan import request_from_json
from tests.app.planning.plans.conftest import ledger_of, plan, states, write

pytestmark = pytest.mark.anyio


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


def test_a_limit_ends_the_plan(tmp_path) -> None:
    """With a limit, rows beyond it are no part of the plan."""
    rows, summary = plan(write(tmp_path, {"prompt": ["a", "b"]}, {"prompt": ["c", None]}), limit=3)
    assert (states(rows), summary.rows) == (["new"] * 3, 3)


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
