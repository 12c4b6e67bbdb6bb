"""The figures of a run, from which the report, the last line of `--json` and the exit code are made."""

from dataclasses import dataclass, field
from typing import Any

from prefect_imagegen.core.money import exact, figure, usd

STATES = ("generated", "reused", "invalid", "failed", "held", "not_run")
HELD_COLUMNS = ("row_index", "id", "error_kind", "request_id", "attempts")
"""The metadata columns of `RunResult.held_rows`."""
EXIT_CODES: dict[int, str] = {
    0: "every row has its image",
    1: "finished, but some rows are invalid, failed or held",
    2: "refused before any call: manifest, configuration, store or credentials",
    3: "stopped early (credentials, credits, too many failures, no progress, signal); the same command resumes",
    4: "internal error",
}
STOP_REASONS: dict[str, str] = {
    "auth": "the API key was rejected during the run",
    "credits": "the balance or a spending limit was reached",
    "budget": "one more image could exceed --max-cost-usd",
    "too_many_failures": "more rows failed than --max-failure-rate allows",
    "deadline": "nothing moved for --deadline seconds",
    "store": "the store could not be written",
    "no_worker": "no GPU worker of the pool was healthy for --deadline seconds",
    "protocol": "the endpoint stopped speaking the API",
    "sandbox_mismatch": "a sandbox answered in a real run, or the reverse",
    "internal": "an unexpected error of this program met twenty rows in a row",
    "signal": "SIGINT or SIGTERM was received",
}


def how_to_go_on(stop_reason: str) -> str:
    """What to do after a run that was stopped for this reason (a key of `STOP_REASONS`)."""
    if stop_reason == "budget":
        return "With a higher cap (max_cost_usd) the same command goes on where this run ended."
    return "The same command goes on where this run ended."


@dataclass(frozen=True, slots=True)
class Earlier:
    """The number and cost, in US dollars, of the earlier executions of the same flow run (which this one retries).

    `open_usd`: reserved for their calls whose cost is not known.
    """

    executions: int
    cost_usd: float
    open_usd: float = 0.0


@dataclass(slots=True)
class RunResult:
    """The figures of one run. The six states sum to `rows`; `calls`: POSTs sent; `seconds`: wall time."""

    run_id: str | None
    store: str
    rows: int = 0
    generated: int = 0
    reused: int = 0
    invalid: int = 0
    failed: int = 0
    held: int = 0
    not_run: int = 0
    flagged: int = 0
    calls: int = 0
    cost_usd: float = 0.0
    maybe_paid: int = 0
    seconds: float = 0.0
    stop_reason: str | None = None
    failures: dict[str, int] = field(default_factory=dict)
    """Rows without an image, by error kind."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first message of each error kind."""
    held_rows: list[dict[str, Any]] = field(default_factory=list)
    """The first held rows, with the columns `HELD_COLUMNS`."""
    stop_message: str | None = None
    paid: int = 0
    """Images billed in this run, including those of earlier calls whose image it fetched."""
    unpriced: int = 0
    """Billed images of this run whose cost no answer named: `cost_usd` does not count them."""
    overshoot_usd: float = 0.0
    assumed_price: bool = False
    """Whether the cap was checked against an assumed price, because answers named no cost."""
    not_understood: dict[str, int] = field(default_factory=dict)
    """Answers of the API that were not understood, and so proved nothing: counts by what was wrong."""
    unhonoured: dict[str, int] = field(default_factory=dict)
    """Images made with another value of a parameter than requested: counts by parameter."""
    weights_license: str | None = None
    """Licence of the GPU workers' weights."""
    left_out: dict[str, str] = field(default_factory=dict)
    """GPU workers that were left out, by address, with the reason."""
    sandbox: bool = False
    """Whether a sandbox drew the images, so that all money is play money."""
    earlier: Earlier | None = None
    """The earlier executions of this run's flow run; None if this is the first."""

    @property
    def exit_code(self) -> int:
        """0, 1 or 3: see `EXIT_CODES`."""
        if self.stop_reason is not None:
            return 3
        return 1 if self.invalid or self.failed or self.held or self.not_run else 0

    @property
    def cost_text(self) -> str:
        """What the run has cost, in US dollars, as far as the answers named it."""
        if not self.unpriced:
            return usd(self.cost_usd)
        unnamed = f"{self.unpriced} at a price that no answer named"
        return f"{usd(self.cost_usd)} and {unnamed}" if self.cost_usd else unnamed

    @property
    def order(self) -> dict[str, Any] | None:
        """Executions and money of the flow run as a whole; None if this is its only execution."""
        if self.earlier is None:
            return None
        return {
            "executions": self.earlier.executions + 1,
            "cost_usd": exact(self.earlier.cost_usd + self.cost_usd),
            "open_usd": exact(self.earlier.open_usd),
        }

    @property
    def order_text(self) -> str:
        """The money of the flow run as a whole, as a clause; empty if this is its only execution."""
        if (order := self.order) is None:
            return ""
        text = f"; {usd(order['cost_usd'])} over the {order['executions']} executions of this flow run"
        if order["open_usd"]:
            text += f", and {figure(order['open_usd'])} reserved for earlier calls whose cost is not known"
        return text

    def as_dict(self) -> dict[str, Any]:
        """The fields of the last line of `--json`, in their order."""
        names = (
            "run_id",
            "store",
            "rows",
            *STATES,
            "flagged",
            "calls",
            "cost_usd",
            "maybe_paid",
            "seconds",
            "stop_reason",
        )
        fields = {name: getattr(self, name) for name in names}
        return fields | {"cost_usd": exact(self.cost_usd), "seconds": round(self.seconds, 3)}
