"""The blocks keep Prefect's standard, and turn into plain settings."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from prefect import get_client
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.blocks import GpuWorkerPool, ImageStore, Segmind
from prefect_imagegen.blocks.resolve import resolve_provider, resolve_store
from prefect_imagegen.cli.options import is_provider_block, is_store_block
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


@pytest.mark.parametrize("block", [GpuWorkerPool, Segmind])
def test_a_key_is_a_password_in_the_form(block: type[Block]) -> None:
    """A key may be left out, and its form is a password field: its schema is that of a password and of nothing else.

    For `password or null` the UI asks for the type first. Its older version has no password fields, for no block.
    """
    schema = block.model_json_schema()
    key = schema["properties"]["api_key"]
    assert (key["type"], key["format"], key["writeOnly"]) == ("string", "password", True)
    assert "anyOf" not in key
    assert "api_key" in schema["secret_fields"]
    assert "api_key" not in schema.get("required", [])


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_a_blank_key_is_none(text: str) -> None:
    """A key field that is emptied in a form means no key, so that the one of the environment counts."""
    assert Segmind(api_key=text).to_settings().api_key is None
    assert GpuWorkerPool(endpoints=["openai+http://h:1"], api_key=SecretStr(text)).to_settings().api_key is None


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
    backend = await resolve_provider("segmind/prod")
    store = await resolve_store("image-store/spring", {"b": 2})
    assert backend.api_key == SecretStr("SG_x")
    assert (backend.provider, backend.max_in_flight) == ("segmind", 3)
    assert (store.url, dict(store.storage_options)) == ("memory://a", {"a": 1, "b": 2})


OPTIONS: dict[str, dict[str, Any]] = {
    "flat": {"key": "AKIA0", "secret": "hush", "endpoint_url": "http://127.0.0.1:9"},
    "of all types": {"anon": False, "n": 3, "ratio": 0.5, "nothing": None, "list": [1, {"secret": "hush"}], "text": ""},
    "nested": {"client_kwargs": {"config": {"retries": {"max_attempts": 2}, "empty": {}}}, "empty": {}},
    "none": {},
}
"""Options as people save them, by what they show."""


async def _document(name: str, *, in_clear: bool) -> tuple[Any, dict[str, Any]]:
    """A saved block's id, and its fields in clear or as Prefect's UI gets them."""
    async with get_client() as client:
        document = await client.read_block_document_by_name(name, "image-store", include_secrets=in_clear)
    return document.id, dict(document.data)


async def _save_in_form(name: str, **changes: Any) -> None:
    """Open a saved block and save it again with changes, as the forms of Prefect's UI do.

    The first UI sends no nulls, and can save only a JSON object in the field of the options.
    """
    number, shown = await _document(name, in_clear=False)
    fields = {field: value for field, value in {**shown, **changes}.items() if value is not None}
    assert isinstance(fields.get("storage_options", {}), dict), "the first UI cannot save this"
    async with get_client() as client:
        body = {"data": fields, "merge_existing_data": False}
        (await client._client.patch(f"/block_documents/{number}", json=body)).raise_for_status()


@pytest.mark.anyio
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_a_saved_store_can_be_edited_in_the_ui(options: dict[str, Any], prefect_server: None) -> None:
    """A saved `ImageStore` is opened, edited and saved again in Prefect's UI, and keeps the options that it masks."""
    await ImageStore(url="s3://b/x", storage_options=options).save("form", overwrite=True)
    _, shown = await _document("form", in_clear=False)
    assert not re.search(r"hush|AKIA0|127\.0\.0\.1|max_attempts': 2", str(shown))
    await _save_in_form("form")
    await _save_in_form("form", url="s3://b/y", public_base_url="https://cdn")
    store = await resolve_store("image-store/form")
    assert (store.url, dict(store.storage_options), store.public_base_url) == ("s3://b/y", options, "https://cdn")
    _, shown = await _document("form", in_clear=False)
    await _save_in_form("form", storage_options={**shown.get("storage_options", {}), "secret": "new"})
    assert dict((await resolve_store("image-store/form")).storage_options) == {**options, "secret": "new"}
    await _save_in_form("form", storage_options=None)
    await _save_in_form("form")
    assert dict((await resolve_store("image-store/form")).storage_options) == {}


@pytest.mark.anyio
async def test_a_store_saved_without_options_has_none(prefect_server: None) -> None:
    """Saved over one with options, by any of the three ways to save, a store without options has none, nor a mask."""
    with_options, without = ImageStore(url="s3://b", storage_options={"secret": "hush"}), ImageStore(url="s3://c")

    async def saved_in_thread() -> None:
        await to_thread.run_sync(lambda: without.save("none", overwrite=True))

    for save in (
        lambda: without.save("none", overwrite=True),
        lambda: without.asave("none", overwrite=True),
        saved_in_thread,
    ):
        await with_options.asave("none", overwrite=True)
        await save()
        _, fields = await _document("none", in_clear=True)
        assert fields == {"url": "s3://c", "public_base_url": None}


@pytest.mark.anyio
async def test_a_pool_is_resolved_by_name(prefect_server: None) -> None:
    """`gpu-worker-pool/NAME` means the saved pool, with the endpoint strings of the command line."""
    endpoints = ["openai+http://10.0.0.1:8000", "segmind+http://10.0.0.2:8700"]
    block = GpuWorkerPool(endpoints=endpoints, api_key="k", profile="klein-base", endpoint_limit=3, weights="lab")
    await block.save("lab", overwrite=True)
    settings = await resolve_provider("gpu-worker-pool/lab")
    assert (settings.provider, settings.endpoints, settings.api_key) == ("pool", tuple(endpoints), SecretStr("k"))
    assert (settings.profile, settings.endpoint_limit, settings.weights) == ("klein-base", 3, "lab")


@pytest.mark.anyio
async def test_a_missing_block_is_refused(prefect_server: None) -> None:
    """A block that does not exist is named, and so is the way to create it."""
    with pytest.raises(RefusedError, match=r"segmind/nobody.*prefect block register"):
        await resolve_provider("segmind/nobody")


def test_urls_are_no_blocks() -> None:
    """TYPE/NAME names a provider's block, and image-store/NAME a store's; paths and URLs stay what they are."""
    assert is_store_block("image-store/a")
    assert not any(map(is_store_block, ("segmind/a", "s3://image-store/a", "./image-store/a", "image-store/a/b")))
    assert is_provider_block("segmind/a-b")
    assert is_provider_block("queue-images/prod")
    assert not any(map(is_provider_block, ("segmind", "a/b/c", "http://a/b", "./a")))


@pytest.mark.parametrize(
    "build",
    [
        lambda secret: Segmind(api_key=[secret]),
        lambda secret: ImageStore(url="s3://a", storage_options=f'{{"secret": "{secret}"'),
        lambda secret: ImageStore(url="s3://a", storage_options=[secret]),
        lambda secret: GpuWorkerPool(endpoints=["openai+http://h:1"], api_key=[secret]),
        lambda secret: GpuWorkerPool(endpoints=f"openai+http://h:1#key={secret}"),
        lambda secret: RunOptions(manifest_storage_options=secret),
        lambda secret: RunOptions(reference_storage_options=[secret]),
    ],
)
def test_what_is_mistyped_is_not_repeated(build: Callable[[str], object]) -> None:
    """A secret of the wrong type, or in the wrong form, is refused by its field's name and not repeated."""
    with pytest.raises(ValidationError) as caught:
        build("plant-0001")
    assert "plant-0001" not in str(caught.value)
    assert caught.value.errors()[0]["loc"]
