"""The commands that make images: `generate`, `plan` and `demo`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape

from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.terminal import shown
from prefect_imagegen.cli.exit import CommandExit, command_boundary
from prefect_imagegen.cli.options import complete_folder, generate_options, is_provider_block, is_store_block
from prefect_imagegen.cli.prefect_api import configured_api, quiet_prefect, reach_prefect, use_own_prefect
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact

if TYPE_CHECKING:
    from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
    from prefect_imagegen.core.plan import PlanSummary

_NO_PREFECT = (
    "[dim]No Prefect API is configured, so this runs without it. For its UI: `prefect server start`, and\n"
    "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`.[/]"
)


@click.command()
@generate_options
@click.option(
    "--prefect",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Run as a Prefect flow. auto: where a Prefect API is configured.",
)
@click.option("--dry-run", is_flag=True, help="Only plan: nothing is called or written.")
def generate(dry_run: bool, prefect: str, as_json: bool, **parsed: Any) -> None:
    """Make the image of every row of MANIFEST and write images and metadata to the store."""
    console = Console(stderr=as_json)
    with command_boundary(parsed["store"], as_json=as_json), _showing_refused_rows(parsed["store"]):
        from prefect_imagegen.cli.output import show_plan

        if dry_run:
            _plan(console, parsed)
        as_flow = _is_flow(prefect, parsed)
        with asyncio.Runner() as runner, _planned(runner, _run_spec(parsed)) as planned_run:
            show_plan(console, planned_run.summary)
            if as_flow:
                _run_flow(console, runner, planned_run, parsed["store"], parsed["backend"])
            if prefect == "auto":
                console.print(_NO_PREFECT, soft_wrap=True, highlight=False)
            _run_directly(console, runner, planned_run)


@click.command()
@generate_options
def plan(as_json: bool, **parsed: Any) -> None:
    """Show what `generate` would do; calls nothing, writes nothing, needs no key."""
    console = Console(stderr=as_json)
    with command_boundary(parsed["store"], as_json=as_json), _showing_refused_rows(parsed["store"]):
        _plan(console, parsed)


@click.command()
@click.option(
    "--folder",
    default="demo-images",
    show_default=True,
    metavar="PATH",
    help="Where to put everything.",
    shell_complete=complete_folder,
)
def demo(folder: str) -> None:
    """Make twelve pictures without an account: a sample manifest, the embedded sandbox gateway, a local store."""
    console = Console()
    with command_boundary(folder, as_json=False), tempfile.TemporaryDirectory(prefix="imagegen-demo-") as home:
        from prefect_imagegen.app.config.settings import StoreSettings
        from prefect_imagegen.app.demo import write_manifest
        from prefect_imagegen.app.planning.prepare import RunSpec
        from prefect_imagegen.cli.output import show_plan
        from prefect_imagegen.providers.settings import ProviderSettings

        use_own_prefect(home)
        manifest = Path(folder) / "prompts.parquet"
        write_manifest(manifest)
        spec = RunSpec(str(manifest), StoreSettings(folder), ProviderSettings("sandbox"))
        with asyncio.Runner() as runner, _planned(runner, spec) as planned_run:
            show_plan(console, planned_run.summary)
            console.print("[dim]The sandbox draws placeholders and costs nothing. Starting Prefect …[/]")
            try:
                _run_flow(console, runner, planned_run, folder, "sandbox")
            except CommandExit:
                _show_demo(console, Path(folder))
                raise


COMMANDS = (generate, plan, demo)


@contextmanager
def _showing_refused_rows(store: str) -> Iterator[None]:
    """Within: a manifest that is refused for its rows ends the command with exit code 2 and the counts of its plan."""
    from prefect_imagegen.app.planning.prepare import RowsRefusedError

    try:
        yield
    except RowsRefusedError as error:
        errors = Console(stderr=True)
        errors.print(f"[red bold]refused:[/] {shown(error.message)}", end="", highlight=False)
        errors.print(shown(error.remedy), highlight=False)
        raise CommandExit(2, _planned_result(store, error.summary, refused=True)) from error


def _run_spec(parsed: Mapping[str, Any]) -> RunSpec:
    from prefect_imagegen.app.planning.prepare import RunSpec
    from prefect_imagegen.cli.settings import backend_of, options_of, store_of

    options = options_of(parsed)
    return RunSpec(parsed["manifest"], store_of(parsed), backend_of(parsed), options)


@contextmanager
def _planned(runner: asyncio.Runner, spec: RunSpec) -> Iterator[PlannedRun]:
    """Within: the run, planned in the event loop in which it is to be executed; what it has open is closed at last."""
    from prefect_imagegen.app.planning.prepare import prepare

    planned_run = runner.run(prepare(spec))
    try:
        yield planned_run
    finally:
        runner.run(planned_run.aclose())


def _plan(console: Console, parsed: Mapping[str, Any]) -> NoReturn:
    from prefect_imagegen.app.planning.prepare import plan_only
    from prefect_imagegen.cli.output import show_plan

    summary = asyncio.run(plan_only(_run_spec(parsed)))
    show_plan(console, summary)
    refused = (summary.counts["invalid"] or summary.counts["busy"]) and parsed["on_invalid"] != "skip"
    raise CommandExit(2 if refused else 0, _planned_result(parsed["store"], summary))


def _planned_result(store: str, summary: PlanSummary, *, refused: bool = False) -> dict[str, Any]:
    """A plan as the `--json` line of a run: what is to be made counts as not run; if refused, so does all else."""
    counts = summary.counts
    result = RunResult(None, redact(store), rows=summary.rows, invalid=counts["invalid"])
    if not refused:
        result.reused, result.failed = counts["done"], counts["failed"]
    result.not_run = result.rows - result.invalid - result.reused - result.failed
    return result.as_dict()


def _is_flow(prefect: str, parsed: Mapping[str, Any]) -> bool:
    """Whether to run as a Prefect flow. Blocks are Prefect's, so they need it. Raises RefusedError."""
    named = (("store", is_store_block), ("backend", is_provider_block))
    block = next((parsed[name] for name, is_block in named if is_block(parsed[name])), None)
    if prefect == "off" and block is not None:
        raise RefusedError(
            "needs_prefect",
            f"{block} is a block of Prefect, and --prefect is off.",
            remedy="Give the store's URL and the backend themselves, or leave --prefect away.",
        )
    return prefect == "on" or block is not None or (prefect == "auto" and configured_api() is not None)


