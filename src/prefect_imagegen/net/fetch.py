"""Fetch reference images over http(s), guarded: no URL or redirect may lead to a private address.

Redirects are followed with the guard applied at each step (net.guard): a public host may redirect to public ones only,
and https never to http. Busy hosts are asked again, with pauses. The address is sent byte for byte as it is written.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn, Self
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from prefect_imagegen.core.answers.outputs import looks_like_image
from prefect_imagegen.core.policy.backoff import backoff, pause_seconds
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.web_answers import judge_body, judge_status
from prefect_imagegen.net.client import TRANSPORT_ERRORS, USER_AGENT
from prefect_imagegen.net.guard import (
    REACHES,
    FetchError,
    FetchPolicy,
    GuardedResolver,
    Reach,
    asked_url,
    check_address,
    literal_address,
    reach_of,
)
from prefect_imagegen.net.hosts import LONGEST_PAUSE_S, HostRecords, HostTurns
from prefect_imagegen.net.troubles import trouble_of

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECTIONS = 16
_TRIES = 5
"""How often a URL is tried whose status may change, such as 503."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer: the bytes, and their `version` (ETag or date, None if the host sends neither).

    `data` is None if nothing has changed since the version that was asked about.
    """

    data: bytes | None
    version: str | None


class _PassingError(Exception):
    """One try failed in a way that may pass: the host is busy, or out of reach.

    `tries`: how many tries are worth it in all. `pause`: the pause in seconds that the host asked for. `slows`: the
    pause holds for all requests to the host. `is_of_host`: the failure concerns the host, not just this reference.
    """

    def __init__(
        self,
        host: str,
        problem: str,
        *,
        tries: int = _TRIES,
        pause: float | None = None,
        slows: bool = False,
        is_of_host: bool = True,
    ) -> None:
        super().__init__(problem)
        self.host = host
        self.tries = tries
        self.pause = pause
        self.slows = slows
        self.is_of_host = is_of_host


@dataclass(slots=True)
class _PendingFetch:
    """One reference that is being fetched: its URL, the URL as messages show it, and the seconds left for it."""

    url: str
    shown: str
    version: str | None
    left: float
    redirected_to: str = ""

    @property
    def place(self) -> str:
        """The URL as messages show it, with its redirect target if there was one."""
        return f"{self.shown} (it redirects to {redact(self.redirected_to)})" if self.redirected_to else self.shown

    def refuse(self, kind: str, problem: str, remedy: str) -> NoReturn:
        """Raise the FetchError for this reference."""
        raise FetchError(kind, f"{self.place} could not be fetched: {problem}.", remedy=remedy)

    def name(self, error: FetchError) -> FetchError:
        """An error of the guard, which knows only addresses, with this reference's URL added."""
        if self.shown in error.message:
            return error
        return FetchError(error.kind, f"{self.place}: {error.message}", remedy=error.remedy)


