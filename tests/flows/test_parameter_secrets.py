"""Secrets do not become parameters, which Prefect's server keeps."""

import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.flows.generate_images import generate_images
from prefect_imagegen.flows.parameter_secrets import refuse_secrets


@pytest.mark.parametrize(
    ("manifest", "store", "options", "named"),
    [
        ("https://host/a.csv?X-Amz-Signature=hunter2", "s", {}, "The address of the manifest, https://host/a.csv,"),
        ("ftp://user:hunter2@host/a.csv", "s", {}, "The address of the manifest, ftp://host/a.csv,"),
        ("m", "s3://key:hunter2@bucket/x", {}, "The address of the store, s3://bucket/x,"),
        ("m", "s", {"base_url": "http://me:hunter2@host"}, "The address of the API (options.base_url), http://host,"),
        (
            "m",
            "s",
            {"base_url": "http://host?api_key=hunter2"},
            "The address of the API (options.base_url), http://host,",
        ),
        (
            *("m", "s", {"endpoints": ["openai+http://a:1", "segmind+http://b:1#limit=2&key=hunter2"]}),
            "The address of the worker 2 (options.endpoints), segmind+http://b:1,",
        ),
        ("m", "s", {"endpoints": ["openai+http://hunter2@b:1"]}, "The address of the worker 1 (options.endpoints),"),
        ("m", "s", {"manifest_storage_options": {"secret": "hunter2"}}, "options.manifest_storage_options"),
        (
            *("m", "s", {"reference_storage_options": {"client_kwargs": {"password": "hunter2"}}}),
            "options.reference_storage_options holds what looks like a secret (client_kwargs.password)",
        ),
    ],
)
def test_secrets_are_refused(manifest: str, store: str, options: dict[str, Any], named: str) -> None:
    """A parameter that holds a secret is refused by name, and the secret is not repeated."""
    with pytest.raises(RefusedError) as caught:
        refuse_secrets(manifest, store, RunOptions(**options))
    assert caught.value.kind == "secret_in_parameters"
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_other_parameters_pass() -> None:
    """Plain addresses and options are nobody's secret."""
    options = {"endpoint_url": "http://127.0.0.1:9000", "anon": True}
    workers = ["openai+http://a:1#limit=2", "segmind+http://b:1#key=env:OWN"]
    passing = RunOptions(manifest_storage_options=options, base_url="http://127.0.0.1:1/v", endpoints=workers)
    refuse_secrets("s3://b/m.parquet", "image-store/prod", passing)


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_an_unexpected_error_of_a_flow_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What Prefect keeps of an error that nobody foresaw, state and traceback, holds no password of an address."""

    def broken(*_: Any) -> None:
        raise ValueError("odd answer of https://me:hunter2@host/x?X-Amz-Signature=hunter3")

    monkeypatch.setattr(import_module("prefect_imagegen.flows.generate_images"), "open_session", broken)
    manifest = tmp_path / "m.csv"
    manifest.write_text("prompt\na cup\n")
    state: Any = generate_images(str(manifest), str(tmp_path / "out"), "sandbox", return_state=True)
    assert state.type.value == "FAILED"
    text = state.message + "".join(traceback.format_exception(state.result(raise_on_failure=False))) + caplog.text
    assert "ValueError: odd answer of https://host/x" in state.message
    assert "hunter" not in text
    assert "generate_images.py" in caplog.text  # the traceback is still logged
