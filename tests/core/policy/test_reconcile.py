"""When a lost call is looked for, which row of the history could be it, and what a look proves."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_imagegen.core.answers.history import parse_inputs
from prefect_imagegen.core.ledger.events import Claim
from prefect_imagegen.core.policy.history_lookup import (
    Candidate,
    Finding,
    Look,
    Window,
    ages_of,
    claim_form,
    compare_calls,
    compare_models,
    finding_of,
    next_look,
    same_call,
    window_of,
)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("lag", "looks"), [(7200.0, [30.0, 120.0, 7200.0]), (60.0, [30.0, 60.0]), (10.0, [10.0]), (0.0, [0.0])]
)
def test_when_to_look(lag: float, looks: list[float]) -> None:
    """At 30 s, at 2 min and at the lag; looks later than the lag fall away."""
    times, looked = [], None
    while (due := next_look(looked, lag)) is not None:
        times.append(due)
        looked = due
    assert times == looks


def test_a_late_comer_looks_once() -> None:
    """Who looks first after the lag need not look again."""
    assert next_look(None, 7200.0) == 30.0
    assert next_look(9000.0, 7200.0) is None
    assert next_look(300.0, 7200.0) == 7200.0


def test_the_form_of_a_claim() -> None:
    """Addresses become digests, the rest stays; a call is the same if every field that was sent is."""
    body = {"prompt": "p", "cfg": 5, "image_urls": ["https://host/a?sig=1"]}
    form = claim_form(body)
    assert form["image_urls"][0].startswith("sha256:")
    assert "sig" not in str(form)
    assert same_call(body | {"cfg": 5.0, "added_by_the_api": 1}, form)
    assert not same_call(body | {"image_urls": []}, form)
    assert not same_call({"prompt": "p"}, form)
    assert same_call({"prompt": "p", "image_urls": None}, claim_form({"prompt": "p", "image_urls": []}))


# Comparing


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=90)
bodies = st.fixed_dictionaries(
    {"prompt": texts, "seed": st.integers(0, 2**63 - 1)},
    optional={
        "guidance": st.floats(-1e6, 1e6, allow_nan=False) | st.integers(-5, 50),
        "steps": st.integers(1, 100),
        "safe": st.booleans(),
        "image_format": st.sampled_from(["png", "jpeg"]),
        "negative_prompt": st.none() | st.just("") | texts,
        "image_urls": st.lists(st.sampled_from(["https://h/a.png", "https://h/b.png?x=1"]), max_size=2),
    },
)


def as_text(value):
    """A number or boolean as text, as forms, logs and tables have it."""
    return value if isinstance(value, str | list) or value is None else json.dumps(value)


RENDERINGS = {
    "as it is": lambda body: body,
    "JSON": json.dumps,
    "JSON with letters": lambda body: json.dumps(body, ensure_ascii=False),
    "repr": repr,
    "texts": lambda body: {name: as_text(value) for name, value in body.items()},
    "Python's texts": lambda body: {
        name: value if isinstance(value, list) or value is None else str(value) for name, value in body.items()
    },
    "doubles": lambda body: json.dumps(
        {
            name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            for name, value in body.items()
        }
    ),
    "more fields": lambda body: {"model": "x", "id": 7, **body, "webhook": None, "user": {"a": 1}},
    "nulls left out": lambda body: {name: value for name, value in body.items() if value is not None},
    "trimmed": lambda body: {
        name: " ".join(value.split()) if isinstance(value, str) else value for name, value in body.items()
    },
    "another order": lambda body: dict(reversed(body.items())),
    "without inputs": lambda body: {"inputs": body},
    "without references": lambda body: {name: value for name, value in body.items() if name != "image_urls"},
    "cut off": lambda body: body | {"prompt": body["prompt"][:70] + ("..." if len(body["prompt"]) > 70 else "")},
}
CERTAIN = ("as it is", "JSON", "JSON with letters", "repr", "more fields", "another order")


@pytest.mark.parametrize("rendering", RENDERINGS)
@given(bodies)
@example({"prompt": "p", "seed": 2**53 + 1})
@example({"prompt": "p", "seed": 2**63 - 1, "guidance": 3.3})
def test_a_call_is_never_ruled_out_by_the_way_it_is_shown(rendering, body) -> None:
    """However the history shows the body that was sent, it is the same or unclear: never another one."""
    shown = RENDERINGS[rendering](body)
    verdict = compare_calls(parse_inputs(shown), claim_form(body))
    assert verdict != "differs"
    if rendering in CERTAIN:
        assert verdict == "same"


@given(bodies, st.lists(st.sampled_from(["trimmed", "texts", "doubles", "more fields", "nulls left out"]), max_size=4))
def test_several_ways_at_once(body, ways) -> None:
    """Several renderings, one after the other, rule a call out no more than one does."""
    shown = body
    for way in ways:
        shown = parse_inputs(RENDERINGS[way](shown))
    assert compare_calls(shown, claim_form(body)) != "differs"


@pytest.mark.parametrize(
    ("sent", "shown", "verdict"),
    [
        (7, 8, "differs"),
        (7, "8", "differs"),
        (7, "7", "same"),
        (7, " 7 ", "same"),
        (7, 7.0, "same"),
        (7, "7.0", "same"),
        (7, True, "unclear"),
        (7, None, "unclear"),
        (7, "", "unclear"),
        (7, "seven", "unclear"),
        (7, float("nan"), "unclear"),
        (7, "inf", "unclear"),
        (2**53 + 1, 2**53, "unclear"),
        (2**53 + 1, float(2**53), "unclear"),
        (2**53 + 1, str(2**53 + 1), "same"),
        (2**62 + 1, 2**61, "differs"),
        (1_000_001, 1_000_002, "differs"),
        (2**31 - 1, 2**31 - 2, "differs"),
        (3.3, 3.299999952316284, "unclear"),
        (3.3, "3.30", "same"),
        (3.3, 3.4, "differs"),
        (5.0, 5, "same"),
        (True, "True", "same"),
        (True, 1, "same"),
        (True, False, "differs"),
        (False, "false", "same"),
        (False, None, "unclear"),
        (True, "yes", "unclear"),
        ("a cup", "a cup", "same"),
        ("a cup", "A  Cup ", "unclear"),
        ("a cup", "a mug", "differs"),
        ("a cup", "a c", "differs"),
        ("a cup", "a c...", "unclear"),
        ("x" * 80, "x" * 64, "unclear"),
        ("x" * 80, "x" * 63, "differs"),
        ("a & b <c>", "a &amp; b &lt;c&gt;", "unclear"),
        ("a cup \U0001f9c0", "a cup ?", "unclear"),
        ("K\u00e4se", "K\ufffdse", "unclear"),
        ("K\u00e4se", "Ka\u0308se", "unclear"),
        ("\u7ea2\u8272", "??", "unclear"),
        ("a cup", None, "unclear"),
        ("a cup", "", "unclear"),
        ("7", 7, "unclear"),
        ("", None, "same"),
        (None, None, "same"),
        (None, "x", "unclear"),
        ({"a": 1}, {"a": 1}, "same"),
        ({"a": 1}, {"a": 2}, "unclear"),
    ],
    ids=repr,
)
def test_one_field_at_a_time(sent, shown, verdict) -> None:
    """A field differs only where that is certain; one that is missing, cut off or rewritten leaves it unclear."""
    assert compare_calls({"x": shown}, {"x": sent}) == verdict


def test_one_certain_difference_settles_it() -> None:
    """A field that certainly differs settles it, whatever else cannot be read; nothing to read settles nothing."""
    assert compare_calls({"seed": 8}, {"prompt": "a", "seed": 7}) == "differs"
    assert compare_calls({"seed": 7}, {"prompt": "a", "seed": 7}) == "unclear"
    assert compare_calls(None, {"seed": 7}) == compare_calls({}, {"seed": 7}) == "unclear"
    assert compare_calls({"seed": 7}, {}) == "unclear"


def test_references_are_compared_by_their_number_and_address() -> None:
    """Other addresses may be the same references, in the store of the API; another number of them is another call."""
    form = claim_form({"image_urls": ["https://h/a", "https://h/b"]})
    assert compare_calls({"image_urls": ["https://h/a", "https://h/b"]}, form) == "same"
    assert compare_calls({"image_urls": ["https://cdn/1", "https://cdn/2"]}, form) == "unclear"
    assert compare_calls({"image_urls": ["https://h/a"]}, form) == "differs"
    for shown in ("https://h/a", "[]", None, [], {}):
        assert compare_calls({"image_urls": shown}, form) == "unclear"


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [
        ("flux-2-klein-9b", "same"),
        ("FLUX.2 Klein 9B", "same"),
        ("flux_2_klein_9b", "same"),
        ("flux-2-klein-4b", "differs"),
        ("Flux 2 Klein 4B", "differs"),
        ("klein", "unclear"),
        ("", "unclear"),
        ("65f1c0de", "unclear"),
    ],
)
def test_models_are_compared_by_their_letters(shown, verdict) -> None:
    """Another spelling of a slug is the same model; a name that is no slug we know may be a way to say it."""
    assert compare_models(shown, "flux-2-klein-9b") == verdict


# Time


def claim(**times) -> Claim:
    return Claim("run", "nonce", "attempt", times.pop("time", NOW), {}, **times)


def test_the_window_of_a_call() -> None:
    """With the API's clock ten minutes around claim and end of the POST count, without it a day."""
    window = window_of(claim(api_time=NOW, store_time=NOW), None, 600.0)
    assert window == Window(NOW - timedelta(minutes=10), NOW + timedelta(minutes=20))
    old = window_of(claim(), NOW, 0.0)
    assert old == Window(NOW - timedelta(days=1), NOW + timedelta(days=1))
    assert old.since == NOW - timedelta(days=2)


