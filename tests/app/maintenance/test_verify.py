"""Verify: every damage of a store has its name, and what can be mended is."""

import asyncio
import hashlib

import pytest
from pydantic import SecretStr

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.ledger.events import Event, ImageFacts
from prefect_imagegen.core.ledger.fold import events_table
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.heartbeat import Heartbeat, Process
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.object_store import open_object_store
from tests.app.maintenance.conftest import NOW, ROWS, Place, kinds, nine_days_later


def test_a_whole_store_is_sound(place: Place) -> None:
    """Every image is read; nothing is wrong, nothing is written."""
    place.generate()
    before = place.files()
    report = place.verify()
    assert (report.images, report.problems, report.sound) == (ROWS, [], True)
    assert place.files() == before


def test_every_damage_has_its_name(place: Place) -> None:
    """A lost image, a changed one and strangers are told apart; without repair nothing is touched."""
    place.generate()
    lost, changed, whole, *_ = place.images()
    lost.unlink()
    changed.write_bytes(changed.read_bytes()[:-7])
    (changed.parent / ("0" * 32 + ".png")).write_bytes(b"no image")
    (changed.parent / "holiday.jpg").write_bytes(whole.read_bytes())
    before = place.files()
    report = place.verify()
    assert report.kinds == {"missing_image": 1, "wrong_bytes": 1, "unrecorded_image": 2}
    assert {problem.repair for problem in report.problems} == {None}
    assert not report.sound
    missing = next(problem for problem in report.problems if problem.kind == "missing_image")
    assert missing.path.endswith(lost.name)
    assert place.files() == before


def test_recorded_bytes_that_are_no_image(place: Place) -> None:
    """Bytes that are as recorded and no image are told, and quarantined with their event."""
    place.generate(1)
    key, data = bytes.fromhex("ab" * 16), b"\x89PNG but no more"
    path = layout.image(key.hex(), "png")
    facts = ImageFacts(path, 1, 1, "png", len(data), hashlib.sha256(data).hexdigest())
    event = Event("delivered", key, f"{key.hex()}-1", "r", NOW, image=facts)

    async def write() -> None:
        store = open_object_store(place.store.url)
        await store.create(path, data)
        await store.create(layout.segment("s"), to_parquet(events_table([event])))
        store.close()

    asyncio.run(write())
    assert kinds(place.verify()) == [("undecodable", None)]
    assert kinds(place.verify(repair=True)) == [("undecodable", "quarantined")]
    assert place.verify().sound


def test_lost_images_are_fetched_again(place: Place) -> None:
    """With a key, repair brings paid images back by their request ids: nothing is billed, nothing is made again."""
    place.generate()
    before = place.files()
    lost, changed, *_ = place.images()
    lost.unlink()
    changed.write_bytes(b"bit rot")
    report = place.verify(repair=True)
    assert kinds(report) == [("missing_image", "fetched_again"), ("wrong_bytes", "fetched_again")]
    assert report.sound
    assert {name: data for name, data in place.files().items() if "quarantine" not in name} == before
    assert place.verify().problems == []
    assert place.generate().calls == 0
    assert len(place.gateway.account_state.billed) == ROWS


def test_what_cannot_be_fetched_is_kept_and_given_free(place: Place) -> None:
    """When outputs are deleted, damaged bytes go to quarantine/, and the next run makes just these images anew."""
    place.generate()
    nine_days_later(place)
    lost, changed, *_ = place.images()
    lost.unlink()
    changed.write_bytes(b"bit rot")
    report = place.verify(repair=True, account=ProviderSettings())
    assert kinds(report) == [("missing_image", "quarantined"), ("wrong_bytes", "quarantined")]
    assert not report.sound
    quarantined = [path for path in (place.folder / "store" / "quarantine").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in quarantined] == [b"bit rot"]
    assert changed not in place.images()
    assert place.verify().problems == []
    again = place.generate()
    assert (again.generated, again.reused, again.calls) == (2, ROWS - 2, 2)
    assert place.verify().images == ROWS


