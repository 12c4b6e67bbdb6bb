"""Sellers of images for the paid contract suite: servers that misbehave on demand. A new one is a line of SELLERS."""

import asyncio
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.resend import resend
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core.policy.abilities import Abilities
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.ports import Provider
from prefect_imagegen.providers import registry
from prefect_imagegen.providers.entry import ProviderEntry
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.gateway_runs import api
from tests.support.queue_provider.added import NAME, block, install
from tests.support.queue_provider.server import QueueServer


class SegmindSeller:
    """Our gateway, which speaks Segmind's API."""

    name, model = "segmind", "flux-2-klein-9b"

    def __init__(self, gateway: EmbeddedGateway, files: QueueServer) -> None:
        self.gateway = gateway
        self.files = files
        self.url = gateway.url

    def misbehave(self, *faults: str) -> None:
        """From now on, in place of what was before; without faults all is well."""
        pictures = [f"{self.files.url}/files/{number}.png" for number in range(2)]
        rules: dict[str, dict[str, Any]] = {
            "unanswered": {"fault": "disconnect", "when": "after", "first": 1},
            "server_error": {"fault": "status", "status": 503, "when": "after", "first": 1},
            "away": {"fault": "status", "status": 503, "first": 1},
            "refused": {"fault": "status", "status": 400},
            "fails": {"fault": "failed", "text": "nsfw content"},
            "lost": {"fault": "status", "status": 404, "on": ["download"]},
            "junk": {"fault": "junk", "on": ["download"]},
            "no_cost": {"fault": "json_error", "on": ["status", "result"], "body": _done(pictures[:1])},
            "two_images": {"fault": "json_error", "on": ["status", "result"], "body": _done(pictures)},
        }
        script = FaultScript(faults=[Fault(**rules[fault]) for fault in faults])
        self.gateway.account_state.settings.faults = script

    @property
    def taken(self) -> int:
        """The number of calls that were taken on."""
        return len(self.gateway.account_state.records)


def _done(urls: list[str]) -> dict[str, Any]:
    return {"status": "COMPLETED", "images": [{"url": url} for url in urls]}


class QueueSeller:
    """The queue API."""

    name, model = NAME, "some-lab/flux/dev"

    def __init__(self, server: QueueServer) -> None:
        self.server = server
        self.url = server.url

    def misbehave(self, *faults: str) -> None:
        server = self.server
        server.on_post = [fault for fault in faults if fault in ("unanswered", "server_error", "away")]
        server.on_post += ["refused"] * 9 * ("refused" in faults)
        server.lost, server.fails, server.junk = "lost" in faults, "fails" in faults, "junk" in faults
        server.images = 2 if "two_images" in faults else 1

    @property
    def taken(self) -> int:
        return len(self.server.jobs)


Seller = SegmindSeller | QueueSeller


@contextmanager
def _segmind() -> Iterator[Seller]:
    accounts = {"one": [SecretStr("k1")], "two": [SecretStr("k2")]}
    with QueueServer() as files, api(accounts=accounts) as gateway:
        yield SegmindSeller(gateway, files)


@contextmanager
def _queue() -> Iterator[Seller]:
    with QueueServer() as server:
        yield QueueSeller(server)


SELLERS = {"segmind": _segmind, NAME: _queue}


@dataclass
class Shop:
    """A seller, the store that is filled from it, and what its provider was asked."""

    seller: Seller
    folder: Path
    entry: ProviderEntry
    unclaimed: list[str]
    """POSTs without a claim of their own, and polls whose id was not stored."""
    declared: dict[str, Any] = field(default_factory=dict)
    """What the provider declares in place of what its entry has."""

    @property
    def abilities(self) -> Abilities:
        return self.entry.abilities

    def buy(self, rows: int = 2, key: str = "k1", **options: Any) -> RunResult:
        """The same command: so many rows into the same store."""
        path = self.folder / "prompts.parquet"
        model = options.pop("model", self.seller.model)
        pq.write_table(pa.table({"prompt": [f"scene {number}" for number in range(rows)]}), path)
        options = {"history_lag": 0.0, "max_failure_rate": 1.0, "deadline": 20.0, "model": model} | options
        backend = ProviderSettings(self.seller.name, base_url=self.seller.url, api_key=SecretStr(key))
        return prefect_imagegen.generate(str(path), str(self.folder / "store"), backend=backend, **options)

    def age(self, days: float) -> None:
        """As if all calls of the store had been made so many days earlier, by every clock."""
        for path in (self.folder / "store" / "ledger" / "claims").rglob("*.json"):
            if not path.name.endswith(".id.json"):
                claim = json.loads(path.read_text())
                for name in ("time", "store_time", "api_time"):
                    if claim.get(name):
                        claim[name] = (datetime.fromisoformat(claim[name]) - timedelta(days=days)).isoformat()
                path.write_text(json.dumps(claim))
                written = path.stat().st_mtime - days * 86400.0
                os.utime(path, (written, written))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a type in the ledger."""
        segments = sorted((self.folder / "store" / "ledger" / "segments").glob("*.parquet"))
        return [event for path in segments for event in pq.read_table(path).to_pylist() if event["type"] == kind]

    def give_free(self, result: RunResult, *kinds: str) -> int:
        """The number of rows that `resend` gave free."""
        settings = StoreSettings(str(self.folder / "store"))
        return asyncio.run(resend(settings, str(result.run_id), kinds)).rows


def _watched(entry: ProviderEntry, store: Path, unclaimed: list[str], declared: dict[str, Any]) -> ProviderEntry:
    """The entry, whose provider is asked only what the store vouches for."""
    claims = store / "ledger" / "claims"

    def opened(settings: ProviderSettings, deadline: float) -> Provider:
        provider = entry.open(settings, deadline)
        provider.abilities = replace(provider.abilities, **declared)
        submit, collect = provider.submit, provider.collect
        posts: Counter[bytes] = Counter()

        async def submit_claimed(request: Any, *arguments: Any, **options: Any) -> Any:
            posts[request.key] += 1
            names = [path.name for path in claims.rglob(f"{request.key.hex()}/*.json")]
            if sum(".id." not in name for name in names) < posts[request.key]:
                unclaimed.append(f"POST {posts[request.key]} of {request.key.hex()}: {names}")
            return await submit(request, *arguments, **options)

        async def collect_stored(submission: Any) -> Any:
            stored = [path.read_text() for path in claims.rglob("*.id.json")]
            if not any(str(submission.request_id) in text for text in stored):
                unclaimed.append(f"poll of {submission.request_id}")
            return await collect(submission)

        provider.submit, provider.collect = submit_claimed, collect_stored  # type: ignore[method-assign]
        return provider

    return replace(entry, open=opened)


@pytest.fixture(params=SELLERS)
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Each seller in turn, with an empty store."""
    install(tmp_path / "site", NAME, "queue_images:ENTRY", queue_images=block("python"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    sys.modules.pop("queue_images", None)
    entry, unclaimed, declared = registry.entry_of(request.param), [], {}
    watched = _watched(entry, tmp_path / "store", unclaimed, declared)
    if request.param == NAME:
        module = importlib.import_module("queue_images")
        monkeypatch.setattr(module, "ENTRY", watched)
        monkeypatch.setattr(module, "POLL_S", 0.01)
    else:
        monkeypatch.setattr(registry, "PROVIDERS", {**registry.PROVIDERS, entry.name: watched})
    with SELLERS[request.param]() as seller:
        yield Shop(seller, tmp_path, entry, unclaimed, declared)
        assert unclaimed == []
    sys.modules.pop("queue_images", None)
