"""Every block of commands or Python in the documents is run, or checked against the code. A comment before it says how.

- `<!-- snippet: run -->`: it is run as it stands, in the order of the page; `run, exit 2`: and ends so.
- `output`: what the block before it printed has these lines, or lines that begin so.
- `check`: its commands, options, imports and keywords are there.
- `followed by FILE`: that test runs the section; `compared by FILE`: that test makes the page.

`<!-- snippets: ... -->` says it of a whole page.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.deployments.terminal import Block, Terminal, blocks
from tests.docs.checked import check
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "deployments" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = {"text", "json", "mermaid"}
"""Languages of blocks that are shown only, unless a marker says that they are output."""
_PAGE_MARKER = re.compile(r"^<!-- snippets: (.*?) -->$", re.MULTILINE)


def marked(page: Path) -> list[Block]:
    """The blocks of a page that are more than shown, each with its own marker or the page's."""
    text = page.read_text(encoding="utf-8")
    of_page = _PAGE_MARKER.search(text)
    return [
        Block(block.language, block.code, block.marker or (of_page[1] if of_page else ""), block.headings)
        for block in blocks(text)
        if block.marker or block.language not in NOT_RUN
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_its_check(page: Path) -> None:
    """No block of a document goes unlooked at: it says how it is held against the program, and that is so."""
    for block in marked(page):
        kind, _, file = block.marker.partition(" by ")
        if file:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert page.name in source
            assert kind == "compared" or any(f'"{title}"' in source for title in block.headings), block.headings
        elif block.marker == "check":
            check(block)
        else:
            assert block.marker in ("output", "test-command") or re.fullmatch(r"run(, exit \d+)?", block.marker), (
                f"{name_of(page)} has a block without a marker:\n{block.code}"
            )


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A shell in an empty folder with two manifests, which takes a gateway on this machine for the API."""
    port = free_port()
    for name in ("prompts", "captions"):
        rows = {"id": [f"{name}-{n}" for n in range(12)], "prompt": [f"{name} {n}" for n in range(12)]}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    with EmbeddedGateway(GatewaySettings()) as gateway:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SEGMIND_"))
        } | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(tmp_path / "home"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_IMAGEGEN_CACHE": str(tmp_path / "cache"),
            "SEGMIND_API_KEY": "SG_of_this_machine",
            "SEGMIND_BASE_URL": gateway.url,
            "COLUMNS": "200",
        }
        changes = {"prefect-imagegen serve": f"prefect-imagegen serve --port {port}", ":8700": f":{port}"}
        opened = Terminal(tmp_path, environment, changes)
        yield opened
        opened.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.marker.startswith("run") for block in marked(page))], ids=name_of
)
def test_the_blocks_of_a_page_run(page: Path, terminal: Terminal) -> None:
    """A reader who copies the blocks of a page into one shell sees what the page says."""
    printed: list[str] = []
    for block in marked(page):
        if block.marker.startswith("run"):
            printed = [" ".join(line.split()) for line in terminal.follow(block).splitlines()]
        elif block.marker == "output":
            for line in block.code.splitlines():
                expected = " ".join(line.split())
                assert any(said.startswith(expected) for said in printed), f"{expected!r} is not in {printed}"
