"""docs/design/executor.md: its diagram and tables are what the executor declares, and what requests do."""

import ast
import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import ImageFacts
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.policy.abilities import FREE
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.executor import states as states_module
from prefect_imagegen.executor.states import ENDS, FROM_ANY_STATE, TRANSITIONS, State
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from tests.adversary.runner import play
from tests.adversary.scenarios.answer_scenarios import SCENARIOS
from tests.adversary.scenarios.generator import draw
from tests.adversary.scenarios.one_row import OneRow
from tests.adversary.transitions import PAGE, Transition, may_follow, states_in, table, watched
from tests.executor.conftest import HEX, REQUEST, Bench, FakeAccounts, error, event, other_claim
from tests.support.builders.images import png

PHOTO = "https://images.example/a.jpg"
WITH_PHOTO = GenerationRequest("flux-2-klein-9b", {"prompt": "a cup", "seed": 7}, (Reference("url", PHOTO, PHOTO),))
SEEDS = (0, 6, 15, 19, 34, 49, 53, 54, 95, 191, 285, 368)
"""Together they go through most of the diagram; `SCENES` through the rest."""
Scene = Callable[[Bench, Path], Awaitable[str]]


def _drawn() -> list[tuple[str, str]]:
    """The arrows of the page's diagram, without those from its start and to its end."""
    diagram = PAGE.read_text(encoding="utf-8").split("```mermaid")[1].split("```")[0]
    arrows = re.findall(r"^\s*(\S+) --> ([^\s:]+)", diagram, re.MULTILINE)
    return [arrow for arrow in arrows if "[*]" not in arrow]


def test_the_diagram_draws_what_the_executor_declares():
    """Every arrow of the diagram is declared in `executor/states.py`, and every declared one is drawn once."""
    declared = [(str(before), str(after)) for before, afters in TRANSITIONS.items() for after in afters]
    declared += [("at_work", str(after)) for after in FROM_ANY_STATE]
    assert sorted(_drawn()) == sorted(declared)


def test_the_picture_is_of_this_diagram():
    """The picture that the site shows was drawn from the diagram as it stands; `docs/diagram.py` draws it."""
    text = PAGE.read_text(encoding="utf-8").split("```mermaid\n")[1].split("```")[0]
    assert hashlib.sha256(text.encode()).hexdigest() in PAGE.with_suffix(".svg").read_text(encoding="utf-8")[:200]


def test_what_stands_inside_the_diagram():
    """`at_work` holds all states that are neither ends nor trouble; ends lead nowhere."""
    diagram = PAGE.read_text(encoding="utf-8").split("state at_work {")[1].split("\n    }")[0]
    inside = {name for arrow in re.findall(r"(\S+) --> (\w+)", diagram) for name in arrow} - {"[*]"}
    assert {State(name) for name in inside} == set(State) - ENDS - {State.TROUBLE}
    assert set(TRANSITIONS) == set(State) - ENDS


def test_the_table_of_states_is_that_of_the_code():
    """The page has a row for each state, with its docstring and the states that may follow."""
    (declaration,) = (
        node for node in ast.parse(inspect.getsource(states_module)).body if isinstance(node, ast.ClassDef)
    )
    texts = [node.value.value for node in declaration.body[1:] if isinstance(node, ast.Expr)]
    rows = table("| state | what happens | slot | next |")
    assert [(cells[0], cells[1]) for cells in rows] == [
        (f"`{state}`", text) for state, text in zip(State, texts, strict=True)
    ]
    assert [states_in(cells[3]) for cells in rows] == [TRANSITIONS.get(state, frozenset()) for state in State]


async def _guess_of_another_account(_: Bench, folder: Path) -> str:
    first = Bench(folder, LedgerView.empty(), accounts=FakeAccounts("k2"))
    first.provider.submits = [error("unavailable", status=503) for _ in range(5)]
    await first.make()
    await first.ledger.flush()
    return (await Bench(folder, await load_ledger(first.store), nonce="n2", run_id="run2").make()).status


async def _image_is_there(bench: Bench, _: Path) -> str:
    await bench.store.create(layout.image(HEX, REQUEST.extension), png())
    return (await bench.make()).status


async def _worker_was_lost(bench: Bench, _: Path) -> str:
    bench.provider.abilities = FREE
    bench.provider.submits = [error("unknown")]
    return (await bench.make()).status


async def _no_image_and_no_id(bench: Bench, _: Path) -> str:
    bench.provider.abilities = replace(bench.provider.abilities, queue=False)
    bench.provider.submits, bench.provider.collects = [None], [error("bad_output")]
    return (await bench.make()).status


async def _junk_and_no_id(bench: Bench, _: Path) -> str:
    bench.provider.abilities = replace(bench.provider.abilities, queue=False)
    bench.provider.submits, bench.provider.collects = [None], [b"junk"]
    return (await bench.make()).status


async def _junk_of_a_worker(bench: Bench, _: Path) -> str:
    bench.provider.abilities = FREE
    bench.provider.submits, bench.provider.collects = [None, None], [b"junk"]
    return (await bench.make()).status


