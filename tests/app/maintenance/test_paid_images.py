"""Verify: images that were paid and never came are fetched; what cannot be is told."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import Event, ImageFacts
from prefect_imagegen.core.ledger.fold import events_table
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.heartbeat import Heartbeat, Process
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.object_store import open_object_store
from tests.app.maintenance.conftest import NOW, ROWS, Place, kinds, nine_days_later
from tests.support.builders.images import png


def write_events(place: Place, *events: Event, name: str = "s") -> None:
    async def write() -> None:
        store = open_object_store(place.store.url)
        await store.create(layout.segment(name), to_parquet(events_table(list(events))))
        store.close()

    asyncio.run(write())


def calls_of(place: Place) -> dict[bytes, str]:
    """The request_id of each key."""
    paths = (place.folder / "store" / "ledger" / "claims").rglob("*.id.json")
    return {bytes.fromhex(path.parent.name): json.loads(path.read_text())["request_id"] for path in paths}


def fail_after_paying(place: Place, kind: str = "bad_output", rows: int = ROWS) -> list[Event]:
    """As if the images of a run could not have been fetched: billed, closed as failed, nothing stored."""
    place.generate(rows)
    place.forget_the_ledger()
    for path in place.images():
        path.unlink()
    failed = [
        Event(
            *("failed", key, f"{key.hex()}-1", "r", datetime.now(UTC)),
            request_id=request_id,
            error_kind=kind,
            error_message="was junk",
            model="flux-2-klein-9b",
            cost_class="c",
            seed=7,
        )
        for key, request_id in calls_of(place).items()
    ]
    write_events(place, *failed)
    return failed


@pytest.mark.parametrize("kind", ["bad_output", "output_lost"])
def test_paid_images_that_never_came_are_fetched(kind: str, place: Place) -> None:
    """Billed calls without an image are told; with a key, repair fetches, stores and records them, and pays nothing."""
    fail_after_paying(place, kind)
    before = place.files()
    report = place.verify()
    assert kinds(report) == [("paid_not_stored", None)] * ROWS
    assert not report.sound
    for problem in report.problems:
        key = bytes.fromhex(Path(problem.path).stem)
        assert calls_of(place)[key] in problem.detail
        assert kind in problem.detail
    assert place.files() == before
    assert kinds(place.verify(repair=True, account=ProviderSettings())) == [("paid_not_stored", None)] * ROWS
    report = place.verify(repair=True)
    assert kinds(report) == [("paid_not_stored", "fetched_again")] * ROWS
    assert report.sound
    assert place.verify().problems == []
    again = place.generate()
    assert (again.reused, again.calls, len(place.gateway.account_state.billed)) == (ROWS, 0, ROWS)
    path = place.folder / "store" / "runs" / str(again.run_id) / "metadata"
    assert pq.read_table(path)["flags"].to_pylist() == [["late"]] * ROWS
    assert place.reconcile().differences == []


def test_paid_images_may_come_later_still(place: Place) -> None:
    """While the host of the outputs serves junk, a paid call stays a problem; later it is fetched."""
    fail_after_paying(place, rows=1)
    place.gateway.account_state.settings.faults = FaultScript(faults=[Fault(fault="html", on=["download"])])
    assert kinds(place.verify(repair=True)) == [("paid_not_stored", None)]
    assert place.images() == []
    place.gateway.account_state.settings.faults = FaultScript()
    assert place.verify(repair=True).sound


def test_any_call_of_a_key_will_do(place: Place) -> None:
    """Of several billed calls of one key, the first that still has its image gives it; the key is told of once."""
    (failed,) = fail_after_paying(place, rows=1)
    lost = replace(failed, request_id="lost", time=failed.time - timedelta(days=3))
    write_events(place, lost, replace(lost, time=NOW), name="t")
    (problem,) = place.verify().problems
    assert problem.detail.count("lost (bad_output)") == 1
    assert str(failed.request_id) in problem.detail
    assert kinds(place.verify(repair=True)) == [("paid_not_stored", "fetched_again")]
    assert place.verify().sound


def test_what_is_no_lost_payment(place: Place) -> None:
    """Keys with an image, failures that were not billed, calls without an id, images given up: no lost payments."""
    delivered, free, unnamed, given_up, _ = fail_after_paying(place)
    facts = ImageFacts(layout.image(delivered.key.hex(), "png"), 8, 8, "png", 1, "ab" * 32)
    others = [
        replace(delivered, type="delivered", attempt_id=f"{delivered.key.hex()}-2", image=facts),
        replace(given_up, type="quarantined", error_kind=None),
    ]
    failures = [replace(free, error_kind="generation_failed"), replace(unnamed, request_id=None)]
    (place.folder / "store" / layout.segment("s")).unlink()
    write_events(place, delivered, given_up, *failures, *others)
    assert kinds(place.verify()) == [("missing_image", None)]


def test_a_living_run_fetches_its_own_payments(place: Place) -> None:
    """What a living run has claimed is left to it."""
    fail_after_paying(place)
    claim = next((place.folder / "store" / "ledger" / "claims").rglob("1.json"))

    async def revive() -> None:
        store = open_object_store(place.store.url)
        run_id = json.loads(claim.read_text())["run_id"]
        await Heartbeat(store, run_id, Process.this("n"), SystemClock()).beat()
        store.close()

    asyncio.run(revive())
    report = place.verify(repair=True)
    assert (report.in_progress, report.problems, place.images()) == (ROWS, [], [])


@pytest.mark.parametrize("fault", [{"fault": "html"}, {"fault": "black_image"}])
def test_junk_is_no_proof_that_a_paid_image_is_gone(fault: dict[str, object], place: Place) -> None:
    """While outputs live, a host that serves something else gives no key free; after eight days it does."""
    place.generate(1)
    place.images()[0].unlink()
    if fault["fault"] == "black_image":
        # Another whole image than the one that is recorded.
        for output in place.gateway.account_state.folder.iterdir():
            output.write_bytes(png())
    else:
        place.gateway.account_state.settings.faults = FaultScript(faults=[Fault(on=["download"], **fault)])
    assert kinds(place.verify(repair=True)) == [("missing_image", None)]
    nine_days_later(place)
    assert kinds(place.verify(repair=True)) == [("missing_image", "quarantined")]


def test_without_a_key_nothing_is_given_free(place: Place) -> None:
    """A lost image that the API may still have waits for the key: its key is not given free, and not bought again."""
    place.generate()
    place.images()[0].unlink()
    report = place.verify(repair=True, account=ProviderSettings())
    assert (kinds(report), report.sound) == ([("missing_image", None)], False)
    assert place.generate().calls == 0
    assert kinds(place.verify(repair=True)) == [("missing_image", "fetched_again")]
    assert len(place.gateway.account_state.billed) == ROWS
