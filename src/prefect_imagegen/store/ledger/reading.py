"""Reading the whole ledger of a store."""

import asyncio
from collections.abc import AsyncIterator

import pyarrow as pa

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.fold import LedgerFold, LedgerView
from prefect_imagegen.ports import ObjectStore
from prefect_imagegen.store.ledger.event_file import EventFile
from prefect_imagegen.store.ledger.files import MissingFileError, ledger_files, read_files

_TRIES = 3


async def segments(store: ObjectStore) -> list[str]:
    """The paths of all segments, sorted."""
    return [info.path for info in await store.list(layout.SEGMENTS) if info.path.endswith(".parquet")]


async def load_ledger(store: ObjectStore) -> LedgerView:
    """Read the whole ledger and fold it.

    Memory holds some bytes for each attempt; the facts of images stay in a temporary file. Raises StoreError that
    names a damaged file.
    """
    with EventFile() as spool:
        folding = LedgerFold(spool)
        async for table in event_tables(store):
            await asyncio.to_thread(folding.add, table)
        return await asyncio.to_thread(folding.view)


async def event_tables(store: ObjectStore) -> AsyncIterator[pa.Table]:
    """All events of the ledger, as tables of `EVENT_SCHEMA` in no particular order, a few in memory at once.

    If a compaction removed files while this reader slept for a day, reading starts again, and events come twice, which
    the fold allows. Raises StoreError that names a missing or damaged file.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            async for table in read_files(store, await ledger_files(store)):
                yield table
        except MissingFileError as error:
            if not tries_left or error.path in (await ledger_files(store)).paths:
                raise
        else:
            return
