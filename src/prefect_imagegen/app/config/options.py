"""The options of a run, as flows, the command line and Python callers all give them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_imagegen.core.images.reference_pictures import DEFAULT_MEGAPIXELS
from prefect_imagegen.core.policy.history_lookup import DEFAULT_LAG_S, OnUnknown
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.core.request.models import DEFAULT_MODEL
from prefect_imagegen.core.request.profiles import PROFILES
from prefect_imagegen.core.request.references import CheckReferences, ReferenceTransport

SECRET_OPTIONS = {"manifest_storage_options", "reference_storage_options"}
"""Options that may hold secrets: never shown, stored, or passed as parameters."""


class RunOptions(BaseModel):
    """How a manifest is read and how its images are made. Every default is that of the command line."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)  # the input may hold secrets

    base_url: str | None = Field(
        None,
        title="Base URL",
        description="Base URL of the API or gateway; default: the block's, SEGMIND_BASE_URL, Segmind.",
    )
    api_version: Literal["v1", "v2"] | None = Field(
        None, title="API version", description="v2 submits and polls (default); v1 is one blocking call."
    )
    model: str | None = Field(
        None, title="Model", description=f"Slug of the model for rows that name none; default {DEFAULT_MODEL}."
    )
    endpoints: list[str] = Field(
        default_factory=list,
        title="Endpoints",
        description="GPU workers of the backend pool: openai+http://HOST:PORT (vLLM-Omni, SGLang) or "
        "segmind+http://HOST:PORT (our own worker).",
    )
    endpoint_limit: int | None = Field(
        None,
        ge=1,
        le=1024,
        title="Endpoint limit",
        description="Calls at once for each GPU worker; default: two of its batches, else 2.",
    )
    profile: Literal["klein-distilled", "klein-base"] | None = Field(
        None,
        title="Profile",
        description="How GPU workers run the model: klein-distilled (default: 4 steps, no guidance, no negative "
        "prompt) or klein-base (as asked).",
    )
    strict_parameters: bool = Field(
        False,
        title="Strict parameters",
        description="Refuse rows that ask for what the profile cannot do, instead of recording what was done.",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        title="Weights",
        description="Label of the weights on the GPU workers; part of the request key.",
    )
    weights_license: str | None = Field(
        None,
        min_length=1,
        title="Licence of the weights",
        description="Recorded with every image of a GPU worker; default: what is published for the model.",
    )
    columns: dict[str, list[str]] = Field(
        default_factory=dict,
        title="Columns",
        description="Which manifest column feeds which field, as {field: [column]}; image_urls takes several.",
    )
    values: dict[str, Any] = Field(
        default_factory=dict, title="Values", description="Values of fields for rows whose own cell is empty."
    )
    id_column: str | None = Field(
        None,
        title="Id column",
        description="Column that identifies a row: seeds are derived from it, it must be unique.",
    )
    carry: list[str] = Field(
        default_factory=list,
        title="Carry",
        description="Columns of bytes, such as pictures inside the table, that come through to the metadata all the "
        "same; all other columns do so anyhow.",
    )
    manifest_storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        title="Manifest storage options",
        description="fsspec options for reading the manifest; secrets belong into the worker's environment.",
    )
    max_in_flight: int | None = Field(
        None, ge=1, le=4096, title="Max in flight", description="Calls at once; default 16."
    )
    requests_per_minute: float | None = Field(
        None, ge=0, title="Requests per minute", description="Submits a minute; 0 = no limit; default 50 at Segmind."
    )
    shard_size: int = Field(64, ge=1, le=4096, title="Shard size", description="Rows per Prefect task run.")
    limit: int | None = Field(None, ge=1, title="Limit", description="Only the first so many rows of the manifest.")
    max_attempts: int = Field(5, ge=1, le=100, title="Max attempts", description="POSTs per row and run.")
    deadline: float = Field(
        600.0,
        gt=0,
        title="Deadline",
        description="Seconds that one generation may take, or that a run may stand still.",
    )
    max_failure_rate: float = Field(
        0.5, ge=0, le=1, title="Max failure rate", description="Stop if more of the last 100 rows failed (at least 20)."
    )
    max_cost_usd: float | None = Field(
        None,
        gt=0,
        title="Max cost (USD)",
        description="A hard cap on what the run spends: a call is sent only if the worst known cost still fits.",
    )
    on_unknown: OnUnknown = Field(
        "reconcile",
        title="On unknown",
        description="A call that was sent and not answered: look it up in the request history (reconcile), send it "
        "again once after one look (retry-once, may pay twice), or leave it held (hold).",
    )
    history_lag: float = Field(
        DEFAULT_LAG_S,
        ge=0,
        title="History lag",
        description="Seconds after which a call that the request history does not know was not accepted.",
    )
    drain_seconds: float = Field(
        20.0,
        ge=0,
        title="Drain seconds",
        description="How long a stopped run waits for blocking (v1) calls; Prefect kills a cancelled run after 30 s.",
    )
    on_invalid: Literal["fail", "skip"] = Field(
        "fail",
        title="On invalid rows",
        description="Refuse a manifest with invalid rows before any call, or skip them.",
    )

    reference_identity: Literal["url", "content"] = Field(
        "url",
        title="Reference identity",
        description="Whether an http(s) reference is known by its URL, or by its bytes: then a changed picture behind "
        "the same URL makes a new image. References in buckets and files are always known by their bytes.",
    )
    reference_transport: ReferenceTransport = Field(
        "auto",
        title="Reference transport",
        description="How references that are not public on the web reach the API: presigned where the store can, else "
        "uploaded (auto), only presigned, only uploaded, or inside the call (data-url).",
    )
    reference_storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        title="Reference storage options",
        description="fsspec options for reading references; default: those of the manifest or the store, where they "
        "lie in the same kind of bucket.",
    )
    check_references: CheckReferences = Field(
        "all",
        title="Check references",
        description="Look at every reference of a row to be made before anything is called, at a tenth of them, or "
        "at none; then they are sent as they are.",
    )
    max_reference_megapixels: float = Field(
        DEFAULT_MEGAPIXELS, gt=0, le=1000, title="Max reference megapixels", description="Refuse larger references."
    )
    allow_private_references: bool = Field(
        False,
        title="Allow private references",
        description="Fetch http(s) references from private networks and this machine too.",
    )
    allow_local_references: bool = Field(
        False,
        title="Allow local references",
        description="A manifest in a bucket or on the web may name files of the machine that runs it.",
    )
    keep_references: bool = Field(
        False, title="Keep references", description="Keep the references of the images made in the store."
    )

    def manifest_options(
        self, model: str | None = None, profile: str | None = None, weights: str | None = None
    ) -> ManifestOptions:
        """The part that is about the manifest; the arguments are the backend's own."""
        return ManifestOptions(
            self.columns,
            self.values,
            self.id_column,
            self.model or model or DEFAULT_MODEL,
            self.reference_identity,
            PROFILES[profile] if profile else None,
            weights,
            self.strict_parameters,
            self.carry,
            self.allow_local_references,
        )
