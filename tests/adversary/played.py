"""One run of a world as it went, and its end in words."""

from dataclasses import dataclass, field

from prefect_imagegen.executor.control import RunControl

from .scenarios.scenario import RunPlan
from .world.session import Ended
from .world.store import RunStore
from .world.wire import Network


@dataclass(slots=True)
class Played:
    """One run as it went. `ended` is None where it was killed; `broke` says what it must not have done."""

    number: int
    plan: RunPlan
    network: Network
    store: RunStore
    began: float
    moved: float
    """When a row last moved: a POST was answered, a job first asked for, an image stored."""
    over: float = 0.0
    ended: Ended | None = None
    broke: list[str] = field(default_factory=list)
    control: RunControl | None = None
    listings: int = 0
    """How many pages of the history it has asked for."""
    asked: set[str] = field(default_factory=set)
    """The jobs that were asked for."""
    stopped_at: float | None = None
    """When it was told to stop, as by SIGTERM."""


def short(result: object) -> str:
    names = ("status", "error_kind", "error_message", "request_id", "attempts", "maybe_paid")
    shown = {name: value for name in names if (value := getattr(result, name, None))}
    return "no result" if result is None else ", ".join(f"{name}={value}" for name, value in shown.items())


def inner(error: BaseException) -> str:
    """The errors inside an exception group, as text."""
    parts = getattr(error, "exceptions", ())
    return "".join(f" / {part!r}{inner(part)}" for part in parts)
