"""The Prefect state that a flow run ends in, by the figures of its run."""

import pytest

from prefect_imagegen.app.running.result import STOP_REASONS, Earlier, RunResult
from prefect_imagegen.core.errors import ImagegenError, RefusedError
from prefect_imagegen.flows.states import RESUMABLE, final_state, refused


def result(**figures: int) -> RunResult:
    return RunResult("run", "store", rows=sum(figures.values()), **figures)


@pytest.mark.parametrize(
    ("figures", "fail_above", "name", "reason"),
    [
        ({"generated": 4}, 0.5, "Completed", None),
        ({"reused": 4}, 0.0, "Completed", None),
        ({"generated": 2, "failed": 2}, 0.5, "CompletedWithFailures", None),
        ({"generated": 1, "failed": 1, "held": 1, "invalid": 1}, 0.5, "Failed", "row_errors"),
        ({"generated": 1, "failed": 1, "held": 1, "invalid": 1}, 0.75, "CompletedWithFailures", None),
        ({"reused": 99, "failed": 1}, 0.0, "Failed", "row_errors"),
        ({"reused": 1, "failed": 99}, 1.0, "CompletedWithFailures", None),
        ({"failed": 4}, 1.0, "Failed", "no_image"),
        ({"held": 1}, 0.5, "Failed", "no_image"),
        ({"invalid": 1}, 1.0, "Failed", "no_image"),
    ],
)
def test_row_failures(figures: dict[str, int], fail_above: float, name: str, reason: str | None) -> None:
    """More rows without an image than the share, or no image at all, is Failed; only then the state has an error."""
    state = final_state(result(**figures), fail_above=fail_above)
    assert state.name == name
    assert state.type.value == ("FAILED" if name == "Failed" else "COMPLETED")
    if reason is None:
        assert state.data["rows"] == sum(figures.values())
    else:
        assert (type(state.data), state.data.kind) == (ImagegenError, reason)
        assert state.message.startswith(f"failed ({reason}): ")
        assert result(**figures).exit_code == 1


@pytest.mark.parametrize("reason", STOP_REASONS)
def test_stops(reason: str) -> None:
    """A stop is Failed, and names its reason in the message and in the data; what it said and cost stands there too."""
    stopped = result(generated=1, not_run=1)
    stopped.stop_reason, stopped.stop_message, stopped.cost_usd = reason, "as it happened", 0.04
    stopped.earlier = Earlier(1, 0.46)
    state = final_state(stopped, fail_above=1.0)
    assert (state.name, state.type.value, state.data.kind) == ("Failed", "FAILED", reason)
    assert state.message.startswith(f"stopped ({reason}): ")
    for text in ("as it happened", "0.0400 USD", "0.5000 USD over the 2 executions of this flow run"):
        assert text in state.message
    assert (reason in RESUMABLE) == (reason in ("deadline", "store", "no_worker", "signal"))


def test_refusals() -> None:
    """A refusal is Failed with its kind; the error itself is the data."""
    error = RefusedError("manifest_not_found", "x.parquet does not exist.", remedy="Check it.")
    state = refused(error)
    assert (state.name, state.type.value, state.data) == ("Failed", "FAILED", error)
    assert state.message == "refused (manifest_not_found): x.parquet does not exist. Check it."
