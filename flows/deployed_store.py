"""The store of a deployed run: one that would vanish with the run's working directory is refused."""

import re
from pathlib import Path

from prefect.runtime import deployment

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact

_MADE_BY_PREFECT = re.compile(r"tmp\w+prefect")
"""The folder that a process worker makes for a flow run, and deletes after it (tempfile's names, suffix 'prefect')."""


def refuse_fleeting(store: StoreSettings) -> None:
    """Refuse a store that lies where a deployed run leaves nothing behind. Runs of other kinds may use any store.

    Raises RefusedError (`fleeting_store`).
    """
    if deployment.id is None:
        return
    why = why_fleeting(store.url, Path.cwd())
    if why is not None:
        raise RefusedError(
            "fleeting_store",
            f"The store {redact(store.url)} {why}: its images would be paid for, and then deleted.",
            remedy="Give a bucket (s3://bucket/prefix), or a path that begins with / and that outlives the run.",
        )


def absolute(url: str) -> str:
    """A store's URL, or its local path from the root on."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


def why_fleeting(url: str, here: Path) -> str | None:
    """Why a store does not outlive a run whose process is `here`; None if nothing speaks for it."""
    protocol, separator, path = url.partition("://")
    if separator and protocol == "memory":
        return "lies in the memory of the run's process"
    if separator and protocol not in ("file", "local"):
        return None
    place = Path(path if separator else url).expanduser()
    if not place.is_absolute():
        return "is a relative path, which a deployed run follows from a working directory of its own"
    made = [folder for folder in (here, *here.parents) if _MADE_BY_PREFECT.fullmatch(folder.name)]
    if any(place.resolve().is_relative_to(folder.resolve()) for folder in made):
        return "lies in the working directory that Prefect made for this flow run"
    return None