class ReferenceFetcher:
    """Fetches references under one policy. Use `async with`. `hosts`: what earlier fetches learned about hosts."""

    def __init__(self, policy: FetchPolicy, hosts: HostRecords | None = None) -> None:
        self._policy = policy
        self._hosts = hosts or HostRecords()
        self._timing = self._hosts.timing
        self._turns = HostTurns(self._hosts, policy.at_once)
        self._gate = asyncio.Semaphore(_CONNECTIONS)
        self._reaches: dict[str, Reach] = {}
        self._sessions: dict[Reach, aiohttp.ClientSession] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the sessions: one for each reach that a chain of redirects may still have."""
        for deepest in REACHES:
            connector = aiohttp.TCPConnector(
                resolver=GuardedResolver(self._policy, deepest, self._reaches),
                use_dns_cache=False,
                limit=_CONNECTIONS,
            )
            session = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
                trust_env=False,
            )
            self._sessions[deepest] = await self._open.enter_async_context(session)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the sessions."""
        await self._open.aclose()

    async def fetch(self, url: str) -> bytes:
        """The bytes of the image at a URL. Raises FetchError."""
        return (await self.fetch_since(url, None)).data or b""

    async def fetch_since(self, url: str, version: str | None) -> Fetched:
        """The image at a URL, or no data if it is still the one of `version`. Raises FetchError."""
        async with self.fetched(url, version) as fetched:
            return fetched

    @asynccontextmanager
    async def fetched(self, url: str, version: str | None = None) -> AsyncIterator[Fetched]:
        """Like `fetch_since`, as a context: within it the picture counts towards the few held in memory at once."""
        if not self._sessions:
            raise RuntimeError("use ReferenceFetcher with `async with`")
        pending = _PendingFetch(url, redact(url), version, self._policy.patience)
        host = asked_url(url, pending.shown).raw_host or ""
        async with AsyncExitStack() as holding:
            async with self._turns.reference_turn(host):
                fetched = await self._patiently(pending, holding)
            yield fetched

    async def _patiently(self, pending: _PendingFetch, holding: AsyncExitStack) -> Fetched:
        """Try until there is an answer, or the tries or the time of the reference are used up. Raises FetchError."""
        failures = 0
        while True:
            try:
                return await self._follow(pending, holding)
            except _PassingError as failure:
                pause = backoff(failures, self._timing.jitter()) if failure.pause is None else failure.pause
                failures += 1
                if failure.slows:
                    self._hosts.pause(failure.host, min(pause, LONGEST_PAUSE_S))
                wait = 0.0 if failure.slows else pause
                is_over = failures >= failure.tries or pause > min(pending.left, LONGEST_PAUSE_S)
                if is_over or self._hosts.is_skipped(failure.host):
                    if failure.is_of_host:
                        self._hosts.found_busy(failure.host)
                    pending.refuse(
                        "reference_busy",
                        f"{redact(failure.host)} {failure}",
                        "Nothing is known to be wrong with it: run the same command again later.",
                    )
                pending.left -= pause
                await self._timing.sleep(wait)

    async def _follow(self, pending: _PendingFetch, holding: AsyncExitStack) -> Fetched:
        """One try: follow redirects to an answer. Raises _PassingError and FetchError."""
        address, pending.redirected_to = pending.url, ""
        deepest: Reach = "loopback"
        came_from: URL | None = None
        for _ in range(self._policy.max_redirects + 1):
            target = asked_url(address, pending.place)
            if came_from is not None and (came_from.port, target.port) not in ((target.port, target.port), (80, 443)):
                deepest = "public"  # on an internal host, another port may be any service
            host = target.raw_host or ""
            self._check_literal(host, deepest, pending)
            async with self._turns.request_turn(host):
                if self._hosts.is_skipped(host):
                    raise _PassingError(host, "was busy for one reference after the other", tries=1, is_of_host=False)
                result = await self._ask(target, deepest, pending, holding)
            if isinstance(result, Fetched):
                return result
            address = pending.redirected_to = self._next_address(address, result, pending)
            deepest = min(deepest, self._reaches.get(host, "public"), key=REACHES.index)
            came_from = target
        return pending.refuse("reference_unreachable", "it redirects too often", "Use its final URL.")

    def _check_literal(self, host: str, deepest: Reach, pending: _PendingFetch) -> None:
        """Check a numeric host here, since the resolver never sees it. Raises FetchError."""
        literal = literal_address(host)
        if literal is None:
            return
        try:
            check_address(literal, self._policy, deepest)
        except FetchError as error:
            raise pending.name(error) from None
        self._reaches[host] = reach_of(literal)

    def _next_address(self, address: str, location: str, pending: _PendingFetch) -> str:
        """The URL that a redirect leads to. Raises FetchError if there is none, or if it goes from https to http."""
        if not location:
            pending.refuse("reference_unreachable", "it redirects to nowhere", "Check the address.")
        try:
            following = urljoin(address, location)
        except ValueError:
            pending.refuse("reference_unreachable", "it redirects to what is no URL", "Use its final URL.")
        if address.lower().startswith("https:") and following.lower().startswith("http:"):
            pending.refuse(
                "reference_forbidden",
                f"it redirects from https to {redact(following)}, where anybody on the way could change it",
                "If that is acceptable, give the http address itself.",
            )
        return following

    async def _ask(self, target: URL, deepest: Reach, pending: _PendingFetch, holding: AsyncExitStack) -> Fetched | str:
        """One request: the answer, or the location it redirects to. Raises _PassingError and FetchError."""
        host, headers = target.raw_host or "", {}
        if pending.version:
            is_etag = pending.version.startswith(('"', "W/"))
            headers["If-None-Match" if is_etag else "If-Modified-Since"] = pending.version
        seconds = aiohttp.ClientTimeout(total=min(self._policy.timeout, max(pending.left, 1.0)))
        async with AsyncExitStack() as working:
            await working.enter_async_context(self._gate)
            started = self._timing.monotonic()
            try:
                async with self._sessions[deepest].get(
                    target, headers=headers, allow_redirects=False, timeout=seconds
                ) as answer:
                    result = await self._read(answer, host, pending)
            except FetchError as error:
                raise pending.name(error) from error
            except (*TRANSPORT_ERRORS, ValueError) as error:
                trouble = trouble_of(error)
                if trouble.is_passing:
                    raise _PassingError(host, trouble.problem, tries=trouble.tries) from error
                pending.refuse("reference_unreachable", f"{redact(host)} {trouble.problem}", trouble.remedy)
            finally:
                pending.left -= self._timing.monotonic() - started
            if isinstance(result, Fetched):
                await holding.enter_async_context(working.pop_all())
        return result

    async def _read(self, answer: aiohttp.ClientResponse, host: str, pending: _PendingFetch) -> Fetched | str:
        if answer.status in _REDIRECTS:
            return answer.headers.get("location", "")
        if answer.status == 304 and pending.version:
            return Fetched(None, pending.version)
        verdict = judge_status(answer.status)
        if verdict is None or not verdict.is_passing:
            self._hosts.answered(host)
        if verdict is not None and verdict.is_passing:
            pause = pause_seconds(reset=None, retry_after=answer.headers.get("retry-after"), now=self._timing.now())
            raise _PassingError(host, verdict.problem, pause=pause, slows=verdict.slows, is_of_host=verdict.is_of_host)
        if verdict is not None:
            pending.refuse("reference_unreachable", verdict.problem, verdict.remedy)
        data = await self._body(answer, pending)
        if not looks_like_image(data):
            verdict = judge_body(data)
            pending.refuse("reference_not_image", verdict.problem, verdict.remedy)
        return Fetched(data, answer.headers.get("etag") or answer.headers.get("last-modified"))

    async def _body(self, answer: aiohttp.ClientResponse, pending: _PendingFetch) -> bytes:
        """The body. Raises FetchError if it is larger than the policy allows."""
        most = self._policy.max_bytes
        size = answer.content_length or 0
        chunks: list[bytes] = []
        if size <= most:
            size = 0
            async for chunk in answer.content.iter_chunked(1 << 16):
                chunks.append(chunk)
                size += len(chunk)
                if size > most:
                    break
        if size > most:
            pending.refuse("reference_too_large", f"it has more than {most} bytes", "Use a smaller image.")
        return b"".join(chunks)
