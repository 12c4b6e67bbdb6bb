"""Translates the app's messages from options of the command line to parameters of a flow."""

import re

from prefect_imagegen.app.config.option_table import OPTIONS
from prefect_imagegen.core.errors import RefusedError

_OPTION = re.compile(r"(?<![\w/.-])--([a-z]+(?:-[a-z]+)*)(?![\w/.-]*\w)")
"""An option that is not a part of a path or of another name."""
_PARAMETERS = frozenset({"backend", "store", "manifest"})
_FIELDS = {row.flag: name for name, row in OPTIONS.items()}


def in_parameters(text: str) -> str:
    """The text with `options.max_cost_usd` for `--max-cost-usd` and so on; options without a parameter stay."""
    return _OPTION.sub(_parameter, text)


def refusal_in_parameters(error: RefusedError) -> RefusedError:
    """The refusal with its message and remedy translated to a flow's parameters."""
    return RefusedError(error.kind, in_parameters(error.message), remedy=in_parameters(error.remedy))


def _parameter(match: re.Match[str]) -> str:
    name = match[1].replace("-", "_")
    if name in _PARAMETERS:
        return name
    field = _FIELDS.get(f"--{match[1]}") or (name if name in OPTIONS else None)
    return f"options.{field}" if field else match[0]
