"""A temporary file of ledger events, for more events than should be held in memory."""

import mmap
import tempfile
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Self

import pyarrow as pa

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA


class EventFile:
    """A sequence of tables of `EVENT_SCHEMA` ("parts") on disk: written inside `with`, read after it, memory-mapped.

    The file has no name, so nothing is left behind, not even by a crash; its space is freed with the last reader.
    Raises StoreError where the temporary folder is full or missing.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="imagegen-ledger-")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise _no_room(error) from error
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), EVENT_SCHEMA)
        self._mapped: mmap.mmap | None = None
        self._parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                try:
                    self._writer.close()
                    self._file.flush()
                except OSError as error:
                    raise _no_room(error) from error
                self._mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def write(self, events: pa.Table) -> None:
        """Append a table of `EVENT_SCHEMA` as one part (none if it is empty)."""
        try:
            for batch in events.combine_chunks().to_batches():
                self._writer.write_batch(batch)
                self._parts += 1
        except OSError as error:
            raise _no_room(error) from error

    def __len__(self) -> int:
        """The number of parts."""
        return self._parts

    def __getitem__(self, number: int) -> pa.Table:
        """Part `number`. The memory of parts read before is given back."""
        reader = self._reader
        self._forget()
        return pa.Table.from_batches([reader.get_batch(number)])

    def __iter__(self) -> Iterator[pa.Table]:
        """The parts in the order of writing; the memory of each is given back before the next is read."""
        for number in range(self._reader.num_record_batches):
            yield self[number]
            self._forget()

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        if self._mapped is None:
            raise ValueError("an event file is read after its `with`, not inside")
        return pa.ipc.open_file(pa.py_buffer(self._mapped))

    def _forget(self) -> None:
        """Give back the memory of the parts read so far; they can be read from the file again."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def _no_room(error: OSError) -> StoreError:
    return StoreError(
        "temporary_folder",
        f"The ledger cannot be unpacked in the temporary folder: {error}.",
        remedy="Free some space there, or name another folder in the environment variable TMPDIR.",
    )
