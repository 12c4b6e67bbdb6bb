"""Every model of the table, whole runs over a real socket: manifest in, gateway's sandbox, store out."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core.metadata import METADATA_SCHEMA
from prefect_imagegen.core.request.models import (
    ASPECT_SIZES,
    MATCH_INPUT_IMAGE,
    MODELS,
    SPELLINGS,
    FieldSpec,
    ModelSpec,
    ReferenceSpec,
    SizeSpec,
    by_name,
    rows,
)
from prefect_imagegen.gateway.jobs.runner import BadRequestError, checked_params
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.gateway_runs import metadata

PHOTO_SIZES = ((640, 480), (320, 640), (256, 256), (480, 320), (128, 640))
MADE_UP = ModelSpec(
    "sketch-1",
    by_name(
        FieldSpec("detail", "number", 0.5, minimum=0, maximum=1),
        FieldSpec("w", "integer", 512, minimum=256, maximum=2048),
        FieldSpec("h", "integer", 512, minimum=256, maximum=2048),
        FieldSpec("container", "string", "webp", choices=("webp", "jpg")),
        FieldSpec("compression", "integer", 80, minimum=1, maximum=100),
    ),
    {"detail": 0.5, "w": 512, "h": 512, "container": "webp", "compression": 80},
    ReferenceSpec(("subject", "style"), is_list=False),
    format_field="container",
    quality_field="compression",
    size=SizeSpec(width="w", height="h"),
    price_fields=("detail",),
    is_priced_by_size=True,
    price_usd=0.02,
)
TRIPTYCH = ModelSpec(
    "triptych-1",
    by_name(
        FieldSpec("size", "string", "1024*1024"),
        FieldSpec("format", "string", "webp", choices=("webp", "jpg", "png")),
    ),
    {"size": "1024*1024", "format": "webp"},
    ReferenceSpec(("left", "middle", "right"), is_list=False, minimum=2),
    format_field="format",
    size=SizeSpec(pixels="size"),
    is_priced_by_size=True,
    price_usd=0.02,
)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    names = []
    for number, size in enumerate(PHOTO_SIZES):
        names.append(f"photo{number}.png")
        Image.new("RGB", size, (40 * number, 90, 200)).save(tmp_path / names[-1])
    return names


def run(gateway: EmbeddedGateway, folder: Path, asked: list[dict[str, Any]], **options: Any) -> RunResult:
    """Make the rows of a manifest of JSON lines."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
    return prefect_imagegen.generate(folder / "rows.jsonl", folder / "store", backend=backend, **options)


def sizes_of(spec: ModelSpec) -> list[tuple[dict[str, Any], tuple[int, int] | None]]:
    """Sizes to ask for, with what must come; None: the size of the first reference."""
    if spec.size.width:
        names = (str(spec.size.width), str(spec.size.height))
        return [(dict(zip(names, size, strict=True)), size) for size in ((256, 512), (777, 333))]
    if spec.size.pixels:
        return [({spec.size.pixels: "1664*928"}, (1664, 928)), ({spec.size.pixels: "512x768"}, (512, 768))]
    if spec.size.ratio is None:
        return [({}, ASPECT_SIZES["1:1"])]
    sizes = [({spec.size.ratio: ratio}, ASPECT_SIZES[ratio]) for ratio in ("3:2", "9:16")]
    return [*sizes, ({spec.size.ratio: MATCH_INPUT_IMAGE}, None)]


def rows_of(spec: ModelSpec, photos: list[str]) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
    """Rows for a model in each format and with each number of references, and the size that must come."""
    field = spec.fields.get(spec.format_field or "")
    most = spec.references.maximum
    counts = range(spec.references.minimum, 1 + (len(photos) if most is None else most))
    sizes = sizes_of(spec)
    for image_format in field.choices if field else ("",):
        for count in counts:
            params, size = sizes[count % len(sizes)]
            if size is None and not count:
                params, size = sizes[0]
            row = {"prompt": f"{image_format} {count}", "model": spec.slug, "image_urls": photos[:count], **params}
            yield row | ({field.name: image_format} if field else {}), size or PHOTO_SIZES[0]


