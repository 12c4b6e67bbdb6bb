"""Refuses a store that a deployed run would lose together with its working directory."""

import re
from pathlib import Path

from prefect.runtime import deployment

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact

_MADE_BY_PREFECT = re.compile(r"tmp\w+prefect")
"""Name of the folder that a process worker makes for a flow run and deletes after it (tempfile, suffix 'prefect')."""


def refuse_fleeting(store: StoreSettings) -> None:
    """Raise RefusedError (`fleeting_store`) for a store that does not outlive a deployed run.

    Runs that are not deployed may use any store.
    """
    if deployment.id is None:
        return
    reason = why_fleeting(store.url, Path.cwd())
    if reason is not None:
        raise RefusedError(
            "fleeting_store",
            f"The store {redact(store.url)} {reason}: its images would be paid for, and then deleted.",
            remedy="Give a bucket (s3://bucket/prefix), or a path that begins with / and that outlives the run.",
        )


def absolute(url: str) -> str:
    """The URL of a store; a local path becomes absolute."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


def why_fleeting(url: str, here: Path) -> str | None:
    """Why a store does not outlive a run whose working directory is `here`; None if it may."""
    protocol, separator, path = url.partition("://")
    if separator and protocol == "memory":
        return "lies in the memory of the run's process"
    if separator and protocol not in ("file", "local"):
        return None
    folder = Path(path if separator else url).expanduser()
    if not folder.is_absolute():
        return "is a relative path, which a deployed run follows from a working directory of its own"
    temporary = [parent for parent in (here, *here.parents) if _MADE_BY_PREFECT.fullmatch(parent.name)]
    if any(folder.resolve().is_relative_to(parent.resolve()) for parent in temporary):
        return "lies in the working directory that Prefect made for this flow run"
    return None
