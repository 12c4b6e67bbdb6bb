"""What the benchmark needs on a machine, and what of it is missing there."""

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
    """A distribution, what is asked of its version, and what is there (None: nothing)."""

    requirement: str
    name: str
    there: str | None
    fits: bool


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def requirements(name: str) -> Sequence[str]:
    """What an installed distribution asks for."""
    return requires(name) or ()


def needs(
    installed: Callable[[str], str | None] = installed_version,
    wanted: Callable[[str], Sequence[str]] = requirements,
) -> list[Need]:
    """Everything that is needed, and what those need in turn, as far as it can be known here.

    What a distribution needs is known where it is installed: carry what is missing, and look again.
    """
    found: dict[str, Need] = {}
    waiting = [Requirement(PACKAGE)]
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        there = installed(name)
        fits = there is not None and requirement.specifier.contains(there, prereleases=True)
        if name in found and (found[name].fits is False or fits):
            continue
        found[name] = Need(str(requirement.specifier), name, there, fits)
        if there is not None:
            waiting += [one for one in map(Requirement, wanted(name)) if _counts(name, one)]
    return sorted(found.values(), key=lambda need: need.name)


def _counts(parent: str, requirement: Requirement) -> bool:
    """Whether a requirement of a distribution is one of the benchmark's."""
    if parent != PACKAGE:
        return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if requirement.marker is not None:
        return requirement.marker.evaluate({"extra": "diffusers"}) and "diffusers" in str(requirement.marker)
    return requirement.name in FOR_THE_WORKER


def report(found: Sequence[Need]) -> list[str]:
    """What to carry, in words."""
    missing = [need for need in found if not need.fits]
    if not missing:
        return [f"Nothing has to be carried: all {len(found)} distributions are here."]
    lines = ["To carry, as wheels for this Python (pip download --no-deps):"]
    for need in missing:
        here = f"{need.there} is here" if need.there else "missing"
        lines.append(f"  {need.name}{need.requirement}  ({here})")
    return [*lines, "Then look again: what these need in turn is known only once they are here."]
