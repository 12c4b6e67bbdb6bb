"""What is not understood is held, and what was paid is fetched: an API that answers in ways of its own, on a socket.

The gateway's records are the judge.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.doctor import examine
from prefect_imagegen.executor import attempt as calls
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.gateway_runs import PRICE, api, assert_paid_once, generate, mend, metadata, report

VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])
ENVELOPES = ["items", "requests", "bare", "error", "empty_body", "cut", "html"]
"""Listings that are no list of rows where one has to be."""


@pytest.mark.parametrize("state", ["error", "FAILED"])
@pytest.mark.parametrize(("status", "call"), [(503, "status"), (500, "result"), (429, "status"), (200, "result")])
def test_a_poll_that_is_answered_with_an_error(status: int, call: str, state: str, tmp_path: Path) -> None:
    """JSON about an error in place of a poll's answer ends no call, whatever state it names: all are delivered."""
    body = {"status": state, "message": "upstream is busy"}
    fault = {"fault": "json_error", "status": status, "body": body, "on": [call], "every": 2, "seconds": 0}
    # Polls are made more seldom for minutes after a 429.
    with api(fault | ({"times": 1} if status == 429 else {}), latency_s=0.1) as gateway:
        result = generate(gateway, tmp_path, 12, max_in_flight=4)
        assert (result.generated, result.calls, result.failures, result.maybe_paid) == (12, 12, {}, 0)
        assert_paid_once(gateway, 12)
    assert result.cost_usd == pytest.approx(12 * PRICE)
    assert status not in (500, 503) or sum(report(tmp_path, result)["not_understood"].values()) >= 1


def left_unanswered(gateway: EmbeddedGateway, folder: Path, rows: int, version: str) -> None:
    """A run whose calls were all done, and none answered."""
    result = generate(gateway, folder, rows, api_version=version, on_unknown="hold")
    assert (result.held, result.failures) == (rows, {"unknown": rows})
    while len(gateway.account_state.billed) < rows:
        time.sleep(0.01)
    assert_paid_once(gateway, rows)


@VERSIONS
@pytest.mark.parametrize("shape", [*ENVELOPES, "no_body", "no_id"])
def test_a_history_in_another_shape(shape: str, version: str, tmp_path: Path) -> None:
    """A listing that cannot be read proves nothing: the rows are held, however late, and found once it can be read."""
    lost = {"fault": "disconnect", "when": "after"}
    with api(lost, {"fault": "history_shape", "shape": shape}) as gateway:
        left_unanswered(gateway, tmp_path, 3, version)
        held = generate(gateway, tmp_path, 3, api_version=version)
        assert (held.held, held.failures, held.calls, held.cost_usd) == (3, {"unknown": 3}, 0, 0.0)
        if shape in ENVELOPES:
            counts = report(tmp_path, held)["not_understood"]
            assert sum(counts.values()) >= 1
            assert all("history" in answer for answer in counts)
        else:
            # The listing is one; it is its rows that cannot be told from the call.
            assert all("request history cannot be told" in row["error_message"] for row in metadata(tmp_path, held))
        mend(gateway)
        result = generate(gateway, tmp_path, 3, api_version=version)
        assert (result.generated, result.calls, result.not_understood) == (3, 0, {})
        assert_paid_once(gateway, 3)
    assert result.cost_usd == pytest.approx(3 * PRICE)


@VERSIONS
@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "history_shape", "shape": "text_numbers"},
        {"fault": "history_shape", "shape": "no_time"},
        {"fault": "clamp_pages", "per_page": 2},
        {"fault": "small_pages", "per_page": 2},
    ],
    ids=["text_numbers", "no_time", "clamp_pages", "small_pages"],
)
def test_a_history_that_is_understood_all_the_same(fault: dict[str, Any], version: str, tmp_path: Path) -> None:
    """Numbers as text, rows without times, page numbers that are clamped and small pages hide no call."""
    with api({"fault": "disconnect", "when": "after"}, fault) as gateway:
        left_unanswered(gateway, tmp_path, 5, version)
        result = generate(gateway, tmp_path, 5, api_version=version)
        assert (result.generated, result.calls) == (5, 0)
        assert_paid_once(gateway, 5)


