"""The faults that were found before, each to be put back into the product for the time of a `with`.

They are named as in the list of findings of November 2026: A1 to A15 billed twice or lost paid images; those of E are
changes of the code that no test noticed. Faults that the adversary itself found are in `own_mutations`. See
`test_sight`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from prefect_imagegen.core import layout
from prefect_imagegen.core.answers import jobs, outputs
from prefect_imagegen.core.answers.jobs import job_of
from prefect_imagegen.core.answers.json_values import error_text
from prefect_imagegen.core.answers.outputs import outputs_of
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.attempts import Attempts
from prefect_imagegen.core.ledger.events import RANK
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.core.policy.history_lookup import claim_form
from prefect_imagegen.executor import lookups
from prefect_imagegen.executor.attempt import STUCK_AT_LEAST_S, STUCK_UNMEASURED_S, AttemptRunner
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.deferred import DeferredRequests
from prefect_imagegen.executor.executor import Executor
from prefect_imagegen.executor.pending import PendingRequest, Retry
from prefect_imagegen.providers.segmind import history as segmind_history
from prefect_imagegen.providers.segmind import jobs as segmind_jobs
from prefect_imagegen.providers.segmind.history import SegmindHistory
from prefect_imagegen.providers.segmind.history_pages import Page
from prefect_imagegen.providers.segmind.provider import SegmindProvider
from prefect_imagegen.store.ledger.accounts import StoreAccounts
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger, segments
from prefect_imagegen.store.patient_store import PatientStore

from .world import session

Mutation = Callable[[], AbstractContextManager[Any]]


@contextmanager
def a1_own_id_excluded() -> Iterator[None]:
    """An id that only the ledger knows counts as another call's; and it is recorded before the claim stores it."""
    known, keep = StoreLedger.known, AttemptRunner._store_request_id

    async def claims_only(self: StoreLedger, key: bytes, *, lost: int = 0) -> Any:
        claims = await known(self, key, lost=lost)
        return [replace(claim, request_id=claim.record.request_id) if claim.record else claim for claim in claims]

    async def told_first(self: AttemptRunner, row: PendingRequest, request_id: str) -> None:
        await self._context.record(row, "submitted", request_id=request_id)
        await keep(self, row, request_id)

    with patch.object(StoreLedger, "known", claims_only), patch.object(AttemptRunner, "_store_request_id", told_first):
        yield


def a2_any_status_is_a_job() -> AbstractContextManager[Any]:
    """A body with a `status` tells of a job under any HTTP status, and an unknown word is a failure."""

    def any_job_of(value: Any, *, status: int = 200, request_id: str | None = None) -> Any:
        job = job_of(value)
        return replace(job, state="FAILED", error=error_text(b"")) if job and not job.is_known else job

    return patch.object(segmind_jobs, "job_of", any_job_of)


def a3_unknown_shape_is_empty() -> AbstractContextManager[Any]:
    """A listing that is not understood has no rows."""
    original = SegmindHistory._page

    async def page(self: SegmindHistory, *place: Any) -> Page:
        try:
            return await original(self, *place)
        except ProviderError as error:
            if "not understood" not in error.message:
                raise
            return Page(())

    return patch.object(SegmindHistory, "_page", page)


def a3_unreadable_differs() -> AbstractContextManager[Any]:
    """A history row that cannot be read, or that shows numbers as text, counts as another call."""

    def compare(shown: Mapping[str, Any] | None, claimed: Mapping[str, Any]) -> str:
        form = claim_form(shown) if isinstance(shown, Mapping) else {}
        return "same" if all(form.get(name) == value for name, value in claimed.items()) else "differs"

    return patch.object(segmind_history, "compare_calls", compare)


def a3_pages_without_end() -> AbstractContextManager[Any]:
    """Pages are asked for until one is empty, however often they repeat."""

    async def walk(self: SegmindHistory, read_page: Any, number: int, stop_before: object) -> list[Any]:
        records: list[Any] = []
        while (current := await read_page(number)).records:
            records += current.records
            number += 1
        return records

    return patch.object(SegmindHistory, "_walk", walk)


def a4_no_accounts() -> AbstractContextManager[Any]:
    """A look in the history takes every call of any account for one of its own."""

    async def ownership(self: StoreAccounts, attempt: object) -> str:
        return "same"

    return patch.object(StoreAccounts, "ownership", ownership)


def a5_junk_is_final() -> AbstractContextManager[Any]:
    """An output that cannot be fetched now is lost."""
    return patch.object(AttemptRunner, "_is_past_its_time", lambda self, row: True)


def a5_late_address_is_final() -> AbstractContextManager[Any]:
    """A history row of a finished call without an address is a lost output."""
    original = SegmindProvider.fetch

    async def fetch(self: SegmindProvider, request_id: str, *, is_old: bool = False) -> Any:
        try:
            return await original(self, request_id, is_old=is_old)
        except ProviderError:
            record = await self._history.detail(request_id)
            if record is None or record.status != "COMPLETED" or record.generation_urls:
                raise
        raise ProviderError("output_lost", "the history names no output", request_id=request_id, status=404)

    return patch.object(SegmindProvider, "fetch", fetch)


