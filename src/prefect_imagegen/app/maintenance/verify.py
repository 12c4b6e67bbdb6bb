"""Does every image of the ledger lie in the store, with its bytes, and every image of the store in the ledger?"""

import asyncio
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import resolve_provider
from prefect_imagegen.app.config.settings import ProviderSettings, StoreSettings
from prefect_imagegen.app.maintenance.access import account, existing_store
from prefect_imagegen.app.maintenance.repair import Repair, Repairer
from prefect_imagegen.app.maintenance.unstored import paid_not_stored
from prefect_imagegen.core import layout
from prefect_imagegen.core.images.image import BadImageError, decode, facts_of
from prefect_imagegen.core.ledger.deliveries import Deliveries
from prefect_imagegen.core.ledger.events import ClaimRecord, ImageFacts
from prefect_imagegen.core.ledger.fold import KEY_TYPE, LedgerView, first_of_each_key, image_facts
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.executor.context import MORE_IMAGES
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.event_file import EventFile
from prefect_imagegen.store.ledger.ledger import StoreLedger, load_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore

AT_ONCE = 16
"""Images in memory at the same time."""
_SLICE_KEYS = 1 << 16

ProblemKind = Literal["missing_image", "wrong_bytes", "undecodable", "unrecorded_image", "paid_not_stored"]
MEANINGS: dict[ProblemKind, str] = {
    "missing_image": "the ledger has an image that is not in the store",
    "wrong_bytes": "an image's bytes are not those that the ledger recorded",
    "undecodable": "an image has the recorded bytes, and they are no whole image",
    "unrecorded_image": "an image that the ledger does not know",
    "paid_not_stored": "a call was billed, and its image could not be fetched",
}


@dataclass(slots=True)
class Problem:
    """One thing that is wrong; `repair` says what was done about it, if anything."""

    kind: ProblemKind
    path: str
    detail: str
    repair: Repair | None = None


@dataclass(slots=True)
class VerifyReport:
    """What `verify` found. `in_progress`: images that a run is just about to record, or will settle."""

    store: str
    images: int = 0
    in_progress: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or all that was wrong is mended."""
        return all(problem.repair in ("fetched_again", "adopted") for problem in self.problems)

    @property
    def kinds(self) -> Counter[str]:
        """Problems by kind."""
        return Counter(problem.kind for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


async def verify(
    settings: StoreSettings,
    provider: ProviderSettings,
    options: RunOptions,
    *,
    repair: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> VerifyReport:
    """Read and decode every image of a store, and compare them with the ledger; without `repair` nothing is written.

    `repair` first asks the backend for lost images by their request ids, if there is a key: what was paid for is
    fetched again, never bought. `on_progress` is told the number of images read. Raises RefusedError.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(existing_store(settings))
        clock, process = SystemClock(), Process.this(secrets.token_hex(8))
        run_id = f"{clock.now():%Y%m%dT%H%M%S}-verify-{process.nonce[:4]}"
        view = await load_ledger(store)
        ledger = StoreLedger(store, view, run_id=run_id, nonce=process.nonce, clock=clock)
        mending = None
        if repair:
            asked = await _has_account(store, provider, options)
            source = await stack.enter_async_context(account(provider, options)) if asked else None
            mending = Repairer(store, ledger, source, run_id, clock)
        heartbeat = Heartbeat(store, run_id, process, clock)
        if repair:
            await heartbeat.ask_time()
        neighbours = StoreRunLiveness(store, heartbeat, process, clock)
        verification = _Verification(store, view, ledger, neighbours, mending, on_progress)
        try:
            await verification.run()
        finally:
            # What was moved away is known as such, also where the rest could not be done.
            await ledger.flush()
        return verification.found