async def _images_inside_the_call(bench: Bench, _: Path) -> str:
    bench.references.inline = True
    return (await bench.make(WITH_PHOTO)).status


async def _forgetful_sandbox(_: Bench, folder: Path) -> str:
    bench = Bench(folder, LedgerView.empty(), accounts=FakeAccounts(forgets=True))
    await other_claim(bench, "theirs")
    return (await bench.make()).status


async def _delivered_since_the_plan(bench: Bench, _: Path) -> str:
    await other_claim(bench, "theirs")
    data = png()
    path = layout.image(HEX, REQUEST.extension)
    await bench.store.create(path, data)
    other = StoreLedger(bench.store, LedgerView.empty(), run_id="run0", nonce="n0", clock=bench.clock)
    await other.record(event("delivered", 1, image=ImageFacts(path, 64, 64, "png", len(data), "0" * 64), cost_usd=0.04))
    await other.flush()
    result = await bench.make()
    assert (result.cost_usd, bench.provider.history) == (0.0, [])
    return result.status


async def _store_fails_after_the_call(bench: Bench, _: Path) -> str:
    create = bench.store.create

    async def failing(path: str, data: bytes, content_type: str = "") -> bool:
        if path.startswith("images/"):
            raise StoreError("store_unreachable", "a time-out")
        return await create(path, data, content_type)

    bench.store.create = failing  # type: ignore[method-assign]
    return (await bench.make()).status


async def _store_fails_before_the_call(bench: Bench, _: Path) -> str:
    async def failing(path: str, data: bytes, content_type: str = "") -> bool:
        raise StoreError("store_unreachable", "a time-out")

    bench.store.create = failing  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.error_kind, bench.provider.history) == ("store", [])
    return result.status


SCENES: dict[Scene, tuple[set[Transition], str]] = {
    _guess_of_another_account: ({(State.CLAIM, State.HELD)}, "held"),
    _image_is_there: ({(State.CLAIM, State.RECORD)}, "generated"),
    _worker_was_lost: ({(State.CLOSE, State.REFERENCES)}, "generated"),
    _no_image_and_no_id: ({(State.COLLECT, State.LOOK_WAIT)}, "generated"),
    _junk_and_no_id: ({(State.VERIFY, State.LOOK_WAIT)}, "generated"),
    _junk_of_a_worker: ({(State.VERIFY, State.CLOSE)}, "generated"),
    _images_inside_the_call: ({(State.SLOT, State.REFERENCES), (State.REFERENCES, State.CLAIM)}, "generated"),
    _forgetful_sandbox: ({(State.RESUME, State.CLAIM)}, "generated"),
    _delivered_since_the_plan: ({(State.RESUME, State.REUSED)}, "reused"),
    _store_fails_after_the_call: ({(State.PUT, State.TROUBLE), (State.TROUBLE, State.HELD)}, "held"),
    _store_fails_before_the_call: ({(State.CLAIM, State.TROUBLE), (State.TROUBLE, State.NOT_RUN)}, "not_run"),
}
"""What no seed shows: each with the transitions that it is about, and how its request ends."""


@pytest.mark.anyio
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__.strip("_"))
async def test_a_scene_goes_its_way(scene: Scene, tmp_path: Path):
    """A request that meets this goes through the drawn states, to its end."""
    transitions, end = SCENES[scene]
    with watched() as watch:
        status = await scene(Bench(tmp_path / "bench", LedgerView.empty()), tmp_path)
    assert status == end
    assert transitions <= watch.transitions
    assert watch.undrawn == []


def test_every_drawn_transition_happens():
    """No arrow of the diagram is a thing of the past: seeds of the adversary, or a scene, go along each."""
    arrows = set().union(*(transitions for transitions, _ in SCENES.values()))
    for seed in SEEDS:
        with watched() as watch:
            play(draw(seed))
        assert watch.undrawn == []
        arrows |= watch.transitions
    drawn = {(before, after) for before, afters in TRANSITIONS.items() for after in afters}
    assert sorted(drawn - arrows) == []
    assert {after for before, after in arrows if after not in TRANSITIONS[before]} == FROM_ANY_STATE


def test_what_waits_holds_no_slot():
    """A request takes the slot along only where the page says so; `no` and `yes` in its table are what happens."""
    slot_cells = {State(cells[0].strip("`")): cells[2] for cells in table("| state | what happens | slot | next |")}
    observations = set()
    for plays in list(SCENARIOS.values())[::4]:
        with watched() as watch:
            OneRow(plays[0]).first_run()
        observations |= watch.slots
    for word, has_slot in (("no", True), ("yes", False)):
        states = {state for state, cell in slot_cells.items() if cell == word}
        assert {state for state, with_slot in observations if state in states and with_slot is has_slot} == set()
    assert {State.LOOK_WAIT, State.BACK_OFF, State.SLOT, State.CLAIM, State.POST} <= {
        state for state, _ in observations
    }


def test_an_end_is_an_end():
    """Nothing follows an end, and only what is declared follows anything else."""
    assert not any(may_follow(end, after) for end in ENDS for after in State)
    assert not may_follow(State.POST, State.GENERATED)
    assert may_follow(State.POST, State.TROUBLE)
