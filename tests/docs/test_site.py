"""The site as readers see it: every page opened in Chromium, from files, on a desk and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.timeout(300)
SIZES = {"desktop": (1280, 900, "light"), "phone": (390, 844, "dark")}
_LINKS = "[...document.querySelectorAll('a[href], img[src]')].map(e => e.href || e.src)"
_ANCHORS = "[...document.querySelectorAll('[id]')].map(e => e.id)"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def is_on_this_machine(url: str) -> bool:
    return urlsplit(url).scheme in ("file", "data", "blob", "about")


@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_whole(size: str, site: Path, chromium: Any) -> None:
    """No page asks anybody else for anything, complains, is wider than the screen, or links to what is not there."""
    width, height, scheme = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab = context.new_page()
    problems: list[str] = []
    tab.on("request", lambda sent: is_on_this_machine(sent.url) or problems.append(f"{tab.url} asks {sent.url}"))
    tab.on("console", lambda said: said.type == "error" and problems.append(f"{tab.url} says {said.text}"))
    tab.on("pageerror", lambda error: problems.append(f"{tab.url} breaks: {error}"))
    pages = sorted(path for path in site.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 30
    anchors: dict[Path, set[str]] = {}
    links: list[tuple[Path, str]] = []
    for page in pages:
        tab.goto(page.as_uri(), wait_until="load")
        wide = tab.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            problems.append(f"{page.relative_to(site)} is {wide} pixels wide on a {size}")
        anchors[page] = set(tab.evaluate(_ANCHORS))
        links += [(page, link) for link in tab.evaluate(_LINKS) if urlsplit(link).scheme == "file"]
    for page, link in links:
        parts = urlsplit(link)
        target = Path(unquote(parts.path))
        if not target.is_file():
            problems.append(f"{page.relative_to(site)} links to {target}, which is not there")
        elif parts.fragment and unquote(parts.fragment) not in anchors.get(target, set()):
            problems.append(f"{page.relative_to(site)} links to {target.name}#{parts.fragment}, which is not there")
    context.close()
    assert problems == []


def test_the_search_works_without_a_server(site: Path, chromium: Any) -> None:
    """A word of one page is found from another one, opened from a file."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.goto((site / "index.html").as_uri())
    tab.locator("input.md-search__input").click()
    tab.keyboard.type("billed_failure")
    first = tab.locator(".md-search-result__item a").first
    first.wait_for(timeout=30_000)
    assert "reference/errors.html" in first.get_attribute("href")
    tab.close()
