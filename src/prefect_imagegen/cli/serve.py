"""The command that serves the API: a sandbox for tests and development, or the front of a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from prefect_imagegen.cli.exit import command_boundary
from prefect_imagegen.cli.options import complete_file, complete_folder
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.profiles import licence_of
from prefect_imagegen.gateway.limits import Limits

if TYPE_CHECKING:
    from pydantic import SecretStr

    from prefect_imagegen.gateway.settings import GatewaySettings

ENGINES = ("diffusers", "sandbox", "static")
"""The names of `gateway.engines.ENGINES`, and here the number formats of its `diffusers.DTYPES`: help loads neither."""
DTYPES = ("bfloat16", "float16", "float32")
_QUEUE_PER_BATCH = 4
"""So many batches are at hand, fetched and grouped, while others wait in the queue."""

_DRAIN_S = 30.0
_QUEUE = 64
_WORKER_KEEPS = {"keep_hours": 24.0, "keep_gb": 2.0, "keep_requests": 10_000}
"""A worker's answers hold the image already, and it stands for months."""


def _kept_help(amount: str, usual: int, worker: int) -> str:
    return f"What is kept at most: {amount} [default: {usual}; diffusers: {worker}]"


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each limit, named and explained by the limit itself."""
    for entry in reversed(fields(Limits)):
        command = click.option(
            entry.metadata["option"],
            entry.name,
            type=click.IntRange(1),
            default=entry.default // entry.metadata["unit"],
            show_default=True,
            metavar="N",
            help=entry.metadata["help"],
        )(command)
    return command


@click.command()
@click.option("--engine", type=click.Choice(ENGINES), default="sandbox", show_default=True, help="What draws.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8700, show_default=True, help="Port to listen on.")
@click.option(
    "--queue",
    type=click.IntRange(0),
    metavar="N",
    help="Answer 429 when N requests wait. [default: 10000; diffusers: 64]",
)
@click.option(
    "--drain-seconds", type=float, metavar="S", help="At the end, finish taken work. [default: 0; diffusers: 30]"
)
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where outputs lie.")
@click.option(
    "--keep-hours", type=click.FloatRange(0.01), metavar="H", help=_kept_help("Hours that outputs live.", 168, 24)
)
@click.option(
    "--keep-gb", type=click.FloatRange(0.05), metavar="X", help=_kept_help("GB of outputs, and of uploads.", 10, 2)
)
@click.option(
    "--keep-requests",
    type=click.IntRange(1),
    metavar="N",
    help=_kept_help("Newest requests of an account.", 100_000, 10_000),
)
@click.option(
    "--model",
    "model_path",
    metavar="PATH_OR_ID",
    help="diffusers: the checkpoint, a folder or a model id.",
    shell_complete=complete_folder,
)
@click.option("--weights-license", metavar="TEXT", help="diffusers: licence of the weights. [default: by their name]")
@click.option("--max-batch", type=click.IntRange(1), default=4, show_default=True, help="diffusers: images per call.")
@click.option(
    "--batch-delay-ms", type=click.FloatRange(0), default=20.0, show_default=True, help="diffusers: wait for others."
)
@click.option("--dtype", type=click.Choice(DTYPES), help="diffusers: number format. [default: bfloat16; CPU: float32]")
@click.option("--device", metavar="NAME", help="diffusers: cuda, cuda:1, mps, cpu. [default: the best there is]")
@click.option("--offload", is_flag=True, help="diffusers: keep the parts that are not in use in main memory.")
@click.option("--megapixels", type=click.FloatRange(0.01, 4), default=1.0, show_default=True, help="Size of an image.")
@click.option("--latency", type=float, default=0.0, metavar="S", help="Seconds that each generation takes at least.")
@click.option("--credits", "credits_usd", type=float, metavar="X", help="US dollars on each account.")
@click.option("--requests-per-minute", type=float, metavar="N", help="Answer 429 above this rate.")
@click.option("--history-lag", type=float, default=0.0, metavar="S", help="Seconds until the history knows a request.")
@click.option(
    "--account",
    "accounts",
    multiple=True,
    metavar="NAME=env:VARIABLE",
    help="An account of its own for the key in a variable.",
)
@click.option("--public-url", metavar="URL", help="Base URL of addresses in answers. [default: as it was called]")
@_limit_options
@click.option("--faults", metavar="FILE", help="Fault script, JSON.", shell_complete=complete_file)
def serve(**parsed: Any) -> None:
    """Serve the Segmind API yourself: for tests, for development, without an account, or from your own GPU."""
    console = Console(stderr=True)
    with command_boundary("", as_json=False):
        from prefect_imagegen.gateway.server import run_server

        settings = _settings(parsed)

        def show(url: str) -> None:
            key = "yours" if settings.api_key or settings.accounts else "any non-empty one"
            console.print(f"engine [bold]{settings.engine}[/], {url}, key: {key}", highlight=False)
            if settings.accounts:
                console.print(f"accounts: {', '.join(settings.accounts)}", highlight=False, markup=False)
            if settings.engine == "diffusers":
                console.print(f"loading {settings.model_path} …", highlight=False, markup=False)
                licence = settings.weights_license or "unknown (--weights-license)"
                console.print(f"licence of the weights: {licence}", markup=False)

        try:
            run_server(settings, parsed["host"], parsed["port"], on_listening=show)
        except KeyboardInterrupt:  # Ctrl-C is how it is meant to end
            console.print("stopped")


def _accounts(options: Sequence[str]) -> dict[str, list[SecretStr]]:
    """The keys of each account. Keys come from the environment: a command line is seen by every user of a machine."""
    from pydantic import SecretStr

    accounts: dict[str, list[SecretStr]] = {}
    for option in options:
        name, _, source = option.partition("=")
        kind, _, variable = source.partition(":")
        if not name or kind != "env" or not variable:
            raise RefusedError(
                "bad_option",
                "An --account is no NAME=env:VARIABLE.",
                remedy="Put the key into a variable, and give --account alice=env:ALICE_KEY.",
            )
        key = os.environ.get(variable)
        if not key:
            raise RefusedError("no_key", f"--account {name}: {variable} is not set.", remedy=f"Set {variable}.")
        accounts.setdefault(name, []).append(SecretStr(key))
    return accounts


def _settings(parsed: Mapping[str, Any]) -> GatewaySettings:
    from pydantic import SecretStr

    from prefect_imagegen.gateway.faults import FaultScript, load_faults
    from prefect_imagegen.gateway.settings import GatewaySettings

    key = os.environ.get("PREFECT_IMAGEGEN_API_KEY")
    settings = GatewaySettings(
        engine=parsed["engine"],
        latency_s=parsed["latency"],
        credits=parsed["credits_usd"],
        requests_per_minute=parsed["requests_per_minute"],
        history_lag_s=parsed["history_lag"],
        faults=load_faults(parsed["faults"]) if parsed["faults"] else FaultScript(),
        data_dir=parsed["data"],
        api_key=SecretStr(key) if key else None,
        accounts=_accounts(parsed["accounts"]),
        drain_s=parsed["drain_seconds"] or 0.0,
        megapixels=parsed["megapixels"],
        public_url=parsed["public_url"],
        limits=Limits(**{entry.name: parsed[entry.name] * entry.metadata["unit"] for entry in fields(Limits)}),
    )
    keep = {name: parsed[name] for name in _WORKER_KEEPS}
    if settings.engine == "diffusers":
        keep = {name: _WORKER_KEEPS[name] if value is None else value for name, value in keep.items()}
    if keep["keep_hours"] is not None:
        settings.output_ttl_s = 3600 * keep["keep_hours"]
    if keep["keep_gb"] is not None:
        settings.keep_bytes = int(keep["keep_gb"] * (1 << 30))
    settings.keep_records = keep["keep_requests"] or settings.keep_records
    if parsed["queue"] is not None:
        settings.queue_limit = parsed["queue"]
    if settings.engine == "diffusers":
        settings.model_path = parsed["model_path"]
        settings.weights_license = parsed["weights_license"] or licence_of(parsed["model_path"] or "")
        settings.max_batch = parsed["max_batch"]
        settings.batch_delay_s = parsed["batch_delay_ms"] / 1000
        settings.dtype, settings.device, settings.offload = parsed["dtype"], parsed["device"], parsed["offload"]
        settings.workers = _QUEUE_PER_BATCH * settings.max_batch
        settings.price_usd = 0.0
        if parsed["drain_seconds"] is None:
            settings.drain_s = _DRAIN_S
        if parsed["queue"] is None:
            settings.queue_limit = _QUEUE
    return settings
