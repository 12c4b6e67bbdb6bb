"""What the app says, in the words of the place: a flow has parameters, not options of a command line."""

import re

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.core.errors import RefusedError

_OPTION = re.compile(r"(?<![\w/.-])--([a-z]+(?:-[a-z]+)*)(?![\w/.-]*\w)")
"""An option, and nothing that is a part of a path or of another name."""
_PARAMETERS = frozenset({"backend", "store", "manifest"})


def in_parameters(text: str) -> str:
    """The text with `options.max_cost_usd` for `--max-cost-usd`, and so on; what is no parameter of a flow stays."""
    return _OPTION.sub(_parameter, text)


def refusal_in_parameters(error: RefusedError) -> RefusedError:
    """The refusal in the words of a flow's parameters."""
    return RefusedError(error.kind, in_parameters(error.message), remedy=in_parameters(error.remedy))


def _parameter(match: re.Match[str]) -> str:
    name = match[1].replace("-", "_")
    if name in _PARAMETERS:
        return name
    fields = RunOptions.model_fields
    # What may be given several times is one field in the plural: --column, --endpoint, --reference-storage-option.
    field = next((one for one in (name, f"{name}s") if one in fields), {"set": "values"}.get(name))
    return f"options.{field}" if field else match[0]
