"""Guarded fetching of reference images, as a good client: patient with hosts that are busy, and never led inside.

Redirects are followed with the guard applied at each step (net.guard): a public host leads to public ones only, and
https never to http. Requests say who asks; the address is sent byte for byte as it is written.
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
"""Of a status that may be another one later."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer: its bytes, None where nothing has changed since `version` (an ETag or a date, None without one)."""

    data: bytes | None
    version: str | None


class _PassingError(Exception):
    """One try found a host busy, or out of reach.

    `pause`: what the host asked for, in seconds. `slows`: that holds for everybody. `is_of_host`: it says something
    of the host, and not of one reference only.
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
class _Errand:
    """One reference on its way: what its URL looks like in messages, and the seconds that are left for it."""

    url: str
    shown: str
    version: str | None
    left: float
    redirected_to: str = ""

    @property
    def place(self) -> str:
        """The reference, and where it has led."""
        return f"{self.shown} (it redirects to {redact(self.redirected_to)})" if self.redirected_to else self.shown

    def refuse(self, kind: str, problem: str, remedy: str) -> NoReturn:
        """Say that the reference cannot be had."""
        raise FetchError(kind, f"{self.place} could not be fetched: {problem}.", remedy=remedy)

    def name(self, error: FetchError) -> FetchError:
        """An error of the guard, which knows addresses only, with the reference's name."""
        if self.shown in error.message:
            return error
        return FetchError(error.kind, f"{self.place}: {error.message}", remedy=error.remedy)


