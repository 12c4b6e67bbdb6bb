"""What an option says of itself, and how the table of options is read. Standard library only."""

from dataclasses import MISSING, dataclass, fields
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True, slots=True)
class Option:
    """What is said of an option besides its type and default."""

    title: str
    """Its name in forms."""
    help: str
    """Its meaning, for the form, the blocks and the reference."""
    short: str
    """Its meaning in one line of `--help`; the default is added to it."""
    unset: str | None = None
    """The default that `--help` names where the option itself has none, since a block may say it."""
    flag: str | None = None
    """Its spelling on the command line, where that is not the name with dashes."""
    metavar: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    min_length: int | None = None
    secret: bool = False
    """Whether it may hold secrets: never shown, stored, or passed as a parameter."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """An option as read from the table: its group, name, type and default beside what is said of it."""

    group: str
    name: str
    type: Any
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return self.option.flag or "--" + self.name.replace("_", "-")


def read_rows(group: str, table: type) -> list[TableRow]:
    """The options of a group, from its dataclass: each field is `Annotated[type, Option(...)] = default`."""
    types = get_type_hints(table, include_extras=True)
    rows = []
    for entry in fields(table):
        plain, option = get_args(types[entry.name])
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        rows.append(TableRow(group, entry.name, plain, default, option))
    return rows
