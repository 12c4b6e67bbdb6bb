"""Faults made by hand, of the executor and of the queue API's provider: they buy twice, lose images or tell a key."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.events import KnownAttempt
from prefect_imagegen.executor.attempt import AttemptRunner
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.executor import Executor
from prefect_imagegen.executor.lookups import Lookups
from prefect_imagegen.executor.pending import NextStep, PendingRequest, Retry
from prefect_imagegen.ports import Submission

from .game import page_source


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault: what is changed of the executor while it is there, or what the source of the provider is then."""

    executor: Callable[[], AbstractContextManager[Any]] = nullcontext
    source: Callable[[], str] = page_source


def no_claim() -> AbstractContextManager[Any]:
    """A POST is sent without a claim."""

    async def win(self: Claims, row: PendingRequest) -> None:
        return None

    return patch.object(Claims, "win", win)


def unknown_is_sent_again() -> AbstractContextManager[Any]:
    """A call without an answer counts as one that was not accepted."""
    original = AttemptRunner._after_refused_post

    async def after(self: AttemptRunner, row: PendingRequest, error: ProviderError) -> NextStep:
        kind = "not_accepted" if error.kind == "unknown" else error.kind
        return await original(self, row, ProviderError(kind, error.message, status=error.status))

    return patch.object(AttemptRunner, "_after_refused_post", after)


def a_5xx_is_sent_again() -> AbstractContextManager[Any]:
    """A call that was answered with an error of the server is sent again without a look."""

    async def after_5xx(self: Lookups, row: PendingRequest, error: ProviderError) -> Any:
        return await self._failures.handle(row, error)

    return patch.object(Lookups, "after_5xx", after_5xx)


def submitted_is_bought_again() -> AbstractContextManager[Any]:
    """A result that cannot be fetched now is bought anew."""

    async def after(self: AttemptRunner, row: PendingRequest, error: ProviderError) -> NextStep:
        return await self._failures.handle(row, ProviderError("generation_error", error.message))

    return patch.object(AttemptRunner, "_after_missing_result", after)


def a_missing_output_is_lost() -> AbstractContextManager[Any]:
    """An output that is missing now is given up at once."""
    return patch.object(AttemptRunner, "_is_past_its_time", lambda self, row: True)


def the_id_is_not_stored() -> AbstractContextManager[Any]:
    """The id of an accepted call goes into memory alone."""

    async def keep(self: AttemptRunner, row: PendingRequest, request_id: str) -> None:
        row.stored_request_id = request_id

    return patch.object(AttemptRunner, "_store_request_id", keep)


def an_open_claim_is_passed_over() -> AbstractContextManager[Any]:
    """A claim without an id, of a run that has ended, counts as one that was never sent."""
    original = Claims._follow

    async def follow(self: Claims, row: PendingRequest, last: KnownAttempt) -> Submission | NextStep:
        if last.request_id is not None:
            return await original(self, row, last)
        row.claim_no = last.claim_no + 1
        return Retry()

    return patch.object(Claims, "_follow", follow)


def lost_by_a_stop_is_unknown() -> AbstractContextManager[Any]:
    """A call whose answer a run no longer waits for is told as one that can be looked up."""

    def end(self: Executor, row: PendingRequest, result: Any) -> Any:
        return self._with_counts(row, result)

    return patch.object(Executor, "_end", end)


def changed(old: str, new: str) -> Callable[[], str]:
    """The source of the provider with one thing changed."""

    def source() -> str:
        assert page_source().count(old) == 1
        return page_source().replace(old, new)

    return source


def _in_executor(change: Callable[[], AbstractContextManager[Any]]) -> Mutation:
    return Mutation(executor=change)


def _in_provider(old: str, new: str) -> Mutation:
    return Mutation(source=changed(old, new))


NO_CLAIM = _in_executor(no_claim)
UNKNOWN_IS_SENT_AGAIN = _in_executor(unknown_is_sent_again)
A_5XX_IS_SENT_AGAIN = _in_executor(a_5xx_is_sent_again)
SUBMITTED_IS_BOUGHT_AGAIN = _in_executor(submitted_is_bought_again)
A_MISSING_OUTPUT_IS_LOST = _in_executor(a_missing_output_is_lost)
THE_ID_IS_NOT_STORED = _in_executor(the_id_is_not_stored)
AN_OPEN_CLAIM_IS_PASSED_OVER = _in_executor(an_open_claim_is_passed_over)
LOST_BY_A_STOP_IS_UNKNOWN = _in_executor(lost_by_a_stop_is_unknown)
A_LOST_CALL_WAS_NOT_SENT = _in_provider('kind = "unsent" if never_sent(error) else "unknown"', 'kind = "unsent"')
NO_ID_IS_NO_CALL = _in_provider(
    'raise ProviderError("unknown", "the answer', 'raise ProviderError("unsent", "the answer'
)
A_REDIRECT_IS_NO_CALL = _in_provider(
    "raise ProviderError(classify_answer(status, text)", 'raise ProviderError("unsent"'
)
ANY_422_IS_A_FAILURE = _in_provider(
    'error_of(value.get("detail")) if status == 422', "error_text(repr(value).encode()) if status == 422"
)
A_FORGOTTEN_JOB_HAS_FAILED = _in_provider(
    'raise ProviderError("submitted", f"a poll', 'raise ProviderError("generation_failed", f"a poll'
)
THE_FIRST_IMAGE_ONLY = _in_provider("for address in urls]", "for address in urls[:1]]")
THE_KEY_GOES_TO_THE_FILES = _in_provider(
    'async with self._client.stream("GET", url) as response:',
    'async with self._client.stream("GET", url, headers={"authorization": f"Key {self._key}"}) as response:',
)