def a6_learned_patience_cuts() -> AbstractContextManager[Any]:
    """A paid POST is given up after a time learned from other calls."""

    async def send(self: AttemptRunner, row: PendingRequest) -> Any:
        patience = self._context.submits.patience(at_least=STUCK_AT_LEAST_S, unmeasured=STUCK_UNMEASURED_S)
        try:
            submission = await asyncio.wait_for(self._post(row), patience)
        except TimeoutError:
            return await self._after_refused_post(row, ProviderError("unknown", "no answer in time"))
        except ProviderError as error:
            return await self._after_refused_post(row, error)
        return await self._receive(row, submission)

    return patch.object(AttemptRunner, "_send", send)


@contextmanager
def a7_lost_end_keeps_open() -> Iterator[None]:
    """An attempt whose end was lost keeps its key open, and a permanent failure does not stop further attempts."""
    original = Attempts.states

    def states(self: Attempts, keys: pa.Array) -> pa.Array:
        folded = original(self, keys).to_pylist()
        for position, key in enumerate(keys.to_pylist()):
            if folded[position] == "failed" and any(rank < RANK["failed"] for rank in self.ranks(key).values()):
                folded[position] = "open"
        return pa.array(folded, pa.string())

    def state(self: Attempts, key: bytes) -> Any:
        return states(self, pa.array([key], pa.binary(len(key))))[0].as_py()

    mutated = patch.multiple(Attempts, states=states, state=state)
    with mutated, a8_kind_of_the_end_is_not_asked():
        yield


def a8_kind_of_the_end_is_not_asked() -> AbstractContextManager[Any]:
    """A closed attempt is followed by the next one, whatever its error kind."""

    def after(self: Claims, row: PendingRequest, last: Any, highest: int) -> Retry:
        row.claim_no = max(last.claim_no, highest) + 1
        return Retry()

    return patch.object(Claims, "_after_its_end", after)


def a10_store_fails_at_once() -> AbstractContextManager[Any]:
    """A store operation that failed once is not tried again."""

    async def again(self: PatientStore, call: object, error: Exception) -> None:
        raise error

    return patch.object(PatientStore, "_again", again)


def a11_machine_clock_only() -> AbstractContextManager[Any]:
    """The history is searched around the claim's machine time."""
    original = lookups.window_of

    def window_of(claim: Any, stored: object, sending_s: float) -> Any:
        return original(replace(claim, store_time=None, api_time=claim.time), None, sending_s)

    return patch.object(lookups, "window_of", window_of)


def a12_damage_ends_the_run() -> AbstractContextManager[Any]:
    """An error in one row ends the whole run."""

    async def unguarded(self: Executor, row: PendingRequest, call: Any) -> Any:
        step = await call
        self._context.control.moved()
        return step

    return patch.object(Executor, "_guarded", unguarded)


@contextmanager
def a13_first_image_only() -> Iterator[None]:
    """Of several images in an answer the first is taken."""

    def first_of(value: Any) -> Any:
        return outputs_of(value)[:1]

    in_job, in_body = (patch.object(module, "outputs_of", first_of) for module in (jobs, outputs))
    with in_job, in_body:
        yield


def a14_no_cost_no_measure() -> AbstractContextManager[Any]:
    """Answers without a cost measure nothing, so that a capped run stays at two calls."""
    original = Budget.settle

    def settle(self: Budget, reservation: Any, cost: float | None) -> None:
        original(self, reservation, cost)
        self.unnamed.clear()

    return patch.object(Budget, "settle", settle)


@contextmanager
def a15_lists_are_trusted() -> Iterator[None]:
    """A claim that exists and is not listed is tried again and again."""
    known = StoreLedger.known

    async def listed(self: StoreLedger, key: bytes, *, lost: int = 0) -> Any:
        names = {info.path.rsplit("/", 1)[1] for info in await self._store.list(layout.claims_of(key.hex()))}
        return [claim for claim in await known(self, key) if layout.claim_name(claim.claim_no) in names]

    async def at_once(self: Claims, row: PendingRequest, lost: int) -> Any:
        return await self._context.ledger.known(row.key)

    with patch.object(StoreLedger, "known", listed), patch.object(Claims, "_known", at_once):
        yield


def e_stored_id_is_kept() -> AbstractContextManager[Any]:
    """The second POST's id is never stored."""
    original = PendingRequest.begin

    def begin(self: PendingRequest) -> None:
        stored_id = self.stored_request_id
        original(self)
        self.stored_request_id = stored_id

    return patch.object(PendingRequest, "begin", begin)


def e_rows_in_use_are_cut() -> AbstractContextManager[Any]:
    """Deferred requests that are being worked on are given up like the others."""
    original = DeferredRequests.finish

    async def finish(self: DeferredRequests) -> Any:
        while waiting := [request for request in self._requests.values() if not request.task.done()]:
            if self._context.control.interrupted.is_set() or all(map(self._is_straggler, waiting)):
                break
            tasks = [request.task for request in waiting]
            await asyncio.wait(tasks, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
        for request in self._requests.values():
            request.task.cancel()
        return await original(self)

    return patch.object(DeferredRequests, "finish", finish)


def e_seen_after_the_ledger() -> AbstractContextManager[Any]:
    """Segments are listed after the ledger was read."""

    async def read_ledger(store: Any) -> tuple[Any, Any]:
        view = await load_ledger(store)
        return await segments(store), view

    return patch.object(session, "read_ledger", read_ledger)
