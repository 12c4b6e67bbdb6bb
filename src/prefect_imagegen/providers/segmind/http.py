"""HTTP for the Segmind provider: GETs and free POSTs that are tried again, and refusals as ProviderErrors.

The API key is sent to the endpoint's own hosts only, never to the hosts that outputs are downloaded from.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import SecretStr

from prefect_imagegen.core.answers.json_values import error_text, parse_json, parse_time
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.backoff import pause_seconds
from prefect_imagegen.core.policy.classify import classify_answer
from prefect_imagegen.core.policy.outages import Outage, since_text
from prefect_imagegen.core.redact import redact
from prefect_imagegen.net.bodies import UNREADABLE, body_pieces, describe_error, read_body
from prefect_imagegen.net.client import make_client
from prefect_imagegen.net.guard import FetchError
from prefect_imagegen.net.outward import OutwardResolver
from prefect_imagegen.providers.segmind.polls import Turns

GET_TRIES = 6
_TRIES_WHEN_REFUSED = 3
"""A host that goes on answering 429 is given up after this many tries: the caller comes back later."""
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 6
_AWAY = (502, 503, 504)
_IN_A_ROW = 5
"""This many calls in a row without a good answer are reported as an outage."""
_MEANWHILE = (
    "Calls that it did not take are sent again, and what it did take is asked for, until --deadline passes without"
    " progress; then the run stops, and can be resumed. Nothing is paid for twice."
)
_AFTERWARDS = "Nothing was lost: what it had taken is fetched, calls without an answer are looked up in its history."
_logger = logging.getLogger(__name__)


class SegmindHttp:
    """One HTTP client with one API key. Close it with `aclose`.

    `own` are the URLs that the user set; they may lie in a private network, other hosts may not. `outage_name` is
    how the log names the API when it is away; None logs nothing.
    """

    def __init__(
        self,
        api_key: SecretStr | None,
        own: Iterable[str],
        *,
        max_in_flight: int,
        connect_timeout: float,
        outage_name: str | None = None,
    ) -> None:
        self._outward = OutwardResolver(own)
        self.client = make_client(
            # One connection per call in flight, and some for the calls that fetch their results meanwhile.
            max_connections=2 * max_in_flight + 8,
            connect_timeout=connect_timeout,
            read_timeout=60.0,
            resolver=self._outward,
        )
        self._key = api_key.get_secret_value() if api_key else ""
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)
        self._api_time: tuple[datetime, float] | None = None
        self._outage_name = outage_name
        self._outage = Outage(after=_IN_A_ROW)

    def note_answer(self, response: httpx.Response) -> None:
        """Note an answer of the API's own hosts: its clock, and the end of an outage (502, 503 and 504 prolong it)."""
        self._note_time(response)
        if response.status_code in _AWAY:
            self.note_failure(f"status {response.status_code}")
            return
        seconds = self._outage.worked(asyncio.get_running_loop().time())
        if seconds is not None and self._outage_name is not None:
            _logger.warning("%s answers again, after %.0f s. %s", self._outage_name, seconds, _AFTERWARDS)

    def note_failure(self, why: str) -> None:
        """Note a call that got no good answer of the API's own hosts; an outage is logged once."""
        lasted = self._outage.failed(asyncio.get_running_loop().time())
        if lasted is not None and self._outage_name is not None:
            since = since_text(lasted, datetime.now(UTC))
            _logger.warning("%s gives no good answer %s (%s). %s", self._outage_name, since, why, _MEANWHILE)

    def _note_time(self, response: httpx.Response) -> None:
        """Learn the API's time from the `Date` of an answer."""
        date = parse_time(response.headers.get("date"))
        if date is not None and date.tzinfo is not None:
            self._api_time = (date, asyncio.get_running_loop().time())

    def now(self) -> datetime | None:
        """The present time by the API's clock; None before the first answer that has a `Date`."""
        if self._api_time is None:
            return None
        moment, at = self._api_time
        return moment + timedelta(seconds=asyncio.get_running_loop().time() - at)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def download(self, url: str, request_id: str | None) -> tuple[bytes, str | None]:
        """Download an output without the key, over redirects, with several tries: its bytes and content type.

        Raises ProviderError (`submitted`): the image exists, so the call is never sent again.
        """
        last, status = "", None
        for failures in range(GET_TRIES):
            if failures:
                await asyncio.sleep(min(5.0, 0.2 * 2**failures))
            try:
                async with self._followed(url) as response:
                    body = await read_body(response)
                    if response.status_code == 200:
                        return body, response.headers.get("content-type")
                    last, status = f"status {response.status_code}", response.status_code
            except FetchError as error:
                text = f"the output is not downloaded: its address leads inside; {error.message}"
                raise ProviderError("submitted", redact(text), request_id=request_id) from error
            except UNREADABLE as error:
                last, status = describe_error(error), None
        text = f"the output could not be downloaded: {last}"
        raise ProviderError("submitted", text, request_id=request_id, status=status)

    @asynccontextmanager
    async def _followed(self, url: str) -> AsyncIterator[httpx.Response]:
        """Open a GET without the key, and follow its redirects.

        Raises ValueError for what is no http URL, FetchError for an address in a private network.
        """
        for _ in range(_MOST_REDIRECTS + 1):
            if urlsplit(url).scheme not in ("http", "https"):
                raise ValueError("the address of the output is no http URL")
            await self._outward.check(url)
            async with self.get(url, with_key=False) as response:
                target = response.headers.get("location")
                if response.status_code not in _REDIRECTS or not target:
                    yield response
                    return
            url = urljoin(url, target)
        raise ValueError(f"more than {_MOST_REDIRECTS} redirects")

    async def get_json(
        self, url: str, params: dict[str, str] | None = None, tries: int = GET_TRIES, within: float | None = None
    ) -> Any:
        """The JSON of a GET with the key (balance, history); each try takes at most `within` seconds.

        Raises ProviderError.
        """
        return await self._json(lambda: self.get(url, params=params), url, tries, within)

    async def post_json(self, url: str, body: Any) -> Any:
        """The JSON of a POST with the key that may be sent again, since it costs nothing. Raises ProviderError."""
        data = json.dumps(body).encode()
        return await self._json(
            lambda: self.client.stream("POST", url, content=body_pieces(data), headers=self.post_headers(data)), url
        )

    async def is_there(self, url: str) -> bool:
        """Whether a URL can still be fetched without the key; True in doubt, and for addresses in a private network."""
        try:
            await self._outward.check(url)
            answer = await self.client.head(url)
        except (*UNREADABLE, FetchError):
            return True
        return answer.status_code not in (403, 404, 410)

    async def _json(
        self,
        call: Callable[[], AbstractAsyncContextManager[httpx.Response]],
        url: str,
        tries: int = GET_TRIES,
        within: float | None = None,
    ) -> Any:
        failure = ProviderError("unsent", f"{urlsplit(url).hostname} could not be reached")
        turns = self._turns[urlsplit(url).netloc]
        for failures in range(tries):
            if failures and failure.status != 429:
                await asyncio.sleep(min(5.0, 0.2 * 2**failures))
            sent = await turns.take()
            try:
                async with asyncio.timeout(within), call() as response:
                    self.note_answer(response)
                    body = await read_body(response)
            except UNREADABLE as error:
                self.note_failure(describe_error(error))
                failure = ProviderError("unsent", f"{urlsplit(url).hostname} gave no answer: {describe_error(error)}")
                continue
            if response.status_code == 429:
                turns.refused(sent, self.pause(response))
            else:
                turns.answered(sent)
            if response.status_code == 200:
                value = parse_json(body)
                if value is None:
                    raise ProviderError("protocol", f"{urlsplit(url).hostname} answered with no JSON", status=200)
                return value
            failure = self.refusal(response, body)
            if response.status_code == 404 and not isinstance(parse_json(body), dict):
                # Not the API's own word: a route that is missing, or a proxy.
                raise ProviderError("unknown", failure.message)
            if response.status_code < 500 and (response.status_code != 429 or failures + 1 >= _TRIES_WHEN_REFUSED):
                break
        raise failure

    @asynccontextmanager
    async def get(
        self, url: str, *, with_key: bool = True, params: dict[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Open a GET; the caller reads the body."""
        headers = self.headers() if with_key else None
        async with self.client.stream("GET", url, params=params, headers=headers) as response:
            yield response

    def headers(self) -> dict[str, str]:
        """The header with the API key; empty without one."""
        return {"x-api-key": self._key} if self._key else {}

    def post_headers(self, data: bytes) -> dict[str, str]:
        """The headers of a POST with a JSON body, the key included."""
        return self.headers() | {"content-type": "application/json", "content-length": str(len(data))}

    def refusal(self, response: httpx.Response, body: bytes, request_id: str | None = None) -> ProviderError:
        """The error that an answer without success means."""
        text = error_text(body)
        return ProviderError(
            classify_answer(response.status_code, text),
            self.safe(f"{response.status_code}: {text}"),
            status=response.status_code,
            retry_after=self.pause(response),
            request_id=request_id,
        )

    def safe(self, text: str) -> str:
        """A text of the API without secrets: redacted, and without the key, which a server may repeat."""
        return redact(text, self._key)

    @staticmethod
    def pause(response: httpx.Response) -> float | None:
        """The seconds that an answer asks to wait for; None where it does not."""
        return pause_seconds(
            reset=response.headers.get("x-rate-limit-reset-at-utc"),
            retry_after=response.headers.get("retry-after"),
            now=datetime.now(UTC),
        )
