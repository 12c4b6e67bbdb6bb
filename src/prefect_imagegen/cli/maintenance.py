"""The commands that look after a store: what its ledger says, what the account says, and what really lies there."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from prefect_imagegen.app.config.options import GenerateOptions
from prefect_imagegen.app.config.settings import ProviderSettings, StoreSettings
from prefect_imagegen.app.maintenance.doctor import Check, examine
from prefect_imagegen.app.maintenance.reconcile import MEANINGS as DIFFERENCES
from prefect_imagegen.app.maintenance.reconcile import ReconcileReport
from prefect_imagegen.app.maintenance.reconcile import reconcile as reconcile_store
from prefect_imagegen.app.maintenance.repair import REPAIRS
from prefect_imagegen.app.maintenance.resend import resend as resend_run
from prefect_imagegen.app.maintenance.verify import verify as verify_store
from prefect_imagegen.app.maintenance.verify_report import MEANINGS as PROBLEMS
from prefect_imagegen.app.maintenance.verify_report import VerifyReport
from prefect_imagegen.app.terminal import shown
from prefect_imagegen.cli.exit import CommandExit, command_boundary
from prefect_imagegen.cli.options import backend_of, backend_options, json_option, store_of, store_options
from prefect_imagegen.cli.output import quiet_prefect
from prefect_imagegen.core.money import figure, usd

_SHOWN = 20
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "unknown": "yellow"}


@click.command()
@click.argument("run")
@click.option("--kind", "kinds", multiple=True, metavar="K", help="Only rows of this error kind. Repeatable.")
@json_option
@store_options
def resend(run: str, kinds: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Give the held and failed rows of a RUN free, so that the next run asks for them again.

    Without --kind, rows whose image is on its way (submitted, other_run) are left alone. It is your decision: a call
    without an answer may have been billed, and so may one of another account. Nothing is called now.
    """
    console = Console(stderr=as_json)
    with command_boundary(given["store"], as_json=as_json, blank={}):
        found = asyncio.run(resend_run(store_of(given), run, kinds))
        for kind, count in found.kinds.most_common():
            console.print(f"{count:,} {kind}", highlight=False)
        console.print(f"[bold]{found.rows:,} rows[/] are free: the next run asks for them again")
        if found.risk_usd:
            console.print(f"[yellow]up to {usd(found.risk_usd)} may be paid a second time[/]", highlight=False)
        if found.still_alive:
            console.print(f"[yellow]{found.still_alive:,} rows were left alone:[/] a living run works on them")
        if found.on_their_way:
            console.print(f"{found.on_their_way:,} rows were left alone: their images are on the way")
        raise CommandExit(0, found.as_dict())


@click.command()
@click.option("--from", "start", type=click.DateTime(["%Y-%m-%d"]), help="First day, UTC. [default: 7 days ago]")
@click.option("--to", "end", type=click.DateTime(["%Y-%m-%d"]), help="Last day, UTC. [default: today]")
@backend_options
@json_option
@store_options
def reconcile(start: datetime | None, end: datetime | None, as_json: bool, **given: Any) -> None:
    """Compare the ledger of a store with the account's request history, and name every difference in dollars.

    Exit code 0: they agree; 1: they differ; 2: refused. Nothing is written or paid.
    """
    console = Console(stderr=as_json)
    with command_boundary(given["store"], as_json=as_json, blank={}):
        found = asyncio.run(
            reconcile_store(store_of(given), backend_of(given), _options(given), start=_day(start), end=_day(end))
        )
        _show_differences(console, found)
        raise CommandExit(1 if found.differences else 0, found.as_dict())


@click.command()
@click.option("--repair", is_flag=True, help="Fetch lost images again, adopt unrecorded ones, quarantine the rest.")
@backend_options
@json_option
@store_options
def verify(repair: bool, as_json: bool, **given: Any) -> None:
    """Check that every image of the ledger is in the store, whole and unchanged, and every image in the ledger.

    Reads and decodes every image. Exit code 0: all is well, or mended; 1: something is wrong; 2: refused. --repair
    never pays: with a key it fetches paid images again while the API still has them (7 days).
    """
    console = Console(stderr=as_json)
    with command_boundary(given["store"], as_json=as_json, blank={}):
        with console.status("verifying") as status:
            found = asyncio.run(
                verify_store(
                    store_of(given),
                    backend_of(given),
                    _options(given),
                    repair=repair,
                    on_progress=lambda count: status.update(f"{count:,} images verified"),
                )
            )
        _show_problems(console, found, repair=repair)
        raise CommandExit(0 if found.sound else 1, found.as_dict())


@click.command()
@click.option("--deep", is_flag=True, help="Try all that a store has to hold; some 1,200 objects come and go.")
@backend_options
@json_option
@store_options
def doctor(deep: bool, as_json: bool, **given: Any) -> None:
    """Check everything that a run needs: store, clock, endpoint, key, balance, history, limits, Prefect.

    Exit code 0: a run can start; 1: something hinders it; 2: refused. Nothing is submitted or paid.
    """
    console = Console(stderr=as_json)
    with command_boundary(given["store"], as_json=as_json, blank={}):
        checks = asyncio.run(_examined(console, store_of(given), backend_of(given), _options(given), deep=deep))
        for check in _prefect():
            _show_check(console, check)
            checks.append(check)
        failed = any(check.state == "fail" for check in checks)
        raise CommandExit(1 if failed else 0, {"checks": [check.as_dict() for check in checks]})


