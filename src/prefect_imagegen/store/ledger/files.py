"""Which files make up the ledger, and how events are read from and written to them.

The newest generation names its files and the segments that they absorbed; every other segment counts beside it.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA
from prefect_imagegen.ports import ObjectInfo, ObjectStore

_READERS = 16
_READ_BYTES = 8 << 20
"""So many files, or compressed bytes where they are large, are read and unpacked at once."""


class MissingFileError(StoreError):
    """A file of the ledger that was listed, or is named by a generation, is not there: `path`."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        super().__init__("store_damaged", f"{path} is missing from {store.url}.", remedy="Restore it from a backup.")
        self.path = path


@dataclass(frozen=True, slots=True)
class Generation:
    """One manifest: the paths of its files, and the names of the segments whose events they hold."""

    files: tuple[str, ...] = ()
    absorbed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LedgerFiles:
    """The ledger as listed: the newest generation and its number (0 if there is none), and every object.

    `manifests` are those of all generations by number; `parts` the files of generations, named by a manifest or not.
    """

    number: int
    generation: Generation
    manifests: dict[int, ObjectInfo]
    parts: tuple[ObjectInfo, ...]
    segments: tuple[ObjectInfo, ...]

    @property
    def open_segments(self) -> list[str]:
        """The paths of the segments that the newest generation has not absorbed."""
        return [one.path for one in self.segments if name_of(one.path) not in self.generation.absorbed]

    @property
    def paths(self) -> list[str]:
        """Every file whose events count."""
        return [*self.generation.files, *self.open_segments]


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rsplit("/", 1)[1]


async def ledger_files(store: ObjectStore, gone: str | None = None) -> LedgerFiles:
    """List the ledger; `gone` is for its own use. Raises StoreError that names a damaged manifest."""
    manifests: dict[int, ObjectInfo] = {}
    parts = []
    for info in await store.list(layout.GENERATIONS):
        number = info.path[len(layout.GENERATIONS) + 1 : -len(".json")]
        if info.path.endswith(".json") and number.isdigit():
            manifests[int(number)] = info
        else:
            parts.append(info)
    newest, generation = max(manifests, default=0), Generation()
    if manifests:
        path = manifests[newest].path
        data = await store.get(path)
        if data is None and path != gone:
            # A reader that slept for a day after listing: there is a newer generation by now.
            return await ledger_files(store, gone=path)
        generation = parse_generation(path, data)
    segments = [info for info in await store.list(layout.SEGMENTS) if info.path.endswith(".parquet")]
    return LedgerFiles(newest, generation, manifests, tuple(parts), tuple(segments))


def parse_generation(path: str, data: bytes | None) -> Generation:
    """The manifest in a file. Raises StoreError that names it if it is missing or damaged."""
    content = json_object(path, data)
    files, absorbed = content.get("files"), content.get("absorbed")
    if not isinstance(files, list) or not isinstance(absorbed, list):
        raise damaged(path)
    return Generation(tuple(files), frozenset(absorbed))


def manifest_bytes(generation: Generation) -> bytes:
    """A manifest as it is stored."""
    content = {"files": list(generation.files), "absorbed": sorted(generation.absorbed)}
    return json.dumps(content, indent=0).encode()


async def read_files(store: ObjectStore, files: LedgerFiles) -> AsyncIterator[pa.Table]:
    """All events that count, as tables of `EVENT_SCHEMA` in no particular order; few are in memory at once.

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
    """Events as the bytes of a segment or of a generation's file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(path: str, data: bytes) -> pa.Table:
    """The events in a segment or a generation's file, as `EVENT_SCHEMA`. Raises StoreError that names a damaged one."""
    try:
        # One thread: files are read side by side, and small ones cost more to hand around than to read.
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
    """The error for a file that cannot be read."""
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
