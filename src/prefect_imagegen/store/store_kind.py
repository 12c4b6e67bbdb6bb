"""`store.json`: a store's format and kind; writing it also proves that create-only puts work."""

import json
from typing import Literal

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.ports import ObjectStore

StoreKind = Literal["real", "sandbox"]
SANDBOX_ENGINES = frozenset({"sandbox", "static"})
"""The engines of a gateway that draw placeholders."""


def kind_of_engine(engine: str | None) -> StoreKind:
    """The kind of store that an endpoint fills, by the engine that it names, if any."""
    return "sandbox" if engine in SANDBOX_ENGINES else "real"


async def read_kind(store: ObjectStore, expected: StoreKind) -> StoreKind | None:
    """The kind of an existing store, None for a new one; writes nothing.

    Raises RefusedError: `store_damaged`, `store_newer`, or `store_kind` if it is not the expected one.
    """
    data = await store.get(layout.STORE_FILE)
    if data is None:
        return None
    try:
        content = json.loads(data)
        number, kind = int(content["format"]), str(content["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            "store_damaged",
            f"{store.url} has a {layout.STORE_FILE} that is none of ours.",
            remedy="Choose another --store.",
        ) from error
    if number > layout.STORE_FORMAT:
        raise RefusedError(
            "store_newer",
            f"{store.url} was written in store format {number}; this version knows up to {layout.STORE_FORMAT}.",
            remedy="Upgrade: pip install -U prefect-imagegen",
        )
    if kind != expected:
        raise RefusedError(
            "store_kind",
            f"{store.url} is a {kind} store, and this is a {expected} run: sandbox images never mix with real ones.",
            remedy="Choose another --store, or another --backend.",
        )
    return expected


async def claim_kind(store: ObjectStore, kind: StoreKind) -> None:
    """Create `store.json`, or check the one that is there; a put of what exists proves that it is not overwritten.

    Raises RefusedError for a newer format, another kind, a store that ignores create-only, or one that changes content.
    """
    data = json.dumps({"format": layout.STORE_FORMAT, "kind": kind}).encode()
    if not await store.create(layout.STORE_FILE, data, "application/json"):
        await read_kind(store, kind)
        return
    await _prove_content(store, data)
    if await store.create(layout.STORE_FILE, data, "application/json"):
        raise RefusedError(
            "store_no_create_only",
            f"{store.url} overwrites objects that were to be created only once, so it cannot protect paid images.",
            remedy="Use a store with conditional puts (S3, R2, MinIO, GCS, Azure), or a local path.",
        )


async def _prove_content(store: ObjectStore, data: bytes) -> None:
    """Read `store.json` back and compare.

    Some look-alikes store the framing of newer S3 clients as content, or drop content: every image would be spoiled.
    """
    content = await store.get(layout.STORE_FILE)
    if content == data:
        return
    await store.delete(layout.STORE_FILE)
    returned = "nothing" if not content else f"{content[:40]!r}"
    raise RefusedError(
        "store_altered",
        f"{store.url} gives back {returned} where {data!r} was written.",
        remedy="Look at what lies between (a proxy, a cache). With an S3 look-alike, try --storage-option "
        """'config_kwargs={"request_checksum_calculation": "when_required"}'.""",
    )