def check(folder: Path, result: RunResult, asked: list[tuple[dict[str, Any], tuple[int, int]]]) -> None:
    """Each row of the metadata, and its file, is as it was asked for."""
    assert (result.generated, result.rows) == (len(asked), len(asked)), result.examples
    table = metadata(folder, result)
    assert set(table[0]) >= {field.name for field in METADATA_SCHEMA}
    for row, (wanted, size) in zip(table, asked, strict=True):
        spec, requested = MODELS[wanted["model"]], json.loads(row["requested"])
        spelled = spec.format_of(requested)
        assert row["image_path"].rpartition(".")[2] == spelled
        data = (folder / "store" / row["image_path"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert (image.format, image.size) == (SPELLINGS.get(spelled, spelled).upper(), size), wanted
        assert (row["width"], row["height"], row["format"]) == (*size, SPELLINGS.get(spelled, spelled))
        assert (row["flags"], row["sandbox"], row["error_kind"]) == ([], True, None)
        assert {name: requested[name] for name in spec.fields} == {
            name: wanted.get(name, field.default) for name, field in spec.fields.items()
        }
        assert len(row["references"] or []) == len(wanted["image_urls"])
        assert len(spec.references.values_in(requested)) == len(wanted["image_urls"])
        assert row["cost_usd"] == pytest.approx(spec.price_usd or 0.045)


@pytest.mark.parametrize("slug", sorted(MODELS))
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_model_is_made_as_asked(slug: str, version: str, photos: list[str], tmp_path: Path) -> None:
    """In each of its formats and with each number of references it takes, a model's image has format and size as asked.

    File name, metadata and the gateway's own records agree, and nothing is bought twice.
    """
    asked = list(rows_of(MODELS[slug], photos))
    with EmbeddedGateway(GatewaySettings()) as gateway:
        result = run(gateway, tmp_path, [row for row, _ in asked], api_version=version)
        check(tmp_path, result, asked)
        again = run(gateway, tmp_path, [row for row, _ in asked], api_version=version)
        assert (again.reused, again.calls) == (len(asked), 0)
        sent = [record.body for record in gateway.account_state.billed]
        assert gateway.account_state.statistics()["billed_twice"] == 0
    spec = MODELS[slug].references
    assert sorted(len(spec.values_in(body)) for body in sent) == sorted(len(row["image_urls"]) for row, _ in asked)
    assert all(str(url).startswith("http") for body in sent for _, url in spec.values_in(body))


def test_a_made_up_model_is_one_row(photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is added to the table, and nowhere else, is validated, planned, forecast, drawn and stored."""
    monkeypatch.setitem(rows._ROWS, MADE_UP.slug, MADE_UP)
    asked = list(rows_of(MADE_UP, photos))
    (tmp_path / "wrong.csv").write_text(
        "prompt,w,detail,image_urls\n"
        f"a,64,0.5,\nb,512,7,\nc,512,,{photos[0]}\n"
        f'd,512,,"[""{photos[0]}"", ""{photos[1]}"", ""{photos[2]}""]"\n'
    )
    with EmbeddedGateway(GatewaySettings()) as gateway:
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        summary = prefect_imagegen.plan(
            tmp_path / "wrong.csv", tmp_path / "store", backend=backend, model=MADE_UP.slug, on_invalid="skip"
        )
        assert summary.reasons == {
            "w: it must lie in 256 to 2048": 1,
            "detail: it must lie in 0 to 1": 1,
            "image_urls: sketch-1 takes at most 2 reference images, and there are 3": 1,
        }
        assert summary.to_make_by_class == {"sketch-1 megapixels=1 detail=0.5 references=1": 1}
        assert summary.forecast.high_usd == pytest.approx(2 * 0.02)
        result = run(gateway, tmp_path, [row for row, _ in asked])
        check(tmp_path, result, asked)
        assert gateway.account_state.price(MADE_UP.slug) == 0.02
    assert MADE_UP.slug in MODELS


def test_a_model_may_name_its_size_in_one_text(
    photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size as `1664*928` is drawn and decides the cost class; the gateway refuses what is no size."""
    monkeypatch.setitem(rows._ROWS, TRIPTYCH.slug, TRIPTYCH)
    asked = list(rows_of(TRIPTYCH, photos))
    with EmbeddedGateway(GatewaySettings()) as gateway:
        result = run(gateway, tmp_path, [row for row, _ in asked])
        check(tmp_path, result, asked)
        plan = prefect_imagegen.plan(
            tmp_path / "rows.jsonl", tmp_path / "other", backend=ProviderSettings(base_url=gateway.url)
        )
    assert sorted(plan.to_make_by_class) == [
        "triptych-1 megapixels=1 references=3",
        "triptych-1 megapixels=2 references=2",
    ]
    for size, reason in (("large", "such as 1024x768"), ("64x64 px", "such as 1024x768"), ("9999x64", "64 to 4096")):
        with pytest.raises(BadRequestError, match=f"size: .*{reason}"):
            checked_params(TRIPTYCH.slug, {"prompt": "x", "left": "l", "middle": "m", "size": size})


def test_a_missing_reference_is_told_before_any_call(tmp_path: Path) -> None:
    """A manifest without the references that its model needs is refused with the remedy, and nothing is sent."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        with pytest.raises(prefect_imagegen.RefusedError) as error:
            run(gateway, tmp_path, [{"prompt": "a cup"}], model="flux-2-pro")
        assert "flux-2-pro needs at least 1 reference image" in str(error.value)
        assert "--column image_urls=COLUMN" in str(error.value)
        assert not gateway.account_state.records
