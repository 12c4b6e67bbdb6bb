"""A store of each kind: local files, memory and a real S3 server."""

import secrets
from collections.abc import Iterator

import pytest

from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store

KINDS = ["local", "memory", pytest.param("s3", marks=pytest.mark.s3)]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def root(kind, request, tmp_path) -> tuple[str, dict]:
    """Address and options of a fresh, empty root."""
    if kind == "local":
        return str(tmp_path / "new" / "store"), {}
    if kind == "memory":
        return f"memory://{secrets.token_hex(6)}/store", {}
    s3 = request.getfixturevalue("s3")
    return s3.url(), dict(s3.options)


@pytest.fixture
def opened() -> Iterator[list[FsspecObjectStore]]:
    """Stores that are closed at the end of a test."""
    stores: list[FsspecObjectStore] = []
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def store(root, opened) -> FsspecObjectStore:
    opened.append(open_object_store(*root))
    return opened[-1]


@pytest.fixture
def twin(root, opened) -> FsspecObjectStore:
    """A second store object over the same root, as another process has it."""
    opened.append(open_object_store(*root))
    return opened[-1]
