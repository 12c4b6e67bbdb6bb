"""Calls for type checkers: right ones, and wrong ones that must be errors. Checked, never run."""

from pathlib import Path
from typing import assert_type

from prefect_imagegen import PlanSummary, RunOptions, RunResult, StoreSettings, agenerate, aplan, generate, plan

assert_type(generate("prompts.csv", Path("store")), RunResult)
assert_type(generate(Path("prompts.csv"), StoreSettings("s3://b"), backend="sandbox", limit=8, columns={}), RunResult)
assert_type(plan(manifest="prompts.csv", store="store", storage_options={"anon": True}, on_unknown="hold"), PlanSummary)
assert_type(RunOptions(limit=8, execution={"deadline": 3.0}).limit, int | None)
assert_type(RunOptions().endpoints, list[str])


async def in_a_loop() -> None:
    """The async twins."""
    assert_type(await agenerate("prompts.csv", "store", max_cost_usd=1), RunResult)
    assert_type(await aplan("prompts.csv", "store", check_references="none"), PlanSummary)
    await agenerate("prompts.csv", "store", limit="8")  # type: ignore[arg-type]


generate("prompts.csv", "store", limit="8")  # type: ignore[arg-type]
generate("prompts.csv", "store", limitt=8)  # type: ignore[call-arg]
generate("prompts.csv", "store", on_unknown="guess")  # type: ignore[arg-type]
generate("prompts.csv", "store", "sandbox")  # type: ignore[arg-type, call-arg]
generate("prompts.csv")  # type: ignore[call-arg]
plan(7, "store")  # type: ignore[arg-type]
RunOptions(limit="8")  # type: ignore[arg-type]
RunOptions(limitt=8)  # type: ignore[call-arg]
RunOptions().limit = 9  # type: ignore[misc]
