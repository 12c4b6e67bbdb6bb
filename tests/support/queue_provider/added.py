"""Distributions that add a provider: the one of docs/extend/provider.md, and whatever else a test puts into one."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "extend" / "provider.md"
NAME = "queue-images"


def block(language: str) -> str:
    """The block of a language on the page."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(text)


def install(folder: Path, name: str, value: str, distribution: str = "queue-images", **modules: str) -> None:
    """Write a distribution that adds the provider `name`, as an installer would; `modules` are its sources by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
    about = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[prefect_imagegen.providers]\n{name} = {value}\n", encoding="utf-8")
