"""A window of a manifest: some rows of one file, read once for requests and once for the metadata."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.json_rows import carried_array
from prefect_imagegen.core.request.manifest import ColumnPlan
from prefect_imagegen.core.request.manifest_types import conform
from prefect_imagegen.core.request.scalars import NULL_WORDS, scalar_of
from prefect_imagegen.inputs.manifests.files import ManifestFile


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a piece may be: rows, and bytes (of text: characters) of the columns that are read."""

    rows: int
    size: int


@dataclass(slots=True)
class Remarks:
    """Remarks on the rows read so far: each with its number of rows and the place of the first."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, Any] = field(default_factory=dict)

    def add(self, words: str, place: Any, rows: int = 1) -> None:
        """Add a number of rows to a remark; `place` is kept if it is the remark's first."""
        self.counts[words] += rows
        self.places.setdefault(words, place)

    def texts(self) -> dict[str, int]:
        """The remarks with their first place, and the number of rows of each."""
        return {f"{words} (first: {self.places[words]})": rows for words, rows in self.counts.items()}


@dataclass(slots=True)
class Piece:
    """Some rows of one file as a reader yields them: cells by column, and for text files the line of each row.

    `quoted_words`: cells (column, row) of a CSV that hold a null word, such as NA, in quotes.
    """

    columns: dict[str, Any]
    lines: list[int] = field(default_factory=list)
    quoted_words: set[tuple[str, int]] = field(default_factory=set)
    remarks: Remarks = field(default_factory=Remarks)
    size: int | None = None

    def __len__(self) -> int:
        return len(self.lines) if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class Window:
    """Some consecutive rows of one file.

    `columns`: Arrow arrays for Parquet, lists of cells for text files. `schema`: that of all the manifest's files.
    `base`: the folder that relative paths start from, as a URI.
    """

    file: ManifestFile
    base: str
    schema: pa.Schema
    size: int
    first: int
    """The number of the window's first row in the file, from 0."""
    columns: Mapping[str, Any]
    lines: list[int] = field(default_factory=list)
    """The line of each row; empty for Parquet."""
    quoted_words: Collection[tuple[str, int]] = ()
    one_of_many: bool = False

    def __len__(self) -> int:
        return self.size

    @property
    def is_text(self) -> bool:
        """Whether all cells are text because the format has no types (CSV)."""
        return self.file.kind == "csv"

    def column(self, name: str) -> pa.Array:
        """A column as the metadata carries it, in the type of `schema`; nulls if the file lacks it.

        Raises RefusedError: `manifest_unreadable`, `manifest_schema`.
        """
        kind = self.schema.field(name).type
        values = self.columns.get(name)
        if values is None:
            if name in self.file.partition:
                return pa.array([self.file.partition[name]] * self.size, pa.string()).cast(kind)
            return pa.nulls(self.size, kind)
        try:
            if not isinstance(values, list):
                return conform(values, kind)
            return (
                carried_array(values, kind)
                if self.file.kind == "jsonl"
                else conform(pa.array(values, pa.string()), kind)
            )
        except UnicodeEncodeError as error:
            row = next(row for row, value in enumerate(values) if str(error.object) in str(value))
            raise RefusedError(
                "manifest_unreadable",
                f"{self.place(row)}, column {name!r}: the text holds half a character (a lone surrogate).",
                remedy="Write the file again, with whole characters.",
            ) from error
        except pa.ArrowException as error:
            raise RefusedError(
                "manifest_schema",
                f"The manifest's files differ in their columns: {name!r} of {self.file.name} does not fit {kind}, the"
                f" type of all files together ({error}).",
                remedy="Give all files the same columns and types.",
            ) from error

    def cells(self, names: Collection[str], words_mean_null: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """The cells of these columns, row by row, unchanged; None for columns that the file lacks.

        In the CSV columns `words_mean_null`, a word such as NA or NULL without quotes is None too.
        """
        chosen = [name for name in names if name in self.columns or name in self.file.partition]
        absent = dict.fromkeys(set(names) - set(chosen))
        if not chosen:
            return (dict(absent) for _ in range(self.size))
        columns = [self._cells(name, is_null_word=self.is_text and name in words_mean_null) for name in chosen]
        return (dict(zip(chosen, cells, strict=True)) | absent for cells in zip(*columns, strict=True))

    def null_words(self, names: Collection[str]) -> dict[str, tuple[int, str]]:
        """CSV columns with words such as NA without quotes: in how many rows, and the place of the first."""
        places_by_column = {}
        for name in names if self.is_text else ():
            cells = self._cells(name, is_null_word=False) if name in self.columns else []
            if not NULL_WORDS.isdisjoint(cells):
                rows = [row for row, cell in enumerate(cells) if self._is_null_word(name, row, cell)]
                if rows:
                    places_by_column[name] = (len(rows), self.place(rows[0]))
        return places_by_column

    def place(self, row: int) -> str:
        """Where a row is: file and line, or file and row; empty if the row's number is enough (one Parquet file)."""
        if self.lines:
            return f"{self.file.name}, line {self.lines[row]}"
        return f"{self.file.name}, row {self.first + row}" if self.one_of_many else ""

    def _cells(self, name: str, *, is_null_word: bool) -> list[Any]:
        values = self.columns.get(name)
        if values is None:
            return [self.file.partition[name]] * self.size
        cells: list[Any] = values if isinstance(values, list) else values.to_pylist()
        if is_null_word and not NULL_WORDS.isdisjoint(cells):
            return [None if self._is_null_word(name, row, cell) else cell for row, cell in enumerate(cells)]
        return cells

    def _is_null_word(self, name: str, row: int, cell: Any) -> bool:
        return cell in NULL_WORDS and (name, row) not in self.quoted_words


class UntypedTexts:
    """Decides which CSV columns that feed fields without a known type hold numbers or booleans.

    The first window decides for all: a column is text if any of its cells there is, so that numbers in a column with a
    word keep their spelling.
    """

    def __init__(self, plan: ColumnPlan) -> None:
        self._columns = {name: plan.sources[name] for name in sorted(plan.untyped)}
        self._numeric: frozenset[str] | None = None

    def numeric(self, window: Window) -> frozenset[str]:
        """The fields whose text is to be parsed as numbers or booleans; empty for typed formats."""
        if not window.is_text:
            return frozenset()
        if self._numeric is None:
            self._numeric = frozenset(name for name, columns in self._columns.items() if _is_numeric(window, columns))
        return self._numeric


def _is_numeric(window: Window, columns: Collection[str]) -> bool:
    cells = [cell for row in window.cells(columns, columns) for cell in row.values() if cell is not None]
    kinds = {type(scalar_of(cell)) for cell in cells}
    return kinds <= {int, float} or kinds == {bool}
