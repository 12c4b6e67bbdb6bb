"""Find the files of a manifest (a file, a folder or a glob on any fsspec URL), and their formats."""

import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

import fsspec

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.store.object_store import close_connections, s3_options

Kind = Literal["parquet", "csv", "jsonl"]
FORMATS = "Parquet (.parquet), CSV (.csv) or JSON lines (.jsonl)"
_SUFFIXES: Mapping[str, Kind] = {
    **dict.fromkeys((".parquet", ".parq", ".pq"), "parquet"),
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
}
_COMPRESSED = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
_PARQUET_MARK = b"PAR1"
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a spreadsheet or a ZIP archive", "Save the table as CSV UTF-8, or unpack it."),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of old Excel", "Save the table as CSV UTF-8."),
    (b"ARROW1", "an Arrow (Feather) file", "Write it as Parquet."),
    (b"Obj\x01", "an Avro file", "Write it as Parquet."),
    (b"ORC", "an ORC file", "Write it as Parquet."),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV."),
    (b"%PDF", "a PDF file", "Save the table as CSV UTF-8."),
    (b"PARE", "an encrypted Parquet file", "Write it without encryption."),
)
_LOGS = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}
_ICEBERG = ".metadata.json"
_HEAD = 16
"""How many first bytes of a file are read to recognise its format."""
_LEVELS = 8
"""How many folders above a file are checked for the log of a table."""
_FOLDERS = 16
"""For how many folders of a glob that check is done."""
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: its path in the file system, its format, and the columns from its Hive folders (`name=value`)."""

    path: str
    kind: Kind
    partition: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the path, for messages."""
        return redact(PurePosixPath(self.path).name)

    @property
    def separator(self) -> str:
        """The usual separator of a CSV with this file's suffix."""
        return "\t" if _suffix(self.path) in {".tsv", ".tab"} else ","


class ManifestFiles:
    """The files of one manifest, in order of their names.

    Raises RefusedError: `manifest_not_found`, `manifest_table`, `manifest_unreadable`.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = redact(url)
        self.folder = ""
        """The manifest's folder as a URI, where the manifest is one."""
        self.passed_over: tuple[str, ...] = ()
        """Names of CSV and JSON files in a folder manifest, which are not read (only its Parquet files are)."""
        options = dict(storage_options or {})
        if url.startswith(("s3://", "s3a://")):
            options = s3_options(options)
        try:
            self.fs, path = fsspec.core.url_to_fs(_address(url), **options)
            self.files = self._find(path.rstrip("/") or path)
        except RefusedError:
            raise
        except ImportError as error:
            raise RefusedError(
                "manifest_not_found",
                f"{self.url} needs a package that is not installed ({error.name}).",
                remedy="Install the extra: prefect-imagegen[s3], [gcs] or [azure].",
            ) from error
        except Exception as error:  # every file system has its own exceptions
            raise self._not_found(f"cannot be read: {redact(f'{type(error).__name__} {error}')}") from error

    def uri(self, path: str) -> str:
        """The path as a URI."""
        return str(self.fs.unstrip_protocol(path.rstrip("/")))

    def close(self) -> None:
        """Close the connections."""
        close_connections(self.fs)

    def _find(self, path: str) -> list[ManifestFile]:
        # A path that exists is taken literally, even if it has brackets or per cent signs.
        spellings = [path, unquote(path)] if self.url.startswith("file://") else [path]
        path = next((spelling for spelling in spellings if self.fs.exists(spelling)), path)
        base = path
        if self.fs.isdir(path):
            self.folder = self.uri(path)
            names = [name for name in self.fs.find(path) if not name.endswith("/")]
            self._refuse_logs(names, path)
            names = [name for name in names if not _is_hidden(name[len(path) :])]
            paths = [name for name in names if self._is_parquet(name)]
            # A .json file beside Parquet files usually describes them.
            tables = [name for name in names if _SUFFIXES.get(_suffix(name)) in {"csv", "jsonl"}]
            tables = [name for name in tables if _suffix(name) != ".json"]
            self.passed_over = tuple(redact(PurePosixPath(name).name) for name in sorted(tables))
            if not paths:
                raise self._not_found(f"matches no file (a folder is read for *.parquet){_others(names, self.url)}")
        elif self.fs.exists(path):
            paths, base = [path], path.rpartition("/")[0]
        elif fsspec.core.has_magic(path):
            paths = [name for name in self.fs.glob(self._pattern(path)) if not self.fs.isdir(name)]
            base = path[: min(path.find(mark) for mark in "*?[" if mark in path)].rpartition("/")[0]
            paths = [name for name in paths if not _is_kept_apart(name, path)]
        else:
            raise self._not_found("does not exist")
        if not paths:
            raise self._not_found("matches no file")
        # The contents of a folder were checked above; the folders above it were not.
        self._refuse_parents([path] if self.folder else [name.rpartition("/")[0] for name in paths])
        return [ManifestFile(name, self._kind(name), _partition(name, base)) for name in sorted(paths)]

    def _pattern(self, path: str) -> str:
        """The glob, with the brackets of folders that exist escaped."""
        parts = path.split("/")
        for end in range(len(parts) - 1, 0, -1):
            folder = "/".join(parts[:end])
            if fsspec.core.has_magic(folder) and self.fs.isdir(folder):
                return "/".join([glob.escape(folder), *parts[end:]])
        return path

    def _refuse_logs(self, names: Iterable[str], base: str) -> None:
        """Raise RefusedError if a folder holds a table with a log, whose files still hold deleted rows."""
        for name in names:
            parts = name[len(base) :].strip("/").split("/")
            for position, part in enumerate(parts[:-1]):
                where = "/".join([base, *parts[:position]])
                if part in _LOGS:
                    raise _with_log(_LOGS[part], where)
                if part == "metadata" and parts[-1].endswith(_ICEBERG) and position == len(parts) - 2:
                    raise _with_log("an Iceberg table", where)

    def _refuse_parents(self, folders: Iterable[str]) -> None:
        """Raise RefusedError if one of these folders, or one above them, is the root of a table with a log."""
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        if protocol in {"http", "https"}:
            return
        chosen = list(dict.fromkeys(folders))[:_FOLDERS]
        above = dict.fromkeys(
            folder.rsplit("/", up)[0] for folder in chosen for up in range(min(_LEVELS, folder.count("/") + 1))
        )
        for folder in filter(None, above):
            for log, kind_of_table in _LOGS.items():
                if self._holds(f"{folder}/{log}"):
                    raise _with_log(kind_of_table, folder)
            if self._holds(f"{folder}/metadata") and self._has_iceberg(folder):
                raise _with_log("an Iceberg table", folder)

    def _holds(self, path: str) -> bool:
        try:
            return bool(self.fs.isdir(path))
        except Exception:  # noqa: BLE001 - who may not look above a file, may read the file
            return False

    def _has_iceberg(self, root: str) -> bool:
        try:
            return any(str(name).endswith(_ICEBERG) for name in self.fs.ls(f"{root}/metadata", detail=False))
        except Exception:  # noqa: BLE001 - the same
            return False

    def _is_parquet(self, path: str) -> bool:
        """Whether a file of a folder is Parquet: by its suffix, or by its first bytes if that says nothing."""
        suffix = _suffix(path)
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix] == "parquet"
        return not _known_other(suffix) and self._head(path).startswith(_PARQUET_MARK)

    def _kind(self, path: str) -> Kind:
        suffix = _suffix(path)
        kind = _SUFFIXES.get(suffix)
        head = self._head(path) if kind != "parquet" else b""
        foreign_format, remedy = next(
            ((foreign_format, remedy) for mark, foreign_format, remedy in _FOREIGN if head.startswith(mark)), ("", "")
        )
        if foreign_format:
            raise RefusedError(
                "manifest_unreadable",
                f"The manifest file {redact(path)} is {foreign_format}, not {FORMATS}.",
                remedy=remedy,
            )
        if kind is None and suffix not in {"", ".parquet"} and head and not head.startswith(_PARQUET_MARK):
            raise RefusedError(
                "manifest_unreadable",
                f"The manifest file {redact(path)} cannot be read as parquet: its name has the ending {suffix}.",
                remedy=f"A manifest is {FORMATS}, whole and with the ending of its format.",
            )
        if kind not in {None, "parquet"} and head.startswith(_PARQUET_MARK):
            return "parquet"
        return kind or "parquet"

    def _head(self, path: str) -> bytes:
        try:
            return bytes(self.fs.cat_file(path, start=0, end=_HEAD))
        except Exception:  # noqa: BLE001 - not every file system reads ranges, or ranges of empty files
            with self.fs.open(path, "rb") as source:
                return bytes(source.read(_HEAD))

    def _not_found(self, problem: str) -> RefusedError:
        return RefusedError(
            "manifest_not_found",
            f"The manifest {self.url} {problem}.",
            remedy="Check the path, and --manifest-storage-option where it lies in object storage.",
        )