@pytest.mark.parametrize("shape", [None, *ENVELOPES])
def test_doctor_knows_a_history_that_it_cannot_read(shape: str | None, tmp_path: Path) -> None:
    """The doctor fails where the request history is in an unknown shape, and passes where it is in the known one."""
    faults = [{"fault": "history_shape", "shape": shape}] if shape else []

    async def history(gateway: EmbeddedGateway) -> str:
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        checks = examine(StoreSettings(str(tmp_path / "store")), backend, RunOptions())
        (check,) = [check async for check in checks if check.name == "history"]
        return check.state

    with api(*faults) as gateway:
        assert asyncio.run(history(gateway)) == ("fail" if shape else "ok")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no image are asked for again without long pauses."""
    monkeypatch.setattr(calls, "backoff", lambda *_: 0.01)


Older = Callable[[int], None]
JUNK = pytest.mark.parametrize("junk", ["html", "junk", "empty_body"])


@JUNK
@pytest.mark.usefixtures("hasty")
def test_downloads_that_are_junk_for_a_while(junk: str, tmp_path: Path) -> None:
    """What a CDN serves in place of paid images gives none of them up: held, then delivered by the next run."""
    with api({"fault": junk, "on": ["download"], "times": 15}) as gateway:
        held = generate(gateway, tmp_path, 3)
        assert (held.held, held.failures, held.calls) == (3, {"submitted": 3}, 3)
        assert all(row["request_id"] for row in metadata(tmp_path, held))
        result = generate(gateway, tmp_path, 3)
        assert (result.generated, result.calls) == (3, 0)
        assert_paid_once(gateway, 3)
    assert result.cost_usd == pytest.approx(3 * PRICE)


@pytest.mark.usefixtures("hasty")
def test_a_row_of_the_history_without_its_address(tmp_path: Path) -> None:
    """A call that the history knows, and whose output it does not name yet, is waited for, not given up."""
    lost = {"fault": "disconnect", "when": "after"}
    with api(lost, {"fault": "history_shape", "shape": "no_url"}) as gateway:
        left_unanswered(gateway, tmp_path, 2, "v2")
        gateway.account_state.settings.record_ttl_s = 0.0  # only the history still knows them
        held = generate(gateway, tmp_path, 2, deadline=2.0)
        assert (held.held, held.failures, held.calls) == (2, {"submitted": 2}, 0)
        mend(gateway)
        assert generate(gateway, tmp_path, 2).generated == 2
        assert_paid_once(gateway, 2)


@pytest.fixture
def days_later(tmp_path: Path) -> Older:
    """Makes all claims of the store older, by each of the clocks that know them."""

    def make_older(days: int) -> None:
        for path in (tmp_path / "store" / "ledger" / "claims").rglob("[0-9].json"):
            claim = json.loads(path.read_text())
            for name in ("time", "store_time", "api_time"):
                claim[name] = claim[name] and str(datetime.fromisoformat(claim[name]) - timedelta(days=days))
            then = path.stat().st_mtime - days * 86400
            path.write_text(json.dumps(claim))
            os.utime(path, (then, then))

    return make_older


@JUNK
@pytest.mark.usefixtures("hasty")
def test_what_was_billed_and_is_lost_tells_its_cost(
    junk: str, days_later: Callable[[int], None], tmp_path: Path
) -> None:
    """A paid output that is still junk after its eight days fails its row, with its cost; nobody buys it again."""
    with api({"fault": junk, "on": ["download"]}) as gateway:
        assert generate(gateway, tmp_path, 2).held == 2
        days_later(9)
        lost = generate(gateway, tmp_path, 2)
        assert (lost.failed, lost.failures, lost.calls, lost.paid) == (2, {"bad_output": 2}, 0, 2)
        assert [row["cost_usd"] for row in metadata(tmp_path, lost)] == [PRICE, PRICE]
        assert lost.cost_usd == pytest.approx(2 * PRICE)
        again = generate(gateway, tmp_path, 2)
        assert (again.failed, again.calls) == (2, 0)
        assert_paid_once(gateway, 2)


@VERSIONS
def test_a_post_that_is_answered_late(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that takes far longer than all before is awaited, without a slot: delivered in the run, paid once."""
    monkeypatch.setattr(calls, "STUCK_AT_LEAST_S", 0.2)
    slow = {"fault": "hang", "on": ["submit", "run"], "prompt_contains": "number 25.", "seconds": 3}
    with api(slow) as gateway:
        result = generate(gateway, tmp_path, 30, api_version=version, max_in_flight=1)
        assert (result.generated, result.calls, result.maybe_paid, result.failures) == (30, 30, 0, {})
        assert_paid_once(gateway, 30)
        # The one slot was given away meanwhile: the slow call was taken on after others that were sent later.
        taken = [record.body["prompt"] for record in gateway.account_state.records.values()]
        assert taken.index("scene number 25.") > 25
