"""The money that the earlier executions of an order have spent. Pure.

An order is one Prefect flow run with all its retries and re-executions, or one `generate` call without Prefect. Its
cap holds over all of them: execution n begins with what the calls of executions 1 to n-1 cost, and with a reservation
for each of those that is still open, or that was billed and named no cost. Each call counts once, however many events
tell of it, and whichever execution settled it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.core.ledger.compacting_table import GrowingTable
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.request.models import DEFAULT_PRICE_USD, price_of

CAP_USED = "this flow run's cap is used; start a new run to allow more"
_ROUNDING = 1e-9
_OPEN, _FREE, _MAYBE_BILLED, _DELIVERED = 0, 1, 2, 3
"""How a call has ended so far; the highest value of its events counts."""
_STEP = pa.schema(
    [
        ("attempt_id", pa.string()),
        ("run_id", pa.string()),
        ("end", pa.int8()),
        ("sent", pa.int8()),
        ("answered", pa.int8()),
        ("cost_usd", pa.float64()),
        ("cost_class", pa.string()),
    ]
)
"""The state of one attempt, by the events of one run."""


@dataclass(frozen=True, slots=True)
class Spending:
    """The cost of the earlier executions of an order, in US dollars.

    `unpriced` holds their calls of unknown cost that may be billed: the cost class (None if unknown) by attempt id.
    """

    executions: int = 0
    cost_usd: float = 0.0
    unpriced: Mapping[str, str | None] = field(default_factory=dict)

    def reservations(self, worst: Mapping[str, float]) -> dict[str, float]:
        """US dollars to reserve for each unpriced call, by attempt id; `worst` holds the highest cost of each class."""
        dearest = max(worst.values(), default=DEFAULT_PRICE_USD)
        return {
            attempt_id: dearest if name is None else worst.get(name, price_of(name))
            for attempt_id, name in self.unpriced.items()
        }


def cap_is_used(budget: Budget, cost_classes: Iterable[str]) -> bool:
    """Whether the rest of the cap is less than the price of an image of every one of these classes."""
    if budget.cap is None:
        return False
    left = budget.cap - budget.spent - budget.reserved + _ROUNDING
    return all(budget.worst.get(name, price_of(name)) > left for name in cost_classes)


class SpendingFold:
    """Folds events, table by table and in any order, into the spending of some runs.

    `claimed` are the attempt ids of claims found in the store; `unheard` holds those without a `claimed` event.
    `queues`: the provider queues work before it answers, so work answered with 5xx may be accepted and billed.
    """

    def __init__(self, run_ids: Collection[str], *, queues: bool, claimed: Collection[str] = ()) -> None:
        self.unheard = set(claimed)
        self._claimed = pa.array(sorted(claimed), pa.string())
        self._run_ids = pa.array(sorted(run_ids), pa.string())
        self._may_cost = pa.array([kind for kind in OUTCOMES if _may_cost(kind, queues=queues)], pa.string())
        self._known = pa.array(list(OUTCOMES), pa.string())
        self._steps = GrowingTable(_STEP, lambda steps: _merged(steps, ["attempt_id", "run_id"]))
        self._executions = len(run_ids)

    def add(self, events: pa.Table) -> None:
        """Add a table of `EVENT_SCHEMA`; an event that comes twice counts once."""
        if self.unheard:
            # Only the `claimed` event counts here: other runs may have recorded the end of the call.
            claims = pc.and_(pc.equal(events["type"], "claimed"), pc.is_in(events["attempt_id"], self._claimed))
            self.unheard.difference_update(events["attempt_id"].filter(claims).to_pylist())
        own = events.filter(pc.is_in(events["run_id"], self._run_ids))
        if len(own):
            self._steps.add(self._steps_of(own))

    def spending(self, unheard: Iterable[str] = ()) -> Spending:
        """The total spending; `unheard` are further calls of these runs, of which only a claim is left."""
        # If the image was in the store already, the claim led to no call: its run recorded an image without an answer.
        steps = self._steps.table()
        is_reused = pc.and_(
            pc.and_(pc.equal(steps["end"], _DELIVERED), pc.equal(steps["sent"], 1)),
            pc.and_(pc.equal(steps["answered"], 0), pc.is_null(steps["cost_usd"])),
        )
        ends = pc.if_else(is_reused, pa.scalar(_FREE, pa.int8()), steps["end"])
        calls = _merged(steps.set_column(steps.schema.get_field_index("end"), "end", ends), ["attempt_id"])
        priced = calls["cost_usd"].drop_null()
        unpriced = calls.filter(
            pc.and_(
                pc.and_(pc.is_null(calls["cost_usd"]), pc.equal(calls["sent"], 1)),
                pc.not_equal(calls["end"], _FREE),
            )
        )
        priced_or_free = calls.filter(pc.or_(pc.is_valid(calls["cost_usd"]), pc.equal(calls["end"], _FREE)))
        unheard = set(unheard) - set(priced_or_free["attempt_id"].to_pylist())
        classes = dict(zip(unpriced["attempt_id"].to_pylist(), unpriced["cost_class"].to_pylist(), strict=True))
        return Spending(self._executions, pc.sum(priced, min_count=0).as_py(), dict.fromkeys(sorted(unheard)) | classes)

    def _steps_of(self, events: pa.Table) -> pa.Table:
        kind = events["error_kind"]
        # An unknown kind comes from another version of this package: it may cost something.
        may_cost = pc.or_(pc.is_in(kind, self._may_cost), pc.invert(pc.is_in(kind, self._known)))
        failed = pc.if_else(may_cost, _MAYBE_BILLED, _FREE)
        is_image = pc.is_in(events["type"], pa.array(["delivered", "quarantined"]))
        end = pc.if_else(is_image, _DELIVERED, pc.if_else(pc.equal(events["type"], "failed"), failed, _OPEN))
        answered = pc.or_(pc.is_valid(events["request_id"]), pc.is_valid(events["http_status"]))
        columns = {
            "attempt_id": events["attempt_id"],
            "run_id": events["run_id"],
            "end": end,
            "sent": pc.equal(events["type"], "claimed").cast(pa.int8()),
            "answered": answered.cast(pa.int8()),
            "cost_usd": events["cost_usd"],
            "cost_class": events["cost_class"],
        }
        return pa.table({name: column.cast(_STEP.field(name).type) for name, column in columns.items()}, schema=_STEP)


def _merged(steps: pa.Table, keys: list[str]) -> pa.Table:
    """One row for each combination of the keys, with the highest value of every other column."""
    names = [name for name in _STEP.names if name not in keys]
    highest = steps.group_by(keys).aggregate([(name, "max") for name in names])
    renamed = highest.rename_columns([name.removesuffix("_max") for name in highest.column_names])
    return renamed.select(_STEP.names).cast(_STEP)


def _may_cost(kind: str, *, queues: bool) -> bool:
    outcome = OUTCOMES[kind]
    # A blocking call that was answered with anything but success is not billed; work that was queued may be.
    return outcome.billed == "yes" or (outcome.billed == "maybe" and (queues or outcome.accepted == "unknown"))
