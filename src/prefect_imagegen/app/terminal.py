"""Texts of others on a terminal."""

from rich.markup import escape

from prefect_imagegen.core.redact import printable


def shown(text: str) -> str:
    """A text of anybody's for a console that obeys markup: it stays text, and commands no terminal."""
    return escape(printable(text))
