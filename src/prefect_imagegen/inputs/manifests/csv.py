"""Read CSV in pieces: columns of text, unchanged, with the line number of every row."""

import csv
import io
from collections.abc import Collection, Iterator
from typing import Any

from prefect_imagegen.core.request import csv_text
from prefect_imagegen.core.request.scalars import NULL_WORDS
from prefect_imagegen.inputs.manifests.text import MAX_RECORD, BadTextError, TextLines, shown, text_of
from prefect_imagegen.inputs.manifests.window import Bounds, Piece

_BLANK_ROW = "rows without any value are left out"
_UNNAMED = "cells below an empty header cell are left out; give their column a name"
_NONE: list[bool] = []
_LONGEST_HEADER = 2**20
"""The most characters of a header."""
_MOST_QUOTED_LINES = 1000
"""The most further lines of a header that hold quotes, since each is parsed together with all before it."""
_ODD_QUOTE = "a blank stands before an opening quote, so the quotes are taken as text"


def csv_header(source: Any, wanted: Collection[str], usual: str) -> list[str]:
    """The column names of a CSV, without unnamed columns. Raises BadTextError. Parameters: see `csv_pieces`."""
    with text_of(source) as text:
        return list(_CsvFile(text, wanted, usual).header.names)


def csv_pieces(
    source: Any, needed: Collection[str], wanted: Collection[str], usual: str, bounds: Bounds
) -> Iterator[Piece]:
    """The rows of a CSV as unchanged text, in pieces; an empty cell without quotes is None. Raises BadTextError.

    `needed`: the columns to read. `wanted`: names that a header should have; they decide which separator it is, if it
    is not the `usual` one.
    """
    with text_of(source) as text:
        yield from _CsvFile(text, wanted, usual).pieces(needed, bounds)


class _CsvFile:
    """One CSV being read: the constructor reads separator and header, `pieces` the rows."""

    def __init__(self, text: io.TextIOWrapper, wanted: Collection[str], usual: str) -> None:
        # csv's limit is global to the process, so it is only raised; TextLines enforces ours.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD + 1))
        self._lines = TextLines(text)
        self._separator = usual
        self.header = csv_text.header_of([])
        first = self._first_line()
        declared = csv_text.declared_separator(first)
        if declared is not None:
            self._separator, first = declared, self._first_line()
        header = self._whole_header(first, csv_text.SEPARATORS if declared is None else (declared,))
        if declared is None:
            try:
                self._separator = csv_text.separator_of(header, wanted, usual)
            except csv_text.BadCsvError as error:
                raise BadTextError(self._lines.first, str(error), "Save it with commas.") from None
        cells = self._record(iter([header]))  # passed as one line, so that csv.reader checks that it is one record
        self.header = csv_text.header_of([cell.removeprefix("\ufeff") for cell in cells or []])

    def pieces(self, needed: Collection[str], bounds: Bounds) -> Iterator[Piece]:
        """The rows, in pieces within `bounds`."""
        reader = csv.reader(self._lines, **csv_text.dialect_of(self._separator))
        chosen = [
            (name, at) for name, at in zip(self.header.names, self.header.positions, strict=True) if name in needed
        ]
        piece, size = Piece({name: [] for name, _ in chosen}), 0
        while (cells := self._next(reader)) is not None:
            if cells:
                self._take(cells, piece, chosen)
                size += sum(map(len, self._lines.record))
            if len(piece.lines) >= bounds.rows or size >= bounds.size:
                yield piece
                piece, size = Piece({name: [] for name, _ in chosen}), 0
        yield piece

    def _take(self, cells: list[str], piece: Piece, chosen: list[tuple[str, int]]) -> None:
        """Add a record to the piece; its empty cells become None unless they are quoted. Raises BadTextError."""
        lines, width = self._lines, self.header.width
        if len(cells) != width and (len(cells) < width or any(cells[width:])):
            raise BadTextError(
                lines.first,
                f"the header has {width} cells, and the row that begins here {len(cells)}: {shown(lines.record)}",
                "Quote cells that hold the separator or a line break, and give every row as many cells as the header.",
            )
        record = lines.record[0] if len(lines.record) == 1 else "".join(lines.record)
        values: list[str | None] = list(cells)
        quotes = _NONE
        words = NULL_WORDS.intersection(cells)
        if words or not all(cells):
            if csv_text.may_quote(record, self._separator, words):
                quotes = csv_text.quoted_cells(record, self._separator)
                values = [cell if cell or quoted else None for cell, quoted in zip(cells, quotes, strict=True)]
            else:
                values = [cell or None for cell in cells]
            if values.count(None) == len(values):
                piece.remarks.add(_BLANK_ROW, lines.first)
                return
        if self.header.unnamed and any(values[at] for at in self.header.unnamed):
            piece.remarks.add(_UNNAMED, lines.first)
        if csv_text.has_odd_quote(record, self._separator) and any(
            cell.lstrip()[:1] == '"' != cell[:1] for cell in cells
        ):
            piece.remarks.add(_ODD_QUOTE, lines.first)
        row = len(piece.lines)
        for name, at in chosen:
            piece.columns[name].append(values[at])
            if words and quotes and quotes[at] and cells[at] in words:
                piece.quoted_words.add((name, row))
        piece.lines.append(lines.first)

    def _next(self, reader: Any) -> list[str] | None:
        self._lines.begin()
        return self._record(reader)

    def _record(self, reader: Any) -> list[str] | None:
        """The next record; None at the end. Raises BadTextError."""
        if not hasattr(reader, "line_num"):
            reader = csv.reader(reader, **csv_text.dialect_of(self._separator))
        try:
            return next(reader, None)
        except csv.Error as error:
            raise self._refusal(error) from None

    def _refusal(self, error: csv.Error) -> BadTextError:
        lines, record = self._lines, "".join(self._lines.record)
        opened = csv_text.open_quote(record, self._separator)
        if "end of data" in str(error) and opened is not None:
            line = lines.first + opened
            return BadTextError(line, "the quote that opens here is never closed", "Close it, or double it.")
        if "new-line character" in str(error):
            return BadTextError(
                lines.first,
                "a carriage return stands in a cell without quotes, or lines end in several ways",
                "Quote the cell, or end all lines in the same way.",
            )
        return BadTextError(
            lines.first,
            f"text follows a closing quote in the row that begins here: {shown(lines.record)}",
            'Inside of quotes write a quote twice (""), not with a backslash.',
        )

    def _first_line(self) -> str:
        """The next line that is not blank; empty at the end of the file."""
        for line in self._lines:
            if line.strip("\r\n"):
                return line
            self._lines.begin()
        return ""

    def _whole_header(self, first: str, separators: Collection[str]) -> str:
        """All lines of the header, given its first: a quoted name may hold line breaks. Raises BadTextError."""
        self._lines.record[:] = [first]
        if csv_text.goes_on(first, separators):
            size, quoted = len(first), 0
            for line in self._lines:
                size += len(line)
                quoted += '"' in line
                if size > _LONGEST_HEADER or quoted > _MOST_QUOTED_LINES:
                    break  # a quote that is still open here counts as never closed
                # Only a quote can end the name.
                if '"' in line and not csv_text.goes_on("".join(self._lines.record), separators):
                    break
        header = "".join(self._lines.record)
        if len(header) > _LONGEST_HEADER and not csv_text.goes_on(header, separators):
            raise BadTextError(
                self._lines.first,
                f"the header has more than {_LONGEST_HEADER:,} characters: {shown(self._lines.record)}",
                "A manifest begins with a line that names its columns.",
            )
        return header
