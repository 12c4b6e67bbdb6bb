"""Compaction: many small segments become a few sorted files, so that reading the ledger stays quick.

Generation g+1 is one create-only manifest: the process that writes it has compacted; others that tried have changed
nothing. Replaced files are removed a day later (by the store's clock), when no reader can still be using them.
"""

import asyncio
import secrets
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Protocol

import pyarrow as pa

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.attempts import Attempts
from prefect_imagegen.core.ledger.events import RANK
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA
from prefect_imagegen.core.request.request import KEY_BYTES
from prefect_imagegen.failpoints import hit
from prefect_imagegen.ports import Clock, ObjectInfo, ObjectStore
from prefect_imagegen.store.ledger.event_file import EventFile
from prefect_imagegen.store.ledger.files import (
    Generation,
    LedgerFiles,
    MissingFileError,
    ledger_files,
    manifest_bytes,
    name_of,
    parse_generation,
    read_files,
    to_parquet,
)

READER_GRACE = timedelta(hours=24)
"""How long replaced files stay, for readers that listed them before."""
_OPEN_SEGMENTS = 500
_RUN_ROWS = 1 << 16
_FILE_ROWS = 50_000
"""Events sorted at once, and about how many go into a file (keys are hashes, so equal ranges hold about as many)."""
_FAN_OUT = 64
"""The most sorted runs that are read for one output file."""
_NO_KEY = 1 << 8 * KEY_BYTES
"""The number that stands for 'no key': such events are sorted behind the highest key."""
_AT_ONCE = 16
_ORDER = [(name, "ascending") for name in ("key", "time", "attempt_id", "type")]


class Runs(Protocol):
    """A sequence of sorted tables of events ("runs" in the sense of merge sort)."""

    def __len__(self) -> int:
        """The number of runs."""
        ...

    def __getitem__(self, number: int, /) -> pa.Table:
        """Run `number`."""
        ...

    def __iter__(self) -> Iterator[pa.Table]:
        """All runs in order."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """Some runs of an event file."""

    file: EventFile
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> pa.Table:
        return self.file[self.numbers[number]]

    def __iter__(self) -> Iterator[pa.Table]:
        return (self.file[number] for number in self.numbers)


async def compact(store: ObjectStore, clock: Clock, *, more_than: int | None = None) -> bool:
    """Absorb all segments into a new generation if more than `more_than` are open; True if that was done.

    The default is 500, or the number of the generation's files if that is larger: each compaction rewrites the whole
    ledger, so its cost must not grow faster than the ledger. In any case, files that were replaced more than a day ago
    are removed.

    Memory is bounded: one run of sorted events, one output file, and 21 bytes for each attempt; all events pass through
    temporary files. Raises StoreError, which leaves the ledger whole.
    """
    files = await ledger_files(store)
    attempts = None
    most = max(_OPEN_SEGMENTS, len(files.generation.files)) if more_than is None else more_than
    if len(files.open_segments) > most:
        try:
            attempts = await _absorb(store, clock, files)
        except MissingFileError:
            if (await ledger_files(store)).number == files.number:
                raise
    files = await ledger_files(store)
    now = await _store_time(store) if files.manifests else None
    if now is not None:
        await _tidy(store, files, now - READER_GRACE)
        if attempts is not None:
            await _drop_claims(store, attempts, now - READER_GRACE)
    return attempts is not None


async def _absorb(store: ObjectStore, clock: Clock, files: LedgerFiles) -> Attempts | None:
    """Write the next generation; returns the folded attempts, or None if another process wrote it first."""
    with EventFile() as runs:
        waiting: list[pa.Table] = []
        rows = 0
        async for table in read_files(store, files):
            waiting.append(table)
            rows += len(table)
            if rows >= _RUN_ROWS:
                await asyncio.to_thread(write_run, runs, waiting)
                rows = 0
        await asyncio.to_thread(write_run, runs, waiting)
    attempts = Attempts()
    number = files.number + 1
    stamp = f"{clock.now():%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"
    written: list[str] = []
    files_of_events = merged(runs)
    while (table := await asyncio.to_thread(next, files_of_events, None)) is not None:
        attempts.add(table)
        path = layout.generation_file(number, f"{stamp}-{len(written):05d}")
        await store.create(path, await asyncio.to_thread(to_parquet, table))
        written.append(path)
    hit("compaction")
    absorbed = files.generation.absorbed | set(map(name_of, files.open_segments))
    # Segments that are removed already need not be named any longer.
    absorbed &= {name_of(info.path) for info in files.segments}
    manifest = layout.generation(number)
    data = manifest_bytes(Generation(tuple(written), absorbed))
    if await store.create(manifest, data, "application/json") or await store.get(manifest) == data:
        return attempts
    await _delete(store, written)
    return None


def write_run(runs: EventFile, tables: list[pa.Table]) -> None:
    """Write the tables as one sorted part, and empty the list."""
    if tables:
        runs.write(pa.concat_tables(tables).sort_by(_ORDER))
        tables.clear()


def merged(runs: Runs, low: int = 0, high: int = _NO_KEY + 1) -> Iterator[pa.Table]:
    """The events of sorted runs with keys in [low, high), sorted by key; yields one table for each range of keys.

    More than `_FAN_OUT` runs are first split into `_FAN_OUT` ranges with runs of their own, again if need be: so each
    event is rewritten once for every factor of `_FAN_OUT` in the number of runs.
    """
    if len(runs) > _FAN_OUT and high - low > _FAN_OUT:
        for (start, end), own in _spread(runs, low, high):
            yield from merged(own, start, end)
        return
    count = sum(map(len, runs))
    for start, end in _ranges(low, high, max(1, round(count / _FILE_ROWS))):
        within = (_between(run, start, end) for run in runs)
        table = pa.concat_tables([EVENT_SCHEMA.empty_table(), *within]).sort_by(_ORDER)
        if len(table):
            yield table


def _spread(runs: Runs, low: int, high: int) -> Iterator[tuple[tuple[int, int], Runs]]:
    """Split [low, high) into `_FAN_OUT` ranges of keys, each with sorted runs of its own."""
    ranges = list(_ranges(low, high, _FAN_OUT))
    parts: list[list[int]] = [[] for _ in ranges]
    with EventFile() as file:
        for group in _groups(runs, _FAN_OUT):
            for (start, end), numbers in zip(ranges, parts, strict=True):
                first = len(file)
                # A new run takes a slice of each run of the group, so it is about as long as they are.
                file.write(pa.concat_tables([_between(run, start, end) for run in group]).sort_by(_ORDER))
                numbers.extend(range(first, len(file)))
    for bounds, numbers in zip(ranges, parts, strict=True):
        yield bounds, _Part(file, numbers)


def _ranges(low: int, high: int, count: int) -> Iterator[tuple[int, int]]:
    step = -(-(high - low) // count)
    for start in range(low, high, step):
        yield start, min(start + step, high)


def _groups(runs: Runs, size: int) -> Iterator[list[pa.Table]]:
    for start in range(0, len(runs), size):
        yield [runs[number] for number in range(start, min(start + size, len(runs)))]


def _between(run: pa.Table, low: int, high: int) -> pa.Table:
    """The rows of a sorted table whose keys, read as numbers, are in [low, high)."""
    keys = run["key"]

    def number(row: int) -> int:
        key = keys[row].as_py()
        return _NO_KEY if key is None else int.from_bytes(key, "big")

    start = bisect_left(range(len(run)), low, key=number)
    return run.slice(start, bisect_left(range(len(run)), high, key=number) - start)


async def _store_time(store: ObjectStore) -> datetime | None:
    """The present time by the store's clock; None where the store reports no times."""
    await store.put(layout.LEDGER_TIME, b"")
    info = await store.head(layout.LEDGER_TIME)
    return info.modified if info else None