class ReferenceFetcher:
    """Fetches references under one policy. Use `async with`. `hosts`: what is known of hosts already."""

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
        """Open the sessions: one for each depth to which a chain of redirects may lead."""
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
        """The bytes of the image behind a URL. Raises FetchError."""
        return (await self.fetch_since(url, None)).data or b""

    async def fetch_since(self, url: str, version: str | None) -> Fetched:
        """The image behind a URL, unless it is still the one of `version`. Raises FetchError."""
        async with self.fetched(url, version) as found:
            return found

    @asynccontextmanager
    async def fetched(self, url: str, version: str | None = None) -> AsyncIterator[Fetched]:
        """As `fetch_since`; within, the picture counts as one of the few that are in memory at a time."""
        if not self._sessions:
            raise RuntimeError("use ReferenceFetcher with `async with`")
        errand = _Errand(url, redact(url), version, self._policy.patience)
        host = asked_url(url, errand.shown).raw_host or ""
        async with AsyncExitStack() as holding:
            async with self._turns.errand(host):
                found = await self._patiently(errand, holding)
            yield found

    async def _patiently(self, errand: _Errand, holding: AsyncExitStack) -> Fetched:
        """Try until there is an answer, or the host has been found busy often enough."""
        failures = 0
        while True:
            try:
                return await self._follow(errand, holding)
            except _PassingError as busy:
                pause = backoff(failures, self._timing.draw()) if busy.pause is None else busy.pause
                failures += 1
                if busy.slows:
                    self._hosts.pause(busy.host, min(pause, LONGEST_PAUSE_S))
                wait = 0.0 if busy.slows else pause
                is_over = failures >= busy.tries or pause > min(errand.left, LONGEST_PAUSE_S)
                if is_over or self._hosts.is_let_be(busy.host):
                    if busy.is_of_host:
                        self._hosts.gave_up(busy.host)
                    errand.refuse(
                        "reference_busy",
                        f"{redact(busy.host)} {busy}",
                        "Nothing is known to be wrong with it: run the same command again later.",
                    )
                errand.left -= pause
                await self._timing.sleep(wait)

    async def _follow(self, errand: _Errand, holding: AsyncExitStack) -> Fetched:
        """One try: from redirect to redirect, to an answer. Raises _PassingError and FetchError."""
        address, errand.redirected_to = errand.url, ""
        deepest: Reach = "loopback"
        came_from: URL | None = None
        for _ in range(self._policy.max_redirects + 1):
            asked = asked_url(address, errand.place)
            if came_from is not None and (came_from.port, asked.port) not in ((asked.port, asked.port), (80, 443)):
                deepest = "public"  # inside of a network any service may listen at another port
            host = asked.raw_host or ""
            self._check_literal(host, deepest, errand)
            async with self._turns.turn(host):
                if self._hosts.is_let_be(host):
                    raise _PassingError(host, "was busy for one reference after the other", tries=1, is_of_host=False)
                found = await self._ask(asked, deepest, errand, holding)
            if isinstance(found, Fetched):
                return found
            address = errand.redirected_to = self._next_address(address, found, errand)
            deepest = min(deepest, self._reaches.get(host, "public"), key=REACHES.index)
            came_from = asked
        return errand.refuse("reference_unreachable", "it redirects too often", "Use its final URL.")

    def _check_literal(self, host: str, deepest: Reach, errand: _Errand) -> None:
        """Numeric hosts are not resolved, so they are checked here."""
        literal = literal_address(host)
        if literal is None:
            return
        try:
            check_address(literal, self._policy, deepest)
        except FetchError as error:
            raise errand.name(error) from None
        self._reaches[host] = reach_of(literal)

    def _next_address(self, address: str, location: str, errand: _Errand) -> str:
        """Where a redirect leads."""
        if not location:
            errand.refuse("reference_unreachable", "it redirects to nowhere", "Check the address.")
        try:
            following = urljoin(address, location)
        except ValueError:
            errand.refuse("reference_unreachable", "it redirects to what is no URL", "Use its final URL.")
        if address.lower().startswith("https:") and following.lower().startswith("http:"):
            errand.refuse(
                "reference_forbidden",
                f"it redirects from https to {redact(following)}, where anybody on the way could change it",
                "If that is acceptable, give the http address itself.",
            )
        return following

    async def _ask(self, asked: URL, deepest: Reach, errand: _Errand, holding: AsyncExitStack) -> Fetched | str:
        """One request: the answer, or where it redirects to. Raises _PassingError and FetchError."""
        host, headers = asked.raw_host or "", {}
        if errand.version:
            is_etag = errand.version.startswith(('"', "W/"))
            headers["If-None-Match" if is_etag else "If-Modified-Since"] = errand.version
        seconds = aiohttp.ClientTimeout(total=min(self._policy.timeout, max(errand.left, 1.0)))
        async with AsyncExitStack() as working:
            await working.enter_async_context(self._gate)
            started = self._timing.monotonic()
            try:
                async with self._sessions[deepest].get(
                    asked, headers=headers, allow_redirects=False, timeout=seconds
                ) as answer:
                    found = await self._read(answer, host, errand)
            except FetchError as error:
                raise errand.name(error) from error
            except (*TRANSPORT_ERRORS, ValueError) as error:
                trouble = trouble_of(error)
                if trouble.is_passing:
                    raise _PassingError(host, trouble.problem, tries=trouble.tries) from error
                errand.refuse("reference_unreachable", f"{redact(host)} {trouble.problem}", trouble.remedy)
            finally:
                errand.left -= self._timing.monotonic() - started
            if isinstance(found, Fetched):
                await holding.enter_async_context(working.pop_all())
        return found

    async def _read(self, answer: aiohttp.ClientResponse, host: str, errand: _Errand) -> Fetched | str:
        if answer.status in _REDIRECTS:
            return answer.headers.get("location", "")
        if answer.status == 304 and errand.version:
            return Fetched(None, errand.version)
        verdict = judge_status(answer.status)
        if verdict is None or not verdict.is_passing:
            self._hosts.answered(host)
        if verdict is not None and verdict.is_passing:
            pause = pause_seconds(reset=None, retry_after=answer.headers.get("retry-after"), now=self._timing.now())
            raise _PassingError(host, verdict.problem, pause=pause, slows=verdict.slows, is_of_host=verdict.is_of_host)
        if verdict is not None:
            errand.refuse("reference_unreachable", verdict.problem, verdict.remedy)
        data = await self._body(answer, errand)
        if not looks_like_image(data):
            verdict = judge_body(data)
            errand.refuse("reference_not_image", verdict.problem, verdict.remedy)
        return Fetched(data, answer.headers.get("etag") or answer.headers.get("last-modified"))

    async def _body(self, answer: aiohttp.ClientResponse, errand: _Errand) -> bytes:
        """The body, as far as a picture may go."""
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
            errand.refuse("reference_too_large", f"it has more than {most} bytes", "Use a smaller image.")
        return b"".join(chunks)
