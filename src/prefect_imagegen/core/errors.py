"""The errors of this package. Each carries data, names the cause and the remedy, and holds no secret."""


class ImagegenError(Exception):
    """An error that a user can act on: `message` names the cause, `remedy` says what to do.

    `kind` is a stable identifier (an error kind of the metadata, or a refusal such as `store_not_found`).
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
    """The store could not be read or written; the message names the path and the store's own error."""


class ProviderError(ImagegenError):
    """A call to a provider failed. Its `kind` is a row of `core.policy.outcomes.OUTCOMES`, which says what follows.

    `status` is the HTTP status if an answer came; `retry_after` is in seconds; `request_id` is the provider's own name
    of the call, if known; `cost_usd` is the cost of the failed call, if the answer names one.
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
