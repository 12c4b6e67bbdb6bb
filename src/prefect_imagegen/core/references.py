"""Reference images: where they lie, and whether they can be sent in the way that the user asks for. Pure."""

import posixpath
import re
from typing import Literal
from urllib.parse import urljoin, urlsplit

from prefect_imagegen.core.reference_pictures import ReferenceFacts

ReferenceTransport = Literal["auto", "presign", "upload", "data-url"]
OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_ONE_NAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
WEB_SCHEMES = frozenset({"http", "https"})
_SIGNED = re.compile(r"(^|[?&])(x-amz-|x-goog-|sig=|signature=|awsaccesskeyid=|token=|se=.*&sp=)", re.IGNORECASE)


class BadReferenceError(ValueError):
    """A reference cannot be used; the message says why, for people."""


def locate(value: str, base: str) -> str:
    """The URI of a reference as the manifest spells it; `base` is the folder of the manifest, as a URI.

    Raises BadReferenceError.
    """
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        raise BadReferenceError("it is no valid URL") from None
    if "://" not in value:
        if parts.scheme == "data":
            raise BadReferenceError("image data does not belong into a manifest; give an address or a path")
        return _below(value, base)
    if parts.scheme not in WEB_SCHEMES | OBJECT_SCHEMES | {"file"}:
        raise BadReferenceError(
            f"{parts.scheme} is not supported; a reference is an http(s), s3, gs, az or file URL, or a path relative to"
            " the manifest"
        )
    if parts.scheme in WEB_SCHEMES and not host:
        raise BadReferenceError("the URL names no host")
    if parts.username is not None:
        raise BadReferenceError("a reference URL must not hold a user name or password")
    if parts.scheme in OBJECT_SCHEMES and is_signed(value):
        raise BadReferenceError("credentials do not belong into a reference; use --reference-storage-option")
    return value


def family(url: str) -> str:
    """The one name of a URL's file system: `s3`, `gs`, `az`, `file`, `http`, ..."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    return _ONE_NAME.get(scheme, scheme)


def is_web(uri: str) -> bool:
    """Whether it is an http(s) URL, and not in a bucket or on a disk."""
    return uri.partition("://")[0] in WEB_SCHEMES


def is_signed(uri: str) -> bool:
    """Whether the URL holds a signature: it opens the door, and it differs each time."""
    return "?" in uri and bool(_SIGNED.search("?" + uri.partition("?")[2]))


def shown(uri: str) -> str:
    """The URI as metadata may hold it: that of a web page without its query."""
    return uri.partition("?")[0].partition("#")[0] if is_web(uri) else uri


def unfit(uri: str, facts: ReferenceFacts | None, transport: ReferenceTransport) -> str | None:
    """Why a reference cannot be sent in the way that the user asks for; None where it can, or nothing is known."""
    if transport == "presign" and uri.startswith("file://"):
        return "a file of this machine cannot be presigned; use --reference-transport auto, upload or data-url"
    if facts is None:
        return None
    if facts.changes and transport == "presign":
        what = " and ".join(facts.changes)
        return f"it has to be {what}, and --reference-transport presign sends it as it is; use auto"
    return facts.problem


def _below(path: str, base: str) -> str:
    if path.startswith("/"):
        return f"file://{path}"
    if is_web(base):
        return urljoin(f"{base}/", path)
    scheme, _, folder = base.partition("://")
    whole = posixpath.normpath(f"{folder}/{path}")
    if whole.startswith("..") or (scheme != "file" and "/" not in whole):
        raise BadReferenceError(f"the path leads out of {base}")
    return f"{scheme}://{whole}"