COMMANDS = {"resend": resend, "reconcile": reconcile, "verify": verify, "doctor": doctor}
OLD_NAMES = {"retry": resend}
"""What commands were called before; they still answer to it."""


def _options(given: dict[str, Any]) -> GenerateOptions:
    return GenerateOptions(base_url=given["base_url"], endpoints=list(given["endpoints"]))


def _day(value: datetime | None) -> date | None:
    return None if value is None else value.replace(tzinfo=UTC).date()


def _show_differences(console: Console, found: ReconcileReport) -> None:
    console.print(
        f"{found.start} to {found.end}: the history has {found.history_calls:,} calls for {usd(found.history_usd)},"
        f" the ledger {found.ledger_calls:,} for {usd(found.ledger_usd)}",
        highlight=False,
    )
    if not found.differences:
        console.print("[green]they agree[/]")
        return
    for kind, meaning in DIFFERENCES.items():
        some = [one for one in found.differences if one.kind == kind]
        if not some:
            continue
        console.print(
            f"[red]{kind}[/] {len(some):,} calls, {usd(sum(one.usd for one in some), signed=True)}: {meaning}"
        )
        table = Table("request_id", "ledger USD", "history USD", box=None, header_style="dim")
        for one in some[:_SHOWN]:
            table.add_row(shown(one.request_id), _usd(one.ledger_usd), _usd(one.history_usd))
        console.print(table)
        _show_rest(console, len(some))


def _usd(value: float | None) -> str:
    return "-" if value is None else figure(value)


def _show_problems(console: Console, found: VerifyReport, *, repair: bool) -> None:
    console.print(f"{found.images:,} images read")
    if found.in_progress:
        console.print(f"{found.in_progress:,} are being recorded by a living run")
    if not found.problems:
        console.print("[green]the store is sound[/]")
        return
    for kind, meaning in PROBLEMS.items():
        some = [one for one in found.problems if one.kind == kind]
        if not some:
            continue
        console.print(f"[red]{kind}[/] {len(some):,}: {meaning}")
        for one in some[:_SHOWN]:
            console.print(f"  {shown(one.path)}: {shown(one.detail)}", soft_wrap=True, highlight=False)
        _show_rest(console, len(some))
    for name, meaning in REPAIRS.items():
        count = sum(one.repair == name for one in found.problems)
        if count:
            console.print(f"[bold]{name}[/] {count:,}: {meaning}")
    if any(one.repair is None for one in found.problems):
        console.print(
            "What was lost and is left so needs the account's API: set its key and run it again."
            if repair
            else "Run it with --repair: it fetches lost images again, adopts whole ones, quarantines the rest."
        )


def _show_rest(console: Console, count: int) -> None:
    if count > _SHOWN:
        console.print(f"  … and {count - _SHOWN:,} more (--json has them all)")


async def _examined(
    console: Console, store: StoreSettings, backend: ProviderSettings, options: GenerateOptions, *, deep: bool
) -> list[Check]:
    checks = []
    async for check in examine(store, backend, options, deep=deep):
        _show_check(console, check)
        checks.append(check)
    return checks


def _show_check(console: Console, check: Check) -> None:
    style = _STYLES[check.state]
    line = f"[{style}]{check.state:>4}[/] [bold]{check.name:<12}[/] {shown(check.text)}"
    console.print(line, highlight=False, soft_wrap=True)
    if check.remedy:
        console.print(f"{'':17} {shown(check.remedy)}", style="dim", highlight=False, soft_wrap=True)


def _prefect() -> Iterator[Check]:
    """Prefect's server: the one that is set, or whether a run may start one of its own."""
    quiet_prefect()
    import prefect  # noqa: PLC0415 - loads slowly
    from prefect.settings import get_current_settings  # noqa: PLC0415

    settings = get_current_settings()
    url = settings.api.url
    if url is None:
        if settings.server.ephemeral.enabled:
            yield Check("prefect", "ok", f"{prefect.__version__}; no server is set, every run starts one of its own")
        else:
            text = "no server is set, and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE is off"
            yield Check("prefect", "fail", text, "Set PREFECT_API_URL, or allow the ephemeral server.")
        return
    with prefect.get_client(sync_client=True) as client:
        failure = client.api_healthcheck()
        if failure is not None:
            yield Check("prefect", "fail", f"{url} gives no answer: {failure}", "Start it, or correct PREFECT_API_URL.")
            return
        try:
            theirs = client.api_version()
        except Exception as error:  # noqa: BLE001 - whatever answers there is not Prefect's API
            text = f"{url} is no Prefect API ({type(error).__name__})"
            yield Check("prefect", "fail", text, "Correct PREFECT_API_URL: it ends in /api.")
            return
    text = f"server {theirs} at {url}, client {prefect.__version__}"
    if theirs == prefect.__version__:
        yield Check("prefect", "ok", text)
    else:
        yield Check("prefect", "warn", text, "Use the same version on both sides.")
