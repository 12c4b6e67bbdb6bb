"""Translate the exceptions of all file systems into `StoreError`, each with its kind and remedy.

Codes of S3 and its kin: docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and what look-alikes answer.
"""

import errno
from dataclasses import dataclass

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.redact import redact

_ABSENT = frozenset({"NoSuchBucket", "404"})
_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401"})
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
_ELSEWHERE = frozenset(
    {
        *("PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "302", "307", "308"),
        *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    }
)
_FULL = frozenset({"QuotaExceeded", "QuotaExceededException", "InsufficientStorage", "XMinioStorageFull", "507"})
_BUSY = frozenset(
    {
        *("SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded"),
        *("Throttling", "ThrottlingException", "503", "429", "ConditionalRequestConflict", "OperationAborted"),
    }
)
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"})
_PRECONDITION = frozenset({"PreconditionFailed", "412"})
_UNFIT = frozenset(
    {
        *("NotImplemented", "InvalidRequest", "InvalidArgument", "XAmzContentSHA256Mismatch", "MissingContentLength"),
        *("XAmzContentChecksumMismatch", "InvalidDigest", "BadDigest", "IncompleteBody", "MalformedTrailerError"),
        *("SignatureDoesNotMatch", "AuthorizationHeaderMalformed", "400", "411", "501"),
    }
)
"""The codes with which S3 look-alikes answer a header or a body that they do not know."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A service's error answer: HTTP status (0: none), error code and message; all empty if no service answered."""

    status: int = 0
    code: str = ""
    words: str = ""

    def __str__(self) -> str:
        parts = [str(self.status or ""), "" if self.code == str(self.status) else self.code]
        text = " ".join(part for part in parts if part)
        return redact(f"{text}: {self.words}" if self.words not in ("", self.code) else text).rstrip(".")

    @property
    def is_conflict(self) -> bool:
        """Whether a create-only put met another writer at the same time, which may yet fail.

        So the object need not exist, and the put may be tried again.
        """
        return self.code == "ConditionalRequestConflict"

    @property
    def is_unfit(self) -> bool:
        """Whether the service may have refused a header or a framing that it does not know."""
        return self.code in _UNFIT or self.status in (411, 501)


def refusal_of(error: BaseException) -> Refusal:
    """The service's answer in an exception: that of the first exception of its chain that carries a response."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            details = response.get("Error", {})
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return Refusal(int(status), str(details.get("Code", "")), str(details.get("Message", "")))
    return Refusal()


def is_precondition_failed(error: BaseException) -> bool:
    """Whether a create-only put was refused because the object exists."""
    return isinstance(error, FileExistsError) or refusal_of(error).code in _PRECONDITION


def no_create_only(url: str, refusal: Refusal) -> StoreError:
    """The error for a store that takes plain puts and refuses create-only ones."""
    return StoreError(
        "store_no_create_only",
        f"{url} does not take create-only puts: it takes a put, and answers {refusal} to the same put with "
        "If-None-Match.",
        remedy="Use a store with conditional puts (S3, R2, MinIO, GCS, Azure), or a local path; "
        "see docs/guides/stores.md.",
    )


def store_error(url: str, path: str, error: Exception, *, writing: bool) -> StoreError:
    """The `StoreError` for an exception that an operation on `path` of the store at `url` raised."""
    where = f"{url} ({path})" if path else url
    refusal, number = refusal_of(error), error.errno if isinstance(error, OSError) else None
    return (
        _location_error(url, where, error, refusal)
        or _access_error(url, where, error, refusal, number, writing=writing)
        or _capacity_error(url, where, refusal, number)
        or _other_error(where, error, refusal, number, writing=writing)
    )


def _location_error(url: str, where: str, error: Exception, refusal: Refusal) -> StoreError | None:
    if refusal.code in _ABSENT or isinstance(error, FileNotFoundError):
        return StoreError(
            "store_not_found",
            f"The bucket or folder of {where} does not exist.",
            remedy="Create it, or correct --store.",
        )
    # botocore recurses for ever if a redirect names no region.
    if refusal.code in _ELSEWHERE or refusal.status in (301, 302, 307, 308) or isinstance(error, RecursionError):
        answer = str(refusal) or "its redirects name no region"
        return StoreError(
            "store_region",
            f"{url} is in another region, or at another endpoint, than the one that was asked ({answer}).",
            remedy="""Set --storage-option 'client_kwargs={"region_name": "..."}', or correct """
            "--storage-option endpoint_url=...",
        )
    return None


def _access_error(
    url: str, where: str, error: Exception, refusal: Refusal, number: int | None, *, writing: bool
) -> StoreError | None:
    text = redact(f"{type(error).__name__} {error}").rstrip(".")
    if refusal.code in _CLOCK:
        return StoreError(
            "store_clock",
            f"{url} refuses what this machine signs, for their clocks differ ({refusal}).",
            remedy="Set this machine's clock right (NTP).",
        )
    if refusal.code in _CREDENTIALS or "Credentials" in text.partition(" ")[0]:
        return StoreError(
            "store_auth",
            f"{url} does not accept the credentials: {text}.",
            remedy="Set them in the environment, with --storage-option key=env:NAME, or in an ImageStore block.",
        )
    if refusal.code in _FULL:
        return None
    is_local = isinstance(error, PermissionError) and not refusal.code
    if is_local or refusal.code in _DENIED or refusal.status == 403 or number == errno.EROFS:
        return _denied(where, refusal, writing=writing)
    return None


def _denied(where: str, refusal: Refusal, *, writing: bool) -> StoreError:
    if writing:
        return StoreError(
            "store_read_only",
            f"{where} cannot be written: permission denied.",
            remedy="Check the credentials and their rights to read, write and list, or choose another --store.",
        )
    absent = " (S3 says so, too, of an object that is not there, where the credentials may not list)"
    return StoreError(
        "store_auth",
        f"{where} cannot be read: permission denied{absent if refusal.status == 403 else ''}.",
        remedy="Check the credentials and their rights to read, write and list, or choose another --store.",
    )


def _capacity_error(url: str, where: str, refusal: Refusal, number: int | None) -> StoreError | None:
    if refusal.code in _FULL or number in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            "store_full",
            f"{where} cannot be written: there is no room left" + (f" ({refusal})." if refusal.code else "."),
            remedy="Make room or raise the quota, then run the same command again.",
        )
    if refusal.code in _BUSY or refusal.status in (429, 503):
        return StoreError(
            "store_busy",
            f"{url} cannot do it now: it is overloaded, or busy with the same object ({refusal}).",
            remedy="Run the same command again later, or with a lower --max-in-flight.",
        )
    if refusal.code == "KeyTooLongError" or number == errno.ENAMETOOLONG:
        return StoreError(
            "store_name_too_long",
            f"The name of {where} is too long for the store.",
            remedy="Choose a --store with a shorter path.",
        )
    return None


def _other_error(where: str, error: Exception, refusal: Refusal, number: int | None, *, writing: bool) -> StoreError:
    action = "written" if writing else "read"
    if 400 <= refusal.status < 500 or refusal.status == 501 or (refusal.code and not refusal.status):
        return StoreError(
            "store_refused",
            f"{where} cannot be {action}: the store answers {refusal}.",
            remedy="See docs/guides/stores.md for what is needed; `prefect-imagegen doctor --deep` tries it all.",
        )
    if refusal.status:
        return StoreError(
            "store_unreachable",
            f"{where} cannot be {action}: the store answers {refusal}.",
            remedy="Look at the store's own status, then run the same command again.",
        )
    text = redact(f"{type(error).__name__} {error}").rstrip(".")
    if type(error).__name__ == "FlexibleChecksumError":
        return StoreError(
            "store_altered",
            f"{where} came with other bytes than the store's own checksum says ({text}).",
            remedy="Run the same command again; if it stays so, the object or what lies between is damaged.",
        )
    if number is not None and not isinstance(error, ConnectionError | TimeoutError):
        return StoreError(
            "store_unreachable",
            f"{where} cannot be {action}: {text}.",
            remedy="Check the folder and its disk, or the address, the network and --storage-option endpoint_url.",
        )
    return StoreError(
        "store_unreachable",
        f"{where} cannot be {action}: {text}.",
        remedy="Check the address, the network and --storage-option endpoint_url.",
    )


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain
