"""The table of all options, read from the groups in which they are written. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_imagegen.app.config.option_groups import Connection, Execution, Manifest, References
from prefect_imagegen.app.config.option_rows import TableRow, read_rows


@dataclass(frozen=True, kw_only=True)
class OptionTable(Connection, References, Manifest, Execution):
    """All options, by their own names."""


@dataclass(frozen=True, kw_only=True)
class OptionArguments(OptionTable):
    """All options as `RunOptions` takes them: by their own names, in groups, or both."""

    execution: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Any] = field(default_factory=dict)
    connection: Mapping[str, Any] = field(default_factory=dict)


GROUPS: Mapping[str, type] = {
    "execution": Execution,
    "manifest": Manifest,
    "references": References,
    "connection": Connection,
}
"""The groups of options, in the order of the form and of the command line's help."""


OPTIONS: Mapping[str, TableRow] = {row.name: row for group, table in GROUPS.items() for row in read_rows(group, table)}
"""Every option by its name, group by group."""
SECRET_OPTIONS = {name for name, row in OPTIONS.items() if row.option.secret}
"""Options that may hold secrets: never shown, stored, or passed as parameters."""
