"""The options of a run: the one place where an option is written, with its type, default and help.

Made from it, by way of `option_table`: the model `RunOptions` (`options`), the keyword arguments of `generate` and
`plan` (`api`), the command line (`cli.options`), the fields of blocks that stand for options, the form of the flow, and
the reference. Standard library only, so that help and completion of the command line answer at once.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from prefect_imagegen.app.config.option_rows import Option
from prefect_imagegen.core.choices import (
    DEFAULT_LAG_S,
    DEFAULT_MEGAPIXELS,
    CheckReferences,
    OnUnknown,
    ReferenceTransport,
)
from prefect_imagegen.core.request.models import DEFAULT_MODEL
from prefect_imagegen.core.request.profiles import DEFAULT_PROFILE


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How much is made and spent, how fast, and what is done about trouble."""

    max_cost_usd: Annotated[
        float | None,
        Option(
            "Max cost (USD)",
            "A hard cap on what the run spends: a call is sent only if the worst known cost still fits.",
            "Hard cap on what the run spends.",
            metavar="X",
            gt=0,
        ),
    ] = None
    limit: Annotated[
        int | None,
        Option("Limit", "Only the first so many rows of the manifest.", "Only the first N rows.", metavar="N", ge=1),
    ] = None
    on_invalid: Annotated[
        Literal["fail", "skip"],
        Option(
            "On invalid rows",
            "Refuse a manifest with invalid rows before any call, or skip them.",
            "What invalid rows do.",
        ),
    ] = "fail"
    max_in_flight: Annotated[
        int | None,
        Option("Max in flight", "Calls at once; default 16.", "Calls at once.", unset="16", metavar="N", ge=1, le=4096),
    ] = None
    requests_per_minute: Annotated[
        float | None,
        Option(
            "Requests per minute",
            "Submits a minute; 0 = no limit; default 50 at Segmind.",
            "Submits a minute; 0 = no limit.",
            metavar="N",
            ge=0,
        ),
    ] = None
    max_attempts: Annotated[
        int, Option("Max attempts", "POSTs per row and run.", "POSTs per row and run.", metavar="N", ge=1, le=100)
    ] = 5
    deadline: Annotated[
        float,
        Option(
            "Deadline",
            "Seconds that one generation may take, or that a run may stand still.",
            "Seconds for one generation.",
            metavar="S",
            gt=0,
        ),
    ] = 600.0
    max_failure_rate: Annotated[
        float,
        Option(
            "Max failure rate",
            "Stop if more of the last 100 rows failed (at least 20).",
            "Stop above this share.",
            metavar="F",
            ge=0,
            le=1,
        ),
    ] = 0.5
    on_unknown: Annotated[
        OnUnknown,
        Option(
            "On unknown",
            "A call that was sent and not answered: look it up in the request history (reconcile), send it again once "
            "after one look (retry-once, may pay twice), or leave it held (hold).",
            "What calls without an answer do.",
        ),
    ] = "reconcile"
    history_lag: Annotated[
        float,
        Option(
            "History lag",
            "Seconds after which a call that the request history does not know was not accepted.",
            "Lag of the request history.",
            metavar="S",
            ge=0,
        ),
    ] = DEFAULT_LAG_S
    drain_seconds: Annotated[
        float,
        Option(
            "Drain seconds",
            "How long a stopped run waits for blocking (v1) calls; Prefect kills a cancelled run after 30 s.",
            "Wait for v1 calls at a stop.",
            metavar="S",
            ge=0,
        ),
    ] = 20.0
    shard_size: Annotated[
        int,
        Option("Shard size", "Rows per Prefect task run.", "Rows per Prefect task run.", metavar="N", ge=1, le=4096),
    ] = 64


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How the manifest is opened, and what its columns mean."""

    model: Annotated[
        str | None,
        Option(
            "Model",
            f"Slug of the model for rows that name none; default {DEFAULT_MODEL}.",
            "Model of rows that name none.",
            unset=DEFAULT_MODEL,
            metavar="SLUG",
        ),
    ] = None
    columns: Annotated[
        dict[str, list[str]],
        Option(
            "Columns",
            "Which manifest column feeds which field, as {field: [column]}; image_urls takes several.",
            "Which column feeds a field.",
            flag="--column",
            metavar="FIELD=COLUMN",
        ),
    ] = field(default_factory=dict)
    values: Annotated[
        dict[str, Any],
        Option(
            "Values",
            "Values of fields for rows whose own cell is empty.",
            "Value where a row has none.",
            flag="--set",
            metavar="FIELD=VALUE",
        ),
    ] = field(default_factory=dict)
    id_column: Annotated[
        str | None,
        Option(
            "Id column",
            "Column that identifies a row: seeds are derived from it, it must be unique.",
            "Column that identifies a row; unique.",
            metavar="C",
        ),
    ] = None
    carry: Annotated[
        list[str],
        Option(
            "Carry",
            "Columns of bytes, such as pictures inside the table, that come through to the metadata all the same; all "
            "other columns do so anyhow.",
            "Carry a column of bytes too. Repeatable.",
            metavar="COLUMN",
        ),
    ] = field(default_factory=list)
    manifest_storage_options: Annotated[
        dict[str, Any],
        Option(
            "Manifest storage options",
            "fsspec options for reading the manifest; secrets belong into the worker's environment.",
            "Option of the manifest's file system.",
            flag="--manifest-storage-option",
            metavar="K=V",
            secret=True,
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class References:
    """How reference images are known, checked and sent."""

    reference_identity: Annotated[
        Literal["url", "content"],
        Option(
            "Reference identity",
            "Whether an http(s) reference is known by its URL, or by its bytes: then a changed picture behind the same "
            "URL makes a new image. References in buckets and files are always known by their bytes.",
            "What web references go by.",
        ),
    ] = "url"
    reference_transport: Annotated[
        ReferenceTransport,
        Option(
            "Reference transport",
            "How references that are not public on the web reach the API: presigned where the store can, else uploaded "
            "(auto), only presigned, only uploaded, or inside the call (data-url).",
            "How private references travel.",
        ),
    ] = "auto"
    check_references: Annotated[
        CheckReferences,
        Option(
            "Check references",
            "Look at every reference of a row to be made before anything is called, at a tenth of them, or at none; "
            "then they are sent as they are.",
            "Which are looked at before any call.",
        ),
    ] = "all"
    max_reference_megapixels: Annotated[
        float,
        Option(
            "Max reference megapixels", "Refuse larger references.", "Refuse larger ones.", metavar="N", gt=0, le=1000
        ),
    ] = DEFAULT_MEGAPIXELS
    allow_private_references: Annotated[
        bool,
        Option(
            "Allow private references",
            "Fetch http(s) references from private networks and this machine too.",
            "Fetch from private networks too.",
        ),
    ] = False
    allow_local_references: Annotated[
        bool,
        Option(
            "Allow local references",
            "A manifest in a bucket or on the web may name files of the machine that runs it.",
            "A manifest elsewhere may name files here.",
        ),
    ] = False
    keep_references: Annotated[
        bool,
        Option(
            "Keep references",
            "Keep the references of the images made in the store.",
            "Keep the references in the store.",
        ),
    ] = False
    reference_storage_options: Annotated[
        dict[str, Any],
        Option(
            "Reference storage options",
            "fsspec options for reading references; default: those of the manifest or the store, where they lie in the "
            "same kind of bucket.",
            "Option of the references' file system.",
            flag="--reference-storage-option",
            metavar="K=V",
            secret=True,
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the images are made: the API or gateway, or GPU workers, and how those run the model."""

    base_url: Annotated[
        str | None,
        Option(
            "Base URL",
            "Base URL of the API or gateway; default: the block's, SEGMIND_BASE_URL, Segmind.",
            "Base URL of the API or gateway.",
            metavar="URL",
        ),
    ] = None
    api_version: Annotated[
        Literal["v1", "v2"] | None,
        Option(
            "API version", "v2 submits and polls (default); v1 is one blocking call.", "v2 submits and polls (default)."
        ),
    ] = None
    endpoints: Annotated[
        list[str],
        Option(
            "Endpoints",
            "GPU workers of the backend pool: openai+http://HOST:PORT (vLLM-Omni, SGLang) or segmind+http://HOST:PORT "
            "(our own worker).",
            "A worker of the backend pool: openai+http://HOST:PORT or segmind+http://HOST:PORT. Repeatable.",
            flag="--endpoint",
            metavar="DIALECT+URL",
        ),
    ] = field(default_factory=list)
    endpoint_limit: Annotated[
        int | None,
        Option(
            "Endpoint limit",
            "Calls at once for each GPU worker; default: two of its batches, else 2.",
            "Calls at once for each worker.",
            unset="2",
            metavar="N",
            ge=1,
            le=1024,
        ),
    ] = None
    profile: Annotated[
        Literal["klein-distilled", "klein-base"] | None,
        Option(
            "Profile",
            "How GPU workers run the model: klein-distilled (default: 4 steps, no guidance, no negative prompt) or "
            "klein-base (as asked).",
            "How workers run the model.",
            unset=DEFAULT_PROFILE,
        ),
    ] = None
    strict_parameters: Annotated[
        bool,
        Option(
            "Strict parameters",
            "Refuse rows that ask for what the profile cannot do, instead of recording what was done.",
            "Refuse rows that ask for what the profile cannot do.",
        ),
    ] = False
    weights: Annotated[
        str | None,
        Option(
            "Weights",
            "Label of the weights on the GPU workers; part of the request key.",
            "Label of the workers' weights; part of the key.",
            metavar="LABEL",
            min_length=1,
        ),
    ] = None
    weights_license: Annotated[
        str | None,
        Option(
            "Licence of the weights",
            "Recorded with every image of a GPU worker; default: what is published for the model.",
            "Licence of the workers' weights, for the metadata.",
            metavar="TEXT",
            min_length=1,
        ),
    ] = None