async def _tidy(store: ObjectStore, files: LedgerFiles, before: datetime) -> None:
    """Remove what generations from before that moment replaced: segments, older generations, files of lost races."""
    newest_old = max((number for number, info in files.manifests.items() if _is_before(info, before)), default=0)
    data = await store.get(layout.generation(newest_old)) if newest_old else None
    if data is None:
        return
    generation = parse_generation(layout.generation(newest_old), data)
    await _delete(store, [info.path for info in files.segments if name_of(info.path) in generation.absorbed])
    # A generation names only files of its own number.
    await _delete(store, [info.path for info in files.parts if 0 < layout.generation_of(info.path) < newest_old])
    # Manifests go last, so that a crash in between leaves no file without one.
    await _delete(store, [files.manifests[number].path for number in files.manifests if number < newest_old])


async def _drop_claims(store: ObjectStore, attempts: Attempts, before: datetime) -> None:
    """Remove the claims from before that moment of keys that are delivered and have no open attempt.

    A failed key keeps its claims, because a later attempt has to take the next number.
    """
    await asyncio.to_thread(attempts.compact)
    for start in range(0, 256, _AT_ONCE):
        folders = (layout.claims_below(first) for first in range(start, start + _AT_ONCE))
        for infos in await asyncio.gather(*map(store.list, folders)):
            await _delete(store, await asyncio.to_thread(_needless, infos, attempts, before))


def _needless(claims: Sequence[ObjectInfo], attempts: Attempts, before: datetime) -> list[str]:
    """The paths of claims and ids that can be removed; `claims` are sorted by path."""
    needless: list[str] = []
    for folder, group in groupby(claims, lambda info: info.path.rsplit("/", 1)[0]):
        infos = list(group)
        ranks = attempts.ranks(bytes.fromhex(name_of(folder)))
        is_over = RANK["delivered"] in ranks.values() and min(ranks.values()) >= RANK["failed"]
        known = set(map(str, ranks))
        if is_over and all(name_of(info.path).split(".")[0] in known and _is_before(info, before) for info in infos):
            needless += [info.path for info in infos]
    return needless


def _is_before(info: ObjectInfo, moment: datetime) -> bool:
    return info.modified is not None and info.modified < moment


async def _delete(store: ObjectStore, paths: Sequence[str]) -> None:
    for start in range(0, len(paths), _AT_ONCE):
        await asyncio.gather(*map(store.delete, paths[start : start + _AT_ONCE]))
