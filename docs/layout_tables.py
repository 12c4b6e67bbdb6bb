"""Pages of the reference made from the store's layout, the public names and the list of decisions."""

import inspect
import re
from pathlib import Path
from typing import Any

from tables import table

import prefect_imagegen
from prefect_imagegen.core import layout

DECISIONS = Path(__file__).with_name("decisions")


class _Key(str):
    """Stands for a request key: its first two digits are shown as `<kk>`."""

    __slots__ = ()

    def __getitem__(self, _: object) -> str:
        return "<kk>"


class _Number(int):
    """Stands for a number, whatever its format."""

    def __format__(self, _: str) -> str:
        return "<n>"


_KEY, _N, _RUN = _Key("<request_key>"), _Number(1), "<run_id>"
_PLACES: list[tuple[str, tuple[Any, ...]]] = [
    ("image", (_KEY, "<ext>")),
    ("more_image", (_KEY, _N, "<ext>")),
    ("reference", ("<sha256>", "<ext>")),
    ("quarantined", ("images/<kk>/<request_key>.<ext>", "<sha256, short>")),
    ("claim", (_KEY, _N)),
    ("claim_id", (_KEY, _N)),
    ("account", ("<fingerprint>",)),
    ("segment", ("<time-ordered id>",)),
    ("generation", (_N,)),
    ("generation_file", (_N, "<name>")),
    ("execution", ("<flow_run_id>", _N)),
    ("heartbeat", (_RUN,)),
    ("late_results", (_RUN,)),
    ("probe", ("<random>",)),
]
_OTHER_FUNCTIONS = {"run", "part", "images_below", "claims_of", "claims_below", "claim_name", "generation_of"}
"""They name folders, or parts of paths that stand in the table anyway."""
RUN_FILES = {
    "run.json": "what was asked for: manifest, backend and options, without secrets",
    "started.json": "which process executes the run; created once, so that no two do",
    "plan/plan.json": "the counts of the plan, and its parts; written before anything is spent",
    "report.json": "the run in figures; a run that has it has ended",
    "report.md": "the same in words",
}
PARTS = {
    "plan": "the rows as planned, with their request keys",
    "results": "what became of the rows of one shard",
    "metadata": "one row per manifest row: see [metadata](metadata.md)",
    "failures": "the rows without an image, same columns",
}


def places() -> list[tuple[str, str]]:
    """Path and meaning of everything in a store. Raises RuntimeError for an unknown function of the layout."""
    functions = {name for name, value in vars(layout).items() if inspect.isfunction(value)}
    if unknown := functions - {name for name, _ in _PLACES} - _OTHER_FUNCTIONS:
        raise RuntimeError(f"docs/layout_tables.py does not know {sorted(unknown)} of the layout")
    found = [(layout.STORE_FILE, "format of the store, and its kind: `real` or `sandbox`; created once")]
    for name, arguments in _PLACES:
        function = getattr(layout, name)
        found.append((function(*arguments), _lower(inspect.getdoc(function) or "")))
    found.append((layout.LEDGER_TIME, "written anew to learn what time it is for the store; empty"))
    found += [(layout.run(_RUN, name), meaning) for name, meaning in RUN_FILES.items()]
    return found + [(layout.part(_RUN, family, _N), meaning) for family, meaning in PARTS.items()]


def store_layout() -> str:
    """Everything that lies in a store."""
    return table(("path", "what it is"), *((f"`{path}`", text) for path, text in sorted(places())))


def patterns() -> list[re.Pattern[str]]:
    """One pattern for each path of the layout, its placeholders standing for anything but a slash."""
    return [re.compile("[^/]+".join(map(re.escape, re.split(r"<[^>]*>", path)))) for path, _ in places()]


def public_names() -> str:
    """What mkdocstrings shows for each name that `prefect_imagegen` exports."""
    values = [getattr(prefect_imagegen, name) for name in prefect_imagegen.__all__ if not name.startswith("_")]
    functions = [value for value in values if inspect.isfunction(value)]
    classes = [value for value in values if inspect.isclass(value)]
    return "\n\n".join(f"::: {value.__module__}.{value.__qualname__}" for value in [*functions, *classes])


def decisions() -> str:
    """The decisions, by number."""
    titles = (
        (path, path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "))
        for path in sorted(DECISIONS.glob("[0-9]*.md"))
    )
    return "\n".join(f"- [{title}]({path.name})" for path, title in titles)


def _lower(text: str) -> str:
    """The first sentence of a docstring, as a cell."""
    first = text.partition("\n\n")[0].replace("\n", " ").removesuffix(".")
    return first[:1].lower() + first[1:]
