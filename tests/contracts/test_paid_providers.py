"""What every paid provider proves, against a server that misbehaves on demand. A new one is one more line of SELLERS.

The provider of docs/extend/provider.md, "The module", is one of them: a queue without history, uploads and balance.
"""

import importlib
import random
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.providers import registry
from prefect_imagegen.providers.settings import ProviderSettings
from tests.contracts.conftest import SELLERS, QueueSeller, Shop
from tests.support.gateway_runs import metadata
from tests.support.queue_provider.added import NAME, block, install
from tests.support.queue_provider.server import QueueServer


def test_every_paid_provider_is_tested() -> None:
    """No provider whose calls cost money comes in without this suite; the sandbox is the same client."""
    paid = {name for name, entry in registry.PROVIDERS.items() if entry.abilities.claims}
    assert paid - {"sandbox"} <= set(SELLERS)


def test_images_are_paid_once(shop: Shop) -> None:
    """Every row gets its image with one call, under the provider's own name; the same command again sends nothing."""
    first, second = shop.buy(), shop.buy()
    assert (first.generated, first.calls, second.reused, second.calls) == (2, 2, 2, 0)
    rows = metadata(shop.folder, first)
    assert {row["backend"] for row in rows} <= {shop.seller.name, "sandbox"}
    assert len({row["request_id"] for row in rows}) == 2
    assert shop.seller.taken == 2


def test_a_call_without_an_answer(shop: Shop) -> None:
    """It is found in the history and fetched; without a history it is held at once, and left alone by later runs."""
    shop.seller.misbehave("unanswered")
    first = shop.buy()
    shop.seller.misbehave()
    second = shop.buy()
    assert shop.seller.taken == 2
    if shop.abilities.history:
        assert (first.generated + second.generated, second.held, second.calls) == (2, 0, 0)
    else:
        assert (first.generated, first.held, first.failures) == (1, 1, {"no_history": 1})
        assert (second.reused, second.held, second.failures, second.calls) == (1, 1, {"no_history": 1}, 0)


def test_a_person_decides_about_a_call_that_nobody_can_look_up(shop: Shop) -> None:
    """After `resend` a call that is held for want of a history is sent again, and no other one."""
    shop.seller.misbehave("unanswered")
    first = shop.buy()
    shop.seller.misbehave()
    freed = shop.give_free(first, "no_history")
    last = shop.buy()
    assert freed == (0 if shop.abilities.history else 1)
    assert (last.generated + last.reused, last.held) == (2, 0)
    assert (last.calls, shop.seller.taken) == (freed, 2 + freed)


@pytest.mark.parametrize("fault", ["server_error", "away"])
def test_a_5xx(fault: str, shop: Shop) -> None:
    """A 5xx to a queued call is looked up, and only what the history does not have is sent again; else it is held."""
    shop.seller.misbehave(fault)
    first = shop.buy(rows=1)
    if shop.abilities.history:
        assert (first.generated, first.held, shop.seller.taken) == (1, 0, 1)
    else:
        taken = shop.seller.taken
        assert (first.held, first.failures) == (1, {"no_history": 1})
        assert (shop.buy(rows=1).calls, shop.seller.taken) == (0, taken)


def test_a_refusal(shop: Shop) -> None:
    """A 4xx about the row ends it for good, unpaid: later runs send nothing."""
    shop.seller.misbehave("refused")
    first = shop.buy()
    shop.seller.misbehave()
    assert (first.failed, first.failures, first.cost_usd) == (2, {"invalid_request": 2}, 0.0)
    assert (shop.buy().calls, shop.seller.taken) == (0, 0)


def test_a_job_that_failed(shop: Shop) -> None:
    """A job that ends as failed is told with its reason, and is not bought again."""
    shop.seller.misbehave("fails")
    first = shop.buy(rows=1)
    assert (first.failed, first.failures) == (1, {"content_policy": 1})
    assert (shop.buy(rows=1).calls, shop.seller.taken) == (0, 1)


