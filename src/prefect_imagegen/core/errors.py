"""The one family of errors: each carries data, names the culprit and the remedy, and holds no secret."""


class ImagegenError(Exception):
    """Something that a user can act on: `message` names the culprit, `remedy` says what to do.

    `kind` is a stable machine word (an error kind of metadata, or a refusal such as `store_not_found`).
    The message never holds a key, a token or a signed URL.
    """

    def __init__(self, kind: str, message: str, *, remedy: str = "") -> None:
        self.kind = kind
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message} {remedy}".strip())


class RefusedError(ImagegenError):
    """Refused before any call: a bad manifest, configuration, store or credential (exit code 2)."""


class StoreError(ImagegenError):
    """The store could not be read or written; the culprit is the path and the store's own word."""


class ProviderError(ImagegenError):
    """One call to a backend went wrong. What it means is a row of `core.outcomes.OUTCOMES`, found by `kind`.

    `status` is the HTTP status if an answer came; `retry_after` is in seconds; `request_id` is the backend's own
    name of the call, where it became known; `cost_usd` is what the call cost all the same, where the answer says so.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
        cost_usd: float | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(kind, message, remedy=remedy)
        self.status = status
        self.cost_usd = cost_usd
        self.retry_after = retry_after
        self.request_id = request_id
