"""Compaction: many small segments become a few sorted files, so that reading the ledger stays quick.

Generation g+1 is one create-only manifest: who writes it has compacted, everybody else who tried has lost and changed
nothing. What it replaces goes a day later by the store's own time, when no reader can still be at it.
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

KEPT = timedelta(hours=24)
"""How long what was replaced stays for readers that had listed it before."""
_OPEN_SEGMENTS = 500
_RUN_ROWS = 1 << 16
_FILE_ROWS = 50_000
"""Events sorted at once, and events in a file (about: keys are hashes, so equal ranges of them hold about as many)."""
_FAN_OUT = 64
"""So many runs, at most, are looked into for one file."""
_NO_KEY = 1 << 8 * KEY_BYTES
"""An event without a key is carried along behind the highest one."""
_AT_ONCE = 16
_ORDER = [(name, "ascending") for name in ("key", "time", "attempt_id", "type")]


class Runs(Protocol):
    """Sorted tables of events that are read by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, number: int, /) -> pa.Table:
        """One of them."""
        ...

    def __iter__(self) -> Iterator[pa.Table]:
        """All of them."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """Some runs of a file."""

    file: EventFile
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> pa.Table:
        return self.file[self.numbers[number]]

    def __iter__(self) -> Iterator[pa.Table]:
        return (self.file[number] for number in self.numbers)


async def compact(store: ObjectStore, clock: Clock, *, more_than: int | None = None) -> bool:
    """Absorb all segments into a new generation if more than so many are open; True if that was done.

    Left out, `more_than` is 500, and in a large ledger as many as its generation has files: everything is written anew
    each time, so what it costs must not grow faster than the ledger.
    Removes what earlier compactions replaced more than a day ago, in any case. Bounded memory: a run of sorted events,
    one file to be written, and 21 bytes for each attempt; all events wait in temporary files. Raises StoreError; the
    ledger is whole then too.
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
        await _tidy(store, files, now - KEPT)
        if attempts is not None:
            await _drop_claims(store, attempts, now - KEPT)
    return attempts is not None


async def _absorb(store: ObjectStore, clock: Clock, files: LedgerFiles) -> Attempts | None:
    """Write the next generation: what its events say of every attempt; None if somebody else was first."""
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
    # Names of segments that are gone need no remembering.
    absorbed &= {name_of(info.path) for info in files.segments}
    manifest = layout.generation(number)
    data = manifest_bytes(Generation(tuple(written), absorbed))
    if await store.create(manifest, data, "application/json") or await store.get(manifest) == data:
        return attempts
    await _delete(store, written)
    return None


def write_run(runs: EventFile, tables: list[pa.Table]) -> None:
    """Write the tables as one sorted part, and forget them."""
    if tables:
        runs.write(pa.concat_tables(tables).sort_by(_ORDER))
        tables.clear()


def merged(runs: Runs, low: int = 0, high: int = _NO_KEY + 1) -> Iterator[pa.Table]:
    """All events of sorted runs with keys in [low, high), sorted by key, one range of keys after the other.

    Where there are too many runs to look into for each range, they are spread over a few ranges first, each of which
    has runs of its own then: an event is written again once for each factor of `_FAN_OUT`.
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
    """The ranges of keys that [low, high) falls into, and the sorted runs of each."""
    ranges = list(_ranges(low, high, _FAN_OUT))
    parts: list[list[int]] = [[] for _ in ranges]
    with EventFile() as file:
        for group in _groups(runs, _FAN_OUT):
            for (start, end), numbers in zip(ranges, parts, strict=True):
                first = len(file)
                # A run of the range is a slice of each of some runs: about as long as they are.
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
    """What the store's clock says now; None where it does not tell. Clocks of machines do not matter."""
    await store.put(layout.LEDGER_TIME, b"")
    info = await store.head(layout.LEDGER_TIME)
    return info.modified if info else None


async def _tidy(store: ObjectStore, files: LedgerFiles, before: datetime) -> None:
    """Remove what a generation from before that moment replaced: segments, older generations, files of lost races."""
    settled = max((number for number, info in files.manifests.items() if _is_before(info, before)), default=0)
    data = await store.get(layout.generation(settled)) if settled else None
    if data is None:
        return
    generation = parse_generation(layout.generation(settled), data)
    await _delete(store, [info.path for info in files.segments if name_of(info.path) in generation.absorbed])
    # A generation names files of its own number alone.
    await _delete(store, [info.path for info in files.parts if 0 < layout.generation_of(info.path) < settled])
    # Manifests go last, so that a crash in between leaves no file without one.
    await _delete(store, [files.manifests[number].path for number in files.manifests if number < settled])


async def _drop_claims(store: ObjectStore, attempts: Attempts, before: datetime) -> None:
    """Remove the claims from before that moment of keys that are delivered and have no open attempt.

    A failed key keeps its claims: it may be asked for again, and the numbers have to go on from there.
    """
    await asyncio.to_thread(attempts.compact)
    for start in range(0, 256, _AT_ONCE):
        folders = (layout.claims_below(first) for first in range(start, start + _AT_ONCE))
        for infos in await asyncio.gather(*map(store.list, folders)):
            await _delete(store, await asyncio.to_thread(_needless, infos, attempts, before))


def _needless(claims: Sequence[ObjectInfo], attempts: Attempts, before: datetime) -> list[str]:
    """Of claims and their ids, sorted by path, those that nobody will ask for."""
    found: list[str] = []
    for folder, group in groupby(claims, lambda info: info.path.rsplit("/", 1)[0]):
        infos = list(group)
        ranks = attempts.ranks(bytes.fromhex(name_of(folder)))
        is_over = RANK["delivered"] in ranks.values() and min(ranks.values()) >= RANK["failed"]
        known = set(map(str, ranks))
        if is_over and all(name_of(info.path).split(".")[0] in known and _is_before(info, before) for info in infos):
            found += [info.path for info in infos]
    return found


def _is_before(info: ObjectInfo, moment: datetime) -> bool:
    return info.modified is not None and info.modified < moment


async def _delete(store: ObjectStore, paths: Sequence[str]) -> None:
    for start in range(0, len(paths), _AT_ONCE):
        await asyncio.gather(*map(store.delete, paths[start : start + _AT_ONCE]))
