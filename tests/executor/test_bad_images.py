"""What ends a row or a run in an attempt: bad bytes, a store that fails, errors that nobody expected."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.object_store import FsspecObjectStore
from tests.executor.conftest import HEX, REQUEST, Bench, error
from tests.support.builders.images import encoded, png
from tests.support.builders.requests import request_for

pytestmark = pytest.mark.anyio


async def test_bad_bytes_are_fetched_again_never_bought(bench: Bench) -> None:
    """Bytes that are no image are fetched five times, ever later; then the row is held, after one POST."""
    bench.provider.collects = [b"<html>", png()[:100], b"", b""]
    started = bench.clock.monotonic()
    assert (await bench.make()).status == "generated"
    assert bench.provider.history == ["submit", *["collect"] * 5]
    assert bench.clock.monotonic() - started > 1.0
    bench.provider.collects = [b"", b"", b"", b"", b"", b""]
    result = await bench.make(request_for("b", 1))
    assert (result.status, result.error_kind, result.attempts) == ("held", "submitted", 1)
    assert result.request_id == "r1"


@pytest.mark.parametrize(("days", "ends"), [(0, "held"), (7, "held"), (9, "failed")])
async def test_junk_is_not_yet_an_output(tmp_path: Path, days: int, ends: str) -> None:
    """What a CDN serves in place of a paid image is asked for again by every run, until outputs are deleted."""
    bench = Bench(tmp_path, LedgerView.empty())
    bench.provider.collects = [b"<html>"] * 5
    assert (await bench.make()).status == "held"
    later = Bench(tmp_path, LedgerView.empty(), nonce="n2", run_id="run2")
    later.clock.time += timedelta(days=days)
    later.provider.collects = [b"<html>"] * 5
    result = await later.make()
    assert (result.status, result.attempts, "submit" in later.provider.history) == (ends, 0, False)
    if ends == "failed":
        assert (result.error_kind, result.cost_usd, result.paid) == ("bad_output", 0.07, 1)
    last = Bench(tmp_path, LedgerView.empty(), nonce="n3", run_id="run3")
    if ends == "held":
        assert (await last.make()).status == "generated"
        assert "submit" not in last.provider.history


async def test_an_output_that_is_not_found(tmp_path: Path) -> None:
    """A paid output that answers 404 is held and asked for again by later runs; after its week it is lost for good."""
    ends = []
    for number, days in enumerate((0, 6, 9)):
        bench = Bench(tmp_path, LedgerView.empty(), nonce=f"n{number}", run_id=f"run{number}")
        bench.clock.time += timedelta(days=days)
        bench.provider.collects = [error("submitted", status=404)]
        result = await bench.make()
        ends.append((result.status, result.error_kind, *bench.provider.history))
    assert ends == [
        ("held", "submitted", "submit", "collect"),
        ("held", "submitted", "collect"),
        ("failed", "output_lost", "collect"),
    ]


async def test_a_store_that_fails_after_the_id_was_kept(tmp_path: Path) -> None:
    """The row is held as submitted, with its id: the next run fetches it, and `retry` leaves it alone."""

    class Failing(FsspecObjectStore):
        async def create(self, path: str, data: bytes, content_type: str = "") -> bool:
            if path.startswith("images/"):
                raise StoreError("store_unreachable", "a time-out")
            return await super().create(path, data, content_type)

    store = Failing(*fsspec.core.url_to_fs(str(tmp_path)), str(tmp_path))
    result = await Bench(tmp_path, LedgerView.empty(), store=store).make()
    assert (result.status, result.error_kind, result.request_id) == ("held", "submitted", "r1")


async def test_an_id_that_cannot_be_stored_stops_the_run(bench: Bench) -> None:
    """Where the store does not take a request_id nothing more is sent, and what was paid is still fetched."""
    tries = 0

    async def refuse(key: bytes, n: int, request_id: str) -> None:
        nonlocal tries
        tries += 1
        raise StoreError("store_unreachable", "gone")

    bench.ledger.record_request_id = refuse  # type: ignore[method-assign]
    result = await bench.make()
    # Tried once: the store around the real one has already retried (store/patient_store.py).
    assert (result.status, tries, bench.control.stop_reason) == ("generated", 1, "store")
    later = await bench.make(request_for("b", 1))
    assert later.status == "not_run"


async def test_a_damaged_image_ends_its_row_alone(bench: Bench) -> None:
    """An image in the store that is none ends its row, with the remedy; nothing is called, and the run goes on."""
    await bench.store.create(layout.image(HEX, REQUEST.extension), b"not an image")
    result = await bench.make()
    assert (result.status, result.error_kind, bench.provider.history) == ("failed", "image_damaged", [])
    assert not bench.control.stopped
    assert (await bench.make(replace(REQUEST, params=REQUEST.params | {"seed": 8}))).status == "generated"


async def test_an_unexpected_error_ends_one_row(bench: Bench) -> None:
    """A fault of ours about one row fails it before its POST, holds it after; twenty in a row stop the run."""

    def burst(call: str) -> None:
        if call == "collect":
            raise ZeroDivisionError("ours")

    bench.provider.watch = burst
    result = await bench.make()
    assert (result.status, result.error_kind, result.request_id) == ("held", "submitted", "r1")
    assert not bench.control.stopped

    async def broken(path: str) -> ObjectInfo | None:
        raise ZeroDivisionError("ours")

    bench.store.head = broken  # type: ignore[method-assign]
    kinds = []
    for seed in range(25):
        result = await bench.make(replace(REQUEST, params=REQUEST.params | {"seed": 100 + seed}))
        kinds.append((result.status, result.error_kind))
    assert kinds[0] == ("failed", "internal")
    assert bench.control.stop_reason == "internal"
    assert bench.provider.history.count("submit") == 1


async def test_an_unexpected_error_tells_no_secret(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What a library says of an address with a signature, and where, is told without the signature."""

    def burst(call: str) -> None:
        if call == "submit":
            raise LookupError("no answer: https://h/a.png?sig=plant-1") from ValueError("https://me:plant-2@h/a.png")

    bench.provider.watch = burst
    result = await bench.make()
    assert result.error_kind in ("internal", "unknown")
    assert "no answer: https://h/a.png" in str(result.error_message)
    assert "in burst" in caplog.text  # the traceback is there
    assert "plant-" not in f"{result.error_message} {caplog.text}"


async def test_an_image_in_another_format_is_kept_and_told(bench: Bench) -> None:
    """What was delivered is kept as it came, under the name that was asked for, with a flag and its true format."""
    jpeg = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    bench.provider.collects = [jpeg]
    result = await bench.make()
    assert result.image is not None
    assert (result.status, result.image.format, result.image.flags) == ("generated", "jpeg", ("other_format",))
    assert result.applied["format"] == "jpeg"
    assert await bench.store.get(layout.image(HEX, "png")) == jpeg
