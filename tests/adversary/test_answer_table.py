"""The table of answers in docs/design/pay-once.md: what it says of each is what happens."""

from collections import defaultdict
from pathlib import Path

import pytest

from prefect_imagegen.executor.states import State

from .scenarios.answer_scenarios import SCENARIOS
from .scenarios.one_row import COST_USD, Observation, OneRow, Play
from .transitions import answered_in, watched

_DOCS = Path(__file__).parents[2] / "docs" / "design" / "pay-once.md"
_COLUMNS = ["call", "answer", "row ends", "attempt in the ledger", "money", "POSTs", "next run"]
_ANSWERED_IN = answered_in()
_KINDS = {"run (v1)": {"submit"}, "poll": {"status"}, "history look": {"history"}, "history by id": {"detail"}}
"""The kinds of request that get the answer, by call; a call without an entry has a kind of its own name."""
_KINDS_LATER = {"status", "detail", "download"}
_JOB_GETS = {"status", "result", "download", "detail"}
_ONE_ROWS_TROUBLE = {"result", "download", "history look", "history by id", "nine days later"}
"""Troubles of these calls stop no run. A row that is alone may wait until --deadline."""


def _lines() -> list[list[str]]:
    text = _DOCS.read_text()
    inner = text.split("<!-- answer-table -->")[1].split("<!-- /answer-table -->")[0]
    head, _, *lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in inner.strip().splitlines()]
    assert head == _COLUMNS
    return lines


_LINES = _lines()


@pytest.mark.parametrize("line", _LINES, ids=lambda line: f"{line[0]}: {line[1]}")
def test_every_line_of_the_table_is_true(line: list[str]):
    """An answer leads to the row's end, the attempt, the money, the POSTs and the next run that the docs name."""
    call, answer, row_ends, attempt, money, posts, next_run = line
    for play in SCENARIOS[call, answer]:
        row, states = OneRow(play), defaultdict(set)
        with watched() as watch:
            row.service.hears = lambda kind, watch=watch, states=states: states[kind].add(watch.state)
            observation = row.first_run()
        assert watch.undrawn == []
        _check_states(call, states, play)
        assert (_row_end(observation), row.events()[1], _money(observation), observation.posts) == (
            row_ends,
            attempt,
            money,
            int(posts),
        )
        assert observation.result.attempts == observation.posts
        assert call not in _ONE_ROWS_TROUBLE or observation.stop in (None, "deadline")
        if observation.result.status == "generated" and play.earlier is None:
            assert not row.lost_outputs
        _NEXT_RUNS[next_run](row, observation, play)


def test_every_line_has_a_scenario_and_every_scenario_a_line():
    """The table and the scenarios are of the same calls and answers."""
    names = [(call, answer) for call, answer, *_ in _LINES]
    assert sorted(names) == sorted(SCENARIOS)


def _check_states(call: str, states: dict[str, set[State]], play: Play) -> None:
    """Check that the calls that get the answer are made in the states that docs/design/executor.md names."""
    kinds = _KINDS_LATER if play.earlier is not None else _KINDS.get(call, {call})
    met = set().union(*(states[kind] for kind in kinds))
    assert met
    assert met <= _ANSWERED_IN[call]


def _row_end(observation: Observation) -> str:
    """The status of the row, and its error kind where it has no image."""
    status, kind = observation.result.status, observation.result.error_kind
    return status if status == "generated" else f"{status} {kind}"


def _money(observation: Observation) -> str:
    """What became of the money of the first POST; one that was sent after it is paid when it led to the image."""
    is_second = observation.posts > 1 and observation.result.status == "generated"
    spent = observation.budget.spent - is_second * COST_USD
    reserved = observation.budget.reserved
    assert spent == pytest.approx(0) or reserved == pytest.approx(0)
    return "spent" if spent > 0.001 else "kept" if reserved > 0.001 else "released"


def _reused(row: OneRow, before: Observation, play: Play) -> None:
    after = row.next_run()
    assert after.result.status == "reused"
    assert set(after.asked) <= {"balance"}


def _failed(row: OneRow, before: Observation, play: Play) -> None:
    after = row.next_run()
    assert (after.result.status, after.result.error_kind) == ("failed", before.result.error_kind)
    assert set(after.asked) <= {"balance"}


def _sent(row: OneRow, before: Observation, play: Play) -> None:
    after = row.next_run()
    assert (after.result.status, after.posts) == ("generated", 1)
    assert "history" not in after.asked


def _sent_after_a_look(row: OneRow, before: Observation, play: Play) -> None:
    after = row.next_run()
    assert (after.result.status, after.posts) == ("generated", 1)
    assert after.asked.index("history") < after.asked.index("submit")


def _looked_up(row: OneRow, before: Observation, play: Play) -> None:
    """Check that the next run finds the call if the service took it on, else holds the row; nothing is sent."""
    after = row.next_run()
    assert (after.result.status, after.posts) == ("generated", 0)
    assert after.asked.index("history") < min(after.asked.index(kind) for kind in _JOB_GETS & set(after.asked))
    row = OneRow(play)
    row.first_run()
    after = row.next_run(taken=False)
    assert (_row_end(after), after.posts) == ("held unknown", 0)
    assert "history" in after.asked


def _fetched(row: OneRow, before: Observation, play: Play) -> None:
    after = row.next_run()
    assert (after.result.status, after.posts) == ("generated", 0)
    assert "history" not in after.asked


def _asked_again(row: OneRow, before: Observation, play: Play) -> None:
    after = row.next_run()
    assert after.posts == 0
    assert {"status", "detail"} <= set(after.asked)


_NEXT_RUNS = {
    "reused": _reused,
    "failed": _failed,
    "sent": _sent,
    "looked up, then sent": _sent_after_a_look,
    "looked up": _looked_up,
    "fetched": _fetched,
    "asked again": _asked_again,
}
