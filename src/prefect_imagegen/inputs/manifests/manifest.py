"""Manifests as streams of windows: Parquet (file, folder or glob), CSV and JSON lines, on any fsspec URL."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.json_rows import ColumnKinds
from prefect_imagegen.inputs.manifests.csv import csv_header, csv_pieces
from prefect_imagegen.inputs.manifests.files import FORMATS, ManifestFile, ManifestFiles
from prefect_imagegen.inputs.manifests.jsonl import json_kinds, json_pieces
from prefect_imagegen.inputs.manifests.parquet import WideColumnError, footer_of, parquet_pieces
from prefect_imagegen.inputs.manifests.text import BadTextError
from prefect_imagegen.inputs.manifests.window import Bounds, Piece, Remarks, Window

WINDOW_ROWS = 32_768
"""The most rows of a window: what a plan holds in memory."""
WINDOW_BYTES = 64 * 2**20
"""About the most bytes of a window's columns; a single row may be larger."""
_FOOTERS_AT_ONCE = 8
_WHOLE = f"A manifest is {FORMATS}, whole and with the ending of its format."


class Manifest:
    """One manifest: a file, a folder or a glob. Opening lists files; nothing is read yet.

    Raises RefusedError: `manifest_not_found`, `manifest_table`, `manifest_unreadable`.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._files = ManifestFiles(url, storage_options)
        self.url = self._files.url
        self.passed_over = self._files.passed_over
        self.remarks = Remarks()
        """Remarks on what was left out or looks odd in the rows read so far."""
        self._wanted: Collection[str] = ()

    def schemas(self, wanted: Collection[str] = (), limit: int | None = None) -> list[tuple[str, pa.Schema]]:
        """The name and schema of every file that the first `limit` rows may come from.

        CSV columns are text. JSON lines are read whole for this, since a field may first appear in the last line, and
        share one schema. `wanted`: names that a header should have; they decide the separator of a CSV. Raises
        RefusedError: `manifest_empty`, `manifest_unreadable`.
        """
        self._wanted = wanted
        kinds, left = ColumnKinds(), limit
        schemas: list[tuple[str, pa.Schema]] = []
        for file, footer in self._footers(limit):
            with self._refusing(file):
                if footer is not None:
                    schema, rows = footer
                elif file.kind == "csv":
                    with self._open(file) as source:
                        names = csv_header(source, wanted, file.separator)
                    if not names:
                        raise RefusedError(
                            "manifest_empty",
                            f"The manifest file {redact(file.path)} has no header: its lines are empty.",
                            remedy="Name the columns in its first line.",
                        )
                    schema, rows = pa.schema([(name, pa.string()) for name in names]), 0
                else:
                    with self._open(file) as source:
                        schema, rows = pa.schema([]), json_kinds(source, kinds, left)
            partition = [(name, pa.string()) for name in file.partition if name not in schema.names]
            schemas.append((file.name, pa.schema([*schema, *partition])))
            left = None if left is None else left - rows
            if left is not None and left <= 0:
                break
        lines = next((file.name for file in self._files.files if file.kind == "jsonl"), None)
        return [*schemas, *([(lines, kinds.schema)] if lines else [])]

    def windows(
        self, schema: pa.Schema, needed: Collection[str] | None = None, limit: int | None = None
    ) -> Iterator[Window]:
        """All rows in order, in windows of at most `WINDOW_ROWS` rows and about `WINDOW_BYTES` bytes.

        `schema`: that of all files together. `needed`: the columns to read (default: all). Raises RefusedError:
        `manifest_unreadable` naming file and line, `manifest_empty` if there is no row at all.
        """
        columns = frozenset(schema.names if needed is None else needed)
        left = limit
        empty = True
        for file in self._files.files:
            with self._refusing(file):
                for window in self._read(file, schema, columns, left):
                    left = None if left is None else left - len(window)
                    empty = False
                    yield window
            if left == 0:
                return
        if empty:
            raise RefusedError("manifest_empty", f"The manifest {self.url} has no rows.", remedy="Add rows to it.")

    def close(self) -> None:
        """Close the connections."""
        self._files.close()

    def _footers(self, limit: int | None) -> Iterator[tuple[ManifestFile, tuple[pa.Schema, int] | None]]:
        """Every file, and for Parquet its schema and number of rows."""
        files = self._files.files
        if limit is not None or len(files) == 1:
            yield from ((file, self._footer(file)) for file in files)
            return
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            yield from zip(files, pool.map(self._footer, files), strict=True)

    def _footer(self, file: ManifestFile) -> tuple[pa.Schema, int] | None:
        if file.kind != "parquet":
            return None
        with self._refusing(file), self._open(file) as source:
            return footer_of(source)

    def _read(
        self, file: ManifestFile, schema: pa.Schema, needed: Collection[str], left: int | None
    ) -> Iterator[Window]:
        """The windows of one file, up to `left` rows."""
        base = self._files.folder or self._files.uri(file.path.rpartition("/")[0])
        many = len(self._files.files) > 1
        bounds = Bounds(WINDOW_ROWS if left is None else max(1, min(WINDOW_ROWS, left)), WINDOW_BYTES)
        first = 0
        with self._open(file) as source:
            for piece in self._pieces(file, source, needed, bounds):
                rows = len(piece) if left is None else min(len(piece), left - first)
                for remark, count in piece.remarks.counts.items():
                    self.remarks.add(remark, f"{file.name}, line {piece.remarks.places[remark]}", count)
                columns = {name: values[:rows] for name, values in piece.columns.items()}
                if rows:
                    lines, words = piece.lines[:rows], piece.quoted_words
                    yield Window(file, base, schema, rows, first, columns, lines, words, one_of_many=many)
                first += rows
                if first == left:
                    return

    def _pieces(self, file: ManifestFile, source: Any, needed: Collection[str], bounds: Bounds) -> Iterator[Piece]:
        if file.kind == "parquet":
            return parquet_pieces(source, needed, bounds)
        if file.kind == "csv":
            return csv_pieces(source, needed, self._wanted, file.separator, bounds)
        return json_pieces(source, needed, bounds)

    @contextmanager
    def _open(self, file: ManifestFile) -> Iterator[Any]:
        with self._files.fs.open(file.path, "rb") as source:
            if self._files.fs.size(file.path) == 0:
                raise RefusedError(
                    "manifest_empty",
                    f"The manifest file {redact(file.path)} is empty (0 bytes).",
                    remedy="Write it again.",
                )
            yield source

    @contextmanager
    def _refusing(self, file: ManifestFile) -> Iterator[None]:
        """Turn errors of reading a file into a RefusedError that names it."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            remedy = error.remedy if isinstance(error, BadTextError | WideColumnError) else ""
            reason = redact(str(error)).rstrip(".")
            raise RefusedError(
                "manifest_unreadable",
                f"The manifest file {redact(file.path)} cannot be read as {file.kind}: {reason}.",
                remedy=remedy or _WHOLE,
            ) from error
