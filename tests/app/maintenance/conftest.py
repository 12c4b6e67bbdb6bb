"""A store with a finished run, and the gateway that made it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.reconcile import ReconcileReport, reconcile
from prefect_imagegen.app.maintenance.verify import verify
from prefect_imagegen.app.maintenance.verify_report import VerifyReport
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
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


def nine_days_later(place: Place) -> None:
    """As if all of it had happened nine days ago: outputs are deleted by now."""
    (segment,) = (place.folder / "store" / "ledger" / "segments").iterdir()
    table = pq.read_table(segment)
    old = pa.array([NOW - timedelta(days=9)] * len(table), table.schema.field("time").type)
    pq.write_table(table.set_column(table.column_names.index("time"), "time", old), segment)
