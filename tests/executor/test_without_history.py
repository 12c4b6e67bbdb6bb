"""Calls at providers that keep no history, and at those that honour an idempotency key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.ports import Submission
from prefect_imagegen.store.ledger.reading import load_ledger
from tests.executor.conftest import Bench, error, other_claim

pytestmark = pytest.mark.anyio


@pytest.fixture
def forgetful(tmp_path: Path) -> Bench:
    """A bench whose provider declares no history."""
    bench = Bench(tmp_path / "bench", LedgerView.empty())
    bench.provider.abilities = replace(bench.provider.abilities, history=False)
    return bench


@pytest.mark.parametrize("kind", ["unknown", "server_error", "unavailable"])
async def test_what_nobody_can_look_up_is_held_at_once(kind: str, forgetful: Bench):
    """A call that may have been taken is held without a look, a wait or another call."""
    forgetful.provider.submits = [error(kind, status=503 if kind == "unavailable" else None)]
    result = await forgetful.make()
    assert (result.status, result.error_kind) == ("held", "no_history")
    assert forgetful.provider.history == ["submit"]


async def test_a_5xx_of_a_call_that_is_not_queued_is_not_billed(forgetful: Bench):
    """Where the answer is the image, a 5xx was not accepted: it is sent again, history or not."""
    forgetful.provider.abilities = replace(forgetful.provider.abilities, queue=False)
    forgetful.provider.submits = [error("unavailable", status=503), "r1"]
    assert (await forgetful.make()).status == "generated"
    assert forgetful.provider.history.count("submit") == 2


async def test_a_call_that_an_earlier_run_left(tmp_path: Path):
    """An earlier run's call without an id stays held, and nothing is asked or sent."""
    bench = Bench(tmp_path / "bench", LedgerView.empty())
    bench.provider.abilities = replace(bench.provider.abilities, history=False)
    await other_claim(bench, None)
    result = await bench.make()
    assert (result.status, result.error_kind, bench.provider.history) == ("held", "no_history", [])


class _Keys:
    """Notes the idempotency key and the addresses of each POST."""

    def __init__(self, bench: Bench) -> None:
        self.keys: list[str | None] = []
        submit = bench.provider.submit

        async def noted(request: Any, urls: Any, *, idempotency_key: str | None = None) -> Submission:
            self.keys.append(idempotency_key)
            return await submit(request, urls)

        bench.provider.submit = noted  # type: ignore[method-assign]
        bench.provider.abilities = replace(bench.provider.abilities, history=False, idempotency_key=True)


@pytest.mark.parametrize("kind", ["unknown", "unavailable"])
async def test_the_same_attempt_is_sent_again_with_the_same_key(kind: str, forgetful: Bench):
    """Where keys are honoured, a broken connection is no loss: the same claim is sent again, with the same key."""
    posts = _Keys(forgetful)
    forgetful.provider.submits = [error(kind, status=503 if kind == "unavailable" else None), "r1"]
    result = await forgetful.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "r1", 2)
    assert len(posts.keys) == 2
    assert posts.keys[0] == posts.keys[1]
    assert str(posts.keys[0]).endswith("-1")


async def test_a_key_is_not_sent_for_ever(forgetful: Bench):
    """After two more POSTs of the attempt the row is held: the provider may not honour what it promised."""
    posts = _Keys(forgetful)
    forgetful.provider.submits = [error("unknown")] * 9
    result = await forgetful.make()
    assert (result.status, result.error_kind) == ("held", "no_history")
    assert len(posts.keys) == 3
    assert len(set(posts.keys)) == 1


async def test_another_attempt_has_another_key(forgetful: Bench):
    """A call that certainly was not accepted is followed by another attempt, with a key of its own."""
    posts = _Keys(forgetful)
    forgetful.provider.submits = [error("rate_limited", status=429), "r1"]
    assert (await forgetful.make()).status == "generated"
    assert len(set(posts.keys)) == 2


async def test_an_old_claim_is_not_sent_again(forgetful: Bench):
    """A minute after its claim an attempt is not sent again: another run may be about to take it over."""
    posts = _Keys(forgetful)
    submit = forgetful.provider.submit

    async def slow(*arguments: Any, **options: Any) -> Submission:
        await forgetful.clock.sleep(61.0)
        return await submit(*arguments, **options)

    forgetful.provider.submit = slow  # type: ignore[method-assign]
    forgetful.provider.submits = [error("unknown"), "r1"]
    result = await forgetful.make()
    assert (result.status, result.error_kind, len(posts.keys)) == ("held", "no_history", 1)


async def test_no_key_is_sent_where_none_is_honoured(forgetful: Bench):
    """A provider that declares no idempotency keys is given none, and nothing is sent twice."""
    posts = _Keys(forgetful)
    forgetful.provider.abilities = replace(forgetful.provider.abilities, idempotency_key=False)
    forgetful.provider.submits = [error("unknown"), "r1"]
    result = await forgetful.make()
    assert (result.status, posts.keys) == ("held", [None])
    await forgetful.ledger.flush()
    assert (await load_ledger(forgetful.store)).delivered_keys.to_pylist() == []


async def test_a_bug_after_the_call_is_no_call_to_look_up(forgetful: Bench):
    """However a call is lost, its row says that nobody can look it up: the remedy of `unknown` would be wrong."""

    async def broken(*_: Any, **__: Any) -> Submission:
        raise ValueError("a bug of the provider")

    forgetful.provider.submit = broken  # type: ignore[method-assign]
    result = await forgetful.make()
    assert (result.status, result.error_kind) == ("held", "no_history")
    assert str(result.error_message).endswith("the provider keeps no request history to look it up in")
