"""What the build of the site does besides mkdocs: links that leave docs/ go to the repository; diagrams are shown."""

import re
from pathlib import Path
from typing import Any

_DIAGRAM = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)
_OUTSIDE = re.compile(r"(?<=\]\()(?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Point links to files outside of docs/ at the repository; in a clone they work as they stand.

    A Mermaid diagram, which GitHub draws itself, becomes the picture of the page's name (docs/diagram.py draws it).

    Raises FileNotFoundError for one that leads nowhere.
    """
    docs = Path(config["docs_dir"]).resolve()
    here = Path(page.file.abs_src_path).resolve().parent

    def absolute(link: re.Match[str]) -> str:
        target = (here / (link["up"] + link["path"])).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {link[0]}, which is not there")
        path = target.relative_to(docs.parent).as_posix()
        return (
            f"{config['extra']['repository']}/{'tree' if target.is_dir() else 'blob'}/main/{path}{link['anchor'] or ''}"
        )

    name = f"{Path(page.file.src_uri).stem}.svg"
    picture = f"[![The diagram]({name})]({name})\n"
    return _OUTSIDE.sub(absolute, _DIAGRAM.sub(picture, markdown))
