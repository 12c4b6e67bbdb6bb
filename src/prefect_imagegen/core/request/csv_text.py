"""The text of CSV files: the separator, quoted cells and the header.

Python's `csv` module, in its strict mode, splits the records; this module finds out what `csv` does not report.
"""

import csv
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_NAMES = {",": "commas", ";": "semicolons (;)", "\t": "tabs", "|": "bars (|)"}
_DECLARED = re.compile(r'"?sep=([^\w\s"]|\t)"?[,;]*[\r\n]*', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*+(?:""[^"]*+)*+"')


class BadCsvError(ValueError):
    """A text is not CSV; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a CSV: the column `names[i]` is at `positions[i]`; `width` counts unnamed columns too."""

    names: tuple[str, ...]
    positions: tuple[int, ...]
    width: int

    unnamed: tuple[int, ...]
    """The positions of header cells that are empty."""


def dialect_of(separator: str) -> dict[str, Any]:
    """The arguments of `csv.reader`: quotes within quotes are doubled, and nothing may follow a closing quote."""
    return {"delimiter": separator, "strict": True, "doublequote": True}


def declared_separator(line: str) -> str | None:
    """The separator that a first line `sep=;` declares, as Excel writes it; None for any other line."""
    match = _DECLARED.fullmatch(line)
    return match[1] if match else None


def separator_of(header: str, wanted: Collection[str], usual: str = ",") -> str:
    """The separator of a CSV, found from its header.

    It is the usual one, unless another one splits the header into more of the `wanted` names (fields and mapped
    columns), or the usual one does not split it at all. Raises BadCsvError if several others fit equally well.
    """
    splits = {mark: cells for mark in SEPARATORS if len(cells := _split(header, mark)) > 1}
    # A mapped column may be named like a whole header; the fields are what a header is known by.
    known = {mark: sum(cell.strip() in wanted for cell in cells) for mark, cells in splits.items()}
    best = max(known.values(), default=0)
    if not splits or (best == 0 and header.strip("\r\n").strip('"') in wanted):
        return usual  # one column, whose name may hold such a character
    leading = [mark for mark, count in known.items() if count == best]
    if usual in leading:
        return usual
    if len(leading) > 1:
        names = " or ".join(SEPARATOR_NAMES[mark] for mark in leading)
        raise BadCsvError(f"its cells may be separated by {names}: {header.strip()[:80]!r}")
    return leading[0]


def goes_on(header: str, separators: Iterable[str] = SEPARATORS) -> bool:
    """Whether a quoted name of the header may end in a later line, for any of the separators."""
    return any(open_quote(header, mark) is not None for mark in separators)


def header_of(cells: Sequence[str]) -> Header:
    """The header from its cells. Empty cells, which spreadsheets leave behind, are unnamed columns."""
    positions = tuple(position for position, name in enumerate(cells) if name.strip())
    unnamed = tuple(sorted(set(range(len(cells))) - set(positions)))
    return Header(tuple(cells[position] for position in positions), positions, len(cells), unnamed)


def may_quote(record: str, separator: str, words: Iterable[str]) -> bool:
    """Whether the record may have a quoted cell that is empty or one of the words; only False is certain."""
    if '"' not in record:
        return False
    return bool(_empty_quotes(separator).search(record)) or any(f'"{word}"' in record for word in words)


def has_odd_quote(record: str, separator: str) -> bool:
    """Whether there seems to be a blank between a separator and a quote, so that the quote counts as text."""
    return '"' in record and (f'{separator} "' in record or f'{separator}\t"' in record)


def quoted_cells(record: str, separator: str) -> list[bool]:
    """For each cell of a record's text, whether it is quoted."""
    pattern = _cell(separator)
    quoted, at, text = list[bool](), 0, record.rstrip("\r\n")
    while at <= len(text):
        match = pattern.match(text, at)
        if match is None:  # not reached for what the csv module took
            break
        quoted.append(match[1].startswith('"'))
        if match.end() == len(text):
            if text.endswith(separator) and match.end(1) < match.end():
                quoted.append(False)
            break
        at = match.end()
    return quoted


def open_quote(record: str, separator: str) -> int | None:
    """The line within a record's text, from 0, in which a quote opens that is never closed; None without one."""
    at = 0
    while at < len(record):
        if record[at] == '"':
            match = _QUOTED.match(record, at)
            if match is None:
                return record.count("\n" if "\n" in record else "\r", 0, at)
            at = match.end()
        end = record.find(separator, at)
        if end < 0:
            return None
        at = end + 1
    return None


@cache
def _cell(separator: str) -> re.Pattern[str]:
    """A cell, quoted or not, with the separator behind it."""
    mark = re.escape(separator)
    return re.compile(rf'("[^"]*(?:""[^"]*)*"|[^{mark}\r\n]*)(?:{mark}|(?=[\r\n])|$)')


@cache
def _empty_quotes(separator: str) -> re.Pattern[str]:
    """What a quoted empty cell looks like; text inside of quotes may look so too."""
    mark = re.escape(separator)
    return re.compile(rf'(?:^|{mark})""(?={mark}|[\r\n]|$)')


def _split(header: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([header], **dialect_of(separator)), [])
    except csv.Error:
        return []
