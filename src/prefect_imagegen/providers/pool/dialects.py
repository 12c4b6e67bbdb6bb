"""The protocols of GPU workers, and how a worker is named: `DIALECT+URL[#limit=N&key=env:NAME]`."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Balance, Delivery, Health, Submission
from prefect_imagegen.providers.entry import is_web_address
from prefect_imagegen.providers.pool.openai_images import OpenAIImages
from prefect_imagegen.providers.segmind.provider import Endpoints, SegmindProvider

_ENDPOINT = re.compile(r"^(?P<dialect>[a-z]+)\+(?P<url>https?://[^\s#]+)(?:#(?P<own>\S*))?$")
_BEARING = re.compile(r"[?@]")
"""Marks of a query or of user information in a URL, where secrets may be."""


class Dialect(Protocol):
    """A GPU worker by its base URL, and the protocol it speaks. Every failure is a `ProviderError`."""

    endpoint: str

    async def health(self) -> Health:
        """Whether the endpoint can work now; an endpoint that does not answer is not ready, and raises nothing."""

    async def check(self) -> Balance:
        """Verify the API key by a free call, where the protocol has one; the balance, where it is known."""

    def expect(self, *, sandbox: bool) -> None:
        """As that of `ports.Provider`, where the protocol names engines."""

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        """As that of `ports.Provider`."""

    async def collect(self, submission: Submission) -> Delivery:
        """As that of `ports.Provider`."""

    async def aclose(self) -> None:
        """Close the connections."""


def _segmind(url: str, key: SecretStr | None, deadline: float) -> Dialect:
    # A gateway always asks for a key, whichever.
    key = key or SecretStr("pool")
    return SegmindProvider(Endpoints.of(url, None), key, api_version="v1", deadline=deadline, logs_outages=False)


def _openai(url: str, key: SecretStr | None, deadline: float) -> Dialect:
    return OpenAIImages(url, key, deadline=deadline)


DIALECTS: Mapping[str, Callable[[str, SecretStr | None, float], Dialect]] = {"openai": _openai, "segmind": _segmind}
"""The protocols of GPU workers, by the name in `DIALECT+URL`."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A parsed endpoint string, `DIALECT+URL[#limit=N&key=env:NAME]`."""

    dialect: str
    url: str
    limit: int | None = None
    key: SecretStr | None = None


def worker_of(endpoint: str) -> Worker:
    """Parse an endpoint string. Raises RefusedError (`bad_endpoint`), without repeating what may be a secret."""
    match = _ENDPOINT.match(endpoint)
    own = dict(parse_qsl(match["own"] or "", keep_blank_values=True)) if match else {}
    known = match is not None and match["dialect"] in DIALECTS and is_web_address(match["url"])
    limit, key = own.pop("limit", None), own.pop("key", None)
    if match is None or not known or own or _BEARING.search(match["url"]) or (limit and not limit.isdecimal()):
        forms = " or ".join(f"{name}+http://HOST:PORT" for name in DIALECTS)
        raise RefusedError(
            "bad_endpoint",
            # All before an @ may be a key, even with a / in it: a worker's path has no @.
            f"{redact(re.sub('://.*@', '://', endpoint))} is no endpoint.",
            remedy=f"Write {forms}, with #limit=N or #key=env:NAME behind it for a worker's own limit or key.",
        )
    variable = key.removeprefix("env:") if key and key.startswith("env:") else ""
    if key is not None and not os.environ.get(variable):
        raise RefusedError(
            "bad_endpoint",
            f"The key of {match['dialect']}+{match['url']} is not in the environment.",
            remedy="Export it and write #key=env:NAME.",
        )
    return Worker(
        match["dialect"],
        match["url"].rstrip("/"),
        int(limit) if limit else None,
        SecretStr(os.environ[variable]) if key else None,
    )
