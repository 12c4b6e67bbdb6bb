"""Retry without checksums on S3 look-alikes that refuse them.

Since botocore 1.36 every put carries checksum headers (over https a trailer, in aws-chunked framing), and every read
asks for them. Services that do not know them answer 501 or 400.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import fsspec

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.store.errors import refusal_of

T = TypeVar("T")
WHEN_REQUIRED = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
"""botocore settings that leave the checksums out where S3 does not require them."""
_logger = logging.getLogger(__name__)
_refusing: set[tuple[str, str]] = set()
"""Endpoint and bucket of the stores that have refused checksums in this process."""


class ChecksumFallback:
    """Calls one store's file system; on S3, a refused call is tried once more without checksums."""

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self._store = (str(getattr(fs, "endpoint_url", None) or ""), root.lstrip("/").split("/", 1)[0])
        self._url = url
        self._lock = threading.Lock()
        self._kinds_to_try = {True, False} if is_s3(fs) and not _is_set(fs) else set()
        self.fs = without_checksums(fs) if self._kinds_to_try and self._store in _refusing else fs
        """The file system in use: the original, or one without checksums once that has helped."""
        self.opened = [self.fs]
        """All file systems whose connections must be closed at the end."""

    def call(self, call: Callable[[Any], T], *, writing: bool) -> T:
        """The result of `call(file system)`.

        If the store refuses it in a way that checksums may explain, it is called again without them; if that helps,
        all later calls go without.
        """
        fs = self.fs
        try:
            return call(fs)
        except Exception as error:
            if isinstance(error, StoreError) or not refusal_of(error).is_unfit:
                raise
            with self._lock:
                if self.fs is not fs:  # another thread has already switched
                    return call(self.fs)
                if writing not in self._kinds_to_try:
                    raise
                return self._without(call, error, writing=writing)

    def _without(self, call: Callable[[Any], T], refused: Exception, *, writing: bool) -> T:
        plain = without_checksums(self.fs)
        self.opened.append(plain)
        try:
            result = call(plain)
        except Exception as error:
            self._kinds_to_try.discard(writing)
            if isinstance(error, TypeError):
                raise refused from None  # the client is too old to know these settings, so it sends no checksums
            raise
        self.fs = plain
        if self._store not in _refusing:
            _refusing.add(self._store)
            _logger.warning(
                "%s refuses the checksums that S3 clients send with every object (%s): it is used without them.",
                self._url,
                refusal_of(refused),
            )
        return result


def without_checksums(fs: Any) -> Any:
    """A file system with the same options, whose client leaves checksums out."""
    options: dict[str, Any] = dict(fs.storage_options)
    options["config_kwargs"] = {**(options.get("config_kwargs") or {}), **WHEN_REQUIRED}
    return fsspec.filesystem("s3", **{**options, "skip_instance_cache": True})


def is_s3(fs: Any) -> bool:
    """Whether a file system talks to S3 or something like it."""
    return "s3" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,))


def _is_set(fs: Any) -> bool:
    """Whether the user's own options say what to do about checksums."""
    config: Mapping[str, Any] = fs.storage_options.get("config_kwargs") or {}
    return "request_checksum_calculation" in config
