"""Proof of sight: each fault made by hand is found by seeds that CI plays, and is why they fail."""

from dataclasses import dataclass

import pytest

from . import mutations
from .game import draw, judge, play_at_queue
from .mutations import Mutation
from .test_queue_api import FOUND_BY_HAND, SEEDS


@dataclass(frozen=True, slots=True)
class Sight:
    """A fault, the rule of the judge that it breaks, and seeds that show it."""

    mutation: Mutation
    rule: str
    seeds: tuple[int, ...]


SIGHTS = {
    "no claim": Sight(mutations.NO_CLAIM, "unclaimed", (0, 1)),
    "a call without an answer is sent again": Sight(mutations.UNKNOWN_IS_SENT_AGAIN, "billed-twice", (9, 17)),
    "a 5xx is sent again": Sight(mutations.A_5XX_IS_SENT_AGAIN, "billed-twice", (71, 72)),
    "what was submitted is bought again": Sight(mutations.SUBMITTED_IS_BOUGHT_AGAIN, "billed-twice", (3, 14)),
    "a missing output is lost at once": Sight(mutations.A_MISSING_OUTPUT_IS_LOST, "given-up", (45, 111)),
    "the id is not stored": Sight(mutations.THE_ID_IS_NOT_STORED, "unsafe-poll", (0, 1)),
    "an open claim is passed over": Sight(mutations.AN_OPEN_CLAIM_IS_PASSED_OVER, "billed-twice", (8, 9)),
    "a call lost by a stop is told as unknown": Sight(mutations.LOST_BY_A_STOP_IS_UNKNOWN, "untold", (506,)),
    "provider: a lost call was not sent": Sight(mutations.A_LOST_CALL_WAS_NOT_SENT, "billed-twice", (9, 17)),
    "provider: an answer without id is no call": Sight(mutations.NO_ID_IS_NO_CALL, "billed-twice", (24, 67)),
    "provider: a redirect is no call": Sight(mutations.A_REDIRECT_IS_NO_CALL, "billed-twice", (41, 71)),
    "provider: any 422 is a failure": Sight(mutations.ANY_422_IS_A_FAILURE, "given-up", (53, 74)),
    "provider: a forgotten job has failed": Sight(mutations.A_FORGOTTEN_JOB_HAS_FAILED, "undelivered", (29, 47)),
    "provider: the first image only": Sight(mutations.THE_FIRST_IMAGE_ONLY, "lost-outputs", (5, 82)),
    "provider: the key goes to the files": Sight(mutations.THE_KEY_GOES_TO_THE_FILES, "key-shown", (0, 1)),
}
CASES = [pytest.param(sight, seed, id=f"{name}-{seed}") for name, sight in SIGHTS.items() for seed in sight.seeds]


@pytest.mark.parametrize(("sight", "seed"), CASES)
def test_a_fault_is_seen(sight: Sight, seed: int):
    """A seed that CI plays is clean, and with the fault it breaks the rule."""
    assert seed in SEEDS or seed in FOUND_BY_HAND
    assert judge(play_at_queue(draw(seed))) == []
    with sight.mutation.executor():
        findings = judge(play_at_queue(draw(seed), sight.mutation.source()))
    assert sight.rule in {finding.split(":", 1)[0] for finding in findings}
