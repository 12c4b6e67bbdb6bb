"""Maintenance of a store that the embedded sandbox filled: no account is behind it, and no key is asked for."""

import asyncio
import io
from pathlib import Path

import pytest
from pydantic import SecretStr
from rich.console import Console

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.reconcile import reconcile
from prefect_imagegen.app.maintenance.verify import verify
from prefect_imagegen.cli.output import show_problems
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.manifests import numbered

PROVIDERS = [ProviderSettings(provider="sandbox"), ProviderSettings(), ProviderSettings(api_key=SecretStr("k"))]


@pytest.fixture
def filled(tmp_path: Path) -> StoreSettings:
    store = StoreSettings(str(tmp_path / "store"))
    prefect_imagegen.generate(numbered(tmp_path, 2), store, backend="sandbox")
    return store


@pytest.mark.parametrize("provider", PROVIDERS, ids=["sandbox", "no key", "a key of the real API"])
def test_nothing_to_reconcile(filled: StoreSettings, provider: ProviderSettings) -> None:
    """It is said that no account keeps the calls, whatever the key: neither is one asked for nor the real API."""
    with pytest.raises(RefusedError, match="is a sandbox store: nothing was paid") as refusal:
        asyncio.run(reconcile(filled, provider, RunOptions()))
    assert refusal.value.kind == "no_account"
    assert "key" not in refusal.value.remedy.lower()


@pytest.mark.parametrize("provider", PROVIDERS, ids=["sandbox", "no key", "a key of the real API"])
def test_lost_images_are_given_free(filled: StoreSettings, tmp_path: Path, provider: ProviderSettings) -> None:
    """An image that cost nothing waits for no API: it is given free at once, and the next run draws it again."""
    image = next(path for path in (tmp_path / "store" / "images").rglob("*") if path.is_file())
    before = image.read_bytes()
    image.unlink()
    report = asyncio.run(verify(filled, provider, RunOptions(), repair=True))
    assert [(problem.kind, problem.repair) for problem in report.problems] == [("missing_image", "quarantined")]
    again = prefect_imagegen.generate(tmp_path / "prompts.parquet", filled, backend="sandbox")
    assert (again.generated, again.reused, again.cost_usd) == (1, 1, 0)
    assert image.read_bytes() == before
    assert asyncio.run(verify(filled, provider, RunOptions())).sound


def test_what_is_left_asks_for_no_key(filled: StoreSettings, tmp_path: Path) -> None:
    """What cannot be repaired in such a store is not said to need a key."""
    stray = tmp_path / "store" / "images" / "00" / f"{0:032x}.png"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"no image")
    report = asyncio.run(verify(filled, ProviderSettings(), RunOptions(), repair=True))
    report.problems[0].repair = None
    sink = io.StringIO()
    show_problems(Console(file=sink, width=200), report, repair=True)
    assert "nothing was paid" in sink.getvalue()
    assert "key" not in sink.getvalue()