def test_unrecorded_images_are_adopted(place: Place) -> None:
    """Images whose process died before the ledger learned of them are adopted, at the cost that the history names."""
    place.generate()
    place.forget_the_ledger()
    assert place.verify().kinds == {"unrecorded_image": ROWS}
    report = place.verify(repair=True)
    assert kinds(report) == [("unrecorded_image", "adopted")] * ROWS
    assert report.sound
    again = place.generate()
    assert (again.reused, again.calls) == (ROWS, 0)
    assert place.reconcile().differences == []


def test_an_unreachable_api_gives_nothing_free(place: Place) -> None:
    """While the API cannot be asked, a lost image stays a problem; what is still there is never bought again."""
    place.generate()
    place.images()[0].unlink()
    nobody = ProviderSettings(base_url="http://127.0.0.1:9", api_key=SecretStr("k"))
    assert kinds(place.verify(repair=True, account=nobody)) == [("missing_image", None)]
    assert kinds(place.verify(repair=True)) == [("missing_image", "fetched_again")]
    assert len(place.gateway.account_state.billed) == ROWS


def test_an_error_half_way_loses_no_record(place: Place) -> None:
    """Where the repair of one image fails, what was done about others is known to the next run."""
    place.generate()
    nine_days_later(place)
    rotten = place.images()[0]
    rotten.write_bytes(b"bit rot")
    key = "ab" * 16
    for path in (place.folder / "store" / layout.image(key, "png"), place.folder / "store" / layout.claim(key, 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(RefusedError, match=r"1\.json is missing"):
        place.verify(repair=True, account=ProviderSettings())
    assert not rotten.exists()
    again = place.generate()
    assert (again.generated, again.reused) == (1, ROWS - 1)
    assert rotten.exists()


def test_a_restored_image_is_adopted_for_good(place: Place) -> None:
    """An image that comes back from a backup after it was given up is adopted once, and not made again."""
    place.generate()
    lost = place.images()[0]
    data = lost.read_bytes()
    lost.unlink()
    nine_days_later(place)
    assert kinds(place.verify(repair=True, account=ProviderSettings())) == [("missing_image", "quarantined")]
    lost.write_bytes(data)
    assert kinds(place.verify(repair=True)) == [("unrecorded_image", "adopted")]
    assert place.verify().problems == []
    assert place.generate().calls == 0


def test_strangers_are_moved_away(place: Place) -> None:
    """What is no image of any request is moved to quarantine/, whole or not, and never deleted."""
    place.generate()
    folder = place.images()[0].parent
    (folder / ("0" * 32 + ".png")).write_bytes(b"no image")
    (folder / "holiday.jpg").write_bytes(place.images()[0].read_bytes())
    assert kinds(place.verify(repair=True)) == [("unrecorded_image", "quarantined")] * 2
    assert len(list((place.folder / "store" / "quarantine").rglob("*.*"))) == 2
    assert place.verify().problems == []


def test_a_living_run_is_left_alone(place: Place) -> None:
    """An image that a living run has stored and not yet recorded is in progress, not a problem."""
    run = place.generate()
    place.forget_the_ledger()

    async def revive() -> None:
        store = open_object_store(place.store.url)
        await Heartbeat(store, str(run.run_id), Process.this("n"), SystemClock()).beat()
        store.close()

    asyncio.run(revive())
    report = place.verify(repair=True)
    assert (report.in_progress, report.problems) == (ROWS, [])


def test_no_store_is_refused(place: Place) -> None:
    """A place that is no store is refused by name, and stays empty."""
    for call in (place.verify, place.reconcile):
        with pytest.raises(RefusedError) as refused:
            call()
        assert refused.value.kind == "store_not_found"
    assert not (place.folder / "store").exists()
