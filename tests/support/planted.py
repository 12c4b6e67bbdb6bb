"""Secrets that a test plants in every entrance, and the search that finds them wherever they come out again."""

import base64
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PLANTED: Mapping[str, str] = {
    "the API key": "apikey/plant+0001==",
    "the signature of a manifest": "manifest-plant-0002",
    "an option": "option/plant+0003",
    "a nested option": "nested-plant-0004",
    "an Amazon signature": "amzsig-plant-0005",
    "a Google signature": "googsig-plant-0006",
    "an Azure signature": "azsig%2Fplant-0007",
    "an access token": "token-plant-0008",
    "the password of a proxy": "proxy-plant-0009",
    "an echoed signature": "echoed-plant-0010",
    "an echoed password": "echoed@plant-0011",
    "the key of a pool": "pool/plant+0012==",
    "the key of a worker": "worker-plant-0013",
}
"""Each secret by its entrance. No two share a part of eight characters or more."""
KEY = PLANTED["the API key"]

SIGNED = (
    f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={PLANTED['an Amazon signature']}",
    f"?X-Goog-Signature={PLANTED['a Google signature']}",
    f"?sv=2024&se=2030&sp=r&sig={PLANTED['an Azure signature']}",
    f"?access_token={PLANTED['an access token']}",
)
"""The queries of signed references, as clouds write them."""

ECHO = (
    f"bad call: x-api-key: {KEY}, Authorization: Bearer {KEY}, encoded {quote(KEY, safe='')}"
    f" or {base64.b64encode(KEY.encode()).decode()}; see https://h/a?sig={PLANTED['an echoed signature']}"
    f" and ftp://me:{PLANTED['an echoed password']}@h/a"
)
"""What a server says that repeats all that it was sent."""
ENVIRONMENT = {
    "SEGMIND_API_KEY": KEY,
    "HTTPS_PROXY": f"http://me:{PLANTED['the password of a proxy']}@127.0.0.1:9",
    "PLANTED_OPTION": PLANTED["an option"],
    "PLANTED_NESTED": PLANTED["a nested option"],
    "PREFECT_IMAGEGEN_POOL_API_KEY": PLANTED["the key of a pool"],
    "PLANTED_WORKER": PLANTED["the key of a worker"],
}
"""The environment of whoever runs the command."""


def spellings(secret: str) -> set[bytes]:
    """A secret as it is, percent-encoded, in JSON, and in base64 at each offset at which it may begin there."""
    raw = secret.encode()
    plain = {raw, quote(secret, safe="").encode(), json.dumps(secret).strip('"').encode(), raw.hex().encode()}
    coded = {base64.b64encode(b"\0" * shift + raw)[shift + 2 : -4] for shift in range(3)}
    return plain | coded | {text.replace(b"+", b"-").replace(b"/", b"_") for text in coded}


def leaks(sources: Iterable[tuple[str, bytes]], secrets: Mapping[str, str] = PLANTED) -> list[str]:
    """Each secret that stands in one of the named sources, and in which."""
    wanted = {name: spellings(secret) for name, secret in secrets.items()}
    return [
        f"{name} in {place}"
        for place, data in sources
        for name, texts in wanted.items()
        if any(text in data for text in texts)
    ]


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and what its compression hides: values and metadata of Parquet, texts of pictures, streams."""
    yield name, data
    if data[:4] == b"PAR1":
        file = pq.ParquetFile(pa.BufferReader(data))
        yield f"the values of {name}", repr(file.read().to_pylist()).encode()
        yield f"the metadata of {name}", repr((file.metadata.metadata, file.schema_arrow.metadata)).encode()
    elif data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff" or data[8:12] == b"WEBP":
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            yield f"the texts of {name}", repr((picture.info, dict(picture.getexif()))).encode()
    elif data[:2] == b"\x1f\x8b":
        yield f"the stream of {name}", zlib.decompress(data, 31)


def files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Everything below a folder: a store, the home of Prefect with its database, logs."""
    for path in sorted(folder.rglob("*")):
        yield f"the name of {path.name}", str(path.relative_to(folder)).encode()
        if path.is_file():
            yield from contents(str(path.relative_to(folder)), path.read_bytes())


def objects_of(fs: Any, root: str) -> Iterator[tuple[str, bytes]]:
    """Every object below a prefix of a bucket."""
    for path in fs.find(root):
        yield f"the name {path}", path.encode()
        yield from contents(path, fs.cat_file(path))


def command_lines(parent: int) -> list[tuple[str, bytes]]:
    """The command lines of a process's descendants, but not its own, which its user wrote."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    family = {parent}
    while grown := {child for child, its in parents.items() if its in family} - family:
        family |= grown
    found = []
    for child in sorted(family - {parent}):
        try:
            found.append((f"the command line of {child}", Path(f"/proc/{child}/cmdline").read_bytes()))
        except OSError:
            continue
    return found


class PictureHost:
    """A web server that gives a manifest, and pictures to whoever brings the right query."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                data = host.files.get(path) if "plant" in query else None
                self.send_response(200 if data is not None else 403)
                body = data if data is not None else f"refused: {self.path} {ECHO}".encode()
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def table(self) -> pa.Table:
        """Rows with a signed reference each, and one whose call the API refuses."""
        cells: list[list[str]] = []
        for number, query in enumerate(SIGNED):
            sink = io.BytesIO()
            Image.new("RGB", (96, 96), (40 * number, 90, 90)).save(sink, "PNG")
            self.files[f"/{number}.png"] = sink.getvalue()
            cells.append([f"{self.url}/{number}.png{query}"])
        prompts = [*(f"edit {number}" for number in range(len(cells))), "forbidden"]
        return pa.table({"prompt": prompts, "image_urls": pa.array([*cells, []], pa.list_(pa.string()))})

    def manifest(self) -> str:
        """The address of that table, with a signature."""
        sink = io.BytesIO()
        pq.write_table(self.table(), sink)
        self.files["/rows.parquet"] = sink.getvalue()
        return f"{self.url}/rows.parquet?X-Amz-Signature={PLANTED['the signature of a manifest']}"
