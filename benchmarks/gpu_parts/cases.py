"""The cases: which are measured in which order, what fits into the time, and the table. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PIPELINE, WORKER, SERIAL = "pipeline", "worker", "worker, one call at a time"
AGAIN = "pipeline, once more"
MEASURED, FAILED, SKIPPED = "measured", "failed", "skipped"


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: so many `images` with so many references, made in batches of at most `batch`."""

    path: str
    batch: int
    references: int
    images: int

    @property
    def name(self) -> str:
        """The name in the table."""
        if self.path == PIPELINE and self.batch == 1:
            return "pipeline in a loop"
        return f"{self.path}, batch {self.batch}" if self.path in (PIPELINE, WORKER) else self.path


@dataclass(slots=True)
class Outcome:
    """The outcome of a case: `figures` if it was measured, else `reason`."""

    case: Case
    status: str
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """Images a second."""
        return self.case.images / self.figures["seconds"] if self.status == MEASURED else None


def pipeline_cases(batches: Sequence[int], images: dict[int, int]) -> list[Case]:
    """The cases of the pipeline called directly; `images` is how many to make, by references (at least one batch)."""
    ordered = [(batch, references) for batch in extremes_first(batches) for references in images]
    cases = [Case(PIPELINE, batch, references, max(batch, images[references])) for batch, references in ordered]
    return [*cases, Case(AGAIN, 1, 0, images[0])] if 1 in batches and 0 in images else cases


def worker_cases(batch: int, images: dict[int, int]) -> list[Case]:
    """The cases of one worker with this `--max-batch`."""
    serial = [Case(SERIAL, 1, 0, images[0])] if batch == 1 and 0 in images else []
    return [*serial, *(Case(WORKER, batch, references, max(batch, count)) for references, count in images.items())]


def extremes_first(batches: Sequence[int]) -> list[int]:
    """The smallest, the largest, then the others: if time runs short, the first two say most."""
    ordered = sorted(set(batches))
    return ordered[:1] + ordered[:0:-1]


def estimate(case: Case, outcomes: Sequence[Outcome], start_s: float = 0.0) -> float:
    """Seconds that a case will take with its warm-up, by the slowest one of as many references; 0 if none is known."""
    same = [outcome for outcome in outcomes if outcome.rate and outcome.case.references == case.references]
    per_image = max((1 / outcome.rate for outcome in same if outcome.rate), default=0.0)
    return start_s + per_image * (case.images + case.batch)


def ratio(outcome: Outcome, outcomes: Sequence[Outcome], path: str = PIPELINE, batch: int = 1) -> float | None:
    """Images a second against another case with as many references: by default the pipeline in a loop."""
    wanted = (path, batch, outcome.case.references)
    base = next(
        (
            outcome.rate
            for outcome in outcomes
            if (outcome.case.path, outcome.case.batch, outcome.case.references) == wanted
        ),
        None,
    )
    return outcome.rate / base if outcome.rate and base else None


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """All cases as they go into the JSON file."""
    entries = []
    for outcome in outcomes:
        case = outcome.case
        entry: dict[str, Any] = {"name": case.name, "path": case.path, "batch": case.batch}
        entry |= {
            "references": case.references,
            "images": case.images,
            "status": outcome.status,
            "reason": outcome.reason,
        }
        entry |= {"images_per_s": outcome.rate, "ratio": ratio(outcome, outcomes)}
        entry["ratio_to_pipeline"] = (
            ratio(outcome, outcomes, batch=case.batch) if case.path in (WORKER, SERIAL) else None
        )
        entries.append(entry | outcome.figures)
    return entries


def added(cases: Sequence[dict[str, Any]], encoding_ms: dict[str, float]) -> dict[str, float]:
    """The ms that the worker adds to one image: a single call against the loop, and its encoding."""
    rates = {(case["path"], case["batch"], case["references"]): case["images_per_s"] for case in cases}
    loop, serial = rates.get((PIPELINE, 1, 0)), rates.get((SERIAL, 1, 0))
    if not (loop and serial and "png" in encoding_ms):
        return {}
    more = 1000 / serial - 1000 / loop
    return {"one_call_ms": more, "of_it_png_ms": encoding_ms["png"], "gateway_ms": more - encoding_ms["png"]}


def table(cases: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table: measured cases by references, then those that were not, with the reason."""
    columns = "case | references | images/s | ratio to the loop | to the pipeline | images per batch | model busy"
    lines = [f"| {columns} | peak MB | reserved MB |", "| --- " * 9 + "|"]
    for case in sorted(
        cases, key=lambda case: (case["references"], case["path"] != PIPELINE, case["path"], case["batch"])
    ):
        if case["status"] != MEASURED:
            lines.append(f"| {case['name']} | {case['references']} | {case['status']}: {case['reason']} |" + " |" * 6)
            continue
        figures = [_figure(case["images_per_s"], 3), _figure(case["ratio"]), _figure(case["ratio_to_pipeline"])]
        figures += [_figure(case.get("images_per_batch"), 1), _figure(case.get("model_busy"))]
        figures += [_figure(case.get("peak_memory_mb"), 0), _figure(case.get("reserved_memory_mb"), 0)]
        lines.append(f"| {case['name']} | {case['references']} | {' | '.join(figures)} |")
    return lines


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
