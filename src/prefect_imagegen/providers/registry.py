"""All providers: those built in, and those that installed distributions add as entry points."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.providers.entry import ProviderEntry
from prefect_imagegen.providers.pool.entry import POOL
from prefect_imagegen.providers.segmind.entry import SANDBOX, SEGMIND

PROVIDERS: Mapping[str, ProviderEntry] = {entry.name: entry for entry in (SEGMIND, SANDBOX, POOL)}
"""The providers that are built in, by name. Nothing else lists them."""
ENTRY_POINTS = "prefect_imagegen.providers"
"""The group of entry points by which a distribution adds providers: `NAME = "module:ENTRY"`."""


def entry_of(name: str) -> ProviderEntry:
    """The entry of a provider, by its name.

    A built-in name always means the built-in provider. Raises RefusedError: `backend_unknown`, or `backend_broken` for
    an entry point that cannot be loaded.
    """
    if name in PROVIDERS:
        return PROVIDERS[name]
    added = list(entry_points(group=ENTRY_POINTS, name=name))
    if len(added) > 1:
        names = ", ".join(sorted({_distribution(point) for point in added}))
        raise _broken(name, names, "several distributions add it")
    if added:
        return _loaded(name, added[0])
    others = sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - PROVIDERS.keys())
    raise RefusedError(
        "backend_unknown",
        f"There is no backend {redact(name)!r}.",
        remedy=f"Use --backend {' or '.join([*PROVIDERS, *others])}, or a block such as {next(iter(PROVIDERS))}/NAME.",
    )


def _loaded(name: str, point: EntryPoint) -> ProviderEntry:
    """The entry that an entry point names. Raises RefusedError (`backend_broken`)."""
    try:
        entry = point.load()
    except Exception as error:  # foreign code, which may raise anything while it is imported
        reason = f"{point.value} cannot be loaded: {type(error).__name__} {error}"
        raise _broken(name, _distribution(point), redact(reason)) from error
    if not isinstance(entry, ProviderEntry):
        raise _broken(name, _distribution(point), f"{point.value} is no ProviderEntry")
    if entry.name != name:
        raise _broken(name, _distribution(point), f"{point.value} calls itself {entry.name!r}")
    if entry.abilities.claims and entry.abilities.key_scope is None:
        raise _broken(name, _distribution(point), f"{point.value} is paid and declares no key_scope")
    return entry


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def _broken(name: str, distribution: str, reason: str) -> RefusedError:
    return RefusedError(
        "backend_broken",
        f"The backend {name!r} of {distribution} cannot be used: {reason}.",
        remedy=f"Mend or remove {distribution}.",
    )
