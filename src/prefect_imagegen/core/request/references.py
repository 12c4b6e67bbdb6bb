"""Addresses of reference images: resolving them, signatures, and whether they can be sent as the user asks. Pure."""

import hashlib
import posixpath
import re
from urllib.parse import SplitResult, urljoin, urlsplit

from prefect_imagegen.core.choices import CheckReferences, ReferenceTransport
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts

OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_ONE_NAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
WEB_SCHEMES = frozenset({"http", "https"})
_SIGNED = re.compile(
    r"[?&](x-(amz|goog|oss|cos|bce|ms)-|q-sign|sig=|signature=|awsaccesskeyid=|ossaccesskeyid=|googleaccessid=|"
    r"([a-z_]*[_-])?token=|api_?key=|auth(_?key|orization)?=|jwt=|hmac=|credentials?=|passw(or)?d=|secret=)",
    re.IGNORECASE,
)
"""Query parameters of signed URLs, as clouds and CDNs write them."""
_SIGNED_BY_TWO = (
    (re.compile("[?&]se=", re.IGNORECASE), "&sp="),
    (re.compile("[?&]policy=", re.IGNORECASE), "&key-pair-id="),
)
"""Pairs of query parameters that make a signed URL together, the second anywhere after the first."""
_ESCAPED = re.compile("&(?:(?:amp|#38|#x26);)+", re.IGNORECASE)
_NO_SCHEME = re.compile(r"//[^/\s]+\.[A-Za-z]{2,}(?::\d+)?/")
_LONGEST_LABEL, _LONGEST_HOST = 63, 253
_SAMPLED_OF = 10


class BadReferenceError(ValueError):
    """A reference cannot be used; the message says why, for people."""


class BusyReason(str):
    """The reason why a reference could not be read for now; nothing says that it is wrong."""

    __slots__ = ()


def locate(value: str, base: str, *, allow_local: bool = False) -> str:
    """The URI of a reference as the manifest spells it; `base` is the folder of the manifest, as a URI.

    An address stays as it is, byte for byte, but for a scheme in capitals; one without its scheme (`//host/a.png`) is
    an https one. A path stays at the manifest's host, or in its bucket. Files of this machine are for manifests of this
    machine (base `file://`, or none), unless `allow_local`: who writes a manifest somewhere else need not be somebody
    who may read them. Raises BadReferenceError.
    """
    uri = _located(value, base)
    if uri.startswith("file://") and family(base) != "file" and not allow_local:
        raise BadReferenceError(
            "it is a file of this machine, and the manifest is not; a manifest of your own may name such files with"
            " --allow-local-references"
        )
    return uri


def _located(value: str, base: str) -> str:
    value = f"https:{value}" if _NO_SCHEME.match(value) else value
    try:
        parts = urlsplit(value)
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
    if parts.scheme in WEB_SCHEMES:
        _check_host(parts)
    if parts.username is not None:
        raise BadReferenceError("a reference URL must not hold a user name or password")
    if parts.scheme in OBJECT_SCHEMES and is_signed(value):
        raise BadReferenceError("credentials do not belong into a reference; use --reference-storage-option")
    scheme, separator, rest = value.partition("://")
    if scheme.lower() != parts.scheme:
        raise BadReferenceError("it is no valid URL")
    return f"{parts.scheme}{separator}{rest}"


def unescaped(uri: str) -> str:
    """A web address with `&` for `&amp;`, as in addresses copied from HTML.

    This form is fetched and sent; the identity of a request uses the address as it was written.
    """
    return _ESCAPED.sub("&", uri) if is_web(uri) else uri


def family(url: str) -> str:
    """The name of a URL's file system: `s3`, `gs`, `az`, `file`, `http`, ..."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    return _ONE_NAME.get(scheme, scheme)


def is_web(uri: str) -> bool:
    """Whether a reference is an http(s) URL, not an object in a bucket or a file."""
    return uri.partition("://")[0] in WEB_SCHEMES


def is_signed(uri: str) -> bool:
    """Whether the URL holds a signature or another secret; a signature differs at every signing."""
    if "?" not in uri:
        return False
    query = "?" + _ESCAPED.sub("&", uri.partition("?")[2])
    return _SIGNED.search(query) is not None or any(_has_both(query, *names) for names in _SIGNED_BY_TWO)


def shown(uri: str) -> str:
    """The URI as metadata may hold it: an http(s) URL without its query and fragment."""
    return uri.partition("?")[0].partition("#")[0] if is_web(uri) else uri


def is_looked_at(uri: str, check: CheckReferences) -> bool:
    """Whether a reference is checked before it is sent (--check-references); the sample is the same each time."""
    if check == "sample":
        return hashlib.sha256(uri.encode()).digest()[0] % _SAMPLED_OF == 0
    return check == "all"


def unfit(uri: str, facts: ReferenceFacts | None, transport: ReferenceTransport) -> str | None:
    """Why a reference cannot be sent by the transport that the user asks for; None if it can, or nothing is known."""
    if transport == "presign" and uri.startswith("file://"):
        return "a file of this machine cannot be presigned; use --reference-transport auto, upload or data-url"
    if facts is None:
        return None
    if facts.changes and transport == "presign":
        changes = " and ".join(facts.changes)
        return f"it has to be {changes}, and --reference-transport presign sends it as it is; use auto"
    return facts.problem


def _has_both(query: str, first: re.Pattern[str], second: str) -> bool:
    match = first.search(query)
    return match is not None and second in query[match.end() :].lower()


def _check_host(parts: SplitResult) -> None:
    """Refuse a host that no name service can be asked for, and a port that no machine has."""
    host = parts.hostname
    if not host:
        raise BadReferenceError("the URL names no host")
    labels = host.removesuffix(".").split(".")
    if len(host) > _LONGEST_HOST or any(not 0 < len(label) <= _LONGEST_LABEL for label in labels):
        raise BadReferenceError("its host has a part that is empty or too long (63 characters are the most)")
    try:
        parts.port  # noqa: B018 - reading it is the check
    except ValueError:
        raise BadReferenceError("its port is no number from 0 to 65535") from None


def _below(path: str, base: str) -> str:
    if is_web(base):
        return _at_host(path, base)
    if path.startswith("/"):
        return f"file://{path}"
    scheme, _, folder = base.partition("://")
    whole = posixpath.normpath(f"{folder}/{path}")
    bucket, _, inner = whole.partition("/")
    if whole.startswith("..") or (scheme != "file" and (not inner or bucket != folder.partition("/")[0])):
        raise BadReferenceError(f"the path leads out of {base}")
    return f"{scheme}://{whole}"


def _at_host(path: str, base: str) -> str:
    """The address that a path has for a manifest of the web: one of the same host."""
    uri = urljoin(f"{base}/", path)
    if urlsplit(uri)[:2] != urlsplit(base)[:2]:
        raise BadReferenceError(f"the path leads out of {base}")
    return uri
