"""Counting remarks whose texts hold values of the manifest."""

import copy
import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.request.validate import RowError
from prefect_imagegen.core.tally import MOST_KINDS, OTHERS, SHOWN_OF_A_KIND, Tally, kind_of


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (("the id is that of row 7 already", "the id is that of row 8125 already"), "the id is that of row … already"),
        (("a/b.png: no such file", "https://x.org/é.png?q=1: no such file"), "… no such file"),
        (("ratio '3:2' is odd", "ratio 'it\\'s' is odd"), "ratio … is odd"),
        (("the prompt has 64001 bytes", "the prompt has 99.5 bytes"), "the prompt has … bytes"),
    ],
)
def test_texts_of_a_kind_differ_in_their_values_alone(texts, kind) -> None:
    """The kind of a text is the text without its values."""
    assert {kind_of(text) for text in texts} == {kind}


def test_the_first_texts_of_a_kind_stand_as_they_are() -> None:
    """A few texts of each kind are counted by themselves, further ones as the kind, and one that stands goes on."""
    tally = Tally()
    for number in [*range(1_000), 0, 0]:
        tally[f"row {number} is odd"] += 1
    assert tally == {"row 0 is odd": 3, **{f"row {n} is odd": 1 for n in range(1, 5)}, "row … is odd": 995}
    assert SHOWN_OF_A_KIND == 5


def test_kinds_are_bounded_too() -> None:
    """Texts that have nothing in common are counted together from a number on; the sum stays that of all."""
    tally = Tally()
    words = [chr(97 + n // 676) + chr(97 + n // 26 % 26) + chr(97 + n % 26) for n in range(10_000)]
    for word in words:
        tally[word] += 1
    assert len(tally) == MOST_KINDS + 1
    assert tally[OTHERS] == len(words) - MOST_KINDS


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(1, 3)), max_size=300))
def test_nothing_is_lost_in_the_sum(texts) -> None:
    """Whatever is counted, the sum is that of a plain counter, and a copy says the same."""
    tally, plain = Tally(), Counter()
    for text, count in texts:
        tally[text] += count
        plain[text] += count
    assert sum(tally.values()) == sum(plain.values())
    assert len(tally) <= MOST_KINDS * (SHOWN_OF_A_KIND + 1) + 1
    assert dict(pickle.loads(pickle.dumps(tally))) == dict(copy.copy(tally)) == dict(tally)


def test_a_plan_of_bad_rows_stays_small() -> None:
    """Reasons that name a value each do not grow with the manifest, and are all counted."""
    summary = PlanSummary()
    for row in range(5_000):
        summary.note(RowError(row, "id", f"'{row}'", f"the id is that of row {row} already"))
        summary.warnings[f"aspect_ratio '{row}:1' is not on the API's page of flux and is sent as it is"] += 1
    assert len(summary.reasons) == len(summary.warnings) == SHOWN_OF_A_KIND + 1
    assert summary.reasons["id: the id is that of row … already"] == 5_000 - SHOWN_OF_A_KIND
    assert sum(summary.reasons.values()) == sum(summary.warnings.values()) == 5_000
