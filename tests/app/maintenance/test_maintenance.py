"""Looking after a store: verify and mend it, reconcile it with the account, give rows free, and examine a place."""

import asyncio
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.doctor import Check, examine
from prefect_imagegen.app.maintenance.reconcile import ReconcileReport, reconcile
from prefect_imagegen.app.maintenance.resend import resend
from prefect_imagegen.app.maintenance.verify import verify
from prefect_imagegen.app.maintenance.verify_report import VerifyReport
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.core.ledger.events import Claim, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import LedgerView, events_table
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.heartbeat import Heartbeat, Process
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from tests.support.manifests import numbered

ROWS = 5
PRICE = 0.01
NOW = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    """A local store, its manifest and its account."""

    folder: Path
    gateway: EmbeddedGateway

    @property
    def store(self) -> StoreSettings:
        return StoreSettings(str(self.folder / "store"))

    @property
    def account(self) -> ProviderSettings:
        return ProviderSettings(base_url=self.gateway.url, api_key=SecretStr("k"))

    def generate(self, rows: int = ROWS, **options: object) -> RunResult:
        path = numbered(self.folder, rows)
        return prefect_imagegen.generate(path, self.store, backend=self.account, **options)

    def verify(self, *, repair: bool = False, account: ProviderSettings | None = None) -> VerifyReport:
        backend = account or self.account
        return asyncio.run(verify(self.store, backend, RunOptions(), repair=repair))

    def reconcile(self) -> ReconcileReport:
        return asyncio.run(reconcile(self.store, self.account, RunOptions()))

    def images(self) -> list[Path]:
        return sorted(path for path in (self.folder / "store" / "images").rglob("*") if path.is_file())

    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.folder.rglob("*") if path.is_file() and path.match("ledger/time") is False)
        return {str(path): path.read_bytes() for path in paths}

    def forget_the_ledger(self) -> None:
        """As if the process had died before its first segment."""
        for path in (self.folder / "store" / "ledger" / "segments").iterdir():
            path.unlink()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty store and an account."""
    with EmbeddedGateway(GatewaySettings(price_usd=PRICE)) as gateway:
        yield Place(tmp_path, gateway)


def kinds(report: VerifyReport) -> list[tuple[str, str | None]]:
    return [(problem.kind, problem.repair) for problem in report.problems]


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
            output.write_bytes(picture())
    else:
        place.gateway.account_state.settings.faults = FaultScript(faults=[Fault(on=["download"], **fault)])
    assert kinds(place.verify(repair=True)) == [("missing_image", None)]
    nine_days_later(place)
    assert kinds(place.verify(repair=True)) == [("missing_image", "quarantined")]


def nine_days_later(place: Place) -> None:
    """As if all of it had happened nine days ago: outputs are deleted by now."""
    (segment,) = (place.folder / "store" / "ledger" / "segments").iterdir()
    table = pq.read_table(segment)
    old = pa.array([NOW - timedelta(days=9)] * len(table), table.schema.field("time").type)
    pq.write_table(table.set_column(table.column_names.index("time"), "time", old), segment)


def test_without_a_key_nothing_is_given_free(place: Place) -> None:
    """A lost image that the API may still have waits for the key: its key is not given free, and not bought again."""
    place.generate()
    place.images()[0].unlink()
    report = place.verify(repair=True, account=ProviderSettings())
    assert (kinds(report), report.sound) == ([("missing_image", None)], False)
    assert place.generate().calls == 0
    assert kinds(place.verify(repair=True)) == [("missing_image", "fetched_again")]
    assert len(place.gateway.account_state.billed) == ROWS


def picture() -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(sink, "PNG")
    return sink.getvalue()


def several_images(place: Place, *flags: str) -> tuple[Path, Path]:
    """A store with one key whose answer had two images; the paths of both."""
    place.generate(1)
    (first,) = place.images()
    second = first.with_name(f"{first.stem}-2.png")
    second.write_bytes(picture())
    (segment,) = (place.folder / "store" / "ledger" / "segments").iterdir()
    table = pq.read_table(segment)
    column = [list(flags) if kind == "delivered" else None for kind in table["type"].to_pylist()]
    position = table.column_names.index("flags")
    pq.write_table(table.set_column(position, "flags", pa.array(column, pa.list_(pa.string()))), segment)
    return first, second


def test_further_images_of_an_answer_are_known(place: Place) -> None:
    """Images beside the key's own are no problem where the ledger tells of several, and are read like all others."""
    first, second = several_images(place, "more_images")
    tenth = second.with_name(f"{first.stem}-10.png")
    tenth.write_bytes(picture())
    report = place.verify(repair=True)
    assert (report.images, report.problems, report.sound) == (3, [], True)
    second.write_bytes(second.read_bytes()[:-20])
    assert kinds(place.verify()) == [("undecodable", None)]
    assert kinds(place.verify(repair=True)) == [("undecodable", "quarantined")]
    assert place.images() == sorted([first, tenth])
    assert place.generate(1).reused == 1


