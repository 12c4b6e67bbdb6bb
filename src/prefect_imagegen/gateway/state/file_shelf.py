"""Folders of files with a limit of age and bytes: outputs and uploads."""

import re
from collections import OrderedDict
from pathlib import Path

OUTPUT_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[a-z]{3,4}")
UPLOAD_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")


class Shelf:
    """The files of one folder, oldest first; removes those beyond an age or a total of bytes. For one event loop.

    Files that an earlier process left in the folder count too, if their names match `names`.
    """

    def __init__(self, folder: Path, max_bytes: int, max_age_s: float | None, names: re.Pattern[str]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._files: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.bytes = 0
        existing = [path for path in folder.glob("*") if names.fullmatch(path.name) and path.is_file()]
        for path in sorted(existing, key=lambda path: path.stat().st_mtime):
            self._files[path.name] = (path.stat().st_size, path.stat().st_mtime)
            self.bytes += path.stat().st_size

    def put(self, name: str, size: int, at: float) -> None:
        """Note a written file, and remove the oldest ones beyond the limits, but never this one."""
        self.bytes += size - self._files.pop(name, (0, 0.0))[0]
        self._files[name] = (size, at)
        while len(self._files) > 1 and self._is_over_limit(at):
            oldest, (length, _) = self._files.popitem(last=False)
            self.bytes -= length
            (self._folder / oldest).unlink(missing_ok=True)

    def _is_over_limit(self, now: float) -> bool:
        _, at = next(iter(self._files.values()))
        return self.bytes > self._max_bytes or (self._max_age_s is not None and now - at >= self._max_age_s)