@pytest.mark.parametrize("fault", ["lost", "junk"])
def test_an_output_that_cannot_be_fetched(fault: str, shop: Shop) -> None:
    """A paid result that is missing, or is no image, is held and fetched again; it is never bought again."""
    shop.seller.misbehave(fault)
    first = shop.buy(rows=1)
    assert (first.held, first.failures, first.calls) == (1, {"submitted": 1}, 1)
    shop.seller.misbehave()
    second = shop.buy(rows=1)
    assert (second.generated, second.calls, shop.seller.taken) == (1, 0, 1)


def test_an_output_that_is_gone_for_good(shop: Shop) -> None:
    """When the outputs of a call are surely gone, its row fails for good, billed; only `resend` buys it again."""
    shop.seller.misbehave("lost")
    assert shop.buy(rows=1).failures == {"submitted": 1}
    shop.age(days=9)
    second = shop.buy(rows=1)
    assert (second.failed, second.failures, second.calls) == (1, {"output_lost": 1}, 0)
    assert "output_lost" in (shop.folder / "store" / "runs" / str(second.run_id) / "report.md").read_text()
    (event,) = shop.events("failed")
    assert (event["error_kind"], event["cost_usd"] is not None) == ("output_lost", shop.abilities.cost_in_answer)
    shop.seller.misbehave()
    third = shop.buy(rows=1)
    assert (third.failed, third.calls, shop.seller.taken) == (1, 0, 1)
    assert shop.give_free(third, "output_lost") == 1
    last = shop.buy(rows=1)
    assert (last.generated, last.calls, shop.seller.taken) == (1, 1, 2)


def test_an_output_that_may_come_back(shop: Shop) -> None:
    """Where the provider does not say how long outputs live, a missing one is never given up: the row stays held."""
    shop.declared["outputs_live"] = None
    shop.seller.misbehave("lost")
    shop.buy(rows=1)
    shop.age(days=400)
    second = shop.buy(rows=1)
    assert (second.held, second.failures, second.calls) == (1, {"submitted": 1}, 0)
    shop.seller.misbehave()
    assert (shop.buy(rows=1).generated, shop.seller.taken) == (1, 1)


def test_another_account(shop: Shop) -> None:
    """A call of another account is left to it: that our key is not shown it proves nothing."""
    shop.seller.misbehave("lost")
    shop.buy(rows=1)
    shop.seller.misbehave()
    other = shop.buy(rows=1, key="k2")
    assert (other.held, other.failures, other.calls) == (1, {"other_account": 1}, 0)
    assert (shop.buy(rows=1).generated, shop.seller.taken) == (1, 1)


def test_an_answer_without_a_cost(shop: Shop) -> None:
    """Where no cost is named, none is invented: it is null, and counts against a cap as what was reserved."""
    shop.seller.misbehave("no_cost")
    result = shop.buy(rows=1, max_cost_usd=1.0)
    assert result.generated == 1
    assert [row["cost_usd"] for row in metadata(shop.folder, result)] == [None]
    # Nor is it shown as nothing.
    assert (result.unpriced, result.cost_text) == (1, "1 at a price that no answer named")


def test_a_cap_without_costs(shop: Shop) -> None:
    """A cap stops the run also where no answer names a cost."""
    shop.seller.misbehave("no_cost")
    result = shop.buy(rows=12, max_cost_usd=0.1)
    assert result.stop_reason == "budget"
    assert result.generated == shop.seller.taken < 12


def test_several_images(shop: Shop) -> None:
    """Of an answer with several images the first is the row's, and the others are kept beside it."""
    shop.seller.misbehave("two_images")
    result = shop.buy(rows=1)
    (row,) = metadata(shop.folder, result)
    assert "more_images" in row["flags"]
    assert len(list((shop.folder / "store" / "images").rglob("*.png"))) == 2
    assert shop.seller.taken == 1


