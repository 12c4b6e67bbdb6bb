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
    """What is odd in the rows read so far: in words, with the number of rows and the place of the first."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, Any] = field(default_factory=dict)

    def add(self, words: str, place: Any, rows: int = 1) -> None:
        """Count rows."""
        self.counts[words] += rows
        self.places.setdefault(words, place)

    def texts(self) -> dict[str, int]:
        """Each remark once, with its first place, and the number of rows."""
        return {f"{words} (first: {self.places[words]})": rows for words, rows in self.counts.items()}


@dataclass(slots=True)
class Piece:
    """Some rows of one file: their cells by column; in text files the line that each row begins in.

    `quoted_words` are cells (column, row) of a CSV in which a null word stands in quotes.
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
    """Some rows of one file, in order.

    `columns` are the file's own: Arrow arrays of Parquet, lists of cells of text files; `schema` is that of all the
    manifest's files. `base` is the folder that relative paths start from, as a URI.
    """

    file: ManifestFile
    base: str
    schema: pa.Schema
    size: int
    first: int
    """How many rows of the file came before."""
    columns: Mapping[str, Any]
    lines: list[int] = field(default_factory=list)
    """The line of each row, in text files."""
    quoted_words: Collection[tuple[str, int]] = ()
    one_of_many: bool = False

    def __len__(self) -> int:
        return self.size

    @property
    def is_text(self) -> bool:
        """Whether the cells are text because the format knows nothing else."""
        return self.file.kind == "csv"

    def column(self, name: str) -> pa.Array:
        """A column as the metadata carries it; nulls where the file has none. Raises RefusedError."""
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
        """The rows' cells of these columns, as the file has them.

        In CSV a word such as NA or NULL without quotes is null in the columns `words_mean_null`.
        """
        chosen = [name for name in names if name in self.columns or name in self.file.partition]
        absent = dict.fromkeys(set(names) - set(chosen))
        if not chosen:
            return (dict(absent) for _ in range(self.size))
        columns = [self._cells(name, is_null_word=self.is_text and name in words_mean_null) for name in chosen]
        return (dict(zip(chosen, cells, strict=True)) | absent for cells in zip(*columns, strict=True))

    def null_words(self, names: Collection[str]) -> dict[str, tuple[int, str]]:
        """Of CSV columns in which words such as NA stand without quotes: in how many rows, and the first place."""
        found = {}
        for name in names if self.is_text else ():
            cells = self._cells(name, is_null_word=False) if name in self.columns else []
            if not NULL_WORDS.isdisjoint(cells):
                rows = [row for row, cell in enumerate(cells) if self._is_null_word(name, row, cell)]
                if rows:
                    found[name] = (len(rows), self.place(rows[0]))
        return found

    def place(self, row: int) -> str:
        """Where a row stands, for who opens the file; nothing where the row's number says it all."""
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
    """Whether the CSV columns that feed fields of no known type hold numbers and truth values, or text.

    The first window decides: a column is text as soon as one of its cells there is, so that a word among numbers
    leaves the numbers as they are spelled.
    """

    def __init__(self, plan: ColumnPlan) -> None:
        self._columns = {name: plan.sources[name] for name in sorted(plan.untyped)}
        self._numeric: frozenset[str] | None = None

    def numeric(self, window: Window) -> frozenset[str]:
        """The fields whose texts are to be read as numbers or truth values, where that is what they spell."""
        if not window.is_text:
            return frozenset()
        if self._numeric is None:
            self._numeric = frozenset(name for name, columns in self._columns.items() if _is_numeric(window, columns))
        return self._numeric


def _is_numeric(window: Window, columns: Collection[str]) -> bool:
    cells = [cell for row in window.cells(columns, columns) for cell in row.values() if cell is not None]
    kinds = {type(scalar_of(cell)) for cell in cells}
    return kinds <= {int, float} or kinds == {bool}
