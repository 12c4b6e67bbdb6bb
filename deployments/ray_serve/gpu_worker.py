"""The GPU worker on Ray Serve: replicas, autoscaling and several nodes for the same gateway.

    pip install 'prefect-imagegen[diffusers]' 'ray[serve]'
    export PREFECT_IMAGEGEN_API_KEY=...            # asked of every caller
    serve run gpu_worker:worker model=black-forest-labs/FLUX.2-klein-4B replicas=4

Arguments: `model` (a folder or model id), `gpus` per replica (1), `replicas` (1) or `min_replicas` and `max_replicas`,
`host` (where Serve listens; without a key nothing but 127.0.0.1 will do), `max_batch` (4), `batch_delay_ms` (20),
`device`, `dtype`, `weights_license`, `megapixels` (1).
A pool takes all of it as one endpoint: `--endpoint segmind+http://HOST:8000 --endpoint-limit N`, N being what all
replicas hold together. Each replica keeps its own records, so a job (v2) is known only to the replica that took it:
use v1, as a pool does, or one replica.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from prefect_imagegen.core.request.profiles import licence_of
from prefect_imagegen.gateway.app import create_app
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.server import check_settings
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.gateway.state.account import AccountState

_BATCHES_AT_ONCE = 4


def worker(arguments: dict[str, str]) -> Application:
    """The application, from the arguments of `serve run`."""
    model, max_batch = arguments["model"], int(arguments.get("max_batch", 4))
    key = os.environ.get("PREFECT_IMAGEGEN_API_KEY")
    # Serve may listen anywhere: without `host` it is checked as if other machines could call.
    check_settings(GatewaySettings(api_key=SecretStr(key) if key else None), arguments.get("host", "every address"))

    def build() -> ASGIApp:
        """Build the app in each replica; its start waits until the checkpoint is loaded and has made an image."""
        settings = GatewaySettings(
            engine="diffusers",
            model_path=model,
            weights_license=arguments.get("weights_license") or licence_of(model),
            max_batch=max_batch,
            batch_delay_s=float(arguments.get("batch_delay_ms", 20)) / 1000,
            device=arguments.get("device"),
            dtype=arguments.get("dtype"),
            megapixels=float(arguments.get("megapixels", 1)),
            workers=_BATCHES_AT_ONCE * max_batch,
            output_ttl_s=86400.0,
            keep_bytes=2 << 30,
            keep_records=10_000,
            price_usd=0.0,
            api_key=SecretStr(key) if key else None,
        )
        folder = tempfile.mkdtemp(prefix="imagegen-replica-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return create_app(JobRunner(AccountState(settings, Path(folder))))

    scale: dict[str, Any] = {"num_replicas": int(arguments.get("replicas", 1))}
    if "max_replicas" in arguments:
        limits = {"min_replicas": int(arguments.get("min_replicas", 1)), "max_replicas": int(arguments["max_replicas"])}
        # A replica with one batch running and one waiting is busy.
        scale = {"autoscaling_config": limits | {"target_ongoing_requests": 2 * max_batch}}

    @serve.deployment(
        ray_actor_options={"num_gpus": float(arguments.get("gpus", 1))},
        max_ongoing_requests=_BATCHES_AT_ONCE * max_batch,
        **scale,
    )
    @serve.ingress(build)
    class GpuWorker:
        """One replica: the gateway over one checkpoint."""

    application: Application = GpuWorker.bind()  # type: ignore[attr-defined]
    return application
