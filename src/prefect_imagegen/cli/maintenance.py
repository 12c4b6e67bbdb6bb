"""The commands that look after a store: what its ledger says, what the account says, and what really lies there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from prefect_imagegen.cli.exit import CommandExit, command_boundary
from prefect_imagegen.cli.options import backend_options, json_option, store_options
from prefect_imagegen.cli.prefect_api import quiet_prefect
from prefect_imagegen.core.money import usd

if TYPE_CHECKING:
    from prefect_imagegen.app.config.options import RunOptions
    from prefect_imagegen.app.config.settings import StoreSettings
    from prefect_imagegen.app.maintenance.doctor import Check
    from prefect_imagegen.providers.settings import ProviderSettings


@click.command()
@store_options
@click.argument("run", required=False)
def status(run: str | None, **parsed: Any) -> None:
    """List the runs of a store, or show the report of one RUN."""
    console = Console()
    with command_boundary(parsed["store"], as_json=False):
        from prefect_imagegen.app.maintenance.status import accounts, statuses
        from prefect_imagegen.cli.output import show_accounts, show_statuses
        from prefect_imagegen.cli.settings import store_of

        runs = asyncio.run(statuses(store_of(parsed), run))
        show_statuses(console, runs)
        if run is None:
            show_accounts(console, asyncio.run(accounts(store_of(parsed))))
        if run and runs[0].report_text:
            console.print("\n" + runs[0].report_text, markup=False)


@click.command()
@click.argument("run")
@click.option("--kind", "kinds", multiple=True, metavar="K", help="Only rows of this error kind. Repeatable.")
@json_option
@store_options
def resend(run: str, kinds: tuple[str, ...], as_json: bool, **parsed: Any) -> None:
    """Give the held and failed rows of a RUN free, so that the next run asks for them again.

    Without --kind, rows whose image is on its way (submitted, other_run) are left alone. It is your decision: a call
    without an answer may have been billed, and so may one of another account. Nothing is called now.
    """
    console = Console(stderr=as_json)
    with command_boundary(parsed["store"], as_json=as_json, blank={}):
        from prefect_imagegen.app.maintenance.resend import resend as resend_rows
        from prefect_imagegen.cli.settings import store_of

        report = asyncio.run(resend_rows(store_of(parsed), run, kinds))
        for kind, count in report.kinds.most_common():
            console.print(f"{count:,} {kind}", highlight=False)
        console.print(f"[bold]{report.rows:,} rows[/] are free: the next run asks for them again")
        if report.risk_usd:
            console.print(f"[yellow]up to {usd(report.risk_usd)} may be paid a second time[/]", highlight=False)
        if report.still_alive:
            console.print(f"[yellow]{report.still_alive:,} rows were left alone:[/] a living run works on them")
        if report.on_their_way:
            console.print(f"{report.on_their_way:,} rows were left alone: their images are on the way")
        raise CommandExit(0, report.as_dict())


@click.command()
@click.option("--from", "start", type=click.DateTime(["%Y-%m-%d"]), help="First day, UTC. [default: 7 days ago]")
@click.option("--to", "end", type=click.DateTime(["%Y-%m-%d"]), help="Last day, UTC. [default: today]")
@backend_options
@json_option
@store_options
def reconcile(start: datetime | None, end: datetime | None, as_json: bool, **parsed: Any) -> None:
    """Compare the ledger of a store with the account's request history, and name every difference in dollars.

    Exit code 0: they agree; 1: they differ; 2: refused. Nothing is written or paid.
    """
    console = Console(stderr=as_json)
    with command_boundary(parsed["store"], as_json=as_json, blank={}):
        from prefect_imagegen.app.maintenance.reconcile import reconcile as reconcile_store
        from prefect_imagegen.cli.output import show_differences
        from prefect_imagegen.cli.settings import backend_of, store_of

        report = asyncio.run(
            reconcile_store(store_of(parsed), backend_of(parsed), _options(parsed), start=_day(start), end=_day(end))
        )
        show_differences(console, report)
        raise CommandExit(1 if report.differences else 0, report.as_dict())


@click.command()
@click.option("--repair", is_flag=True, help="Fetch lost images again, adopt unrecorded ones, quarantine the rest.")
@backend_options
@json_option
@store_options
def verify(repair: bool, as_json: bool, **parsed: Any) -> None:
    """Check that every image of the ledger is in the store, whole and unchanged, and every image in the ledger.

    Reads and decodes every image. Exit code 0: all is well, or mended; 1: something is wrong; 2: refused. --repair
    never pays: with a key it fetches paid images again while the API still has them.
    """
    console = Console(stderr=as_json)
    with command_boundary(parsed["store"], as_json=as_json, blank={}):
        from prefect_imagegen.app.maintenance.verify import verify as verify_store
        from prefect_imagegen.cli.output import show_problems
        from prefect_imagegen.cli.settings import backend_of, store_of

        with console.status("verifying") as spinner:
            report = asyncio.run(
                verify_store(
                    store_of(parsed),
                    backend_of(parsed),
                    _options(parsed),
                    repair=repair,
                    on_progress=lambda count: spinner.update(f"{count:,} images verified"),
                )
            )
        show_problems(console, report, repair=repair)
        raise CommandExit(0 if report.sound else 1, report.as_dict())


@click.command()
@click.option("--deep", is_flag=True, help="Try all that a store has to hold; some 1,200 objects come and go.")
@backend_options
@json_option
@store_options
def doctor(deep: bool, as_json: bool, **parsed: Any) -> None:
    """Check everything that a run needs: store, clock, endpoint, key, balance, history, limits, Prefect.

    Exit code 0: a run can start; 1: something hinders it; 2: refused. Nothing is submitted or paid.
    """
    console = Console(stderr=as_json)
    with command_boundary(parsed["store"], as_json=as_json, blank={}):
        from prefect_imagegen.cli.output import show_check
        from prefect_imagegen.cli.settings import backend_of, store_of

        settings = (store_of(parsed), backend_of(parsed), _options(parsed))
        checks = asyncio.run(_examined(console, *settings, deep=deep))
        for check in _prefect_checks():
            show_check(console, check)
            checks.append(check)
        failed = any(check.state == "fail" for check in checks)
        raise CommandExit(1 if failed else 0, {"checks": [check.as_dict() for check in checks]})


COMMANDS = (status, resend, reconcile, verify, doctor)
OLD_NAMES = {"retry": resend}
"""What commands were called before; they still answer to it."""


def _options(parsed: Mapping[str, Any]) -> RunOptions:
    from prefect_imagegen.app.config.options import RunOptions

    return RunOptions(base_url=parsed["base_url"], endpoints=list(parsed["endpoints"]))


def _day(value: datetime | None) -> date | None:
    return None if value is None else value.replace(tzinfo=UTC).date()


async def _examined(
    console: Console, store: StoreSettings, backend: ProviderSettings, options: RunOptions, *, deep: bool
) -> list[Check]:
    """The checks of store, clock and endpoint; each is shown when it is done."""
    from prefect_imagegen.app.maintenance.doctor import examine
    from prefect_imagegen.cli.output import show_check

    checks = []
    async for check in examine(store, backend, options, deep=deep):
        show_check(console, check)
        checks.append(check)
    return checks


def _prefect_checks() -> Iterator[Check]:
    """Check Prefect's server: the one that is set, or whether a run may start one of its own."""
    from prefect_imagegen.app.maintenance.doctor import Check

    quiet_prefect()
    import prefect
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    url = settings.api.url
    if url is None:
        if settings.server.ephemeral.enabled:
            yield Check(
                "prefect",
                "ok",
                f"{prefect.__version__}; no API is configured, so `generate` runs without it "
                "(`--prefect on` starts a server)",
            )
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
            server_version = client.api_version()
        except Exception as error:  # noqa: BLE001 - whatever answers there is not Prefect's API
            text = f"{url} is no Prefect API ({type(error).__name__})"
            yield Check("prefect", "fail", text, "Correct PREFECT_API_URL: it ends in /api.")
            return
    text = f"server {server_version} at {url}, client {prefect.__version__}"
    if server_version == prefect.__version__:
        yield Check("prefect", "ok", text)
    else:
        yield Check("prefect", "warn", text, "Use the same version on both sides.")
