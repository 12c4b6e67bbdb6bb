"""Messages inside a flow speak of its parameters."""

import logging
from pathlib import Path

import pytest

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.flows import generate_images
from prefect_imagegen.tasks.wording import in_parameters


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("one more image could exceed --max-cost-usd", "one more image could exceed options.max_cost_usd"),
        ("Name the column: --column prompt=text", "Name the column: options.columns prompt=text"),
        ("--set stepps=4: no such field", "options.values stepps=4: no such field"),
        ("or --backend sandbox, or --store image-store/NAME", "or backend sandbox, or store image-store/NAME"),
        ("Check --manifest-storage-option.", "Check options.manifest_storage_options."),
        ("Run `prefect-imagegen resend --kind unknown`.", "Run `prefect-imagegen resend --kind unknown`."),
        ("a -- b, --, ---", "a -- b, --, ---"),
        ("/data/my--store.csv, a--seed/--manifest.csv", "/data/my--store.csv, a--seed/--manifest.csv"),
    ],
)
def test_options_become_parameters(said: str, meant: str) -> None:
    """What is an option on the command line is named as the parameter that it is in a flow."""
    assert in_parameters(said) == meant


def test_every_field_is_known_by_its_option() -> None:
    """No field of the options is missed."""
    for field in RunOptions.model_fields:
        assert in_parameters(f"--{field.replace('_', '-')}") == f"options.{field}"


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_a_refusal_logs_no_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong path is said in one sentence with the flow's own words; nobody reads a traceback about it."""
    caplog.set_level(logging.DEBUG)
    state = generate_images(str(tmp_path / "nothing.parquet"), str(tmp_path / "store"), "sandbox", return_state=True)
    assert state.name == "Failed"
    assert "refused (manifest_not_found)" in state.message
    assert "options.manifest_storage_options" in state.message
    assert "manifest_not_found" in caplog.text
    assert "Traceback" not in caplog.text