class _Verification:
    """One walk over ledger and images, in slices of keys that fit into memory."""

    def __init__(
        self,
        store: FsspecObjectStore,
        view: LedgerView,
        ledger: StoreLedger,
        neighbours: StoreRunLiveness,
        mending: Repairer | None,
        on_progress: Callable[[int], None],
    ) -> None:
        self.found = VerifyReport(store.url)
        self._store = store
        self._view = view
        self._ledger = ledger
        self._neighbours = neighbours
        self._mending = mending
        self._on_progress = on_progress
        self._adopted: set[bytes] = set()

    async def run(self) -> None:
        """Everything recorded, then everything that is not, then what was paid for and is neither."""
        unrecorded: list[str] = []
        async for events, paths in self._slices():
            unrecorded += sorted(paths - {event["image_path"] for event in events})
            await _each(events, partial(self._check, frozenset(paths)))
        if unrecorded:
            await self._check_unrecorded(unrecorded)
        await _each((await paid_not_stored(self._store)).items(), self._check_paid)
        self.found.problems.sort(key=lambda problem: (problem.kind, problem.path))

    async def _slices(self) -> AsyncIterator[tuple[list[dict[str, Any]], set[str]]]:
        """The delivered events and the image paths of some first bytes of the keys at a time."""
        keys = self._view.delivered_keys
        groups = list(_groups_of_first_bytes(keys))
        with EventFile() as spool:
            deliveries = Deliveries(spool)
            start = 0
            for number, (_, count) in enumerate(groups):
                deliveries.ask(number, keys.slice(start, count))
                start += count
            await asyncio.to_thread(deliveries.bring, self._view.all_delivered())
        for number, (group, _) in enumerate(groups):
            facts = first_of_each_key(await asyncio.to_thread(deliveries.of, number))
            listings = await asyncio.gather(*(self._store.list(layout.images_below(one)) for one in group))
            yield list(facts.values()), {info.path for listing in listings for info in listing}

    async def _check(self, present: frozenset[str], event: dict[str, Any]) -> None:
        facts = image_facts(event)
        if facts is None:
            return
        data = await self._store.get(facts.path) if facts.path in present else None
        problem: Problem | None = Problem("missing_image", facts.path, "not in the store")
        if data is not None:
            problem = await asyncio.to_thread(_compare, facts, data)
        self.found.images += data is not None
        self._on_progress(self.found.images)
        if problem is not None:
            self.found.problems.append(problem)
            if self._mending is not None:
                problem.repair = await self._mending.restore(event, facts, data)

    async def _check_unrecorded(self, paths: list[str]) -> None:
        # What a run has recorded since we read the ledger is no problem.
        view = await load_ledger(self._store)
        matches = {path: match for path in paths if (match := layout.IMAGE_PATH.fullmatch(path))}
        keys = {path: bytes.fromhex(match["key"]) for path, match in matches.items()}
        delivered = await asyncio.to_thread(view.delivered, pa.array(set(keys.values()), KEY_TYPE))
        facts = first_of_each_key(delivered)
        with_more = {row["key"] for row in delivered.to_pylist() if MORE_IMAGES in (row["flags"] or ())}

        async def check(path: str) -> None:
            key = keys.get(path, b"")
            known = facts.get(key)
            if path in matches and matches[path]["number"]:
                await self._check_further(path, key, is_known=key in with_more, is_delivered=known is not None)
            elif known is None or known["image_path"] != path:
                await self._check_one_unrecorded(path, None if known else keys.get(path))

        await _each(paths, check)

    async def _check_further(self, path: str, key: bytes, *, is_known: bool, is_delivered: bool) -> None:
        """One of several images of an answer, beside the key's own."""
        if not is_delivered and await self._ledger.claims(key):
            # Stored before the key's own image, by a run that died then: the next run fetches the answer again.
            self.found.in_progress += 1
            return
        if not is_known:
            await self._check_one_unrecorded(path, None)
            return
        self.found.images += 1
        data = await self._store.get(path) or b""
        try:
            await asyncio.to_thread(decode, data)
        except BadImageError as error:
            problem = Problem("undecodable", path, str(error))
            self.found.problems.append(problem)
            if self._mending is not None:
                problem.repair = await self._mending.move_away(path, data)

    async def _check_paid(self, item: tuple[bytes, Sequence[dict[str, Any]]]) -> None:
        """A key without an image, and the failed events of its billed calls."""
        key, events = item
        if key in self._adopted:
            return
        claims = await self._ledger.claims(key)
        if await self._is_alive(claims):
            self.found.in_progress += 1
            return
        body = claims[-1].claim.body if claims else {}
        path = layout.image(key.hex(), GenerationRequest(str(events[-1]["model"]), body).extension)
        calls = ", ".join(f"{event['request_id']} ({event['error_kind']})" for event in events)
        problem = Problem("paid_not_stored", path, f"billed: {calls}; {events[-1]['error_message'] or ''}")
        self.found.problems.append(problem)
        if self._mending is not None:
            problem.repair = await self._mending.fetch_late(events, path)

    async def _is_alive(self, claims: Sequence[ClaimRecord]) -> bool:
        """Whether the run that claimed last still works."""
        if not claims:
            return False
        last = claims[-1].claim
        return await self._neighbours.life(last.owner or layout.heartbeat(last.run_id)) == "alive"

    async def _check_one_unrecorded(self, path: str, key: bytes | None) -> None:
        """`key`: the request whose image it can be; None where it is out of place."""
        claims = await self._ledger.claims(key) if key else ()
        if await self._is_alive(claims):
            self.found.in_progress += 1
            return
        data = await self._store.get(path) or b""
        facts: ImageFacts | None = None
        try:
            facts = facts_of(path, await asyncio.to_thread(decode, data), len(data))
            detail = "whole" if key else "whole, but no request's image lies there"
        except BadImageError as error:
            detail = str(error)
        self.found.images += 1
        problem = Problem("unrecorded_image", path, detail)
        self.found.problems.append(problem)
        if self._mending is None:
            return
        if key is not None and facts is not None:
            problem.repair = await self._mending.adopt(key, facts, claims[-1] if claims else None)
            self._adopted.add(key)
        else:
            problem.repair = await self._mending.move_away(path, data)


