"""The report of a run in Markdown, and the sentence about its money."""

import re
from collections.abc import Iterator

from prefect_imagegen.app.running.result import HELD_COLUMNS, STATES, STOP_REASONS, RunResult, how_to_go_on
from prefect_imagegen.core.money import usd
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.redact import redact

_MARKS = re.compile(r"[\\`\[\]|]")
"""Characters that begin Markdown markup; they are escaped in all text that comes from elsewhere."""


def report_markdown(result: RunResult) -> str:
    """The run's report, `report.md`."""
    lines = [f"# Run {result.run_id}", "", f"Store: `{result.store}`", "", "| | rows |", "|---|---|"]
    lines += [f"| {state} | {getattr(result, state)} |" for state in STATES]
    lines += [f"| **all** | **{result.rows}** |", ""]
    lines += [f"{money_text(result)}; {result.calls} calls, {result.seconds:.1f} s."]
    lines += [line for remark in _remarks(result) for line in ("", remark)]
    if result.stop_reason:
        lines += [
            "",
            f"**Stopped: {STOP_REASONS.get(result.stop_reason, result.stop_reason)}** ({_cell(result.stop_message)}).",
        ]
        lines += [how_to_go_on(result.stop_reason)]
    if result.failures:
        lines += ["", "| error | rows | example | remedy |", "|---|---|---|---|"]
        for kind, count in sorted(result.failures.items(), key=lambda item: -item[1]):
            remedy = OUTCOMES[kind].remedy if kind in OUTCOMES else ""
            lines.append(f"| {kind} | {count} | {_cell(result.examples.get(kind))} | {remedy} |")
    if result.held_rows:
        lines += ["", f"Held rows (the first {len(result.held_rows)}; all are in `failures/`):", ""]
        lines += ["| row | id | error | request_id | attempts |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_cell(row[name]) for name in HELD_COLUMNS)} |" for row in result.held_rows]
        lines += ["", "The same command settles what can be settled. `prefect-imagegen resend` gives rows free, at the"]
        lines += ["risk of paying twice; rows on their way (submitted, other_run) only where --kind names them."]
    return "\n".join(lines) + "\n"


def _remarks(result: RunResult) -> Iterator[str]:
    """The sentences of the report beside the figures."""
    if result.flagged:
        yield f"{result.flagged} images are flagged (see `flags` in the metadata)."
    if result.unhonoured:
        counts = ", ".join(f"{name} in {count}" for name, count in sorted(result.unhonoured.items()))
        yield f"Parameters that were not used as asked for (rows): {counts}; see `applied`."
    if result.not_understood:
        counts = ", ".join(f"{_cell(answer)} ({count})" for answer, count in sorted(result.not_understood.items()))
        yield f"Answers that were not understood, and so proved nothing: {counts}."
    if result.left_out:
        reasons = "; ".join(f"{_cell(worker)}: {_cell(why)}" for worker, why in sorted(result.left_out.items()))
        yield f"Workers that were left out, for a while or to the end: {reasons}."
    if result.weights_license:
        yield f"Licence of the weights: {result.weights_license}."
    if result.overshoot_usd:
        yield f"The budget was overshot by {usd(result.overshoot_usd)}: calls cost more than any before."
    if result.assumed_price:
        yield "Answers named no cost: cap held against an assumed price (published, or the worst seen)."


def _cell(value: object) -> str:
    """Untrusted text for a Markdown table cell: one line, redacted, with all markup escaped."""
    if value is None:
        return ""
    return _MARKS.sub(r"\\\g<0>", redact(str(value))).replace("&", "&amp;").replace("<", "&lt;")


def money_text(result: RunResult) -> str:
    """One line on images and money: delivered, billed, possibly billed twice, and US dollars."""
    text = f"{result.generated} delivered / {result.paid} billed / {result.maybe_paid} possibly billed twice"
    text = f"{text}, {result.cost_text}{result.order_text}"
    return f"{text} (play money: a sandbox costs nothing)" if result.sandbox else text
