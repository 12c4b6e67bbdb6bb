"""HTTP for the Segmind provider: bounded bodies, GETs that may be tried again, and answers as ProviderErrors.

The key goes to the URLs that ask for it only: the endpoint's own hosts.
"""

import asyncio
import json
import logging
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import httpx
from pydantic import SecretStr

from prefect_imagegen.core.answers.json_values import error_text, parse_json, parse_time
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.backoff import pause_seconds
from prefect_imagegen.core.policy.classify import classify_answer
from prefect_imagegen.core.policy.outages import Outage, since_text
from prefect_imagegen.core.redact import redact
from prefect_imagegen.net.client import TRANSPORT_ERRORS, make_client
from prefect_imagegen.net.guard import FetchError
from prefect_imagegen.net.outward import OutwardResolver
from prefect_imagegen.providers.segmind.polls import Turns

MAX_BODY_BYTES = 256 * 1024 * 1024
GET_TRIES = 6
_TRIES_WHEN_REFUSED = 3
"""Who asks may have others to serve: a host that goes on answering 429 is asked again later."""
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 6
_AWAY = (502, 503, 504)
_IN_A_ROW = 5
"""So many calls without a good answer between them are an outage; fewer are chance."""
_MEANWHILE = (
    "Calls that it did not take are sent again, and what it did take is asked for, until --deadline passes without"
    " progress; then the run stops, and can be resumed. Nothing is paid for twice."
)
_AFTERWARDS = "Nothing was lost: what it had taken is fetched, calls without an answer are looked up in its history."
_PIECE = 1 << 18
_GZIP = 16 + zlib.MAX_WBITS
_logger = logging.getLogger(__name__)
UNREADABLE = (*TRANSPORT_ERRORS, ValueError)
"""What reading an answer may raise."""


