"""The public functions are typed, for mypy and for pyright. Both are of the extra `dev`, as the linter is."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(__file__).with_name("typing_examples.py")


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_understands_the_calls(tmp_path: Path) -> None:
    """mypy, without plugins, takes the right calls and refuses each wrong one."""
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\nmypy_path = {ROOT / 'src'}\nfollow_imports = silent\n")
    words = ["--config-file", tmp_path / "mypy.ini", "--cache-dir", tmp_path / "cache", EXAMPLES]
    process = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, words)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert process.returncode == 0, process.stdout


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("basedpyright") is None, reason="basedpyright is not installed")
def test_pyright_understands_the_calls(tmp_path: Path) -> None:
    """pyright takes the right calls and refuses each wrong one."""
    shutil.copy(EXAMPLES, tmp_path / "examples.py")
    settings = {
        "typeCheckingMode": "standard",
        "extraPaths": [str(ROOT / "src")],
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    process = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stdout