async def _has_account(store: FsspecObjectStore, provider: ProviderSettings, options: RunOptions) -> bool:
    """Whether there is somebody to ask for lost images: a key, and no store of placeholders at the real API."""
    about = json.loads(await store.get(layout.STORE_FILE) or b"{}")
    resolved = resolve_provider(provider, options)
    return (
        resolved.provider != "pool"
        and resolved.api_key is not None
        and (about.get("kind") == "real" or resolved.base_url is not None)
    )


def _groups_of_first_bytes(keys: pa.Array) -> Iterator[tuple[list[int], int]]:
    """First bytes of sorted keys, in groups of about `_SLICE_KEYS` keys, and the number of keys of each group."""
    counts = pc.value_counts(pc.binary_slice(keys, 0, 1)).to_pylist()
    size = Counter({one["values"][0]: one["counts"] for one in counts})
    group: list[int] = []
    for first in range(256):
        group.append(first)
        count = sum(size[one] for one in group)
        if count >= _SLICE_KEYS or first == 255:
            yield group, count
            group = []


def _compare(facts: ImageFacts, data: bytes) -> Problem | None:
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != facts.sha256:
        detail = (
            f"{len(data):,} bytes with SHA-256 {sha256[:12]}…, recorded {facts.size_bytes:,} with {facts.sha256[:12]}…"
        )
        return Problem("wrong_bytes", facts.path, detail)
    try:
        decode(data)
    except BadImageError as error:
        return Problem("undecodable", facts.path, str(error))
    return None


async def _each(items: Iterable[Any], work: Callable[[Any], Awaitable[None]]) -> None:
    """Do it for all, a few at once."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
