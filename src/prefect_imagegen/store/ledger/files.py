"""Which files make up the ledger, and how events are read from and written to them.

The newest generation's manifest names its files and the segments that they absorbed; all other segments count too.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA
from prefect_imagegen.ports import ObjectInfo, ObjectStore

_READERS = 16
_READ_BYTES = 8 << 20
"""Limits of what is read and unpacked at once: files, and compressed bytes."""


class MissingFileError(StoreError):
    """A ledger file that a listing or a generation names is not in the store; `path` is the file."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        super().__init__("store_damaged", f"{path} is missing from {store.url}.", remedy="Restore it from a backup.")
        self.path = path


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation of the ledger: the paths of its files, and the names of the segments whose events they hold."""

    files: tuple[str, ...] = ()
    absorbed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LedgerFiles:
    """A listing of the ledger: the newest generation, its number (0 if there is none), and every object.

    `manifests`: the manifests of all generations, by number. `parts`: the files of generations, whether or not a
    manifest names them.
    """

    number: int
    generation: Generation
    manifests: dict[int, ObjectInfo]
    parts: tuple[ObjectInfo, ...]
    segments: tuple[ObjectInfo, ...]

    @property
    def open_segments(self) -> list[str]:
        """Paths of the segments that the newest generation has not absorbed."""
        return [segment.path for segment in self.segments if name_of(segment.path) not in self.generation.absorbed]

    @property
    def paths(self) -> list[str]:
        """Paths of all files that make up the ledger: those of the newest generation, and the open segments."""
        return [*self.generation.files, *self.open_segments]


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rsplit("/", 1)[1]


async def ledger_files(store: ObjectStore, missing_manifest: str | None = None) -> LedgerFiles:
    """List the ledger. Raises StoreError that names a damaged manifest.

    `missing_manifest` is for the function's own use: a manifest that an earlier try did not find.
    """
    manifests: dict[int, ObjectInfo] = {}
    parts = []
    for info in await store.list(layout.GENERATIONS):
        number = _manifest_number(info)
        if number is None:
            parts.append(info)
        else:
            manifests[number] = info
    newest, generation = max(manifests, default=0), Generation()
    if manifests:
        path = manifests[newest].path
        data = await store.get(path)
        if data is None and path != missing_manifest:
            # This reader slept for a day after the listing: there is a newer generation by now.
            return await ledger_files(store, missing_manifest=path)
        generation = parse_generation(path, data)
    segments = [info for info in await store.list(layout.SEGMENTS) if info.path.endswith(".parquet")]
    return LedgerFiles(newest, generation, manifests, tuple(parts), tuple(segments))


def newest_manifest(generations: Iterable[ObjectInfo]) -> int:
    """The number of the newest generation in a listing of them, 0 if there is none."""
    return max((_manifest_number(info) or 0 for info in generations), default=0)


def _manifest_number(info: ObjectInfo) -> int | None:
    """The number of the generation that an object is the manifest of; None for any other object."""
    number = info.path[len(layout.GENERATIONS) + 1 : -len(".json")]
    return int(number) if info.path.endswith(".json") and number.isdigit() else None


def parse_generation(path: str, data: bytes | None) -> Generation:
    """The generation that a manifest file describes. Raises StoreError if the file is missing or damaged."""
    content = json_object(path, data)
    files, absorbed = content.get("files"), content.get("absorbed")
    if not isinstance(files, list) or not isinstance(absorbed, list):
        raise damaged(path)
    return Generation(tuple(files), frozenset(absorbed))


def manifest_bytes(generation: Generation) -> bytes:
    """The manifest file of a generation."""
    content = {"files": list(generation.files), "absorbed": sorted(generation.absorbed)}
    return json.dumps(content, indent=0).encode()


async def read_files(store: ObjectStore, files: LedgerFiles) -> AsyncIterator[pa.Table]:
    """All events of the listed ledger, as tables of `EVENT_SCHEMA` in no particular order, a few in memory at once.

    Raises StoreError that names a damaged file, `MissingFileError` for one that is not there.
    """

    async def read(path: str) -> pa.Table:
        data = await store.get(path)
        if data is None:
            raise MissingFileError(store, path)
        return await asyncio.to_thread(from_parquet, path, data)

    sizes = {info.path: info.size for info in (*files.parts, *files.segments)}
    for paths in _waves(files.paths, sizes):
        tasks = [asyncio.create_task(read(path)) for path in paths]
        try:
            tables = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for table in tables:
            yield table


def to_parquet(table: pa.Table) -> bytes:
    """Events as the bytes of a Parquet file (a segment, or a file of a generation)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(path: str, data: bytes) -> pa.Table:
    """The events in a ledger file, as `EVENT_SCHEMA`; columns it lacks are null. Raises StoreError if it is damaged."""
    try:
        # One thread: files are read in parallel already, and for small ones Arrow's threads cost more than they save.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        missing = [name for name in EVENT_SCHEMA.names if name not in table.column_names]
        for name in missing:
            table = table.append_column(name, pa.nulls(len(table), EVENT_SCHEMA.field(name).type))
        return table.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            "store_damaged", f"The ledger file {path} is damaged: {error}.", remedy="Restore it from a backup."
        ) from error


def json_object(path: str, data: bytes | None) -> dict[str, object]:
    """The JSON object in a file. Raises StoreError that names the file if there is none."""
    try:
        value = json.loads(data or b"")
    except ValueError as error:
        raise damaged(path) from error
    if not isinstance(value, dict):
        raise damaged(path)
    return value


def damaged(path: str) -> StoreError:
    """The StoreError for a file that is missing or damaged."""
    return StoreError("store_damaged", f"{path} is missing or damaged.", remedy="Restore it from a backup.")


def _waves(paths: list[str], sizes: dict[str, int]) -> Iterator[list[str]]:
    wave: list[str] = []
    size = 0
    for path in paths:
        size += sizes.get(path, 0)
        if wave and (len(wave) == _READERS or size > _READ_BYTES):
            yield wave
            wave, size = [], sizes.get(path, 0)
        wave.append(path)
    if wave:
        yield wave
