"""How a command ends: its message, its exit code, and its last line of JSON. No traceback reaches a user."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

from prefect_imagegen.app.planning.prepare import RowsRefusedError
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.terminal import shown
from prefect_imagegen.core.errors import ImagegenError
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.redact import printable, redact


class CommandExit(Exception):  # noqa: N818 - not an error: how a command ends with an exit code
    """The end of a command: its exit code, and what `--json` prints."""

    def __init__(self, code: int, answer: Mapping[str, Any]) -> None:
        super().__init__(code)
        self.code = code
        self.answer = answer


@contextmanager
def command_boundary(store: str, *, as_json: bool, blank: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn every end of a command into its message, its exit code and, if asked for, its last line of JSON.

    `blank`: what JSON says where the command could not begin; by default that of a run in which nothing was done.
    """
    store = redact(store)
    nothing = RunResult(None, store).as_dict() if blank is None else dict(blank) | {"store": store}
    errors = Console(stderr=True)
    try:
        yield
    except CommandExit as ended:
        answer, code = dict(ended.answer), ended.code
    except RowsRefusedError as error:
        errors.print(f"[red bold]refused:[/] {shown(error.message)}", end="", highlight=False)
        errors.print(shown(error.remedy), highlight=False)
        answer, code = planned(store, error.summary, refused=True), 2
    except ImagegenError as error:
        errors.print("[red bold]refused:[/]", end=" ")
        errors.print(printable(str(error)), markup=False, highlight=False, soft_wrap=True)
        answer, code = nothing, 2
    except KeyboardInterrupt:
        errors.print("interrupted before the first call")
        answer, code = nothing | {"stop_reason": "signal"}, 3
    except click.ClickException:
        raise
    except Exception as error:
        if os.environ.get("PREFECT_IMAGEGEN_TRACEBACK"):
            raise
        errors.print(f"[red bold]internal error:[/] {type(error).__name__}:", end=" ")
        errors.print(redact(str(error)), markup=False, highlight=False, soft_wrap=True)
        errors.print("[dim]Set PREFECT_IMAGEGEN_TRACEBACK=1 to see where.[/]")
        answer, code = nothing, 4
    else:
        return
    if as_json:
        print_json(answer)
    raise CommandExit(code, answer)


def planned(store: str, summary: PlanSummary, *, refused: bool = False) -> dict[str, Any]:
    """A plan in the words of a run's result: what is to be made was not run; if it was refused, nothing was."""
    counts = summary.counts
    result = RunResult(None, redact(store), rows=summary.rows, invalid=counts["invalid"])
    if not refused:
        result.reused, result.failed = counts["done"], counts["failed"]
    result.not_run = result.rows - result.invalid - result.reused - result.failed
    return result.as_dict()


def print_json(answer: Mapping[str, Any]) -> None:
    """Print one line of JSON to stdout."""
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    sys.stdout.flush()
