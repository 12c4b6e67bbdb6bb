"""An option is written in one place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FIRST = "    max_cost_usd: Annotated["
_FIELD = (
    '    retry_pause: Annotated[float, Option("Retry pause", "Seconds between.", "Pause.", metavar="S", ge=0)] = 1.5\n'
)
_LOOK = """
import inspect, sys
sys.path.insert(0, "docs")
from click.testing import CliRunner
from prefect.utilities.callables import parameter_schema
import option_tables
import prefect_imagegen
from prefect_imagegen.cli.main import cli
from prefect_imagegen.flows import generate_images
assert prefect_imagegen.__file__.startswith(sys.argv[1]), prefect_imagegen.__file__
assert prefect_imagegen.RunOptions().retry_pause == 1.5
assert prefect_imagegen.RunOptions(execution={"retry_pause": 2}).retry_pause == 2.0
argument = inspect.signature(prefect_imagegen.generate).parameters["retry_pause"]
assert (argument.annotation, argument.default) == (float, 1.5)
help = CliRunner().invoke(cli, ["plan", "--help"], terminal_width=120).output
assert "--retry-pause S" in help and "Pause. [default: 1.5]" in help, help
form = parameter_schema(generate_images.fn).definitions["RunOptions"]["properties"]["execution"]["properties"]
assert form["retry_pause"] == {
    "default": 1.5, "description": "Seconds between.", "minimum": 0, "position": 0, "title": "Retry pause",
    "type": "number",
}, form["retry_pause"]
assert "| `retry_pause`<br>`--retry-pause` | number from 0 | `1.5` | Seconds between. |" in option_tables.options()
print("everywhere")
"""


def test_an_option_is_one_field(tmp_path: Path) -> None:
    """A field in the table is an option of the model, of Python, of the command line, of the form and of the docs."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "*.png", "*.jpg", "*.svg"))
    table = tmp_path / "src" / "prefect_imagegen" / "app" / "config" / "option_groups.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(_FIRST) == 1
    table.write_text(text.replace(_FIRST, _FIELD + _FIRST), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-c", _LOOK, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert process.stdout.endswith("everywhere\n"), process.stderr
