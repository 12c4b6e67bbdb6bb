"""What the command line shows: plans, progress and results, for people on a terminal and for log files."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from prefect_imagegen.app.maintenance.doctor import Check
from prefect_imagegen.app.maintenance.reconcile import MEANINGS as DIFFERENCES
from prefect_imagegen.app.maintenance.reconcile import ReconcileReport
from prefect_imagegen.app.maintenance.repair import REPAIRS
from prefect_imagegen.app.maintenance.status import RunStatus
from prefect_imagegen.app.maintenance.verify_report import MEANINGS as PROBLEMS
from prefect_imagegen.app.maintenance.verify_report import VerifyReport
from prefect_imagegen.app.running.report import money_text
from prefect_imagegen.app.running.result import STATES, STOP_REASONS, RunResult, how_to_go_on
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.app.terminal import shown
from prefect_imagegen.core.money import figure, usd
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.policy.forecast import Forecast
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.store.ledger.accounts import KeyRecord

_SHOWN = 20
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "unknown": "yellow"}
_TICK_S = 0.25
_LINE_S = 10.0
_WORDS = {
    "new": "to make",
    "done": "done before",
    "identical": "identical to another row",
    "invalid": "invalid",
    "busy": "whose references are at hosts that are busy now",
    "failed": "failed for good before",
    "unsettled": "to settle from an earlier run",
}


def show_plan(console: Console, summary: PlanSummary) -> None:
    """Rows by what is to be done with them, warnings, row errors, and the expected price."""
    console.print(f"[bold]{counted(summary.rows, 'row')}[/]")
    table = Table(show_header=False, box=None)
    for state, words in _WORDS.items():
        if summary.counts[state]:
            table.add_row(f"{summary.counts[state]:,}", words)
    console.print(table)
    if summary.counts["identical"]:
        console.print(
            f"{summary.counts['identical']:,} rows are identical and share an image; give seeds for variants."
        )
    for warning, count in summary.warnings.items():
        console.print(f"[yellow]warning[/] {shown(warning)} ({counted(count, 'row')})")
    for error in summary.errors:
        console.print(f"{'[yellow]busy[/]' if error.is_busy else '[red]invalid[/]'} {shown(str(error))}")
    hidden = sum(summary.reasons.values()) - len(summary.errors)
    if hidden > 0:
        console.print(f"… and {hidden:,} more errors:")
        for reason, count in summary.reasons.most_common(5):
            console.print(f"  {count:,} x {shown(reason)}")
    if summary.to_make:
        console.print(forecast_text(summary.forecast), highlight=False)


def forecast_text(forecast: Forecast) -> str:
    """What the images will cost, how long they will take, and how that is known."""
    if forecast.free:
        return f"{counted(forecast.images, 'image')} on your own workers: nothing to pay"
    if forecast.sandbox:
        return f"{counted(forecast.images, 'image')} in the sandbox: placeholders, nothing to pay"
    source = "as measured in this store" if forecast.measured else "by published or assumed prices, halved and doubled"
    if 0 < forecast.measured < forecast.images:
        source = f"as measured in this store for {forecast.measured:,}, else by published or assumed prices"
    money = f"[bold]{figure(forecast.low_usd, places=2)} to {usd(forecast.high_usd, places=2)}[/]"
    times = " to ".join(dict.fromkeys(_duration(seconds) for seconds in (forecast.low_seconds, forecast.high_seconds)))
    return f"{counted(forecast.images, 'image')}: {money} and {times}, {source}"


def _duration(seconds: float) -> str:
    for limit, unit, name in ((90.0, 1.0, "s"), (5400.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds / 86400:,.0f} days"


def show_result(console: Console, result: RunResult) -> None:
    """Rows by state, calls, money and time; failures by kind with an example and the remedy."""
    console.print(f"[bold]run {result.run_id}[/]", highlight=False)
    table = Table(show_header=False, box=None)
    for state in STATES:
        if getattr(result, state):
            table.add_row(f"{getattr(result, state):,}", state)
    console.print(table)
    console.print(f"{money_text(result)}; {result.calls:,} calls, {result.seconds:.1f} s", highlight=False)
    if result.flagged:
        console.print(f"[yellow]{result.flagged:,} images are flagged[/] (column flags)")
    if result.unhonoured:
        counts = ", ".join(f"{name} in {count:,} rows" for name, count in sorted(result.unhonoured.items()))
        console.print(f"[yellow]not used as asked for:[/] {counts} (column applied)", highlight=False)
    if result.weights_license:
        console.print(f"licence of the weights: {shown(result.weights_license)}", highlight=False)
    if result.overshoot_usd:
        console.print(f"[yellow]{usd(result.overshoot_usd)} above --max-cost-usd[/]: calls cost more than any before")
    for kind, count in sorted(result.failures.items(), key=lambda item: -item[1]):
        example = shown(result.examples.get(kind, ""))
        remedy = OUTCOMES[kind].remedy if kind in OUTCOMES else ""
        console.print(f"[red]{kind}[/] {counted(count, 'row')}: {example} [dim]{shown(remedy)}[/]")
    if result.stop_reason:
        reason = STOP_REASONS.get(result.stop_reason, result.stop_reason)
        console.print(f"[red bold]stopped:[/] {reason} ({shown(result.stop_message or '')})")
        console.print(how_to_go_on(result.stop_reason))


def show_statuses(console: Console, statuses: Sequence[RunStatus]) -> None:
    """One line a run; `other` is every state but generated and reused, told apart in the run's report.

    `?`, or `+?` behind the money: the cost of all images, or of some, was named by no answer.
    """
    table = Table("run", "state", "rows", "made", "reused", "other", "calls", "USD", box=None, header_style="bold")
    for status in statuses:
        report = status.report
        if not report:
            table.add_row(status.run_id, status.state)
            continue
        other = report["rows"] - report["generated"] - report["reused"]
        counts = (report["rows"], report["generated"], report["reused"], other, report["calls"])
        table.add_row(status.run_id, status.state, *map(str, counts), _spent(report))
    for column in table.columns:
        column.no_wrap = True
        column.min_width = max(len(str(cell)) for cell in (column.header, *column.cells))
    console.print(table)


def _spent(report: Mapping[str, Any]) -> str:
    """The money of a run in few characters, since the line is 80 wide; older reports do not tell of unknown prices."""
    if not report.get("unpriced"):
        return figure(report["cost_usd"])
    return f"{figure(report['cost_usd'], places=2)}+?" if report["cost_usd"] else "?"


def show_accounts(console: Console, keys: Sequence[KeyRecord]) -> None:
    """The accounts whose keys were used in a store, each with where it was used and how many keys it had."""
    for account in dict.fromkeys(key.account for key in keys):
        account_keys = [key for key in keys if key.account == account]
        places = ", ".join(dict.fromkeys(f"{key.provider} at {key.origin}" for key in account_keys))
        count = "one key" if len(account_keys) == 1 else f"{len(account_keys)} keys"
        console.print(f"[dim]used with account {shown(account)}: {shown(places)}, {count}[/]", highlight=False)


def show_differences(console: Console, report: ReconcileReport) -> None:
    """What the account's history and the ledger sum to, and the first 20 differences of each kind."""
    console.print(
        f"{report.start} to {report.end}: the history has {report.history_calls:,} calls for {usd(report.history_usd)},"
        f" the ledger {report.ledger_calls:,} for {usd(report.ledger_usd)}",
        highlight=False,
    )
    if not report.differences:
        console.print("[green]they agree[/]")
        return
    for kind, meaning in DIFFERENCES.items():
        differences = [difference for difference in report.differences if difference.kind == kind]
        if not differences:
            continue
        total = usd(sum(difference.usd for difference in differences), signed=True)
        console.print(f"[red]{kind}[/] {len(differences):,} calls, {total}: {meaning}")
        table = Table("request_id", "ledger USD", "history USD", box=None, header_style="dim")
        for difference in differences[:_SHOWN]:
            amounts = (_usd(difference.ledger_usd), _usd(difference.history_usd))
            table.add_row(shown(difference.request_id), *amounts)
        console.print(table)
        _show_rest(console, len(differences))


