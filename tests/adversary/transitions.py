"""Watches which states requests go through, and compares them with the transitions that the executor declares."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from prefect_imagegen.executor.pending import PendingRequest
from prefect_imagegen.executor.slots import Slots
from prefect_imagegen.executor.states import ENDS, FROM_ANY_STATE, TRANSITIONS, State

Transition = tuple[State, State]
PAGE = Path(__file__).parents[2] / "docs" / "design" / "executor.md"


@dataclass(slots=True)
class Watch:
    """The transitions that happened, and the state that any request entered last."""

    transitions: set[Transition] = field(default_factory=set)
    state: State = State.NEW
    slots: set[tuple[State, bool]] = field(default_factory=set)
    """States, and whether a slot was taken when they were entered. Means something only for one request at a time."""

    @property
    def undrawn(self) -> list[str]:
        """Transitions that the executor does not declare."""
        return sorted(f"{before} -> {after}" for before, after in self.transitions if not may_follow(before, after))


def may_follow(before: State, after: State) -> bool:
    """Whether the executor declares a transition."""
    return before not in ENDS and (after in TRANSITIONS[before] or after in FROM_ANY_STATE)


@contextmanager
def watched() -> Iterator[Watch]:
    """Within: all requests of this process are watched."""
    watch, enter, acquire = Watch(), PendingRequest.enter, Slots.acquire
    seen_slots: list[Slots] = []

    async def acquired(slots: Slots) -> None:
        seen_slots.append(slots)
        await acquire(slots)

    def entered(request: PendingRequest, state: State) -> None:
        watch.state = state
        watch.slots.add((state, any(slots.used for slots in seen_slots)))
        if state != request.state:
            watch.transitions.add((request.state, state))
        enter(request, state)

    with patch.object(PendingRequest, "enter", entered), patch.object(Slots, "acquire", acquired):
        yield watch


def table(head: str) -> list[list[str]]:
    """The rows of the page's table that begins with a head."""
    lines = PAGE.read_text(encoding="utf-8").split(head)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("| ").split(" | ")])
    return rows


def states_in(cell: str) -> set[State]:
    """The states that a cell of the page names."""
    return {State(word) for word in re.findall(r"`(\w+)`", cell)}


def answered_in() -> dict[str, set[State]]:
    """The page's states in which each call of the table of answers is made."""
    return {call: states_in(cell) for call, cell in table("| call | answered in |")}
