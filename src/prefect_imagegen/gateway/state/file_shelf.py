"""Files that are kept for a time, within so many bytes: outputs and uploads."""

import re
from collections import OrderedDict
from pathlib import Path

OUTPUT_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[a-z]{3,4}")
UPLOAD_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")


class Shelf:
    """The files of one folder, oldest first. Removes what is too old, or too much; one event loop uses it.

    What an earlier process left in the folder counts too, as far as it has `names` as ours have.
    """

    def __init__(self, folder: Path, max_bytes: int, max_age_s: float | None, names: re.Pattern[str]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._files: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.bytes = 0
        left = [path for path in folder.glob("*") if names.fullmatch(path.name) and path.is_file()]
        for path in sorted(left, key=lambda path: path.stat().st_mtime):
            self._files[path.name] = (path.stat().st_size, path.stat().st_mtime)
            self.bytes += path.stat().st_size

    def put(self, name: str, size: int, at: float) -> None:
        """A file was written; what is too much now is removed, that file excepted."""
        self.bytes += size - self._files.pop(name, (0, 0.0))[0]
        self._files[name] = (size, at)
        while len(self._files) > 1 and self._is_too_much(at):
            oldest, (length, _) = self._files.popitem(last=False)
            self.bytes -= length
            (self._folder / oldest).unlink(missing_ok=True)

    def _is_too_much(self, now: float) -> bool:
        _, at = next(iter(self._files.values()))
        return self.bytes > self._max_bytes or (self._max_age_s is not None and now - at >= self._max_age_s)
