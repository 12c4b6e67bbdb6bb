"""Options as fields of pydantic models: of `RunOptions`, and of blocks. Loads pydantic and the table only."""

from copy import copy
from functools import partial
from typing import Any

from pydantic import Field

from prefect_imagegen.app.config.option_table import OPTIONS


def option_field(name: str, **changed: Any) -> Any:
    """The pydantic field of an option. `changed`: what a block says otherwise, such as its own default."""
    row = OPTIONS[name]
    option = row.option
    default = {"default_factory": partial(copy, row.default)} if row.default in ([], {}) else {"default": row.default}
    if changed.keys() & {"default", "default_factory"}:
        default = {}
    said = {"title": option.title, "description": option.help, "repr": not option.secret}
    limits = {limit: getattr(option, limit) for limit in ("ge", "gt", "le", "min_length")}
    return Field(**(said | {name: value for name, value in limits.items() if value is not None} | default | changed))