def _run_directly(console: Console, runner: asyncio.Runner, planned_run: PlannedRun) -> NoReturn:
    """Execute the planned run without Prefect; ends with its exit code."""
    from prefect_imagegen.app.api import execute
    from prefect_imagegen.cli.output import showing_progress

    with showing_progress(console, planned_run.summary.to_make) as show:
        result = runner.run(execute(planned_run, show))
    _end(console, result)


def _run_flow(console: Console, runner: asyncio.Runner, planned_run: PlannedRun, store: str, backend: str) -> NoReturn:
    """Call the flow on the planned run; ends with its exit code."""
    quiet_prefect()
    from prefect_imagegen.app.config.option_table import SECRET_OPTIONS
    from prefect_imagegen.cli.output import showing_progress
    from prefect_imagegen.core.secrets import holds_secret
    from prefect_imagegen.flows.generate_images import generate_images
    from prefect_imagegen.flows.hand_over import HandOver, handing_over

    with showing_progress(console, planned_run.summary.to_make) as show:
        reach_prefect()
        hand_over = HandOver(planned_run, runner, show)
        # What holds a secret is handed over only, for Prefect's server keeps parameters.
        manifest = planned_run.spec.manifest
        with handing_over(hand_over):
            state: Any = generate_images(
                redact(manifest) if holds_secret(manifest) else manifest,
                redact(store) if holds_secret(store) else store,
                backend,
                planned_run.spec.options.model_copy(update={name: {} for name in SECRET_OPTIONS}),
                return_state=True,
            )
    if hand_over.result is None:
        error = state.result(raise_on_failure=False)
        if isinstance(error, RefusedError):
            raise error
        raise RuntimeError(f"the flow ended as {state.name}: {state.message}")
    _end(console, hand_over.result)


def _end(console: Console, result: RunResult) -> NoReturn:
    """Show the figures of a run; ends with its exit code."""
    from prefect_imagegen.cli.output import show_result

    show_result(console, result)
    metadata = f"{result.store.rstrip('/')}/runs/{result.run_id}/metadata/"
    console.print(f"[dim]metadata: {escape(metadata)}[/]", soft_wrap=True)
    raise CommandExit(result.exit_code, result.as_dict())


def _show_demo(console: Console, store: Path) -> None:
    """Write the contact sheet of the demo's images; say where to look, and how to go on."""
    from prefect_imagegen.app.demo import contact_sheet

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
