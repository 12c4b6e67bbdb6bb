"""The command line: parses, plans, calls the flow, prints. See docs/reference for options and exit codes."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape

from prefect_imagegen.app.api import execute
from prefect_imagegen.app.config.options import SECRET_OPTIONS, GenerateOptions
from prefect_imagegen.app.config.settings import ProviderSettings, StoreSettings
from prefect_imagegen.app.demo import contact_sheet, write_manifest
from prefect_imagegen.app.maintenance.status import accounts, statuses
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec, plan_only, prepare
from prefect_imagegen.app.running import registry
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.cli.exit import CommandExit, command_boundary, planned, print_json
from prefect_imagegen.cli.maintenance import COMMANDS, OLD_NAMES
from prefect_imagegen.cli.options import backend_of, generate_options, is_block, options_of, store_of, store_options
from prefect_imagegen.cli.output import (
    quiet_prefect,
    show_accounts,
    show_plan,
    show_result,
    show_statuses,
    showing_progress,
)
from prefect_imagegen.cli.prefect_api import configured_api
from prefect_imagegen.cli.serve import serve
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.secrets import holds_secret

_NO_PREFECT = (
    "[dim]No Prefect API is configured, so this runs without it. For its UI: `prefect server start`, and\n"
    "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`.[/]"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="prefect-imagegen")
def cli() -> None:
    """Turn a table of prompts into images and metadata in object storage, and never pay for an image twice."""


@cli.command()
@generate_options
@click.option(
    "--prefect",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Run as a Prefect flow. auto: where a Prefect API is configured.",
)
@click.option("--dry-run", is_flag=True, help="Only plan: nothing is called or written.")
def generate(dry_run: bool, prefect: str, as_json: bool, **given: Any) -> None:
    """Make the image of every row of MANIFEST and write images and metadata to the store."""
    console = Console(stderr=as_json)
    with command_boundary(given["store"], as_json=as_json):
        if dry_run:
            _plan(console, given)
        as_flow = _is_flow(prefect, given)
        prepared, store, backend = _prepared(given)
        show_plan(console, prepared.summary)
        if as_flow:
            _run_flow(console, prepared, store, backend)
        if prefect == "auto":
            console.print(_NO_PREFECT, soft_wrap=True, highlight=False)
        _run_directly(console, prepared)


@cli.command()
@generate_options
def plan(as_json: bool, **given: Any) -> None:
    """Show what `generate` would do; calls nothing, writes nothing, needs no key."""
    console = Console(stderr=as_json)
    with command_boundary(given["store"], as_json=as_json):
        _plan(console, given)


@cli.command()
@click.option("--folder", default="demo-images", show_default=True, metavar="PATH", help="Where to put everything.")
def demo(folder: str) -> None:
    """Make twelve pictures without an account: a sample manifest, the embedded sandbox gateway, a local store."""
    console = Console()
    with command_boundary(folder, as_json=False), tempfile.TemporaryDirectory(prefix="imagegen-demo-") as home:
        _use_own_prefect(home)
        manifest = Path(folder) / "prompts.parquet"
        write_manifest(manifest)
        job = RunSpec(str(manifest), StoreSettings(folder), ProviderSettings("sandbox"), GenerateOptions())
        prepared = asyncio.run(prepare(job))
        show_plan(console, prepared.summary)
        console.print("[dim]The sandbox draws placeholders and costs nothing. Starting Prefect …[/]")
        try:
            _run_flow(console, prepared, folder, "sandbox")
        except CommandExit:
            _show_demo(console, Path(folder))
            raise


@cli.command()
@store_options
@click.argument("run", required=False)
def status(run: str | None, **given: Any) -> None:
    """List the runs of a store, or show the report of one RUN."""
    console = Console()
    with command_boundary(given["store"], as_json=False):
        found = asyncio.run(statuses(store_of(given), run))
        show_statuses(console, found)
        if run is None:
            show_accounts(console, asyncio.run(accounts(store_of(given))))
        if run and found[0].report_text:
            console.print("\n" + found[0].report_text, markup=False)


cli.add_command(serve)
for name, command in COMMANDS.items():
    cli.add_command(command, name)
for name, command in OLD_NAMES.items():
    alias = copy(command)
    alias.hidden = True
    cli.add_command(alias, name)


def main() -> NoReturn:
    """Run the command line; the process ends with one of `app.result.EXIT_CODES`."""
    try:
        cli.main(standalone_mode=False, prog_name="prefect-imagegen")
    except CommandExit as ended:
        sys.exit(ended.code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        if "--json" in sys.argv:
            print_json(RunResult(None, "").as_dict())
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(3)
    sys.exit(0)


def _job(given: Mapping[str, Any]) -> RunSpec:
    options = options_of(given)
    return RunSpec(given["manifest"], store_of(given), backend_of(given), options)


def _plan(console: Console, given: Mapping[str, Any]) -> NoReturn:
    summary = asyncio.run(plan_only(_job(given)))
    show_plan(console, summary)
    refused = (summary.counts["invalid"] or summary.counts["busy"]) and given["on_invalid"] != "skip"
    raise CommandExit(2 if refused else 0, planned(given["store"], summary))


def _prepared(given: Mapping[str, Any]) -> tuple[PlannedRun, str, str]:
    return asyncio.run(prepare(_job(given))), given["store"], given["backend"]


def _is_flow(prefect: str, given: Mapping[str, Any]) -> bool:
    """Whether to run as a Prefect flow. Blocks are Prefect's, so they need it. Raises RefusedError."""
    block = next((given[name] for name in ("store", "backend") if is_block(given[name])), None)
    if prefect == "off" and block is not None:
        raise RefusedError(
            "needs_prefect",
            f"{block} is a block of Prefect, and --prefect is off.",
            remedy="Give the store's URL and the backend themselves, or leave --prefect away.",
        )
    return prefect == "on" or block is not None or (prefect == "auto" and configured_api() is not None)


