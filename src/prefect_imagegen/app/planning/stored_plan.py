"""Read the plan of a run from its store, by part or by shard."""

import asyncio
import json
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.plan import WORKED
from prefect_imagegen.core.request.request import GenerationRequest, Reference, canonical_json
from prefect_imagegen.ports import ObjectStore


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request that a shard has to make, its key, and the number of the first manifest row that asks for it."""

    row_index: int
    key: bytes
    request: GenerationRequest


class StoredPlan:
    """The plan of a run, read from its store: its parts, and the requests of each shard."""

    def __init__(self, store: ObjectStore, content: Mapping[str, Any]) -> None:
        """`content`: that of the run's `plan.json`."""
        self.content = content
        self.shards: int = content["shards"]
        self.rows: int = content["rows"]
        self.unsettled_shards: list[int] = content["unsettled_shards"]
        self.carried: dict[str, str] = content["carried"]
        self.store = store
        self._with_shards = [part for part in content["parts"] if part["shards"]]
        self._cached: tuple[str, pa.Table] = ("", pa.table({}))

    @classmethod
    async def load(cls, store: ObjectStore, run_id: str) -> "StoredPlan":
        """Read the plan of a run that another process has planned. Raises StoreError if the run has no whole plan."""
        path = layout.run(run_id, "plan", "plan.json")
        data = await store.get(path)
        if data is None:
            raise StoreError("run_not_found", f"{store.url} has no plan at {path}.", remedy="Plan the run anew.")
        return cls(store, json.loads(data))

    async def parts(self, columns: list[str] | None = None) -> AsyncIterator[tuple[int, pa.Table]]:
        """Every part with its number, in order; `columns`: only some of its columns."""
        for index, part in enumerate(self.content["parts"]):
            yield index, await self._read(part["path"], columns)

    async def shard(self, index: int) -> list[PlannedRequest]:
        """The requests of one shard, in manifest order."""
        part = self._with_shards[bisect_right(self._with_shards, index, key=itemgetter("first_shard")) - 1]
        # Shards are asked for in order, so the cached part is nearly always the right one.
        path, table = self._cached
        if path != part["path"]:
            table = await self._read(part["path"], ["row_index", "state", "shard", "request_key", "request"])
            table = table.filter(pc.is_in(table["state"], pa.array(sorted(WORKED))))
            self._cached = (part["path"], table)
        return [
            PlannedRequest(row["row_index"], row["request_key"], request_from_json(row["request"]))
            for row in table.filter(pc.equal(table["shard"], index)).to_pylist()
        ]

    async def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        data = await self.store.get(path)
        if data is None:
            raise StoreError("store_damaged", f"{path} is missing from {self.store.url}.", remedy="Run again.")
        return await asyncio.to_thread(pq.read_table, pa.BufferReader(data), columns=columns)


def request_to_json(request: GenerationRequest) -> str:
    """A request as JSON, for `request_from_json`."""
    content = {
        "model": request.model,
        "params": dict(request.params),
        "references": [
            [reference.kind, reference.value, reference.uri, asdict(reference.facts) if reference.facts else None]
            for reference in request.references
        ],
        "profile": request.profile,
        "weights": request.weights,
        "provider": request.provider,
    }
    return canonical_json(content).decode()


def request_from_json(text: str) -> GenerationRequest:
    """The request that `request_to_json` wrote."""
    content = json.loads(text)
    content["references"] = tuple(
        Reference(kind, value, uri, ReferenceFacts(**facts | {"changes": tuple(facts["changes"])}) if facts else None)
        for kind, value, uri, facts in content["references"]
    )
    return GenerationRequest(**content)
