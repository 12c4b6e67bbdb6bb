"""Atomic, durable writes of local files: the bytes, the name, and the folders above it are all synced to disk."""

import ctypes
import errno
import os
import sys
import tempfile
from pathlib import Path

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.failpoints import hit

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})
"""The errors of file systems without hard links: exFAT, many network drives, folders shared into containers."""
_AT_FDCWD, _NOREPLACE, _EXCLUSIVE = -100, 1, 4
"""Constants of renameat2 (linux/fcntl.h, linux/fs.h) and renamex_np (sys/stdio.h of macOS)."""


def create_file(target: Path, data: bytes, crash_point: str = "") -> bool:
    """Create a file with its whole content; False if it exists already.

    Temporary file, fsync, hard link. Where the file system has no hard links, a rename that never replaces; where it
    has neither, raises StoreError. `crash_point` names the failpoint between the temporary file and the link.
    """
    if target.exists():
        return False
    temporary = _write_temporary(target, data)
    hit(crash_point)
    try:
        _give_name(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return True


def _give_name(temporary: Path, target: Path) -> None:
    """Give the temporary file its name. Raises FileExistsError if the name is taken."""
    try:
        target.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_exclusively(temporary, target, error)


def _rename_exclusively(temporary: Path, target: Path, no_link: OSError) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(temporary), os.fsencode(target)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _NOREPLACE)
    elif sys.platform == "darwin":
        failed = library.renamex_np(*names, _EXCLUSIVE)
    else:
        raise _no_exclusive_names(target) from no_link
    number = ctypes.get_errno()
    if failed and number in _NO_LINKS:
        raise _no_exclusive_names(target) from no_link
    if failed:
        raise OSError(number, os.strerror(number), str(target))


def _no_exclusive_names(target: Path) -> StoreError:
    return StoreError(
        "store_no_create_only",
        f"The file system of {target.parent} has neither hard links nor renames that keep what exists, so nothing "
        "would protect paid images.",
        remedy="Put the store on a file system that has (ext4, XFS, APFS, NTFS, NFS), or into a bucket.",
    )


def replace_file(target: Path, data: bytes) -> None:
    """Write or replace a file atomically: readers see the old content or the new, never a part."""
    temporary = _write_temporary(target, data)
    try:
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _write_temporary(target: Path, data: bytes) -> Path:
    _make_folder(target.parent)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _make_readable(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, do not leave the partial file
        raise
    return temporary


def _make_readable(file: Path) -> None:
    """Make a file readable for everybody, where the file system has permissions."""
    try:
        file.chmod(0o644)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise


def _make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and sync the parent of each folder that was made."""
    missing = []
    for level in (folder, *folder.parents):
        if level.exists():
            break
        missing.append(level)
    folder.mkdir(parents=True, exist_ok=True)
    for level in missing:
        _sync_folder(level.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_LINKS:  # network drives without folder sync make names durable themselves
            raise
    finally:
        os.close(handle)