class SegmindHttp:
    """One HTTP client with one key, for the URLs that are the user's `own`. Close it with `aclose`.

    `tells`: the name under which its log tells of outages.
    """

    def __init__(
        self,
        api_key: SecretStr | None,
        own: Iterable[str],
        *,
        max_in_flight: int,
        connect_timeout: float,
        tells: str | None = None,
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
        self._told: tuple[datetime, float] | None = None
        self._tells = tells
        self._outage = Outage(after=_IN_A_ROW)

    def heard(self, response: httpx.Response) -> None:
        """An answer of the API's own hosts came: it is there, unless a gateway before it says otherwise."""
        self._note_time(response)
        if response.status_code in _AWAY:
            self.lost(f"status {response.status_code}")
            return
        seconds = self._outage.worked(asyncio.get_running_loop().time())
        if seconds is not None and self._tells is not None:
            _logger.warning("%s answers again, after %.0f s. %s", self._tells, seconds, _AFTERWARDS)

    def lost(self, why: str) -> None:
        """No answer came of the API's own hosts: said once, when so many calls in a row have met that."""
        lasted = self._outage.failed(asyncio.get_running_loop().time())
        if lasted is not None and self._tells is not None:
            since = since_text(lasted, datetime.now(UTC))
            _logger.warning("%s gives no good answer %s (%s). %s", self._tells, since, why, _MEANWHILE)

    def _note_time(self, response: httpx.Response) -> None:
        """Learn the API's time from the `Date` of an answer."""
        told = parse_time(response.headers.get("date"))
        if told is not None and told.tzinfo is not None:
            self._told = (told, asyncio.get_running_loop().time())

    def now(self) -> datetime | None:
        """The present time by the API's clock; None until an answer has told it."""
        if self._told is None:
            return None
        moment, at = self._told
        return moment + timedelta(seconds=asyncio.get_running_loop().time() - at)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def download(self, url: str, request_id: str | None) -> tuple[bytes, str | None]:
        """Fetch an output, without the key, over redirects; tried again, never submitted again."""
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
                last, status = plain_name(error), None
        text = f"the output could not be downloaded: {last}"
        raise ProviderError("submitted", text, request_id=request_id, status=status)

    @asynccontextmanager
    async def _followed(self, url: str) -> AsyncIterator[httpx.Response]:
        """Open a GET without the key, and where it leads to. ValueError for what is no http URL.

        FetchError for one that leads inside.
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
        """A GET with the key, for balance and history, each try `within` so many seconds; raises ProviderError."""
        return await self._json(lambda: self.get(url, params=params), url, tries, within)

    async def post_json(self, url: str, body: Any) -> Any:
        """A POST with the key that may be sent again: it costs nothing and starts nothing. Raises ProviderError."""
        data = json.dumps(body).encode()
        return await self._json(
            lambda: self.client.stream("POST", url, content=pieces(data), headers=self.posting(data)), url
        )

    async def is_there(self, url: str) -> bool:
        """Whether somebody without a key can still fetch a URL; in doubt, and where we must not ask, yes."""
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
                    self.heard(response)
                    body = await read_body(response)
            except UNREADABLE as error:
                self.lost(plain_name(error))
                failure = ProviderError("unsent", f"{urlsplit(url).hostname} gave no answer: {plain_name(error)}")
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
        """Open a GET; the body is still to be read."""
        async with self.client.stream("GET", url, params=params, headers=self.headers() if with_key else None) as found:
            yield found

    def headers(self) -> dict[str, str]:
        """The key, as the API wants it."""
        return {"x-api-key": self._key} if self._key else {}

    def posting(self, data: bytes) -> dict[str, str]:
        """The headers of a POST of some JSON."""
        return self.headers() | {"content-type": "application/json", "content-length": str(len(data))}

    def refusal(self, response: httpx.Response, body: bytes, request_id: str | None = None) -> ProviderError:
        """What an answer other than success means."""
        text = error_text(body)
        return ProviderError(
            classify_answer(response.status_code, text),
            self.safe(f"{response.status_code}: {text}"),
            status=response.status_code,
            retry_after=self.pause(response),
            request_id=request_id,
        )

    def safe(self, text: str) -> str:
        """A text of the API, redacted; without the key too, which a server may repeat when it refuses it."""
        return redact(text, self._key)

    @staticmethod
    def pause(response: httpx.Response) -> float | None:
        """Seconds to wait, where the answer asks for it."""
        return pause_seconds(
            reset=response.headers.get("x-rate-limit-reset-at-utc"),
            retry_after=response.headers.get("retry-after"),
            now=datetime.now(UTC),
        )


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """A body, which may be an image of many megabytes, in pieces that do not hold the event loop up."""
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


async def read_body(response: httpx.Response) -> bytes:
    """The whole body, streamed and bounded.

    ValueError if it is larger than any image, not its own length, or packed in a way that was not asked for.
    """
    try:
        chunks, size = [], 0
        async for chunk in _unpacked(response):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise ValueError(f"the answer is larger than {MAX_BODY_BYTES} bytes")
            chunks.append(chunk)
    finally:
        await response.aclose()
    length = response.headers.get("content-length")
    if length and "content-encoding" not in response.headers and length.isdigit() and int(length) != size:
        raise ValueError(f"the answer has {size} of {length} bytes")
    return b"".join(chunks)


async def _unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body in small pieces, however well it was packed; ValueError where it cannot be unpacked."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.aiter_raw():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError(f"the answer is packed as {encoding[:40]}, which was not asked for")
    unpacker = zlib.decompressobj(wbits=_GZIP)
    try:
        async for chunk in response.aiter_raw():
            rest = chunk
            while rest:
                yield unpacker.decompress(rest, _PIECE)
                rest = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise ValueError(f"the answer cannot be unpacked: {error}") from error
    if not unpacker.eof:
        raise ValueError("the packed answer broke off")


def plain_name(error: Exception) -> str:
    """An exception in words, without secrets; aiohttp's own, since the transport names a lost connection a time-out."""
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    return redact(f"{type(cause).__name__} {cause}".strip())
