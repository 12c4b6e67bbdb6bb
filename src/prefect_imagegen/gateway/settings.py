"""The settings of a gateway."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from prefect_imagegen.gateway.faults import FaultScript
from prefect_imagegen.gateway.limits import Limits


@dataclass(slots=True)
class GatewaySettings:
    """The settings of one gateway. Times in seconds, money in US dollars; None means no limit, or not set.

    `clock` gives the time for records and retention in Unix seconds; tests replace it to let days pass.
    """

    engine: str = "sandbox"
    latency_s: float = 0.0
    credits: float | None = None
    requests_per_minute: float | None = None
    history_lag_s: float = 0.0
    history_pending: bool = True
    """Whether the history shows unfinished requests (as PENDING); else they are absent until done."""
    faults: FaultScript = field(default_factory=FaultScript)
    data_dir: Path | None = None
    api_key: SecretStr | None = None
    accounts: Mapping[str, Sequence[SecretStr]] = field(default_factory=dict)
    """Accounts by name, each with its keys. Each has `credits` and `requests_per_minute` of its own, and sees its own
    requests only. `api_key`, or any key where neither is set, is that of an account without a name."""
    workers: int = 256
    queue_limit: int = 10_000
    record_ttl_s: float = 3600.0
    output_ttl_s: float = 7 * 86400.0
    keep_records: int = 100_000
    """At most this many requests are kept for an account's history; unfinished ones are kept always."""
    keep_body_bytes: int = 64 << 20
    """At most this many bytes of request bodies are kept in memory, for each account."""
    keep_bytes: int = 10 << 30
    """At most this many bytes of outputs, and as many of uploads, are kept on disk; the oldest go first."""
    price_usd: float | None = None
    """Price of an image; None: the model's published average at Segmind."""
    static_format: str = "jpeg"
    static_bytes: int = 130_000
    allow_loopback: bool = False
    drain_s: float = 0.0
    """Seconds that a gateway goes on with accepted work after a signal to stop."""
    model_path: str | None = None
    """A folder or a model id. This field and those down to `megapixels` are for the engine `diffusers`."""
    weights_license: str | None = None
    max_batch: int = 4
    batch_delay_s: float = 0.02
    dtype: str | None = None
    device: str | None = None
    offload: bool = False
    megapixels: float = 1.0
    limits: Limits = field(default_factory=Limits)
    public_url: str | None = None
    """The base URL of the URLs in answers; None means that of the request's Host header."""
    clock: Callable[[], float] = time.time
