"""Manifests as streams of Arrow batches: Parquet (file, folder or glob), CSV and JSONL, on any fsspec URL."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.io.object_store import close_connections, s3_options

WINDOW_ROWS = 32_768
"""Rows handed on at a time: what a plan holds in memory."""
_TEXT_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_FORMATS = "Parquet (.parquet), CSV (.csv) or JSON lines (.jsonl)"


class Manifest:
    """One manifest: a file, a folder or a glob of files of one schema. Opening lists files; nothing is read yet.

    Raises RefusedError: `manifest_not_found`, `manifest_unreadable`.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = redact(url)
        self.base = ""
        """The folder that relative paths start from, as a URI: the manifest, or that of the file being read."""
        options = dict(storage_options or {})
        if url.startswith(("s3://", "s3a://")):
            options = s3_options(options)
        self._folder = ""
        try:
            self._fs, path = fsspec.core.url_to_fs(url if "://" in url else str(Path(url).expanduser()), **options)
            self._files = self._expand(path)
        except RefusedError:
            raise
        except ImportError as error:
            raise RefusedError(
                "manifest_not_found",
                f"{self.url} needs a package that is not installed ({error.name}).",
                remedy="Install the extra: prefect-imagegen[s3], [gcs] or [azure].",
            ) from error
        except Exception as error:  # every file system has its own exceptions; all are told in one way
            raise self._not_found(f"cannot be read: {redact(f'{type(error).__name__} {error}')}") from error

    def windows(self, text_columns: Sequence[str] = (), limit: int | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most `WINDOW_ROWS` a batch; `text_columns` are read as text from CSV and JSONL.

        Raises RefusedError: `manifest_unreadable` naming the file, `manifest_schema` where files disagree,
        `manifest_empty` if there is no row at all.
        """
        schema: pa.Schema | None = None
        left = limit
        empty = True
        for file in self._files:
            self.base = self._folder or self._uri(file.rpartition("/")[0])
            for batch in self._batches(file, text_columns):
                schema = schema or batch.schema
                piece = batch if left is None else batch.slice(0, left)
                left = None if left is None else left - len(piece)
                empty = empty and not len(piece)
                yield self._conform(piece, schema, file)
                if left == 0:
                    return
        if empty:
            raise RefusedError("manifest_empty", f"The manifest {self.url} has no rows.", remedy="Add rows to it.")

    def close(self) -> None:
        """Close the connections."""
        close_connections(self._fs)

    def _expand(self, path: str) -> list[str]:
        if fsspec.core.has_magic(path):
            files = sorted(name for name in self._fs.glob(path) if not self._fs.isdir(name))
        elif self._fs.isdir(path):
            names = self._fs.find(path)
            base = len(path)
            self._folder = self._uri(path)
            files = sorted(
                name
                for name in names
                if name.endswith(".parquet") and not any(part.startswith((".", "_")) for part in name[base:].split("/"))
            )
        elif self._fs.exists(path):
            files = [path]
        else:
            raise self._not_found("does not exist")
        if not files:
            raise self._not_found("matches no file (a folder is read for *.parquet)")
        return files

    def _uri(self, path: str) -> str:
        return str(self._fs.unstrip_protocol(path.rstrip("/")))

    def _not_found(self, what: str) -> RefusedError:
        return RefusedError(
            "manifest_not_found",
            f"The manifest {self.url} {what}.",
            remedy="Check the path, and --manifest-storage-option where it lies in object storage.",
        )

    def _batches(self, file: str, text_columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        kind = _TEXT_SUFFIXES.get(Path(file).suffix.lower(), "parquet")
        try:
            with self._fs.open(file, "rb") as source:
                if self._fs.size(file) == 0:
                    raise RefusedError(
                        "manifest_empty",
                        f"The manifest file {redact(file)} is empty (0 bytes).",
                        remedy="Write it again.",
                    )
                if kind == "parquet":
                    reader = pq.ParquetFile(source, pre_buffer=False)
                    yield from reader.iter_batches(WINDOW_ROWS)
                    if reader.metadata.num_rows == 0:
                        yield pa.RecordBatch.from_pylist([], schema=reader.schema_arrow)
                else:
                    yield from _text_batches(source, kind, text_columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RefusedError(
                "manifest_unreadable",
                f"The manifest file {redact(file)} cannot be read as {kind}: {redact(str(error))}",
                remedy=f"A manifest is {_FORMATS}, whole and with the ending of its format.",
            ) from error

    def _conform(self, batch: pa.RecordBatch, schema: pa.Schema, file: str) -> pa.RecordBatch:
        if batch.schema.equals(schema):
            return batch
        try:
            for name in schema.names:
                if name not in batch.schema.names:
                    raise RefusedError(
                        "manifest_schema", f"{redact(file)} lacks the column {name!r} of the files before it."
                    )
            return batch.select(schema.names).cast(schema)
        except (pa.ArrowException, RefusedError) as error:
            raise RefusedError(
                "manifest_schema",
                f"The manifest's files differ in their columns; {redact(str(error))}",
                remedy="Give all files the same columns and types.",
            ) from error


def _text_batches(source: Any, kind: str, text_columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if kind == "jsonl":
        reader = pa.json.open_json(source)
        dates = [one.name for one in reader.schema if one.name in text_columns and pa.types.is_timestamp(one.type)]
        if dates:  # text that looks like a date is text
            source.seek(0)
            texts = pa.schema([(name, pa.string()) for name in dates])
            reader = pa.json.open_json(source, parse_options=pa.json.ParseOptions(explicit_schema=texts))
    else:
        # An empty cell means "not given", a quoted empty one means empty text; prompts and ids are text, also
        # where they look like numbers.
        reader = pa.csv.open_csv(
            source,
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(text_columns, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    with reader:
        for batch in reader:
            # pyarrow's JSON reader makes damaged arrays of lists that hold nothing but nulls.
            batch.validate(full=True)
            for start in range(0, max(len(batch), 1), WINDOW_ROWS):
                yield batch.slice(start, WINDOW_ROWS)