@given(st.lists(st.none() | st.integers(-(10**8), 10**8), min_size=3, max_size=3), st.integers(-(10**8), 10**8))
def test_a_wrong_clock_hides_no_call(hours, wrong) -> None:
    """The window holds the time by every clock that the claim knows: any one of them may be the right one."""
    moments = [None if seconds is None else NOW + timedelta(seconds=seconds) for seconds in hours]
    own = NOW + timedelta(seconds=wrong)
    window = window_of(claim(time=own, store_time=moments[0], api_time=moments[1]), moments[2], 30.0)
    assert all(window.takes(moment, zoned=True) for moment in [own, *moments])


@pytest.mark.parametrize(
    ("minutes", "zoned", "takes"),
    [
        *((0, True, True), (-10, True, True), (-11, True, False), (11, True, True), (21, True, False)),
        *((-14 * 60, False, True), (14 * 60, False, True), (-15 * 60, False, False), (15 * 60, False, False)),
    ],
)
def test_rows_of_the_window_count(minutes, zoned, takes) -> None:
    """A row counts within its window; one without a zone may be 14 hours off; one without a time always counts."""
    window = Window(NOW - timedelta(minutes=10), NOW + timedelta(minutes=20))
    assert window.takes(NOW + timedelta(minutes=minutes), zoned=zoned) is takes
    assert window.takes(None, zoned=zoned)


