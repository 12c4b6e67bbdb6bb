"""Read JSON lines in pieces: columns of unchanged values, with the line number of every row."""

import io
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from prefect_imagegen.core.request.json_rows import BadJsonError, ColumnKinds, row_of
from prefect_imagegen.inputs.manifests.text import BadTextError, TextLines, shown, text_of
from prefect_imagegen.inputs.manifests.window import Bounds, Piece


def json_kinds(source: Any, kinds: ColumnKinds, limit: int | None) -> int:
    """Add the columns of a file's first `limit` rows to `kinds`; returns the number of rows. Raises BadTextError."""
    count = 0
    with text_of(source) as text:
        for _, row in _json_rows(text):
            if limit is not None and count >= limit:
                break
            kinds.add(row)
            count += 1
    return count


def json_pieces(source: Any, needed: Collection[str], bounds: Bounds) -> Iterator[Piece]:
    """The rows of JSON lines in pieces, values unchanged; None for a field that a line lacks. Raises BadTextError."""
    rows: list[Mapping[str, Any]] = []
    numbers: list[int] = []
    size = 0

    def piece() -> Piece:
        return Piece({name: [row.get(name) for row in rows] for name in needed}, list(numbers))

    with text_of(source) as text:
        for lines, row in _json_rows(text):
            rows.append(row)
            numbers.append(lines.first)
            size += len(lines.record[0])
            if len(rows) >= bounds.rows or size >= bounds.size:
                yield piece()
                rows, numbers, size = [], [], 0
    yield piece()


def _json_rows(text: io.TextIOWrapper) -> Iterator[tuple[TextLines, dict[str, Any]]]:
    lines = TextLines(text)
    while True:
        lines.begin()
        line = next(lines, "")
        if not line:
            return
        if not line.strip(" \t\r\n"):
            continue
        try:
            row = row_of(line)
        except BadJsonError as error:
            remedy = "Write one object a line."
            if lines.number == 1 and line.lstrip().startswith("["):
                remedy = "Write one object a line: jq -c '.[]' FILE > FILE.jsonl"
            raise BadTextError(lines.number, f"{error}: {shown(lines.record)}", remedy) from None
        yield lines, row
