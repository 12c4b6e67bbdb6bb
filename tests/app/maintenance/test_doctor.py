"""Doctor: a place for a store, and the API, are examined."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.doctor import Check, examine
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.object_store import FsspecObjectStore
from tests.app.maintenance.conftest import Place

SANDBOX = ProviderSettings(provider="sandbox")


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


def test_a_key_is_looked_at_without_a_network(tmp_path: Path) -> None:
    """Whether a key is set is said though nobody answers; whether it is accepted is then not known."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        place = Place(tmp_path, gateway)
    missing, unasked = look(place, api_key=None)["key"], look(place)["key"]
    assert (missing.state, missing.text) == ("fail", "there is no API key")
    assert (unasked.state, unasked.text) == ("unknown", "a key is set; whether it is accepted could not be asked")


@pytest.mark.parametrize("deep", [False, True])
def test_a_place_is_left_as_it_was(tmp_path: Path, deep: bool) -> None:
    """No folder is left of a store that was not there; one that was there stays, and so does what lies in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))

    async def all_checks(url: str) -> list[Check]:
        return [check async for check in examine(StoreSettings(url), SANDBOX, RunOptions(), deep=deep)]

    for url in (f"{tmp_path}/new/images", f"file://{tmp_path}/other", f"{tmp_path}/mine", f"{tmp_path}/used"):
        assert "ok" in {check.state for check in asyncio.run(all_checks(url)) if check.name == "store"}
        assert sorted(tmp_path.rglob("*")) == before


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
