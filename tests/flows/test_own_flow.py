"""The flow of the guide your-own-flow.md, taken out of the page and run as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployments.terminal import blocks
from tests.support import prefect_homes
from tests.support.manifests import manifest_of

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "your-own-flow.md"
HEADING = "Your own flow from our tasks"


def test_the_flow_of_the_guide(tmp_path: Path, prefect_home: Path) -> None:
    """A reader's own flow from our tasks, with a step of theirs between, makes the images and prints what it should."""
    code, output = (block for block in blocks(PAGE.read_text(encoding="utf-8")) if HEADING in block.headings)
    manifest_of(tmp_path, prompt=[f"scene {number}" for number in range(12)])
    with prefect_homes.serving(prefect_home) as api:
        environment = os.environ | {"PREFECT_API_URL": api, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        words = [sys.executable, "-c", code.code]
        ended = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(output.code.strip()), ended.stdout + ended.stderr
    assert len(list((tmp_path / "approved-images" / "images").rglob("*.png"))) == 12
