"""Manifests in memory and in S3, and places where nothing can be read."""

import secrets

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.inputs.manifests.conftest import TABLE, parquet, read, refusal


def test_a_manifest_in_memory() -> None:
    """A manifest may lie in any file system that fsspec knows."""
    fs, name = fsspec.filesystem("memory"), secrets.token_hex(6)
    with fs.open(f"/{name}/m.parquet", "wb") as file:
        pq.write_table(TABLE, file)
    assert read(f"memory://{name}/m.parquet").equals(TABLE)
    assert read(f"memory://{name}").equals(TABLE)


@pytest.mark.s3
def test_a_manifest_in_s3(s3, tmp_path) -> None:
    """A manifest in S3 is read as a file, a folder and a glob; what is missing there is named."""
    url = s3.url()
    fs = fsspec.filesystem("s3", **s3.options)
    for n in range(2):
        fs.put_file(str(parquet(tmp_path / f"{n}.parquet", pa.table({"prompt": [f"{n}"]}))), f"{url}/in/{n}.parquet")
    assert read(f"{url}/in/1.parquet", **s3.options)["prompt"].to_pylist() == ["1"]
    for many in (f"{url}/in", f"{url}/in/", f"{url}/in/*.parquet"):
        assert read(many, **s3.options)["prompt"].to_pylist() == ["0", "1"]
    error = refusal(f"{url}/in/9.parquet", **s3.options)
    assert (error.kind, f"{url}/in/9.parquet" in error.message) == ("manifest_not_found", True)
    wrong = refusal(f"{url}/in/1.parquet", **{**s3.options, "secret": "wrong-secret"})
    assert wrong.kind == "manifest_not_found"
    assert "--manifest-storage-option" in wrong.remedy
    assert "wrong-secret" not in str(wrong)


@pytest.mark.parametrize("name", ["m.parquet", "folder/m.csv", "p-*.parquet"])
def test_a_missing_manifest_is_named(tmp_path, name) -> None:
    """A manifest that is not there is said by its path."""
    error = refusal(tmp_path / name)
    assert error.kind == "manifest_not_found"
    assert str(tmp_path / name) in error.message
    assert "Check the path" in error.remedy


def test_a_folder_without_parquet_is_named(tmp_path) -> None:
    """A folder that holds no Parquet file is said, with what a folder is read for."""
    (tmp_path / "m.csv").write_text("prompt\na\n")
    error = refusal(tmp_path)
    assert error.kind == "manifest_not_found"
    assert "*.parquet" in error.message


@pytest.mark.parametrize("url", ["nonsense://x/m.parquet", "gs://bucket/m.parquet"])
def test_an_unknown_place_is_named(url) -> None:
    """A protocol that nobody knows, or whose package is missing, is said."""
    error = refusal(url)
    assert error.kind == "manifest_not_found"
    assert url in error.message


def test_a_signed_address_is_not_repeated() -> None:
    """The query of a manifest's address is no part of the message."""
    assert "SECRETPART" not in str(refusal("memory://nowhere/https://x/m.parquet?sig=SECRETPART"))


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_a_manifest_without_rows_is_said(tmp_path, name) -> None:
    """A manifest that has columns but no row is said to have none."""
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, TABLE.slice(0, 0))
    else:
        path.write_text({"m.csv": "prompt,seed\n", "m.jsonl": "\n"}[name])
    error = refusal(path)
    assert error.kind in {"manifest_empty", "manifest_unreadable"}
    assert str(path) in error.message


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_an_empty_file_is_said(tmp_path, name) -> None:
    """A file of zero bytes is said by its name."""
    path = tmp_path / name
    path.write_bytes(b"")
    error = refusal(path)
    assert error.kind in {"manifest_empty", "manifest_unreadable"}
    assert str(path) in error.message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.parquet", b"prompt\na red cup\n"),
        ("m.parquet", b"PAR1" + bytes(100)),
        ("m.parquet", bytes(5000)),
        ("m", b"prompt\na red cup\n"),
        ("m.txt", b"a red cup\n"),
        ("m.parquet.csv", b"PAR1" + bytes(100)),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, data) -> None:
    """A file that is not of its format, or broken inside, is said by its name, with its format and all formats."""
    path = tmp_path / name
    path.write_bytes(data)
    error = refusal(path)
    assert error.kind == "manifest_unreadable"
    assert str(path) in error.message
    assert "as parquet" in error.message
    assert "Parquet (.parquet), CSV (.csv) or JSON lines (.jsonl)" in error.remedy


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_parquet_file_is_named(tmp_path, share) -> None:
    """A Parquet file that ends early is said by its name, among whole ones too."""
    parquet(tmp_path / "a.parquet")
    path = parquet(tmp_path / "b.parquet", pa.table({"prompt": [f"{n}" * 9 for n in range(1000)]}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for url in (path, tmp_path):
        error = refusal(url)
        assert error.kind == "manifest_unreadable"
        assert "b.parquet" in error.message


def test_damaged_pages_are_named(tmp_path) -> None:
    """A Parquet file whose footer is whole but whose pages are not is said by its name."""
    path = parquet(tmp_path / "m.parquet", pa.table({"prompt": [f"{n}" * 9 for n in range(1000)]}), compression="zstd")
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    path.write_bytes(bytes(data))
    assert "m.parquet" in refusal(path).message
