"""How a gateway starts and stops: its engines, its keys, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.images.image import decode
from prefect_imagegen.gateway.engines import ImageJob, StaticEngine
from prefect_imagegen.gateway.jobs.metrics import Metrics
from prefect_imagegen.gateway.server import check_settings
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.gateway.routes.conftest import MODEL, gateway


@pytest.mark.parametrize(("image_format", "size"), [("jpeg", 130_000), ("png", 1_000_000), ("webp", 60_000)])
def test_the_static_engine(image_format: str, size: int) -> None:
    """The engine `static` gives bytes of about the chosen size, distinct for each request, that decode in full."""
    engine = StaticEngine(GatewaySettings(static_format=image_format, static_bytes=size), Metrics())
    files = [
        engine.paint(ImageJob(MODEL, "a", 1, 64, 64, image_format, 90, request_id=f"id-{number}")).data
        for number in range(3)
    ]
    assert len(set(files)) == 3
    for data in files:
        assert decode(data).format == image_format
        assert abs(len(data) - size) < 0.1 * size


def test_a_gateway_for_strangers_needs_a_key() -> None:
    """Any address but loopback is refused without a key, and an unknown engine always."""
    for host in ("127.0.0.1", "::1", "localhost"):
        check_settings(GatewaySettings(), host)
    check_settings(GatewaySettings(api_key=SecretStr("k")), "0.0.0.0")
    for host in ("0.0.0.0", "::", "example.org", "192.168.1.5"):
        with pytest.raises(RefusedError, match="PREFECT_IMAGEGEN_API_KEY"):
            check_settings(GatewaySettings(), host)
    with pytest.raises(RefusedError, match="sandbox"):
        check_settings(GatewaySettings(engine="oil"), "127.0.0.1")


def test_the_engine_diffusers_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a checkpoint or a known dtype the engine is refused before anything is loaded."""
    settings = GatewaySettings(engine="diffusers")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(RefusedError, match=r"needs torch.*prefect-imagegen\[diffusers\]"):
        check_settings(settings, "127.0.0.1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(RefusedError, match="--model"):
        check_settings(settings, "127.0.0.1")
    settings.model_path, settings.dtype = "a/b", "int4"
    with pytest.raises(RefusedError, match="float32"):
        check_settings(settings, "127.0.0.1")


def test_a_stopped_gateway_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopping ends every thread and removes the temporary files, also while work is under way."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(threading.enumerate())
    with gateway(latency_s=60.0) as (_, client):
        client.post(f"/v2/{MODEL}", json={"prompt": "a"})
    with gateway() as (_, client):
        client.post(f"/v1/{MODEL}", json={"prompt": "a"})
        assert list(tmp_path.iterdir())
    assert set(threading.enumerate()) <= before
    assert not list(tmp_path.iterdir())


def test_a_standing_gateway_stops_on_sigterm(tmp_path: Path) -> None:
    """SIGTERM ends a standing gateway in order: exit status 0, and no temporary files left."""
    code = (
        "from prefect_imagegen.gateway.server import run_server\n"
        "from prefect_imagegen.gateway.settings import GatewaySettings\n"
        "run_server(GatewaySettings(), '127.0.0.1', 0, print)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "startup complete" in line:
                    break
            assert list(tmp_path.iterdir())
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())
