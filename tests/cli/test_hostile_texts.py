"""What stands in a manifest is shown, whatever it is: it is no markup, and no command to a terminal."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.support import warm_python
from tests.support.command import MODULE

SIGNS = "\x1b]0;title\x07\x1b[2J\u202e\x9b31m[/][link=http://a.example]x[/link]\\"
ROWS = (
    {"prompt": "a", "seed": SIGNS},
    {"prompt": "a", "steps": SIGNS},
    {"prompt": "a", "model": SIGNS},
    {"prompt": "a", "image_urls": f"https://{SIGNS}/a.png"},
    {"prompt": "a", "image_urls": f"no-{SIGNS}.png"},
    {"prompt": "a", "image_urls": {f"u{SIGNS}": 1}},
    {"prompt": "a", f"image_url{SIGNS}": "x"},
)


@pytest.mark.parametrize("command", ["plan", "generate"])
def test_cells_are_shown_and_command_nothing(tmp_path: Path, command: str) -> None:
    """Invalid rows are refused with exit code 2, without a traceback, and no sign of theirs gets to a terminal."""
    manifest = tmp_path / "a.jsonl"
    manifest.write_text("\n".join(map(json.dumps, ROWS)))
    place = ("--store", tmp_path / "s", "--backend=sandbox")
    environment = {**os.environ, "PREFECT_IMAGEGEN_CACHE": str(tmp_path / "cache"), "FORCE_COLOR": ""}
    ended = warm_python.run("-m", MODULE, command, manifest, *place, env=environment)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2, said
    assert "Traceback" not in said
    assert not re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert "[link=http://a.example]" in said.replace("\n", "")