def show_problems(console: Console, report: VerifyReport, *, repair: bool) -> None:
    """How many images were read, the first 20 problems of each kind, and what was or can be mended."""
    console.print(f"{report.images:,} images read")
    if report.in_progress:
        console.print(f"{report.in_progress:,} are being recorded by a living run")
    if not report.problems:
        console.print("[green]the store is sound[/]")
        return
    for kind, meaning in PROBLEMS.items():
        problems = [problem for problem in report.problems if problem.kind == kind]
        if not problems:
            continue
        console.print(f"[red]{kind}[/] {len(problems):,}: {meaning}")
        for problem in problems[:_SHOWN]:
            console.print(f"  {shown(problem.path)}: {shown(problem.detail)}", soft_wrap=True, highlight=False)
        _show_rest(console, len(problems))
    for name, meaning in REPAIRS.items():
        count = sum(problem.repair == name for problem in report.problems)
        if count:
            console.print(f"[bold]{name}[/] {count:,}: {meaning}")
    if any(problem.repair is None for problem in report.problems):
        console.print(_how_to_repair(report, repair=repair))


def _how_to_repair(report: VerifyReport, *, repair: bool) -> str:
    """What to do about problems that were not repaired."""
    if not repair:
        return "Run it with --repair: it fetches lost images again, adopts whole ones, quarantines the rest."
    if report.without_account:
        return "What is left so came from a sandbox that has ended: nothing can be fetched, and nothing was paid."
    if report.was_asked:
        return "What was lost and is left so could not be fetched as it was. Run it again later."
    return "What was lost and is left so needs the account's API: set its key and run it again."