def test_the_smallest_age_counts() -> None:
    """Of all clocks the one that makes a claim youngest counts; one that puts it in the future is wrong."""
    hour = timedelta(hours=1)
    assert ages_of([(NOW - hour, NOW), (NOW - 2 * hour, NOW)], [7300.0]) == 3600.0
    assert ages_of([(NOW - hour, NOW)], [12.0]) == 12.0
    assert ages_of([(NOW + hour, NOW), (NOW - hour, NOW)], []) == 3600.0
    assert ages_of([(None, NOW), (NOW, None)], []) == 0.0
    assert ages_of([(NOW + hour, NOW)], []) == 0.0


# What a look proves


def row(name, verdict="same", status="COMPLETED") -> Candidate:
    return Candidate(name, verdict, status)


@pytest.mark.parametrize(
    ("rows", "known", "unnamed", "finding"),
    [
        ([], [], 0, Finding()),
        ([row("a")], [], 0, Finding("a")),
        ([row("a")], ["a"], 0, Finding()),
        ([row("a"), row("b")], [], 0, Finding("a", more=1)),
        ([row("a"), row("b")], ["a"], 0, Finding("b")),
        ([row("a", status="PENDING"), row("b")], [], 0, Finding("b", more=1)),
        ([row("a", status="FAILED"), row("b", status="PENDING")], [], 0, Finding("b")),
        ([row("a", status="FAILED")], [], 0, Finding("a")),
        ([row("a", status="FAILED")], [], 1, Finding()),
        ([row("a", status="FAILED"), row("b", status="FAILED")], [], 1, Finding("a")),
        ([row("a", status="FAILED"), row("b", status="FAILED")], [], 2, Finding()),
        ([row("a", status="FAILED"), row("b")], [], 2, Finding("b")),
        # One call with several rows.
        ([row("a"), row("a"), row("a")], [], 0, Finding("a")),
        ([row("a", status="PENDING"), row("a")], [], 0, Finding("a")),
        ([row("a", status="FAILED"), row("a", status="FAILED")], [], 1, Finding()),
        # A row that may be the call, or not, is no proof of absence.
        ([row("a", "unclear")], [], 0, Finding(unclear="a")),
        ([row("a", "unclear")], ["a"], 0, Finding()),
        ([row("a", "unclear"), row("b")], [], 0, Finding("b")),
        ([row("a", status="FAILED"), row("b", "unclear")], [], 1, Finding(unclear="b")),
        ([row(None)], [], 0, Finding(unclear="a call without an id")),
        ([row(None, "unclear", "PENDING")], [], 0, Finding(unclear="a call without an id")),
    ],
)
def test_what_a_look_proves(rows, known, unnamed, finding) -> None:
    """A match is taken, an image first; what could be the call leaves it unclear; only what is neither is absent."""
    assert finding_of(Look(tuple(rows)), known, unnamed) == finding
    assert finding.is_absent == (finding == Finding())


candidates = st.builds(
    Candidate,
    st.none() | st.sampled_from("abcd"),
    st.sampled_from(["same", "unclear"]),
    st.sampled_from(["COMPLETED", "PENDING", "FAILED"]),
)


def test_an_id_in_other_letters_is_the_same_call() -> None:
    """A history that writes ids in small letters shows no second call by that."""
    look = Look((Candidate("ab-1", "same", "FAILED"),))
    assert finding_of(look, {"AB-1"}, 0).is_absent


@given(st.lists(candidates, max_size=6), st.sets(st.sampled_from("abcd")), st.integers(0, 3))
def test_absence_needs_every_row_to_be_told(rows, known, unnamed) -> None:
    """Absent is only what has no candidate but known calls and the failed ones of earlier claims."""
    finding = finding_of(Look(tuple(rows)), known, unnamed)
    unknown = [candidate for candidate in rows if candidate.request_id not in known]
    spared = {
        candidate.request_id for candidate in unknown if candidate.status == "FAILED" and candidate.verdict == "same"
    }
    if finding.is_absent:
        assert all(candidate.request_id in spared for candidate in unknown)
        assert len(spared) <= unnamed
    assert finding.request_id not in known
    assert finding.more >= 0
