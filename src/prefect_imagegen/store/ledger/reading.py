"""Reading the whole ledger of a store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pyarrow as pa

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.fold import LedgerFold, LedgerView
from prefect_imagegen.ports import ObjectStore
from prefect_imagegen.store.ledger.event_file import EventFile
from prefect_imagegen.store.ledger.files import LedgerFiles, MissingFileError, ledger_files, newest_manifest, read_files

_TRIES = 3


async def segments(store: ObjectStore) -> list[str]:
    """The paths of all segments, sorted."""
    return [info.path for info in await store.list(layout.SEGMENTS) if info.path.endswith(".parquet")]


@dataclass(frozen=True, slots=True)
class LedgerReading:
    """The ledger as it was read once: its view, the paths of the segments listed then, and the newest generation.

    All events of those segments are in the view, be it by way of the generation that absorbed them.
    """

    view: LedgerView
    segments: frozenset[str]
    generation: int


async def load_ledger(store: ObjectStore) -> LedgerView:
    """The view of the whole ledger; as `read_ledger`."""
    return (await read_ledger(store)).view


async def read_ledger(store: ObjectStore) -> LedgerReading:
    """Read the whole ledger and fold it.

    Memory holds some bytes for each attempt; the facts of images stay in a temporary file. Raises StoreError that
    names a damaged file.
    """
    listings: list[LedgerFiles] = []
    with EventFile() as spool:
        folding = LedgerFold(spool)
        async for table in event_tables(store, listings.append):
            await asyncio.to_thread(folding.add, table)
        view = await asyncio.to_thread(folding.view)
    files = listings[-1]
    return LedgerReading(view, frozenset(info.path for info in files.segments), files.number)


async def read_again(store: ObjectStore, reading: LedgerReading) -> LedgerReading:
    """The same reading if the ledger still has the same files, else a new one. Raises StoreError."""
    generations = await store.list(layout.GENERATIONS)
    is_same = newest_manifest(generations) == reading.generation
    if is_same and reading.segments == frozenset(await segments(store)):
        return reading
    return await read_ledger(store)


async def event_tables(
    store: ObjectStore, on_listing: Callable[[LedgerFiles], None] = lambda _: None
) -> AsyncIterator[pa.Table]:
    """All events of the ledger, as tables of `EVENT_SCHEMA` in no particular order, a few in memory at once.

    If a compaction removed files while this reader slept for a day, reading starts again, and events come twice, which
    the fold allows; `on_listing` gets the listing that each start begins with. Raises StoreError that names a missing
    or damaged file.
    """
    for tries_left in reversed(range(_TRIES)):
        files = await ledger_files(store)
        on_listing(files)
        try:
            async for table in read_files(store, files):
                yield table
        except MissingFileError as error:
            if not tries_left or error.path in (await ledger_files(store)).paths:
                raise
        else:
            return
