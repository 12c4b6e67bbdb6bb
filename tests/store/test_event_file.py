"""Ledger events in an unnamed temporary file."""

import gc
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, events_table
from prefect_imagegen.store.ledger.event_file import EventFile

TIME = datetime(2026, 8, 1, tzinfo=UTC)


def events(*names: str):
    return events_table([Event("claimed", bytes(16), name, "run-1", TIME) for name in names])


def test_parts_come_back_as_written(tmp_path, monkeypatch) -> None:
    """What was written comes back part by part, as often as it is asked for, and has no name in any folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with EventFile() as file:
        for part in (events("a", "b"), EVENT_SCHEMA.empty_table(), events("c")):
            file.write(part)
        assert list(tmp_path.iterdir()) == []
    assert [list(file), list(file)] == [[events("a", "b"), events("c")]] * 2


def test_parts_outlive_the_file() -> None:
    """A part that somebody holds stays readable while others are read, and after all else is gone."""
    with EventFile() as file:
        file.write(events("a"))
        file.write(events("b"))
    first, _ = file
    del file
    gc.collect()
    assert first["attempt_id"].to_pylist() == ["a"]


def test_an_empty_file_has_no_parts() -> None:
    """Nothing written is nothing read."""
    with EventFile() as file:
        pass
    assert list(file) == []


def test_reading_comes_after_writing() -> None:
    """A file that is still being written cannot be read: a part of the events would pass for all of them."""
    with EventFile() as file, pytest.raises(ValueError, match="with"):
        list(file)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_temporary_folder_is_named(monkeypatch) -> None:
    """Where the temporary folder is full, the error says so and what to do."""
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - EventFile closes it
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: full)
    with pytest.raises(StoreError, match="TMPDIR") as raised, EventFile() as file:
        file.write(events("a"))
    assert raised.value.kind == "temporary_folder"


def test_a_missing_temporary_folder_is_named(tmp_path, monkeypatch) -> None:
    """Where the temporary folder is missing, the error says so and what to do."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="TMPDIR"):
        EventFile()
