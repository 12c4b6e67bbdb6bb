"""How a command ends: its message, its exit code, and its last line of JSON. No traceback reaches a user."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core.errors import ImagegenError
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

    A command imports what it works with inside the boundary, so that this holds for failures and Ctrl-C while
    importing too. `blank` is the JSON of a command that could not begin; default: a run in which nothing was done.
    """
    store = redact(store)
    nothing_done = RunResult(None, store).as_dict() if blank is None else dict(blank) | {"store": store}
    errors = Console(stderr=True)
    try:
        yield
    except CommandExit as command_exit:
        answer, code = dict(command_exit.answer), command_exit.code
    except ImagegenError as error:
        errors.print("[red bold]refused:[/]", end=" ")
        errors.print(printable(str(error)), markup=False, highlight=False, soft_wrap=True)
        answer, code = nothing_done, 2
    except KeyboardInterrupt:
        errors.print("interrupted before the first call")
        answer, code = nothing_done | {"stop_reason": "signal"}, 3
    except click.ClickException:
        raise
    except Exception as error:
        if os.environ.get("PREFECT_IMAGEGEN_TRACEBACK"):
            raise
        errors.print(f"[red bold]internal error:[/] {type(error).__name__}:", end=" ")
        errors.print(redact(str(error)), markup=False, highlight=False, soft_wrap=True)
        errors.print("[dim]Set PREFECT_IMAGEGEN_TRACEBACK=1 to see where.[/]")
        answer, code = nothing_done, 4
    else:
        return
    if as_json:
        print_json(answer)
    raise CommandExit(code, answer)


def print_json(answer: Mapping[str, Any]) -> None:
    """Print one line of JSON to stdout."""
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    sys.stdout.flush()
