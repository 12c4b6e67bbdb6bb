"""Show text that comes from elsewhere on a terminal."""

from rich.markup import escape

from prefect_imagegen.core.redact import printable


def shown(text: str) -> str:
    """Escape untrusted text for a rich console: no markup, and no terminal control characters."""
    return escape(printable(text))