@pytest.mark.parametrize("name", ["{}-2.png", "{}-1.png", "{}-0.png", "{}-02.png", "{}-x.png", "{}-2-2.png"])
def test_images_that_the_ledger_does_not_tell_of(name: str, place: Place) -> None:
    """Where the ledger knows one image of a key, further ones are strangers, and so are names that nobody gives."""
    first, second = several_images(place, *(["more_images"] if name != "{}-2.png" else []))
    second.rename(first.with_name(name.replace("{}", first.stem)))
    assert kinds(place.verify()) == [("unrecorded_image", None)]
    assert kinds(place.verify(repair=True)) == [("unrecorded_image", "quarantined")]
    assert place.images() == [first]


def test_further_images_of_an_answer_half_stored(place: Place) -> None:
    """Further images whose key has no image yet are left to the run that settles the claim; without one, strangers."""
    first, second = several_images(place)
    first.unlink()
    place.forget_the_ledger()
    report = place.verify(repair=True)
    assert (report.in_progress, report.problems, place.images()) == (1, [], [second])
    for path in (place.folder / "store" / "ledger" / "claims").rglob("*.json"):
        path.unlink()
    assert kinds(place.verify(repair=True)) == [("unrecorded_image", "quarantined")]


def test_no_store_is_refused(place: Place) -> None:
    """A place that is no store is refused by name, and stays empty."""
    for call in (place.verify, place.reconcile):
        with pytest.raises(RefusedError) as refused:
            call()
        assert refused.value.kind == "store_not_found"
    assert not (place.folder / "store").exists()


def test_books_that_agree(place: Place) -> None:
    """After an undisturbed run, ledger and history agree to the cent."""
    place.generate()
    report = place.reconcile()
    assert (report.history_calls, report.ledger_calls, report.differences) == (ROWS, ROWS, [])
    assert report.history_usd == report.ledger_usd == pytest.approx(ROWS * PRICE)


def test_every_difference_is_named(place: Place) -> None:
    """A foreign call, a call bought twice, one not fetched and one that the history lacks: each by name, in dollars."""
    place.generate()
    with httpx.Client(base_url=place.gateway.url, headers={"x-api-key": "k"}) as client:
        foreign = client.post("/v1/flux-2-klein-9b", json={"prompt": "another program's"})
        body = place.gateway.account_state.billed[0].body
        twice = client.post("/v1/flux-2-klein-9b", json=body)
    missing = Event(
        "submitted", bytes(16), f"{bytes(16).hex()}-1", "r", datetime.now(UTC), request_id="gone", cost_usd=0.5
    )

    async def write() -> None:
        store = open_object_store(place.store.url)
        await store.create(layout.segment("s"), to_parquet(events_table([missing])))
        store.close()

    asyncio.run(write())
    report = place.reconcile()
    assert {(difference.kind, difference.request_id, difference.usd) for difference in report.differences} == {
        ("not_in_ledger", foreign.headers["x-request-id"], PRICE),
        ("paid_twice", twice.headers["x-request-id"], PRICE),
        ("not_in_history", "gone", -0.5),
    }
    assert report.history_usd == pytest.approx((ROWS + 2) * PRICE)


def test_calls_that_only_a_claim_knows(place: Place) -> None:
    """A call whose process died right after it got its id is ours: it waits to be fetched."""
    place.generate()
    place.forget_the_ledger()
    report = place.reconcile()
    assert [difference.kind for difference in report.differences] == ["not_fetched"] * ROWS
    place.generate()
    assert place.reconcile().differences == []


def test_a_window_too_wide_is_refused(place: Place) -> None:
    """The history answers a month at most, and a window needs an end after its start."""
    place.generate(1)
    for start, end in ((date(2026, 1, 1), date(2026, 11, 1)), (date(2026, 11, 2), date(2026, 11, 1))):
        with pytest.raises(RefusedError, match="no window of up to 31 days"):
            asyncio.run(reconcile(place.store, place.account, RunOptions(), start=start, end=end))


def test_held_rows_are_given_free(tmp_path: Path) -> None:
    """`retry` names what may be paid again; the next run asks for the held rows anew, and for no others."""
    script = FaultScript(faults=[Fault(fault="disconnect", when="after", times=2)])
    with EmbeddedGateway(GatewaySettings(price_usd=PRICE, faults=script)) as gateway:
        place = Place(tmp_path, gateway)
        first = place.generate(on_unknown="hold")
        assert (first.generated, first.held) == (ROWS - 2, 2)
        assert [(difference.kind, difference.usd) for difference in place.reconcile().differences] == [
            ("not_fetched", PRICE)
        ] * 2
        again = place.generate(on_unknown="hold")
        assert (again.held, again.calls) == (2, 0)
        freed = asyncio.run(resend(place.store, str(again.run_id)))
        assert (freed.rows, dict(freed.kinds)) == (2, {"unknown": 2})
        assert freed.risk_usd > 0
        third = place.generate(on_unknown="hold")
        assert (third.generated, third.reused, third.calls) == (2, ROWS - 2, 2)
        assert gateway.account_state.statistics()["billed_twice"] == 2
        kinds_now = [difference.kind for difference in place.reconcile().differences]
        assert kinds_now == ["paid_twice"] * 2


