"""Local files, written whole and durably or not at all: the bytes, the name, and the folders that lead to it."""

import os
import tempfile
from pathlib import Path

from prefect_imagegen.crashpoints import reached


def create_file(target: Path, data: bytes, crash_point: str = "") -> bool:
    """Temporary file, fsync, hard link: the name appears with its whole content, or not at all."""
    if target.exists():
        return False
    temporary = _write_temporary(target, data)
    reached(crash_point)
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_folder(target.parent)
    return True


def replace_file(target: Path, data: bytes) -> None:
    """Write or replace a file: readers see the old content or the new, never a part."""
    _write_temporary(target, data).replace(target)
    _sync_folder(target.parent)


def _write_temporary(target: Path, data: bytes) -> Path:
    _make_folder(target.parent)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary = Path(name)
    temporary.chmod(0o644)
    return temporary


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; each one that was not there is made durable in the one that holds it."""
    missing = []
    for one in (folder, *folder.parents):
        if one.exists():
            break
        missing.append(one)
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        _sync_folder(one.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