def test_references(shop: Shop) -> None:
    """A picture of this machine reaches the provider: uploaded where that is possible, else inside the call."""
    Image.effect_noise((80, 70), 50).convert("RGB").save(shop.folder / "photo.png")
    path = shop.folder / "with.parquet"
    pq.write_table(pa.table({"prompt": ["as in this"], "image_urls": [["photo.png"]]}), path)
    backend = ProviderSettings(shop.seller.name, base_url=shop.seller.url, api_key=SecretStr("k1"))
    result = prefect_imagegen.generate(
        str(path), str(shop.folder / "store"), backend=backend, model=shop.seller.model, history_lag=0.0
    )
    assert result.generated == 1
    if shop.seller.name == NAME:
        (body,) = shop.seller.server.posts
        assert body["image_urls"][0].startswith("data:image/png;base64,")
        with pytest.raises(RefusedError, match="takes no uploads"):
            shop.buy(reference_transport="upload")


def test_the_key_stays_with_the_api(shop: Shop) -> None:
    """Outputs are fetched without the key."""
    shop.buy(rows=1)
    if shop.seller.name == NAME:
        assert shop.seller.server.downloads_with_key == 0
        assert any(call.startswith("GET /files/") for call in shop.seller.server.calls)
        assert any(call.startswith("POST /some-lab/flux/dev") for call in shop.seller.server.calls)


def test_two_sellers_share_no_images(shop: Shop) -> None:
    """The request key has the seller's scope, where it has one: the same slug elsewhere is another image."""
    first = shop.buy(rows=1, model="flux-2-klein-9b")
    (row,) = metadata(shop.folder, first)
    scope = shop.abilities.key_scope
    requests = prefect_imagegen.plan(
        str(shop.folder / "prompts.parquet"),
        str(shop.folder / "store"),
        backend=ProviderSettings("segmind", base_url="http://127.0.0.1:9", api_key=SecretStr("k1")),
    )
    assert requests.counts["done"] == (0 if scope else 1)
    assert row["status"] == "generated"


def test_an_idempotency_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the API honours keys, a lost answer is asked for again under the same one: one call, one image."""
    install(tmp_path / "site", NAME, "queue_images:ENTRY", queue_images=block("python"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    sys.modules.pop("queue_images", None)
    module = importlib.import_module("queue_images")
    monkeypatch.setattr(module, "ABILITIES", replace(module.ABILITIES, idempotency_key=True))
    monkeypatch.setattr(module, "POLL_S", 0.01)
    unclaimed: list[str] = []
    with QueueServer(on_post=["unanswered", "server_error"], honours_keys=True) as server:
        result = Shop(QueueSeller(server), tmp_path, module.ENTRY, unclaimed).buy(rows=1)
    sys.modules.pop("queue_images", None)
    assert (result.generated, result.calls, len(server.posts), len(server.jobs)) == (1, 3, 3, 1)
    assert {job.idempotency_key for job in server.jobs.values()} == {f"{_key(tmp_path)}-1"}


def _key(folder: Path) -> str:
    """The only request key of a store, as hex."""
    (image,) = (folder / "store" / "images").rglob("*.png")
    return image.stem


@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_of_troubles(seed: int, shop: Shop) -> None:
    """Whatever goes wrong in whatever order, nothing is billed twice, and every row is told; in good times all is made.

    Rows that are held for want of a history stay so; what was taken for them is what is billed.
    """
    draw = random.Random(seed)
    kinds = ["unanswered", "server_error", "away", "lost", "junk"]
    for _ in range(3):
        shop.seller.misbehave(*draw.sample(kinds, draw.randint(1, 3)))
        result = shop.buy(rows=4)
        assert result.generated + result.reused + result.held + result.failed + result.not_run == 4
    shop.seller.misbehave()
    last = shop.buy(rows=4)
    assert set(last.failures) <= ({"no_history"} if not shop.abilities.history else set())
    assert last.generated + last.reused + last.held == 4
    assert shop.seller.taken <= 4
    if shop.abilities.history:
        assert (last.held, shop.seller.taken) == (0, 4)
