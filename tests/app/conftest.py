"""Runs of the app are about rows, money and stores: the pictures that they all ask for need to be drawn but once."""

from collections.abc import Iterator

import pytest

from prefect_imagegen.gateway.engines.base import ImageJob, ImageOutput
from prefect_imagegen.gateway.engines.sandbox import SandboxEngine


@pytest.fixture(scope="session", autouse=True)
def _pictures_drawn_once() -> Iterator[None]:
    """The sandbox remembers its pictures, which are the same for the same request; tests/gateway proves that."""
    paint, drawn = SandboxEngine.paint, {}

    def remembered(engine: SandboxEngine, picture: ImageJob) -> ImageOutput:
        key = (picture.identity, *picture.reference_ids)
        if key not in drawn:
            drawn[key] = paint(engine, picture)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SandboxEngine, "paint", remembered)
        yield