@pytest.mark.parametrize("alive", [False, True])
def test_a_newer_call_is_left_alone(alive: bool, tmp_path: Path) -> None:
    """`retry` of an old run leaves rows alone that a later run has sent, or works on: they are paid for."""
    script = FaultScript(faults=[Fault(fault="status", status=500, times=3)])
    with EmbeddedGateway(GatewaySettings(price_usd=PRICE, faults=script)) as gateway:
        place = Place(tmp_path, gateway)
        first = place.generate(1)
        assert first.failures == {"server_error": 1}
        (folder,) = {path.parent for path in (tmp_path / "store" / "ledger" / "claims").rglob("*.json")}
        body = json.loads((folder / "3.json").read_text())["body"]
        sent = httpx.post(f"{gateway.url}/v2/flux-2-klein-9b", json=body, headers={"x-api-key": "k"}).json()
        claim = Claim("later", "n", f"{folder.name}-4", datetime.now(UTC), body)
        key = bytes.fromhex(folder.name)

        async def write() -> None:
            store = open_object_store(place.store.url)
            clock = SystemClock()
            ledger = StoreLedger(store, LedgerView.empty(), run_id="later", nonce="n", clock=clock)
            await ledger.claim(key, 4, claim)
            await ledger.record_request_id(key, 4, sent["request_id"])
            beat = Heartbeat(store, "later", Process.this("n"), clock)
            await beat.beat(ended=not alive)
            store.close()

        asyncio.run(write())
        freed = asyncio.run(resend(place.store, str(first.run_id)))
        assert (freed.rows, freed.still_alive, freed.on_their_way) == (0, int(alive), int(not alive))
        if not alive:
            again = place.generate(1)
            assert (again.generated, again.calls, len(gateway.account_state.billed)) == (1, 0, 1)


def test_retry_by_kind(tmp_path: Path) -> None:
    """Only rows of the kinds named are given free; a kind that does not exist and an unknown run are refused."""
    script = FaultScript(faults=[Fault(fault="disconnect", when="after", times=1)])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        place = Place(tmp_path, gateway)
        run_id = str(place.generate(on_unknown="hold").run_id)
        assert asyncio.run(resend(place.store, run_id, ["content_policy"])).rows == 0
        with pytest.raises(RefusedError, match="--kind nonsense"):
            asyncio.run(resend(place.store, run_id, ["nonsense"]))
        with pytest.raises(RefusedError, match="no finished run 'other'"):
            asyncio.run(resend(place.store, "other"))
        assert asyncio.run(resend(place.store, run_id, ["unknown"])).rows == 1


def look(place: Place, **changes: object) -> dict[str, Check]:
    async def all_checks() -> list[Check]:
        backend = ProviderSettings(**{**asdict(place.account), **changes})
        return [check async for check in examine(place.store, backend, RunOptions())]

    return {check.name: check for check in asyncio.run(all_checks())}


def test_a_healthy_place(place: Place) -> None:
    """Everything is ok, the balance is named, nothing is billed and no probe stays behind."""
    checks = look(place)
    assert {check.state for check in checks.values()} == {"ok"}, checks
    assert set(checks) >= {"store", "create-only", "clock", "ledger", "endpoint", "kind", "key", "balance", "history"}
    assert not place.gateway.account_state.billed
    assert [path for path in place.folder.rglob("*") if path.is_file()] == []


def test_a_wrong_key_and_a_wrong_place(tmp_path: Path) -> None:
    """A rejected key, no key, an empty account, nobody listening: each fails with its remedy."""
    with EmbeddedGateway(GatewaySettings(api_key=SecretStr("right"), credits=0.0)) as gateway:
        place = Place(tmp_path, gateway)
        wrong = look(place)["key"]
        assert (wrong.state, wrong.remedy) == ("fail", "Set SEGMIND_API_KEY, or use a Segmind block.")
        assert look(place, api_key=None)["key"].state == "fail"
        assert look(place, api_key=SecretStr("right"))["balance"].state == "fail"
    nobody = look(place)
    assert nobody["endpoint"].state == "fail"
    assert "key" not in nobody


def test_a_sandbox_where_a_real_store_is(place: Place) -> None:
    """A backend that does not fit the store is told before a run is refused for it."""
    place.generate(1)
    (place.folder / "store" / "store.json").write_text('{"format": 1, "kind": "real"}')
    assert look(place)["kind"].state == "fail"


def test_a_store_that_cannot_be_written(tmp_path: Path, place: Place) -> None:
    """A store that refuses writes is told with the remedy; the rest is still looked at."""
    (tmp_path / "store").write_text("a file, no folder")
    checks = look(place)
    assert checks["store"].state == "fail"
    assert checks["store"].remedy
    assert checks["key"].state == "ok"


def test_a_store_whose_objects_stay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights without deletion are a warning: runs work, compaction leaves its garbage."""

    async def refuse(_: FsspecObjectStore, path: str) -> None:
        raise StoreError("store_read_only", f"{path} cannot be removed.")

    monkeypatch.setattr(FsspecObjectStore, "delete", refuse)
    assert look(place)["delete"].state == "warn"
