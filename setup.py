"""The project's description for PyPI: README with links to the repository, for PyPI has no files beside it."""

import re
from pathlib import Path

from setuptools import setup

_REPOSITORY = "https://github.com/prefect-imagegen/prefect-imagegen"
_RELATIVE = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<path>[^)\s]+)\)")


def _absolute(link: re.Match[str]) -> str:
    view = "raw" if link["image"] else "blob"
    return f"{link['image']}[{link['text']}]({_REPOSITORY}/{view}/main/{link['path']})"


setup(
    long_description=_RELATIVE.sub(_absolute, Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
