"""Local files, written whole and durably or not at all."""

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
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary = Path(name)
    temporary.chmod(0o644)
    return temporary


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
