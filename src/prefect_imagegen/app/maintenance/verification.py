"""Compare every image of a store with the ledger, in slices of keys that fit into memory."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.app.maintenance.repair import Repairer
from prefect_imagegen.app.maintenance.unstored import paid_not_stored
from prefect_imagegen.app.maintenance.verify_report import Problem, VerifyReport
from prefect_imagegen.core import layout
from prefect_imagegen.core.images.image import BadImageError, decode, facts_of
from prefect_imagegen.core.ledger.deliveries import Deliveries
from prefect_imagegen.core.ledger.delivery_columns import image_facts
from prefect_imagegen.core.ledger.events import ClaimRecord, ImageFacts
from prefect_imagegen.core.ledger.fold import KEY_TYPE, LedgerView, first_of_each_key
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.executor.context import MORE_IMAGES
from prefect_imagegen.store.heartbeat import StoreRunLiveness
from prefect_imagegen.store.ledger.event_file import EventFile
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore

AT_ONCE = 16
"""Images in memory at the same time."""
_SLICE_KEYS = 1 << 16


class Verification:
    """One comparison of a store's ledger and images. `run` does the work; `report` has the result.

    `repairer`: repairs problems; None if nothing is to be written.
    """

    def __init__(
        self,
        store: FsspecObjectStore,
        view: LedgerView,
        ledger: StoreLedger,
        run_liveness: StoreRunLiveness,
        repairer: Repairer | None,
        on_progress: Callable[[int], None],
    ) -> None:
        self.report = VerifyReport(store.url)
        self._store = store
        self._view = view
        self._ledger = ledger
        self._run_liveness = run_liveness
        self._repairer = repairer
        self._on_progress = on_progress
        self._adopted: set[bytes] = set()

    async def run(self) -> None:
        """Check recorded images, then unrecorded ones, then billed calls without an image. Raises StoreError."""
        unrecorded: list[str] = []
        async for events, paths in self._slices():
            unrecorded += sorted(paths - {event["image_path"] for event in events})
            await _each(events, partial(self._check, frozenset(paths)))
        if unrecorded:
            await self._check_unrecorded(unrecorded)
        await _each((await paid_not_stored(self._store)).items(), self._check_paid)
        self.report.problems.sort(key=lambda problem: (problem.kind, problem.path))

    async def _slices(self) -> AsyncIterator[tuple[list[dict[str, Any]], set[str]]]:
        """Slices of the store: delivered events and image paths of all keys that begin with some first bytes."""
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
            listings = await asyncio.gather(
                *(self._store.list(layout.images_below(first_byte)) for first_byte in group)
            )
            yield list(facts.values()), {info.path for listing in listings for info in listing}

    async def _check(self, present: frozenset[str], event: dict[str, Any]) -> None:
        facts = image_facts(event)
        if facts is None:
            return
        data = await self._store.get(facts.path) if facts.path in present else None
        problem: Problem | None = Problem("missing_image", facts.path, "not in the store")
        if data is not None:
            problem = await asyncio.to_thread(_compare, facts, data)
        self.report.images += data is not None
        self._on_progress(self.report.images)
        if problem is not None:
            self.report.problems.append(problem)
            if self._repairer is not None:
                problem.repair = await self._repairer.restore(event, facts, data)

    async def _check_unrecorded(self, paths: list[str]) -> None:
        # Read the ledger again: images that a run has recorded meanwhile are no problem.
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
                await self._check_unrecorded_image(path, None if known else keys.get(path))

        await _each(paths, check)

    async def _check_further(self, path: str, key: bytes, *, is_known: bool, is_delivered: bool) -> None:
        """Check a further image of an answer that had several, stored beside the key's own."""
        if not is_delivered and await self._ledger.claims(key):
            # Stored just before its run died, before the key's own image: the next run fetches the answer again.
            self.report.in_progress += 1
            return
        if not is_known:
            await self._check_unrecorded_image(path, None)
            return
        self.report.images += 1
        data = await self._store.get(path) or b""
        try:
            await asyncio.to_thread(decode, data)
        except BadImageError as error:
            problem = Problem("undecodable", path, str(error))
            self.report.problems.append(problem)
            if self._repairer is not None:
                problem.repair = await self._repairer.move_away(path, data)

    async def _check_paid(self, item: tuple[bytes, Sequence[dict[str, Any]]]) -> None:
        """Check a key without an image; `item` is the key and the failed events of its billed calls."""
        key, events = item
        if key in self._adopted:
            return
        claims = await self._ledger.claims(key)
        if await self._is_alive(claims):
            self.report.in_progress += 1
            return
        body = claims[-1].claim.body if claims else {}
        path = layout.image(key.hex(), GenerationRequest(str(events[-1]["model"]), body).extension)
        calls = ", ".join(f"{event['request_id']} ({event['error_kind']})" for event in events)
        problem = Problem("paid_not_stored", path, f"billed: {calls}; {events[-1]['error_message'] or ''}")
        self.report.problems.append(problem)
        if self._repairer is not None:
            problem.repair = await self._repairer.fetch_late(events, path)

    async def _is_alive(self, claims: Sequence[ClaimRecord]) -> bool:
        """Whether the run of the last claim is alive."""
        if not claims:
            return False
        last = claims[-1].claim
        return await self._run_liveness.liveness_of(last.owner or layout.heartbeat(last.run_id)) == "alive"

    async def _check_unrecorded_image(self, path: str, key: bytes | None) -> None:
        """Check an image that the ledger does not have. `key`: the request it belongs to by its path, if any."""
        claims = await self._ledger.claims(key) if key else ()
        if await self._is_alive(claims):
            self.report.in_progress += 1
            return
        data = await self._store.get(path) or b""
        facts: ImageFacts | None = None
        try:
            facts = facts_of(path, await asyncio.to_thread(decode, data), len(data))
            detail = "whole" if key else "whole, but no request's image lies there"
        except BadImageError as error:
            detail = str(error)
        self.report.images += 1
        problem = Problem("unrecorded_image", path, detail)
        self.report.problems.append(problem)
        if self._repairer is None:
            return
        if key is not None and facts is not None:
            problem.repair = await self._repairer.adopt(key, facts, claims[-1] if claims else None)
            self._adopted.add(key)
        else:
            problem.repair = await self._repairer.move_away(path, data)


def _groups_of_first_bytes(keys: pa.Array) -> Iterator[tuple[list[int], int]]:
    """Group the first bytes 0 to 255 so that each group has about `_SLICE_KEYS` keys; yields group and key count."""
    counts = pc.value_counts(pc.binary_slice(keys, 0, 1)).to_pylist()
    size = Counter({item["values"][0]: item["counts"] for item in counts})
    group: list[int] = []
    for first in range(256):
        group.append(first)
        count = sum(size[item] for item in group)
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
    """Call `work` on all items, `AT_ONCE` at a time; raises the first error."""
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
