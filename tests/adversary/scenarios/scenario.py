"""A scenario: everything that is decided before a world begins."""

from dataclasses import dataclass, field

from ..world.api import Traits
from ..world.session import Options
from ..world.store import StoreTrouble
from ..world.troubles import Trouble

At = tuple[str, int]
"""(text, n): the n-th event with this text in its name."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run: which key it has, on which machine, and what happens to it.

    `kill_at` and `stop_at` count events of its store and its network: all, or those with some text in their name.
    `pause` is seconds since the run before; `machine` is `here` where its end can be seen in /proc by later runs;
    `damage`: before it, an image in the store is damaged; `beside`: another run that starts at the same time, or, with
    `beside_at`, amid it. `cap`: the most that it may spend, in US dollars. `resend`: before it, a person gives the rows
    free that the run before held for want of a request history.
    """

    key: str
    pause: float = 0.0
    clock: float = 0.0
    machine: str = "here"
    kill_at: "At | None" = None
    stop_at: "At | None" = None
    damage: bool = False
    beside: bool = False
    beside_at: "At | None" = None
    cap: float | None = None
    resend: bool = False
    store_troubles: tuple[StoreTrouble, ...] = ()

    def describe(self) -> str:
        """The end and the store troubles of the run, for the trace."""
        end = f"kill at {self.kill_at}" if self.kill_at else f"SIGTERM at {self.stop_at}" if self.stop_at else "no kill"
        return f"{end}, {len(self.store_troubles)} store troubles"


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a world is made of. `keys` are (key, account); times in seconds."""

    seed: int
    family: str
    rows: int
    options: Options
    traits: Traits
    keys: tuple[tuple[str, str], ...]
    runs: tuple[RunPlan, ...]
    last_run: RunPlan
    last_pause: float
    troubles: tuple[Trouble, ...] = ()
    latency: tuple[float, float] = (0.5, 3.0)
    """The shortest and the longest duration of a job."""
    fail_share: float = 0.0
    """The share of jobs that fail for a passing reason."""
    failing: frozenset[int] = frozenset()
    """Rows whose jobs always fail."""
    most_lag: float = 0.0
    """The longest time until the history shows everything of a call."""
    partial: tuple[str, ...] = ()
    """Fields of history rows that land later than the row."""
    foreign: tuple[tuple[float, int | None], ...] = ()
    """Other stores' calls of the account: the time, and the row whose body they share, or None."""
    with_reference: frozenset[int] = field(default_factory=frozenset)
    store_clock: float = 0.0
    list_lag: float = 0.0
    blind: bool = False
    """Whether LIST shows nothing below the claims of a key."""

    def describe(self) -> list[str]:
        """The lines that describe the scenario, for the trace."""
        lines = [f"seed {self.seed}, family {self.family}, {self.rows} rows, {self.options}", f"{self.traits}"]
        lines += [f"jobs take {self.latency} s, {self.fail_share:.0%} fail, rows {sorted(self.failing)} always"]
        lines += [f"history lag up to {self.most_lag:.0f} s, fields that come later: {self.partial}"]
        lines += [f"store clock {self.store_clock:+.0f} s, list lag {self.list_lag:.0f} s, blind {self.blind}"]
        lines += [f"another store's call at {at:.0f} s, of row {row}" for at, row in self.foreign]
        lines += [f"trouble: {trouble}" for trouble in self.troubles]
        lines += [f"run {number}: {run}" for number, run in enumerate((*self.runs, self.last_run), 1)]
        return lines