def _address(url: str) -> str:
    if url.startswith("file://localhost/"):
        return "file://" + url[len("file://localhost") :]
    return url if "://" in url else str(Path(url).expanduser())


def _suffix(path: str) -> str:
    """The suffix that tells the format; that of the compression is left out (`.csv` of `a.csv.gz`)."""
    name = PurePosixPath(path.lower())
    return PurePosixPath(name.stem).suffix if name.suffix in _COMPRESSED else name.suffix


def _known_other(suffix: str) -> bool:
    return suffix in {".crc", ".txt", ".md", ".jpg", ".jpeg", ".png", ".webp", ".xlsx", ".zip"}


def _is_hidden(inner: str) -> bool:
    """Whether a path inside a folder is hidden or internal (begins with `.` or `_`); `_name=value` is a partition."""
    return any(part.startswith((".", "_")) and "=" not in part for part in inner.strip("/").split("/"))


def _is_kept_apart(path: str, pattern: str) -> bool:
    """Whether a glob matches an internal file such as `_SUCCESS` without naming it."""
    start = path.rpartition("/")[2][:1]
    return start in {".", "_"} and not pattern.rpartition("/")[2].startswith(start)


def _partition(path: str, base: str) -> dict[str, str | None]:
    """The columns that folders named `name=value` below `base` give a file (Hive partitioning)."""
    columns: dict[str, str | None] = {}
    for part in path[len(base) :].split("/")[:-1]:
        name, sign, value = part.partition("=")
        if name and sign:
            columns[unquote(name)] = None if value == _NULL_PARTITION else unquote(value)
    return columns


def _with_log(kind_of_table: str, root: str) -> RefusedError:
    return RefusedError(
        "manifest_table",
        f"{redact(root)} is {kind_of_table}: its files also hold rows that were deleted or changed since.",
        remedy="Export a snapshot of it as Parquet with the program that owns it, and name that.",
    )


def _others(names: Iterable[str], url: str) -> str:
    """A hint for messages: globs that would match the folder's other files."""
    suffixes = sorted({_suffix(name) for name in names if _SUFFIXES.get(_suffix(name), "parquet") != "parquet"})
    globs = ", ".join(f"{url.rstrip('/')}/*{suffix}*" for suffix in suffixes)
    return f"; name its other files with a glob: {globs}" if globs else ""
