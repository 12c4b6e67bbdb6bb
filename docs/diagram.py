"""The picture of docs/design/executor.md, drawn from its Mermaid text in Chromium, for readers of the site.

    python docs/diagram.py node_modules/mermaid/dist/mermaid.min.js     # from `npm install mermaid@11`

GitHub draws the text itself; the site shows this picture in its place, for the library is 3 MB and would come from a
CDN. A test compares the digest of the text that stands in the picture.
"""

import hashlib
import re
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PAGE = Path(__file__).parent / "design" / "executor.md"
PICTURE = PAGE.with_suffix(".svg")
FENCE = re.compile(r"```mermaid\n(?P<text>.*?)```\n", re.DOTALL)
_SETTINGS = '{startOnLoad: false, theme: "neutral", htmlLabels: false, flowchart: {htmlLabels: false}}'


def digest_of(page: str) -> str:
    """The SHA-256 of the diagram's text, which its picture holds too."""
    diagram = FENCE.search(page)
    if diagram is None:
        raise ValueError(f"{PAGE} has no Mermaid diagram")
    return hashlib.sha256(diagram["text"].encode()).hexdigest()


def main(library: str) -> None:
    """Draw the diagram and write its picture. `library`: the path of mermaid.min.js."""
    page = PAGE.read_text(encoding="utf-8")
    digest = digest_of(page)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page()
        tab.set_content("<html><body></body></html>")
        tab.add_script_tag(path=library)
        draw = f"async text => {{ mermaid.initialize({_SETTINGS}); return (await mermaid.render('states', text)).svg }}"
        picture = tab.evaluate(draw, FENCE.search(page)["text"])  # type: ignore[index]
        browser.close()
    picture = picture.replace('style="', 'style="background-color: white; ', 1)  # the site has a dark scheme too
    PICTURE.write_text(f"<!-- sha256 of the text: {digest} -->\n{picture}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