def _run_directly(console: Console, prepared: PlannedRun) -> NoReturn:
    """Execute the prepared run without Prefect; ends with its exit code."""
    with showing_progress(console, prepared.run_id, prepared.summary.to_make):
        result = asyncio.run(execute(prepared))
    _end(console, result)


def _run_flow(console: Console, prepared: PlannedRun, store: str, backend: str) -> NoReturn:
    """Call the flow on the prepared run; ends with its exit code."""
    quiet_prefect()
    from prefect_imagegen.flows.generate_images import generate_images  # noqa: PLC0415 - loads Prefect, late

    registry.prepared[prepared.run_id] = prepared
    with showing_progress(console, prepared.run_id, prepared.summary.to_make):
        _reach_prefect()
        # What holds a secret stays in the registry, for Prefect's server keeps parameters.
        manifest = prepared.job.manifest
        state: Any = generate_images(
            redact(manifest) if holds_secret(manifest) else manifest,
            redact(store) if holds_secret(store) else store,
            backend,
            prepared.job.options.model_copy(update={name: {} for name in SECRET_OPTIONS}),
            run_id=prepared.run_id,
            return_state=True,
        )
    result = registry.results.pop(prepared.run_id, None)
    if result is None:
        error = state.result(raise_on_failure=False)
        if isinstance(error, RefusedError):
            raise error
        raise RuntimeError(f"the flow ended as {state.name}: {state.message}")
    _end(console, result)


def _end(console: Console, result: RunResult) -> NoReturn:
    """Show what a run came to; ends with its exit code."""
    show_result(console, result)
    where = f"{result.store.rstrip('/')}/runs/{result.run_id}/metadata/"
    console.print(f"[dim]metadata: {escape(where)}[/]", soft_wrap=True)
    raise CommandExit(result.exit_code, result.as_dict())


def _reach_prefect() -> None:
    """Reach Prefect's API; where it needs an ephemeral server, that is started deaf to Ctrl-C.

    A terminal sends SIGINT to the whole group of processes: the server would die first, and the flow that is being
    stopped in good order would wait for it for ever. A child inherits the signals that its parent blocks.
    """
    from prefect import get_client  # noqa: PLC0415 - loads Prefect, late

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True) as client:
            failure = client.api_healthcheck()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if failure is not None:
        where = redact(configured_api() or "of its own server")
        raise RefusedError(
            "prefect_unreachable",
            f"Prefect's API {where} cannot be reached: {failure}.",
            remedy="Start its server or correct PREFECT_API_URL, or run without Prefect: --prefect off.",
        )


def _show_demo(console: Console, store: Path) -> None:
    """Where to look, and how to go on."""
    images = sorted(path for path in (store / "images").rglob("*") if path.is_file())
    sheet = store / "contact-sheet.jpg"
    sheet.write_bytes(contact_sheet([path.read_bytes() for path in images[:12]]))
    console.print(f"\n[bold]Look at[/] {escape(f'{sheet}, and at {store}/images/')}", soft_wrap=True)
    console.print(
        "Run the demo again: nothing is made twice. For real pictures:\n"
        f"  export SEGMIND_API_KEY=SG_...\n  prefect-imagegen generate {store}/prompts.parquet --store my-images",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _use_own_prefect(home: str) -> None:
    """An ephemeral server of its own, whatever the user's profile says."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ |= {"PREFECT_HOME": home, "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true", "DO_NOT_TRACK": "1"}


if __name__ == "__main__":
    main()