def show_check(console: Console, check: Check) -> None:
    """One check of `doctor` on a line, with its remedy below."""
    style = _STYLES[check.state]
    line = f"[{style}]{check.state:>4}[/] [bold]{check.name:<12}[/] {shown(check.text)}"
    console.print(line, highlight=False, soft_wrap=True)
    if check.remedy:
        console.print(f"{'':17} {shown(check.remedy)}", style="dim", highlight=False, soft_wrap=True)


def _usd(value: float | None) -> str:
    return "-" if value is None else figure(value)


def _show_rest(console: Console, count: int) -> None:
    if count > _SHOWN:
        console.print(f"  … and {count - _SHOWN:,} more (--json has them all)")


@contextmanager
def showing_progress(console: Console, total: int) -> Iterator[Callable[[Session], None]]:
    """Within: the run's progress, as a live bar on a terminal and as plain lines every 10 s elsewhere.

    Yields a function that is to be called with the session once it is open.
    """
    ended = threading.Event()
    sessions: list[Session] = []
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(target=show, args=(console, sessions, total, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield sessions.append
    finally:
        ended.set()
        thread.join()


def _show_bar(console: Console, sessions: Sequence[Session], total: int, ended: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=total, rate="", figures="")
        first: float | None = None
        while not ended.wait(_TICK_S):
            if not sessions:
                continue
            session = sessions[-1]
            first, done = first or time.monotonic(), session.stats.done
            progress.update(
                bar,
                description="images",
                completed=done,
                rate=f"{done / max(0.1, time.monotonic() - first):.1f}/s",
                figures=_figures(session),
            )


def _show_lines(console: Console, sessions: Sequence[Session], total: int, ended: threading.Event) -> None:
    first: float | None = None
    while not ended.wait(_LINE_S):
        if not sessions:
            continue
        session = sessions[-1]
        first, done = first or time.monotonic(), session.stats.done
        rate = done / max(1.0, time.monotonic() - first)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        console.print(f"{done}/{total} images, {rate:.1f}/s{left}, {_figures(session)}")


def _figures(session: Session) -> str:
    stats, waits = session.stats, session.blocked_by
    kinds = ", ".join(f"{count} {kind}" for kind, count in stats.kinds.most_common(3))
    waiting = f", nothing is sent: {waits} answers are awaited" if waits else ""
    return usd(stats.cost_usd, places=2) + (f", {kinds}" if kinds else "") + waiting


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
