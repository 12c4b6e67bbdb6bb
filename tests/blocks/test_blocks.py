"""The blocks keep Prefect's standard, and turn into plain settings."""

import re
from pathlib import Path

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr

from prefect_imagegen.blocks import GpuWorkerPool, ImageStore, Segmind
from prefect_imagegen.blocks.resolve import is_block, resolve_backend, resolve_store
from prefect_imagegen.core.errors import RefusedError

LOGO = Path(__file__).parents[2] / "docs" / "logo.png"


@pytest.mark.parametrize("block", [GpuWorkerPool, ImageStore, Segmind])
class TestBlockStandard(BlockStandardTestSuite):
    """Prefect's own suite for blocks."""

    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        """The block under test."""
        return request.param

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """The logo is a square of fair size; its address is a file of this repository, checked without a network."""
        from PIL import Image  # noqa: PLC0415 - for this test alone

        assert re.search(r"/docs/logo\.png$", str(block._logo_url))
        with Image.open(LOGO) as image:
            assert image.width == image.height
            assert 45 < image.width < 1000


def test_every_field_has_title_and_description() -> None:
    """Every field explains itself in the UI: a title, and a description that ends in a period."""
    for block in (GpuWorkerPool, ImageStore, Segmind):
        for name, field in block.model_fields.items():
            assert field.title, f"{block.__name__}.{name}"
            assert field.description, f"{block.__name__}.{name}"
            assert field.description.endswith("."), f"{block.__name__}.{name}"


def test_secrets_do_not_show() -> None:
    """Keys and storage options appear in no representation of a block."""
    shown = repr(Segmind(api_key="SG_0123456789abcdef")) + repr(
        ImageStore(url="s3://b", storage_options={"secret": "hush"})
    )
    shown += repr(GpuWorkerPool(endpoints=["openai+http://h:1"], api_key="pool_0123456789abcdef"))
    assert "0123456789abcdef" not in shown
    assert "hush" not in shown


def test_client_sends_the_key() -> None:
    """The client of a Segmind block carries the key and the base URL."""
    client = Segmind(api_key=SecretStr("SG_k"), base_url="http://127.0.0.1:1").get_client()
    assert client.headers["x-api-key"] == "SG_k"
    assert str(client.base_url) == "http://127.0.0.1:1"


@pytest.mark.anyio
async def test_blocks_are_resolved_by_name(prefect_server: None) -> None:
    """`segmind/NAME` and `image-store/NAME` mean the saved blocks; options of the call win over the block's."""
    await Segmind(api_key="SG_x", base_url="http://127.0.0.1:1", max_in_flight=3).save("prod", overwrite=True)
    await ImageStore(url="memory://a", storage_options={"a": 1, "b": 1}).save("spring", overwrite=True)
    backend = await resolve_backend("segmind/prod")
    store = await resolve_store("image-store/spring", {"b": 2})
    assert backend.api_key == SecretStr("SG_x")
    assert (backend.kind, backend.max_in_flight) == ("segmind", 3)
    assert (store.url, dict(store.storage_options)) == ("memory://a", {"a": 1, "b": 2})


@pytest.mark.anyio
async def test_a_pool_is_resolved_by_name(prefect_server: None) -> None:
    """`gpu-worker-pool/NAME` means the saved pool, with the endpoint strings of the command line."""
    endpoints = ["openai+http://10.0.0.1:8000", "segmind+http://10.0.0.2:8700"]
    block = GpuWorkerPool(endpoints=endpoints, api_key="k", profile="klein-base", endpoint_limit=3, weights="lab")
    await block.save("lab", overwrite=True)
    found = await resolve_backend("gpu-worker-pool/lab")
    assert (found.kind, found.endpoints, found.api_key) == ("pool", tuple(endpoints), SecretStr("k"))
    assert (found.profile, found.endpoint_limit, found.weights) == ("klein-base", 3, "lab")


@pytest.mark.anyio
async def test_a_missing_block_is_refused(prefect_server: None) -> None:
    """A block that does not exist is named, and so is the way to create it."""
    with pytest.raises(RefusedError, match=r"segmind/nobody.*prefect block register"):
        await resolve_backend("segmind/nobody")


def test_urls_are_no_blocks() -> None:
    """Only TYPE/NAME of our two types names a block; paths and URLs stay what they are."""
    assert is_block("image-store/a")
    assert is_block("segmind/a-b")
    assert not any(map(is_block, ("segmind", "s3://image-store/a", "./image-store/a", "image-store/a/b")))
