"""Pages followed in a clone: nothing that they make shows up in git, and what they need stands before them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_MADE = (
    re.compile(r"(?:cat|echo [^\n]*) >>? (\S+)"),
    re.compile(r"--(?:store|folder) ([\w.-]+)(?=\s|$)", re.MULTILINE),
    re.compile(r"generate\(\s*\"([^\"/]+)\", \"([^\"/:]+)\""),
    re.compile(r"(?:plan|generate) +([\w.-]+\.(?:csv|jsonl|parquet)) "),
    re.compile(r"Python blocks go into a file, say `([^`]+)`"),
)
"""Where a page names a file or a folder that its reader makes."""


def made_by(page: Path) -> set[str]:
    """The relative names of files and folders that the commands of a page make, or that its reader brings."""
    text = page.read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"```(?:bash|python)\n(.*?)```", text, re.DOTALL))
    texts = [commands] * (len(_MADE) - 1) + [text]
    found = [match for pattern, part in zip(_MADE, texts, strict=True) for match in pattern.findall(part)]
    names = {name.strip("'\"") for match in found for name in (match if isinstance(match, tuple) else (match,))}
    names |= {f"{name}.bak" for name in re.findall(r"sed -i\.bak .* (\S+)", commands)}
    return {name for name in names if re.fullmatch(r"[\w.-]+", name) and not name.isupper()}


def test_what_a_page_makes_is_ignored() -> None:
    """Every file and folder that a command of a page leaves in a clone is ignored by git."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    made = {name for page in PAGES for name in made_by(page)}
    assert made >= {"mugs.csv", "mugs.csv.bak", "mugs", "scenes.csv", "look.py", "products.csv", "my-images"}
    assert made - ignored == set()


@pytest.mark.parametrize("page", [page for page in PAGES if "generate_images.serve(" in page.read_text()])
def test_a_served_flow_has_its_server(page: Path) -> None:
    """A page that serves a flow says before it that a Prefect server is needed, and how it is started and named."""
    before = page.read_text(encoding="utf-8").partition("generate_images.serve(")[0]
    assert "prefect server start" in before
    assert "export PREFECT_API_URL=" in before
