"""Proof of sight: each old fault, put back into the product, is found by seeds that CI plays, and is why they fail.

A9 is not here: it lives in Prefect's flow runs, which no world has (see tests/flows).

`SIGHTS` says which finding is seen by which seeds, and by what rule of the judge. `mutations` puts the faults back.
"""

from dataclasses import dataclass

import pytest

from . import mutations, own_mutations
from .judge import judge
from .mutations import Mutation
from .runner import play
from .scenarios.generator import draw
from .test_adversary import FOUND_BY_HAND, SEEDS


@dataclass(frozen=True, slots=True)
class Sight:
    """A fault, the rule of the judge that it breaks, and seeds that show it."""

    mutation: Mutation
    rule: str
    seeds: tuple[int, ...]


SIGHTS = {
    "A1 the own id counts as another call's": Sight(mutations.a1_own_id_excluded, "billed-twice", (1187, 1433)),
    "A2 any status is a job": Sight(mutations.a2_any_status_is_a_job, "given-up", (85, 267)),
    "A3 an unknown shape is empty": Sight(mutations.a3_unknown_shape_is_empty, "billed-twice", (242, 262)),
    "A3 what is unreadable differs": Sight(mutations.a3_unreadable_differs, "billed-twice", (242, 301)),
    "A3 pages without end": Sight(mutations.a3_pages_without_end, "hammering", (1073, 1319)),
    "A4 no accounts": Sight(mutations.a4_no_accounts, "billed-twice", (10, 34)),
    "A5 junk is final": Sight(mutations.a5_junk_is_final, "given-up", (249, 412)),
    "A5 a late address is final": Sight(mutations.a5_late_address_is_final, "given-up", (20, 1197)),
    "A6 the learned patience cuts a POST": Sight(mutations.a6_learned_patience_cuts, "let-go", (135, 282)),
    "A7 a lost end keeps its key open": Sight(mutations.a7_lost_end_keeps_open, "resent", (265, 311)),
    "A8 nobody asks why it ended": Sight(mutations.a8_kind_of_the_end_is_not_asked, "resent", (231, 368)),
    "A10 the store fails at once": Sight(mutations.a10_store_fails_at_once, "store-stop", (157, 237)),
    "A11 the machine's clock alone": Sight(mutations.a11_machine_clock_only, "billed-twice", (40, 226)),
    "A12 damage ends the run": Sight(mutations.a12_damage_ends_the_run, "broke", (6, 77)),
    "A13 the first image only": Sight(mutations.a13_first_image_only, "lost-outputs", (37, 69)),
    "A14 no cost, no measure": Sight(mutations.a14_no_cost_no_measure, "throttled", (115, 277)),
    "A15 lists are trusted": Sight(mutations.a15_lists_are_trusted, "hammering", (26, 68)),
    "E stored id is kept": Sight(mutations.e_stored_id_is_kept, "unsafe-poll", (15, 22)),
    "E rows in use are cut": Sight(mutations.e_rows_in_use_are_cut, "dropped", (2773, 2886)),
    "E the ledger is read before its list": Sight(mutations.e_seen_after_the_ledger, "counted-twice", (755, 861)),
    "own: outputs on two pages": Sight(own_mutations.outputs_on_two_pages, "given-up", (19, 1883)),
    "own: a listing that moves": Sight(own_mutations.moving_listing, "undelivered", (559,)),
    "own: the last beat fails at once": Sight(own_mutations.last_beat_fails_at_once, "store-stop", (392, 561)),
    "own: uploads are waited for": Sight(own_mutations.uploads_are_waited_for, "slow-stop", (4766, 5305)),
    "own: what is fetched is own": Sight(own_mutations.fetched_is_own, "undelivered", (2978,)),
    "own: unplaced keys stay unplaced": Sight(own_mutations.unplaced_stays_unplaced, "given-up", (2138,)),
}
CASES = [pytest.param(sight, seed, id=f"{name}-{seed}") for name, sight in SIGHTS.items() for seed in sight.seeds]


@pytest.mark.parametrize(("sight", "seed"), CASES)
def test_an_old_fault_is_seen(sight, seed):
    """A seed that CI plays is clean, and with the fault put back it breaks the rule."""
    assert seed in SEEDS or seed in FOUND_BY_HAND
    assert judge(play(draw(seed))) == []
    with sight.mutation():
        findings = judge(play(draw(seed)))
    assert sight.rule in {finding.split(":", 1)[0] for finding in findings}


@pytest.mark.parametrize("seed", SIGHTS["A7 a lost end keeps its key open"].seeds)
def test_a_lost_end_is_seen_for_itself(seed):
    """The seeds of A7 need a lost end: asking nobody why an attempt ended does not break them alone."""
    with mutations.a8_kind_of_the_end_is_not_asked():
        assert judge(play(draw(seed))) == []
