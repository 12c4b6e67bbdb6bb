"""The packages that the benchmark needs on a machine, and those missing there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

PACKAGE = "prefect-imagegen"
# Of the package itself only what worker and client load: Prefect, for one, is not among it.
FOR_THE_WORKER = (
    "fastapi",
    "starlette",
    "uvicorn",
    "httpx",
    "httpx-aiohttp",
    "aiohttp",
    "pyarrow",
    "pillow",
    "fsspec",
    "pydantic",
    "click",
    "rich",
    "prometheus-client",
    "packaging",
)


@dataclass(frozen=True, slots=True)
class Need:
    """A needed distribution: the version specifier, and the installed version (None if missing)."""

    requirement: str
    name: str
    installed: str | None
    fits: bool


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def requirements(name: str) -> Sequence[str]:
    """The requirements of an installed distribution."""
    return requires(name) or ()


def needs(
    installed: Callable[[str], str | None] = installed_version,
    wanted: Callable[[str], Sequence[str]] = requirements,
) -> list[Need]:
    """Every needed distribution, including requirements of requirements as far as they are installed.

    The requirements of a missing distribution are unknown: copy what is missing, and look again.
    """
    needs_by_name: dict[str, Need] = {}
    waiting = [Requirement(PACKAGE)]
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        there = installed(name)
        fits = there is not None and requirement.specifier.contains(there, prereleases=True)
        if name in needs_by_name and (needs_by_name[name].fits is False or fits):
            continue
        needs_by_name[name] = Need(str(requirement.specifier), name, there, fits)
        if there is not None:
            waiting += [inner for inner in map(Requirement, wanted(name)) if _counts(name, inner)]
    return sorted(needs_by_name.values(), key=lambda need: need.name)


def _counts(parent: str, requirement: Requirement) -> bool:
    """Whether a requirement of a distribution is one of the benchmark's."""
    if parent != PACKAGE:
        return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if requirement.marker is not None:
        return requirement.marker.evaluate({"extra": "diffusers"}) and "diffusers" in str(requirement.marker)
    return requirement.name in FOR_THE_WORKER


def report(requirements: Sequence[Need]) -> list[str]:
    """The lines that say what to copy."""
    missing = [need for need in requirements if not need.fits]
    if not missing:
        return [f"Nothing has to be carried: all {len(requirements)} distributions are here."]
    lines = ["To carry, as wheels for this Python (pip download --no-deps):"]
    for need in missing:
        here = f"{need.installed} is here" if need.installed else "missing"
        lines.append(f"  {need.name}{need.requirement}  ({here})")
    return [*lines, "Then look again: what these need in turn is known only once they are here."]
